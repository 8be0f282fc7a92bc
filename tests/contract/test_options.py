"""Options, timeouts, timestamps, type of service, control messages, limits, and what a node tells of itself."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

import rdsx
from apikit import MIB, raises_errno
from contractkit import LEFT, NOBODY, RIGHT, arrived, departs, every_stack, is_kernel, next_port, pair, with_a_wire
from rdsx import ancillary
from refusals import REFUSED

SOL_SOCKET, SO_SNDBUF, SO_RCVBUF = socket.SOL_SOCKET, socket.SO_SNDBUF, socket.SO_RCVBUF
SO_SNDTIMEO, SO_RCVTIMEO, SO_TIMESTAMP, SO_TIMESTAMP_NEW = socket.SO_SNDTIMEO, socket.SO_RCVTIMEO, 29, 63


def timeval(seconds: int, microseconds: int = 0) -> bytes:
    return struct.pack("ll", seconds, microseconds)


# -- buffers and lengths


@every_stack
@pytest.mark.parametrize(("option", "least"), [(SO_SNDBUF, 2304), (SO_RCVBUF, 1152)])
async def test_buffer_sizes(stack: str, option: int, least: int) -> None:
    """getsockopt() gives twice what was set; there is a least, and a negative size is a very large one."""
    async with pair(stack) as two:
        sock = two.left.socket()
        assert sock.getsockopt(SOL_SOCKET, option) == 2 * 106496
        for value, effective in ((5000, 5000), (0, least), (least - 1, least), (least + 1, least + 1), (MIB, MIB)):
            sock.setsockopt(SOL_SOCKET, option, value)
            assert sock.getsockopt(SOL_SOCKET, option) == 2 * effective
            sock.setsockopt(SOL_SOCKET, option, struct.pack("i", value) + b"more")
            assert sock.getsockopt(SOL_SOCKET, option, 4) == struct.pack("i", 2 * effective)
        sock.setsockopt(SOL_SOCKET, option, -1)
        assert sock.getsockopt(SOL_SOCKET, option) > 2 * MIB  # type: ignore[operator]


@every_stack
async def test_buffer_sizes_come_from_the_node(stack: str) -> None:
    async with pair(stack, send_buffer_bytes=5000, receive_buffer_bytes=6000) as two:
        sock = two.left.socket()
        assert (sock.getsockopt(SOL_SOCKET, SO_SNDBUF), sock.getsockopt(SOL_SOCKET, SO_RCVBUF)) == (10000, 12000)


@every_stack
async def test_too_long(stack: str) -> None:
    """For the send buffer, which is 104 KiB unless it is set, and for RDS, which takes 1 MiB at most."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        there = right.getsockname()
        for limit, remedy in ((106496, "SO_SNDBUF"), (MIB, "message")):
            if limit == MIB:
                left.setsockopt(SOL_SOCKET, SO_SNDBUF, 2 * MIB)
            too_long = bytes(limit + 1)
            for call in (left.sendto(too_long, there), left.sendmsg([too_long], [], 0, there), left.sendmmsg([(too_long, there)])):
                with raises_errno(errno.EMSGSIZE, str(limit + 1), remedy, kind=rdsx.MessageTooLongError):
                    await call
            with raises_errno(errno.EMSGSIZE, kind=rdsx.MessageTooLongError):
                left.sendto_nowait(too_long, there)
            assert await left.sendto(too_long[1:], there) == limit
            assert len(await right.recv()) == limit


# -- values


@every_stack
async def test_lengths_of_values(stack: str) -> None:
    async with pair(stack) as two:
        sock = await two.left_socket()
        for option in (rdsx.RDS_RECVERR, rdsx.RDS_CONG_MONITOR):
            with raises_errno(errno.EINVAL):
                sock.setsockopt(rdsx.SOL_RDS, option, b"123")
        for option in (SO_TIMESTAMP, SO_TIMESTAMP_NEW):
            for length in (3, 5):
                with raises_errno(errno.EFAULT):
                    sock.setsockopt(rdsx.SOL_RDS, option, bytes(length))
            with raises_errno(errno.EINVAL):
                sock.setsockopt(SOL_SOCKET, option, bytes(3))
        with raises_errno(errno.EINVAL):
            sock.setsockopt(SOL_SOCKET, SO_SNDBUF, b"")
        for number in (2**31, -(2**31) - 1):
            with pytest.raises(OverflowError, match=str(number)):
                sock.setsockopt(SOL_SOCKET, SO_SNDBUF, number)
        with pytest.raises(TypeError, match="bytes-like"):
            sock.setsockopt(SOL_SOCKET, SO_SNDBUF, "1")  # type: ignore[arg-type]


SET_ONLY = [
    rdsx.RDS_CANCEL_SENT_TO,
    rdsx.RDS_GET_MR,
    rdsx.RDS_FREE_MR,
    rdsx.RDS_CONG_MONITOR,
    rdsx.RDS_GET_MR_FOR_DEST,
    SO_TIMESTAMP,
    SO_TIMESTAMP_NEW,
]


@every_stack
async def test_options_that_are_not_there(stack: str) -> None:
    async with pair(stack) as two:
        sock = await two.left_socket()
        for level, option in ((rdsx.SOL_RDS, 4), (rdsx.SOL_RDS, 9), (rdsx.SOL_RDS, 99), (SOL_SOCKET, 999)):
            with raises_errno(errno.ENOPROTOOPT, f"option {option} ", f"level {level}"):
                sock.setsockopt(level, option, 1)
            with raises_errno(errno.ENOPROTOOPT, f"option {option} ", f"level {level}"):
                sock.getsockopt(level, option)
        for option in SET_ONLY:
            with raises_errno(errno.ENOPROTOOPT):
                sock.getsockopt(rdsx.SOL_RDS, option)


@every_stack
async def test_flags_that_are_remembered(stack: str) -> None:
    async with pair(stack) as two:
        sock = two.left.socket()
        for level, option in ((rdsx.SOL_RDS, rdsx.RDS_RECVERR), (SOL_SOCKET, socket.SO_REUSEADDR)):
            for value, expected in ((0, 0), (5, 1), (struct.pack("i", 0), 0), (struct.pack("i", -1), 1)):
                sock.setsockopt(level, option, value)
                assert sock.getsockopt(level, option) == expected
        assert sock.getsockopt(SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getsockopt(SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
        assert sock.getsockopt(SOL_SOCKET, socket.SO_DOMAIN) == rdsx.AF_RDS
        assert sock.getsockopt(SOL_SOCKET, socket.SO_PROTOCOL) == 0


@every_stack
async def test_transport(stack: str) -> None:
    async with pair(stack) as two:
        sock = two.left.socket()
        option = rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT
        assert sock.getsockopt(*option) == rdsx.RDS_TRANS_NONE
        for wrong in (-1, 3, 4, bytes(3), bytes(8)):
            with raises_errno(errno.EINVAL):
                sock.setsockopt(*option, wrong)
        number = {"loop": rdsx.RDS_TRANS_LOOP, "verbs": rdsx.RDS_TRANS_IB}.get(stack, rdsx.RDS_TRANS_TCP)
        in_a_namespace = is_kernel(stack)  # of its own, where the kernel has TCP only
        with raises_errno(errno.EPROTOTYPE if in_a_namespace else errno.ENOPROTOOPT):
            sock.setsockopt(*option, rdsx.RDS_TRANS_GAP)
        if stack != "loop":
            sock.setsockopt(*option, number)
            with raises_errno(errno.EOPNOTSUPP):
                sock.setsockopt(*option, number)
        await sock.bind((LEFT, next_port()))
        assert sock.getsockopt(*option) == number
        with raises_errno(errno.EOPNOTSUPP):
            sock.setsockopt(*option, rdsx.RDS_TRANS_TCP)


# -- timeouts, timestamps, type of service


@every_stack
async def test_timeouts(stack: str) -> None:
    """ETIMEDOUT, not EAGAIN."""
    async with pair(stack) as two:
        sock = await two.left_socket()
        for option in (SO_SNDTIMEO, SO_RCVTIMEO):
            assert sock.getsockopt(SOL_SOCKET, option) == timeval(0)
            with raises_errno(errno.EDOM):
                sock.setsockopt(SOL_SOCKET, option, timeval(0, 1_000_000))
            with raises_errno(errno.EINVAL):
                sock.setsockopt(SOL_SOCKET, option, bytes(15))
            sock.setsockopt(SOL_SOCKET, option, timeval(0, 20000))
            assert sock.getsockopt(SOL_SOCKET, option) == timeval(0, 20000)
        for call in (sock.recv(), sock.recvfrom(), sock.recvmmsg(), sock.recvmsg(), sock.recv_into(bytearray(9))):
            with raises_errno(errno.ETIMEDOUT, "SO_RCVTIMEO", kind=TimeoutError):
                await call
        await sock.sendto(b"x", sock.getsockname())
        assert await sock.recv() == b"x"


@with_a_wire
async def test_send_timeout(stack: str) -> None:
    async with pair(stack) as two:
        sock = await two.left_socket()
        far = (NOBODY, 4000)
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 5000)
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(0, 20000))
        await sock.sendto(bytes(5000), far)
        for call in (sock.sendto(b"x", far), sock.sendmsg([b"x"], [], 0, far), sock.sendmmsg([(b"x", far)])):
            with raises_errno(errno.ETIMEDOUT, "SO_SNDTIMEO", kind=TimeoutError):
                await call
        assert sock.statistics().unacknowledged_messages == sock.cancel_sent_to(far) == 1


@every_stack
@pytest.mark.parametrize("level", [SOL_SOCKET, rdsx.SOL_RDS])
@pytest.mark.parametrize("option", [SO_TIMESTAMP, SO_TIMESTAMP_NEW])
async def test_timestamps(stack: str, level: int, option: int) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        right.setsockopt(level, option, 1)
        assert right.getsockopt(SOL_SOCKET, option) == 1
        await left.sendto(b"22", right.getsockname())
        data, ancdata, flags, address = await right.recvmsg(1, 100, socket.MSG_PEEK)
        assert (data, flags, address) == (b"2", socket.MSG_TRUNC, left.getsockname())
        assert [(one[0], one[1]) for one in ancdata] == [(SOL_SOCKET, option)]
        assert (await right.recvmsg(None, 100))[1] == ancdata
        (stamp,) = ancillary.parse(ancdata)
        assert isinstance(stamp, ancillary.Timestamp)
        assert stamp.time_s > 1_500_000_000
        await left.sendto(b"no room", right.getsockname())
        assert await right.recvmsg(None, socket.CMSG_SPACE(16) - 1) == (b"no room", [], socket.MSG_CTRUNC, left.getsockname())
        right.setsockopt(level, option, 0)
        await left.sendto(b"3", right.getsockname())
        assert (await right.recvmsg(None, 100))[1] == []


@every_stack
async def test_type_of_service(stack: str) -> None:
    """TCP maps every one to 0, RDMA keeps it; a loopback has none."""
    async with pair(stack) as two:
        unbound = two.left.socket()
        assert unbound.get_tos() == 0
        with raises_errno(errno.ENOTTY):
            unbound.set_tos(4)
        left, right = await two.sockets()
        if stack == "loop":
            with raises_errno(errno.ENOTTY):
                left.set_tos(4)
        else:
            left.set_tos(4)
            assert left.get_tos() == (4 if stack == "verbs" else 0)
            if stack == "verbs":
                with raises_errno(errno.EINVAL):
                    left.set_tos(5)
            else:
                left.set_tos(5)
        await left.sendto(b"x", right.getsockname())
        assert await right.recv() == b"x"
        if stack != "loop":
            with raises_errno(errno.EINVAL):
                left.set_tos(4)
        for wrong in (-1, 256):
            with pytest.raises(ValueError, match=str(wrong)):
                left.set_tos(wrong)


# -- control messages


@every_stack
@pytest.mark.parametrize("case", [one[0] for one in REFUSED])
async def test_control_messages_refused(stack: str, case: str) -> None:
    """Which errno, where several things are wrong at once, is the kernel's order."""
    _, ancdata, number, _ = next(one for one in REFUSED if one[0] == case)
    async with pair(stack) as two:
        left, right = await two.sockets()
        with raises_errno(number):
            await left.sendmsg([b"x"], ancdata, 0, right.getsockname())
        assert left.statistics().sent_messages == 0


@every_stack
async def test_control_messages_of_other_levels_are_ignored(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        assert await left.sendmsg([b"x"], [(socket.SOL_IP, 99, b"")], 0, right.getsockname()) == 1
        assert await right.recv() == b"x"


@every_stack
@pytest.mark.parametrize("flags", [socket.MSG_OOB, socket.MSG_PEEK, socket.MSG_DONTROUTE, socket.MSG_NOSIGNAL, socket.MSG_EOR])
async def test_flags_refused(stack: str, flags: int) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        with raises_errno(errno.EOPNOTSUPP):
            await left.sendmsg([b"x"], [], flags, right.getsockname())


@every_stack
async def test_memory_registration(stack: str) -> None:
    """There is none without RDMA; lengths are checked first, then the binding."""
    get_mr = ancillary.GetMrArgs(ancillary.IoVec(0, 4096)).pack()
    for_dest = ancillary.GetMrForDestArgs((RIGHT, 4000), ancillary.IoVec(0, 4096)).pack()
    async with pair(stack) as two:
        unbound, bound = two.left.socket(), await two.left_socket()
        for option, packed in ((rdsx.RDS_GET_MR, get_mr), (rdsx.RDS_GET_MR_FOR_DEST, for_dest)):
            for wrong in (packed[:-1], packed + b"x", 1):
                with raises_errno(errno.EINVAL):
                    bound.setsockopt(rdsx.SOL_RDS, option, wrong)
            with raises_errno(errno.ENOTCONN):
                unbound.setsockopt(rdsx.SOL_RDS, option, packed)
            with raises_errno(errno.EOPNOTSUPP):
                bound.setsockopt(rdsx.SOL_RDS, option, packed)
        for cookie in (0, 0x77):
            with raises_errno(errno.EINVAL):
                bound.setsockopt(rdsx.SOL_RDS, rdsx.RDS_FREE_MR, ancillary.FreeMrArgs(cookie).pack())


@every_stack
async def test_zerocopy(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        there, flag = right.getsockname(), 0x4000000
        cookie = [ancillary.ZcopyCookie(7).control()]
        if not departs(stack, "zerocopy"):
            with raises_errno(errno.ENOPROTOOPT, "without a copy"):
                left.setsockopt(SOL_SOCKET, 60, 1)
            with raises_errno(errno.EOPNOTSUPP):
                await left.sendmsg([b"x"], cookie, flag, there)
            return
        with raises_errno(errno.EINVAL):
            await left.sendmsg([b"x"], cookie, flag, there)
        left.setsockopt(SOL_SOCKET, 60, 1)
        data = bytearray(b"not copied" * 1000)
        assert await left.sendmsg([data], cookie, flag, there) == len(data)
        assert await right.recv() == data
        got, ancdata, _, address = await left.recvmsg(None, 100)
        assert (got, address, ancillary.parse(ancdata)) == (b"", None, [ancillary.ZcopyCompletion((7,))])
        assert await left.sendmsg([data], cookie, flag, there) == len(data)
        assert await left.recvmsg(None, 0) == (b"", [], socket.MSG_CTRUNC, None)  # no room: lost, and nobody spins


@every_stack
async def test_receive_path_latency(stack: str) -> None:
    trace = ancillary.RxTrace((0, 2)).pack()
    async with pair(stack) as two:
        left, right = await two.sockets()
        if not departs(stack, "receive path"):
            with raises_errno(errno.ENOPROTOOPT, "SO_TIMESTAMP"):
                right.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_MSG_RXPATH_LATENCY, trace)
            return
        right.setsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_MSG_RXPATH_LATENCY, trace)
        await left.sendto(b"x", right.getsockname())
        (latency,) = ancillary.parse((await right.recvmsg(None, 100))[1])
        assert isinstance(latency, ancillary.RxPathLatency)
        assert [position for position, _ in latency.traces] == [0, 2]


# -- what a node tells


@every_stack
async def test_info(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        await left.connect(right.getsockname())
        await left.sendmmsg([(bytes(size), right.getsockname()) for size in (10, 0, 20)])
        await arrived(right, 3)
        info = two.right.info()
        queued = [message for message in info.receive_messages if message.local == right.getsockname()]
        assert [(message.length, message.peer) for message in queued] == [(size, left.getsockname()) for size in (10, 0, 20)]
        mine = [one for one in two.left.info().sockets if one.bound == left.getsockname()]
        assert [(one.connected, one.send_buffer_bytes, one.receive_buffer_bytes) for one in mine] == [(right.getsockname(), 106496, 106496)]
        (connection,) = [one for one in two.left.info().connections if (one.local, one.peer) == (LEFT, RIGHT)]
        assert (connection.connected, connection.connecting, connection.tos) == (True, False, 0)
        assert connection.transport == {"loop": "loopback", "verbs": "verbs"}.get(stack, "tcp")
        assert connection.next_tx_seq > 3 or not is_kernel(stack)
        assert info.counters["recv_queued"] >= 3
        assert bool(info.tcp_sockets) == is_kernel(stack)


@with_a_wire
async def test_info_of_what_is_not_sent(stack: str) -> None:
    async with pair(stack) as two:
        sock = await two.left_socket()
        await sock.sendmmsg([(bytes(7), (NOBODY, 4000))] * 3)
        waiting = [message for message in two.left.info().send_messages if message.local == sock.getsockname()]
        assert [(message.length, message.peer) for message in waiting] == [(7, (NOBODY, 4000))] * 3
        numbers = [message.sequence for message in waiting]
        assert numbers == [numbers[0] + step for step in range(3)]  # type: ignore[operator]
        sock.cancel_sent_to((NOBODY, 4000))


@every_stack
async def test_info_as_an_option(stack: str) -> None:
    async with pair(stack) as two:
        sock = two.left.socket()
        if departs(stack, "info option"):
            with raises_errno(errno.ENOSPC):
                sock.getsockopt(rdsx.SOL_RDS, 10000, 1)
        else:
            with raises_errno(errno.ENOPROTOOPT, "RDS_INFO"):
                sock.getsockopt(rdsx.SOL_RDS, 10000)


@every_stack
async def test_what_only_our_engine_has(stack: str) -> None:
    async with pair(stack) as two:
        calls: list[tuple[str, Any]] = [("events", two.left.events), ("reset", lambda: two.left.reset_connection(RIGHT))]
        for name, call in calls:
            if departs(stack, name):
                with raises_errno(errno.EOPNOTSUPP, kind=rdsx.UnsupportedError):
                    call()
            else:
                call()
        assert (two.left.generation is None) == is_kernel(stack)


@every_stack
async def test_ports_of_two_nodes(stack: str) -> None:
    """With the kernel, two nodes of one address would share its ports even across namespaces; here each has its own."""
    async with pair(stack) as two:
        sock = await two.left_socket()
        if departs(stack, "binding"):
            with raises_errno(errno.EADDRINUSE, "another network namespace"):
                await two.left.bind(sock.getsockname()[1])
        else:
            async with rdsx.open_node(LEFT, transport="loop") as other:
                await other.bind(sock.getsockname()[1])
