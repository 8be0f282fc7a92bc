"""Message holders: what a callee remembers of each call of one session. Owns the tables and their sums; sends nothing.

A holder is there from the arrival of its number until the caller has released it, or its session has ended; nothing else removes it. That
is what makes a second copy of a call harmless. Invariants: no holder is below `floor` or in `released`; `reply_bytes` is the sum over the
replies held; `known_to` is not known, and every smaller number is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from math import inf
from typing import Any, Literal

__all__ = ["Address", "CallerRecord", "Holder", "HolderState", "IncomingSession", "Lane", "Terms"]

Address = tuple[Any, ...]
Order = Literal["none", "start", "serial"]

EVICTED_KEPT = 64  # numbers of half-open sessions that made room, of one peer


class HolderState(IntEnum):
    """WAITING: for its turn or for a slot. REFUSED: final, the handler never ran. VOID: cancelled before it came."""

    WAITING = 0
    RUNNING = 1
    DONE = 2
    REFUSED = 3
    VOID = 4


@dataclass(frozen=True, slots=True)
class Terms:
    """What the callee must know of a handler."""

    max_payload_bytes: int
    order: Order = "none"
    lane: str = ""
    concurrency: int = 2**31
    journal: bool = False
    """Whether RUNNING is written to the store before the handler begins."""


class Holder:
    """One call at its callee. `owner` belongs to whoever runs the handler."""

    __slots__ = (
        "born_s", "code", "copies", "crc", "done_s", "length", "msg_type", "owner", "payload", "reply", "seq", "session", "state", "status",
        "terms", "text", "working_s",
    )  # fmt: skip

    def __init__(self, session: IncomingSession, seq: int, msg_type: int, length: int, crc: int, now_s: float) -> None:
        self.session = session
        self.seq = seq
        self.msg_type = msg_type
        self.length = length
        self.crc = crc
        self.state = HolderState.WAITING
        self.terms: Terms | None = None
        self.payload = b""
        self.code = 0
        self.status = 0
        self.reply = b""
        self.text = ""
        self.copies = 1
        self.born_s = now_s
        self.done_s = inf
        self.working_s = -inf  # when the caller was last told that it runs
        self.owner: Any = None


class Lane:
    """Ordered calls of one session that wait for those before them. `pending`: the one whose turn it is and that has not begun."""

    __slots__ = ("pending", "running", "waiting")

    def __init__(self) -> None:
        self.waiting: list[int] = []  # a heap
        self.pending: Holder | None = None
        self.running = 0


class CallerRecord:
    """What we know of one peer address as a caller."""

    __slots__ = ("address", "blocked", "busy_sent", "duplicates", "evicted", "opened", "refused", "sessions", "unsent")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.sessions: dict[int, IncomingSession] = {}
        self.opened: dict[tuple[int, int], IncomingSession] = {}  # by (caller's life, nonce)
        self.evicted: list[int] = []  # numbers of half-open sessions that made room, the oldest first
        self.unsent: dict[Holder, None] = {}  # answers that the socket did not take
        self.blocked = False
        self.duplicates = 0
        self.refused = 0
        self.busy_sent = 0

    def remember_evicted(self, number: int) -> list[int]:
        """Returns the numbers that are forgotten for it."""
        self.evicted.append(number)
        forgotten = self.evicted[:-EVICTED_KEPT]
        del self.evicted[:-EVICTED_KEPT]
        return forgotten


class IncomingSession:
    """One caller's life calling us."""

    __slots__ = (
        "busy_s", "busy_until_s", "caller_life", "confirmed", "floor", "floor_s", "heard_s", "highest_seq", "holders", "known_to", "lanes",
        "nonce", "number", "opened_s", "parked", "queried", "query_s", "ready", "record", "released", "reply_bytes", "retired", "running",
    )  # fmt: skip

    def __init__(self, record: CallerRecord, number: int, caller_life: int, nonce: int, now_s: float) -> None:
        self.record = record
        self.number = number
        self.caller_life = caller_life
        self.nonce = nonce
        self.confirmed = False
        self.retired = False
        self.opened_s = self.heard_s = self.floor_s = now_s
        self.floor = 1
        self.released = 0  # bit n: floor + n is released
        self.known_to = 1
        self.highest_seq = 0
        self.holders: dict[int, Holder] = {}
        self.reply_bytes = 0
        self.running = 0
        self.ready = 0  # holders that wait for a slot only
        self.parked: list[Holder] = []  # ... which this session does not have
        self.lanes: dict[str, Lane] = {}
        self.query_s = inf
        self.queried = 0
        self.busy_s = 0.0
        self.busy_until_s = -inf

    def still_waits(self, holder: Holder) -> bool:
        """Whether its handler is still to begin."""
        return holder.state is HolderState.WAITING and self.holders.get(holder.seq) is holder

    def is_released(self, seq: int) -> bool:
        return seq < self.floor or bool(self.released >> (seq - self.floor) & 1)

    def highest_seen(self) -> int:
        """No number above it has been used, as far as we know."""
        return max(self.highest_seq, self.floor + self.released.bit_length() - 1)

    def release(self, floor: int, ranges: tuple[tuple[int, int], ...], window: int, now_s: float) -> list[Holder]:
        """Apply what the caller no longer wants; returns the holders that are gone from the table."""
        gone: list[Holder] = []
        if floor > self.floor:
            gone = self._raise_floor(floor)
            self.floor_s = now_s
        for start, stop in ranges:
            self._add_range(max(start, self.floor), min(stop, self.floor + window), gone)
        return gone

    def _raise_floor(self, floor: int) -> list[Holder]:
        holders = self.holders
        if floor - self.floor <= len(holders):
            below = [seq for seq in range(self.floor, floor) if seq in holders]
        else:
            below = [seq for seq in holders if seq < floor]
        self.released >>= floor - self.floor if self.released else 0
        self.floor = floor
        self.known_to = max(self.known_to, floor)
        return [holders.pop(seq) for seq in below]

    def _add_range(self, start: int, stop: int, gone: list[Holder]) -> None:
        if start >= stop:
            return
        self.released |= ((1 << (stop - start)) - 1) << (start - self.floor)
        for seq in range(start, stop):
            holder = self.holders.pop(seq, None)
            if holder is not None:
                gone.append(holder)

    def advance_known(self) -> None:
        """Move `known_to` over what has arrived or was released since."""
        while self.known_to in self.holders or self.is_released(self.known_to):
            self.known_to += 1

    # -- order

    def line_up(self, holder: Holder, lane_name: str) -> None:
        heappush(self.lanes.setdefault(lane_name, Lane()).waiting, holder.seq)

    def poll_turn(self) -> Holder | None:
        """The next ordered call whose turn has come; it is its lane's `pending` until it begins or is dropped."""
        self.advance_known()
        for lane in self.lanes.values():
            while lane.pending is None and lane.waiting and lane.waiting[0] < self.known_to:
                holder = self.holders.get(lane.waiting[0])
                if holder is None or holder.state is not HolderState.WAITING:
                    heappop(lane.waiting)
                    continue
                assert holder.terms is not None
                if holder.terms.order == "serial" and lane.running:
                    break
                heappop(lane.waiting)
                lane.pending = holder
                return holder
        return None
