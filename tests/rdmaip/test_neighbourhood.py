"""What strangers say, and what is made of it: conflicts at a bounded rate, answers to probes, and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from rdsx.netlink.rtnetlink import Link
from rdsx.rdmaip.config import Config, Group, ManagedAddress, Probe
from rdsx.rdmaip.facts import Fact, NeighbourConflict, PathFact
from rdsx.rdmaip.kernel_state import KernelState
from rdsx.rdmaip.listener import Heard
from rdsx.rdmaip.neighbourhood import CONFLICT_S, Neighbourhood

OURS, THEIRS = bytes.fromhex("0a0000000001"), bytes.fromhex("0a0000000077")
IP, TARGET = "10.9.0.11", "10.9.0.1"
INTERVAL_S, MISSES = 0.1, 3


class FakeListener:
    """Hears what the test says, and remembers what is asked."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair()
        self.asked: list[tuple[str, int]] = []
        self._heard: list[Heard] = []

    def say(self, *heard: Heard) -> None:
        self._heard += heard
        self.sockets[1].send(b".")

    def take(self) -> Iterator[Heard]:
        if self._heard:
            self.sockets[0].recv(1000)
        heard, self._heard = self._heard, []
        yield from heard

    def ask(self, target: IPv4Address | IPv6Address, interface: int, link: bytes, broadcast: bytes) -> None:
        self.asked.append((str(target), interface))


class Stage:
    """A host with two ports, whose neighbours say what the test wants."""

    def __init__(self, listener: FakeListener, *, probing: bool) -> None:
        probe = Probe(targets=(TARGET,), interval_ms=round(INTERVAL_S * 1000), misses=MISSES) if probing else None
        group = Group(name="fabric", ports=("p0", "p1"), addresses=(ManagedAddress(IP, 24, "p0"),), probe=probe)
        config = Config(groups=(group,))
        state = KernelState(config)
        state.replace([Link(index, name, OURS, b"\xff" * 6, 1, True, True, "", None, None, None) for index, name in ((2, "p0"), (3, "p1"))])
        self.facts: list[Fact] = []
        fake: Any = listener
        self.neighbourhood = Neighbourhood(config, state, fake, self.facts.extend)


@pytest.fixture
def listener() -> Iterator[FakeListener]:
    found = FakeListener()
    yield found
    for sock in found.sockets:
        sock.close()


async def test_a_flood_of_claims_is_one_conflict_a_second(listener: FakeListener, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    stage = Stage(listener, probing=False)
    nursery.start_soon(stage.neighbourhood.run)
    claims = [Heard(2, IP, THEIRS[:5] + bytes([index]), True) for index in range(200)]
    for _ in range(3):
        for _ in range(5):
            listener.say(*claims)
            await wait_all_tasks_blocked()
        mock_clock.jump(CONFLICT_S)
    assert stage.facts == [NeighbourConflict(IP, THEIRS[:5] + b"\0")] * 3


async def test_what_is_no_claim(listener: FakeListener, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    """Our own announcements, which come back on the other port; other addresses; other interfaces."""
    stage = Stage(listener, probing=False)
    nursery.start_soon(stage.neighbourhood.run)
    listener.say(Heard(3, IP, OURS, False), Heard(2, "10.9.0.99", THEIRS, True), Heard(9, IP, THEIRS, True), Heard(0, IP, THEIRS, True))
    await wait_all_tasks_blocked()
    assert stage.facts == []


async def test_answers_keep_a_path_alive(listener: FakeListener, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    """Questions of the target, and answers for others, are no answers."""
    stage = Stage(listener, probing=True)
    nursery.start_soon(stage.neighbourhood.run)
    await wait_all_tasks_blocked()
    assert listener.asked == [(TARGET, 2), (TARGET, 3)]
    for _ in range(MISSES):
        listener.say(Heard(3, TARGET, THEIRS, True), Heard(2, TARGET, THEIRS, False), Heard(2, "10.9.0.2", THEIRS, True))
        await wait_all_tasks_blocked()
        assert stage.facts == []
        mock_clock.jump(INTERVAL_S)
        await wait_all_tasks_blocked()
    assert stage.facts == [PathFact("p0", False)]
    listener.say(Heard(2, TARGET, THEIRS, True), Heard(3, TARGET, THEIRS, True))
    mock_clock.jump(INTERVAL_S)
    await wait_all_tasks_blocked()
    assert stage.facts[1:] == [PathFact("p0", True)]
    assert len(listener.asked) == 2 * (1 + MISSES + 1)


async def test_after_a_pause_of_ours_nothing_is_made_up_for(listener: FakeListener, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    stage = Stage(listener, probing=True)
    nursery.start_soon(stage.neighbourhood.run)
    await wait_all_tasks_blocked()
    mock_clock.jump(100 * INTERVAL_S)
    await wait_all_tasks_blocked()
    assert len(listener.asked) == 2 * 2
    assert stage.facts == []
