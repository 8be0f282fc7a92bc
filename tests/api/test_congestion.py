"""Congestion beyond the contract (`tests/contract/test_congestion.py`): the exact limits, the accounts, and who is woken."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import LEFT, RIGHT, assert_nobody_waits, both, bound, congest, duo, knows_congested, loop_node

LIMIT = 10000


async def small(transport_duo: Any) -> tuple[rdsx.RdsSocket, rdsx.RdsSocket]:
    left, right = await transport_duo.sockets()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIMIT)
    return left, right


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


async def test_idle_peers_are_told_when_they_send() -> None:
    """A map is 8 KiB: a peer that has nothing to do with a port that fills up and is read does not get one each time."""
    async with duo("tcp") as two, rdsx.open_node("127.0.0.3", config=two.left.config) as third:
        left, right = await small(two)
        idle, other = await third.bind(4000), await bound(two.right, 5001, RIGHT)
        await idle.sendto(b"hello", other.getsockname())
        await idle.flush()
        maps = third.statistics().counters["cong_update_received"]
        for _ in range(5):
            for _ in range(await congest(left, right.getsockname())):
                right.recv_nowait()
            await left.wait_writable(right.getsockname())
        await idle.sendto(b"what it would come behind", other.getsockname())
        await idle.flush()
        # Full and free once, because it had sent something before; and where things stand now. Not ten times.
        assert third.statistics().counters["cong_update_received"] <= maps + 3
        sent = await congest(left, right.getsockname())
        await idle.sendto(b"late", right.getsockname())
        while not knows_congested(idle, right.getsockname()):
            await trio.sleep(0.001)
        for _ in range(sent + 1):
            await right.recv()
        await idle.wait_writable(right.getsockname())
        await idle.sendto(b"free", right.getsockname())
        assert await right.recvfrom() == (b"free", idle.getsockname())
