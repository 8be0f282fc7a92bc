"""The caller's side: peers, sessions and calls. Decides what to send when; sends through its `Outside`, and never waits.

A call is QUEUED without a number until the session is usable and its window open. Taking a number and handing the datagram over are one
step. It is then *live* until its result is here or unwanted; the lowest live number is the *floor*, and tells the peer what it may
forget. Invariant: a call that has a number never gets another one unless its session was never confirmed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from math import inf

from rdsx.calls.config import CallConfig
from rdsx.calls.outcome import ENDINGS, Ending, Outcome
from rdsx.calls.outgoing import Address, Call, CallState, Peer, Session
from rdsx.calls.outside import CallerJournal, Outside
from rdsx.calls.timers import Timers
from rdsx.calls.wire import MAX_RANGES, VERSION, Kind, Limits, Message, OpenCode, Resume

__all__ = ["CLOSE_RESEND", "Caller"]

JITTER = 0.2  # of a delay, either way: peers that lost one another at once do not come back at once
UNTOLD_BYTES = 256 << 10  # of results that the peer holds without need: it is told at once
CLOSE_RESEND = 0.25  # of close_s: when a CLOSE without an answer is sent again
RANGES_AFTER = 8  # a window / this many untold results above the floor: calls carry ranges


class Caller:
    """All sessions in which a courier calls others. Times are `now_s` arguments; `life` is the courier's."""

    def __init__(
        self, life: int, config: CallConfig, outside: Outside, *, uniform: Callable[[], float], draw_nonce: Callable[[], int]
    ) -> None:
        self.life = life
        self.config = config
        self.peers: dict[Address, Peer] = {}
        self.counters: Counter[str] = Counter()
        self.journal: CallerJournal | None = None
        self.store_id = b""
        self.closing = False
        self.next_number = 1
        self._outside = outside
        self._uniform = uniform
        self._draw_nonce = draw_nonce
        self._timers: Timers[Address] = Timers()

    # -- for whoever calls

    def peer(self, address: Address) -> Peer:
        peer = self.peers.get(address)
        if peer is None:
            peer = self.peers[address] = Peer(address)
        return peer

    def has_room(self, peer: Peer, payload_bytes: int) -> bool:
        """Whether `start` may be called for a request of this length."""
        if len(peer.queue) >= self.config.max_queued_calls:
            return False
        return peer.request_bytes == 0 or peer.request_bytes + payload_bytes <= self.config.max_request_bytes

    def start(self, peer: Peer, msg_type: int, payload: bytes, now_s: float, *, durable: bool = False) -> Call:
        """A new call; it may have ended when this returns. `payload` is kept until then."""
        call = Call(peer, msg_type, payload, durable)
        self.counters["calls_started"] += 1
        peer.request_bytes += len(payload)
        if self.closing:
            self._end(call, Outcome(Ending.NEVER_SENT, text="this courier is closing"), now_s)
            return call
        if durable and self.journal is not None:
            call.number = self.next_number
            self.next_number += 1
            self.journal.save_call(call)
        peer.queue.append(call)
        self._pump(peer, now_s)
        return call

    def cancel(self, call: Call, now_s: float) -> None:
        """Ask that the handler not begin, or stop; the outcome comes with the peer's answer."""
        if call.state is CallState.QUEUED:
            self._end_queued(call, Outcome(Ending.NEVER_SENT), now_s)
        elif call.state is CallState.SENT:
            call.state = CallState.CANCELLING
            call.backoff_s = 0.0
            self._send_numbered(call, now_s)

    def abandon(self, call: Call, now_s: float) -> None:
        """The result is unwanted: the call ends now, and its number is released."""
        if call.state is CallState.QUEUED:
            self._end_queued(call, Outcome(Ending.NEVER_SENT), now_s)
        elif call.state is not CallState.ENDED:
            session = call.peer.session
            assert session is not None
            session.abandoned = True
            self._end_live(session, call, Outcome(Ending.ABANDONED), now_s)
            self._pump(call.peer, now_s)

    # -- time and room

    def next_s(self) -> float:
        """When to call `tick` at the latest."""
        return self._timers.next_s()

    def tick(self, now_s: float) -> None:
        """Do what is due."""
        for address in self._timers.pop_due(now_s):
            self._attend(self.peers[address], now_s)

    def writable(self, address: Address, now_s: float) -> None:
        """The socket takes messages for this peer again."""
        peer = self.peers.get(address)
        if peer is not None and peer.blocked:
            peer.blocked = False
            self._attend(peer, now_s)
            self._pump(peer, now_s)

    def lost(self, address: Address, now_s: float) -> None:
        """A message that `send` had taken did not leave after all: everything unanswered is due again when the socket is writable."""
        peer = self.peers.get(address)
        if peer is not None:
            peer.blocked = True
            self._make_due(peer, now_s)

    def hint_restarted(self, address: Address, life: int, now_s: float) -> None:
        """The peer's courier opens a session with us in another life than the one we call: one call asks at once what became of it."""
        peer = self.peers.get(address)
        if peer is None or (session := peer.usable) is None or life in (session.life, peer.hinted_life):
            return
        peer.hinted_life = life
        for call in session.live.values():
            self._send_numbered(call, now_s)
            return

    def peer_closes(self, address: Address) -> None:
        """The courier there ends its session with us, because it is closing: it need not be told the end of ours."""
        peer = self.peers.get(address)
        if peer is not None and peer.session is not None and not peer.session.live and not peer.nonce and self.journal is None:
            self._forget_session(peer)

    def resume(self, peer: Peer, now_s: float) -> None:
        """Its session and calls are from the store: open it again."""
        for call in (*peer.queue, *(peer.session.live.values() if peer.session is not None else ())):
            peer.request_bytes += len(call.payload)
            self.next_number = max(self.next_number, call.number + 1)
        self._open(peer, now_s)

    # -- messages

    def handle(self, address: Address, message: Message, now_s: float) -> None:
        """A message from callee to caller."""
        peer = self.peers.get(address)
        session = peer.session if peer is not None else None
        kind = message.kind
        if kind is Kind.OPEN_ACK:
            self._handle_open_ack(address, peer, message, now_s)
        elif session is None or peer is None or session.number != message.session or session.life != message.life:
            self.counters["foreign"] += 1
            if kind is not Kind.RESET and kind is not Kind.CLOSED:
                self._disown(address, message)
        elif kind is Kind.RESET:
            self._handle_reset(peer, session, message, now_s)
        elif kind is Kind.CLOSED:
            if peer.closing:
                self._forget_session(peer)
        else:
            self._heard(peer, now_s)
            session.credit = max(1, message.credit)
            if kind is Kind.STATUS:
                self._handle_status(session, message, now_s)
            elif kind is Kind.RELEASED:
                self._handle_released(peer, session, message, now_s)
            elif kind is Kind.QUERY:
                self._send_release(peer, session, now_s)
            elif (call := session.live.get(message.seq)) is not None:
                self._wait_longer(call, message, now_s)
            self._pump(peer, now_s)

    def _handle_open_ack(self, address: Address, peer: Peer | None, message: Message, now_s: float) -> None:
        limits = message.limits
        assert limits is not None
        session = peer.session if peer is not None else None
        is_ours = session is not None and (session.number, session.life) == (message.session, message.life)
        if peer is None or not peer.nonce or message.seq != peer.nonce or limits.life != self.life:
            if not is_ours:  # else it comes again, or to a caller that has restarted and goes on with this session
                self._disown(address, message)
            return
        peer.nonce = 0
        peer.open_due_s = inf
        self._heard(peer, now_s)
        if message.session == 0 or limits.versions[0] != VERSION:
            self._refused(peer, message, now_s)
            return
        if session is not None and not is_ours:
            self._lose_session(peer, session, restarted=session.life != message.life, now_s=now_s)
            session = None
        if session is None and message.life == peer.newest[0] and message.session <= peer.newest[1]:
            self._disown(address, message)
            text = f"the peer's store is an old copy: it opens session {message.session}, and has opened {peer.newest[1]} before"
            self._fail_queued(peer, Outcome(Ending.UNREACHABLE, text=text), now_s)
            return
        if session is not None and session.floor < message.floor:
            text = f"the caller's store has call {session.floor} under way, which has ended before: it is an old copy"
            self._roll_back(peer, text, now_s)
            return
        if session is None:
            window = min(self.config.window, limits.window)
            session = peer.session = Session(message.life, message.session, window, max(1, message.credit), limits.max_payload_bytes)
            peer.newest = message.life, message.session
            session.lease_s = limits.lease_s or session.lease_s
            if self.journal is not None:
                self.journal.save_outgoing(peer, session)
        else:
            session.version += 1  # calls that were not durable are unwanted now
            session.abandoned = True
            session.release_due_s = now_s + self.config.release_delay_s
            self._make_due(peer, now_s)
        session.sent_s = now_s
        self._attend(peer, now_s)
        self._pump(peer, now_s)

    def _refused(self, peer: Peer, message: Message, now_s: float) -> None:
        """The callee will have no session with us."""
        if message.code == OpenCode.STORE_ROLLED_BACK:
            self._roll_back(peer, message.text or Ending.STORE_ROLLED_BACK.value, now_s)
            return
        if peer.session is not None:
            self._lose_session(peer, peer.session, restarted=True, now_s=now_s)
        self._fail_queued(peer, Outcome(Ending.NO_COMMON_VERSION, text=message.text or Ending.NO_COMMON_VERSION.value), now_s)

    def _roll_back(self, peer: Peer, text: str, now_s: float) -> None:
        """Our store is an old copy: nobody knows what became of the calls in it. Later calls go into a session of their own."""
        session = peer.session
        self._forget_session(peer)
        for call in list(session.live.values()) if session is not None else ():
            self._end(call, Outcome(Ending.STORE_ROLLED_BACK, text=text), now_s)
        self._fail_queued(peer, Outcome(Ending.UNREACHABLE, text=text), now_s)

    def _handle_status(self, session: Session, message: Message, now_s: float) -> None:
        call = session.live.get(message.seq)
        if call is None:
            self.counters["late_answers"] += 1
            return
        session.told = max(session.told, call.covers)
        session.untold_bytes += len(message.payload)
        self._end_live(session, call, Outcome(ENDINGS[message.code], message.status, message.payload, message.text), now_s)

    def _handle_released(self, peer: Peer, session: Session, message: Message, now_s: float) -> None:
        if message.floor >= session.release_floor and session.release_covers > session.told:
            session.told = session.release_covers
            session.release_backoff_s = 0.0
            more = session.version > session.told
            session.release_due_s = now_s + self.config.release_delay_s if more else inf
            self._schedule(peer)

    def _wait_longer(self, call: Call, message: Message, now_s: float) -> None:
        if message.kind is Kind.WORKING:
            call.due_s = now_s + self._jittered(self.config.working_resend_s)
        elif message.kind is Kind.BUSY:
            self.counters["busy_received"] += 1
            call.due_s = now_s + self._jittered(max(message.status, 0) / 1000)
            call.backoff_s = 0.0
            self._note_due(call.peer, call.due_s)

    def _handle_reset(self, peer: Peer, session: Session, message: Message, now_s: float) -> None:
        self._heard(peer, now_s)
        self.counters["resets_received"] += 1
        if message.never_confirmed:
            self._take_back(peer, session, now_s)
        else:
            self._lose_session(peer, session, restarted=message.seq != session.life, now_s=now_s)
        self._pump(peer, now_s)

    def _take_back(self, peer: Peer, session: Session, now_s: float) -> None:
        """No call of this session ever arrived, and none can: they may all be sent in another one."""
        self._forget_session(peer)
        for call in list(session.live.values()):
            if call.state is CallState.CANCELLING:
                self._end(call, Outcome(Ending.CANCELLED_BEFORE_START), now_s)
        for call in reversed(session.live.values()):
            if call.state is CallState.SENT:
                call.state, call.seq, call.due_s, call.backoff_s = CallState.QUEUED, 0, inf, 0.0
                peer.queue.appendleft(call)
                self._save(call)

    def _lose_session(self, peer: Peer, session: Session, *, restarted: bool, now_s: float) -> None:
        """Nobody can say what became of the calls of this session. They are never sent again."""
        self._forget_session(peer)
        self.counters["unknown_outcomes"] += len(session.live)
        ending = Ending.PEER_RESTARTED if restarted else Ending.PEER_FORGOT
        for call in list(session.live.values()):
            self._end(call, Outcome(ending), now_s)

    def _forget_session(self, peer: Peer) -> None:
        peer.session = None
        peer.calls_due_s = inf
        if self.journal is not None:
            self.journal.drop_outgoing(peer)

    def _disown(self, address: Address, message: Message) -> None:
        """A message of a session that is not ours: the callee may forget it."""
        if message.session:
            self._try_send(address, Message(Kind.GONE, message.life, message.session))

    # -- sending

    def _pump(self, peer: Peer, now_s: float) -> None:
        """Send what may be sent now of the queue."""
        session = peer.usable
        if session is not None and peer.queue and not session.live and session.sent_s + session.lease_s / 2 < now_s:
            self._forget_session(peer)  # the peer may have forgotten it already: a call in it could end as MAYBE
            session = None
        if session is None:
            if peer.queue and not peer.nonce and not peer.closing:
                self._open(peer, now_s)
            return
        limit = min(session.window, session.credit)
        while peer.queue and not peer.blocked and not peer.silent and session.next_seq - session.floor < limit:
            if not self._send_first(peer, session, peer.queue[0], now_s):
                return

    def _send_first(self, peer: Peer, session: Session, call: Call, now_s: float) -> bool:
        """Give a call its number and send it; both or neither."""
        if len(call.payload) > session.max_payload_bytes:
            peer.queue.popleft()
            text = f"{len(call.payload)} bytes; this peer takes at most {session.max_payload_bytes}"
            self._end(call, Outcome(Ending.TOO_LONG, text=text), now_s)
            return True
        seq = session.next_seq
        covers, message = self._call_message(session, call, seq)
        if self.journal is not None:
            self._reserve(peer, session, call, seq)
        if not self._offer(peer, message, now_s):
            if call.state is CallState.QUEUED:
                call.seq = 0
                self._save(call)
            return False
        peer.queue.popleft()
        call.seq, call.state, call.covers = seq, CallState.SENT, covers
        session.live[seq] = call
        session.next_seq = seq + 1
        session.sent_s = now_s
        self._sent(call, now_s)
        return True

    def _call_message(self, session: Session, call: Call, seq: int) -> tuple[int, Message]:
        """A CALL, and how many releases it tells of. Ranges are left out while the floor alone keeps the peer's table small."""
        ranges: tuple[tuple[int, int], ...] = ()
        covers = session.version
        if session.has_gaps:
            if session.abandoned or session.version - session.told > session.window // RANGES_AFTER:
                ranges = session.ranges()
            if not 0 < len(ranges) < MAX_RANGES:
                covers = 0
        return covers, Message(Kind.CALL, session.life, session.number, seq, session.floor, call.msg_type, ranges=ranges,
                               durable=call.durable, payload=call.payload)  # fmt: skip

    def _reserve(self, peer: Peer, session: Session, call: Call, seq: int) -> None:
        assert self.journal is not None
        if seq >= session.reserved:
            session.reserved = seq + self.config.window
            self.journal.save_outgoing(peer, session)
        call.seq = seq
        self._save(call)

    def _save(self, call: Call) -> None:
        if self.journal is not None and call.number:
            self.journal.save_call(call)

    def _send_numbered(self, call: Call, now_s: float) -> bool:
        """A CALL again, or a CANCEL."""
        peer = call.peer
        session = peer.session
        assert session is not None
        if call.state is CallState.CANCELLING:
            message = Message(Kind.CANCEL, session.life, session.number, call.seq, session.floor)
        else:
            message = self._call_message(session, call, call.seq)[1]
            self.counters["calls_resent"] += 1
        self._sent(call, now_s)
        if self._offer(peer, message, now_s):
            return True
        if peer.blocked:
            call.due_s = now_s
            self._note_due(peer, now_s)
        return False

    def _sent(self, call: Call, now_s: float) -> None:
        """Note when it is due again."""
        call.copies += 1
        call.sent_s = now_s
        call.backoff_s = min(2 * call.backoff_s or self.config.resend_s, self.config.resend_max_s)
        call.due_s = now_s + self._jittered(call.backoff_s)
        if call.due_s < call.peer.calls_due_s:
            self._note_due(call.peer, call.due_s)

    def _open(self, peer: Peer, now_s: float) -> None:
        peer.nonce = self._draw_nonce()
        peer.backoff_s = 0.0
        peer.opened_s = now_s
        self._send_open(peer, now_s)

    def _send_open(self, peer: Peer, now_s: float) -> None:
        limits = Limits(self.life, (VERSION, VERSION), self.config.window, self.config.max_payload_bytes)
        session = peer.session
        life, resume = (0, None) if session is None else (session.life, Resume(self.store_id, session.number, session.next_seq))
        peer.backoff_s = min(2 * peer.backoff_s or self.config.resend_s, self.config.resend_max_s)
        peer.open_due_s = now_s + self._jittered(peer.backoff_s)
        self._timers.set(peer.address, peer.open_due_s)
        if not self._offer(peer, Message(Kind.OPEN, life, seq=peer.nonce, limits=limits, resume=resume), now_s) and peer.blocked:
            peer.open_due_s = now_s

    def _send_release(self, peer: Peer, session: Session, now_s: float) -> bool:
        ranges = session.ranges() if session.has_gaps else ()
        if not self._offer(peer, Message(Kind.RELEASE, session.life, session.number, floor=session.floor, ranges=ranges), now_s):
            return False
        session.sent_s = now_s
        session.abandoned = False
        session.untold_bytes = 0
        session.release_floor = session.floor
        session.release_covers = session.version if len(ranges) < MAX_RANGES else session.told
        return True

    def _offer(self, peer: Peer, message: Message, now_s: float) -> bool:
        try:
            if self._outside.send(peer.address, message):
                return True
            peer.blocked = True
        except OSError as error:
            self._fail_queued(peer, Outcome(Ending.UNREACHABLE, text=str(error)), now_s)
        return False

    def _try_send(self, address: Address, message: Message) -> None:
        """Something that will be asked for again if it does not leave."""
        try:
            self._outside.send(address, message)
        except OSError:
            self.counters["send_errors"] += 1

    # -- ends

    def _end_live(self, session: Session, call: Call, outcome: Outcome, now_s: float) -> None:
        """A live call ends: its number is released."""
        del session.live[call.seq]
        while session.floor < session.next_seq and session.floor not in session.live:
            session.floor += 1
        session.version += 1
        if not session.live:
            call.peer.silent = False  # there is nothing left to ask it with
        if session.release_due_s == inf:
            session.release_backoff_s = 0.0
            session.release_due_s = now_s + self.config.release_delay_s
            self._timers.set(call.peer.address, min(session.release_due_s, call.peer.calls_due_s))
        self._end(call, outcome, now_s)
        if session.version - session.told > session.window // 4 or session.untold_bytes > UNTOLD_BYTES:
            self._release_at_once(call.peer, session, now_s)

    def _release_at_once(self, peer: Peer, session: Session, now_s: float) -> None:
        if session.version - session.release_covers > session.window // 4 or session.untold_bytes > UNTOLD_BYTES:
            self._send_release(peer, session, now_s)

    def _end_queued(self, call: Call, outcome: Outcome, now_s: float) -> None:
        peer = call.peer
        peer.queue.remove(call)
        self._end(call, outcome, now_s)
        self._stop_opening(peer)

    def _fail_queued(self, peer: Peer, outcome: Outcome, now_s: float) -> None:
        queue, peer.queue = peer.queue, deque()
        for call in queue:
            self._end(call, outcome, now_s)
        self._stop_opening(peer)

    def _stop_opening(self, peer: Peer) -> None:
        if peer.nonce and not peer.queue and peer.session is None:
            peer.nonce = 0
            peer.open_due_s = inf

    def _end(self, call: Call, outcome: Outcome, now_s: float) -> None:
        call.peer.request_bytes -= len(call.payload)
        if self.journal is not None and call.number:
            self.journal.drop_call(call)
        call.state = CallState.ENDED
        call.outcome = outcome
        call.payload = b""
        self.counters[f"calls_{outcome.ending.name.lower()}"] += 1
        self._outside.call_ended(call)

    # -- timers

    def _attend(self, peer: Peer, now_s: float) -> None:
        """Whatever is due at one peer, and when to look again."""
        session = peer.session
        if peer.blocked:
            return
        if peer.nonce:
            if peer.open_due_s <= now_s:
                if peer.opened_s > peer.heard_s:
                    self._outside.forget_sent(peer.address)
                self._send_open(peer, now_s)
        elif session is not None and peer.closing:
            if peer.calls_due_s <= now_s:
                self._send_close(peer, session, now_s)
        elif session is not None:
            if peer.calls_due_s <= now_s:
                self._resend_due(peer, session, now_s)
            self._release_due(peer, session, now_s)
        self._schedule(peer)

    def _schedule(self, peer: Peer) -> None:
        session = peer.session
        due_s = inf if peer.blocked else peer.open_due_s
        if session is not None and peer.closing:
            due_s = peer.calls_due_s
        elif session is not None and not peer.nonce and not peer.blocked:
            keep_s = session.sent_s + session.lease_s / 4 if session.live else inf
            due_s = min(due_s, peer.calls_due_s, session.release_due_s, keep_s)
        self._timers.set(peer.address, due_s)

    def _resend_due(self, peer: Peer, session: Session, now_s: float) -> None:
        """Send again what is due: all of it to a peer that talks, one call to a peer that is silent."""
        due = [call for call in session.live.values() if call.due_s <= now_s]
        if due and peer.heard_s < due[0].sent_s:
            peer.silent = True
            self._outside.forget_sent(peer.address)
        for index, call in enumerate(due):
            if peer.blocked or (peer.silent and index):
                call.due_s = due[0].due_s
            else:
                self._send_numbered(call, now_s)
        peer.calls_due_s = min((call.due_s for call in session.live.values()), default=inf)

    def _release_due(self, peer: Peer, session: Session, now_s: float) -> None:
        """Tell the peer of releases that no call has carried for a while; and that we live, if we say nothing else."""
        keep = session.live and now_s >= session.sent_s + session.lease_s / 4
        if session.release_due_s <= now_s:
            if session.told >= session.version:
                session.release_due_s = inf
                session.abandoned = False
            elif (calm_s := session.sent_s + self.config.release_delay_s) > now_s and not session.release_backoff_s:
                session.release_due_s = calm_s
            else:
                session.release_backoff_s = min(2 * session.release_backoff_s or self.config.resend_s, self.config.resend_max_s)
                session.release_due_s = now_s + self._jittered(session.release_backoff_s)
                keep = True
        if keep:
            self._send_release(peer, session, now_s)

    def _heard(self, peer: Peer, now_s: float) -> None:
        peer.heard_s = now_s
        if peer.silent:
            peer.silent = False
            self._make_due(peer, now_s)

    def _make_due(self, peer: Peer, now_s: float) -> None:
        """Everything unanswered is due now."""
        if peer.session is not None:
            for call in peer.session.live.values():
                call.due_s = now_s
                call.backoff_s = 0.0
            if peer.session.live:
                self._note_due(peer, now_s)

    def _note_due(self, peer: Peer, due_s: float) -> None:
        if due_s < peer.calls_due_s:
            peer.calls_due_s = due_s
            session = peer.session
            self._timers.set(peer.address, due_s if session is None else min(due_s, session.release_due_s))

    def _jittered(self, delay_s: float) -> float:
        return delay_s * (1 + JITTER * (2 * self._uniform() - 1))

    # -- closing

    def close(self, now_s: float) -> None:
        """Take no more calls, and give up those that were not sent."""
        self.closing = True
        for peer in self.peers.values():
            durable = deque(call for call in peer.queue if call.number)
            peer.queue = deque(call for call in peer.queue if not call.number)
            self._fail_queued(peer, Outcome(Ending.NEVER_SENT, text="this courier is closing"), now_s)
            peer.queue = durable

    def part(self, now_s: float) -> None:
        """Give up what is live, and end every session; with a store: keep both for the next time."""
        for peer in self.peers.values():
            session = peer.usable
            if session is None:
                continue
            for call in list(session.live.values()):
                if not call.number:
                    self._end_live(session, call, Outcome(Ending.CLOSED), now_s)
            if self.journal is not None:
                self._send_release(peer, session, now_s)
                continue
            peer.closing = True
            peer.backoff_s = 0.0
            self._send_close(peer, session, now_s)

    def is_parted(self) -> bool:
        """Whether every peer has answered the end of its session; with a store: whether it knows all that was released."""
        return not any(self._awaits_end(peer) for peer in self.peers.values())

    def _awaits_end(self, peer: Peer) -> bool:
        session = peer.session
        if session is None:
            return False
        if self.journal is None:
            return peer.closing
        return peer.nonce != 0 or session.told < session.version  # what was released is told when the session is open again

    def _send_close(self, peer: Peer, session: Session, now_s: float) -> None:
        peer.backoff_s = min(2 * peer.backoff_s or self.config.close_s * CLOSE_RESEND, self.config.close_s)
        peer.calls_due_s = now_s + peer.backoff_s
        self._timers.set(peer.address, peer.calls_due_s)
        self._offer(peer, Message(Kind.CLOSE, session.life, session.number, floor=session.floor), now_s)

    # -- for statistics

    def live_calls(self) -> Iterator[Call]:
        for peer in self.peers.values():
            if peer.session is not None:
                yield from peer.session.live.values()
