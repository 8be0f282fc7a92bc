"""IPv6 over real TCP: global, mapped and link-local addresses, in a network namespace that the test makes (root, or user namespaces)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rdsx

PROGRAM = '''
import socket, trio, rdsx

CONFIG = rdsx.NodeConfig(port=16385)

async def exchange(one, other):
    """A message each way, a ping, and a message over a new connection."""
    for sender, receiver in ((one, other), (other, one)):
        await sender.sendto(b"hello", receiver.getsockname())
        assert await receiver.recvfrom() == (b"hello", sender.getsockname())
    there = other.getsockname()
    await one.sendto(b"", (there[0], 0, *there[2:]))
    assert await one.recvfrom() == (b"", (there[0], 0, *there[2:]))
    assert one._driver.reset_connection(other._host.key)
    await one.sendto(b"again", there)
    assert await other.recv() == b"again"

async def main():
    scope = socket.if_nametoindex("br0")
    with trio.fail_after(30):
        async with rdsx.open_node("fd00::1", config=CONFIG) as a, rdsx.open_node(["fd00::2", "10.5.0.2"], config=CONFIG) as b:
            await exchange(await a.bind(4000), await b.bind(4001))
            await exchange(await b.bind(5000), await a.bind(5001))
            async with rdsx.open_node("10.5.0.1", config=CONFIG) as c:
                mapped, plain = b.socket(), await c.bind(4000)
                await mapped.bind(("::ffff:10.5.0.2", 4002))
                assert mapped.getsockname() == ("10.5.0.2", 4002)
                await exchange(plain, mapped)
        async with rdsx.open_node(f"fe80::1%{scope}", config=CONFIG) as a, rdsx.open_node("fe80::2%br0", config=CONFIG) as b:
            one, other = await a.bind(4000), await b.bind(4001)
            assert other.getsockname() == ("fe80::2", 4001, 0, scope)
            await exchange(one, other)

trio.run(main)
'''
NETWORK = """
set -e
ip link set lo up
ip link add br0 type bridge
ip link set br0 up
for address in fd00::1/64 fd00::2/64; do ip addr add $address dev lo nodad; done
for address in 10.5.0.1/32 10.5.0.2/32; do ip addr add $address dev lo; done
for address in fe80::1/64 fe80::2/64; do ip addr add $address dev br0 nodad; done
exec "$@"
"""


def test_ipv6(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "PYTHONPATH": str(Path(rdsx.__file__).parent.parent)}
    namespace = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("ip", path=environment["PATH"]):
        pytest.skip("needs the package iproute2")
    probe = [*namespace, "ip", "link", "add", "br0", "type", "bridge"]
    if subprocess.run(probe, env=environment, capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("no network namespace can be made here: be root, or allow user namespaces")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [*namespace, "sh", "-c", NETWORK, "sh", sys.executable, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
