"""Congestion: a receiver that stops reading stops its senders, and nobody else; below half of its buffer they go on."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import LEFT, RIGHT, assert_nobody_waits, both, bound, congest, duo, knows_congested, loop_node, raises_errno

LIMIT = 10000


async def small(transport_duo: Any) -> tuple[rdsx.RdsSocket, rdsx.RdsSocket]:
    left, right = await transport_duo.sockets()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
    return left, right


@both
async def test_blocked_and_resumed_at_half(transport: str) -> None:
    """Congested above the limit, strictly; free below half of it, strictly."""
    async with duo(transport) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        there = right.getsockname()
        for _ in range(10):
            await left.sendto(bytes(1000), there)
        await left.flush()
        assert not right.statistics().congested
        await left.sendto(b"1", there)
        await left.flush()
        assert right.statistics().congested
        await congest(left, there)  # hear of it
        with raises_errno(errno.ENOBUFS, "port 5000", RIGHT, "wait_writable", kind=rdsx.CongestedError):
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
        assert (right.statistics().queued_bytes, right.statistics().congested) == (5001, True)
        right.recvfrom_nowait()
        assert (right.statistics().queued_bytes, right.statistics().congested) == (4001, False)
        assert done == []
        await left.wait_writable(there)
        assert await right.recvmmsg(5)
        assert [await right.recv() for _ in range(4)] == [b"late"] * 4
    assert sorted(done) == ["sendmmsg", "sendmsg", "sendto", "wait_writable"]


@both
async def test_exactly_half_is_not_free(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await small(two)
        for size in (6000, 5000):
            await left.sendto(bytes(size), right.getsockname())
        await left.flush()
        right.recvfrom_nowait()
        assert right.statistics().congested
        right.recvfrom_nowait()
        assert not right.statistics().congested


@both
async def test_only_that_port_is_stopped(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await small(two)
        other = await bound(two.right, 5001, RIGHT)
        await congest(left, right.getsockname())
        await left.sendto(b"x", other.getsockname())
        assert await other.recv() == b"x"
        await left.sendto(b"", (RIGHT, 0))
        assert await left.recvfrom() == (b"", (RIGHT, 0))


@both
async def test_empty_messages_congest_nobody(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await small(two)
        await left.sendmmsg([(b"", right.getsockname())] * 1000)
        await left.flush()
        assert not right.statistics().congested
        assert right.statistics().queued_messages == 1000


@both
async def test_changing_the_limit_counts_from_the_next_message(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await two.sockets()
        await left.sendto(bytes(9000), right.getsockname())
        await left.flush()
        right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
        assert not right.statistics().congested
        await left.sendto(bytes(1), right.getsockname())
        await left.flush()
        assert right.statistics().congested


@both
async def test_closing_the_receiver_frees_its_senders(transport: str) -> None:
    async with duo(transport) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        there = right.getsockname()
        await congest(left, there)
        nursery.start_soon(left.sendto, b"nobody is there any more", there)
        nursery.start_soon(left.wait_writable, there)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        right.close()
    assert_nobody_waits(left)


@both
async def test_batches_stop_at_a_congested_port(transport: str) -> None:
    async with duo(transport) as two:
        left, right = await small(two)
        other = await bound(two.right, 5001, RIGHT)
        await congest(left, right.getsockname())
        batch = [(b"1", other.getsockname()), (b"2", right.getsockname()), (b"3", other.getsockname())]
        assert left.sendmmsg_nowait(batch) == 1
        with raises_errno(errno.ENOBUFS, "5000", kind=rdsx.CongestedError):
            left.sendmmsg_nowait(batch[1:])
        assert await other.recv() == b"1"


@both
async def test_congestion_is_counted(transport: str) -> None:
    async with duo(transport) as two, trio.open_nursery() as nursery:
        left, right = await small(two)
        await congest(left, right.getsockname())
        with pytest.raises(rdsx.CongestedError):
            left.sendto_nowait(b"", right.getsockname())
        nursery.start_soon(left.sendto, b"", right.getsockname())
        await trio.testing.wait_all_tasks_blocked()
        counters = two.left.statistics().counters
        assert (counters["cong_send_error"], counters["cong_send_blocked"]) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_the_map_of_the_bound_address_counts() -> None:
    """Between two addresses of one node the kernel marks the wrong map; here the sender sees it."""
    async with loop_node(LEFT, RIGHT) as node:
        sender, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, RIGHT)
        await congest(sender, receiver.getsockname())
        assert knows_congested(sender, (RIGHT, 5000))
        same_port = await bound(node, 5000, LEFT)
        await sender.sendto(b"x", same_port.getsockname())
        assert await same_port.recv() == b"x"


async def test_tasks_of_many_sockets_wait_for_one_port() -> None:
    """Closing one of them leaves the others waiting."""
    async with loop_node() as node, trio.open_nursery() as nursery:
        receiver = await bound(node, 5000, LEFT)
        senders = [await bound(node, port, LEFT) for port in range(4000, 4010)]
        sent = await congest(senders[0], receiver.getsockname())

        async def send(sock: rdsx.RdsSocket) -> None:
            with pytest.raises(trio.ClosedResourceError) if sock is senders[3] else trio.CancelScope():
                await sock.sendto(b"late", receiver.getsockname())

        for sock in senders:
            nursery.start_soon(send, sock)
        await trio.testing.wait_all_tasks_blocked()
        senders[3].close()
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 9
        receiver.recvmmsg_nowait(sent)
        await trio.testing.wait_all_tasks_blocked()
        assert {address[1] for _, address in receiver.recvmmsg_nowait()} == set(range(4000, 4010)) - {4003}
