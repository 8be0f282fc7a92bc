"""bind, connect and the names: which errno for what."""

from __future__ import annotations

import errno
from typing import Any

import pytest

import rdsx
from apikit import bound, raises_errno
from contractkit import LEFT, NOBODY, RIGHT, Pair, every_stack, next_port, pair


@every_stack
async def test_bind(stack: str) -> None:
    async with pair(stack) as two:
        port = next_port()
        sock = two.left.socket()
        assert sock.getsockname() == ("0.0.0.0", 0)
        await sock.bind((LEFT, port))
        assert sock.getsockname() == (LEFT, port)
        assert str(port) in repr(sock)
        same_port_elsewhere = await bound(two.right, port, RIGHT)
        with raises_errno(errno.EADDRINUSE, LEFT, str(port), "port 0"):
            await bound(two.left, port, LEFT)
        same_port_elsewhere.close()
        sock.close()
        with await bound(two.left, port, LEFT) as again:
            assert again.getsockname() == (LEFT, port)


@every_stack
async def test_port_0_picks_one(stack: str) -> None:
    async with pair(stack) as two:
        ports = {(await bound(two.left, 0, LEFT)).getsockname()[1] for _ in range(100)}
        assert len(ports) == 100
        assert min(ports) >= 2
        assert two.left.statistics().sockets == 100


REFUSED: dict[str, tuple[Any, int]] = {
    "any": (("0.0.0.0", 4000), errno.EINVAL),
    "multicast": (("224.0.0.1", 4000), errno.EINVAL),
    "broadcast": (("255.255.255.255", 4000), errno.EINVAL),
    "any of IPv6": (("::", 4000, 0, 0), errno.EINVAL),
    "multicast of IPv6": (("ff02::1", 4000, 0, 1), errno.EINVAL),
    "link-local without scope": (("fe80::1", 4000, 0, 0), errno.EINVAL),
    "not ours": (("192.0.2.1", 4000), errno.EADDRNOTAVAIL),
    "port of the probe": ((LEFT, 1), errno.EINVAL),
}


@every_stack
@pytest.mark.parametrize("case", REFUSED)
async def test_bind_refused(stack: str, case: str) -> None:
    address, number = REFUSED[case]
    async with pair(stack) as two:
        sock = two.left.socket()
        with raises_errno(number, str(address[0])):
            await sock.bind(address)
        await sock.bind((LEFT, 0))  # it changed nothing


@every_stack
async def test_bound_once_for_all(stack: str) -> None:
    async with pair(stack) as two:
        sock = await two.left_socket()
        before = sock.getsockname()
        for address in (before, (LEFT, 0)):
            with raises_errno(errno.EINVAL, "already bound"):
                await sock.bind(address)
        assert sock.getsockname() == before


@every_stack
async def test_connect(stack: str) -> None:
    """Any number of times, before or after bind, and nobody has to be there."""
    async with pair(stack) as two:
        receiver = await two.right_socket()
        sock = two.left.socket()
        with raises_errno(errno.ENOTCONN, "connect()"):
            sock.getpeername()
        for address in ((NOBODY, 4000), (RIGHT, 0), receiver.getsockname()):
            await sock.connect(address)
            assert sock.getpeername() == address
        assert sock.getsockname() == ("0.0.0.0", 0)
        await sock.bind((LEFT, next_port()))
        assert await sock.send(b"1") == 1
        assert sock.send_nowait(b"22") == 2
        assert await sock.sendmsg([b"3", b"33"]) == 3
        assert [await receiver.recv() for _ in range(3)] == [b"1", b"22", b"333"]


CONNECT_REFUSED: dict[str, tuple[Any, int]] = {
    "any": (("0.0.0.0", 4000), errno.EDESTADDRREQ),
    "multicast": (("224.0.0.1", 4000), errno.EINVAL),
    "broadcast": (("255.255.255.255", 4000), errno.EINVAL),
    "any of IPv6": (("::", 4000, 0, 0), errno.EPROTOTYPE),
    "multicast of IPv6": (("ff02::1", 4000, 0, 1), errno.EPROTOTYPE),
    "link-local without scope": (("fe80::1", 4000, 0, 0), errno.EINVAL),
}


@every_stack
@pytest.mark.parametrize("case", CONNECT_REFUSED)
async def test_connect_refused(stack: str, case: str) -> None:
    address, number = CONNECT_REFUSED[case]
    async with pair(stack) as two:
        sock = two.left.socket()
        with raises_errno(number, str(address[0])):
            await sock.connect(address)
        with raises_errno(errno.ENOTCONN):
            sock.getpeername()


@every_stack
async def test_only_a_default(stack: str) -> None:
    """A connected socket sends elsewhere too, and receives from everybody."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        other = await two.right_socket()
        await left.connect(right.getsockname())
        await left.sendto(b"elsewhere", other.getsockname())
        assert await other.recvfrom() == (b"elsewhere", left.getsockname())
        await other.sendto(b"back", left.getsockname())
        assert await left.recvfrom() == (b"back", other.getsockname())


async def unusable(two: Pair) -> dict[str, tuple[rdsx.RdsSocket, Any, int]]:
    sock = await two.left_socket()
    return {
        "unbound": (two.left.socket(), (RIGHT, 4000), errno.ENOTCONN),
        "any": (sock, ("0.0.0.0", 4000), errno.EINVAL),
        "multicast": (sock, ("224.0.0.1", 4000), errno.EINVAL),
        "broadcast": (sock, ("255.255.255.255", 4000), errno.EINVAL),
        "IPv4 to IPv6": (sock, ("fd00::1", 4000, 0, 0), errno.EOPNOTSUPP),
        "any of IPv6": (sock, ("::", 4000, 0, 0), errno.EINVAL),
        "link-local without scope": (sock, ("fe80::1", 4000, 0, 0), errno.EINVAL),
    }


@every_stack
async def test_destinations_refused(stack: str) -> None:
    async with pair(stack) as two:
        for case, (sock, address, number) in (await unusable(two)).items():
            for call in (sock.sendto(b"x", address), sock.sendmsg([b"x"], [], 0, address), sock.sendmmsg([(b"x", address)])):
                with raises_errno(number):
                    await call
            with raises_errno(number):
                sock.sendto_nowait(b"x", address)
            assert sock.statistics().sent_messages == 0, case
