"""What a backend is made of: the part that one process plays. Owns the contract; a backend is a module with a subclass named `Side`.

Every receiver looks at each message it is given: it counts it and adds its length. The parent checks both sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from benchmarks.runtimes import Runtime
from benchmarks.scenarios import Job

__all__ = ["Side"]


class Side(ABC):
    """One side of a case. `messages` and `bytes` count what arrived; the worker sets both to 0 at the end of each phase."""

    runtime: Runtime

    def __init__(self, job: Job) -> None:
        self.job = job
        self.case = job.case
        self.scenario = job.case.scenario
        self.payload = b"x" * job.case.size
        self.batch_messages = job.case.batch_messages
        self.messages = 0
        self.bytes = 0
        self.round_trips_ns: list[int] = []

    @abstractmethod
    def opened(self, ready: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Open everything, call `ready` as soon as the other side may connect (left: when connected), and close at the end."""

    async def prepare(self) -> None:  # noqa: B027  most have nothing to prepare
        """Once, before the first message and after idle memory was measured: start what receives."""

    @abstractmethod
    async def send(self, count: int) -> None:
        """Send so many messages, shared evenly by all senders. Returns when the library has taken them all."""

    @abstractmethod
    async def receive(self, count: int) -> None:
        """Return when so many messages have arrived, at all receivers together."""

    @abstractmethod
    async def ping(self, count: int) -> None:
        """So many round trips, one after the other; notes each time in `round_trips_ns`."""

    @abstractmethod
    async def echo(self, count: int) -> None:
        """Send back so many messages."""

    def counters(self) -> dict[str, int]:
        """The library's own counts of system calls, if it has any."""
        return {}
