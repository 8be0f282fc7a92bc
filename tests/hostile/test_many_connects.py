"""Ten thousand connects: from as many addresses, from one, from addresses that are not allowed. State and memory stay bounded."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pytest
import trio

import rdsx
import rdsx.driver
from kernelkit import BYSTANDER, GUARD_S, Bystanders, bystanders, free_port, is_readable, resident_bytes, until

MIB = 1024 * 1024
CONNECTS = 10_000
MAX_PEERS = 256
BATCH = 32  # below the listener's backlog, so that no connect has to wait for a retransmission
KEPT = MAX_PEERS + 44  # of our ends, the first so many stay open
HELD = 200  # ... and so many of the newest

# Hostile addresses are 127.1.0.0 and up. A node above them sees smaller peers that dial, one below sees pokes and dials back.
ABOVE, BELOW = "127.200.0.1", "127.0.0.12"
both_orders = pytest.mark.parametrize("address", [ABOVE, BELOW])


def sources(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"


def connect(source: str, address: str, port: int) -> socket.socket:
    """Connected as soon as the kernel has it in the listener's backlog: the node under test need not have run."""
    sock = socket.socket()
    try:
        sock.bind((source, 0))
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


async def storm(
    origins: Iterator[str], address: str, port: int, pair: Bystanders, is_taken: Callable[[int], object]
) -> deque[socket.socket]:
    """Connect from all these, some at a time; `is_taken(n)`: the node has taken n of them up. Returns the newest, still open."""
    kept: list[socket.socket] = []
    held: deque[socket.socket] = deque()
    made = 0
    try:
        for origin in origins:
            (held if made >= KEPT else kept).append(connect(origin, address, port))
            made += 1
            if made % BATCH == 0:
                while not is_taken(made):
                    await pair.go_on(1)
                while len(held) > HELD:
                    held.popleft().close()
        await until(lambda: is_taken(made))
    except BaseException:
        close_all(held)
        raise
    finally:
        close_all(kept)
    return held


def close_all(held: Iterable[socket.socket]) -> None:
    for sock in held:
        sock.close()


async def test_from_ten_thousand_smaller_addresses() -> None:
    """They dial and say nothing. The first fill the node's table of peers and keep it full; the rest is refused, and held open."""
    port = free_port(ABOVE, BYSTANDER)
    config = rdsx.NodeConfig(port=port, close_drain_s=0.0, max_peers=MAX_PEERS, hello_timeout_s=10 * GUARD_S)
    with trio.fail_after(3 * GUARD_S):
        async with rdsx.open_node(ABOVE, config=config) as node, bystanders(node, port) as pair:
            seen: list[rdsx.NodeStatistics] = []

            def is_taken(count: int) -> bool:
                seen[:] = [node.statistics()]
                return sum(seen[0].drops.values()) + len(seen[0].connections) - 1 == count

            before = resident_bytes()
            held = await storm(sources(CONNECTS), ABOVE, port, pair, is_taken)
            try:
                await pair.go_on()
                (stats,) = seen  # as it was with the last connect
                assert len(stats.connections) == MAX_PEERS
                assert stats.drops == {"too_many_peers": CONNECTS - MAX_PEERS + 1}  # the bystander is a peer too
                # about 30 KiB for each peer, nothing for the refused
                assert resident_bytes() - before < MAX_PEERS * 64 * 1024 + 8 * MIB
                # Refused connections are held open, as many as there is room for, not closed at once.
                assert not any(is_readable(sock) for sock in list(held)[-60:])
            finally:
                close_all(held)
            # Those who never said a word are forgotten with their connections.
            await until(lambda: {connection.peer for connection in node.statistics().connections} == {BYSTANDER})


async def test_from_ten_thousand_larger_addresses() -> None:
    """They poke. Each is closed and dialled once, which nobody takes, and forgotten."""
    port = free_port(BELOW, BYSTANDER)
    config = rdsx.NodeConfig(port=port, close_drain_s=0.0, max_peers=MAX_PEERS)
    with trio.fail_after(3 * GUARD_S):
        async with rdsx.open_node(BELOW, config=config) as node, bystanders(node, port) as pair:
            before = resident_bytes()
            held = await storm(sources(CONNECTS), BELOW, port, pair, lambda count: sum(node.statistics().drops.values()) == count)
            close_all(held)
            await pair.go_on()
            stats = node.statistics()
            assert stats.drops == {"refused": CONNECTS}
            assert {connection.peer for connection in stats.connections} == {BYSTANDER}
            assert resident_bytes() - before < 8 * MIB


async def test_from_one_smaller_address() -> None:
    """Each is a newer link of the same peer. The older ones are read to their end, a few may wait, the rest is dropped."""
    port = free_port(ABOVE, BYSTANDER)
    config = rdsx.NodeConfig(port=port, close_drain_s=0.0, supersede_drain_s=0.01)
    with trio.fail_after(3 * GUARD_S):
        async with rdsx.open_node(ABOVE, config=config) as node, bystanders(node, port) as pair:
            before = resident_bytes()
            held = await storm(
                ("127.1.0.1" for _ in range(CONNECTS)), ABOVE, port, pair, lambda count: sum(node.statistics().drops.values()) >= count - 9
            )
            try:
                await pair.go_on()
                stats = node.statistics()
                assert {connection.peer for connection in stats.connections} <= {"127.1.0.1", BYSTANDER}
                assert set(stats.drops) <= {"superseded", "closed_by_peer", "reset_by_peer"}
                assert stats.drops["superseded"] > CONNECTS // 2
                assert resident_bytes() - before < 8 * MIB
            finally:
                close_all(held)


async def test_from_one_larger_address() -> None:
    """Each is a poke: closed, and answered by one dial at a time, which nobody takes."""
    port = free_port(BELOW, BYSTANDER)
    with trio.fail_after(3 * GUARD_S):
        async with rdsx.open_node(BELOW, config=rdsx.NodeConfig(port=port, close_drain_s=0.0)) as node, bystanders(node, port) as pair:
            before = resident_bytes()
            for _ in range(CONNECTS // BATCH):
                batch = deque(connect("127.1.0.1", BELOW, port) for _ in range(BATCH))
                await until(lambda: all(is_readable(sock) for sock in batch))  # noqa: B023  used within the loop
                assert not any(sock.recv(1) for sock in batch)
                close_all(batch)
            await pair.go_on()
            stats = node.statistics()
            assert {connection.peer for connection in stats.connections} <= {"127.1.0.1", BYSTANDER}
            assert set(stats.drops) == {"refused"}
            assert resident_bytes() - before < 8 * MIB


@both_orders
async def test_peers_that_are_not_allowed(address: str) -> None:
    """Refused before any state is kept, and held open for a while: a kernel that is closed at once reconnects at once, for ever."""
    port = free_port(address, BYSTANDER)
    config = rdsx.NodeConfig(port=port, close_drain_s=0.0, allowed_peers=("127.0.0.0/24", "fd00::/8"))
    with trio.fail_after(3 * GUARD_S):
        async with rdsx.open_node(address, config=config) as node, bystanders(node, port) as pair:
            known = {connection.peer for connection in node.statistics().connections}
            before = resident_bytes()
            held = await storm(sources(1000), address, port, pair, lambda count: node.statistics().drops.get("not_allowed") == count)
            try:
                stats = node.statistics()
                assert stats.drops == {"not_allowed": 1000}
                assert {connection.peer for connection in stats.connections} == known == {BYSTANDER}
                assert not any(is_readable(sock) for sock in list(held)[-60:])
                assert resident_bytes() - before < 4 * MIB
            finally:
                close_all(held)


async def test_refused_connections_are_let_go_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdsx.driver, "REFUSED_HOLD_S", 0.01)
    port = free_port(ABOVE, BYSTANDER)
    config = rdsx.NodeConfig(port=port, close_drain_s=0.0, allowed_peers=("127.0.0.0/24",))
    with trio.fail_after(GUARD_S):
        async with rdsx.open_node(ABOVE, config=config) as node, bystanders(node, port):
            for _ in range(3):
                held = deque(connect(source, ABOVE, port) for source in sources(5))
                await until(lambda: all(is_readable(sock) for sock in held))  # noqa: B023  used within the loop
                assert not any(sock.recv(1) for sock in held)
                close_all(held)
            assert node.statistics().drops == {"not_allowed": 15}


async def test_refused_peer_is_reachable_from_our_side() -> None:
    """max_peers also bounds whom we can send to, with a clear error; the peers we have are not affected."""
    port = free_port(ABOVE, BYSTANDER)
    config = rdsx.NodeConfig(port=port, close_drain_s=0.0, max_peers=2)
    with trio.fail_after(GUARD_S):
        async with rdsx.open_node(ABOVE, config=config) as node, bystanders(node, port):
            sock = await node.bind(4000)
            await sock.sendto(b"x", ("127.1.0.1", 4000))
            with pytest.raises(rdsx.TooManyPeersError, match=r"127\.1\.0\.2.*max_peers"):
                await sock.sendto(b"x", ("127.1.0.2", 4000))
            await sock.sendto(b"x", ("127.1.0.1", 4000))
