"""A kernel that could use eight paths keeps to one connection, because rdsx says so; and IPv6, where a path is a path all the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from lab.bench import PORT, Flow, open_bench
from lab.guest import Guest
from lab.host import HostProcess
from lab.lab import LARGER, SMALLER, Lab
from lab.traffic import digests

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BOTH_SIDES = pytest.mark.parametrize("address", [pytest.param(SMALLER, id="smaller"), pytest.param(LARGER, id="larger")])
PATHS_PEER = Path(__file__).with_name("paths_peer.py")
SOCKETS = 16  # each has its own path by a random hash: that all have the same is one case in 2 ** 45


@BOTH_SIDES
async def test_sockets_of_all_paths_use_one_connection(lab: Lab, fresh_guest: Guest, address: str) -> None:
    ports = range(5000, 5000 + SOCKETS)
    async with open_bench(lab, fresh_guest, address, "kernel") as bench:
        await bench.rdsx.bind()
        kernel = bench.kernel.now
        for port in ports:
            await kernel.do("bind", port=port)
        # Blocking sends, all at once: until they have an answer to their probe, older kernels let none but the first path's sockets send.
        for port in ports:
            await kernel.tell("send", port=port, host=address, to=PORT, seed=port, count=20, low=0, high=4096)
        await bench.rdsx.now.wait_received(PORT, 20 * SOCKETS)
        came = bench.rdsx.now.received[PORT]
        for port in ports:
            sender = f"{fresh_guest.address}:{port}"
            assert [digest for digest, who in came if who == sender] == digests(port, 20, 0, 4096)
        assert await established(fresh_guest) == 1
        connection = await bench.connection()
        assert (connection["links"], connection["state"]) == (1, "up")


@pytest.mark.parametrize("first", ["rdsx", "kernel"])
@pytest.mark.parametrize("address", [pytest.param("fd77::1", id="smaller"), pytest.param("fd77::9", id="larger")])
async def test_ipv6(lab: Lab, fresh_guest: Guest, address: str, first: str) -> None:
    async with open_bench(lab, fresh_guest, address, "rdsx" if first == "rdsx" else "kernel") as bench:
        for end in bench.ends:
            await end.bind()
        flows = [Flow(sender=end.name, seed=number, count=100, high=65536) for number, end in enumerate(bench.ends)]
        for flow in flows:
            await bench.send(flow)
            await bench.wait_came(flow)
        for end in bench.ends:
            assert (await end.now.do("ping", host=bench.other(end).address, count=3))["answers"] == 3
        assert await bench.reset()
        more = [Flow(sender=end.name, seed=10 + number, count=100, high=65536) for number, end in enumerate(bench.ends)]
        for flow in more:
            await bench.send(flow)
            await bench.wait_came(flow)
        for flow, later in zip(flows, more, strict=True):
            bench.account(flow.receiver, flow, later)


async def wait_said(process: HostProcess, text: str) -> None:
    said = b""
    with trio.fail_after(30):
        while text.encode() not in said:
            said += await process.stdout.receive_some()


async def established(guest: Guest) -> int:
    """How many TCP connections the guest's RDS has."""
    return len((await guest.check("ss -Htn state established '( sport = 16385 or dport = 16385 )'")).splitlines())


async def test_a_kernel_that_has_used_eight_paths_before(lab: Lab, fresh_guest: Guest) -> None:
    """Who had our address before used eight paths, and the kernel, having the smaller address, dials all of them again.

    rdsx speaks first, so that the kernel has heard how many paths there are now before it queues anything: what is queued on a path
    that it then no longer connects stays there.
    """
    one_message = fresh_guest.rds_command(f"send {fresh_guest.address}:4001 {LARGER}:4000 --drain 0 --nonblock")
    async with lab.host_process([sys.executable, PATHS_PEER, LARGER]) as former:
        await wait_said(former, "ready")
        await fresh_guest.check(one_message)
        await wait_said(former, "8")
    async with open_bench(lab, fresh_guest, LARGER, "rdsx") as bench:
        for end in bench.ends:
            await end.bind()
        flows = [Flow(sender=end.name, seed=number, count=200, high=4096) for number, end in enumerate(bench.ends)]
        for flow in flows:
            await bench.send(flow)
            await bench.wait_came(flow)
            bench.account(flow.receiver, flow)
