"""A sender that heeds no congestion map, and a socket that is not read: its connection is paused at the cap, and nobody else's."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio

import rdsx
from kernelkit import (
    CUT,
    KERNEL,
    LARGER,
    SMALLER,
    Kernel,
    KernelLink,
    bystanders,
    kernel_and_node,
    pack,
    pack_map,
    resident_bytes,
    send_all,
    until,
)

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])
KIB, MIB = 1024, 1024 * 1024
CAP_BYTES = 2 * MIB
SLACK_BYTES = MIB + 256 * KIB  # one read more than the cap


class Flood:
    """Numbered messages, one after another without end; each send waits only for TCP."""

    def __init__(self, link: KernelLink, size: int) -> None:
        self.link = link
        self.size = size
        self.sent = 0

    async def run(self) -> None:
        with contextlib.suppress(*CUT):
            while True:
                self.sent += 1
                await self.link.write(pack(self.sequence(), self.text(self.sent)))

    def sequence(self) -> int:
        self.link.kernel.next_tx += 1
        return self.link.kernel.next_tx - 1

    def text(self, number: int) -> bytes:
        return number.to_bytes(4, "big").ljust(self.size, b"x")


def connection_of(node: rdsx.Node) -> rdsx.ConnectionStatistics:
    (found,) = (each for each in node.statistics().connections if each.peer == KERNEL)
    return found


@both_orders
@pytest.mark.parametrize("size", [4, 1000, 64 * KIB, MIB])
async def test_paused_at_the_cap_and_resumed(address: str, size: int) -> None:
    async with kernel_and_node(address, max_peer_queued_bytes=CAP_BYTES) as (kernel, node), bystanders(node, kernel.port) as pair:
        sock, other = await node.bind(4000), await node.bind(4002)
        link = await kernel.meet()
        before = resident_bytes()
        flood = Flood(link, size)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood.run)
            await until(lambda: connection_of(node).paused)
            paused_at = sock.statistics().queued_messages
            await pair.go_on(100)
            assert sock.statistics().queued_messages == paused_at
            assert CAP_BYTES < connection_of(node).queued_bytes < CAP_BYTES + SLACK_BYTES
            assert resident_bytes() - before < 3 * CAP_BYTES + 4 * MIB
            assert node.statistics().counters["recv_paused"] == 1
            # It is read: the connection is read on, and paused again when it is not.
            got = 0
            for paused in (2, 3):
                while connection_of(node).paused:
                    for data, _ in await sock.recvmmsg(16):
                        got += 1
                        assert data == flood.text(got)
                await until(lambda: node.statistics().counters["recv_paused"] == paused)  # noqa: B023  used within the loop
            nursery.cancel_scope.cancel()
        assert node.statistics().drops == {}
        assert other.statistics().queued_messages == 0


async def test_paused_connection_is_resumed_when_the_socket_closes() -> None:
    async with kernel_and_node(LARGER, max_peer_queued_bytes=CAP_BYTES) as (kernel, node), bystanders(node, kernel.port):
        sock, other = await node.bind(4000), await node.bind(4002)
        link = await kernel.meet()
        flood = Flood(link, 64 * KIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood.run)
            await until(lambda: connection_of(node).paused)
            sock.close()
            await until(lambda: not connection_of(node).paused)
            at = flood.sent
            await until(lambda: flood.sent > at + 100)
            nursery.cancel_scope.cancel()
        # the flood was cut off in mid-message: begin a new connection
        link.drop()
        link = await kernel.again()
        kernel.next_tx += 1
        await link.send(b"x", dport=4002)
        assert await other.recv() == b"x"


async def test_node_cap() -> None:
    """Several peers together: the node's cap holds although no peer reaches its own."""
    async with kernel_and_node(LARGER, max_peer_queued_bytes=64 * MIB, max_node_queued_bytes=CAP_BYTES) as (kernel, node):
        sock = await node.bind(4000)
        others = [Kernel(f"127.0.0.{number}", LARGER, kernel.port) for number in range(4, 9)]
        try:
            links = [await other.meet() for other in others]
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(Flood(link, 10 * KIB).run)
                await until(lambda: all(each.paused for each in node.statistics().connections))
                assert node.statistics().queued_bytes < CAP_BYTES + len(others) * SLACK_BYTES
                counts: dict[str, int] = dict.fromkeys((other.host for other in others), 0)
                while min(counts.values()) < 500:
                    for data, (host, _) in await sock.recvmmsg(64):
                        counts[host] += 1
                        assert int.from_bytes(data[:4], "big") == counts[host]
                nursery.cancel_scope.cancel()
        finally:
            for other in others:
                other.close()


async def test_new_connections_do_not_get_round_the_cap() -> None:
    """A newer connection lets the older one be read to its end. That is no way to have a paused one read without bound."""
    config = {"max_peer_queued_bytes": CAP_BYTES, "supersede_drain_s": 0.2}
    async with kernel_and_node(LARGER, **config) as (kernel, node), bystanders(node, kernel.port) as pair:
        sock = await node.bind(4000)
        link = await kernel.meet()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(Flood(link, 64 * KIB).run)
                await until(lambda: connection_of(node).paused)
                await pair.go_on(200)
                assert connection_of(node).queued_bytes < CAP_BYTES + SLACK_BYTES
                newer = await kernel.dial_raw()
                await send_all(newer, pack_map())
                link = kernel.adopt(newer)
            await pair.go_on(1000)
            assert connection_of(node).queued_bytes < CAP_BYTES + SLACK_BYTES
            nursery.cancel_scope.cancel()
        assert sock.statistics().queued_bytes < CAP_BYTES + SLACK_BYTES
        # Nothing is stuck for good: once it is read, the newest connection gets its turn.
        await until(lambda: read_some(sock) and node.statistics().connections and connection_of(node).links >= 2)


def read_some(sock: rdsx.RdsSocket) -> bool:
    with contextlib.suppress(trio.WouldBlock):
        sock.recvmmsg_nowait(64)
    return True


async def test_drained_before_the_newer_connection_when_paused() -> None:
    """The older connection is paused at the cap when the newer one comes. What its TCP has acknowledged is not lost, only late."""
    config = {"max_peer_queued_bytes": CAP_BYTES, "supersede_drain_s": 0.01}
    async with kernel_and_node(LARGER, **config) as (kernel, node), bystanders(node, kernel.port) as pair:
        sock = await node.bind(4000)
        old = await kernel.meet()
        size = 64 * KIB
        texts = [number.to_bytes(4, "big").ljust(size, b"x") for number in range(64)]
        async with trio.open_nursery() as nursery:

            async def write_all() -> None:
                for number, text in enumerate(texts):
                    await old.write(pack(1000 + number, text))
                old.sock.shutdown(socket.SHUT_WR)
                written.set()

            written = trio.Event()
            nursery.start_soon(write_all)
            await until(lambda: connection_of(node).paused)
            await written.wait()  # all of it is in the buffers of TCP
            newer = await kernel.dial_raw()
            await send_all(newer, pack_map() + pack(2000, b"new"))
            await pair.go_on(1000)
        got = [await sock.recv() for _ in range(len(texts) + 1)]
        assert got == [*texts, b"new"]
