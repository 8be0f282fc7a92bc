"""Whether the kernel's reports agree with what we did. Owns the memory of our last actions; decides only what is believed.

The kernel reports our own actions back to us, later, and for IPv6 not in order: an addition is reported from a work queue and may arrive
after the report of the removal that followed it. So a report that contradicts what we did less than `ECHO_S` ago is not believed: the
kernel is asked. It is asked too when an action is not reported back within that time.
"""

from __future__ import annotations

from math import inf

__all__ = ["ECHO_S", "Echoes"]

ECHO_S = 1.0

Which = tuple[str, str, int]
"""IP, port and prefix length."""


class Echoes:
    def __init__(self) -> None:
        self._done: dict[Which, tuple[bool, float]] = {}  # whether it is there since, and when we did that
        self._unconfirmed: set[Which] = set()

    def did(self, which: Which, present: bool, now_s: float) -> None:
        self._done = {each: done for each, done in self._done.items() if done[1] > now_s - ECHO_S or each in self._unconfirmed}
        self._done[which] = present, now_s
        self._unconfirmed.add(which)

    def believes(self, which: Which, present: bool, now_s: float) -> bool:
        """Whether a report is to be believed; one that agrees confirms what we did."""
        there, done_s = self._done.get(which, (present, -inf))
        if there is present:
            self._unconfirmed.discard(which)
            return True
        return now_s >= done_s + ECHO_S

    def overdue(self, now_s: float) -> bool:
        return self.next_s() <= now_s

    def next_s(self) -> float:
        """When the first action will have been without report for too long."""
        return min((self._done[which][1] + ECHO_S for which in self._unconfirmed), default=inf)

    def read_back(self) -> None:
        """Everything has been read from the kernel: nothing is outstanding. Late reports may still come."""
        self._unconfirmed.clear()
