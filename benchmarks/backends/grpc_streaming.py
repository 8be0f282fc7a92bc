"""gRPC streaming under asyncio: generic handlers, bytes as they are, no protobuf. Client streaming one way, bidirectional there and back.

Guarantee: whole messages, in order within one call; when the call fails, what was sent may be lost, and nobody knows how much. Nothing is
resent. HTTP/2 flow control stops the sender.

gRPC has no call for many messages, so the batched scenarios run as the others do. Each left peer has a channel of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from benchmarks.runtimes import AsyncioRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]

SERVICE = "benchmarks.Messages"
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))


class Side(BaseSide):
    runtime = AsyncioRuntime()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._calls: list[Any] = []  # grpc.aio has no public names for the types of calls in all its versions
        self._wanted = 0
        self._arrived = asyncio.Event()

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        if self.job.is_left:
            for _ in range(self.scenario.left_peers):
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.job.port}", options=OPTIONS)
                await channel.channel_ready()
                open_call = channel.stream_stream if self.scenario.pattern == "ping-pong" else channel.stream_unary
                self._calls.append(open_call(f"/{SERVICE}/Move")())
        else:
            server = grpc.aio.server(options=OPTIONS)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Move": self._handler()}),))
            server.add_insecure_port(f"127.0.0.1:{self.job.port}")
            await server.start()
        ready()
        yield

    def _handler(self) -> grpc.RpcMethodHandler:
        if self.scenario.pattern == "ping-pong":
            return grpc.stream_stream_rpc_method_handler(self._answer)
        return grpc.stream_unary_rpc_method_handler(self._take)

    async def _take(self, messages: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        async for message in messages:
            self.bytes += len(message)
            self.messages += 1
            if self.messages == self._wanted:
                self._arrived.set()
        return b""

    async def _answer(self, messages: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message
            self.messages += 1
            if self.messages == self._wanted:
                self._arrived.set()

    async def send(self, count: int) -> None:
        share, more = divmod(count, len(self._calls))
        await asyncio.gather(*(self._send(call, share + (index < more)) for index, call in enumerate(self._calls)))

    async def _send(self, call: Any, count: int) -> None:
        payload = self.payload
        for _ in range(count):
            await call.write(payload)

    async def receive(self, count: int) -> None:
        self._wanted = count
        self._arrived.clear()
        if self.messages < count:
            await self._arrived.wait()

    async def ping(self, count: int) -> None:
        (call,) = self._calls
        payload, times_ns, total = self.payload, self.round_trips_ns, 0
        for _ in range(count):
            asked_ns = time.perf_counter_ns()
            await call.write(payload)
            message = await call.read()
            times_ns.append(time.perf_counter_ns() - asked_ns)
            total += len(message)
        self.messages += count
        self.bytes += total

    async def echo(self, count: int) -> None:
        await self.receive(count)
