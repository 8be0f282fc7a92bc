"""rdsx over TCP or RDMA between two processes, inside one node of one process (transport "loop"), or in front of the kernel's AF_RDS.

Guarantee: in order, exactly once while both processes live, whatever happens to the connection; acknowledged by delivery into the
receiver's socket queue, and resent from a retransmit queue until then. A slow receiver stops its senders.

Left peers are 127.0.0.2, 127.0.0.3, ...; right ones 127.0.0.1, 127.0.1.1, ...; idle ones 127.1.0.1, ... Socket buffers, which bound
what is under way, are the default of 106,496 bytes, or 8 messages if that is more; rdsx-tcp-4M and those over RDMA have larger ones.
Those named "poll" have a receiver poll before it waits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import cycle, islice

import trio

import rdsx
from benchmarks.backends import BACKENDS
from benchmarks.runtimes import TrioRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]

FIRST_PORT = 4000  # RDS port of a peer's first socket
IDLE_PORT = 3999  # where idle peers have said hello
BUFFERED_MESSAGES = 8
WRITES_UNDER_WAY = 16
Address = tuple[str, int]


class Side(BaseSide):
    runtime = TrioRuntime()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._loop = job.role == "both"
        backend = BACKENDS[job.backend]
        self._transport = backend.transport
        buffer_bytes = backend.buffer_bytes or rdsx.NodeConfig().send_buffer_bytes
        buffer_bytes = max(buffer_bytes, BUFFERED_MESSAGES * self.case.size)
        self._config = rdsx.NodeConfig(
            port=job.port,
            send_buffer_bytes=buffer_bytes,
            receive_buffer_bytes=buffer_bytes,
            busy_poll_s=backend.busy_poll_s,
            **backend.node_settings,
        )
        self._nodes: list[rdsx.Node] = []
        self._senders: list[rdsx.RdsSocket] = []
        self._receivers: list[rdsx.RdsSocket] = []
        self._idle: list[rdsx.RdsSocket] = []
        self._tasks: trio.Nursery | None = None
        self._wanted = 0
        self._arrived = trio.Event()
        self._memory = bytearray(self.payload)  # written from, or into
        self._cookie = 0

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if self.job.is_right:
                for address in self._right_addresses():
                    self._receivers += await self._open_sockets(stack, address, self.case.sockets)
                self._idle = [await self._nodes[0].bind() for _ in range(self.case.idle_sockets)]
            if self._loop:
                self._senders = [await self._nodes[0].bind()]
            elif self.job.is_left:
                for address in self._left_addresses():
                    self._senders += await self._open_sockets(stack, address, self._left_sockets())
            if self.scenario.pattern == "both-ways":  # one set of sockets for both
                self._senders = self._receivers = self._receivers or self._senders
            if self.job.role == "left":
                await self._open_idle_peers(stack)
                await self._connect()
            self._tasks = await stack.enter_async_context(trio.open_nursery())
            ready()
            yield

    async def _open_sockets(self, stack: contextlib.AsyncExitStack, address: str, count: int) -> list[rdsx.RdsSocket]:
        node = await stack.enter_async_context(rdsx.open_node(address, transport=self._transport, config=self._config))
        self._nodes.append(node)
        return [await node.bind(FIRST_PORT + index) for index in range(count)]

    async def _connect(self) -> None:
        """Connections are made for the first message: send one that nobody receives."""
        for node, destination in ((node, right) for node in self._nodes for right in self._right_addresses()):
            with await node.bind(0) as sock:
                await sock.sendto(b"", (destination, IDLE_PORT))
                await sock.flush()

    async def _open_idle_peers(self, stack: contextlib.AsyncExitStack) -> None:
        for index in range(self.case.idle_peers):
            address = f"127.1.{index // 250}.{1 + index % 250}"
            node = await stack.enter_async_context(rdsx.open_node(address, config=self._config))
            self._nodes.append(node)

    def _left_addresses(self) -> list[str]:
        return [self.job.hosts[0], *(f"127.0.0.{2 + index}" for index in range(1, self.scenario.left_peers))]

    def _right_addresses(self) -> list[str]:
        return [self.job.hosts[1], *(f"127.0.1.{index}" for index in range(1, self.scenario.right_peers))]

    def _left_sockets(self) -> int:
        return self.scenario.sockets if self.scenario.pattern == "both-ways" else 1

    def _destinations(self) -> list[Address]:
        hosts = self._right_addresses() if self.job.is_left else self._left_addresses()
        return [(host, FIRST_PORT + index) for index in range(self.case.sockets) for host in hosts]

    # -- sending

    async def send(self, count: int) -> None:
        shares = [count // len(self._senders) + (index < count % len(self._senders)) for index in range(len(self._senders))]
        send = self._send_batches if self.scenario.batched else self._send_each
        if self.scenario.pattern == "writes":
            send = self._write_each
        if len(shares) == 1:
            await send(self._senders[0], count)
            return
        async with trio.open_nursery() as tasks:
            for sock, share in zip(self._senders, shares, strict=True):
                tasks.start_soon(send, sock, share)

    async def _send_batches(self, sock: rdsx.RdsSocket, count: int) -> None:
        for batch in self._batches():
            if len(batch) > count:
                batch = batch[:count]
            count -= len(batch)
            if batch:
                await sock.sendmmsg(batch)
            if not count:
                return

    def _batches(self) -> Iterator[list[tuple[bytes, Address]]]:
        """Batches without end: each to the next destination, where the population is sockets; else each over all destinations."""
        destinations = self._destinations()
        if self.scenario.population_of == "sockets":
            for address in cycle(destinations):
                yield [(self.payload, address)] * self.batch_messages
        turn = cycle(destinations)
        different = len(destinations) // math.gcd(len(destinations), self.batch_messages)
        yield from cycle([[(self.payload, address) for address in islice(turn, self.batch_messages)] for _ in range(different)])

    async def _send_each(self, sock: rdsx.RdsSocket, count: int) -> None:
        (address,) = self._destinations()
        payload = self.payload
        for _ in range(count):
            await sock.sendto(payload, address)

    async def _write_each(self, sock: rdsx.RdsSocket, count: int) -> None:
        (address,) = self._destinations()
        under_way: deque[rdsx.RdmaOperation] = deque()
        for _ in range(count):
            if len(under_way) == WRITES_UNDER_WAY:
                await self._written(under_way.popleft())
            under_way.append(await sock.rdma_write(self._memory, self._cookie, address))
        for operation in under_way:
            await self._written(operation)

    async def _written(self, operation: rdsx.RdmaOperation) -> None:
        if await operation.wait() is not rdsx.RdmaOutcome.SUCCESS:
            raise RuntimeError(f"a write was not done: {operation!r}")

    # -- receiving

    async def prepare(self) -> None:
        if self.scenario.pattern == "writes":
            await self._exchange_cookie()
        if len(self._receivers) > 1:
            assert self._tasks is not None
            for sock in self._receivers:
                self._tasks.start_soon(self._keep_receiving, sock)
            await trio.sleep(0.1)  # until all of them wait

    async def _exchange_cookie(self) -> None:
        if self.job.is_left:
            sock, (address,) = self._senders[0], self._destinations()
            await sock.sendto(b"", address)
            self._cookie = int.from_bytes(await sock.recv(), "big")
            if self._transport == "verbs":
                await sock.get_mr(self._memory, address)  # once, instead of for each write
        else:
            sock = self._receivers[0]
            _, address = await sock.recvfrom()
            cookie = await sock.get_mr(self._memory, address)
            await sock.sendto(cookie.to_bytes(8, "big"), address)

    async def receive(self, count: int) -> None:
        if len(self._receivers) > 1:
            self._wanted = count
            self._arrived = trio.Event()
            if self.messages < self._wanted:
                await self._arrived.wait()
        elif self.scenario.batched:
            await self._receive_batches(self._receivers[0], count)
        else:
            await self._receive_each(self._receivers[0], count)

    async def _keep_receiving(self, sock: rdsx.RdsSocket) -> None:
        while True:
            self._take(await sock.recvmmsg())  # not into a variable: whoever waits with a batch in one keeps its messages

    def _take(self, batch: list[tuple[bytes, Address]]) -> None:
        total = 0
        for data, _ in batch:
            total += len(data)
        self.bytes += total
        self.messages += len(batch)
        if self.messages == self._wanted:  # what a phase sends has arrived before the next begins
            self._arrived.set()

    async def _receive_batches(self, sock: rdsx.RdsSocket, count: int) -> None:
        messages = total = 0
        while messages < count:
            batch = await sock.recvmmsg()
            for data, _ in batch:
                total += len(data)
            messages += len(batch)
        self.messages += messages
        self.bytes += total

    async def _receive_each(self, sock: rdsx.RdsSocket, count: int) -> None:
        total = 0
        for _ in range(count):
            data, _ = await sock.recvfrom()
            total += len(data)
        self.messages += count
        self.bytes += total + count * self.case.size * (self.scenario.pattern == "writes")

    # -- ping-pong

    async def ping(self, count: int) -> None:
        sock = self._senders[0]
        (address,) = self._destinations()
        payload, times_ns, total = self.payload, self.round_trips_ns, 0
        for _ in range(count):
            asked_ns = time.perf_counter_ns()
            await sock.sendto(payload, address)
            data, _ = await sock.recvfrom()
            times_ns.append(time.perf_counter_ns() - asked_ns)
            total += len(data)
        self.messages += count
        self.bytes += total

    async def echo(self, count: int) -> None:
        sock = self._receivers[0]
        for _ in range(count):
            data, address = await sock.recvfrom()
            await sock.sendto(data, address)

    def counters(self) -> dict[str, int]:
        if self._transport in ("kernel", "verbs"):
            return {}
        counted = [node.statistics().counters for node in self._nodes]
        return {name: sum(counters.get(name, 0) for counters in counted) for name in ("stream_reads", "stream_writes")}
