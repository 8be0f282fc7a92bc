"""transport="kernel" beyond the contract suite: RDMA over soft-RoCE, IPv6, and what it says when something is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from lab.guest import Guest
from lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]


async def test_rdma(series: str) -> None:
    """A write into the peer's memory, delivered before its message, with one notification; over IB with its type of service."""
    program = Path(__file__).with_name("kernel_rdma.py").absolute()
    async with Lab() as lab:
        guest = await lab.start("R", modules=["rdma_rxe", "rds_tcp", "rds_rdma"], kernel=series)
        await guest.check("rdma link add rxe0 type rxe netdev eth0")
        output = await guest.check(guest.python_command(program, guest.address), 90)
    notified = {"alone": True, "token": 42, "status": 0}
    assert [json.loads(line) for line in output.splitlines()] == [
        {"transport": 0, "tos": 7},
        {"got": "write here", "cookie_is_mine": True},
        {"got": "written", "written": True},
        notified,
        {"got": "written", "written": True},
        {"got": "behind it"},
        notified,
        {"connections": [["10.77.0.2", "10.77.0.2", 7]]},
    ]


IPV6 = """
import rdsx, trio
async def main():
    async with rdsx.open_node(["fd77::2", "10.77.0.2"], transport="kernel") as node:
        one, other = node.socket(), node.socket()
        await one.bind(("fd77::2", 4000))
        await other.bind(("fd77::2", 0))
        await one.connect(other.getsockname())
        await one.send(b"six")
        data, sender = await other.recvfrom()
        print(data, sender, one.getpeername() == other.getsockname())
        print({found.local for found in node.info().connections if ":" in found.local})
trio.run(main)
"""


async def test_ipv6(guest: Guest) -> None:
    assert await guest.check(guest.python_command("-c", IPV6)) == "b'six' ('fd77::2', 4000, 0, 0) True\n{'fd77::2'}\n"


async def test_ping_command(guest: Guest) -> None:
    """rdsx ping with the kernel's own RDS, and what it says of an address that is not there."""
    ping = "-m", "rdsx.cli", "ping", "--transport", "kernel", "-c", 2, "-i", "0.1"
    lines = (await guest.check(guest.python_command(*ping, "--json", guest.address))).splitlines()
    assert json.loads(lines[-1])["received"] == 2
    status, output = await guest.run(guest.python_command(*ping, "-I", "10.9.9.9", guest.address))
    assert (status, "no interface of this network namespace has it" in output) == (1, True)


OPEN = """
import rdsx, sys, trio
async def main():
    async with rdsx.open_node(sys.argv[1], transport="kernel"):
        print("open")
try:
    trio.run(main)
except OSError as error:
    print(error)
"""


async def test_what_is_absent_is_named(guest: Guest) -> None:
    """The address, the transport for it, the namespace that has it, and the module itself."""
    opened, elsewhere = (guest.python_command("-c", OPEN, address) for address in ("10.77.0.2", "10.9.9.9"))
    assert await guest.check(opened) == "open\n"
    assert "10.9.9.9: Cannot assign requested address: no interface of this network" in await guest.check(elsewhere)
    assert "no interface of this network namespace has it" in await guest.check(f"unshare -n {opened}")
    try:
        await guest.check("modprobe -r rds_tcp && modprobe rds")
        assert "no RDS transport serves it: 'modprobe rds_tcp'" in await guest.check(opened)
        await guest.check("modprobe -r rds")
        assert "Address family not supported by protocol: this kernel has no RDS loaded: 'modprobe rds_tcp'" in await guest.check(opened)
    finally:
        with trio.CancelScope(shield=True):
            await guest.check("modprobe rds_tcp")
