"""A place where tasks wait until somebody says that things have changed."""

from __future__ import annotations

from collections.abc import Awaitable

from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

__all__ = ["Lot"]


class Lot:
    """trio's ParkingLot with what a socket needs of it and no more: every task is woken at once, so there is no order to keep.

    One park and wake-up is a third of what a ParkingLot's takes; it happens once for each message that somebody waited for. What matters
    is how few objects there are while a task is parked: with thousands of sockets they have left the processor's cache before they are
    used again, and all of them are looked at by the garbage collector. So the first task has a place of its own; mostly it is alone.
    """

    __slots__ = ("_first", "_others")

    def __init__(self) -> None:
        self._first: Task | None = None
        self._others: dict[Task, None] | None = None

    def __len__(self) -> int:
        return (self._first is not None) + (len(self._others) if self._others else 0)

    def park(self) -> Awaitable[None]:
        """Wait for the next unpark_all(): to be awaited right away. Cancelled: leaves the lot."""
        task = current_task()
        if self._first is None:
            self._first = task
            return wait_task_rescheduled(self._leave_first)  # noqa: ASYNC105  the caller awaits it: one coroutine less
        if self._others is None:
            self._others = {}
        others = self._others
        others[task] = None

        def leave(_: object) -> Abort:
            del others[task]
            return Abort.SUCCEEDED

        return wait_task_rescheduled(leave)  # noqa: ASYNC105  as above

    def _leave_first(self, _: object) -> Abort:
        self._first = None
        return Abort.SUCCEEDED

    def unpark_all(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            reschedule(first)
        others, self._others = self._others, None
        if others:
            for task in others:
                reschedule(task)
