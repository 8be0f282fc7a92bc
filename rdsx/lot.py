"""A place where tasks wait until somebody says that things have changed."""

from __future__ import annotations

import trio

__all__ = ["Lot"]


class Lot:
    """trio's ParkingLot with what a socket needs of it and no more: every task is woken at once, so there is no order to keep.

    One park and wake-up is half of what a ParkingLot's takes; it happens once for each message that somebody waited for.
    """

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: dict[trio.lowlevel.Task, None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    async def park(self) -> None:
        """Wait for the next unpark_all(). Cancelled: leaves the lot."""
        task = trio.lowlevel.current_task()
        self._tasks[task] = None

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._tasks[task]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def unpark_all(self) -> None:
        if self._tasks:
            tasks, self._tasks = self._tasks, {}
            for task in tasks:
                trio.lowlevel.reschedule(task)
