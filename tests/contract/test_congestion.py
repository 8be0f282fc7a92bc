"""Congestion: a receiver that stops reading stops its senders, and nobody else; below half of its buffer they go on."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import raises_errno
from contractkit import LEFT, RIGHT, Pair, arrived, congest, departs, eventually, every_stack, is_kernel, pair
from rdsx import ancillary

LIMIT = 10000


async def small(two: Pair) -> tuple[rdsx.RdsSocket, rdsx.RdsSocket]:
    left, right = await two.sockets()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
    return left, right


def assert_congested(stack: str, sock: rdsx.RdsSocket, expected: bool) -> None:
    assert sock.statistics().congested is (None if departs(stack, "congested") else expected)


@every_stack
async def test_congested_above_the_limit_and_free_below_half(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        there = right.getsockname()
        for _ in range(10):
            await left.sendto(bytes(1000), there)
        await arrived(right, 10)
        assert_congested(stack, right, False)
        await left.sendto(b"1", there)
        await arrived(right, 11)
        assert_congested(stack, right, True)
        await congest(left, right, 1)  # hear of it
        extra = right.statistics().queued_messages - 11
        with raises_errno(errno.ENOBUFS, f"port {there[1]}", RIGHT, "wait_writable", kind=rdsx.CongestedError):
            left.sendto_nowait(b"", there)
        with raises_errno(errno.ENOBUFS, kind=rdsx.CongestedError):
            await left.sendmsg([b""], [], socket.MSG_DONTWAIT, there)
        done: list[str] = []

        async def run(name: str, *arguments: Any) -> None:
            await getattr(left, name)(*arguments)
            done.append(name)

        for name, arguments in (
            ("sendto", (b"late", there)),
            ("sendmmsg", ([(b"late", there)] * 2,)),
            ("sendmsg", ([b"late"], [], 0, there)),
            ("wait_writable", (there,)),
        ):
            nursery.start_soon(run, name, *arguments)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            right.recvfrom_nowait()
        assert_congested(stack, right, True)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        right.recvfrom_nowait()
        assert_congested(stack, right, False)
        await left.wait_writable(there)
        for _ in range(5 + extra):
            await right.recv()
        assert [await right.recv() for _ in range(4)] == [b"late"] * 4
        await eventually(lambda: sorted(done) == ["sendmmsg", "sendmsg", "sendto", "wait_writable"])


@every_stack
async def test_only_that_port_is_stopped(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        other = await two.right_socket()
        await congest(left, right)
        await left.sendto(b"x", other.getsockname())
        assert await other.recv() == b"x"
        await left.sendto(b"", (RIGHT, 0))
        assert await left.recvfrom() == (b"", (RIGHT, 0))


@every_stack
async def test_no_pong_to_a_congested_port(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        sent = await congest(left, right)
        with pytest.raises(rdsx.CongestedError):
            left.sendto_nowait(b"", right.getsockname())
        await right.sendto(b"", (LEFT, 0))
        await right.sendto(b"behind the ping", left.getsockname())
        assert await left.recv() == b"behind the ping"
        assert len([await right.recv() for _ in range(sent)]) == sent
        await left.sendto(b"after the ping", right.getsockname())
        assert await right.recvfrom() == (b"after the ping", left.getsockname())


@every_stack
async def test_empty_messages_congest_nobody(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        await left.sendmmsg([(b"", right.getsockname())] * 500)
        await arrived(right, 500)
        assert_congested(stack, right, False)
        assert left.sendto_nowait(b"", right.getsockname()) == 0


@every_stack
async def test_closing_the_receiver_frees_its_senders(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        there = right.getsockname()
        await congest(left, right)
        nursery.start_soon(left.sendto, b"nobody is there any more", there)
        nursery.start_soon(left.wait_writable, there)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        right.close()


@every_stack
async def test_closing_the_sender_ends_its_waiting(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        await congest(left, right)

        async def closed(call: Any, *arguments: Any) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call(*arguments)

        nursery.start_soon(closed, left.sendto, b"never sent", right.getsockname())
        nursery.start_soon(closed, left.wait_writable, right.getsockname())
        await trio.testing.wait_all_tasks_blocked()
        left.close()


@every_stack
async def test_batches_stop_at_a_congested_port(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        other = await two.right_socket()
        await congest(left, right)
        batch = [(b"1", other.getsockname()), (b"2", right.getsockname()), (b"3", other.getsockname())]
        assert left.sendmmsg_nowait(batch) == 1
        with raises_errno(errno.ENOBUFS, str(right.getsockname()[1]), kind=rdsx.CongestedError):
            left.sendmmsg_nowait(batch[1:])
        assert await other.recv() == b"1"


@every_stack
async def test_cancelled_while_congested(stack: str) -> None:
    """Not queued."""
    async with pair(stack) as two:
        left, right = await small(two)
        sent = await congest(left, right)
        with trio.move_on_after(0.02) as limit:
            await left.sendto(b"never sent", right.getsockname())
        assert limit.cancelled_caught
        for _ in range(sent):
            await right.recv()
        await left.sendto(b"sent", right.getsockname())
        assert await right.recv() == b"sent"


@every_stack
async def test_monitor(stack: str) -> None:
    """A refused send asks for news; the news comes alone, before datagrams, once; and is a hint."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
        there = right.getsockname()
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        sent = await congest(left, right)
        with raises_errno(errno.ENOBUFS, kind=rdsx.CongestedError):
            left.sendto_nowait(b"", there)
        with raises_errno(errno.EAGAIN):
            await left.recvmsg(None, 24, socket.MSG_DONTWAIT)
        await right.sendto(b"a datagram waits already", left.getsockname())
        await arrived(left, 1)
        for _ in range(sent):
            await right.recvfrom()
        await left.wait_writable(there)
        data, ancdata, flags, address = await left.recvmsg(None, 24)
        assert (data, flags, address) == (b"", 0, None)
        (update,) = ancillary.parse(ancdata)
        assert update == ancillary.CongUpdate(1 << (there[1] % 64))
        data, ancdata, _, _ = await left.recvmsg(None, 24)
        assert (data, ancdata) == (b"a datagram waits already", [])
        assert left.sendto_nowait(b"", there) == 0


async def freed(sender: rdsx.RdsSocket, receiver: rdsx.RdsSocket) -> None:
    """One round: congested, refused, free again, and the sender has heard of it."""
    for _ in range(await congest(sender, receiver)):
        await receiver.recvfrom()
    await sender.wait_writable(receiver.getsockname())


@every_stack
async def test_news_without_room_is_lost(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        await freed(left, right)
        assert await left.recvmsg(None, 23) == (b"", [], socket.MSG_CTRUNC, None)
        with raises_errno(errno.EAGAIN):
            await left.recvmsg(None, 24, socket.MSG_DONTWAIT)


@every_stack
async def test_news_is_for_recvmsg_only(stack: str) -> None:
    """Another call that takes a datagram behind it leaves it there."""
    async with pair(stack) as two:
        left, right = await small(two)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        await freed(left, right)
        await right.sendto(b"x", left.getsockname())
        assert await left.recv() == b"x"
        (update,) = ancillary.parse((await left.recvmsg(None, 24, socket.MSG_DONTWAIT))[1])
        assert update == ancillary.CongUpdate(1 << (right.getsockname()[1] % 64))


@every_stack
async def test_news_goes_past_a_task_that_waits_for_datagrams(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        got: list[Any] = []

        async def collect(name: str, *arguments: Any) -> None:
            got.append((name, await getattr(left, name)(*arguments)))

        nursery.start_soon(collect, "recv")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(collect, "recvmsg", None, 24)
        await trio.testing.wait_all_tasks_blocked()
        await freed(left, right)
        await eventually(lambda: got)
        await left.sendto(b"x", left.getsockname())
        await eventually(lambda: len(got) == 2)
        assert [name for name, _ in got] == ["recvmsg", "recv"]
        assert (len(got[0][1][1]), got[1][1]) == (1, b"x")


@every_stack
async def test_news_goes_past_calls_that_do_not_wait(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        got: list[Any] = []

        async def collect() -> None:
            got.append(await left.recvmsg(None, 24))

        nursery.start_soon(collect)
        await trio.testing.wait_all_tasks_blocked()
        await freed(left, right)
        with contextlib.suppress(trio.WouldBlock):
            left.recv_nowait()
        await eventually(lambda: got)
        assert [len(ancdata) for _, ancdata, _, _ in got] == [1]


@every_stack
async def test_switching_the_monitor_off_forgets(stack: str) -> None:
    """The value is an int, whatever the kernel's manual says of masks: only the first four bytes count."""
    async with pair(stack) as two:
        left, right = await small(two)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        await freed(left, right)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, b"\0\0\0\0\xff\xff\xff\xff")
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        with raises_errno(errno.EAGAIN):
            await left.recvmsg(None, 24, socket.MSG_DONTWAIT)


@every_stack
async def test_switching_the_monitor_off_while_full(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        await congest(left, right)
        right.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 0)
        if departs(stack, "monitor off"):
            await left.wait_writable(right.getsockname())
            assert left.sendto_nowait(b"", right.getsockname()) == 0
        else:
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(rdsx.CongestedError):
                left.sendto_nowait(b"", right.getsockname())


@every_stack
async def test_which_ports_the_news_names(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await small(two)
        other = await two.right_socket()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
        left.setsockopt(rdsx.SOL_RDS, rdsx.RDS_CONG_MONITOR, 1)
        await congest(left, other)
        await freed(left, right)
        data, ancdata, _, _ = await left.recvmsg(None, 24)
        assert data == b""
        (update,) = ancillary.parse(ancdata)
        assert isinstance(update, ancillary.CongUpdate)
        assert update.may_be_free(right.getsockname()[1])
        assert update.may_be_free(other.getsockname()[1]) == (stack == "loop" or departs(stack, "monitor mask"))


@every_stack
async def test_congestion_has_no_timeout(stack: str) -> None:
    """SO_SNDTIMEO is about room in the send queue only."""
    async with pair(stack) as two:
        left, right = await small(two)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, (0).to_bytes(8, "little") + (1000).to_bytes(8, "little"))
        await congest(left, right)
        with trio.move_on_after(0.05) as limit:
            await left.sendto(b"x", right.getsockname())
        assert limit.cancelled_caught


@every_stack
async def test_loopback_of_the_system(stack: str) -> None:
    """Bound to 127/8, a socket of a kernel never congests."""
    config = rdsx.NodeConfig(receive_buffer_bytes=LIMIT)
    async with rdsx.open_node("127.0.0.1", transport="kernel" if is_kernel(stack) else "loop", config=config) as node:
        left, right = await node.bind(), await node.bind()
        await left.sendmmsg([(bytes(2 * LIMIT), right.getsockname())])
        if departs(stack, "loop congestion"):
            assert left.sendto_nowait(b"", right.getsockname()) == 0
        else:
            with pytest.raises(rdsx.CongestedError):
                left.sendto_nowait(b"", right.getsockname())
