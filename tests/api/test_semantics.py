"""What the calls do beyond the contract (`tests/contract`): full queues, accounts, and what needs a peer that never answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import FAR, LEFT, RIGHT, both, bound, duo, fill, lonely_node, loop_node

# -- batches


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


async def test_close_cancels_what_is_queued() -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        queued = await fill(sock)
        sock.close()
        (connection,) = node.statistics().connections
        assert connection.send_queue_messages == 0
        assert sock.statistics().unacknowledged_bytes == 0
        assert node.statistics().counters["send_canceled"] == queued


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


async def test_leaving_a_loop_node() -> None:
    async with loop_node() as node:
        sock = await node.bind(4000)
        await sock.sendto(b"x", (LEFT, 4000))
    assert sock.statistics().queued_messages == 0


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
