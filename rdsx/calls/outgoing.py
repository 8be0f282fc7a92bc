"""What a caller keeps: calls, sessions and peers. Plain records; `caller` moves them.

Invariants: numbers ascend in `Session.live` and are never used twice; a number below the floor, or in a released range, is of a call that
has ended.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from math import inf
from typing import Any

from rdsx.calls.outcome import Outcome
from rdsx.calls.wire import MAX_RANGES

__all__ = ["Address", "Call", "CallState", "Peer", "Session"]

Address = tuple[Any, ...]

LEASE_S = 3600  # of a peer that has not said it


class CallState(IntEnum):
    """A call has a number in SENT and CANCELLING only."""

    QUEUED = 0
    SENT = 1
    CANCELLING = 2
    ENDED = 3


class Call:
    """One call, from `Caller.start` until `outcome` is there. `owner` belongs to whoever waits."""

    __slots__ = (
        "backoff_s",
        "copies",
        "covers",
        "due_s",
        "durable",
        "msg_type",
        "number",
        "outcome",
        "owner",
        "payload",
        "peer",
        "sent_s",
        "seq",
        "state",
    )

    def __init__(self, peer: Peer, msg_type: int, payload: bytes, durable: bool) -> None:
        self.peer = peer
        self.msg_type = msg_type
        self.payload = payload
        self.durable = durable
        self.number = 0  # of a durable call, by which a store knows it
        self.state = CallState.QUEUED
        self.seq = 0
        self.sent_s = 0.0
        self.due_s = inf
        self.backoff_s = 0.0
        self.copies = 0
        self.covers = 0  # an answer proves that the peer knows the first so many releases
        self.outcome: Outcome | None = None
        self.owner: Any = None


class Session:
    """Our session with a peer, once it is usable. `version` counts releases; `told` is how many of them the peer certainly knows."""

    __slots__ = (
        "abandoned", "credit", "floor", "lease_s", "life", "live", "max_payload_bytes", "next_seq", "number", "release_backoff_s",
        "release_covers", "release_due_s", "release_floor", "reserved", "sent_s", "told", "untold_bytes", "version", "window",
    )  # fmt: skip

    def __init__(self, life: int, number: int, window: int, credit: int, max_payload_bytes: int) -> None:
        self.life = life
        self.number = number
        self.window = window
        self.credit = credit
        self.max_payload_bytes = max_payload_bytes
        self.lease_s = LEASE_S
        self.next_seq = 1
        self.floor = 1
        self.reserved = 1  # with a store: numbers below it may have been used
        self.live: dict[int, Call] = {}
        self.version = 0
        self.told = 0
        self.abandoned = False  # a number without result was released: the peer is told soon, its order may wait for it
        self.untold_bytes = 0
        self.sent_s = -inf  # when the floor was last sent
        self.release_due_s = inf
        self.release_backoff_s = 0.0
        self.release_covers = 0
        self.release_floor = 0

    @property
    def has_gaps(self) -> bool:
        return self.next_seq - self.floor != len(self.live)

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The released ranges above the floor, the lowest first, at most as many as fit into a message."""
        found = []
        expected = self.floor
        for seq in (*self.live, self.next_seq):
            if seq > expected:
                found.append((expected, seq))
                if len(found) == MAX_RANGES:
                    break
            expected = seq + 1
        return tuple(found)


class Peer:
    """What we owe and expect of one address. `nonce` is not 0 exactly while an OPEN is unanswered."""

    __slots__ = (
        "address", "backoff_s", "blocked", "calls_due_s", "closing", "heard_s", "hinted_life", "newest", "nonce", "open_due_s", "opened_s",
        "queue", "request_bytes", "session", "silent",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.session: Session | None = None
        self.nonce = 0
        self.open_due_s = inf
        self.opened_s = 0.0
        self.backoff_s = 0.0
        self.queue: deque[Call] = deque()
        self.request_bytes = 0
        self.heard_s = -inf
        self.calls_due_s = inf  # no live call is due before
        self.silent = False  # resent to in vain: only one message at a time, so that others have the socket's room
        self.blocked = False  # the socket takes nothing for it
        self.closing = False
        self.newest = (0, 0)  # the callee's life and the highest number of a session that it gave us
        self.hinted_life = 0  # the other life by which we last learnt that it restarted

    @property
    def usable(self) -> Session | None:
        return None if self.nonce or self.closing else self.session
