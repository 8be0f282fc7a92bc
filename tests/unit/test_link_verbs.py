"""A link over a queue pair, on a made-up device and the real event loop: waiting, ending, and the engine's decisions above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

ringskit = pytest.importorskip("ringskit", reason="rdsx was built without the headers of rdma-core")

from fastkit import SENT, received  # noqa: E402
from rdsx.config import NodeConfig  # noqa: E402
from rdsx.engine.connection import Connection  # noqa: E402
from rdsx.engine.events import Event, PeerUp  # noqa: E402
from rdsx.transports.verbs.link import VerbsLink  # noqa: E402
from ringskit import RingSide, ack_frame, frames_of, join, map_frames  # noqa: E402

TIMEOUT_S = 10.0
KERNEL = bytes(16)


class Device:
    """What the control plane hands over: the connection of one side's queue pair."""

    def __init__(self, side: RingSide) -> None:
        self.side = side
        self.ended = trio.Event()
        self.reason = ""
        self.closed = 0

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.ended.set()

    async def wait_ended(self) -> str:
        await self.ended.wait()
        return self.reason

    def disconnect(self) -> None:
        self.side.nic.fail()

    def close(self) -> None:
        self.closed += 1
        trio.lowlevel.notify_closing(self.side.nic.fd)


class Node:
    """One end: the engine's connection as the owner of link after link, as a supervisor has it."""

    def __init__(self, host: str, peer: str, *, generation: int, **changes: object) -> None:
        self.side = RingSide(host, peer, automatic=True, **changes)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.owing = 0
        self.reasons: list[str] = []
        self.received = trio.Event()
        self.connection = Connection(
            self.side.path, dials=True, config=NodeConfig(), generation=generation, uniform=lambda: 0.5, emit=self.events.append
        )

    async def carry(self, device: Device) -> None:
        self.connection.dialling()
        self.connection.established()
        self.link = VerbsLink(device, self.side.rings, self.side.nic.fd, self, hello_timeout_s=TIMEOUT_S)
        reason = await self.link.run()
        self.reasons.append(reason)
        self.connection.dropped()
        self.connection.shutting()
        self.connection.gone(reason, 0.0)

    # -- the driver

    def attend(self) -> None:
        if self.side.core.take_dirty() + self.side.core.take_remapped():
            self.link.kick()
        if self.side.core.take_woken():
            self.received.set()
        if self.side.core.take_resumable():
            self.link.resume()

    def owes_acks(self) -> None:
        self.owing += 1

    def heard_hello(self, extensions: bytes, ack: int) -> None:
        self.connection.heard_hello(extensions, ack)

    def heard_probe(self, extensions: bytes, sport: int) -> None:
        raise AssertionError("there are no probes over verbs")

    def heard_map(self, freed: int) -> None:
        self.connection.heard_map()

    def send(self, endpoint: object, data: bytes, dport: int) -> None:
        assert endpoint.submit(data, (self.side.peer, dport)) == SENT  # type: ignore[attr-defined]
        self.attend()

    async def wait_for(self, count: int, endpoint: object) -> None:
        endpoint.receive_waiting = True  # type: ignore[attr-defined]
        while endpoint.queued < count:  # type: ignore[attr-defined]
            self.received = trio.Event()
            await self.received.wait()


@asynccontextmanager
async def linked(a: Node, b: Node) -> AsyncIterator[tuple[Device, Device]]:
    """One link between two nodes; it ends with the block, unless it has before."""
    if a.side.nic.failed:
        for node in (a, b):
            node.side.link()
    join(a.side, b.side)
    devices = Device(a.side), Device(b.side)
    async with trio.open_nursery() as nursery:
        for node, device in zip((a, b), devices, strict=True):
            nursery.start_soon(node.carry, device)
        await trio.testing.wait_all_tasks_blocked()
        yield devices
        for device in devices:
            device.end("disconnected")


def nodes(**changes: object) -> tuple[Node, Node]:
    return Node("10.0.0.1", "10.0.0.2", generation=7, **changes), Node("10.0.0.2", "10.0.0.1", generation=8, **changes)


@asynccontextmanager
async def alone(**changes: object) -> AsyncIterator[tuple[Node, Device]]:
    """A node whose peer is the test."""
    node = Node("10.0.0.1", "10.0.0.2", generation=7, **changes)
    void = RingSide("10.0.0.2", "10.0.0.1", receive_slots=4096)
    node.side.nic.connect(void.nic)
    device = Device(node.side)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.carry, device)
        await trio.testing.wait_all_tasks_blocked()
        yield node, device
        device.end("disconnected")


async def test_messages_both_ways(autojump_clock: MockClock) -> None:
    a, b = nodes(send_slots=16, receive_slots=16)
    ends = a.side.endpoint(4000), b.side.endpoint(4001)
    async with linked(a, b):
        assert a.events[0] == PeerUp("10.0.0.1", "10.0.0.2", "rdsx")
        for number in range(20):
            a.send(ends[0], b"%d" % number * 500, 4001)
            b.send(ends[1], bytes(number * 1000), 4000)
        await a.wait_for(20, ends[0])
        await b.wait_for(20, ends[1])
    assert received(ends[1]) == [b"%d" % number * 500 for number in range(20)]
    assert received(ends[0]) == [bytes(number * 1000) for number in range(20)]
    assert a.reasons == b.reasons == ["disconnected"]
    assert a.owing
    assert a.side.nic.unacknowledged_events == 0


async def test_polled_links_need_no_scheduler(autojump_clock: MockClock) -> None:
    """What gathers is posted and what has arrived is taken in by whoever polls, and no event that the reader asked for is lost."""
    a, b = nodes()
    endpoint, other = a.side.endpoint(4000), b.side.endpoint(4001)
    async with linked(a, b):
        for number in range(3):
            a.send(endpoint, b"%d" % number, 4001)
        a.link.poll()
        while other.queued < 3:  # type: ignore[attr-defined]
            b.link.poll()
        await trio.testing.wait_all_tasks_blocked()
        a.send(endpoint, b"3", 4001)
        await b.wait_for(4, other)
    assert received(other) == [b"%d" % number for number in range(4)]


async def test_nothing_but_the_map_before_the_peer_has_spoken(autojump_clock: MockClock) -> None:
    async with alone() as (node, _):
        endpoint = node.side.endpoint(4000)
        node.send(endpoint, b"x", 4001)
        await trio.testing.wait_all_tasks_blocked()
        assert node.side.counter("verbs_frames_sent") == 2
        node.side.inject(*map_frames())
        await trio.testing.wait_all_tasks_blocked()
        assert node.side.counter("verbs_frames_sent") == 3
        assert node.connection.kind == "kernel"


async def test_a_lone_message_leaves_at_once_and_many_of_a_tick_in_one_list(autojump_clock: MockClock) -> None:
    a, b = nodes()
    endpoint, other = a.side.endpoint(4000), b.side.endpoint(4001)
    async with linked(a, b):
        before = a.side.nic.doorbells
        for _ in range(10):
            a.send(endpoint, b"x", 4001)
        assert a.side.nic.doorbells == before + 1
        await b.wait_for(10, other)
        assert a.side.nic.doorbells == before + 2


async def test_reconnects_lose_nothing_and_bring_nothing_twice(autojump_clock: MockClock) -> None:
    a, b = nodes(send_slots=16, receive_slots=16)
    ends = a.side.endpoint(4000), b.side.endpoint(4001)
    for cut in range(5):
        async with linked(a, b):
            for number in range(8):
                a.send(ends[0], b"%d.%d" % (cut, number) * 2000, 4001)
                if number == cut:
                    a.side.nic.fail()
            await trio.testing.wait_all_tasks_blocked()
    async with linked(a, b):
        await b.wait_for(40, ends[1])
    assert received(ends[1]) == [b"%d.%d" % (cut, number) * 2000 for cut in range(5) for number in range(8)]
    assert a.reasons[:5] == ["flushed"] * 5
    assert a.side.path.retransmitted > 0


async def test_a_restarted_peer_is_recognised(autojump_clock: MockClock) -> None:
    a, b = nodes()
    endpoint, other = a.side.endpoint(4000), b.side.endpoint(4001)
    async with linked(a, b):
        pass
    endpoint.submit(b"never on a wire", ("10.0.0.2", 4001))
    b.connection._generation = 9
    async with linked(a, b):
        await b.wait_for(1, other)
    assert a.connection.peer_generation == 9
    assert received(other) == [b"never on a wire"]


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_silent_peer(autojump_clock: MockClock, speaks: bool) -> None:
    start_s = trio.current_time()
    node = Node("10.0.0.1", "10.0.0.2", generation=7)
    void = RingSide("10.0.0.2", "10.0.0.1")
    node.side.nic.connect(void.nic)
    device = Device(node.side)
    with trio.move_on_after(3 * TIMEOUT_S) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.carry, device)
            if speaks:
                await trio.sleep(TIMEOUT_S / 2)
                node.side.inject(*map_frames())
    assert scope.cancelled_caught == speaks
    assert node.reasons == ([] if speaks else ["peer_silent"])
    assert trio.current_time() - start_s == pytest.approx(3 * TIMEOUT_S if speaks else TIMEOUT_S)
    assert device.closed == 1


@asynccontextmanager
async def out_of_credits() -> AsyncIterator[tuple[Node, Device, object]]:
    """A node whose peer has spoken, gave three credits for a start, and says nothing more by itself."""
    node = Node("10.0.0.1", "10.0.0.2", generation=7)
    void = RingSide("10.0.0.2", "10.0.0.1")
    node.side.nic.connect(void.nic)
    node.side.rings.use_credits(3)
    device = Device(node.side)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.carry, device)
        await trio.testing.wait_all_tasks_blocked()
        node.side.inject(*map_frames())
        yield node, device, node.side.endpoint(4000)


async def test_a_peer_that_never_grants(autojump_clock: MockClock) -> None:
    async with out_of_credits() as (node, _, endpoint):
        await trio.sleep(5 * TIMEOUT_S)  # nothing to send, nothing to wait for
        start_s = trio.current_time()
        node.send(endpoint, b"x", 4001)
    assert node.reasons == ["no_credits"]
    assert trio.current_time() - start_s == pytest.approx(TIMEOUT_S)


async def test_a_grant_in_time(autojump_clock: MockClock) -> None:
    async with out_of_credits() as (node, device, endpoint):
        await trio.testing.wait_all_tasks_blocked()
        node.send(endpoint, b"x", 4001)
        await trio.sleep(TIMEOUT_S / 2)
        assert node.side.rings.starved
        node.side.inject(ack_frame(0, credit=9))
        await trio.sleep(3 * TIMEOUT_S)
        assert node.reasons == []
        assert not node.side.path.send_queue
        device.end("disconnected")


@pytest.mark.parametrize(
    ("frames", "reason"), [(frames_of(1, bytes(5000))[1:], "bad_fragment"), ([b"short"], "short_fragment")], ids=["fragment", "short"]
)
async def test_a_peer_that_talks_nonsense(autojump_clock: MockClock, frames: list[bytes], reason: str) -> None:
    async with alone() as (node, device):
        node.side.inject(*map_frames(), *frames)
        await trio.testing.wait_all_tasks_blocked()
        assert node.reasons == [reason]
        assert node.link.detail.startswith(reason)
        assert device.closed == 1


async def test_what_came_before_the_end_is_taken_in(autojump_clock: MockClock) -> None:
    async with alone() as (node, device):
        endpoint = node.side.endpoint(4001)
        node.side.inject(*map_frames(), *frames_of(1, b"last words"))
        device.end("disconnected")
        await trio.testing.wait_all_tasks_blocked()
        assert received(endpoint) == [b"last words"]
        assert node.reasons == ["disconnected"]


@pytest.mark.parametrize(("verb", "reason"), [("supersede", "superseded"), ("drop", "reset_by_user")])
async def test_an_end_at_once(autojump_clock: MockClock, verb: str, reason: str) -> None:
    async with alone() as (node, device):
        if verb == "drop":
            node.link.drop("reset_by_user", 1.0)
        else:
            node.link.supersede(1.0)
        node.link.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert (node.reasons, device.closed) == ([reason], 1)
        node.link.resume()
        assert node.link.tick() is False


async def test_finish_waits_until_all_has_arrived(autojump_clock: MockClock) -> None:
    a, b = nodes()
    endpoint, other = a.side.endpoint(4000), b.side.endpoint(4001)
    start_s = trio.current_time()
    async with linked(a, b):
        for _ in range(5):
            a.send(endpoint, b"x", 4001)
        a.link.finish(5.0)
        await trio.testing.wait_all_tasks_blocked()
        assert a.reasons == ["closing"]
        assert a.side.rings.in_flight == 0
    assert len(received(other)) == 5
    assert trio.current_time() == start_s


async def test_finish_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    node = Node("10.0.0.1", "10.0.0.2", generation=7)
    void = RingSide("10.0.0.2", "10.0.0.1", receive_slots=4)
    node.side.nic.connect(void.nic)
    endpoint = node.side.endpoint(4000)
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.carry, Device(node.side))
        await trio.testing.wait_all_tasks_blocked()
        node.side.inject(*map_frames())
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(9):
            node.send(endpoint, b"x", 4001)
        node.link.finish(2.5)
    assert trio.current_time() - start_s == pytest.approx(2.5)
    assert node.reasons == ["closing"]


async def test_a_paused_path_is_not_read(autojump_clock: MockClock) -> None:
    async with alone(max_peer_queued_bytes=2000, receive_slots=64) as (node, _):
        endpoint = node.side.endpoint(4001)
        node.side.inject(*map_frames())
        await trio.testing.wait_all_tasks_blocked()
        for sequence in range(1, 40):
            node.side.inject(*frames_of(sequence, bytes(500)))
        await trio.testing.wait_all_tasks_blocked()
        assert node.side.path.paused
        assert endpoint.queued <= 32  # one batch
        while received(endpoint):
            node.attend()
            await trio.testing.wait_all_tasks_blocked()
        assert node.side.path.next_receive == 40


async def test_cancelled_it_frees_everything(autojump_clock: MockClock) -> None:
    async with alone() as (_, device):
        pass
    assert device.closed == 1
    other = Node("10.0.0.1", "10.0.0.2", generation=7)
    void = RingSide("10.0.0.2", "10.0.0.1")
    other.side.nic.connect(void.nic)
    device = Device(other.side)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.carry, device)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (device.closed, other.reasons) == (1, [])


async def test_a_flood_lets_others_run(autojump_clock: MockClock) -> None:
    a, b = nodes(send_slots=1024, receive_slots=2048)
    endpoint, other = a.side.endpoint(4000, send_limit=1 << 20), b.side.endpoint(4001, receive_limit=1 << 30)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with linked(a, b), trio.open_nursery() as nursery:
        for _ in range(10000):
            assert endpoint.submit(b"x", ("10.0.0.2", 4001)) == SENT
        a.attend()
        nursery.start_soon(count)
        await b.wait_for(10000, other)
        nursery.cancel_scope.cancel()
    assert turns >= 5
