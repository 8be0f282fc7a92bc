"""When to try again: the kernel's reconnect backoff."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Delays of successive attempts: none, then uniform below min, 2 min, 4 min … max. `uniform()` gives numbers in [0, 1)."""

    def __init__(self, min_delay_s: float, max_delay_s: float, uniform: Callable[[], float]) -> None:
        self._min_delay_s = min_delay_s
        self._max_delay_s = max_delay_s
        self._uniform = uniform
        self._ceiling_s = 0.0

    def reset(self) -> None:
        """The peer has spoken: the next delay is none again."""
        self._ceiling_s = 0.0

    def next_delay_s(self) -> float:
        if self._ceiling_s == 0.0:
            self._ceiling_s = self._min_delay_s
            return 0.0
        delay_s = self._uniform() * self._ceiling_s
        self._ceiling_s = min(2 * self._ceiling_s, self._max_delay_s)
        return delay_s
