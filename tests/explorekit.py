"""Every state that a small world of calls can reach, on the real engines and the real bytes.

The network is the set of all datagrams ever sent: each may arrive at any time, any number of times, or never. That is loss, repetition,
reordering and unlimited delay at once. Timers may fire at any time: all delays are 0 and the clock stands still. Callers and callees
crash at any time, up to a number of lives; handlers begin and end at any time. `explore` visits states breadth first, checks the promises
in each, and then, on the whole graph, that from every state some continuation comes to rest.
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.config import CallConfig
from rdsx.calls.holder import Holder, HolderState, Terms
from rdsx.calls.outcome import EXECUTED, Ending, Executed
from rdsx.calls.outgoing import Call, CallState
from rdsx.calls.records import CallRow, HolderRow, Journal, OutgoingRow, Row, Rows, SessionRow, restore_callee, restore_caller
from rdsx.calls.wire import Code, Kind, Message, emit, parse_untrusted

CALLEE = ("10.0.0.2", 1)
MSG_TYPE = 7
NOW_S = 0.0
UNKNOWN = {Ending.PEER_RESTARTED, Ending.PEER_FORGOT, Ending.STORE_ROLLED_BACK}


class Violated(AssertionError):
    """A promise was broken. `path`: the shortest way there."""

    def __init__(self, promise: str, path: list[str]) -> None:
        super().__init__(f"{promise}, after {len(path)} steps:\n  " + "\n  ".join(path))
        self.promise = promise
        self.path = path


@dataclass(frozen=True)
class Bounds:
    """The size of a world, and what can happen in it."""

    calls: int = 1
    caller_lives: int = 1
    callee_lives: int = 1
    cancels: bool = False
    abandons: bool = False
    fails: bool = False
    """Handlers raise."""
    registers: bool = False
    """The handler is registered late: calls that come before are refused."""
    expires: bool = False
    """Leases end at any time."""
    evicts: bool = False
    """Half-open sessions age out at any time, and callees ask for releases."""
    refuses: bool = False
    """The socket refuses a datagram at any time."""
    closes: bool = False
    """The caller ends its sessions in order."""
    callee_ends: bool = False
    """The callee ends in order, and another life of it begins."""
    ticks: bool = True
    """Callers' timers fire. They add releases and later copies only: what was sent once can arrive again without them."""
    durability: str = "volatile"
    durable_calls: bool = False
    """Callers have a store, and ask that their calls survive them."""
    fleeting_calls: bool = False
    """... but not for all of them."""
    order: str = "none"
    window: int = 8
    max_half_open: int = 2
    max_running: int = 8
    max_holders: int = 1000
    max_reply_bytes: int = 1000
    max_sessions: int = 4
    """No OPEN arrives once so many session numbers are used."""
    callers: int = 1

    def config(self) -> CallConfig:
        return SharedConfig(
            window=self.window, resend_s=0, resend_max_s=0, working_resend_s=0, release_delay_s=0, query_after_s=0, half_open_s=0,
            busy_min_s=0, busy_max_s=0, max_half_open_per_peer=self.max_half_open, max_running=self.max_running,
            max_holders=self.max_holders, max_session_reply_bytes=self.max_reply_bytes, seed=1,
        )  # fmt: skip


class SharedConfig(CallConfig):
    """Settings that all states of a world share: they are not copied with it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        SHARED[id(self)] = self
        return shared_config, (id(self),)


SHARED: dict[int, SharedConfig] = {}


def shared_config(identity: int) -> SharedConfig:
    return SHARED[identity]


@dataclass
class Ghost:
    """What nobody in the world can see: what really happened to each call, by its name (life, number)."""

    begun: Counter[tuple[int, int]] = field(default_factory=Counter)
    committed: Counter[tuple[int, int]] = field(default_factory=Counter)
    ended: dict[tuple[int, int], tuple[Ending, bytes]] = field(default_factory=dict)
    newest_life: dict[int, int] = field(default_factory=dict)  # by caller: the newest whose call began
    started: int = 0
    restarted: int = 0
    expired: bool = False


@dataclass(frozen=True)
class Sent:
    """A datagram: whether it goes to the callee, which caller is its other end, its bytes and what they say."""

    to_callee: bool
    index: int
    data: bytes
    message: Message


class Datagrams:
    """Each datagram that was ever sent in any state, once. States hold its number."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[bool, int, bytes], int] = {}
        self.sent: list[Sent] = []

    def number(self, to_callee: bool, index: int, message: Message) -> int:
        data = emit(message)
        found = self.numbers.get((to_callee, index, data))
        if found is None:
            found = self.numbers[to_callee, index, data] = len(self.sent)
            self.sent.append(Sent(to_callee, index, data, parse_untrusted(data)))
        return found


DATAGRAMS = Datagrams()

Step = tuple[Any, ...]
"""The name of a method of `World` and its arguments."""


class World:
    """One state. Picklable, so that a step can be tried and undone."""

    caller_class: type[Caller] = Caller
    callee_class: type[Callee] = Callee
    journal_class: type[Journal] = Journal

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.config = bounds.config()
        self.net: set[int] = set()  # numbers in DATAGRAMS
        self.ghost = Ghost()
        self.disk: dict[Any, Row] = {}  # the callee's
        self.caller_disks: list[dict[Any, Row]] = [{} for _ in range(bounds.callers)]
        self.next_session = 1
        self.lives = [0] * bounds.callers
        self.started = [0] * bounds.callers
        self.nonce = 0  # drawn so far
        self.callers: list[Caller] = []
        self.calls: list[dict[int, Call]] = [{} for _ in range(bounds.callers)]
        self.begun: dict[tuple[int, int], Holder] = {}  # by (session, number): handlers that run
        self.refusing = False
        self.registered = not bounds.registers
        self.callee_life = 100
        self.callee: Callee
        for index in range(bounds.callers):
            self.new_caller(index)
        self.new_callee()

    # -- lives

    def new_caller(self, index: int) -> None:
        life = 10 * (index + 1) + (0 if self.bounds.durable_calls else self.lives[index])
        caller = self.caller_class(life, self.config, Ends(self, index), uniform=half, draw_nonce=Ends(self, index).draw_nonce)
        self.callers[index : index + 1] = [caller]
        self.calls[index] = {}
        if self.bounds.durable_calls:
            caller.journal, caller.store_id = self.journal_class(), bytes(16)
            recovered = restore_caller(caller, rows_of(self.caller_disks[index]), self.config, NOW_S)
            self.calls[index] = {call.payload[1]: call for call in recovered}
        else:
            self.started[index] = 0

    def new_callee(self) -> None:
        durable = self.bounds.durability != "volatile"
        life = self.callee_life if durable else self.callee_life + self.ghost.restarted
        self.begun = {}
        self.callee = callee = self.callee_class(life, self.config, Ends(self, -1))
        if durable:
            callee.journal = self.journal_class()
            restore_callee(callee, rows_of(self.disk, self.next_session), NOW_S)
        self.set_terms()

    def set_terms(self) -> None:
        if self.registered:
            terms = Terms(max_payload_bytes=100, order=self.bounds.order, lane="lane", journal=self.bounds.durability == "journal")  # type: ignore[arg-type]
            self.callee.terms[MSG_TYPE] = terms

    def commit(self) -> None:
        """What the journals gathered is on disk before anything else can happen."""
        journal = self.callee.journal
        if isinstance(journal, Journal):
            self.next_session = max(self.next_session, journal.next_session)
            write(journal, self.disk)
        for caller, disk in zip(self.callers, self.caller_disks, strict=True):
            if isinstance(caller.journal, Journal):
                write(caller.journal, disk)

    # -- steps

    def steps(self) -> Iterator[Step]:
        """Everything that can happen next."""
        bounds = self.bounds
        for number in sorted(self.net):
            sent = DATAGRAMS.sent[number]
            if not (sent.message.kind is Kind.OPEN and self.callee.next_session > bounds.max_sessions):
                yield "deliver", number
        for index, caller in enumerate(self.callers):
            if self.started[index] < bounds.calls and not caller.closing:
                yield "start", index
                if bounds.fleeting_calls:
                    yield "start_fleeting", index
                if bounds.refuses:
                    yield "start_refused", index
            if bounds.ticks and caller.next_s() <= NOW_S:
                yield "tick", index
            if any(peer.blocked for peer in caller.peers.values()):
                yield "writable", index
            for number, call in self.calls[index].items():
                if bounds.cancels and call.state in (CallState.QUEUED, CallState.SENT):
                    yield "cancel", index, number
                if bounds.abandons and call.state is not CallState.ENDED:
                    yield "abandon", index, number
            if self.lives[index] + 1 < bounds.caller_lives:
                yield "crash_caller", index
            if bounds.closes and not caller.closing and caller.peers:
                yield "close", index
        yield from self.callee_steps()

    def callee_steps(self) -> Iterator[Step]:
        bounds = self.bounds
        if self.callee.ready:
            yield ("begin",)
        for key in self.begun:
            yield "finish", key
            if bounds.fails:
                yield "fail", key
        if self.ghost.restarted + 1 < bounds.callee_lives:
            yield ("crash_callee",)
            if bounds.callee_ends:
                yield ("end_callee",)
        if not self.registered:
            yield ("register",)
        if bounds.evicts and self.callee.next_s() <= NOW_S:
            yield ("tick_callee",)
        if bounds.expires:
            for number in self.callee.sessions:
                yield "expire", number

    def take(self, step: Step) -> None:
        """Make one step, and judge what came of it."""
        name, *arguments = step
        getattr(self, name)(*arguments)
        self.callee._resets.clear()
        self.callee.counters.clear()
        for caller in self.callers:
            caller.counters.clear()
        self.commit()
        self.check()

    def deliver(self, number: int) -> None:
        sent = DATAGRAMS.sent[number]
        if sent.to_callee:
            self.callee.handle(address(sent.index), sent.message, NOW_S)
        else:
            self.callers[sent.index].handle(CALLEE, sent.message, NOW_S)

    def name(self, index: int, number: int) -> tuple[int, int]:
        return self.callers[index].life, number

    def start(self, index: int, durable: bool = True) -> None:
        self.started[index] += 1
        caller, number = self.callers[index], self.started[index]
        peer = caller.peer(CALLEE)
        durable = durable and self.bounds.durable_calls
        call = caller.start(peer, MSG_TYPE, bytes((caller.life, number)), NOW_S, durable=durable)
        self.calls[index][number] = call
        self.note_end(index, call)

    def start_fleeting(self, index: int) -> None:
        self.start(index, durable=False)

    def start_refused(self, index: int) -> None:
        self.refusing = True
        self.start(index)
        self.refusing = False

    def writable(self, index: int) -> None:
        self.callers[index].writable(CALLEE, NOW_S)

    def tick(self, index: int) -> None:
        self.callers[index].tick(NOW_S)

    def cancel(self, index: int, number: int) -> None:
        self.callers[index].cancel(self.calls[index][number], NOW_S)

    def abandon(self, index: int, number: int) -> None:
        self.callers[index].abandon(self.calls[index][number], NOW_S)

    def crash_caller(self, index: int) -> None:
        durable = {number for number, call in self.calls[index].items() if call.durable and call.outcome is None}
        self.lives[index] += 1
        self.new_caller(index)
        if set(self.calls[index]) != durable:
            raise Violated(f"P7: durable calls {sorted(durable)} have no outcome, and {sorted(self.calls[index])} were recovered", [])

    def close(self, index: int) -> None:
        self.callers[index].close(NOW_S)
        self.callers[index].part(NOW_S)

    def crash_callee(self) -> None:
        self.ghost.restarted += 1
        self.new_callee()

    def end_callee(self) -> None:
        self.callee.close()
        for key in list(self.begun):
            self.callee.finish(self.begun.pop(key), Code.CANCELLED_WHILE_RUNNING, NOW_S)
        self.callee.refuse_waiting(NOW_S)
        self.callee.part()
        self.check()
        self.commit()
        self.crash_callee()

    def register(self) -> None:
        self.registered = True
        self.set_terms()

    def tick_callee(self) -> None:
        self.callee.tick(NOW_S)

    def expire(self, number: int) -> None:
        self.ghost.expired = True
        self.callee.retire(self.callee.sessions[number], "expired")

    def begin(self) -> None:
        holder = self.callee.poll_start()
        if holder is None:
            return
        self.check_turn(holder)
        life, number = holder.payload
        index = life // 10 - 1
        ghost = self.ghost
        if life < ghost.newest_life.get(index, 0):
            raise Violated("P5: a call of a dead life began after one of its successor", [])
        ghost.newest_life[index] = life
        ghost.begun[life, number] += 1
        holder.owner = (life, number)
        self.begun[holder.session.number, holder.seq] = holder
        self.callee.begun(holder)

    def check_turn(self, holder: Holder) -> None:
        """A call in a lane begins after every smaller number has begun, or after it has ended, or when it never will."""
        session, order = holder.session, self.bounds.order
        for seq in range(session.floor, holder.seq) if order != "none" else ():
            other = session.holders.get(seq)
            if other is None and not session.is_released(seq):
                raise Violated(f"order: {holder.seq} began before {seq} came", [])
            if other is not None and (other.state is HolderState.WAITING or (other.state is HolderState.RUNNING and order == "serial")):
                raise Violated(f"order: {holder.seq} began while {seq} was {other.state.name}", [])

    def finish(self, key: tuple[int, int]) -> None:
        holder = self.begun.pop(key)
        self.ghost.committed[holder.owner] += 1
        self.callee.finish(holder, Code.OK, NOW_S, reply=b"r" + bytes(holder.owner))

    def fail(self, key: tuple[int, int]) -> None:
        self.callee.finish(self.begun.pop(key), Code.HANDLER_FAILED, NOW_S)

    # -- what engines ask for

    def note_end(self, index: int, call: Call) -> None:
        if call.outcome is None:
            return
        for number, known in self.calls[index].items():
            if known is call:
                self.ghost.ended.setdefault(self.name(index, number), (call.outcome.ending, call.outcome.payload))

    # -- judgement

    def check(self) -> None:
        ghost, transactional = self.ghost, self.bounds.durability == "transaction"
        for name, count in (ghost.committed if transactional else ghost.begun).items():
            if count > 1:
                raise Violated(f"P1: {name} ran {count} times", [])
        for name, (ending, payload) in ghost.ended.items():
            self.check_end(name, ending, payload)
        for session in self.callee.sessions.values():
            if len(session.holders) > self.bounds.window:
                raise Violated(f"P6: {len(session.holders)} holders in a window of {self.bounds.window}", [])
        self.check_sums()

    def check_end(self, name: tuple[int, int], ending: Ending, payload: bytes) -> None:
        ghost = self.ghost
        executed = EXECUTED[ending]
        ran = ghost.committed if self.bounds.durability == "transaction" else ghost.begun
        if ending is Ending.REPLIED and (payload != b"r" + bytes(name) or not ghost.committed[name]):
            raise Violated(f"P2: {name} got {payload!r}", [])
        if executed is Executed.NO and ran[name]:
            raise Violated(f"P4: {name} ended as {ending.value}, and ran", [])
        if executed is Executed.YES and not ran[name]:
            raise Violated(f"P4: {name} ended as {ending.value}, and never ran", [])
        if ending in UNKNOWN and not ghost.expired and (not ghost.restarted or self.bounds.durability != "volatile"):
            raise Violated(f"P3: {name} ended as {ending.value}, though nobody restarted or forgot", [])

    def check_sums(self) -> None:
        callee = self.callee
        held = [holder for session in callee.sessions.values() for holder in session.holders.values()]
        sums = (len(held), sum(len(holder.reply) for holder in held), sum(session.confirmed for session in callee.sessions.values()))
        if sums != (callee.holders, callee.reply_bytes, callee.confirmed):
            raise Violated(f"sums: {sums} is {(callee.holders, callee.reply_bytes, callee.confirmed)}", [])
        waiting = sum(holder.state is HolderState.WAITING for holder in held)
        if callee.ready > waiting or callee.running != len(self.begun):
            raise Violated(f"sums: ready {callee.ready} of {waiting}, running {callee.running} of {len(self.begun)}", [])
        for caller in self.callers:
            for peer in caller.peers.values():
                unanswered = [*peer.queue, *(peer.session.live.values() if peer.session else ())]
                if peer.request_bytes != sum(len(call.payload) for call in unanswered):
                    raise Violated("sums: request bytes", [])
                if peer.session is not None:
                    self.check_numbers(peer.session.number, peer.session.life, peer.session.next_seq)

    def check_numbers(self, session: int, life: int, next_seq: int) -> None:
        """R12: each number below the next one was handed to the socket, and was another call; a caller that was restored skips some."""
        sent = {
            (each.seq, each.payload)
            for each in (DATAGRAMS.sent[number].message for number in self.net)
            if each.kind is Kind.CALL and (each.session, each.life) == (session, life)
        }
        numbers, used = sorted(seq for seq, _ in sent), list(range(1, next_seq))
        if numbers != used and not (self.bounds.durable_calls and set(numbers) <= set(used) and len(set(numbers)) == len(numbers)):
            raise Violated(f"R12: numbers {numbers} were sent, the next one is {next_seq}", [])

    def is_at_rest(self) -> bool:
        """All calls of the living callers were made and have ended, and nothing is held for them."""
        for index, caller in enumerate(self.callers):
            if not caller.closing and self.started[index] < self.bounds.calls:
                return False
            if any(call.outcome is None for call in self.calls[index].values()):
                return False
            peer = caller.peers.get(CALLEE)
            if peer is not None and peer.session is not None:
                session = self.callee.sessions.get(peer.session.number)
                if session is not None and session.caller_life == caller.life and session.holders:
                    return False
        return True

    def key(self) -> Any:
        """Two states with one key have the same future."""
        ghost = self.ghost
        return (
            frozenset(self.net),
            tuple(caller_key(caller, self.calls[index]) for index, caller in enumerate(self.callers)),
            callee_key(self.callee, self.begun),
            tuple(self.lives), tuple(self.started), self.nonce, self.registered,
            frozenset(ghost.begun.items()), frozenset(ghost.committed.items()), frozenset(ghost.ended.items()),
            frozenset(ghost.newest_life.items()), ghost.restarted, ghost.expired,
            frozenset(self.disk.items()), self.next_session, tuple(frozenset(disk.items()) for disk in self.caller_disks),
        )  # fmt: skip


def write(journal: Journal, disk: dict[Any, Row]) -> None:
    for key, row in journal.take().items():
        if row is None:
            disk.pop(key, None)
        else:
            disk[key] = row


def rows_of(disk: dict[Any, Row], next_session: int = 1) -> Rows:
    """What a store would read."""
    rows = Rows(next_session=next_session)
    lists: dict[type[Row], list[Any]] = {
        SessionRow: rows.sessions, HolderRow: rows.holders, OutgoingRow: rows.outgoing, CallRow: rows.calls,
    }  # fmt: skip
    for row in disk.values():
        lists[type(row)].append(row)
    return rows


def address(index: int) -> tuple[str, int]:
    """Of a caller."""
    return ("10.0.0.1", index)


def half() -> float:
    return 0.5


class Ends:
    """What the engines of one side see of the world: `Outside` and `CalleeOutside`. `index`: the caller, or -1."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index

    def send(self, to: Any, message: Message) -> bool:
        world = self.world
        if self.index >= 0:
            if world.refusing:
                return False
            world.net.add(DATAGRAMS.number(True, self.index, message))
            return True
        if message.kind in (Kind.STATUS, Kind.WORKING, Kind.BUSY, Kind.RELEASED) and message.session not in world.callee.sessions:
            raise Violated(f"R13: {message.kind.name} of a session that has ended", [])
        world.net.add(DATAGRAMS.number(False, to[1], message))
        return True

    def draw_nonce(self) -> int:
        self.world.nonce += 1
        return self.world.nonce

    def forget_sent(self, to: Any) -> None:
        """The network forgets nothing."""

    def call_ended(self, call: Call) -> None:
        self.world.note_end(self.index, call)

    def caller_gone(self, holder: Holder) -> None:
        """It goes on."""

    def stop(self, holder: Holder) -> None:
        """It goes on: the handler is not cancellable."""


def caller_key(caller: Caller, calls: dict[int, Call]) -> Any:
    """What a caller's future depends on; counters are left out."""
    peer = caller.peers.get(CALLEE)
    if peer is None:
        return caller.closing
    session = peer.session
    numbers = tuple((number, call.state, call.seq, call.covers, call.durable) for number, call in calls.items())
    of_peer = peer.nonce, peer.closing, peer.blocked, peer.silent, peer.hinted_life, peer.calls_due_s, peer.open_due_s, caller.closing
    of_session = session and (
        session.life, session.number, session.next_seq, session.floor, session.credit, session.version, session.told, session.abandoned,
        session.release_due_s, session.release_covers, session.release_floor, session.reserved,
    )  # fmt: skip
    return numbers, of_peer, of_session, caller.next_s()


def callee_key(callee: Callee, begun: dict[tuple[int, int], Holder]) -> Any:
    sessions = tuple(
        (
            session.number, session.caller_life, session.nonce, session.record.address, session.confirmed, session.floor, session.released,
            tuple(sorted((seq, each.state, each.code, each.reply, each.payload) for seq, each in session.holders.items())),
            tuple(sorted((name, tuple(sorted(lane.waiting)), lane.pending and lane.pending.seq, lane.running)
                         for name, lane in session.lanes.items())),
        )
        for session in callee.sessions.values()
    )  # fmt: skip
    evicted = tuple(sorted((record.address, tuple(record.evicted)) for record in callee.records.values()))
    running = tuple(sorted((*key, holder.session.retired) for key, holder in begun.items()))
    return sessions, evicted, running, callee.next_session


@dataclass
class Found:
    """What an exploration saw."""

    states: int
    transitions: int
    complete: bool
    resting: int


def explore(bounds: Bounds, world_class: type[World] = World, max_states: int = 10**9) -> Found:
    """Visit every state that can be reached, at most `max_states`. Raises Violated with the shortest path to a broken promise.

    Progress is checked if all was visited; without timers there is none to check.
    """
    first = world_class(bounds)
    states: dict[Any, int] = {first.key(): 0}
    came: list[tuple[int, Step]] = [(-1, ())]
    frontier: deque[tuple[int, bytes]] = deque([(0, pickle.dumps(first, -1))])
    before: list[list[int]] = [[]]
    resting = [0] if first.is_at_rest() else []
    bounded: list[int] = []
    transitions = 0
    while frontier and len(states) < max_states:
        here, frozen = frontier.popleft()
        world = pickle.loads(frozen)
        if world.callee.next_session > bounds.max_sessions:
            bounded.append(here)  # what an OPEN would lead to is not looked at
        unchanged = world.key()
        for step in list(world.steps()):
            try:
                world.take(step)
            except Violated as violation:
                raise Violated(violation.promise, [*path(came, here), tell(step)]) from None
            transitions += 1
            key = world.key()
            there = states.get(key)
            if there is None:
                there = states[key] = len(states)
                came.append((here, step))
                before.append([])
                frontier.append((there, pickle.dumps(world, -1)))
                if world.is_at_rest():
                    resting.append(there)
            before[there].append(here)
            if key != unchanged:
                world = pickle.loads(frozen)
    if not frontier and bounds.ticks:
        check_progress(before, [*resting, *bounded], came)
    return Found(len(states), transitions, not frontier, len(resting))


def check_progress(before: list[list[int]], goals: list[int], came: list[tuple[int, Step]]) -> None:
    """Some continuation of every state comes to rest."""
    reached = set(goals)
    todo = list(goals)
    while todo:
        for state in before[todo.pop()]:
            if state not in reached:
                reached.add(state)
                todo.append(state)
    stuck = [state for state in range(len(before)) if state not in reached]
    if stuck:
        raise Violated(f"P3: {len(stuck)} of {len(before)} states never come to rest", path(came, stuck[0]))


def path(came: list[tuple[int, Step]], state: int) -> list[str]:
    steps = []
    while state > 0:
        state, step = came[state]
        steps.append(tell(step))
    return steps[::-1]


def tell(step: Step) -> str:
    """A step for people."""
    if step[0] != "deliver":
        return " ".join(map(str, step))
    sent = DATAGRAMS.sent[step[1]]
    message = sent.message
    to = "callee" if sent.to_callee else f"caller {sent.index}"
    named = (
        f"life {message.life} session {message.session} seq {message.seq} floor {message.floor} ranges {message.ranges} code {message.code}"
    )
    return f"{message.kind.name} reaches the {to}: {named} {message.payload.hex()}"
