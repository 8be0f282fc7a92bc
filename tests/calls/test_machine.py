"""Couriers as hypothesis sees them: three couriers that call one another, random faults, and an account of every call.

Two engines each, every datagram held by the test: delivered in any order, repeated, lost. In the end faults stop, and everything must come
to rest within a bounded number of steps. `RDSX_HYPOTHESIS=explore` draws new examples.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.config import CallConfig
from rdsx.calls.holder import Holder, HolderState, Terms
from rdsx.calls.outcome import Ending, Executed
from rdsx.calls.outgoing import Call, CallState
from rdsx.calls.wire import Code, Kind, Message, emit, parse_untrusted

COURIERS = 3
FREE, SERIAL = 1, 2  # types of calls: without order, and one after another
REST_STEPS = 3000


class Courier:
    """One life at one address: both engines and what its handlers do."""

    def __init__(self, machine: Calls, index: int, life: int) -> None:
        self.machine = machine
        self.index = index
        self.life = life
        config = CallConfig(window=6, max_half_open_per_peer=2, max_running=3, max_holders=12, max_queued_calls=30, seed=1)
        self.caller = Caller(life, config, self, uniform=lambda: 0.5, draw_nonce=machine.draw_nonce)
        self.callee = Callee(life, config, self)
        self.callee.terms[FREE] = Terms(100)
        self.callee.terms[SERIAL] = Terms(100, order="serial")
        self.running: list[Holder] = []

    def send(self, address: Any, message: Message) -> bool:
        self.machine.wire.append((self.index, address[1], emit(message)))
        return True

    def forget_sent(self, address: Any) -> None:
        """The wire forgets by itself."""

    def call_ended(self, call: Call) -> None:
        assert call.outcome is not None
        self.machine.note_end(self, call)

    def caller_gone(self, holder: Holder) -> None:
        """It goes on."""

    def stop(self, holder: Holder) -> None:
        self.machine.now_s += 0.001
        self.running.remove(holder)
        self.callee.finish(holder, Code.CANCELLED_WHILE_RUNNING, self.machine.now_s)

    def begin_all(self) -> None:
        while (holder := self.callee.poll_start()) is not None:
            name = int(holder.payload)
            self.machine.runs[name] += 1
            if holder.msg_type == SERIAL:
                assert not [other for other in self.running if other.msg_type == SERIAL and other.session is holder.session]
            holder.owner = name
            self.running.append(holder)
            self.callee.begun(holder)


class Calls(RuleBasedStateMachine):
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.nonce = 0
        self.lives = 0
        self.wire: list[tuple[int, int, bytes]] = []  # (from, to, datagram)
        self.runs: Counter[int] = Counter()
        self.target: dict[int, int] = {}  # call -> life of the callee's courier when it was made
        self.ended: dict[int, Ending] = {}
        self.made: dict[int, tuple[Courier, Call]] = {}
        self.restarted = [False] * COURIERS
        self.couriers: list[Courier] = []

    @initialize()
    def begin(self) -> None:
        self.couriers = [self.new_life(index) for index in range(COURIERS)]

    def new_life(self, index: int) -> Courier:
        self.lives += 1
        return Courier(self, index, self.lives)

    def draw_nonce(self) -> int:
        self.nonce += 1
        return self.nonce

    def note_end(self, courier: Courier, call: Call) -> None:
        assert call.outcome is not None
        if call.owner is not None:
            self.end(call.owner, call)

    def end(self, name: int, call: Call) -> None:
        assert call.outcome is not None
        assert name not in self.ended, "a call ends once"
        self.ended[name] = call.outcome.ending
        if call.outcome.ending is Ending.REPLIED:
            assert call.outcome.payload == b"ran %d" % name
            assert self.runs[name] == 1
        if call.outcome.executed is Executed.YES:
            assert self.runs[name] == 1
        if call.outcome.ending in (Ending.PEER_RESTARTED, Ending.PEER_FORGOT):
            assert self.restarted[call.peer.address[1]], "nobody forgot, and nobody restarted"

    # -- what happens

    @rule(target=calls, who=st.integers(0, COURIERS - 1), to=st.integers(1, COURIERS - 1), msg_type=st.sampled_from([FREE, SERIAL]))
    def call(self, who: int, to: int, msg_type: int) -> int:
        courier = self.couriers[who]
        name = len(self.made)
        call = courier.caller.start(courier.caller.peer(("x", (who + to) % COURIERS)), msg_type, b"%d" % name, self.now_s)
        self.made[name] = courier, call
        call.owner = name
        if call.outcome is not None:
            self.end(name, call)
        return name

    @rule(name=calls, how=st.sampled_from(["cancel", "abandon"]))
    def give_up(self, name: int, how: str) -> None:
        courier, call = self.made[name]
        if self.couriers[courier.index] is courier:
            getattr(courier.caller, how)(call, self.now_s)

    @rule(pick=st.integers(0, 10**6), what=st.sampled_from(["deliver", "deliver", "deliver", "repeat", "lose"]))
    def move(self, pick: int, what: str) -> None:
        if self.wire:
            at = pick % len(self.wire)
            if what != "lose":
                self.deliver(self.wire[at])
            if what != "repeat":
                del self.wire[at]

    @rule()
    def deliver_all_in_order(self) -> None:
        for _ in range(len(self.wire)):
            self.deliver(self.wire.pop(0))

    def deliver(self, datagram: tuple[int, int, bytes]) -> None:
        source, to, data = datagram
        message = parse_untrusted(data)
        courier = self.couriers[to]
        if message.kind in (Kind.OPEN, Kind.CALL, Kind.RELEASE, Kind.CANCEL, Kind.CLOSE, Kind.GONE):
            courier.callee.handle(("x", source), message, self.now_s)
        else:
            courier.caller.handle(("x", source), message, self.now_s)
        courier.begin_all()

    @rule(who=st.integers(0, COURIERS - 1), pick=st.integers(0, 100), code=st.sampled_from([Code.OK, Code.OK, Code.HANDLER_FAILED]))
    def finish(self, who: int, pick: int, code: Code) -> None:
        courier = self.couriers[who]
        if courier.running:
            holder = courier.running.pop(pick % len(courier.running))
            courier.callee.finish(holder, code, self.now_s, reply=b"ran %d" % holder.owner if code is Code.OK else b"")
            courier.begin_all()

    @rule(seconds=st.sampled_from([0.06, 1.3, 20.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for courier in self.couriers:
            courier.caller.tick(self.now_s)
            courier.callee.tick(self.now_s)
            courier.begin_all()

    @rule(who=st.integers(0, COURIERS - 1))
    def restart(self, who: int) -> None:
        self.restarted[who] = True
        self.couriers[who] = self.new_life(who)

    # -- what holds

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert all(count == 1 for count in self.runs.values())

    @invariant()
    def what_never_ran_did_not_run(self) -> None:
        for name, ending in self.ended.items():
            _, call = self.made[name]
            assert call.outcome is not None
            if call.outcome.executed is Executed.NO:
                assert self.runs[name] == 0, ending

    @invariant()
    def tables_are_bounded_and_add_up(self) -> None:
        for courier in self.couriers:
            callee = courier.callee
            held = [holder for session in callee.sessions.values() for holder in session.holders.values()]
            assert len(held) == callee.holders
            assert sum(len(holder.reply) for holder in held) == callee.reply_bytes
            assert callee.running == len(courier.running) <= callee.config.max_running
            assert callee.ready <= sum(holder.state is HolderState.WAITING for holder in held)
            for session in callee.sessions.values():
                assert len(session.holders) <= callee.config.window

    def teardown(self) -> None:
        """Faults stop: everything comes to rest, and every call of a living caller has ended."""
        for _ in range(REST_STEPS):
            if self.wire:
                self.deliver(self.wire.pop(0))
            elif any(courier.running for courier in self.couriers):
                for who in range(COURIERS):
                    self.finish(who, 0, Code.OK)
            elif self.unfinished() or any(self.holders_of_the_living()):
                self.pass_time(16.0)
            else:
                break
            self.nothing_runs_twice()
        else:
            raise AssertionError(f"no rest: {self.unfinished()}, {self.holders_of_the_living()}")
        self.what_never_ran_did_not_run()

    def unfinished(self) -> list[int]:
        living = [(name, call) for name, (courier, call) in self.made.items() if self.couriers[courier.index] is courier]
        return [name for name, call in living if call.state is not CallState.ENDED]

    def holders_of_the_living(self) -> list[int]:
        lives = {courier.life for courier in self.couriers}
        return [
            len(session.holders)
            for courier in self.couriers
            for session in courier.callee.sessions.values()
            if session.caller_life in lives and session.holders
        ]


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=60, stateful_step_count=50)
