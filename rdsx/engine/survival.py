"""Whether a link outlives a move of one of its addresses. No I/O.

A byte stream mostly does: what was lost on the way is sent again, now over the new one. But one that stood still for long has learned to
try rarely, and sleeps on after the way is free again: after 8 s of silence for up to 6 s more. To drop such a link and dial again takes a
millisecond. So a link on which everything that was under way at the move is acknowledged soon is kept, and one that has given up waiting
for an answer is not. What the peer sends does not count, nor does that some of ours arrives: over IPv6 a segment can be caught for 3 s in
the queue of a neighbour that the dead port still asks for. TCP does not send again what has not left the host, and all the while everything
else passes.
"""

from __future__ import annotations

from enum import Enum

from rdsx.moves import Progress

__all__ = ["LOOK_AGAIN_S", "Trial", "Verdict"]

LOOK_AGAIN_S = 0.3  # longer than TCP's shortest retransmission timeout, 0.2 s: by then a lost segment has been sent again


class Verdict(Enum):
    KEEP = "keep"  # it has survived
    WAIT = "wait"  # look again after LOOK_AGAIN_S
    DROP = "drop"  # it would sleep on


class Trial:
    """One link, from a move until it is known to have survived, or not to."""

    def __init__(self) -> None:
        self._began_at = 0  # in acknowledged bytes
        self._wanted: int | None = None  # so many must be acknowledged for what was under way to have arrived
        self._acknowledged_bytes = 0

    def look(self, now: Progress) -> Verdict:
        """`now`: how the stream fares, first at the move, then each time after LOOK_AGAIN_S."""
        before, self._acknowledged_bytes = self._acknowledged_bytes, now.acknowledged_bytes
        if now.is_stalled:
            return Verdict.DROP
        if self._wanted is None:
            return self._begin(now)
        if now.acknowledged_bytes >= self._wanted:
            if now.acknowledged_bytes == self._began_at and now.outstanding_bytes:
                return self._begin(now)  # nothing was under way; what is now may have been sent a millisecond ago
            return Verdict.KEEP
        return Verdict.WAIT if now.acknowledged_bytes > before else Verdict.DROP

    def _begin(self, now: Progress) -> Verdict:
        self._began_at = now.acknowledged_bytes
        self._wanted = now.acknowledged_bytes + now.outstanding_bytes
        return Verdict.WAIT
