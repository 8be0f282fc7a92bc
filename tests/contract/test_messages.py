"""What arrives: sizes, order, truncation, peeking, batches, many sockets, pings, and what closing does."""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import MIB, bound
from contractkit import LEFT, NOBODY, RIGHT, arrived, departs, eventually, every_stack, next_port, pair, third_node, with_a_wire

SOL_SOCKET, SO_SNDBUF = socket.SOL_SOCKET, socket.SO_SNDBUF
SIZES = [0, 1, 2, 47, 48, 49, 4095, 4096, 4097, 65535, 65536, 106496, MIB - 1, MIB]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@every_stack
async def test_sizes(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        left.setsockopt(SOL_SOCKET, SO_SNDBUF, MIB)
        for size in SIZES:
            assert await left.sendto(pattern(size), right.getsockname()) == size
            assert await right.recvfrom() == (pattern(size), left.getsockname())
        assert right.statistics().received_messages == left.statistics().sent_messages == len(SIZES)


@every_stack
async def test_kinds_of_data(stack: str) -> None:
    """Anything with a buffer; all but bytes is copied at once; the length is in bytes."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        there = right.getsockname()
        changing = bytearray(b"before")
        assert await left.sendto(changing, there) == 6
        changing[:] = b"after!"
        assert await left.sendto(memoryview(b"0123456789")[2:8:2], there) == 3
        assert await left.sendto(array.array("I", [1, 2]), there) == 8
        assert left.sendto_nowait(array.array("I", [3]), there) == 4
        assert await left.sendmsg([b"one", bytearray(b"two"), memoryview(b"")], [], 0, there) == 6
        assert await left.sendmsg([], [], 0, there) == 0
        got = [(await right.recv()) for _ in range(6)]
        assert got == [b"before", b"246", array.array("I", [1, 2]).tobytes(), array.array("I", [3]).tobytes(), b"onetwo", b""]


@every_stack
async def test_order_of_several_senders(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await two.sockets()
        other = await two.left_socket()

        async def send(sock: rdsx.RdsSocket) -> None:
            for number in range(300):
                await sock.sendto(b"%d" % number, right.getsockname())

        nursery.start_soon(send, left)
        nursery.start_soon(send, other)
        seen: dict[Any, list[int]] = {left.getsockname(): [], other.getsockname(): []}
        for _ in range(600):
            data, address = await right.recvfrom()
            seen[address].append(int(data))
        assert list(seen.values()) == [list(range(300))] * 2


# -- receiving


@every_stack
async def test_truncation(stack: str) -> None:
    """A smaller size gets the beginning; the rest of the datagram is lost. MSG_TRUNC as a flag changes nothing."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        here = left.getsockname()
        calls: list[tuple[Callable[[], Any], Any]] = [
            (lambda: right.recv(4), b"0123"),
            (lambda: right.recvfrom(4), (b"0123", here)),
            (lambda: right.recvfrom(0), (b"", here)),
            (lambda: right.recvfrom(10), (b"0123456789", here)),
            (lambda: right.recvfrom(11), (b"0123456789", here)),
            (lambda: right.recvmsg(4), (b"0123", [], socket.MSG_TRUNC, here)),
            (lambda: right.recvmsg(4, 0, socket.MSG_TRUNC), (b"0123", [], socket.MSG_TRUNC, here)),
            (lambda: right.recvmsg(10), (b"0123456789", [], 0, here)),
            (right.recvmsg, (b"0123456789", [], 0, here)),
        ]
        for call, expected in calls:
            await left.sendto(b"0123456789", right.getsockname())
            assert await call() == expected
        for plain, result in ((right.recv_nowait, b"0123"), (right.recvfrom_nowait, (b"0123", here))):
            await left.sendto(b"0123456789", right.getsockname())
            await right.recvfrom(None, socket.MSG_PEEK)  # wait for it
            assert plain(4) == result
        with pytest.raises(trio.WouldBlock):
            right.recv_nowait()
        assert right.statistics().queued_bytes == 0


@every_stack
async def test_receiving_into_buffers(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        there = right.getsockname()
        buffer = bytearray(b"........")
        await left.sendto(b"abc", there)
        assert await right.recv_into(buffer) == 3
        assert buffer == b"abc....."
        await left.sendto(b"0123456789", there)
        assert await right.recvfrom_into(buffer) == (8, left.getsockname())
        assert buffer == b"01234567"
        await left.sendto(b"abcdef", there)
        assert await right.recvfrom_into(memoryview(buffer)[2:], 3) == (3, left.getsockname())
        assert buffer == b"01abc567"
        await left.sendto(b"lost", there)
        assert await right.recv_into(bytearray()) == 0
        numbers = array.array("I", [0, 0])
        await left.sendto(array.array("I", [7, 8]), there)
        assert await right.recv_into(numbers) == 8
        assert list(numbers) == [7, 8]


@every_stack
async def test_peeking(stack: str) -> None:
    """It waits as a receive does, and changes nothing."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        await left.sendto(b"first", right.getsockname())
        assert await right.recvfrom(None, socket.MSG_PEEK) == (b"first", left.getsockname())
        await left.sendto(b"second", right.getsockname())
        assert await right.recv(2, socket.MSG_PEEK) == b"fi"
        assert await right.recvmsg(2, 0, socket.MSG_PEEK) == (b"fi", [], socket.MSG_TRUNC, left.getsockname())
        buffer = bytearray(5)
        assert await right.recv_into(buffer, 0, socket.MSG_PEEK) == 5
        assert right.statistics().received_messages == 0
        assert [await right.recv(), await right.recv()] == [b"first", b"second"]


@every_stack
async def test_not_waiting(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        for flags in (socket.MSG_DONTWAIT, socket.MSG_DONTWAIT | socket.MSG_PEEK, socket.MSG_ERRQUEUE):
            for call in (right.recv, right.recvfrom):
                with pytest.raises(BlockingIOError):
                    await call(None, flags)
            with pytest.raises(BlockingIOError):
                await right.recvmsg(None, 0, flags)
            with pytest.raises(BlockingIOError):
                await right.recv_into(bytearray(9), 0, flags)
        for plain in (right.recv_nowait, right.recvfrom_nowait, right.recvmmsg_nowait):
            with pytest.raises(trio.WouldBlock):
                plain()
        assert await left.sendmsg([b"1"], [], socket.MSG_DONTWAIT, right.getsockname()) == 1
        await right.recv(None, socket.MSG_PEEK)
        assert await right.recv(None, socket.MSG_DONTWAIT) == b"1"


@every_stack
async def test_out_of_band(stack: str) -> None:
    """A kernel oddity: nothing, at once, and nothing is taken."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        assert await right.recvmsg(None, 0, socket.MSG_OOB) == (b"", [], 0, None)
        assert await right.recvfrom(None, socket.MSG_OOB) == (b"", ())
        await left.sendto(b"1", right.getsockname())
        assert await right.recv() == b"1"


@every_stack
async def test_receiving_unbound(stack: str) -> None:
    """No error: nothing ever comes."""
    async with pair(stack) as two:
        sock = two.left.socket()
        with pytest.raises(trio.WouldBlock):
            sock.recv_nowait()
        with trio.move_on_after(0.01) as limit:
            await sock.recv()
        assert limit.cancelled_caught


@every_stack
async def test_several_tasks_receive(stack: str) -> None:
    """Each message goes to one of them; a cancelled one takes nothing."""
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await two.sockets()
        got: list[bytes] = []

        async def take(count: int) -> None:
            for _ in range(count):
                got.append(await right.recv())

        for _ in range(10):
            nursery.start_soon(take, 3)
        with trio.move_on_after(0):
            await right.recv()
        await left.sendmmsg([(b"%d" % number, right.getsockname()) for number in range(30)])
        await eventually(lambda: len(got) == 30)
        assert sorted(map(int, got)) == list(range(30))


@every_stack
async def test_empty_messages_are_messages(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        assert await left.sendmmsg([(b"", right.getsockname())] * 3) == 3
        for _ in range(3):
            assert await right.recvmsg() == (b"", [], 0, left.getsockname())
        assert right.statistics().received_messages == 3


# -- batches


@every_stack
async def test_batches(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        there = right.getsockname()
        expected = [(b"%d" % number, left.getsockname()) for number in range(600)]
        assert await left.sendmmsg((b"%d" % number, there) for number in range(200)) == 200
        assert left.sendmmsg_nowait([(b"%d" % number, there) for number in range(200, 400)]) == 200
        assert left.sendmmsg_nowait((b"%d" % number, there) for number in range(400, 600)) == 200
        assert await left.sendmmsg([]) == left.sendmmsg_nowait([]) == 0
        got = await right.recvmmsg(7)
        assert 1 <= len(got) <= 7
        while len(got) < 600:
            got += await right.recvmmsg()
        assert got == expected


@every_stack
async def test_batches_to_several(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        other, own = await two.right_socket(), await two.left_socket()
        batch = [(b"%d" % number, sock.getsockname()) for number in range(50) for sock in (right, other, own)]
        assert await left.sendmmsg(batch) == 150
        for sock in (right, other, own):
            assert [await sock.recvfrom() for _ in range(50)] == [(b"%d" % number, left.getsockname()) for number in range(50)]


@every_stack
async def test_taking_a_batch_takes_what_is_there(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        await left.sendmmsg([(b"%d" % number, right.getsockname()) for number in range(5)])
        await arrived(right, 5)
        assert [data for data, _ in right.recvmmsg_nowait(2)] == [b"0", b"1"]
        assert [data for data, _ in await right.recvmmsg(2)] == [b"2", b"3"]
        assert [data for data, _ in right.recvmmsg_nowait()] == [b"4"]


@every_stack
async def test_a_batch_with_a_wrong_message_ends_before_it(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        batch: list[Any] = [(b"1", right.getsockname()), (b"2", ("224.0.0.1", 1)), (b"3", right.getsockname())]
        assert await left.sendmmsg(batch) == left.sendmmsg_nowait(batch) == 1
        with pytest.raises(OSError, match="224"):
            await left.sendmmsg(batch[1:])
        with pytest.raises(OSError, match="224"):
            left.sendmmsg_nowait(batch[1:])
        assert [await right.recv(), await right.recv()] == [b"1", b"1"]


@every_stack
async def test_iterating_ends_with_close(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await two.sockets()
        got: list[bytes] = []

        async def collect() -> None:
            async for data, address in right:
                assert address == left.getsockname()
                got.append(data)
                if len(got) == 3:
                    right.close()

        nursery.start_soon(collect)
        await left.sendmmsg([(b"%d" % number, right.getsockname()) for number in range(3)])
    assert got == [b"0", b"1", b"2"]


# -- several of everything


@every_stack
async def test_two_sockets_of_one_node(stack: str) -> None:
    """They talk without a wire, to each other and each to itself."""
    async with pair(stack) as two:
        one, other = await two.left_socket(), await two.left_socket()
        await one.sendto(b"across", other.getsockname())
        await one.sendto(b"self", one.getsockname())
        assert await other.recvfrom() == (b"across", one.getsockname())
        assert await one.recvfrom() == (b"self", one.getsockname())
        await one.flush()


@every_stack
async def test_thousands_of_ports(stack: str) -> None:
    count = 2000
    async with pair(stack) as two:
        left = await two.left_socket()
        first = next_port(count)
        ports = range(first, first + count)
        socks = [await bound(two.right, port, RIGHT) for port in ports]
        for port in ports:
            await left.sendto(b"%d" % port, (RIGHT, port))
        for port, sock in zip(ports, socks, strict=True):
            assert await sock.recvfrom() == (b"%d" % port, left.getsockname())
            sock.sendto_nowait(b"%d" % port, left.getsockname())
        back = {(await left.recvfrom()) for _ in socks}
        assert back == {(b"%d" % port, (RIGHT, port)) for port in ports}
        for sock in socks:
            sock.close()
        assert two.right.statistics().sockets == (1 if stack == "loop" else 0)


@every_stack
async def test_messages_to_nobody_are_lost(stack: str) -> None:
    """Acknowledged as any, counted, and the sender is not told."""
    async with pair(stack) as two:
        left = await two.left_socket()
        before = two.right.statistics().counters["recv_drop_no_sock"]
        assert await left.sendto(b"x", (RIGHT, next_port())) == 1
        assert await left.sendto(b"x", (RIGHT, 1)) == 1
        await left.flush()
        await eventually(lambda: two.right.statistics().counters["recv_drop_no_sock"] == before + 2)


@every_stack
async def test_ping(stack: str) -> None:
    """A message to port 0, however long, is answered by an empty one from port 0."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        for data in (b"", b"not echoed"):
            await left.sendto(data, (RIGHT, 0))
            assert await left.recvfrom() == (b"", (RIGHT, 0))
            await right.sendto(data, (LEFT, 0))
            assert await right.recvfrom() == (b"", (LEFT, 0))
        await left.sendto(b"", (LEFT, 0))
        assert await left.recvfrom() == (b"", (LEFT, 0))


# -- flush, cancel_sent_to, close


@every_stack
async def test_flush(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        await left.sendmmsg([(b"x", right.getsockname())] * 100)
        await left.flush(right.getsockname())
        await left.flush()
        assert left.statistics().unacknowledged_messages == 0
        if departs(stack, "flush"):
            await arrived(right, 100)
        assert right.statistics().queued_messages == 100


@with_a_wire
async def test_unreachable_peers_are_no_error(stack: str) -> None:
    """Messages stay queued, are listed, and can be cancelled: exactly those to one address, of one socket."""
    async with pair(stack) as two:
        sock, other = await two.left_socket(), await two.left_socket()
        for _ in range(3):
            await sock.sendto(bytes(1000), (NOBODY, 4000))
        await sock.sendto(b"another port", (NOBODY, 4001))
        await other.sendto(b"another socket", (NOBODY, 4000))
        assert sock.statistics().unacknowledged_messages == 4
        assert sock.statistics().unacknowledged_bytes == 3012
        with trio.move_on_after(0.02) as limit:
            await sock.flush((NOBODY, 4000))
        assert limit.cancelled_caught
        await sock.flush((NOBODY, 4002))  # nothing was sent there
        assert sock.cancel_sent_to((NOBODY, 4002)) == 0
        assert sock.cancel_sent_to((NOBODY, 4000)) == 3
        await sock.flush((NOBODY, 4000))
        assert sock.cancel_sent_to((NOBODY, 4000)) == 0
        assert (sock.statistics().unacknowledged_messages, other.statistics().unacknowledged_messages) == (1, 1)
        assert sock.cancel_sent_to((NOBODY, 4001)) == 1
        await sock.flush()


@every_stack
async def test_what_is_delivered_cannot_be_cancelled(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        await left.sendto(b"x", right.getsockname())
        await left.flush()
        assert left.cancel_sent_to(right.getsockname()) == 0
        assert await right.recv() == b"x"


@with_a_wire
async def test_close_cancels_what_is_queued(stack: str) -> None:
    async with pair(stack) as two:
        sock = await two.left_socket()
        here = sock.getsockname()
        await sock.sendmmsg([(bytes(1000), (NOBODY, 4000))] * 5)
        listed = [message for message in two.left.info().send_messages if message.local == here]
        assert [(message.length, message.peer) for message in listed] == [(1000, (NOBODY, 4000))] * 5
        sock.close()
        info = two.left.info()
        assert not [message for message in info.send_messages + info.retransmit_messages if message.local == here]
        assert sock.statistics().unacknowledged_bytes == 0


@every_stack
async def test_close_drops_what_is_not_received(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        there = right.getsockname()
        await left.sendmmsg([(b"x", there)] * 10)
        await arrived(right, 10)
        right.close()
        again = await bound(two.right, there[1], RIGHT)
        await left.sendto(b"to the next owner of the port", there)
        assert await again.recv() == b"to the next owner of the port"


@every_stack
async def test_close_wakes_everybody(stack: str) -> None:
    async with pair(stack) as two, trio.open_nursery() as nursery:
        left, right = await two.sockets()
        done: list[str] = []

        async def closed(call: Callable[..., Any], *arguments: Any) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call(*arguments)
            done.append(call.__name__)

        for call in (right.recv, right.recvfrom, right.recvmmsg, right.recvmsg, right.recv):
            nursery.start_soon(closed, call)
        if stack != "loop":
            await left.sendto(b"x", (NOBODY, 4000))
            nursery.start_soon(closed, left.flush)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        left.close()
        right.close()
        right.close()
    assert len(done) == (5 if stack == "loop" else 6)


@with_a_wire
async def test_full_send_queue(stack: str) -> None:
    """The old sum counts, so the last message may go over the limit; at the limit even an empty one waits."""
    async with pair(stack) as two, trio.open_nursery() as nursery:
        sock = await two.left_socket()
        far = (NOBODY, 4000)
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 5000)
        assert sock.sendto_nowait(bytes(4999), far) == 4999
        assert sock.sendto_nowait(bytes(5000), far) == 5000
        for size in (0, 1):
            with pytest.raises(trio.WouldBlock):
                sock.sendto_nowait(bytes(size), far)
            with pytest.raises(BlockingIOError):
                await sock.sendmsg([bytes(size)], [], socket.MSG_DONTWAIT, far)
        with pytest.raises(trio.WouldBlock):
            sock.sendmmsg_nowait([(b"x", far)])
        done: list[str] = []

        async def wait(call: Callable[..., Any], *arguments: Any) -> None:
            await call(*arguments)
            done.append(call.__name__)

        nursery.start_soon(wait, sock.sendto, b"1", far)
        nursery.start_soon(wait, sock.sendmmsg, [(b"2", far)] * 2)
        nursery.start_soon(wait, sock.wait_writable, far)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        assert sock.cancel_sent_to(far) == 2
        await eventually(lambda: sorted(done) == ["sendmmsg", "sendto", "wait_writable"])
        assert sock.statistics().unacknowledged_messages == 3
        assert sock.cancel_sent_to(far) == 3


@with_a_wire
async def test_leaving_the_node_delivers_what_was_sent(stack: str) -> None:
    """Sockets that are open when the block ends have what they sent acknowledged first."""
    async with pair(stack) as two:
        right = await two.right_socket()
        async with third_node(stack, two) as third:
            sock = await third.bind(next_port())
            await sock.sendto(b"hello", right.getsockname())
            assert await right.recv() == b"hello"
            await sock.sendmmsg([(bytes(1000), right.getsockname())] * 50)
        await arrived(right, 50)
        assert right.statistics().queued_messages == 50
