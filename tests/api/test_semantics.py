"""What the calls do, over loopback and over TCP: the same program must see the same."""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import FAR, LEFT, MIB, RIGHT, both, bound, duo, fill, lonely_node, loop_node

SOL_SOCKET, SO_SNDBUF = socket.SOL_SOCKET, socket.SO_SNDBUF
SIZES = [0, 1, 2, 47, 48, 49, 4095, 4096, 4097, 65535, 65536, 106496, MIB - 1, MIB]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@both
async def test_sizes(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        left.setsockopt(SOL_SOCKET, SO_SNDBUF, MIB)
        for size in SIZES:
            assert await left.sendto(pattern(size), right.getsockname()) == size
            assert await right.recvfrom() == (pattern(size), left.getsockname())
        assert right.statistics().received_messages == left.statistics().sent_messages == len(SIZES)


@both
async def test_kinds_of_data(transport: str) -> None:
    """Anything with a buffer; all but bytes is copied at once; the length is in bytes."""
    async with duo(transport) as two:
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


@both
async def test_order_and_addresses_of_many(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        other = await bound(two.left, 4001, LEFT)
        async with trio.open_nursery() as nursery:

            async def send(sock: rdsx.RdsSocket) -> None:
                for number in range(500):
                    await sock.sendto(b"%d" % number, right.getsockname())

            nursery.start_soon(send, left)
            nursery.start_soon(send, other)
            seen: dict[Any, list[int]] = {left.getsockname(): [], other.getsockname(): []}
            for _ in range(1000):
                data, address = await right.recvfrom()
                seen[address].append(int(data))
        assert list(seen.values()) == [list(range(500))] * 2


# -- receiving


@both
async def test_truncation(transport: str) -> None:
    """A smaller size gets the beginning; the rest of the datagram is lost."""
    async with duo(transport) as two:
        left, right = await two.sockets()
        calls: list[tuple[Callable[[], Any], Any]] = [
            (lambda: right.recv(4), b"0123"),
            (lambda: right.recvfrom(4), (b"0123", left.getsockname())),
            (lambda: right.recvfrom(0), (b"", left.getsockname())),
            (lambda: right.recvfrom(10), (b"0123456789", left.getsockname())),
            (lambda: right.recvfrom(11), (b"0123456789", left.getsockname())),
            (lambda: right.recvmsg(4), (b"0123", [], socket.MSG_TRUNC, left.getsockname())),
            (lambda: right.recvmsg(10), (b"0123456789", [], 0, left.getsockname())),
            (right.recvmsg, (b"0123456789", [], 0, left.getsockname())),
        ]
        for call, expected in calls:
            await left.sendto(b"0123456789", right.getsockname())
            assert await call() == expected
        for plain, result in ((right.recv_nowait, b"0123"), (right.recvfrom_nowait, (b"0123", left.getsockname()))):
            await left.sendto(b"0123456789", right.getsockname())
            await right.recvfrom(None, socket.MSG_PEEK)  # wait for it
            assert plain(4) == result
        with pytest.raises(trio.WouldBlock):
            right.recv_nowait()
        assert right.statistics().queued_bytes == 0


@both
async def test_receiving_into_buffers(transport: str) -> None:
    async with duo(transport) as two:
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


@both
async def test_peeking(transport: str) -> None:
    """It waits as a receive does, and changes nothing."""
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendto(b"first", right.getsockname())
        assert await right.recvfrom(None, socket.MSG_PEEK) == (b"first", left.getsockname())
        await left.sendto(b"second", right.getsockname())
        before = right.statistics()
        assert await right.recv(2, socket.MSG_PEEK) == b"fi"
        assert await right.recvmsg(2, 0, socket.MSG_PEEK) == (b"fi", [], socket.MSG_TRUNC, left.getsockname())
        buffer = bytearray(5)
        assert await right.recv_into(buffer, 0, socket.MSG_PEEK) == 5
        assert right.statistics().received_messages == before.received_messages == 0
        assert [await right.recv(), await right.recv()] == [b"first", b"second"]


@both
async def test_not_waiting(transport: str) -> None:
    async with duo(transport) as two:
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


@both
async def test_out_of_band(transport: str) -> None:
    """A kernel oddity: nothing, at once, and nothing is taken."""
    async with duo(transport) as two:
        left, right = await two.sockets()
        assert await right.recvmsg(None, 0, socket.MSG_OOB) == (b"", [], 0, None)
        await left.sendto(b"1", right.getsockname())
        assert await right.recv() == b"1"


@both
async def test_empty_messages_are_messages(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        assert await left.sendmmsg([(b"", right.getsockname())] * 3) == 3
        for _ in range(3):
            assert await right.recvmsg() == (b"", [], 0, left.getsockname())
        assert right.statistics().received_messages == 3


# -- batches


@both
async def test_batches(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        there = right.getsockname()
        expected = [(b"%d" % number, left.getsockname()) for number in range(3000)]
        assert await left.sendmmsg((b"%d" % number, there) for number in range(1000)) == 1000
        assert left.sendmmsg_nowait([(b"%d" % number, there) for number in range(1000, 2000)]) == 1000
        assert left.sendmmsg_nowait((b"%d" % number, there) for number in range(2000, 3000)) == 1000
        assert await left.sendmmsg([]) == left.sendmmsg_nowait([]) == 0
        got = await right.recvmmsg(7)
        assert 1 <= len(got) <= 7
        while len(got) < 3000:
            got += await right.recvmmsg()
        assert got == expected


@both
async def test_batches_to_several(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        other, own = await bound(two.right, 5001, RIGHT), await bound(two.left, 4001, LEFT)
        batch = [(b"%d" % number, sock.getsockname()) for number in range(50) for sock in (right, other, own)]
        assert await left.sendmmsg(batch) == 150
        for sock in (right, other, own):
            assert [await sock.recvfrom() for _ in range(50)] == [(b"%d" % number, left.getsockname()) for number in range(50)]


async def test_batch_without_waiting_stops_at_a_full_queue() -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        assert sock.sendmmsg_nowait([(bytes(60000), FAR)] * 9) == 2
        with pytest.raises(trio.WouldBlock):
            sock.sendmmsg_nowait([(bytes(60000), FAR)])
        assert sock.statistics().unacknowledged_messages == 2


async def test_batch_waits_until_all_is_queued() -> None:
    async with lonely_node() as node, trio.open_nursery() as nursery:
        sock = await bound(node, 4000, "10.0.0.1")
        sent: list[int] = []

        async def send() -> None:
            sent.append(await sock.sendmmsg([(bytes(60000), FAR)] * 5))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert sock.statistics().sent_messages == 2
        assert sock.cancel_sent_to(FAR) == 2
        await trio.testing.wait_all_tasks_blocked()
        assert (sock.statistics().sent_messages, sent) == (4, [])
        sock.cancel_sent_to(FAR)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == [5]


@both
async def test_taking_a_batch_takes_what_is_there(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendmmsg([(b"%d" % number, right.getsockname()) for number in range(5)])
        await left.flush()
        assert [data for data, _ in right.recvmmsg_nowait(2)] == [b"0", b"1"]
        assert [data for data, _ in await right.recvmmsg(2)] == [b"2", b"3"]
        assert [data for data, _ in right.recvmmsg_nowait()] == [b"4"]


# -- iteration and connected sockets


@both
async def test_iterating_ends_with_close(transport: str) -> None:
    async with duo(transport) as two, trio.open_nursery() as nursery:
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


@both
async def test_connected_sockets(transport: str) -> None:
    """Only a default: others may send, and so may we to others."""
    async with duo(transport) as two:
        left, right = await two.sockets()
        other = await bound(two.right, 5001, RIGHT)
        await left.connect(right.getsockname())
        assert left.getpeername() == right.getsockname()
        await left.send(b"1")
        left.send_nowait(b"2")
        await left.sendmsg([b"3"])
        await left.wait_writable()
        await left.sendto(b"elsewhere", other.getsockname())
        assert [await right.recv() for _ in range(3)] == [b"1", b"2", b"3"]
        assert await other.recv() == b"elsewhere"
        await other.sendto(b"from elsewhere", left.getsockname())
        assert await left.recvfrom() == (b"from elsewhere", other.getsockname())
        await left.connect(other.getsockname())
        await left.send(b"4")
        assert await other.recv() == b"4"


async def test_connect_before_bind() -> None:
    async with loop_node() as node:
        sock = node.socket()
        await sock.connect((LEFT, 4000))
        await sock.bind((LEFT, 4000))
        await sock.send(b"to myself")
        assert await sock.recvfrom() == (b"to myself", (LEFT, 4000))


# -- several of everything


@both
async def test_two_sockets_of_one_node(transport: str) -> None:
    """They talk without a wire, to each other and each to itself."""
    async with duo(transport) as two:
        one, other = await bound(two.left, 4000, LEFT), await bound(two.left, 4001, LEFT)
        await one.sendto(b"across", other.getsockname())
        await one.sendto(b"self", one.getsockname())
        assert await other.recvfrom() == (b"across", one.getsockname())
        assert await one.recvfrom() == (b"self", one.getsockname())
        await one.flush()
        (connection,) = two.left.statistics().connections
        assert (connection.transport, connection.kind, connection.state) == ("loop", "local", "up")


@pytest.mark.parametrize("name", ["loop", "tcp"])
async def test_several_addresses_of_one_node(name: str) -> None:
    """The sender's address is the one its socket is bound to; ports are counted for each address."""
    async with duo(name) as two:
        here = two.left if name == "loop" else two.right
        one, other = await bound(here, 5000, RIGHT), await bound(two.left, 5000, LEFT)
        await one.sendto(b"1", other.getsockname())
        assert await other.recvfrom() == (b"1", (RIGHT, 5000))
        await other.sendto(b"2", one.getsockname())
        assert await one.recvfrom() == (b"2", (LEFT, 5000))


async def test_short_form_of_bind() -> None:
    async with loop_node(LEFT, RIGHT) as node:
        assert node.addresses == (LEFT, RIGHT)
        assert (await node.bind(4000)).getsockname() == (LEFT, 4000)
        ports = {(await node.bind()).getsockname()[1] for _ in range(100)}
        assert len(ports) == 100
        assert min(ports) >= 2
        assert node.statistics().sockets == 101


@both
async def test_five_thousand_ports(transport: str) -> None:
    async with duo(transport) as two:
        left = await bound(two.left, 4000, LEFT)
        socks = [await bound(two.right, port, RIGHT) for port in range(10000, 15000)]
        assert await left.sendmmsg([(b"%d" % port, (RIGHT, port)) for port in range(10000, 15000)]) == 5000
        for port, sock in zip(range(10000, 15000), socks, strict=True):
            assert await sock.recvfrom() == (b"%d" % port, (LEFT, 4000))
            sock.sendto_nowait(b"%d" % port, (LEFT, 4000))
        back = [await left.recvfrom() for _ in socks]
        assert back == [(b"%d" % port, (RIGHT, port)) for port in range(10000, 15000)]
        for sock in socks:
            sock.close()
        assert two.right.statistics().sockets == (1 if transport == "loop" else 0)


async def test_messages_to_nobody_are_lost() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        assert await sock.sendto(b"x", (LEFT, 4001)) == 1
        assert await sock.sendto(b"x", (LEFT, 1)) == 1
        await sock.flush()
        assert node.statistics().counters["recv_drop_no_sock"] == 2


@both
async def test_ping(transport: str) -> None:
    """A message to port 0, however long, is answered by an empty one from port 0."""
    async with duo(transport) as two:
        left, right = await two.sockets()
        for data in (b"", b"not echoed"):
            await left.sendto(data, (RIGHT, 0))
            assert await left.recvfrom() == (b"", (RIGHT, 0))
        await left.sendto(b"", (LEFT, 0))
        assert await left.recvfrom() == (b"", (LEFT, 0))
        assert right.statistics().queued_messages == 0


@both
async def test_pings_unanswered(transport: str) -> None:
    async with duo(transport, ping_enable=False) as two:
        left, right = await two.sockets()
        await left.sendto(b"", (RIGHT, 0))
        await left.sendto(b"behind", right.getsockname())
        await right.recv()
        await right.sendto(b"back", left.getsockname())
        assert await left.recv() == b"back"


# -- flush, cancel_sent_to, close


@both
async def test_flush(transport: str) -> None:
    """It waits for delivery to the peer's queue, not for the peer's program."""
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendmmsg([(b"x", right.getsockname())] * 100)
        await left.flush(right.getsockname())
        await left.flush()
        assert left.statistics().unacknowledged_messages == 0
        assert right.statistics().queued_messages == 100


async def test_flush_of_one_address() -> None:
    async with lonely_node() as node, trio.open_nursery() as nursery:
        sock = await bound(node, 4000, "10.0.0.1")
        await sock.sendto(b"x", FAR)
        await sock.flush((FAR[0], 5001))  # nothing was sent there
        nursery.start_soon(sock.flush, FAR)
        nursery.start_soon(sock.flush)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        sock.cancel_sent_to(FAR)


async def test_cancel_sent_to() -> None:
    """Exactly that address, of that socket; the room is free at once."""
    async with lonely_node() as node:
        sock, other = await bound(node, 4000, "10.0.0.1"), await bound(node, 4001, "10.0.0.1")
        await other.sendto(b"other", FAR)
        await sock.sendto(b"elsewhere", (FAR[0], 5001))
        queued = await fill(sock)
        assert sock.cancel_sent_to(("10.0.0.9", 5000)) == 0
        assert sock.cancel_sent_to(FAR) == queued
        assert sock.cancel_sent_to(FAR) == 0
        assert sock.statistics().unacknowledged_messages == 1
        assert sock.statistics().unacknowledged_bytes == len("elsewhere")
        assert other.statistics().unacknowledged_messages == 1
        assert node.statistics().counters["send_canceled"] == queued


@both
async def test_what_is_delivered_cannot_be_cancelled(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendto(b"x", right.getsockname())
        await left.flush()
        assert left.cancel_sent_to(right.getsockname()) == 0
        assert await right.recv() == b"x"


async def test_close_cancels_what_is_queued() -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        queued = await fill(sock)
        sock.close()
        (connection,) = node.statistics().connections
        assert connection.send_queue_messages == 0
        assert sock.statistics().unacknowledged_bytes == 0
        assert node.statistics().counters["send_canceled"] == queued


@both
async def test_close_drops_what_is_not_received(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendmmsg([(b"x", right.getsockname())] * 10)
        await left.flush()
        right.close()
        assert two.right.statistics().queued_bytes == 0
        again = await bound(two.right, 5000, RIGHT)
        await left.sendto(b"to the next owner of the port", again.getsockname())
        assert await again.recv() == b"to the next owner of the port"


async def test_close_wakes_everybody() -> None:
    """Tasks that wait for room, for an end of congestion, for acknowledgements and for messages, all at once."""
    async with lonely_node() as node, trio.open_nursery() as nursery:
        sock, full = await bound(node, 4000, "10.0.0.1"), await bound(node, 4001, "10.0.0.1")
        receiver = await bound(node, 4002, "10.0.0.1")
        await full.sendmmsg([(bytes(100000), receiver.getsockname())] * 2)
        await fill(full)
        await sock.sendto(b"x", FAR)

        async def closed(call: Callable[..., Any], *arguments: Any) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call(*arguments)

        for one in (sock, full):
            for call in (one.recv, one.recvfrom, one.recvmmsg, one.recvmsg, one.flush):
                nursery.start_soon(closed, call)
            nursery.start_soon(closed, one.flush, FAR)
            nursery.start_soon(closed, one.wait_writable, receiver.getsockname())
            nursery.start_soon(closed, one.sendto, b"x", receiver.getsockname())
            nursery.start_soon(closed, one.sendmmsg, [(b"x", receiver.getsockname())])
        nursery.start_soon(closed, full.wait_writable, FAR)
        nursery.start_soon(closed, full.sendto, b"x", FAR)
        nursery.start_soon(closed, full.sendmmsg, [(b"x", FAR)])
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 21
        sock.close()
        full.close()


@both
async def test_leaving_the_node_delivers_what_was_sent(transport: str) -> None:
    """Sockets that are open when the block ends have what they sent acknowledged first."""
    if transport == "loop":
        async with loop_node() as node:
            sock = await node.bind(4000)
            await sock.sendto(b"x", (LEFT, 4000))
        assert sock.statistics().queued_messages == 0
        return
    async with duo("tcp", close_drain_s=5.0) as two:
        left, right = await two.sockets()
        assert (await right.sendto(b"hello", left.getsockname()), await left.recv()) == (5, b"hello")
        async with rdsx.open_node("127.0.0.3", config=two.left.config) as third:
            sock = await third.bind(6000)
            await sock.sendto(b"hello", right.getsockname())
            assert await right.recv() == b"hello"
            await sock.sendmmsg([(bytes(1000), right.getsockname())] * 50)
        assert right.statistics().queued_messages == 50


@both
async def test_statistics_of_a_socket(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendmmsg([(bytes(100), right.getsockname())] * 3)
        await left.flush()
        assert left.statistics() == rdsx.SocketStatistics(
            sent_messages=3,
            received_messages=0,
            unacknowledged_messages=0,
            unacknowledged_bytes=0,
            queued_messages=0,
            queued_bytes=0,
            congested=False,
        )
        await right.recv()
        found = right.statistics()
        assert (found.received_messages, found.queued_messages, found.queued_bytes) == (1, 2, 200)


async def test_names() -> None:
    async with loop_node() as node:
        sock = node.socket()
        assert "unbound" in repr(sock)
        await sock.bind((LEFT, 4000))
        assert "4000" in repr(sock)
        with sock as same:
            assert same is sock
        assert "closed" in repr(sock)
