"""The engines with one rule removed each. The exploration must find what each rule prevents, or it has lost its teeth.

A mutant is a `World` with other engine classes, the bounds of the smallest world that shows the damage, and the promise that breaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from explorekit import NOW_S, Bounds, World
from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.holder import CallerRecord, Holder, HolderState, IncomingSession
from rdsx.calls.outcome import Ending, Outcome
from rdsx.calls.outgoing import Call, CallState, Peer, Session
from rdsx.calls.records import Journal
from rdsx.calls.wire import Code, Kind, Message


class EvictsDone(World):
    """R1: a result makes room for others."""

    def steps(self) -> Any:
        yield from super().steps()
        for session in self.callee.sessions.values():
            for holder in session.holders.values():
                if holder.state is HolderState.DONE:
                    yield "evict_done", session.number, holder.seq

    def evict_done(self, number: int, seq: int) -> None:
        self.callee._dropped(self.callee.sessions[number].holders.pop(seq))


class TakesForeign(World):
    """R2: a call of an unknown session begins a new one."""

    class callee_class(Callee):
        def handle(self, address: Any, message: Message, now_s: float) -> None:
            if message.kind is Kind.CALL and (message.session not in self.sessions or message.life != self.life):
                record = self.records.get(address) or CallerRecord(address)
                self.add_session(IncomingSession(record, message.session, 0, 0, now_s))
                message = Message(
                    Kind.CALL, self.life, message.session, message.seq, message.floor, message.msg_type, payload=message.payload
                )
            super().handle(address, message, now_s)

    def check_sums(self) -> None:
        """Not kept: sessions are not made as they should be."""


class ResendsAfterReset(World):
    """R3: what was sent to a former life is sent again."""

    class caller_class(Caller):
        def _lose_session(self, peer: Peer, session: Session, *, restarted: bool, now_s: float) -> None:
            self._take_back(peer, session, now_s)


class ReleasesLive(World):
    """R4: the floor passes numbers whose result is wanted."""

    class caller_class(Caller):
        def _call_message(self, session: Session, call: Call, seq: int) -> tuple[int, Message]:
            covers, message = super()._call_message(session, call, seq)
            message.floor = seq + 1
            return covers, message


class RefusesWithoutHolder(World):
    """R5: a refusal is not remembered."""

    class callee_class(Callee):
        def _refuse(self, holder: Holder, code: Code, text: str, now_s: float) -> None:
            super()._refuse(holder, code, text, now_s)
            self._dropped(holder.session.holders.pop(holder.seq))


class CallsBeforeOpened(World):
    """R6: calls go out to whatever life is there."""

    class callee_class(Callee):
        def handle(self, address: Any, message: Message, now_s: float) -> None:
            if message.session == 1 and message.life == 0:
                if 1 not in self.sessions:
                    self.add_session(IncomingSession(CallerRecord(address), 1, 0, 0, now_s))
                message = Message(message.kind, self.life, 1, message.seq, message.floor, message.msg_type, payload=message.payload)
            super().handle(address, message, now_s)

    class caller_class(Caller):
        def _open(self, peer: Peer, now_s: float) -> None:
            peer.session = Session(0, 1, 8, 8, 100)
            peer.session.sent_s = now_s
            self._pump(peer, now_s)


class OpenRetires(World):
    """R7: opening a session ends those before it."""

    class callee_class(Callee):
        def _open(self, record: CallerRecord, life: int, nonce: int, now_s: float) -> IncomingSession | None:
            for session in list(record.sessions.values()):
                self.retire(session, "superseded")
            return super()._open(record, life, nonce, now_s)


class ConfirmingRetiresAll(World):
    """R8: confirming a session ends newer ones too."""

    class callee_class(Callee):
        def _confirm(self, session: IncomingSession) -> None:
            for other in [other for other in session.record.sessions.values() if other.number > session.number]:
                self.retire(other, "superseded")
            super()._confirm(session)


class ForgetsEvicted(World):
    """R9: which half-open sessions made room is forgotten."""

    class callee_class(Callee):
        def evict(self, session: IncomingSession) -> None:
            super().evict(session)
            session.record.evicted.clear()


class ReusesNumbers(World):
    """R10: the number of an abandoned call is used again."""

    class caller_class(Caller):
        def abandon(self, call: Call, now_s: float) -> None:
            super().abandon(call, now_s)
            session = call.peer.session
            if session is not None and call.seq and call.seq == session.next_seq - 1:
                session.next_seq = session.floor = call.seq


class ReusesSessions(World):
    """R10: the number of a session that was retired is used again."""

    class callee_class(Callee):
        def retire(self, session: IncomingSession, reason: str) -> None:
            super().retire(session, reason)
            self.next_session = session.number


class LooksUpFirst(World):
    """R11: between looking a holder up and inserting one, something else may happen."""

    class callee_class(Callee):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.looked_up: list[tuple[int, Message]] = []

        def _admit(self, session: IncomingSession, message: Message, now_s: float) -> None:
            if len(self.looked_up) < 2:
                self.looked_up.append((session.number, message))

    def steps(self) -> Any:
        yield from super().steps()
        if self.callee.looked_up:  # type: ignore[attr-defined]
            yield ("insert",)

    def insert(self) -> None:
        number, message = self.callee.looked_up.pop(0)  # type: ignore[attr-defined]
        if number in self.callee.sessions:
            Callee._admit(self.callee, self.callee.sessions[number], message, NOW_S)

    def check_sums(self) -> None:
        """Not kept, of course."""

    def key(self) -> Any:
        return super().key(), len(self.callee.looked_up)  # type: ignore[attr-defined]


class NumbersTheRefused(World):
    """R12: a call that the socket did not take has used up a number."""

    class caller_class(Caller):
        def _send_first(self, peer: Peer, session: Session, call: Call, now_s: float) -> bool:
            sent = super()._send_first(peer, session, call, now_s)
            if not sent:
                session.next_seq += 1
            return sent


class AnswersTheRetired(World):
    """R13: a result of a session that has ended is sent all the same."""

    class callee_class(Callee):
        def finish(self, holder: Holder, code: Code, now_s: float, **result: Any) -> None:
            super().finish(holder, code, now_s, **result)
            if holder.session.retired:
                self._send_status(holder)


class RetriesFailed(World):
    """R14: a handler that raised leaves nothing behind."""

    class callee_class(Callee):
        def finish(self, holder: Holder, code: Code, now_s: float, **result: Any) -> None:
            super().finish(holder, code, now_s, **result)
            if code is Code.HANDLER_FAILED and holder.session.holders.get(holder.seq) is holder:
                self._dropped(holder.session.holders.pop(holder.seq))


class BeginsBeforeWriting(World):
    """R15, journal: the handler begins before RUNNING is on disk."""

    class journal_class(Journal):
        def save_holder(self, holder: Holder) -> None:
            if holder.state is not HolderState.RUNNING:
                super().save_holder(holder)


class CommitsTwice(World):
    """R15, transaction: the effect is on disk before the result is."""

    def finish(self, key: tuple[int, int]) -> None:
        holder = self.begun[key]
        if holder.text:
            self.callee.finish(self.begun.pop(key), Code.OK, NOW_S, reply=b"r" + bytes(holder.owner))
            return
        holder.text = "committed"  # the effect; the result is the next step
        self.ghost.committed[holder.owner] += 1

    def key(self) -> Any:
        return super().key(), tuple(sorted((key, holder.text) for key, holder in self.begun.items()))


class ForgetsReleases(World):
    """Durable: the row of a released holder goes, and nothing says that its number was released."""

    class journal_class(Journal):
        def save_session(self, session: IncomingSession) -> None:
            if session.floor == 1:
                super().save_session(session)


class WritesNoCalls(World):
    """Durable caller: a call leaves, and nothing on disk says so."""

    class journal_class(Journal):
        def save_call(self, call: Call) -> None:
            """Nothing."""


class KeepsEnded(World):
    """Durable caller: a call that has ended stays on disk."""

    class journal_class(Journal):
        def drop_call(self, call: Call) -> None:
            """Nothing."""


class ReservesNothing(World):
    """Durable caller: which numbers were used is not on disk."""

    class caller_class(Caller):
        def _reserve(self, peer: Peer, session: Session, call: Call, seq: int) -> None:
            call.seq = seq
            self._save(call)


class DisownsResumed(World):
    """Durable caller: an answer to an OPEN of a former life disowns the session that both lives share."""

    class caller_class(Caller):
        def handle(self, address: Any, message: Message, now_s: float) -> None:
            peer = self.peers.get(address)
            if message.kind is Kind.OPEN_ACK and peer is not None and peer.nonce and message.seq != peer.nonce:
                self._disown(address, message)
            else:
                super().handle(address, message, now_s)


class SilentWhenResumed(World):
    """Durable caller: nobody tells the callee what was released, or is unwanted now, when a session is open again."""

    class caller_class(Caller):
        def _handle_open_ack(self, address: Any, peer: Peer | None, message: Message, now_s: float) -> None:
            session = peer.session if peer is not None else None
            version = session.version if session is not None else 0
            super()._handle_open_ack(address, peer, message, now_s)
            if session is not None:
                session.version, session.release_due_s = version, math.inf


class ResumesConfirmedOnly(World):
    """Both durable: a session without a call is not resumed, though its caller has calls in it."""

    class callee_class(Callee):
        def _handle_open(self, address: Any, message: Message, now_s: float) -> None:
            if message.resume is not None and (session := self.sessions.get(message.resume.session)) and not session.confirmed:
                message = replace(message, resume=None)
            super()._handle_open(address, message, now_s)


class ResumesAnything(World):
    """Both durable: a session that was evicted is not resumed, and its caller is not told why."""

    class callee_class(Callee):
        def _handle_open(self, address: Any, message: Message, now_s: float) -> None:
            record = self.records.get(address)
            if record is not None and message.resume is not None and message.resume.session in record.evicted:
                message = replace(message, resume=None)
            super()._handle_open(address, message, now_s)


class TrustsRanges(World):
    """Released ranges: every number up to the next one is told to be released, live ones too."""

    class caller_class(Caller):
        def _send_release(self, peer: Peer, session: Session, now_s: float) -> bool:
            floor, session.floor = session.floor, session.next_seq
            sent = super()._send_release(peer, session, now_s)
            session.floor = floor
            return sent


class BusyIsFinal(World):
    """BUSY ends a call, as if it had a holder."""

    class caller_class(Caller):
        def _wait_longer(self, call: Call, message: Message, now_s: float) -> None:
            if message.kind is Kind.BUSY and call.state is CallState.SENT:
                session = call.peer.session
                assert session is not None
                self._end_live(session, call, Outcome(Ending.NO_HANDLER), now_s)
            else:
                super()._wait_longer(call, message, now_s)


class IgnoresOrder(World):
    """Lanes: a call begins although one before it is missing."""

    class callee_class(Callee):
        def _take_turns(self, session: IncomingSession) -> None:
            session.known_to = 2**32
            super()._take_turns(session)


@dataclass(frozen=True)
class Mutant:
    rule: str
    world: type[World]
    bounds: Bounds
    promise: str


MUTANTS = [
    Mutant("R1", EvictsDone, Bounds(ticks=False), "P1"),
    Mutant("R2", TakesForeign, Bounds(ticks=False, callee_lives=2), "P1"),
    Mutant("R3", ResendsAfterReset, Bounds(ticks=False, callee_lives=2), "P1"),
    Mutant("R4", ReleasesLive, Bounds(), "P3"),
    Mutant("R5", RefusesWithoutHolder, Bounds(ticks=False, registers=True), "P4"),
    Mutant("R6", CallsBeforeOpened, Bounds(ticks=False, callee_lives=2), "P1"),
    Mutant("R7", OpenRetires, Bounds(ticks=False, caller_lives=2), "P3"),
    Mutant("R8", ConfirmingRetiresAll, Bounds(ticks=False, caller_lives=2), "P3"),
    Mutant("R9", ForgetsEvicted, Bounds(ticks=False, evicts=True), "P3"),
    Mutant("R10, calls", ReusesNumbers, Bounds(calls=2, ticks=False, abandons=True), "R12"),
    Mutant("R10, sessions", ReusesSessions, Bounds(ticks=False, expires=True), "P1"),
    Mutant("R11", LooksUpFirst, Bounds(ticks=False), "P1"),
    Mutant("R12", NumbersTheRefused, Bounds(calls=2, refuses=True, ticks=False), "R12"),
    Mutant("R13", AnswersTheRetired, Bounds(ticks=False, expires=True), "R13"),
    Mutant("R14", RetriesFailed, Bounds(ticks=False, fails=True), "P1"),
    Mutant("R15, journal", BeginsBeforeWriting, Bounds(ticks=False, durability="journal", callee_lives=2), "P1"),
    Mutant("R15, transaction", CommitsTwice, Bounds(ticks=False, durability="transaction", callee_lives=2), "P1"),
    Mutant("releases on disk", ForgetsReleases, Bounds(durability="transaction", callee_lives=2), "P1"),
    Mutant("durable calls on disk", WritesNoCalls, Bounds(ticks=False, durable_calls=True, caller_lives=2), "P7"),
    Mutant("durable calls off it", KeepsEnded, Bounds(ticks=False, durable_calls=True, caller_lives=2), "P7"),
    Mutant(
        "numbers on disk", ReservesNothing, Bounds(calls=2, ticks=False, durable_calls=True, fleeting_calls=True, caller_lives=2), "R12"
    ),
    Mutant("late OPEN_ACK", DisownsResumed, Bounds(ticks=False, durable_calls=True, caller_lives=2), "P3"),
    Mutant("releases when resumed", SilentWhenResumed, Bounds(durable_calls=True, caller_lives=2), "P3"),
    Mutant("half-open, resumed", ResumesConfirmedOnly, Bounds(ticks=False, durable_calls=True, caller_lives=2), "P3"),
    Mutant("evicted, resumed", ResumesAnything, Bounds(ticks=False, evicts=True, durable_calls=True, caller_lives=2), "P3"),
    Mutant("released ranges", TrustsRanges, Bounds(calls=2), "P3"),
    Mutant("BUSY", BusyIsFinal, Bounds(calls=2, max_reply_bytes=1), "P4"),
    Mutant("lanes", IgnoresOrder, Bounds(calls=2, order="start", ticks=False), "order"),
]
