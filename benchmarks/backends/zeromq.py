"""ZeroMQ with blocking calls, which are its fastest: PUSH and PULL one way, DEALER and DEALER there and back.

Guarantee: whole messages, in order on one connection. What is in a queue or a socket buffer when a connection breaks is lost. The receiver
acknowledges nothing; nothing is resent. A full queue (1,000 messages on either side, the default) stops the sender.

pyzmq has no call for many messages, so the batched scenarios run as the others do. Messages from 64 KiB are sent and received without
a copy. An I/O thread of the library does the system calls; its CPU time counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from itertools import cycle, islice

import zmq

from benchmarks.runtimes import BlockingRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]

ZERO_COPY_BYTES = 65536


class Side(BaseSide):
    runtime = BlockingRuntime()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._copy = self.case.size < ZERO_COPY_BYTES
        self._sockets: list[zmq.Socket[bytes]] = []

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        context = zmq.Context()
        kind = zmq.DEALER if self.scenario.pattern == "ping-pong" else zmq.PUSH if self.job.is_left else zmq.PULL
        for _ in range(self.scenario.left_peers if self.job.is_left else self.scenario.right_peers):
            self._sockets.append(context.socket(kind))
        # The side with one socket binds it. Where that is the left one, the right one has connected before: ZeroMQ tries again.
        endpoint = f"tcp://127.0.0.1:{self.job.port}"
        left_binds = self.scenario.right_peers > 1
        for sock in self._sockets:
            if self.job.is_left == left_binds:
                sock.bind(endpoint)
            else:
                sock.connect(endpoint)
        ready()
        yield

    async def send(self, count: int) -> None:
        payload, copy = self.payload, self._copy
        if len(self._sockets) == 1:
            send = self._sockets[0].send
            for _ in range(count):
                send(payload, 0, copy)
            return
        for send in islice(cycle([sock.send for sock in self._sockets]), count):
            send(payload, 0, copy)

    async def receive(self, count: int) -> None:
        if len(self._sockets) == 1:
            receive, copy, total = self._sockets[0].recv, self._copy, 0
            for _ in range(count):
                total += len(receive(0, copy))
            self.messages += count
            self.bytes += total
            return
        poller = zmq.Poller()
        for sock in self._sockets:
            poller.register(sock, zmq.POLLIN)
        while self.messages < count:
            for sock, _ in poller.poll():
                self._receive_all(sock)

    def _receive_all(self, sock: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                self.bytes += len(sock.recv(zmq.DONTWAIT, self._copy))
                self.messages += 1

    async def ping(self, count: int) -> None:
        (sock,) = self._sockets
        payload, copy, times_ns, total = self.payload, self._copy, self.round_trips_ns, 0
        for _ in range(count):
            asked_ns = time.perf_counter_ns()
            sock.send(payload, 0, copy)
            message = sock.recv(0, copy)
            times_ns.append(time.perf_counter_ns() - asked_ns)
            total += len(message)
        self.messages += count
        self.bytes += total

    async def echo(self, count: int) -> None:
        (sock,) = self._sockets
        copy = self._copy
        for _ in range(count):
            message = sock.recv(0, copy)
            sock.send(message.buffer if isinstance(message, zmq.Frame) else message, 0, copy)
