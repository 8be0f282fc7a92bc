"""The test's handle on an rdsx node that runs in the lab's namespace (`peer.py`), in the package that the test itself uses."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

import rdsx

from .host import HostProcess
from .lab import Lab

__all__ = ["Driver", "DriverError", "open_rdsx"]

PEER = Path(__file__).with_name("peer.py")
START_S = 30.0
CLOSE_S = 15.0
LOG_POLL_S = 0.01


class DriverError(Exception):
    """The node's process failed, or said no. The text has what it wrote to stderr."""


class Driver:
    """Made by `open_rdsx()`."""

    def __init__(self, process: HostProcess, address: str) -> None:
        self.address = address
        self.process = process
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._sending = trio.Lock()
        self._arrived = trio.Condition()
        self._ended = False

    async def do(self, verb: str, **arguments: Any) -> Any:
        """Have the node do something (a method of `peer.Peer`), and wait for the result. Calls may run side by side."""
        number = next(self._numbers)
        async with self._sending:
            await self.process.stdin.send_all(json.dumps({"id": number, "do": verb} | arguments).encode() + b"\n")
        return await self.answer(number)

    async def answer(self, number: int) -> Any:
        async with self._arrived:
            while number not in self._answers:
                if self._ended:
                    raise DriverError(f"the rdsx node at {self.address} ended with {self.process.returncode}\n{self.process.errors()}")
                await self._arrived.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise DriverError(f"{answer['error']}\n{self.process.errors()}")
        return answer["result"]

    async def wait_log(self, text: str) -> None:
        """Wait until it has said so on stderr."""
        while text not in self.log():
            await trio.sleep(LOG_POLL_S)

    async def kill(self) -> None:
        """SIGKILL, as a crash. What it had queued is lost."""
        self.process.send_signal(9)
        await self.process.wait()

    def log(self) -> str:
        """What rdsx logged, and whatever else it wrote to stderr."""
        return self.process.errors()

    async def read_answers(self) -> None:
        buffer = b""
        try:
            async for piece in self.process.stdout:
                *lines, buffer = (buffer + piece).split(b"\n")
                async with self._arrived:
                    for line in lines:
                        answer = json.loads(line)
                        self._answers[answer["id"]] = answer
                    self._arrived.notify_all()
        finally:
            self._ended = True
            with trio.CancelScope(shield=True):
                async with self._arrived:
                    self._arrived.notify_all()


@contextlib.asynccontextmanager
async def open_rdsx(lab: Lab, address: str, **config: Any) -> AsyncIterator[Driver]:
    """An rdsx node at one of the host's addresses; `config` are fields of NodeConfig. Closed in order when the block is left normally."""
    checkout = Path(rdsx.__file__).parent.parent
    environment = {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    argv: list[str | Path] = [sys.executable, PEER, address, json.dumps(config)]
    raised: BaseException | None = None
    async with lab.host_process(argv, environment=environment) as process, trio.open_nursery() as nursery:
        driver = Driver(process, address)
        nursery.start_soon(driver.read_answers)
        try:
            with trio.fail_after(START_S):
                await driver.answer(0)
            yield driver
            if process.returncode is None:
                await process.stdin.aclose()
                with trio.move_on_after(CLOSE_S) as limit:
                    status = await process.wait()
                if limit.cancelled_caught:
                    raise DriverError(f"the rdsx node at {address} does not close\n{driver.log()}")
                if status:
                    raise DriverError(f"the rdsx node at {address} ended with {status}\n{driver.log()}")
        except BaseException as error:  # leaves as it is, not wrapped in the nursery's group
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
