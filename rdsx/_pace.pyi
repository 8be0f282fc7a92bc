"""The contract of `_pace` as Python sees it."""

from collections.abc import Callable
from typing import Any, final

from typing_extensions import Buffer

from rdsx._fast import Endpoint

@final
class Pace:
    """When async methods that need not wait must make a real checkpoint: one for all sockets of a node."""

    def __init__(self, interval_s: float, max_calls: int, clock: Callable[[], float] | None = None) -> None:
        """Yield after `interval_s` or `max_calls` calls. `clock`: the time in seconds; None for the system's monotonic clock."""
    def due(self) -> bool:
        """Count one call by the current trio task: whether it must make a checkpoint, because it is time or it is cancelled."""
    def submit(self, endpoint: Endpoint, data: Buffer, address: tuple[Any, ...]) -> int:
        """`endpoint.submit()`, unless a checkpoint is due first: the length of the message, or minus the code why it was not queued; -100
        when that was not tried, because of the checkpoint, an endpoint that is not bound, or data that is not `bytes`.
        """
    def take(self, endpoint: Endpoint) -> tuple[bytes, tuple[Any, ...]] | None:
        """`endpoint.take()`; None when a checkpoint is due first, too."""
    def yielded(self) -> None:
        """A checkpoint was made: start counting again."""
