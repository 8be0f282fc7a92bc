"""An asyncio Protocol on uvloop, with a length prefix.

Guarantee: TCP's. In order; when a connection breaks, what was sent may be lost, and nobody knows how much. The receiver acknowledges
nothing; nothing is resent.

Messages are handed over by callback, not awaited. In the batched scenarios a batch is one write; else each message is one, which the
transport joins until the loop's next turn. The sender heeds `pause_writing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import uvloop

from benchmarks.backends.framing import FrameParser, frame
from benchmarks.runtimes import AsyncioRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]


class FrameProtocol(asyncio.Protocol):
    """Gives whole messages to `side.take`."""

    transport: asyncio.Transport

    def __init__(self, side: Side) -> None:
        self._side = side
        self._parser = FrameParser()
        self._writable = asyncio.Event()
        self._writable.set()
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._side.protocols.append(self)

    def data_received(self, data: bytes) -> None:
        self._side.take(self, self._parser.feed(data))

    def pause_writing(self) -> None:
        self.paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        self.paused = False
        self._writable.set()

    async def drain(self) -> None:
        await self._writable.wait()


class Side(BaseSide):
    runtime = AsyncioRuntime(uvloop.run)

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.protocols: list[FrameProtocol] = []
        self._connections = max(self.scenario.left_peers, self.scenario.right_peers)
        self._wanted = 0
        self._arrived = asyncio.Event()
        self._asked_ns = 0
        self.take: Callable[[FrameProtocol, list[bytes]], None] = self._count
        if self.scenario.pattern == "ping-pong":
            self.take = self._ask_again if job.is_left else self._answer

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if self.job.is_left:
            for _ in range(self._connections):
                await loop.create_connection(lambda: FrameProtocol(self), "127.0.0.1", self.job.port)
        else:
            await loop.create_server(lambda: FrameProtocol(self), "127.0.0.1", self.job.port, backlog=1024)
        ready()
        yield

    # -- one way

    async def send(self, count: int) -> None:
        if self.scenario.left_peers == 1:
            await self._send(self.protocols, count)
            return
        share, more = divmod(count, self._connections)
        await asyncio.gather(*(self._send([protocol], share + (index < more)) for index, protocol in enumerate(self.protocols)))

    async def _send(self, protocols: list[FrameProtocol], count: int) -> None:
        """From one sender to each of these in turn."""
        payload, batch, turn = self.payload, [self.payload] * self.batch_messages, 0
        if not self.scenario.batched:
            protocol = protocols[0]
            write = protocol.transport.write
            for _ in range(count):
                if protocol.paused:
                    await protocol.drain()
                write(frame(payload))
            return
        while count:
            protocol, now = protocols[turn], min(count, len(batch))
            if protocol.paused:
                await protocol.drain()
            protocol.transport.write(b"".join(map(frame, batch[:now])))
            turn = (turn + 1) % len(protocols)
            count -= now

    async def receive(self, count: int) -> None:
        self._wanted = count
        self._arrived.clear()
        if self.messages < count:
            await self._arrived.wait()

    def _count(self, _protocol: FrameProtocol, messages: list[bytes]) -> None:
        for message in messages:
            self.bytes += len(message)
        self.messages += len(messages)
        if self.messages == self._wanted:
            self._arrived.set()

    # -- ping-pong

    async def ping(self, count: int) -> None:
        self._wanted = count
        self._arrived.clear()
        self._ask(self.protocols[0])
        await self._arrived.wait()

    async def echo(self, count: int) -> None:
        self._wanted = count
        self._arrived.clear()
        if self.messages < count:
            await self._arrived.wait()

    def _ask(self, protocol: FrameProtocol) -> None:
        self._asked_ns = time.perf_counter_ns()
        protocol.transport.write(frame(self.payload))

    def _ask_again(self, protocol: FrameProtocol, messages: list[bytes]) -> None:
        if not messages:
            return
        self.round_trips_ns.append(time.perf_counter_ns() - self._asked_ns)
        self._count(protocol, messages)
        if self.messages < self._wanted:
            self._ask(protocol)

    def _answer(self, protocol: FrameProtocol, messages: list[bytes]) -> None:
        for message in messages:
            protocol.transport.write(frame(message))
        self._count(protocol, messages)
