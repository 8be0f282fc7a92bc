"""A flag that one task waits on."""

from __future__ import annotations

import trio

__all__ = ["Signal"]


class Signal:
    """set() is synchronous and never lost; wait() returns once for any number of set()s since it last returned. One waiter."""

    def __init__(self) -> None:
        self._is_set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        self._is_set = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Wait until set. Cancelled: the flag stays as it is."""
        if not self._is_set:
            self._task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._is_set = False
