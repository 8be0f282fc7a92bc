"""When an action may be tried again. Owns the patience with what was refused, and with what has to be done again and again.

A refused action waits 1, 2, 4 … 60 s. One that succeeds and has to be repeated all the time, because somebody undoes it, is slowed down to
one a second after `FREE` of them within `WINDOW_S`, so that two programs that disagree do not burn a processor. An address that we move
ourselves, however often, does not wait: between two additions to one port it has been added to another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf

from rdsx.rdmaip.actions import Action

__all__ = ["Retries", "RetryKey"]

RetryKey = tuple[type[Action] | str, ...]
"""What is done, to which address and on which port: as far as the action has them, in this order."""

FIRST_S, LAST_S = 1.0, 60.0
FREE, WINDOW_S, SPACING_S = 5, 10.0, 1.0


class Retries:
    """Per key: until when it must wait."""

    def __init__(self) -> None:
        self._until_s: dict[RetryKey, float] = {}
        self._delay_s: dict[RetryKey, float] = {}
        self._done_s: dict[RetryKey, deque[float]] = {}

    def allows(self, key: RetryKey, now_s: float) -> bool:
        return self._until_s.get(key, -inf) <= now_s

    def refused(self, key: RetryKey, now_s: float) -> float:
        """Returns for how long it must wait."""
        delay_s = min(2 * self._delay_s.get(key, FIRST_S / 2), LAST_S)
        self._delay_s[key] = delay_s
        self._until_s[key] = now_s + delay_s
        return delay_s

    def succeeded(self, key: RetryKey, now_s: float) -> None:
        self.forget((key,))
        for other in [each for each in self._done_s if len(each) == 3 and each[:2] == key[:2] and each != key]:
            del self._done_s[other]
        done_s = self._done_s.setdefault(key, deque(maxlen=FREE))
        done_s.append(now_s)
        if len(done_s) == FREE and done_s[0] > now_s - WINDOW_S:
            self._until_s[key] = now_s + SPACING_S

    def forget(self, keys: Iterable[RetryKey]) -> None:
        """Whatever stood in the way may be gone: try again at once."""
        for key in keys:
            self._until_s.pop(key, None)
            self._delay_s.pop(key, None)

    def waiting(self) -> list[RetryKey]:
        """Keys that have been refused and not allowed since."""
        return list(self._delay_s)

    def next_s(self, now_s: float) -> float:
        """When the next key may be tried; `inf` if none waits."""
        return min((until_s for until_s in self._until_s.values() if until_s > now_s), default=inf)
