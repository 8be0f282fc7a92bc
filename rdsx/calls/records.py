"""What a courier with a store writes down: rows, the journal that gathers them, and the way back from rows to engines.

The journal keeps the latest row of each key since it was last emptied; whoever empties it writes all of them in one transaction, and
only then lets messages go and handlers begin. Invariant: rows alone restore every promise that a message ever sent has made; the row of
a holder goes only together with the row of its session that says that its number is released.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.config import CallConfig
from rdsx.calls.holder import CallerRecord, Holder, HolderState, IncomingSession
from rdsx.calls.outgoing import Address, Call, CallState, Peer, Session
from rdsx.calls.wire import Code

__all__ = ["CallRow", "HolderRow", "Journal", "OutgoingRow", "Row", "Rows", "SessionRow", "restore_callee", "restore_caller"]

HALF_OPEN, CONFIRMED, EVICTED = range(3)


class SessionRow(NamedTuple):
    """A caller's session with us. An evicted one is kept for its number."""

    number: int
    address: Address
    caller_life: int
    nonce: int
    state: int
    floor: int
    released: int


class HolderRow(NamedTuple):
    """A holder that is RUNNING or final."""

    session: int
    seq: int
    state: int
    msg_type: int
    length: int
    crc: int
    code: int
    status: int
    text: str
    reply: bytes


class OutgoingRow(NamedTuple):
    """Our session with a peer. No number from `reserved` on has been used."""

    address: Address
    life: int
    session: int
    window: int
    max_payload_bytes: int
    reserved: int


class CallRow(NamedTuple):
    """A durable call that has no outcome. `seq` is 0 while it has no number in a session."""

    number: int
    address: Address
    seq: int
    msg_type: int
    payload: bytes


Row = SessionRow | HolderRow | OutgoingRow | CallRow
Key = tuple[type[Row], object]


@dataclass
class Rows:
    """Everything that a store holds of a courier."""

    sessions: list[SessionRow] = field(default_factory=list)
    holders: list[HolderRow] = field(default_factory=list)
    outgoing: list[OutgoingRow] = field(default_factory=list)
    calls: list[CallRow] = field(default_factory=list)
    next_session: int = 1


class Journal:
    """The changes since `take`. A None in place of a row is a deletion."""

    def __init__(self) -> None:
        self.changes: dict[Key, Row | None] = {}
        self.next_session = 1  # never reused, not even when no row of it is left

    def take(self) -> dict[Key, Row | None]:
        """The changes; the journal is empty afterwards."""
        changes, self.changes = self.changes, {}
        return changes

    # -- callee

    def save_session(self, session: IncomingSession) -> None:
        state = CONFIRMED if session.confirmed else HALF_OPEN
        self.next_session = max(self.next_session, session.number + 1)
        self.changes[SessionRow, session.number] = _session_row(session, state)

    def drop_session(self, session: IncomingSession, *, evicted: bool) -> None:
        self.changes[SessionRow, session.number] = _session_row(session, EVICTED) if evicted else None

    def forget_evicted(self, numbers: list[int]) -> None:
        for number in numbers:
            self.changes[SessionRow, number] = None

    def save_holder(self, holder: Holder) -> None:
        self.changes[HolderRow, (holder.session.number, holder.seq)] = HolderRow(
            holder.session.number, holder.seq, int(holder.state), holder.msg_type, holder.length, holder.crc, holder.code, holder.status,
            holder.text, holder.reply,
        )  # fmt: skip

    def drop_holder(self, holder: Holder) -> None:
        self.forget_holder(holder.session.number, holder.seq)

    def forget_holder(self, session: int, seq: int) -> None:
        self.changes[HolderRow, (session, seq)] = None

    # -- caller

    def save_outgoing(self, peer: Peer, session: Session) -> None:
        self.changes[OutgoingRow, peer.address] = OutgoingRow(
            peer.address, session.life, session.number, session.window, session.max_payload_bytes, session.reserved
        )

    def drop_outgoing(self, peer: Peer) -> None:
        self.changes[OutgoingRow, peer.address] = None

    def save_call(self, call: Call) -> None:
        self.changes[CallRow, call.number] = CallRow(call.number, call.peer.address, call.seq, call.msg_type, call.payload)

    def drop_call(self, call: Call) -> None:
        self.changes[CallRow, call.number] = None


def _session_row(session: IncomingSession, state: int) -> SessionRow:
    return SessionRow(session.number, session.record.address, session.caller_life, session.nonce, state, session.floor, session.released)


def restore_callee(callee: Callee, rows: Rows, now_s: float) -> None:
    """Put what was written down back into the tables. A handler that was running when the last life ended has been interrupted."""
    callee.next_session = max(callee.next_session, rows.next_session)
    for row in sorted(rows.sessions):
        record = callee.records.setdefault(row.address, CallerRecord(row.address))
        if row.state == EVICTED:
            record.remember_evicted(row.number)
            continue
        session = IncomingSession(record, row.number, row.caller_life, row.nonce, now_s)
        session.floor = session.known_to = row.floor
        session.released = row.released
        session.highest_seq = row.floor - 1
        session.confirmed = row.state == CONFIRMED
        if session.confirmed:
            session.query_s = now_s + callee.config.query_after_s
        callee.add_session(session)
    for found in sorted(rows.holders):
        owner = callee.sessions.get(found.session)
        if owner is not None and not owner.is_released(found.seq):
            callee.add_holder(_holder(owner, found, now_s))
        elif callee.journal is not None:
            callee.journal.forget_holder(found.session, found.seq)  # it was running when its number was released


def _holder(session: IncomingSession, row: HolderRow, now_s: float) -> Holder:
    holder = Holder(session, row.seq, row.msg_type, row.length, row.crc, now_s)
    holder.state, holder.code, holder.status, holder.text, holder.reply = HolderState(row.state), row.code, row.status, row.text, row.reply
    holder.done_s = now_s
    if holder.state is HolderState.RUNNING:
        holder.state, holder.code, holder.text = HolderState.DONE, Code.INTERRUPTED, "the callee ended while the handler ran"
    return holder


def restore_caller(caller: Caller, rows: Rows, config: CallConfig, now_s: float) -> list[Call]:
    """Open again the sessions that were written down; returns the durable calls, which are under way again."""
    for row in rows.outgoing:
        session = Session(row.life, row.session, min(row.window, config.window), config.window, row.max_payload_bytes)
        session.next_seq = session.floor = session.reserved = row.reserved
        peer = caller.peer(row.address)
        peer.session, peer.newest = session, (row.life, row.session)
    calls = [_call(caller, row) for row in sorted(rows.calls)]
    for call in sorted(calls, key=lambda call: call.seq):
        if call.seq == 0:
            call.peer.queue.append(call)
            continue
        call.state = CallState.SENT
        owner = call.peer.session
        assert owner is not None
        owner.live[call.seq] = call
        owner.floor = next(iter(owner.live))
    for peer in caller.peers.values():
        caller.resume(peer, now_s)
    return calls


def _call(caller: Caller, row: CallRow) -> Call:
    call = Call(caller.peer(row.address), row.msg_type, row.payload, durable=True)
    call.number, call.seq = row.number, row.seq
    return call
