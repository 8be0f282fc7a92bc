"""The event loops that backends run under. Owns how a worker's main coroutine runs, and how it waits for a blocking function and for
several coroutines at once. The last two are never used within the inner loop of a measurement.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["AsyncioRuntime", "BlockingRuntime", "Runtime", "TrioRuntime"]

Main = Coroutine[Any, Any, None]


class Runtime(ABC):
    """What a worker needs of an event loop."""

    @abstractmethod
    def run(self, main: Callable[[], Main]) -> None:
        """Run to the end."""

    @abstractmethod
    async def wait_for(self, function: Callable[[], str]) -> str:
        """The result of a function that blocks, while other tasks run."""

    @abstractmethod
    async def gather(self, first: Main, second: Main) -> None:
        """Run both to the end, side by side."""


class TrioRuntime(Runtime):
    def run(self, main: Callable[[], Main]) -> None:
        import trio

        trio.run(main)

    async def wait_for(self, function: Callable[[], str]) -> str:
        import trio

        return await trio.to_thread.run_sync(function)

    async def gather(self, first: Main, second: Main) -> None:
        import trio

        async with trio.open_nursery() as tasks:
            tasks.start_soon(lambda: first)
            await second


class AsyncioRuntime(Runtime):
    """`runner`: asyncio.run, or that of another implementation."""

    def __init__(self, runner: Callable[[Main], None] = asyncio.run) -> None:
        self._runner = runner

    def run(self, main: Callable[[], Main]) -> None:
        self._runner(main())

    async def wait_for(self, function: Callable[[], str]) -> str:
        return await asyncio.get_running_loop().run_in_executor(None, function)

    async def gather(self, first: Main, second: Main) -> None:
        await asyncio.gather(first, second)


class BlockingRuntime(Runtime):
    """No loop: coroutines that never yield, for libraries whose calls block."""

    def run(self, main: Callable[[], Main]) -> None:
        run_blocking(main())

    async def wait_for(self, function: Callable[[], str]) -> str:
        return function()

    async def gather(self, first: Main, second: Main) -> None:
        first.close()
        second.close()
        raise RuntimeError("a blocking backend plays one part at a time")


def run_blocking(main: Main) -> None:
    try:
        main.send(None)
    except StopIteration:
        return
    raise RuntimeError("a coroutine of a blocking backend must not wait for an event loop")
