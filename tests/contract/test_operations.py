"""One-sided operations: on every stack that has them the same, whoever carries them out; a kernel's RDS over TCP has none."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import rdsx
from apikit import Scene, raises_errno
from contractkit import kernels, pair, with_operations

MIB = 1 << 20
SUCCESS, REMOTE_ERROR, DROPPED = rdsx.RdmaOutcome.SUCCESS, rdsx.RdmaOutcome.REMOTE_ERROR, rdsx.RdmaOutcome.DROPPED


@asynccontextmanager
async def scene(stack: str, size: int = 10000) -> AsyncIterator[Scene]:
    async with pair(stack) as two:
        yield await Scene.between(*await two.sockets(), size)


@kernels
async def test_none_over_a_kernels_tcp(stack: str) -> None:
    async with pair(stack) as two:
        asker, owner = await two.sockets()
        for destination in (None, asker.getsockname()):
            with raises_errno(errno.EOPNOTSUPP):
                await owner.get_mr(bytearray(4096), destination)
        with raises_errno(errno.EOPNOTSUPP):
            await asker.rdma_write(b"x", 1, owner.getsockname())
        await asker.sendto(b"still there", owner.getsockname())
        assert await owner.recv() == b"still there"


@with_operations
async def test_writes_and_reads(stack: str) -> None:
    async with scene(stack) as it:
        for offset, size in ((0, 1), (1, 4097), (4095, 2), (9999, 1), (0, 10000)):
            data = os.urandom(size)
            operation = await it.asker.rdma_write(data, it.cookie, it.to, offset=offset, message=b"%d" % size)
            assert await it.owner.recv() == b"%d" % size
            assert it.memory[offset : offset + size] == data
            assert await operation.wait() is SUCCESS
            back = bytearray(size)
            operation = await it.asker.rdma_read(back, it.cookie, it.to, offset=offset, fence=True)
            assert await it.owner.recv() == b""
            assert await operation.wait() is SUCCESS
            assert back == data


@with_operations
async def test_a_megabyte(stack: str) -> None:
    async with scene(stack, MIB) as it:
        source, target = bytearray(os.urandom(MIB)), bytearray(MIB)
        await it.asker.get_mr(source)  # registered once, used many times
        await it.asker.get_mr(target)
        for _ in range(3):
            write = await it.asker.rdma_write(source, it.cookie, it.to)
            read = await it.asker.rdma_read(target, it.cookie, it.to)
            assert await write.wait() is await read.wait() is SUCCESS
            assert it.memory == target == source


@with_operations
async def test_atomics(stack: str) -> None:
    async with scene(stack) as it:
        at = it.aligned
        it.number = 40
        for call, old, new in (
            (it.asker.fetch_and_add(2, it.cookie, it.to, offset=at), 40, 42),
            (it.asker.compare_and_swap(41, 7, it.cookie, it.to, offset=at), 42, 42),
            (it.asker.compare_and_swap(42, 2**64 - 1, it.cookie, it.to, offset=at), 42, 2**64 - 1),
            (it.asker.fetch_and_add(2, it.cookie, it.to, offset=at), 2**64 - 1, 1),
        ):
            operation = await call
            assert await operation.wait() is SUCCESS
            assert (operation.old_value, it.number) == (old, new)


@with_operations
async def test_refusals(stack: str) -> None:
    """Each is an outcome, its message is not delivered, and the next one is: over verbs on another connection."""
    async with scene(stack) as it:
        before = bytes(it.memory)
        gone = await it.owner.get_mr(bytearray(4096))
        it.owner.free_mr(gone)
        for cookie, offset in ((it.cookie, 9999), (gone, 0), (it.cookie ^ 0xFF00, 0)):
            operation = await it.asker.rdma_write(b"xx", cookie, it.to, offset=offset, message=b"never")
            assert await operation.wait() is REMOTE_ERROR
            await it.asker.sendto(b"next", it.to)
            assert await it.owner.recv() == b"next"
        assert it.memory == before


@with_operations
async def test_used_once(stack: str) -> None:
    async with scene(stack) as it:
        memory = bytearray(4096)
        cookie = await it.owner.get_mr(memory, use_once=True)
        assert await (await it.asker.rdma_write(b"once", cookie, it.to, message=b"done")).wait() is SUCCESS
        assert await it.owner.recv() == b"done"
        memory.extend(b"free")
        assert await (await it.asker.rdma_write(b"more", cookie, it.to)).wait() is REMOTE_ERROR
        assert memory[:8] == b"once" + bytes(4)


@with_operations
async def test_registered_for_a_destination(stack: str) -> None:
    async with scene(stack) as it:
        memory = bytearray(4096)
        cookie = await it.owner.get_mr(memory, it.asker.getsockname())
        assert await (await it.asker.rdma_write(b"here", cookie, it.to, offset=4092)).wait() is SUCCESS
        assert memory[4092:] == b"here"
        it.owner.free_mr(cookie, invalidate=False)
        assert await it.owner.get_mr(memory, it.asker.getsockname()) == cookie


@with_operations
async def test_many_at_once(stack: str) -> None:
    async with scene(stack) as it:
        at = it.aligned
        it.number = 0
        found: list[int] = []

        async def add() -> None:
            for _ in range(10):
                operation = await it.asker.fetch_and_add(1, it.cookie, it.to, offset=at)
                assert await operation.wait() is SUCCESS
                found.append(operation.old_value)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(add)
        assert sorted(found) == list(range(200))
        assert it.number == 200


@with_operations
async def test_a_lost_connection(stack: str) -> None:
    """Each was done once or not at all, its caller knows which it may be, and none is repeated."""
    async with scene(stack) as it:
        at = it.aligned
        it.number = 0
        outcomes = []
        for _ in range(10):
            operations = [await it.asker.fetch_and_add(1, it.cookie, it.to, offset=at) for _ in range(5)]
            it.asker._stack.reset_connection(it.to[0])
            outcomes += [await operation.wait() for operation in operations]
        assert set(outcomes) <= {SUCCESS, DROPPED}
        assert outcomes.count(SUCCESS) <= it.number <= len(outcomes)
        await it.asker.sendto(b"after", it.to)
        while await it.owner.recv() != b"after":
            pass
        assert await (await it.asker.fetch_and_add(1, it.cookie, it.to, offset=at)).wait() is SUCCESS
