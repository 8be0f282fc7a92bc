"""Run a trio program on virtual time, the same way every time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio.testing

__all__ = ["run"]

T = TypeVar("T")


def run(main: Callable[..., Awaitable[T]], *args: Any, seed: int = 0) -> T:
    """`trio.run(main, *args)` on a clock that jumps whenever every task sleeps, with the scheduler's order fixed by `seed`.

    Two runs with one seed do the same, as long as the program itself draws nothing from outside (time, entropy, real sockets). Give
    nodes `NodeConfig(seed=…, sequence_base=…)` for the same reason.
    """
    # Trio shuffles runnable tasks with a private generator; pytest-trio makes it deterministic for hypothesis in this same way.
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before
