"""When to try again: the kernel's reconnect backoff, and a quicker one for an address that is on its way to another port."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Backoff"]

# While an address moves, or a device learns of it, there is no way to the peer. That is over in a moment, mostly.
MOVE_DELAYS_S = (0.010, 0.020, 0.050, 0.100)


class Backoff:
    """Delays of successive attempts: none, then uniform below min, 2 min, 4 min … max. `uniform()` gives numbers in [0, 1)."""

    def __init__(self, min_delay_s: float, max_delay_s: float, uniform: Callable[[], float]) -> None:
        self._min_delay_s = min_delay_s
        self._max_delay_s = max_delay_s
        self._uniform = uniform
        self._ceiling_s = 0.0
        self._move_delays_s: list[float] = []

    def reset(self) -> None:
        """The peer has spoken: the next delay is none again."""
        self._ceiling_s = 0.0

    def moved(self) -> None:
        """The peer, or we, can be reached in a new way: the next delay is none again, and the first ones without a way are short."""
        self.reset()
        self._move_delays_s = list(MOVE_DELAYS_S)

    def next_delay_s(self, *, no_way: bool = False) -> float:
        """`no_way`: the last attempt did not leave this host."""
        if no_way and self._move_delays_s:
            return self._move_delays_s.pop(0)
        if self._ceiling_s == 0.0:
            self._ceiling_s = self._min_delay_s
            return 0.0
        delay_s = self._uniform() * self._ceiling_s
        self._ceiling_s = min(2 * self._ceiling_s, self._max_delay_s)
        return delay_s
