"""RDMA operations as their caller sees them: a handle each, with exactly one outcome."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, final

import trio

from rdsx.addresses import SockAddr

if TYPE_CHECKING:
    from rdsx.memory import Lease

__all__ = ["RdmaOperation", "RdmaOutcome"]


class RdmaOutcome(IntEnum):
    """What became of an operation. The numbers are the kernel's (`status` of struct rds_rdma_notify)."""

    SUCCESS = 0
    """It was done. The message behind it may still be on its way."""
    REMOTE_ERROR = 1
    """The peer's end refused it: no such cookie, beyond the end of the memory, not aligned, or not allowed. Nothing was done, and its
    message is not delivered. Over verbs the connection is lost with it, and re-established."""
    CANCELED = 2
    """Its message was cancelled, or its socket or node was closed, before it was known to be done."""
    DROPPED = 3
    """The connection was lost: it was done once, or not at all. It is not repeated, and its message is not sent."""
    OTHER_ERROR = 4
    """It failed in another way: the device gave up waiting for the answer, for instance. It may have been done."""


@final
class RdmaOperation:
    """An RDMA read, write or atomic that a socket has taken on; made by its `rdma_read()`, `rdma_write()`, `compare_and_swap()` and
    `fetch_and_add()`. Whether somebody waits for it or not, it runs its course, and its local memory is held until it has its outcome."""

    def __init__(self, kind: str, address: SockAddr, cookie: int, length: int) -> None:
        self.kind = kind
        self.address = address
        self.cookie = cookie
        self.length = length
        self._outcome: RdmaOutcome | None = None
        self._done = trio.Event()
        self._old_value: int | None = None

    def __repr__(self) -> str:
        what = "pending" if self._outcome is None else self._outcome.name
        return f"<rdsx.RdmaOperation {self.kind} of {self.length} bytes at {self.address[0]}: {what}>"

    @property
    def outcome(self) -> RdmaOutcome | None:
        """None while it is pending."""
        return self._outcome

    @property
    def old_value(self) -> int:
        """The number that an atomic found in the peer's memory. ValueError unless this is one that succeeded."""
        if self._old_value is None:
            raise ValueError(f"{self!r} has no old value: only an atomic has one, once wait() has returned SUCCESS")
        return self._old_value

    async def wait(self) -> RdmaOutcome:
        """Wait for the outcome. Cancelled: the operation goes on, and keeps its memory. Any number of tasks may wait, at any time."""
        await self._done.wait()
        assert self._outcome is not None
        return self._outcome

    def _conclude(self, status: int, lease: Lease) -> None:
        """Once. `lease`: of the local memory, which is let go of, and where an atomic that was done has put the old value."""
        if status == RdmaOutcome.SUCCESS and self.kind not in ("read", "write"):
            self._old_value = lease.number
        lease.release()
        self._outcome = RdmaOutcome(status)
        self._done.set()
