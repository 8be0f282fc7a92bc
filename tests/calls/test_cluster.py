"""Real nodes and real couriers as hypothesis sees them: calls, faults of the network, restarts, and an account of every call.

The rules write down what is to happen, and how much virtual time passes in between; then `rdsx.testing.run` plays it. When all has
happened the network is healed, and everything must come to rest. `RDSX_HYPOTHESIS=explore` draws new examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import rdsx
from callskit import node_config
from rdsx.calls import CallConfig, CallError, Courier, Ending, Executed, IncomingCall, Outcome, PendingCall
from rdsx.calls.caller import Caller
from rdsx.calls.outgoing import Peer, Session
from rdsx.testing import Faults, VirtualNetwork, run

HOSTS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
PORT = 7000
FREE, SERIAL = 1, 2  # types of calls: without order, and one after another
TAKES_S = [0.0, 0.01, 3.0, 40.0]
REST_S = 25 * 8 * TAKES_S[-1] + 600.0  # virtual: all calls of a script one after another, and all patience of everybody

hosts = st.sampled_from(HOSTS)
pairs = st.permutations(HOSTS).map(lambda order: (order[0], order[1]))


class Life:
    """One run of a courier on a node of its own."""

    def __init__(self, host: str, number: int) -> None:
        self.host = host
        self.number = number
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.courier: Courier


class Play:
    """The cluster while the script runs, and the account."""

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.network = VirtualNetwork(seed, Faults(partial_writes=0.2))
        self.nursery = nursery
        self.lives: dict[str, Life] = {}
        self.born = 0
        self.runs: Counter[int] = Counter()
        self.serial: Counter[tuple[int, int]] = Counter()  # handlers that run now, by life and session
        self.broken: list[str] = []  # what handlers saw: raising there would only be a result
        self.made: list[tuple[Life, PendingCall]] = []
        self.restarted: set[str] = set()

    # -- lives

    async def begin(self, host: str) -> None:
        self.born += 1
        life = self.lives[host] = Life(host, self.born)
        await self.nursery.start(self._live, life)

    async def _live(self, life: Life, task_status: trio.TaskStatus[None]) -> None:
        config = CallConfig(seed=life.number, window=6, max_half_open_per_peer=2, max_running=3, max_holders=12, max_queued_calls=30)
        with life.scope:
            async with (
                rdsx.open_node(life.host, transport=self.network, config=node_config(life.number)) as node,
                rdsx.open_courier(await node.bind(PORT), config=config) as life.courier,
            ):
                handle = partial(self._handle, life)
                life.courier.register(FREE, handle, cancellable=True)
                life.courier.register(SERIAL, handle, order="serial")
                task_status.started()
                await trio.sleep_forever()
        life.over.set()

    async def _handle(self, life: Life, call: IncomingCall) -> bytes:
        name, seconds = call.payload.split()
        self.runs[int(name)] += 1
        if self.runs[int(name)] > 1:
            self.broken.append(f"call {int(name)} ran twice")
        lane = (life.number, call.session)
        self.serial[lane] += call.msg_type == SERIAL
        if self.serial[lane] > 1:
            self.broken.append(f"calls of lane {lane} run at once")
        try:
            await trio.sleep(float(seconds))
        finally:
            self.serial[lane] -= call.msg_type == SERIAL
        return b"ran " + name

    async def restart(self, host: str) -> None:
        life = self.lives[host]
        self.restarted.add(host)
        self.network.crash(host)
        life.scope.cancel()
        await life.over.wait()
        await self.begin(host)

    # -- what rules ask for

    async def call(self, who: str, to: str, msg_type: int, seconds: float) -> None:
        life = self.lives[who]
        payload = b"%d %f" % (len(self.made), seconds)
        try:
            pending = life.courier.start_call((to, PORT), msg_type, payload)
        except trio.WouldBlock:
            return
        self.made.append((life, pending))

    async def give_up(self, pick: int, how: str) -> None:
        if self.made:
            life, pending = self.made[pick % len(self.made)]
            if self.lives[life.host] is life:
                if how == "abandon":
                    pending.abandon()
                else:
                    self.nursery.start_soon(pending.cancel)

    async def trouble(self, kind: str, one: str, other: str) -> None:
        getattr(self.network, kind)(one, other)

    # -- judgement

    def check(self) -> None:
        assert not self.broken
        for name, (_, pending) in enumerate(self.made):
            if pending.outcome is not None:
                self._check_end(name, pending.peer[0], pending.outcome)
        for life_of in self.lives.values():
            statistics = life_of.courier.statistics()
            assert statistics.holders <= 12 + len(statistics.peers)  # the lowest that is missing is always let in
            assert statistics.running <= 3
            assert not list(life_of.courier._driver._monitor._sums())

    def _check_end(self, name: int, callee: str, outcome: Outcome) -> None:
        if outcome.executed is not Executed.MAYBE:
            assert self.runs[name] == (outcome.executed is Executed.YES), f"call {name} ended as {outcome}, and ran {self.runs[name]} times"
        if outcome.ending is Ending.REPLIED:
            assert outcome.payload == b"ran %d" % name
        if outcome.ending in (Ending.PEER_RESTARTED, Ending.PEER_FORGOT):
            assert callee in self.restarted, f"call {name}: nobody restarted, and nobody forgot"

    async def rest(self) -> None:
        """Every call of the living ends, and nothing is held for them."""
        self.network.heal_all()
        with trio.move_on_after(REST_S):
            for life, pending in self.made:
                if self.lives[life.host] is life:
                    try:
                        await pending.wait()
                    except CallError:
                        continue
            while any(self._held_for_the_living()):
                await trio.sleep(1.0)
            self.check()
            return
        unfinished = [pending for _, pending in self.made if pending.outcome is None]
        raise AssertionError(f"no rest: {unfinished}, {list(self._held_for_the_living())} holders")

    def _held_for_the_living(self) -> list[int]:
        living = {life.courier.life for life in self.lives.values()}
        sessions = [session for life in self.lives.values() for session in life.courier._driver.callee.sessions.values()]
        return [len(session.holders) for session in sessions if session.caller_life in living and session.holders]


Act = Callable[[Play], Awaitable[Any]]


async def play(script: list[tuple[Act, float]], seed: int) -> Play:
    async with trio.open_nursery() as nursery:
        cluster = Play(seed, nursery)
        for host in HOSTS:
            await cluster.begin(host)
        for act, pause_s in script:
            await act(cluster)
            await trio.sleep(pause_s)
            cluster.check()
        await cluster.rest()
        nursery.cancel_scope.cancel()
    return cluster


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.script: list[tuple[Act, float]] = []

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.seed = seed

    @rule(pair=pairs, msg_type=st.sampled_from([FREE, SERIAL]), takes_s=st.sampled_from(TAKES_S), count=st.integers(1, 8))
    def call(self, pair: tuple[str, str], msg_type: int, takes_s: float, count: int) -> None:
        for _ in range(count):
            self.script.append((lambda cluster: cluster.call(*pair, msg_type, takes_s), 0.0))

    @rule(pick=st.integers(0, 1000), how=st.sampled_from(["cancel", "abandon"]))
    def give_up(self, pick: int, how: str) -> None:
        self.script.append((lambda cluster: cluster.give_up(pick, how), 0.0))

    @rule(kind=st.sampled_from(["cut", "half_open", "partition", "heal"]), pair=pairs)
    def trouble(self, kind: str, pair: tuple[str, str]) -> None:
        self.script.append((lambda cluster: cluster.trouble(kind, *pair), 0.0))

    @rule(host=hosts)
    def restart(self, host: str) -> None:
        self.script.append((lambda cluster: cluster.restart(host), 0.0))

    @rule(seconds=st.sampled_from([0.0005, 0.005, 0.06, 1.3, 20.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.script.append((pass_on, seconds))

    def teardown(self) -> None:
        if self.script:
            run(partial(play, self.script, self.seed), seed=self.seed)


async def pass_on(cluster: Play) -> None:
    """Nothing but time."""


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=40, stateful_step_count=25)


def test_a_call_that_runs_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rule R3 removed: what was sent to a former life is sent again."""

    def take_back(self: Caller, peer: Peer, session: Session, *, restarted: bool, now_s: float) -> None:
        self._take_back(peer, session, now_s)

    monkeypatch.setattr(Caller, "_lose_session", take_back)
    script: list[tuple[Act, float]] = [
        (lambda cluster: cluster.call(HOSTS[0], HOSTS[1], FREE, 3.0), 1.0),
        (lambda cluster: cluster.restart(HOSTS[1]), 1.0),
    ]
    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="call 0 ran twice"), allow_unwrapped=True, flatten_subgroups=True):
        run(play, script, 1)
