"""setsockopt() and getsockopt(): the kernel's numbers, checks and oddities, and what the options do."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import FAR, LEFT, MIB, accounts, assert_text, bound, congest, duo, fill, lonely_node, loop_node, raises_errno
from rdsx import ancillary

HERE = (LEFT, 4000)
SOL_SOCKET, SO_SNDBUF, SO_RCVBUF = socket.SOL_SOCKET, socket.SO_SNDBUF, socket.SO_RCVBUF
SO_SNDTIMEO, SO_RCVTIMEO, SO_TIMESTAMP, SO_TIMESTAMP_NEW = socket.SO_SNDTIMEO, socket.SO_RCVTIMEO, 29, 63


def timeval(seconds: int, microseconds: int = 0) -> bytes:
    return struct.pack("ll", seconds, microseconds)


# -- buffer sizes


@pytest.mark.parametrize(("option", "least"), [(SO_SNDBUF, 2304), (SO_RCVBUF, 1152)])
async def test_buffer_sizes(option: int, least: int) -> None:
    """getsockopt() gives twice what was set; there is a least and a greatest; a negative one is taken for a very large one."""
    async with loop_node(max_buffer_bytes=MIB) as node:
        sock = node.socket()
        assert sock.getsockopt(SOL_SOCKET, option) == 2 * 106496
        for value, effective in ((5000, 5000), (0, least), (least - 1, least), (least + 1, least + 1), (2 * MIB, MIB), (-1, MIB)):
            sock.setsockopt(SOL_SOCKET, option, value)
            assert sock.getsockopt(SOL_SOCKET, option) == 2 * effective
            sock.setsockopt(SOL_SOCKET, option, struct.pack("i", value) + b"more")
            assert sock.getsockopt(SOL_SOCKET, option) == 2 * effective


async def test_default_buffer_sizes_come_from_the_node() -> None:
    async with loop_node(send_buffer_bytes=5000, receive_buffer_bytes=6000) as node:
        sock = node.socket()
        assert sock.getsockopt(SOL_SOCKET, SO_SNDBUF) == 10000
        assert sock.getsockopt(SOL_SOCKET, SO_RCVBUF) == 12000


async def test_send_buffer_is_tested_against_the_old_sum() -> None:
    """The last message may go over the limit; an empty one is refused at it too."""
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 5000)
        assert sock.sendto_nowait(bytes(4999), FAR) == 4999
        assert sock.sendto_nowait(bytes(5000), FAR) == 5000
        assert sock.statistics().unacknowledged_bytes == 9999
        for size in (0, 1):
            with pytest.raises(trio.WouldBlock):
                sock.sendto_nowait(bytes(size), FAR)
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 10000)
        assert sock.sendto_nowait(b"", FAR) == 0


async def test_raising_the_send_buffer_wakes_senders() -> None:
    async with lonely_node() as node, trio.open_nursery() as nursery:
        sock = await bound(node, 4000, "10.0.0.1")
        await fill(sock)
        nursery.start_soon(sock.sendto, b"more", FAR)
        nursery.start_soon(sock.wait_writable, FAR)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, MIB)


# -- values


async def test_lengths_and_types_of_values() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        for option in (rdsx.RDS_RECVERR, rdsx.RDS_CONG_MONITOR):
            with raises_errno(errno.EINVAL, "3 bytes", "struct.pack"):
                sock.setsockopt(rdsx.SOL_RDS, option, b"123")
        with raises_errno(errno.EINVAL, "0 bytes"):
            sock.setsockopt(SOL_SOCKET, SO_SNDBUF, b"")
        for option in (SO_TIMESTAMP, SO_TIMESTAMP_NEW):
            for length in (3, 5):
                with raises_errno(errno.EFAULT, f"{length} bytes"):
                    sock.setsockopt(rdsx.SOL_RDS, option, bytes(length))
            with raises_errno(errno.EINVAL, "3 bytes"):
                sock.setsockopt(SOL_SOCKET, option, bytes(3))
        wrong: Any
        for wrong in ("1", None, 1.5):
            for option in (SO_SNDBUF, SO_SNDTIMEO):
                with pytest.raises(TypeError) as caught:
                    sock.setsockopt(SOL_SOCKET, option, wrong)
                assert_text(caught.value, repr(wrong), "bytes-like")
        for number in (2**31, -(2**31) - 1):
            with pytest.raises(OverflowError) as overflow:
                sock.setsockopt(SOL_SOCKET, SO_SNDBUF, number)
            assert_text(overflow.value, str(number), "C int")


async def test_buflen() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        assert sock.getsockopt(SOL_SOCKET, SO_SNDBUF, 4) == struct.pack("i", 212992)
        assert sock.getsockopt(rdsx.SOL_RDS, rdsx.RDS_RECVERR, 100) == struct.pack("i", 0)
        assert sock.getsockopt(SOL_SOCKET, SO_SNDTIMEO, 16) == timeval(0)
        with raises_errno(errno.EINVAL, "buflen", "3"):
            sock.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, 3)


SET_ONLY = [
    rdsx.RDS_CANCEL_SENT_TO,
    rdsx.RDS_GET_MR,
    rdsx.RDS_FREE_MR,
    rdsx.RDS_CONG_MONITOR,
    rdsx.RDS_GET_MR_FOR_DEST,
    SO_TIMESTAMP,
    SO_TIMESTAMP_NEW,
]


async def test_options_that_are_not_there() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        for level, option in ((rdsx.SOL_RDS, 4), (rdsx.SOL_RDS, 9), (rdsx.SOL_RDS, 99), (socket.SOL_IP, 1), (SOL_SOCKET, 99), (0, 0)):
            words = (f"option {option} ", f"level {level} ", "rdsx.options")
            with raises_errno(errno.ENOPROTOOPT, *words):
                sock.setsockopt(level, option, 1)
            with raises_errno(errno.ENOPROTOOPT, *words):
                sock.getsockopt(level, option)
        for option in SET_ONLY:
            with raises_errno(errno.ENOPROTOOPT, f"option {option} "):
                sock.getsockopt(rdsx.SOL_RDS, option)
        for option in (10000, 10017):
            with raises_errno(errno.ENOPROTOOPT, "RDS_INFO", "statistics()"):
                sock.getsockopt(rdsx.SOL_RDS, option)
        with raises_errno(errno.ENOPROTOOPT, "SO_RDS_MSG_RXPATH_LATENCY", "SO_TIMESTAMP"):
            sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_MSG_RXPATH_LATENCY, ancillary.RxTrace((0,)).pack())
        with raises_errno(errno.ENOPROTOOPT, "SO_ZEROCOPY", "without a copy"):
            sock.setsockopt(SOL_SOCKET, 60, 1)


async def test_flags_that_are_only_remembered() -> None:
    async with loop_node() as node:
        sock = node.socket()
        for level, option in ((rdsx.SOL_RDS, rdsx.RDS_RECVERR), (SOL_SOCKET, socket.SO_REUSEADDR)):
            for value, expected in ((0, 0), (5, 1), (struct.pack("i", 0), 0), (struct.pack("i", -1), 1)):
                sock.setsockopt(level, option, value)
                assert sock.getsockopt(level, option) == expected
        assert sock.getsockopt(SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getsockopt(SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
        assert sock.getsockopt(SOL_SOCKET, socket.SO_DOMAIN) == rdsx.AF_RDS
        assert sock.getsockopt(SOL_SOCKET, socket.SO_PROTOCOL) == 0


async def test_reuseaddr_has_no_effect() -> None:
    async with loop_node() as node:
        await node.bind(4000)
        sock = node.socket()
        sock.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with raises_errno(errno.EADDRINUSE, "4000"):
            await sock.bind(HERE)


# -- RDMA, which this transport does not have


async def test_memory_registration() -> None:
    get_mr = ancillary.GetMrArgs(ancillary.IoVec(0, 4096)).pack()
    for_dest = ancillary.GetMrForDestArgs(HERE, ancillary.IoVec(0, 4096)).pack()
    async with loop_node() as node:
        sock = node.socket()
        for option, packed, size in ((rdsx.RDS_GET_MR, get_mr, "32"), (rdsx.RDS_GET_MR_FOR_DEST, for_dest, "160")):
            for wrong in (packed[:-1], packed + b"x", 1):
                with raises_errno(errno.EINVAL, "rdsx.ancillary.GetMr", size):
                    sock.setsockopt(rdsx.SOL_RDS, option, wrong)
            with raises_errno(errno.ENOTCONN, "bind()"):
                sock.setsockopt(rdsx.SOL_RDS, option, packed)
        await sock.bind(HERE)
        for option, packed in ((rdsx.RDS_GET_MR, get_mr), (rdsx.RDS_GET_MR_FOR_DEST, for_dest)):
            with raises_errno(errno.EOPNOTSUPP, "transport='kernel'", "get_mr()"):
                sock.setsockopt(rdsx.SOL_RDS, option, packed)
        with raises_errno(errno.EINVAL, "rdsx.ancillary.FreeMrArgs", "16", "15"):
            sock.setsockopt(rdsx.SOL_RDS, rdsx.RDS_FREE_MR, bytes(15))
        for cookie in (0, 0x77):
            with raises_errno(errno.EINVAL, f"{cookie:#x}", "get_mr()"):
                sock.setsockopt(rdsx.SOL_RDS, rdsx.RDS_FREE_MR, ancillary.FreeMrArgs(cookie).pack())


# -- SO_RDS_TRANSPORT


async def test_transport() -> None:
    async with lonely_node() as node:
        sock = node.socket()
        assert sock.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT) == rdsx.RDS_TRANS_NONE
        for length in (3, 5, 8):
            with raises_errno(errno.EINVAL, f"{length} bytes"):
                sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, bytes(length))
        for number in (-1, 3, 4):
            with raises_errno(errno.EINVAL, str(number), "2 (TCP)"):
                sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, number)
        for number in (rdsx.RDS_TRANS_IB, rdsx.RDS_TRANS_GAP):
            with raises_errno(errno.ENOPROTOOPT, str(number), "open_node"):
                sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, number)
        sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, rdsx.RDS_TRANS_TCP)
        assert sock.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT) == rdsx.RDS_TRANS_TCP
        for again in (rdsx.RDS_TRANS_TCP, b""):  # being too late is said before anything else
            with raises_errno(errno.EOPNOTSUPP, "before bind()"):
                sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, again)
        late = await bound(node, 4000, "10.0.0.1")
        assert late.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT) == rdsx.RDS_TRANS_TCP
        with raises_errno(errno.EOPNOTSUPP, "before bind()"):
            late.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, rdsx.RDS_TRANS_TCP)


async def test_transport_of_a_loop_node() -> None:
    async with loop_node() as node:
        sock = node.socket()
        with raises_errno(errno.ENOPROTOOPT, "2", "open_node"):
            sock.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT, rdsx.RDS_TRANS_TCP)
        await sock.bind(HERE)
        assert sock.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT) == rdsx.RDS_TRANS_LOOP


# -- timeouts


async def test_setting_timeouts() -> None:
    async with loop_node() as node:
        sock = node.socket()
        for option in (SO_SNDTIMEO, SO_RCVTIMEO, 66, 67):
            assert sock.getsockopt(SOL_SOCKET, option) == timeval(0)
            sock.setsockopt(SOL_SOCKET, option, timeval(3, 250000) + b"more")
            assert sock.getsockopt(SOL_SOCKET, option) == timeval(3, 250000)
            for micro in (-1, 1_000_000):
                with raises_errno(errno.EDOM, str(micro), "0..999999"):
                    sock.setsockopt(SOL_SOCKET, option, timeval(0, micro))
            for wrong in (5, bytes(15)):
                with raises_errno(errno.EINVAL, "struct.pack('ll'"):
                    sock.setsockopt(SOL_SOCKET, option, wrong)
            sock.setsockopt(SOL_SOCKET, option, timeval(0))
            assert sock.getsockopt(SOL_SOCKET, option) == timeval(0)


@pytest.mark.parametrize("name", ["recv", "recvfrom", "recvmmsg", "recvmsg", "recv_into", "recvfrom_into", "__anext__"])
async def test_receive_timeout(name: str, autojump_clock: trio.testing.MockClock) -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(2, 500000))
        arguments = (bytearray(9),) if name.endswith("_into") else ()
        before = trio.current_time()
        with raises_errno(errno.ETIMEDOUT, "2.5 s", "SO_RCVTIMEO", kind=TimeoutError):
            await getattr(sock, name)(*arguments)
        assert trio.current_time() - before == 2.5
        await sock.sendto(b"x", HERE)
        assert await sock.recv() == b"x"


async def test_receive_timeout_is_for_the_whole_call(autojump_clock: trio.testing.MockClock) -> None:
    """Being woken in vain, because another task was faster, does not start it anew."""
    async with loop_node() as node, trio.open_nursery() as nursery:
        sock = await bound(node, 4000, LEFT)
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(2))

        async def late() -> None:
            before = trio.current_time()
            with raises_errno(errno.ETIMEDOUT):
                await sock.recv()
            assert trio.current_time() - before == 2.0

        nursery.start_soon(late)
        await trio.sleep(1.5)
        sock.sendto_nowait(b"x", HERE)
        assert sock.recv_nowait() == b"x"


async def test_send_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(2))
        queued = await fill(sock)
        unchanged = accounts(sock)
        calls: list[Callable[[], Awaitable[int]]] = [
            lambda: sock.sendto(b"x", FAR),
            lambda: sock.sendmsg([b"x"], [], 0, FAR),
            lambda: sock.sendmmsg([(b"x", FAR)]),
        ]
        for call in calls:
            before = trio.current_time()
            with raises_errno(errno.ETIMEDOUT, "2.0 s", "SO_SNDTIMEO", kind=TimeoutError):
                await call()
            assert trio.current_time() - before == 2.0
            assert accounts(sock) == unchanged
        assert sock.cancel_sent_to(FAR) == queued


async def test_batch_that_times_out_counts_what_was_queued(autojump_clock: trio.testing.MockClock) -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(2))
        assert await sock.sendmmsg([(bytes(60000), FAR)] * 5) == 2


async def test_send_timeout_is_for_the_whole_call(autojump_clock: trio.testing.MockClock) -> None:
    """Room that is not enough does not start it anew."""
    async with lonely_node() as node, trio.open_nursery() as nursery:
        sock = await bound(node, 4000, "10.0.0.1")
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(2))
        sock.sendto_nowait(b"", ("10.0.0.2", 9))
        await fill(sock)

        async def late() -> None:
            before = trio.current_time()
            with raises_errno(errno.ETIMEDOUT):
                await sock.sendto(b"x", FAR)
            assert trio.current_time() - before == 2.0

        nursery.start_soon(late)
        await trio.sleep(1.5)
        assert sock.cancel_sent_to(("10.0.0.2", 9)) == 1


async def test_congestion_has_no_timeout(autojump_clock: trio.testing.MockClock) -> None:
    async with loop_node() as node:
        sock, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(2))
        await congest(sock, (LEFT, 5000))
        with trio.move_on_after(1000):
            await sock.sendto(b"x", (LEFT, 5000))
        assert trio.current_time() >= 1000
        assert receiver.statistics().congested


async def test_negative_timeouts_do_not_wait(autojump_clock: trio.testing.MockClock) -> None:
    """As in the kernel: ETIMEDOUT at once, but what is there is taken."""
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(-1))
        before = trio.current_time()
        with raises_errno(errno.ETIMEDOUT):
            await sock.recv()
        assert trio.current_time() == before
        await sock.sendto(b"x", HERE)
        assert await sock.recv() == b"x"


# -- timestamps


@pytest.mark.parametrize("level", [SOL_SOCKET, rdsx.SOL_RDS])
@pytest.mark.parametrize("option", [SO_TIMESTAMP, SO_TIMESTAMP_NEW])
async def test_timestamps(level: int, option: int) -> None:
    async with duo("tcp", wall_clock=lambda: 1_700_000_000.25) as two:
        left, right = await two.sockets()
        await left.sendto(b"1", right.getsockname())
        assert (await right.recvmsg(None, 1000))[1] == []
        right.setsockopt(level, option, 1)
        assert right.getsockopt(SOL_SOCKET, option) == 1
        assert right.getsockopt(SOL_SOCKET, SO_TIMESTAMP + SO_TIMESTAMP_NEW - option) == 0
        await left.sendto(b"22", right.getsockname())
        for flags in (socket.MSG_PEEK, 0):
            data, ancdata, msg_flags, address = await right.recvmsg(1, 1000, flags)
            assert (data, msg_flags, address) == (b"2", socket.MSG_TRUNC, left.getsockname())
            assert ancdata == [(SOL_SOCKET, option, timeval(1_700_000_000, 250_000))]
            assert ancillary.parse(ancdata) == [ancillary.Timestamp(1_700_000_000, 250_000)]
        right.setsockopt(level, option, 0)
        await left.sendto(b"3", right.getsockname())
        assert (await right.recvmsg(None, 1000))[1] == []


async def test_timestamp_without_room() -> None:
    async with duo("tcp") as two:
        left, right = await two.sockets()
        right.setsockopt(SOL_SOCKET, SO_TIMESTAMP, 1)
        await left.sendto(b"1", right.getsockname())
        assert await right.recvmsg(None, socket.CMSG_SPACE(16) - 1) == (b"1", [], socket.MSG_CTRUNC, left.getsockname())
        await left.sendto(b"2", right.getsockname())
        assert len((await right.recvmsg(None, socket.CMSG_SPACE(16)))[1]) == 1


async def test_timestamps_of_loopback() -> None:
    async with loop_node(wall_clock=lambda: 1_700_000_000.25) as node:
        sock = await bound(node, 4000, LEFT)
        sock.setsockopt(SOL_SOCKET, SO_TIMESTAMP, 1)
        await sock.sendto(b"x", HERE)
        assert ancillary.parse((await sock.recvmsg(None, 100))[1]) == [ancillary.Timestamp(1_700_000_000, 250_000)]


# -- RDS_CANCEL_SENT_TO


async def test_cancel_sent_to() -> None:
    async with lonely_node() as node:
        sock = node.socket()
        packed = ancillary.pack_sockaddr(FAR)
        with raises_errno(errno.ENOTCONN, "bind()"):
            sock.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CANCEL_SENT_TO, packed)
        await sock.bind(("10.0.0.1", 4000))
        for wrong, length in ((packed[:-1], 15), (b"", 0), (1, 4)):
            with raises_errno(errno.EINVAL, "pack_sockaddr", f"{length} bytes"):
                sock.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CANCEL_SENT_TO, wrong)
        for address in (FAR, FAR, (FAR[0], 5001), ("10.0.0.3", 5000)):
            await sock.sendto(b"12345", address)
        sock.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CANCEL_SENT_TO, packed)
        assert sock.statistics().unacknowledged_messages == 2
        assert sock.statistics().unacknowledged_bytes == 10
        assert node.statistics().counters["send_canceled"] == 2


# -- RDS_CONG_MONITOR


async def freed(sender: rdsx.RdsSocket, receiver: rdsx.RdsSocket) -> None:
    """One round: congested, refused, free again."""
    there = receiver.getsockname()
    sent = await congest(sender, there)
    with pytest.raises(rdsx.CongestedError):
        sender.sendto_nowait(b"", there)
    for _ in range(sent):
        receiver.recvfrom_nowait()


async def test_notifications_wake_recvmsg_only() -> None:
    async with loop_node() as node, trio.open_nursery() as nursery:
        sender, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        sender.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        got: list[Any] = []

        async def collect(name: str, *arguments: Any) -> None:
            got.append((name, await getattr(sender, name)(*arguments)))

        nursery.start_soon(collect, "recvfrom", None, socket.MSG_PEEK)
        nursery.start_soon(collect, "recvmmsg", 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(collect, "recvmsg", None, 24)
        await trio.testing.wait_all_tasks_blocked()
        await freed(sender, receiver)
        await trio.testing.wait_all_tasks_blocked()
        assert [name for name, _ in got] == ["recvmsg"]
        sender.sendto_nowait(b"x", (LEFT, 4000))
        sender.sendto_nowait(b"y", (LEFT, 4000))
        await trio.testing.wait_all_tasks_blocked()
        assert {name for name, _ in got} == {"recvmsg", "recvfrom", "recvmmsg"}


async def test_notification_without_room_is_lost() -> None:
    async with loop_node() as node:
        sender, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        sender.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        await freed(sender, receiver)
        assert await sender.recvmsg(None, 23) == (b"", [], socket.MSG_CTRUNC, None)
        with raises_errno(errno.EAGAIN, "no message"):
            await sender.recvmsg(None, 24, socket.MSG_DONTWAIT)


async def test_switching_the_monitor_off_forgets() -> None:
    """The value is an int, whatever the kernel's manual says of masks: only the first four bytes count."""
    async with loop_node() as node:
        sender, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        sender.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        await freed(sender, receiver)
        sender.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, struct.pack("ii", 0, -1))
        sender.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        with raises_errno(errno.EAGAIN):
            await sender.recvmsg(None, 24, socket.MSG_DONTWAIT)
        await freed(sender, receiver)
        assert (await sender.recvmsg(None, 24, socket.MSG_DONTWAIT))[1]


async def test_nobody_is_told_who_did_not_ask() -> None:
    async with loop_node() as node:
        sender, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        await freed(sender, receiver)
        with raises_errno(errno.EAGAIN):
            await sender.recvmsg(None, 24, socket.MSG_DONTWAIT)
