"""The deadline table. Owns when whom to look at; knows no clock.

Setting a later time for something is free: only an earlier one costs an entry in the heap. Invariants: for each key with a time, the
heap has an entry at that time or before; the heap is at most a few times as long as there are keys.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

__all__ = ["Timers"]

K = TypeVar("K", bound=Hashable)

STALE_FACTOR, STALE_ENTRIES = 4, 64  # of entries whose time was changed, before they are thrown out


class Timers(Generic[K]):
    """Times in seconds, one for each key."""

    __slots__ = ("_due", "_entries", "_heap", "_made")

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._entries: dict[K, float] = {}  # the earliest entry of each key in the heap
        self._heap: list[tuple[float, int, K]] = []
        self._made = 0  # orders entries of one time

    def set(self, key: K, due_s: float) -> None:
        """Look at `key` at `due_s`, and not at the time set before; `inf`: never."""
        if due_s == inf:
            self._due.pop(key, None)
            return
        self._due[key] = due_s
        if due_s < self._entries.get(key, inf):
            self._push(key, due_s)

    def next_s(self) -> float:
        """When to call `pop_due`, or earlier than needed; `inf` if there is nothing."""
        while self._heap and self._heap[0][2] not in self._due:
            self._forget_first()
        return self._heap[0][0] if self._heap else inf

    def pop_due(self, now_s: float) -> list[K]:
        """The keys whose time has come, each once. They have no time any more."""
        found: list[K] = []
        while self._heap and self._heap[0][0] <= now_s:
            key = self._forget_first()
            due_s = self._due.get(key, inf)
            if due_s <= now_s:
                del self._due[key]
                found.append(key)
            elif due_s < self._entries.get(key, inf):
                self._push(key, due_s)
        return found

    def _push(self, key: K, due_s: float) -> None:
        if len(self._heap) > STALE_FACTOR * len(self._due) + STALE_ENTRIES:
            self._heap = [(at_s, index, each) for index, (each, at_s) in enumerate(self._due.items())]
            heapify(self._heap)
            self._entries = dict(self._due)
            self._made = len(self._heap)
            if due_s >= self._due.get(key, inf):
                return
        self._entries[key] = due_s
        self._made += 1
        heappush(self._heap, (due_s, self._made, key))

    def _forget_first(self) -> K:
        at_s, _, key = heappop(self._heap)
        if self._entries.get(key) == at_s:
            del self._entries[key]
        return key
