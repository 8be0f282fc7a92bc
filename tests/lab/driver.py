"""The test's handles on the two ends of a cable: an rdsx node in the lab's namespace (`peer.py`, in the package that the test itself uses),
and the RDS of a guest's kernel (`guest_peer.py`). Both take the same verbs.

Invariant: what an end said it received is known here, also after the end was killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio

import rdsx

from .guest import OUTPUT_POLL_S, Guest, GuestProcess
from .host import HostProcess
from .lab import Lab

__all__ = ["Driver", "DriverError", "KernelDriver", "RdsxDriver", "open_kernel", "open_rdsx"]

PEER = Path(__file__).with_name("peer.py")
GUEST_PEER = Path(__file__).with_name("guest_peer.py").absolute()
START_S = 30.0
CLOSE_S = 15.0
LOG_POLL_S = 0.01


class DriverError(Exception):
    """The end's process failed, or said no. The text has what it wrote to stderr."""


class Driver:
    """What both have in common: requests and answers, and what was received, by port: (digest, sender) in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
        self.has_ended = False
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._sending = trio.Lock()
        self._arrived = trio.Condition()

    async def do(self, verb: str, **arguments: Any) -> Any:
        """Have it done (a method of `peer.Peer` or `guest_peer.Peer`), and wait for the result. Calls may run side by side."""
        return await self.answer(await self.tell(verb, **arguments))

    async def tell(self, verb: str, **arguments: Any) -> int:
        """do() without waiting for the result, which answer() gives for the number that this returns."""
        number = next(self._numbers)
        async with self._sending:
            await self._write(json.dumps({"id": number, "do": verb} | arguments) + "\n")
        return number

    async def answer(self, number: int) -> Any:
        await self.wait_until(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise DriverError(f"{answer['error']}\n{self.log()}")
        return answer["result"]

    async def wait_received(self, port: int, count: int) -> None:
        """Wait until so many messages came to a port."""
        await self.wait_until(lambda: len(self.received[port]) >= count)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until it is so, looking again whenever the end has said something. DriverError if it has ended without."""
        async with self._arrived:
            while not condition():
                if self.has_ended:
                    raise DriverError(f"the end at {self.address} has ended\n{self.log()}")
                await self._arrived.wait()

    async def kill(self) -> None:
        """SIGKILL, as a crash. What it had queued is lost."""
        raise NotImplementedError

    def log(self) -> str:
        """What it wrote besides."""
        raise NotImplementedError

    async def _write(self, text: str) -> None:
        raise NotImplementedError

    async def _read(self, lines: list[str]) -> None:
        async with self._arrived:
            for line in lines:
                said = json.loads(line)
                if "id" in said:
                    self._answers[said["id"]] = said
                else:
                    self.received[said["port"]] += [(digest, sender) for digest, sender in said["messages"]]
            self._arrived.notify_all()

    async def _end(self) -> None:
        self.has_ended = True
        with trio.CancelScope(shield=True):
            async with self._arrived:
                self._arrived.notify_all()


class RdsxDriver(Driver):
    """Made by `open_rdsx()`."""

    def __init__(self, process: HostProcess, address: str) -> None:
        super().__init__(address)
        self.process = process

    async def wait_log(self, text: str) -> None:
        """Wait until it has said so on stderr."""
        while text not in self.log():
            await trio.sleep(LOG_POLL_S)

    async def kill(self) -> None:
        self.process.send_signal(9)
        await self.process.wait()
        async with self._arrived:
            while not self.has_ended:
                await self._arrived.wait()

    async def close(self) -> None:
        """Have it leave `open_node`. DriverError if it does not, or not well."""
        await self.process.stdin.aclose()
        with trio.move_on_after(CLOSE_S) as limit:
            status = await self.process.wait()
        if limit.cancelled_caught:
            raise DriverError(f"the rdsx node at {self.address} does not close\n{self.log()}")
        if status:
            raise DriverError(f"the rdsx node at {self.address} ended with {status}\n{self.log()}")

    def log(self) -> str:
        return self.process.errors()

    async def _write(self, text: str) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # it was killed: whoever waits for the answer is told
            await self.process.stdin.send_all(text.encode())

    async def read_answers(self) -> None:
        buffer = b""
        try:
            async for piece in self.process.stdout:
                *lines, buffer = (buffer + piece).split(b"\n")
                await self._read([line.decode() for line in lines])
        finally:
            await self._end()


class KernelDriver(Driver):
    """Made by `open_kernel()`."""

    def __init__(self, process: GuestProcess, address: str) -> None:
        super().__init__(address)
        self.process = process

    async def kill(self) -> None:
        """Pull the guest's plug. What its kernel had is lost, and nobody is told."""
        await self.process.guest.kill()
        async with self._arrived:
            while not self.has_ended:
                await self._arrived.wait()

    def log(self) -> str:
        return "\n".join(line for line in self.process.output.splitlines() if not line.startswith("{"))

    async def _write(self, text: str) -> None:
        self.process.write(text)

    async def read_answers(self) -> None:
        position, ended = 0, False
        try:
            while not ended:
                ended = self.process.has_ended
                output = self.process.output_from(position)
                complete = output.rfind("\n") + 1
                if complete:
                    position += len(output[:complete].encode())
                    await self._read([line for line in output[:complete].splitlines() if line.startswith("{")])
                await trio.sleep(OUTPUT_POLL_S)
        finally:
            await self._end()


@contextlib.asynccontextmanager
async def open_rdsx(lab: Lab, address: str, **config: Any) -> AsyncIterator[RdsxDriver]:
    """An rdsx node at one of the host's addresses; `config` are fields of NodeConfig. Closed in order when the block is left normally."""
    checkout = Path(rdsx.__file__).parent.parent
    environment = {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    argv: list[str | Path] = [sys.executable, PEER, address, json.dumps(config)]
    raised: BaseException | None = None
    async with lab.host_process(argv, environment=environment) as process, trio.open_nursery() as nursery:
        driver = RdsxDriver(process, address)
        nursery.start_soon(driver.read_answers)
        try:
            with trio.fail_after(START_S):
                await driver.answer(0)
            yield driver
            if process.returncode is None:
                await driver.close()
        except BaseException as error:  # leaves as it is, not wrapped in the nursery's group
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


@contextlib.asynccontextmanager
async def open_kernel(guest: Guest, address: str | None = None) -> AsyncIterator[KernelDriver]:
    """AF_RDS in a guest, at its IPv4 address unless told otherwise. Its sockets are gone when the block is left, what they queued too."""
    address = address or guest.address
    command = guest.rds_command(f"/run/lab/$0.in {address}", GUEST_PEER)
    raised: BaseException | None = None
    async with guest.start_process(command) as process, trio.open_nursery() as nursery:
        driver = KernelDriver(process, address)
        nursery.start_soon(driver.read_answers)
        try:
            with trio.fail_after(START_S):
                await driver.answer(0)
            yield driver
        except BaseException as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
