"""nng under trio: Push0 and Pull0 one way, Pair0 there and back, with asend and arecv.

Guarantee: whole messages, in order on one connection. What is in a queue or a socket buffer when a connection breaks is lost. The receiver
acknowledges nothing; nothing is resent. A sender waits while no peer takes its message.

pynng has no call for many messages, so the batched scenarios run as the others do. Threads of the library do the system calls; their CPU
time counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pynng
import trio

from benchmarks.runtimes import TrioRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]


class Side(BaseSide):
    runtime = TrioRuntime()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._sockets: list[pynng.Socket] = []

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        kind = pynng.Pair0 if self.scenario.pattern == "ping-pong" else pynng.Push0 if self.job.is_left else pynng.Pull0
        # The side with one socket listens. Where that is the left one, the right one dials before: nng tries again.
        endpoint = f"tcp://127.0.0.1:{self.job.port}"
        left_listens = self.scenario.right_peers > 1
        for _ in range(self.scenario.left_peers if self.job.is_left else self.scenario.right_peers):
            sock = kind(recv_max_size=0)  # the default refuses more than 1 MiB with its header
            self._sockets.append(sock)
            if self.job.is_left == left_listens:
                sock.listen(endpoint)
            else:
                sock.dial(endpoint, block=False)
        ready()
        yield

    async def send(self, count: int) -> None:
        share, more = divmod(count, len(self._sockets))
        async with trio.open_nursery() as tasks:
            for index, sock in enumerate(self._sockets):
                tasks.start_soon(self._send, sock, share + (index < more))

    async def _send(self, sock: pynng.Socket, count: int) -> None:
        payload = self.payload
        for _ in range(count):
            await sock.asend(payload)

    async def receive(self, count: int) -> None:
        async with trio.open_nursery() as tasks:
            for sock in self._sockets:
                tasks.start_soon(self._receive, sock, count, tasks.cancel_scope)

    async def _receive(self, sock: pynng.Socket, count: int, scope: trio.CancelScope) -> None:
        while self.messages < count:
            message = await sock.arecv()
            self.bytes += len(message)
            self.messages += 1
        scope.cancel()

    async def ping(self, count: int) -> None:
        (sock,) = self._sockets
        payload, times_ns, total = self.payload, self.round_trips_ns, 0
        for _ in range(count):
            asked_ns = time.perf_counter_ns()
            await sock.asend(payload)
            message = await sock.arecv()
            times_ns.append(time.perf_counter_ns() - asked_ns)
            total += len(message)
        self.messages += count
        self.bytes += total

    async def echo(self, count: int) -> None:
        (sock,) = self._sockets
        for _ in range(count):
            await sock.asend(await sock.arecv())
