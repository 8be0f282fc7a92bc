"""Control messages and option structures: layouts against the kernel's, round trips, and what sendmsg() refuses, in which order."""

from __future__ import annotations

import errno
import inspect
import socket
import struct

import pytest

import rdsx
from apikit import FAR, LEFT, assert_text, bound, lonely_node, loop_node, raises_errno
from rdsx import ancillary as a
from rdsx import rdma_structs
from refusals import ARGS, REFUSED

# The sizes of the kernel's structures on 64-bit machines.
EXAMPLES: list[tuple[rdma_structs.Structure, int]] = [
    (a.IoVec(1, 2), 16),
    (a.GetMrArgs(a.IoVec(1, 2), 3, rdsx.RDS_RDMA_USE_ONCE), 32),
    (a.GetMrForDestArgs(("10.0.0.2", 4000), a.IoVec(1, 2), 3, 4), 160),
    (a.FreeMrArgs(0xFFFFFFFF, rdsx.RDS_RDMA_INVALIDATE), 16),
    (a.RdmaArgs(1, a.IoVec(2, 3), 4, 5, rdsx.RDS_RDMA_NOTIFY_ME, 7), 56),
    (a.FetchAdd(1, 8, 16, 5, flags=6, user_token=7), 72),
    (a.CompareSwap(1, 8, 16, 4, 5, flags=6, user_token=7), 72),
    (a.MaskedFetchAdd(1, 8, 16, 4, 5, flags=6, user_token=7), 72),
    (a.MaskedCompareSwap(1, 8, 16, 2, 3, 4, 5, flags=6, user_token=7), 72),
    (a.RdmaStatus(2**64 - 1, rdsx.RDS_RDMA_REMOTE_ERROR), 16),
    (a.RdmaDest(0x0000_0010_0000_0007), 8),
    (a.CongUpdate(1 << 63 | 1), 8),
    (a.RxTrace((2, 0)), 4),
    (a.RxPathLatency(((2, 1000), (0, 2**40))), 32),
    (a.ZcopyCookie(9), 4),
    (a.ZcopyCompletion((1, 2, 3)), 36),
    (a.Timestamp(1_700_000_000, 999_999), 16),
]


@pytest.mark.parametrize(("value", "size"), EXAMPLES, ids=lambda one: type(one).__name__)
def test_sizes_and_round_trips(value: rdma_structs.Structure, size: int) -> None:
    packed = value.pack()
    assert len(packed) == value.layout.size == size
    assert type(value).unpack(packed) == value
    assert type(value).unpack(bytearray(packed + b"more")) == value
    with raises_errno(errno.EINVAL, type(value).__name__, str(size), str(size - 1)):
        type(value).unpack(packed[:-1])


def test_every_structure_has_an_example() -> None:
    shown = {type(value) for value, _ in EXAMPLES}
    defined = {
        one
        for module in (a, rdma_structs)
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, rdma_structs.Structure)
    }
    assert defined - shown == {rdma_structs.Structure, rdma_structs.Control, rdma_structs.Atomic}
    assert {one.__name__ for one in shown} <= set(a.__all__)


def test_layouts() -> None:
    """Where each field is, written out as the kernel's header has it."""
    assert a.RdmaArgs(1, a.IoVec(2, 3), 4, 5, 6, 7).pack() == struct.pack("=7Q", 1, 2, 3, 4, 5, 6, 7)
    assert a.FetchAdd(1, 8, 16, 5, flags=6, user_token=7).pack() == struct.pack("=9Q", 1, 8, 16, 5, 0, 0, 0, 6, 7)
    assert a.CompareSwap(1, 8, 16, 4, 5, flags=6).pack() == struct.pack("=9Q", 1, 8, 16, 4, 5, 0, 0, 6, 0)
    assert a.MaskedFetchAdd(1, 8, 16, 4, 5).pack() == struct.pack("=9Q", 1, 8, 16, 4, 5, 0, 0, 0, 0)
    assert a.MaskedCompareSwap(1, 8, 16, 2, 3, 4, 5).pack() == struct.pack("=9Q", 1, 8, 16, 2, 3, 4, 5, 0, 0)
    assert a.GetMrArgs(a.IoVec(1, 2), 3, 4).pack() == struct.pack("=4Q", 1, 2, 3, 4)
    assert a.RdmaStatus(5, -1).pack() == struct.pack("=Qi", 5, -1) + bytes(4)
    assert a.RxTrace((2, 0)).pack() == b"\2\2\0\0"
    assert a.RxPathLatency(((2, 10), (1, 20))).pack() == b"\2\2\1\0" + bytes(4) + struct.pack("=3Q", 10, 20, 0)
    assert a.ZcopyCompletion((7,)).pack() == struct.pack("=9I", 1, 7, *[0] * 7)
    assert a.pack_vectors([a.IoVec(1, 2), a.IoVec(3, 4)]) == struct.pack("=4Q", 1, 2, 3, 4)
    for_dest = a.GetMrForDestArgs(("fd00::2", 4000, 0, 0), a.IoVec(1, 2), 3, 4).pack()
    assert for_dest == a.pack_sockaddr(("fd00::2", 4000, 0, 0)) + bytes(100) + struct.pack("=4Q", 1, 2, 3, 4)


def test_sockaddrs() -> None:
    packed = a.pack_sockaddr(("10.1.2.3", 0x1234))
    assert packed == struct.pack("=H", socket.AF_INET) + b"\x12\x34\x0a\x01\x02\x03" + bytes(8)
    assert a.unpack_sockaddr(packed) == ("10.1.2.3", 0x1234)
    packed = a.pack_sockaddr(("fe80::1", 0x1234, 0, 3))
    assert len(packed) == 28
    assert packed[:8] == struct.pack("=H", socket.AF_INET6) + b"\x12\x34" + bytes(4)
    assert a.unpack_sockaddr(packed) == ("fe80::1", 0x1234, 0, 3)
    mapped = struct.pack("=H", socket.AF_INET6) + b"\x12\x34" + bytes(4) + bytes(10) + b"\xff\xff\x0a\x00\x00\x01" + bytes(4)
    assert a.unpack_sockaddr(mapped) == ("10.0.0.1", 0x1234)
    with raises_errno(errno.EINVAL, "15", "16", "28"):
        a.unpack_sockaddr(bytes(15))


def test_numbers_that_do_not_fit() -> None:
    wrong: list[rdma_structs.Structure] = [
        a.IoVec(-1, 0),
        a.RdmaDest(2**64),
        a.ZcopyCookie(2**32),
        a.RdmaStatus(0, 2**31),
        a.RxTrace((0, 1, 2, 0)),
        a.RxTrace((3,)),
        a.RxPathLatency(((0, 0),) * 4),
        a.ZcopyCompletion((0,) * 9),
    ]
    for value in wrong:
        with pytest.raises(OverflowError) as caught:
            value.pack()
        assert_text(caught.value, repr(value))


def test_congestion_mask() -> None:
    update = a.CongUpdate(1 << (4000 % 64))
    assert update.may_be_free(4000)
    assert update.may_be_free(4000 + 64)
    assert not update.may_be_free(4001)
    assert a.CongUpdate(2**64 - 1).may_be_free(65535)


def test_cookie_halves() -> None:
    cookie = a.RdmaDest(0x0000_0ABC_1234_5678)
    assert (cookie.rkey, cookie.offset) == (0x12345678, 0xABC)


def test_times() -> None:
    stamp = a.Timestamp.at(1234.5)
    assert stamp == a.Timestamp(1234, 500_000)
    assert stamp.time_s == 1234.5
    assert stamp.control() == (socket.SOL_SOCKET, 29, struct.pack("=qq", 1234, 500_000))


def test_parse() -> None:
    values: list[rdma_structs.Control | a.OtherControl] = [
        a.RdmaDest(5),
        a.Timestamp(1, 2),
        a.RxPathLatency(((0, 3),)),
        a.ZcopyCompletion((4,)),
        a.RdmaStatus(6, 0),
        a.CongUpdate(7),
    ]
    triples = [value.control() for value in values if isinstance(value, rdma_structs.Control)]
    assert a.parse(triples) == values
    assert a.parse([(socket.SOL_SOCKET, 63, a.Timestamp(1, 2).pack())]) == [a.Timestamp(1, 2)]
    cut_short = (rdsx.SOL_RDS, rdsx.RDS_CMSG_CONG_UPDATE, b"1234")
    unknown = (rdsx.SOL_RDS, 99, b"")
    other_level = (socket.SOL_IP, rdsx.RDS_CMSG_CONG_UPDATE, bytes(8))
    assert a.parse([cut_short, unknown, other_level]) == [
        a.OtherControl(*cut_short),
        a.OtherControl(*unknown),
        a.OtherControl(*other_level),
    ]
    assert a.parse([]) == []


@pytest.mark.parametrize(("ancdata", "number", "words"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
async def test_what_sendmsg_refuses(ancdata: list[tuple[int, int, bytes]], number: int, words: list[str]) -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        with raises_errno(number, *words):
            await sock.sendmsg([b"x"], ancdata, 0, (LEFT, 4000))
        assert sock.statistics().sent_messages == 0


async def test_what_sendmsg_refuses_where_the_peer_is_far() -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        with raises_errno(errno.EOPNOTSUPP, "transport='kernel'"):
            await sock.sendmsg([b"x"], [ARGS.control()], 0, FAR)
        assert sock.statistics().sent_messages == 0


async def test_other_levels_are_ignored() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        assert await sock.sendmsg([b"x"], [(socket.SOL_SOCKET, 1, bytes(12)), (socket.SOL_IP, 99, b"")], 0, (LEFT, 4000)) == 1
        assert await sock.recvfrom() == (b"x", (LEFT, 4000))


async def test_arguments_are_checked_before_control_messages() -> None:
    """Flags, then the address and the binding, then control messages."""
    async with loop_node() as node:
        unbound = node.socket()
        with raises_errno(errno.EOPNOTSUPP, "flags"):
            await unbound.sendmsg([b"x"], [ARGS.control()], socket.MSG_OOB, (LEFT, 4000))
        with raises_errno(errno.ENOTCONN, "bind"):
            await unbound.sendmsg([b"x"], [(rdsx.SOL_RDS, 99, b"")], 0, (LEFT, 4000))
        with raises_errno(errno.ENOTCONN, "connect"):
            await unbound.sendmsg([b"x"])
