"""Nodes over verbs on a made-up fabric and virtual time: who connects, who is refused, and that nothing is lost meanwhile."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock

fabrickit = pytest.importorskip("fabrickit", reason="rdsx was built without the headers of rdma-core")

import rdsx  # noqa: E402
from fabrickit import Fabric, fabric_node  # noqa: E402

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
COUNT = 200


def drops(node: rdsx.Node) -> dict[str, int]:
    return node.statistics().drops


async def exchange(left: rdsx.RdsSocket, right: rdsx.RdsSocket, count: int = COUNT) -> None:
    """Messages both ways at once, each once and in order."""

    async def send(sender: rdsx.RdsSocket, receiver: rdsx.RdsSocket) -> None:
        for number in range(count):
            await sender.sendto(b"%d" % number * (number % 300), receiver.getsockname())
            if number % 20 == 0:
                await trio.sleep(0.001)

    async def receive(receiver: rdsx.RdsSocket) -> None:
        for number in range(count):
            assert await receiver.recv() == b"%d" % number * (number % 300)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, left, right)
        nursery.start_soon(send, right, left)
        nursery.start_soon(receive, left)
        nursery.start_soon(receive, right)


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


@pytest.mark.parametrize("first", [A, B])
async def test_either_end_connects(first: str, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the larger address, whose connects are only pokes over TCP."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            sender, receiver = (left, right) if first == A else (right, left)
            await sender.sendto(b"hello", receiver.getsockname())
            assert await receiver.recv() == b"hello"
            assert (fabric.connections, fabric.refusals) == (1, 0)
            await exchange(left, right)
            (connection,) = a.statistics().connections
            assert (connection.transport, connection.state, connection.kind, connection.links) == ("verbs", "up", "rdsx", 1)


@pytest.mark.parametrize("latency_s", [0.0, 0.001, 0.05])
async def test_both_connect_at_once(latency_s: float, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refuses the other while it asks itself; random delays let one in. Then there is one connection, and nothing was lost."""
    fabric = Fabric(latency_s)
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            began_s = trio.current_time()
            left.sendto_nowait(b"from a", (B, 4000))
            right.sendto_nowait(b"from b", (A, 4000))
            assert (await right.recv(), await left.recv()) == (b"from a", b"from b")
            assert trio.current_time() - began_s < 5
            assert fabric.refusals >= 1
            await exchange(left, right)
            assert [node.statistics().connections[0].state for node in (a, b)] == ["up", "up"]


async def test_a_request_while_up_ends_the_old_connection(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks has lost it: the old one is dropped, the request refused, and the next one granted."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await exchange(left, right, 3)
            # B loses its end without a word.
            (pair,) = fabric.pairs
            theirs: Any = pair if pair.rings.path.host == A else pair.peer
            theirs.peer.peer = None
            theirs.peer = None
            theirs.nic.fail()
            theirs.end("closed_by_peer")
            await right.sendto(b"again", (A, 4000))
            assert await left.recv() == b"again"
            await exchange(left, right)
            assert drops(a).get("superseded") == 1
            assert fabric.refusals >= 1


async def test_cuts_lose_nothing(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange, left, right, 2000)
                for cuts in range(4):
                    while fabric.connections == cuts:
                        await trio.sleep(0.001)
                    await trio.sleep(0.003)
                    fabric.cut()
            assert fabric.connections >= 4


async def test_reset_by_the_user(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await exchange(left, right, 3)
            assert a.reset_connection(B)
            await exchange(left, right)
            assert drops(a)["reset_by_user"] == 1
            assert drops(b)["closed_by_peer"] == 1


async def test_a_peer_that_is_not_there_yet(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages wait for it."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a:
        with await a.bind(4000) as left:
            left.sendto_nowait(b"early", (B, 4000))
            await trio.sleep(10)
            assert drops(a)["refused"] > 5
            async with fabric_node(fabric, B, monkeypatch) as b:
                with await b.bind(4000) as right:
                    assert await right.recv() == b"early"
                    await left.flush()


async def test_a_peer_that_gives_up_as_it_is_granted(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is counted, and the next attempt works."""
    fabric = Fabric(latency_s=0.2)
    async with fabric_node(fabric, A, monkeypatch, connect_timeout_s=0.3) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            left.sendto_nowait(b"x", (B, 4000))
            await trio.sleep(0.5)
            assert (drops(a)["connect_timeout"], drops(b)["reset_by_peer"]) == (1, 1)
            fabric.latency_s = 0.001
            assert await right.recv() == b"x"


async def test_strangers_are_refused(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `allowed_peers`; those who are known are not disturbed."""
    fabric = Fabric()
    settings: dict[str, Any] = {"allowed_peers": ("10.0.0.0/31",)}
    async with (
        fabric_node(fabric, A, monkeypatch) as a,
        fabric_node(fabric, "10.0.0.0", monkeypatch, **settings) as strict,
        fabric_node(fabric, C, monkeypatch) as c,
    ):
        with await a.bind(4000) as friend, await strict.bind(4000) as sock, await c.bind(4000) as stranger:
            stranger.sendto_nowait(b"let me in", ("10.0.0.0", 4000))
            await exchange(friend, sock)
            await trio.sleep(5)
            assert drops(strict)["not_allowed"] >= 2
            assert stranger.statistics().unacknowledged_messages == 1
            assert [connection.peer for connection in strict.statistics().connections] == [A]


async def test_leaving_ends_everything(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is delivered before; every queue pair is closed; the peer hears of it."""
    fabric = Fabric()
    async with fabric_node(fabric, B, monkeypatch) as b:
        with await b.bind(4000) as right, b.events() as events:
            async with fabric_node(fabric, A, monkeypatch) as a:
                with await a.bind(4000) as left:
                    await left.sendto(b"last", (B, 4000))
                    await left.flush()
            assert await right.recv() == b"last"
            async for event in events:
                if isinstance(event, rdsx.PeerDown):
                    break
            await trio.sleep(1)
    assert all(pair.is_closed and pair.peer is not None and pair.peer.is_closed for pair in fabric.pairs)


async def test_what_verbs_has_not(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fabric_node(Fabric(), A, monkeypatch) as a:
        with await a.bind(4000) as sock:
            assert sock.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT) == rdsx.RDS_TRANS_IB
            with pytest.raises(OSError, match="use get_mr") as caught:
                sock.setsockopt(rdsx.SOL_RDS, rdsx.RDS_GET_MR, rdsx.ancillary.GetMrArgs(rdsx.ancillary.IoVec(0, 8), 0, 0).pack())
            assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("counting", [(A, B), (A,), ()], ids=["both", "one", "none"])
async def test_credits_are_counted_where_both_ends_do(counting: tuple[str, ...], clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they say, everything arrives; and a receive ring never runs dry where they are counted, though both send a lot at once."""
    fabric = Fabric()
    nodes = [fabric_node(fabric, host, monkeypatch, flow_control=host in counting) for host in (A, B)]
    async with nodes[0] as a, nodes[1] as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await exchange(left, right)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.sendmmsg, [(bytes(40000), (B, 4000))] * 40)
                for _ in range(40):
                    assert len(await right.recv()) == 40000
            (pair,) = fabric.pairs
            ends = [pair, pair.peer]
            assert [end.rings.credits is not None for end in ends] == [len(counting) == 2] * 2
            if len(counting) == 2:
                assert [end.nic.starved for end in ends] == [0, 0]
            granted = [node.statistics().counters["ib_tx_credit_updates"] for node in (a, b)]
            assert [count > 0 for count in granted] == [len(counting) == 2] * 2


async def test_each_type_of_service_has_a_connection(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for what the peer answers with it; and each comes again when it is lost."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as plain, await a.bind(4001) as urgent, await b.bind(4000) as there, await b.bind(4001) as answers:
            urgent.set_tos(5)
            answers.set_tos(5)
            assert (plain.get_tos(), urgent.get_tos()) == (0, 5)
            for _ in range(2):
                await exchange(plain, there)
                await exchange(urgent, answers)
                for node in (a, b):
                    assert sorted((one.peer, one.tos) for one in node.info().connections) == [
                        (A if node is b else B, 0),
                        (A if node is b else B, 5),
                    ]
                made = fabric.connections
                fabric.cut()
                await trio.sleep(3)
            assert made >= 4
            assert a.reset_connection(B)
            await trio.sleep(3)
            assert [(one.state, one.reconnects > 1) for one in a.statistics().connections] == [("up", True)] * 2
            await exchange(urgent, answers)


async def test_a_type_of_service_is_chosen_once(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            left.set_tos(4)
            with pytest.raises(OSError, match="it is chosen once") as caught:
                left.set_tos(5)
            assert (caught.value.errno, left.get_tos()) == (errno.EINVAL, 4)
            await right.sendto(b"x", (A, 4000))
            with pytest.raises(OSError, match="before the first message") as caught:
                right.set_tos(5)
            assert (caught.value.errno, right.get_tos()) == (errno.EINVAL, 0)


async def test_a_type_of_service_in_the_queues(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a peer is listed with it, can be cancelled and flushed; a peer that nobody needs any more is forgotten."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a:
        with await a.bind(4000) as left, await a.bind(4001) as itself:
            left.set_tos(7)
            assert [await left.sendto(b"gone", (B, 4000)) for _ in range(3)] == [4, 4, 4]
            await trio.sleep(1)
            assert [(one.tos, one.length) for one in a.info().send_messages] == [(7, 4)] * 3
            assert left.cancel_sent_to((B, 4000)) == 3
            with trio.fail_after(1):
                await left.flush((B, 4000))
            await trio.sleep(5)
            assert a.info().connections == ()
            await left.sendto(b"to ourselves", (A, 4001))  # loopback has no types
            assert await itself.recv() == b"to ourselves"
            assert [one.tos for one in a.info().connections] == [0]
            await left.sendto(b"after all", (B, 4000))
            async with fabric_node(fabric, B, monkeypatch) as b:
                with await b.bind(4000) as right:
                    assert await right.recvfrom() == (b"after all", (A, 4000))


async def test_congestion_is_of_the_host(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that came over one connection stops senders on the others, too; and sets them free."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch, receive_buffer_bytes=1000) as b:
        with await a.bind(4000) as plain, await a.bind(4001) as urgent, await b.bind(4000) as right:
            urgent.set_tos(5)
            await urgent.sendto(b"", (B, 4000))
            await right.recv()
            await plain.sendto(bytes(2000), (B, 4000))
            await trio.sleep(1)
            with pytest.raises(rdsx.CongestedError):
                urgent.sendto_nowait(b"x", (B, 4000))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(urgent.sendto, b"waits", (B, 4000))
                await trio.sleep(1)
                assert len(await right.recv()) == 2000
                assert await right.recv() == b"waits"


async def test_connections_are_listed_as_the_kernel_lists_them(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the queue pair has while there is one, and with zeros else."""
    fabric = Fabric()
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await a.bind(4001) as urgent, await b.bind(4000) as right:
            urgent.set_tos(5)
            await left.sendto(b"x", (B, 4000))
            await right.recv()
            assert [(one.peer, one.peer_gid, one.max_send_wr, one.tos) for one in a.info().ib_connections] == [(B, "fe80::2", 64, 0)]
            await urgent.sendto(b"x", (C, 4000))  # where nobody is
            assert [(one.peer, one.peer_gid, one.max_send_wr, one.tos) for one in a.info().ib_connections] == [
                (B, "fe80::2", 64, 0),
                (C, "::", 0, 5),
            ]
            fabric.cut()
            await trio.testing.wait_all_tasks_blocked()
            assert [one.peer_gid for one in b.info().ib_connections] == ["::"]
