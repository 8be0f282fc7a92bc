"""The callee's side: sessions of callers, admission of calls, their results. Decides what to run and what to answer; never waits.

Invariants: between the look-up of a holder and its insertion nothing else happens; each final answer has a holder; a holder is dropped
only when its caller has released its number or its session has ended; an answer is a function of the holder, so that copies are alike.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from zlib import crc32

from rdsx.calls.config import CallConfig
from rdsx.calls.holder import Address, CallerRecord, Holder, HolderState, IncomingSession, Terms
from rdsx.calls.outside import CalleeJournal, CalleeOutside
from rdsx.calls.slots import Slots
from rdsx.calls.timers import Timers
from rdsx.calls.wire import VERSION, Code, Kind, Limits, Message, OpenCode, Resume

__all__ = ["Callee"]

WORKING_INTERVAL_S = 1.0  # between two messages that say so
RESETS_PER_S = 10  # to one address
MAX_RESET_ADDRESSES = 4096  # to so many addresses in one second
MAX_QUERIES_DOUBLED = 7  # 30 s * 2**7 is an hour: the lease


class Callee:
    """All sessions in which a courier is called. Times are `now_s` arguments; `life` is the courier's."""

    def __init__(self, life: int, config: CallConfig, outside: CalleeOutside) -> None:
        self.life = life
        self.config = config
        self.terms: dict[int, Terms] = {}
        self.sessions: dict[int, IncomingSession] = {}
        self.records: dict[Address, CallerRecord] = {}
        self.counters: Counter[str] = Counter()
        self.journal: CalleeJournal | None = None
        self.next_session = 1
        self.confirmed = 0
        self.holders = 0
        self.reply_bytes = 0
        self.closing = False
        self.parted = False
        self._outside = outside
        self._timers: Timers[int] = Timers()
        self._slots = Slots(config, self.terms)
        self._resets: Counter[Address] = Counter()
        self._resets_s = -inf

    @property
    def running(self) -> int:
        """Handlers that run."""
        return self._slots.running

    @property
    def ready(self) -> int:
        """Calls that wait for a slot only."""
        return self._slots.ready

    # -- messages

    def handle(self, address: Address, message: Message, now_s: float) -> None:
        """A message from caller to callee."""
        kind = message.kind
        if kind is Kind.OPEN:
            if not self.parted:  # else its calls are for the next life
                self._handle_open(address, message, now_s)
            return
        session = self.sessions.get(message.session)
        if session is None or message.life != self.life or session.record.address != address:
            if kind is not Kind.GONE:
                self._reset(address, message, now_s)
            return
        session.heard_s = now_s
        if kind is Kind.CALL:
            self._handle_call(session, message, now_s)
        elif kind is Kind.RELEASE:
            self._release(session, message, now_s)
            self._answer(session, Message(Kind.RELEASED, self.life, session.number, floor=session.floor, credit=self._credit(session)))
        elif kind is Kind.CANCEL:
            self._handle_cancel(session, message, now_s)
        elif kind is Kind.CLOSE:
            self.retire(session, "closed")
            self._answer(session, Message(Kind.CLOSED, self.life, session.number, floor=session.floor))
        else:
            self.retire(session, "gone")

    def _handle_open(self, address: Address, message: Message, now_s: float) -> None:
        limits, resume = message.limits, message.resume
        assert limits is not None
        record = self.records.get(address) or CallerRecord(address)
        session = record.opened.get((limits.life, message.seq))
        if not limits.versions[0] <= VERSION <= limits.versions[1]:
            text = f"this courier speaks version {VERSION}"
            self._send(record, self._open_ack(limits.life, message.seq, 0, OpenCode.NO_COMMON_VERSION, text))
            return
        if session is None and resume is not None and message.life == self.life:
            session = record.sessions.get(resume.session)
            if session is None and resume.session in record.evicted:
                self._reset(address, Message(Kind.OPEN, message.life, resume.session), now_s)  # so nothing of it ever came
                return
            if session is not None and session.caller_life == limits.life:
                self._resume(session, message, resume, now_s)
                return
            session = None
        if session is None:
            session = self._open(record, limits.life, message.seq, now_s)
        if session is not None:
            self._send(record, self._open_ack(limits.life, message.seq, session.number, OpenCode.OK))

    def _resume(self, session: IncomingSession, message: Message, resume: Resume, now_s: float) -> None:
        """A caller with a store has restarted: it goes on with the session that it had."""
        assert message.limits is not None
        seen = session.highest_seen()
        if resume.next_seq <= seen:
            self.counters["rolled_back"] += 1
            text = f"the caller's store will use number {resume.next_seq}; {seen} was seen: it is an old copy"
            answer = self._open_ack(message.limits.life, message.seq, 0, OpenCode.STORE_ROLLED_BACK, text)
        else:
            session.heard_s = now_s
            answer = self._open_ack(message.limits.life, message.seq, session.number, OpenCode.OK)
            answer.floor = session.floor
        self._answer(session, answer)

    def _open(self, record: CallerRecord, life: int, nonce: int, now_s: float) -> IncomingSession | None:
        """A half-open session: it disturbs nothing. None: there is no room."""
        half_open = [session for session in record.sessions.values() if not session.confirmed]
        if len(half_open) >= self.config.max_half_open_per_peer:
            self.evict(half_open[0])
        full = len(self.sessions) - self.confirmed >= self.config.max_half_open
        if full or (self.confirmed >= self.config.max_sessions and not record.sessions):
            self.counters["opens_unanswered"] += 1
            return None
        session = IncomingSession(record, self.next_session, life, nonce, now_s)
        self.next_session += 1
        self.add_session(session)
        self.counters["sessions_opened"] += 1
        if self.journal is not None:
            self.journal.save_session(session)
        return session

    def add_session(self, session: IncomingSession) -> None:
        """Put a session into the tables: a new one, or one from the store."""
        record = self.records.setdefault(session.record.address, session.record)
        session.record = record
        self.sessions[session.number] = record.sessions[session.number] = session
        record.opened[session.caller_life, session.nonce] = session
        self.confirmed += session.confirmed
        self._schedule(session)

    def add_holder(self, holder: Holder) -> None:
        """Put a final holder from the store into the tables."""
        session = holder.session
        self._insert(holder)
        session.highest_seq = max(session.highest_seq, holder.seq)
        session.reply_bytes += len(holder.reply)
        self.reply_bytes += len(holder.reply)
        if self.journal is not None and holder.code == Code.INTERRUPTED:
            self.journal.save_holder(holder)

    def _handle_call(self, session: IncomingSession, message: Message, now_s: float) -> None:
        """Steps in this order, and none of them waits."""
        if not session.confirmed:
            self._confirm(session)
        self._release(session, message, now_s)
        seq = message.seq
        if session.is_released(seq):
            self.counters["stale"] += 1
            return
        if seq - session.floor >= self.config.window:
            self._busy(session, seq, "window", now_s)
            return
        holder = session.holders.get(seq)
        if holder is not None:
            self._repeat(holder, message, now_s)
            return
        reason = self._lacks_room(session, seq)
        if reason:
            self._busy(session, seq, reason, now_s)
            return
        session.busy_s = 0.0
        self._admit(session, message, now_s)

    def _admit(self, session: IncomingSession, message: Message, now_s: float) -> None:
        payload = message.payload
        holder = Holder(session, message.seq, message.msg_type, len(payload), crc32(payload), now_s)
        session.highest_seq = max(session.highest_seq, message.seq)
        terms = self.terms.get(message.msg_type)
        self._insert(holder)
        if self.closing:
            self._refuse(holder, Code.CLOSING, "the courier is closing", now_s)
        elif message.refused:
            self._refuse(holder, Code.BAD_REQUEST, f"extension {message.refused:#06x} is not known here", now_s)
        elif terms is None:
            self._refuse(holder, Code.NO_HANDLER, f"nobody has registered type {message.msg_type:#x}", now_s)
        elif len(payload) > terms.max_payload_bytes:
            self._refuse(holder, Code.TOO_LONG, f"{len(payload)} bytes; type {message.msg_type:#x} takes {terms.max_payload_bytes}", now_s)
        else:
            holder.terms = terms
            holder.payload = payload
            if terms.order == "none":
                self._slots.wait(holder)
            else:
                session.line_up(holder, terms.lane)
        if session.lanes:
            self._take_turns(session)

    def _repeat(self, holder: Holder, message: Message, now_s: float) -> None:
        """A copy of a call that we hold: the answer comes from the holder."""
        holder.copies += 1
        holder.session.record.duplicates += 1
        self.counters["duplicates"] += 1
        if holder.state is HolderState.VOID:
            self._send_status(holder)
            return
        if (holder.msg_type, holder.length) != (message.msg_type, len(message.payload)) or holder.crc != crc32(message.payload):
            self.counters["mismatches"] += 1
        if holder.state is HolderState.DONE or holder.state is HolderState.REFUSED:
            self._send_status(holder)
        elif now_s >= holder.working_s + WORKING_INTERVAL_S:
            holder.working_s = now_s
            seconds = min(int(now_s - holder.born_s), 2**31 - 1)
            self._answer_about(holder.session, Kind.WORKING, holder.seq, seconds)

    def _handle_cancel(self, session: IncomingSession, message: Message, now_s: float) -> None:
        self._release(session, message, now_s)
        seq = message.seq
        holder = session.holders.get(seq)
        if session.is_released(seq) or seq - session.floor >= self.config.window:
            self.counters["stale"] += 1
        elif holder is None:
            if self.holders >= self.config.max_holders:
                self._busy(session, seq, "holders", now_s)
                return
            holder = Holder(session, seq, 0, 0, 0, now_s)
            session.highest_seq = max(session.highest_seq, seq)
            self._insert(holder)
            self._void(holder, now_s)
        elif holder.state is HolderState.WAITING:
            self._void(holder, now_s)
        elif holder.state is HolderState.RUNNING:
            self._outside.stop(holder)
        else:
            self._send_status(holder)

    def _void(self, holder: Holder, now_s: float) -> None:
        self._unqueue(holder)
        holder.state, holder.code, holder.done_s, holder.payload = HolderState.VOID, Code.CANCELLED_BEFORE_START, now_s, b""
        self._finalise(holder)
        self._take_turns(holder.session)

    # -- handlers

    def poll_start(self) -> Holder | None:
        """The next call whose handler is to begin now; it counts as running until `finish`. Say `begun` when it has."""
        holder = self._slots.take()
        if holder is None:
            return None
        holder.state = HolderState.RUNNING
        assert holder.terms is not None
        if self.journal is not None and holder.terms.journal:
            self.journal.save_holder(holder)
        if holder.terms.order != "none":
            holder.session.lanes[holder.terms.lane].running += 1
        return holder

    def begun(self, holder: Holder) -> None:
        """Its handler has begun: the next one of its lane may."""
        assert holder.terms is not None
        if holder.terms.order != "none" and not holder.session.retired:
            lane = holder.session.lanes[holder.terms.lane]
            if lane.pending is holder:
                lane.pending = None
                self._take_turns(holder.session)

    def finish(self, holder: Holder, code: Code, now_s: float, *, status: int = 0, reply: bytes = b"", text: str = "") -> None:
        """The handler has ended. Its result is final, and answered if anybody wants it."""
        session = holder.session
        self._slots.give_back(holder)
        if len(reply) > self.config.max_payload_bytes:
            text = f"the reply of {len(reply)} bytes is too long: at most {self.config.max_payload_bytes}"
            code, status, reply = Code.HANDLER_FAILED, 0, b""
        holder.state, holder.code, holder.status, holder.text, holder.done_s = HolderState.DONE, code, status, text, now_s
        holder.payload = b""
        self.counters[f"handled_{code.name.lower()}"] += 1
        assert holder.terms is not None
        if holder.terms.order != "none":
            lane = session.lanes[holder.terms.lane]
            lane.running -= 1
            lane.pending = None if lane.pending is holder else lane.pending
        if not session.retired and session.holders.get(holder.seq) is holder:
            holder.reply = reply
            session.reply_bytes += len(reply)
            self.reply_bytes += len(reply)
            self._finalise(holder)
        elif self.journal is not None:
            self.journal.drop_holder(holder)
        self._slots.unpark(session)
        if session.lanes and not session.retired:
            self._take_turns(session)

    def _unqueue(self, holder: Holder) -> None:
        """A call that had not begun will not begin."""
        if holder.terms is None:
            return
        lane = holder.session.lanes.get(holder.terms.lane) if holder.terms.order != "none" else None
        if lane is None or lane.pending is holder:
            self._slots.leave(holder)
        if lane is not None and lane.pending is holder:
            lane.pending = None

    def _take_turns(self, session: IncomingSession) -> None:
        while (holder := session.poll_turn()) is not None:
            self._slots.wait(holder)

    # -- the table

    def _insert(self, holder: Holder) -> None:
        holder.session.holders[holder.seq] = holder
        self.holders += 1

    def _refuse(self, holder: Holder, code: Code, text: str, now_s: float) -> None:
        holder.state, holder.code, holder.text, holder.done_s = HolderState.REFUSED, code, text, now_s
        holder.session.record.refused += 1
        self.counters[f"refused_{code.name.lower()}"] += 1
        self._finalise(holder)

    def _finalise(self, holder: Holder) -> None:
        if self.journal is not None:
            self.journal.save_holder(holder)
        self._send_status(holder)

    def _release(self, session: IncomingSession, message: Message, now_s: float) -> None:
        """What the caller no longer wants, in any message that says so."""
        if message.floor <= session.floor and not message.ranges:
            return
        gone = session.release(message.floor, message.ranges, self.config.window, now_s)
        for holder in gone:
            self._dropped(holder)
        if gone and self.journal is not None:
            self.journal.save_session(session)  # with their rows: a late copy of one must not look new to the next life
        if session.lanes:
            self._take_turns(session)

    def _dropped(self, holder: Holder) -> None:
        """A holder has left its table; if its handler runs, `finish` will find nobody to tell."""
        self.holders -= 1
        self.reply_bytes -= len(holder.reply)
        holder.session.reply_bytes -= len(holder.reply)
        if holder.session.record.unsent:
            holder.session.record.unsent.pop(holder, None)
        if holder.state is HolderState.WAITING:
            self._unqueue(holder)
        if self.journal is not None and holder.state is not HolderState.RUNNING:
            self.journal.drop_holder(holder)

    def _confirm(self, session: IncomingSession) -> None:
        """Its caller lives, or lived later than every caller of a lower session from this address."""
        session.confirmed = True
        self.confirmed += 1
        session.query_s = session.heard_s + self.config.query_after_s
        self._schedule(session)
        self.counters["sessions_confirmed"] += 1
        for other in [other for other in session.record.sessions.values() if other.number < session.number]:
            self.retire(other, "superseded")
        if self.journal is not None:
            self.journal.save_session(session)

    def retire(self, session: IncomingSession, reason: str) -> None:
        """End a session: its holders are dropped, what waits never begins, what runs has nobody to answer."""
        self._remove(session)
        session.retired = True
        self.counters[f"sessions_{reason}"] += 1
        holders, session.holders = session.holders, {}
        for holder in holders.values():
            self._dropped(holder)
            if holder.state is HolderState.RUNNING:
                self._outside.caller_gone(holder)
        if self.journal is not None:
            self.journal.drop_session(session, evicted=False)

    def evict(self, session: IncomingSession) -> None:
        """A half-open session makes room. Its number is remembered: its caller will be told that no call of it ever arrived."""
        self._remove(session)
        forgotten = session.record.remember_evicted(session.number)
        self.records.setdefault(session.record.address, session.record)
        self.counters["sessions_evicted"] += 1
        holders, session.holders = session.holders, {}
        for holder in holders.values():
            self._dropped(holder)
        if self.journal is not None:
            self.journal.drop_session(session, evicted=True)
            self.journal.forget_evicted(forgotten)

    def _remove(self, session: IncomingSession) -> None:
        del self.sessions[session.number]
        record = session.record
        del record.sessions[session.number]
        del record.opened[session.caller_life, session.nonce]
        self.confirmed -= session.confirmed
        self._timers.set(session.number, inf)
        if not record.sessions and not record.evicted:
            self.records.pop(record.address, None)
        elif len(self.records) > 2 * self.config.max_sessions:
            self._forget_oldest_record()

    def _forget_oldest_record(self) -> None:
        """Peers without a session are remembered for their evicted numbers only; without those the answer is MAYBE instead of NO."""
        for address, record in self.records.items():
            if not record.sessions:
                del self.records[address]
                return

    # -- answers

    def _lacks_room(self, session: IncomingSession, seq: int) -> str:
        """Why a new call cannot be admitted; "" if it can. The lowest number that is missing is never refused for the holders that wait
        for it."""
        config = self.config
        if session.reply_bytes >= config.max_session_reply_bytes or self.reply_bytes >= config.max_reply_bytes:
            return "reply_bytes"
        if self._slots.is_full(session):
            return "running"
        if self.holders >= config.max_holders:
            session.advance_known()
            return "holders" if seq != session.known_to else ""
        return ""

    def _credit(self, session: IncomingSession) -> int:
        config = self.config
        full = (
            session.reply_bytes >= config.max_session_reply_bytes
            or self.reply_bytes >= config.max_reply_bytes
            or self.holders >= config.max_holders
        )
        return 1 if full else config.window

    def _busy(self, session: IncomingSession, seq: int, reason: str, now_s: float) -> None:
        """No holder is made, so this is not final: the same number may come again."""
        if now_s >= session.busy_until_s:
            session.busy_s = min(2 * session.busy_s or self.config.busy_min_s, self.config.busy_max_s)
            session.busy_until_s = now_s + session.busy_s
        session.record.busy_sent += 1
        self.counters[f"busy_{reason}"] += 1
        self._answer_about(session, Kind.BUSY, seq, int(session.busy_s * 1000))

    def _answer_about(self, session: IncomingSession, kind: Kind, seq: int, status: int) -> None:
        self._answer(session, Message(kind, self.life, session.number, seq, session.floor, status=status, credit=self._credit(session)))

    def _answer(self, session: IncomingSession, message: Message) -> None:
        self._send(session.record, message)

    def _send_status(self, holder: Holder) -> None:
        session = holder.session
        record = session.record
        message = Message(
            Kind.STATUS, self.life, session.number, holder.seq, session.floor, holder.msg_type, holder.status, self._credit(session),
            holder.code, text=holder.text, payload=holder.reply,
        )  # fmt: skip
        if record.blocked or not self._send(record, message):
            record.unsent[holder] = None

    def _send(self, record: CallerRecord, message: Message) -> bool:
        """False: the socket takes nothing for this peer now."""
        try:
            if self._outside.send(record.address, message):
                return True
        except OSError:
            self.counters["send_errors"] += 1
            return True  # it never will: the caller asks again, if it lives
        record.blocked = record.address in self.records  # else there is nothing to send later
        return False

    def writable(self, address: Address, now_s: float) -> None:
        """The socket takes messages for this peer again."""
        record = self.records.get(address)
        if record is None or not record.blocked:
            return
        record.blocked = False
        unsent, record.unsent = record.unsent, {}
        for holder in unsent:
            self._send_status(holder)

    def lost(self, address: Address, now_s: float) -> None:
        """A message that `send` had taken did not leave after all: every answer goes out again when the socket is writable."""
        record = self.records.get(address)
        if record is None:
            return
        record.blocked = True
        for session in record.sessions.values():
            for holder in session.holders.values():
                if holder.state >= HolderState.DONE:
                    record.unsent[holder] = None

    def _open_ack(self, life: int, nonce: int, number: int, code: OpenCode, text: str = "") -> Message:
        limits = Limits(life, (VERSION, 0), self.config.window, self.config.max_payload_bytes, self.config.lease_s)
        return Message(
            Kind.OPEN_ACK, self.life, number, nonce, credit=self.config.window, code=code, text=text, limits=limits
        )  # fmt: skip

    def _reset(self, address: Address, message: Message, now_s: float) -> None:
        if now_s >= self._resets_s + 1.0:
            self._resets.clear()
            self._resets_s = now_s
        if self._resets[address] >= RESETS_PER_S or len(self._resets) > MAX_RESET_ADDRESSES:
            self.counters["resets_withheld"] += 1
            return
        self._resets[address] += 1
        self.counters["resets_sent"] += 1
        record = self.records.get(address)
        never = record is not None and message.life == self.life and message.session in record.evicted
        answer = Message(Kind.RESET, message.life, message.session, self.life, never_confirmed=never)
        self._send(record or CallerRecord(address), answer)

    # -- time

    def next_s(self) -> float:
        """When to call `tick` at the latest."""
        return self._timers.next_s()

    def tick(self, now_s: float) -> None:
        """Do what is due."""
        for number in self._timers.pop_due(now_s):
            session = self.sessions[number]
            if not session.confirmed:
                self.evict(session)
            elif session.heard_s + self.config.lease_s <= now_s:
                self.retire(session, "expired")
            else:
                if session.query_s <= now_s:
                    self._query(session, now_s)
                self._schedule(session)

    def _schedule(self, session: IncomingSession) -> None:
        if not session.confirmed:
            due_s = session.opened_s + self.config.half_open_s
        else:
            due_s = min(session.heard_s + self.config.lease_s, session.query_s)
        self._timers.set(session.number, due_s)

    def _query(self, session: IncomingSession, now_s: float) -> None:
        """Ask for results that were not released for long; less and less often, until something is released."""
        after_s = self.config.query_after_s
        oldest_s = min((holder.done_s for holder in session.holders.values()), default=inf)
        if oldest_s > now_s - after_s:
            session.queried = 0
            session.query_s = now_s + after_s
            return
        session.query_s = now_s + after_s * 2 ** min(session.queried, MAX_QUERIES_DOUBLED)
        session.queried += 1
        self.counters["queries_sent"] += 1
        self._answer(session, Message(Kind.QUERY, self.life, session.number, floor=session.floor, credit=self._credit(session)))

    def close(self) -> None:
        """Refuse new calls. What runs may finish; what waits is refused."""
        self.closing = True

    def part(self) -> None:
        """End all sessions, and tell their callers: they send nothing more to this life. With a store: keep them for the next time."""
        self.parted = True
        for session in list(self.sessions.values()) if self.journal is None else ():
            tells = not session.record.blocked  # else answers wait for the socket: they must not come behind this
            self.retire(session, "parted")
            if tells:
                self._send(session.record, Message(Kind.RESET, self.life, session.number, self.life, never_confirmed=not session.confirmed))

    def refuse_waiting(self, now_s: float) -> None:
        """Closing: calls that have not begun never will."""
        for session in self.sessions.values():
            for holder in session.holders.values():
                if holder.state is HolderState.WAITING:
                    self._unqueue(holder)
                    holder.payload = b""
                    self._refuse(holder, Code.CLOSING, "the courier is closing", now_s)
