"""Slots: which calls may run now, and which wait for others to end. Owns the queues and the counts; knows no lanes, and runs nothing.

There are as many slots as `max_running`, for one session as `max_session_running`, for one type as its handler was registered with.
Invariants: `running` and `ready` are the sums of what sessions count; a holder that is ready is in a queue or parked at its session.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from rdsx.calls.config import CallConfig
from rdsx.calls.holder import Holder, IncomingSession, Terms

__all__ = ["Slots"]

STALE_WAITING = 64  # calls that were released while they waited for a slot, before a queue is rid of them


class Slots:
    """`terms`: of the types that are registered now, by type."""

    def __init__(self, config: CallConfig, terms: Mapping[int, Terms]) -> None:
        self.running = 0
        self.ready = 0
        self._config = config
        self._terms = terms
        self._queues: dict[int, deque[Holder]] = {}
        self._running_by_type: Counter[int] = Counter()

    def is_full(self, session: IncomingSession) -> bool:
        """Whether as many wait as may run, so that no other call may come to wait."""
        config = self._config
        return self.running + self.ready >= 2 * config.max_running or session.running + session.ready >= 2 * config.max_session_running

    def wait(self, holder: Holder) -> None:
        """It may run as soon as there is a slot."""
        self.ready += 1
        holder.session.ready += 1
        queue = self._queues.get(holder.msg_type)
        if queue is None:
            queue = self._queues[holder.msg_type] = deque()
        elif len(queue) > 2 * self.ready + STALE_WAITING:
            queue = self._queues[holder.msg_type] = deque(each for each in queue if each.session.still_waits(each))
        queue.append(holder)

    def leave(self, holder: Holder) -> None:
        """It waited, and will not run."""
        self.ready -= 1
        holder.session.ready -= 1

    def take(self) -> Holder | None:
        """The next call to run; it has its slot until `give_back`."""
        if self.running >= self._config.max_running:
            return None
        for msg_type, queue in self._queues.items():
            concurrency = self._terms[msg_type].concurrency if msg_type in self._terms else 1
            while queue and self._running_by_type[msg_type] < concurrency:
                holder = queue.popleft()
                session = holder.session
                if not session.still_waits(holder):
                    continue
                if session.running >= self._config.max_session_running:
                    session.parked = [each for each in session.parked if session.still_waits(each)]
                    session.parked.append(holder)
                    continue
                self.leave(holder)
                self._count(holder, 1)
                return holder
        return None

    def give_back(self, holder: Holder) -> None:
        """It has ended."""
        self._count(holder, -1)

    def unpark(self, session: IncomingSession) -> None:
        """One more of this session may run."""
        while session.parked:
            waiting = session.parked.pop(0)
            if session.still_waits(waiting):
                self._queues[waiting.msg_type].append(waiting)
                break

    def _count(self, holder: Holder, change: int) -> None:
        self.running += change
        holder.session.running += change
        self._running_by_type[holder.msg_type] += change
