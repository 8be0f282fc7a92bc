"""The parent of the two node processes of `rdsx demo`. Owns the processes: starts, listens, ends them; knows nothing of RDS.

Invariant: when `supervise` returns or raises, for whatever reason, both processes have ended and been waited for.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import trio

from rdsx.cli.running import CliError

__all__ = ["STALL_S", "NodeProcess", "supervise"]

STALL_S = 20.0  # nothing delivered for so long: what is missing counts as lost
START_S = 60.0  # to import rdsx and bind, on a slow machine
EXIT_S = 10.0  # to report or end; longer than a node's own limit for an orderly end
# As multiprocessing's spawn: the same import path as here, and never the current directory in front of it.
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); from rdsx.cli.worker import main; main()"


class NodeProcess:
    """One node process: what it was told and what it said."""

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        self.name = name
        self.job = job
        self.progress: dict[str, int] = {}
        self.events = {event: trio.Event() for event in ("ready", "done", "result", "ended")}
        self.result: dict[str, Any] = {}
        self.stopping = False
        self._process: trio.Process | None = None
        self._errors: deque[str] = deque(maxlen=20)

    @property
    def pid(self) -> int | None:
        """The process id; None before the start."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Start the process and listen until it ends. Raises CliError if it ends on its own; kills it when cancelled."""
        command = [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path)]
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C in the terminal reaches the parent only, which then ends both.
        process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._process = process
        try:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._listen)
                tasks.start_soon(self._collect_errors)
                tasks.start_soon(self.tell, json.dumps(self.job))
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            self.events["ended"].set()
        if status != 0 or not self.stopping:
            said = "".join(f"\n  {line}" for line in self._errors)
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended unexpectedly, with status {status}"
            raise CliError(f"the node process of {self.name} {how}{said}")

    async def tell(self, line: str) -> None:
        """Write a command. One that comes too late for a process that has ended is dropped: `run` reports the end."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._process.stdin.send_all(line.encode() + b"\n")

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            event = json.loads(line)
            name = event.pop("event")
            if name == "error":
                raise CliError(f"the node process of {self.name} failed: {event['text']}")
            if name == "progress":
                self.progress = event
                continue
            if name == "result":
                self.result = event
            self.events[name].set()

    async def _collect_errors(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr):
            self._errors.append(line.decode(errors="replace"))


async def supervise(nodes: list[NodeProcess], show_progress: Callable[[], None], interval_s: float) -> bool:
    """Run both to the end; their results are then in `nodes`. True if all was delivered, False if delivery came to a stop before."""
    async with trio.open_nursery() as processes:
        for node in nodes:
            processes.start_soon(node.run)
        await _all(nodes, "ready", START_S)
        await _tell_all(nodes, "go")
        complete = await _follow(nodes, show_progress, interval_s)
        await _tell_all(nodes, "report")
        await _all(nodes, "result", EXIT_S)
        for node in nodes:
            node.stopping = True
        await _tell_all(nodes, "stop")
        await _all(nodes, "ended", EXIT_S)
    return complete


async def _follow(nodes: list[NodeProcess], show_progress: Callable[[], None], interval_s: float) -> bool:
    """Show progress until both are done (True) or nothing has been delivered for STALL_S (False)."""
    seen, changed_at = -1, trio.current_time()
    while not all(node.events["done"].is_set() for node in nodes):
        await trio.sleep(interval_s)
        show_progress()
        delivered = sum(node.progress.get("delivered", 0) for node in nodes)
        if delivered != seen:
            seen, changed_at = delivered, trio.current_time()
        elif trio.current_time() - changed_at > STALL_S:
            return False
    return True


async def _all(nodes: list[NodeProcess], event: str, patience_s: float = math.inf) -> None:
    """Wait for an event of all nodes. Raises CliError naming those that do not get there in time."""
    with trio.move_on_after(patience_s) as patience:
        for node in nodes:
            await node.events[event].wait()
    if patience.cancelled_caught:
        late = " and ".join(node.name for node in nodes if not node.events[event].is_set())
        raise CliError(f"the node process of {late} does not respond: no {event!r} within {patience_s:.0f} s")


async def _tell_all(nodes: list[NodeProcess], line: str) -> None:
    for node in nodes:
        await node.tell(line)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    pending = b""
    async for chunk in stream:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line
