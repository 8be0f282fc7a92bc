"""trio.SocketStream with a length prefix written by hand.

Guarantee: TCP's. In order; when a connection breaks, what was sent may be lost, and nobody knows how much. The receiver acknowledges
nothing; nothing is resent.

In the batched scenarios a batch is joined into one send_all, and one receive_some gives many messages. Else there is one send_all, and
one awaited `receive()` of a frame reader, for each message.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import trio

from benchmarks.backends.framing import READ_BYTES, FrameParser, frame
from benchmarks.runtimes import TrioRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]


class FrameStream:
    """Whole messages on a stream, one or many at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._parser = FrameParser()
        self._ready: deque[bytes] = deque()

    async def send(self, payload: bytes) -> None:
        await self._stream.send_all(frame(payload))

    async def send_many(self, payloads: list[bytes]) -> None:
        await self._stream.send_all(b"".join(map(frame, payloads)))

    async def receive(self) -> bytes:
        while not self._ready:
            self._ready.extend(await self.receive_many())
        return self._ready.popleft()

    async def receive_many(self) -> list[bytes]:
        """What one read completes, which may be nothing."""
        chunk = await self._stream.receive_some(READ_BYTES)
        if not chunk:
            raise EOFError("the other side closed the connection")
        return self._parser.feed(chunk)


class Side(BaseSide):
    runtime = TrioRuntime()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._connections = max(self.scenario.left_peers, self.scenario.right_peers)
        self._streams: list[FrameStream] = []  # those of idle peers come last
        self._accepted = trio.Event()

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        async with trio.open_nursery() as tasks:
            if self.job.is_left:
                for _ in range(self._connections + self.case.idle_peers):
                    self._streams.append(FrameStream(await trio.open_tcp_stream("127.0.0.1", self.job.port)))
            else:
                await tasks.start(self._accept)
            ready()
            yield

    async def _accept(self, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(self.job.port, host="127.0.0.1", backlog=1024)
        task_status.started()
        while len(self._streams) < self._connections + self.case.idle_peers:
            self._streams.append(FrameStream(await listener.accept()))
        self._accepted.set()

    async def prepare(self) -> None:
        if not self.job.is_left:
            await self._accepted.wait()

    async def send(self, count: int) -> None:
        if self.scenario.left_peers == 1:
            await self._send(self._streams[: self._connections], count)
            return
        share, more = divmod(count, self._connections)
        async with trio.open_nursery() as tasks:
            for index in range(self._connections):
                tasks.start_soon(self._send, self._streams[index : index + 1], share + (index < more))

    async def _send(self, streams: list[FrameStream], count: int) -> None:
        """From one sender to each of these in turn."""
        payload = self.payload
        if not self.scenario.batched:
            for _ in range(count):
                await streams[0].send(payload)
            return
        batch = [payload] * self.batch_messages
        turn = 0
        while count:
            now = min(count, len(batch))
            await streams[turn].send_many(batch[:now])
            turn = (turn + 1) % len(streams)
            count -= now

    async def receive(self, count: int) -> None:
        if self._connections == 1 and not self.scenario.batched:
            total = 0
            for _ in range(count):
                total += len(await self._streams[0].receive())
            self.messages += count
            self.bytes += total
            return
        async with trio.open_nursery() as tasks:
            for stream in self._streams[: self._connections]:
                tasks.start_soon(self._receive, stream, count, tasks.cancel_scope)

    async def _receive(self, stream: FrameStream, count: int, scope: trio.CancelScope) -> None:
        while self.messages < count:
            for message in await stream.receive_many():
                self.bytes += len(message)
                self.messages += 1
        scope.cancel()

    async def ping(self, count: int) -> None:
        stream, payload, times_ns, total = self._streams[0], self.payload, self.round_trips_ns, 0
        for _ in range(count):
            asked_ns = time.perf_counter_ns()
            await stream.send(payload)
            message = await stream.receive()
            times_ns.append(time.perf_counter_ns() - asked_ns)
            total += len(message)
        self.messages += count
        self.bytes += total

    async def echo(self, count: int) -> None:
        stream = self._streams[0]
        for _ in range(count):
            await stream.send(await stream.receive())
