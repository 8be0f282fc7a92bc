"""The contract of `_pace` as Python sees it."""

from collections.abc import Callable
from typing import final

@final
class Pace:
    """When async methods that need not wait must make a real checkpoint: one for all sockets of a node."""

    def __init__(self, interval_s: float, max_calls: int, clock: Callable[[], float] | None = None) -> None:
        """Yield after `interval_s` or `max_calls` calls. `clock`: the time in seconds; None for the system's monotonic clock."""
    def due(self) -> bool:
        """Count one call by the current trio task: whether it must make a checkpoint, because it is time or it is cancelled."""
    def yielded(self) -> None:
        """A checkpoint was made: start counting again."""
