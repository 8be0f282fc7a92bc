"""One-sided operations where no device carries them out: over loopback, and by message between rdsx nodes."""

from __future__ import annotations

import array
import errno
import gc
import mmap
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import rdsx
from apikit import LEFT, Scene, assert_nobody_waits, both, bound, congest, duo, lonely_node, loop_node, raises_errno
from kernelkit import SMALLER, drops_of, kernel_and_node, pack, pack_map, read_all, send_all, until
from rdsx import ancillary
from rdsx.addresses import SockAddr
from rdsx.errors import WireError
from rdsx.memory import Regions, added, swapped
from rdsx.rdma_structs import IoVec
from rdsx.testing import VirtualNetwork, run
from rdsx.wire.operation import FETCH_AND_ADD, READ, WRITE, Answer, Request, parse_operation_untrusted

MIB = 1 << 20
ALL = 2**64 - 1
numbers = st.integers(0, ALL)


@asynccontextmanager
async def scene(transport: str, size: int = 4096, **settings: object) -> AsyncIterator[Scene]:
    async with duo(transport, **settings) as two:
        yield await Scene.between(*await two.sockets(), size)


# -- what they do


@both
async def test_write_then_message(transport: str) -> None:
    async with scene(transport) as it:
        before = bytes(it.memory)
        operation = await it.asker.rdma_write(b"hello", it.cookie, it.to, offset=8, message=b"written")
        assert await it.owner.recvfrom() == (b"written", it.asker.getsockname())
        assert it.memory == before[:8] + b"hello" + before[13:]
        assert await operation.wait() is rdsx.RdmaOutcome.SUCCESS
        assert (operation.outcome, operation.kind, operation.length) == (rdsx.RdmaOutcome.SUCCESS, "write", 5)


@both
async def test_read_then_message(transport: str) -> None:
    async with scene(transport) as it:
        target = bytearray(100)
        operation = await it.asker.rdma_read(target, it.cookie, it.to, offset=3996)
        assert await operation.wait() is rdsx.RdmaOutcome.SUCCESS
        assert target == it.memory[3996:]
        assert await it.owner.recv() == b""


@both
async def test_the_largest(transport: str) -> None:
    async with scene(transport, MIB) as it:
        data, back = os.urandom(MIB), bytearray(MIB)
        assert await it.done(await it.asker.rdma_write(data, it.cookie, it.to)) is rdsx.RdmaOutcome.SUCCESS
        assert it.memory == data
        assert await it.done(await it.asker.rdma_read(back, it.cookie, it.to)) is rdsx.RdmaOutcome.SUCCESS
        assert back == data
        for buffer in (b"", bytes(MIB + 1)):
            with pytest.raises(ValueError, match=f"1 to 1048576 bytes, not {len(buffer)}"):
                await it.asker.rdma_write(buffer, it.cookie, it.to)


@both
async def test_atomics(transport: str) -> None:
    async with scene(transport) as it:
        at = it.aligned
        it.number = 40
        for calls, old, new in (
            (it.asker.fetch_and_add(2, it.cookie, it.to, offset=at), 40, 42),
            (it.asker.compare_and_swap(41, 7, it.cookie, it.to, offset=at), 42, 42),
            (it.asker.compare_and_swap(42, ALL, it.cookie, it.to, offset=at), 42, ALL),
            (it.asker.fetch_and_add(2, it.cookie, it.to, offset=at), ALL, 1),
            (it.asker.compare_and_swap(0xF1, 0xFF00, it.cookie, it.to, offset=at, compare_mask=0xF, swap_mask=0xFF00), 1, 0xFF01),
            (it.asker.fetch_and_add(0x0101, it.cookie, it.to, offset=at, nocarry_mask=0x8080), 0xFF01, 0x0002),
        ):
            operation = await calls
            assert await it.done(operation) is rdsx.RdmaOutcome.SUCCESS
            assert operation.old_value == old
            assert it.number == new
        for bad in (-1, 2**64):
            with pytest.raises(ValueError, match="64 bits"):
                await it.asker.fetch_and_add(bad, it.cookie, it.to)
        with pytest.raises(TypeError, match=r"'1'"):
            await it.asker.fetch_and_add("1", it.cookie, it.to)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="aligned"):
            await it.asker.fetch_and_add(1, it.cookie, it.to, offset=at + 4)


@given(numbers, numbers, numbers, numbers, numbers)
def test_masked_swap_is_bit_by_bit(old: int, compare: int, swap: int, compare_mask: int, swap_mask: int) -> None:
    bits = range(64)
    same = all(old >> bit & 1 == compare >> bit & 1 for bit in bits if compare_mask >> bit & 1)
    model = sum(((swap if swap_mask >> bit & 1 else old) >> bit & 1) << bit for bit in bits) if same else old
    assert swapped(old, compare, swap, compare_mask, swap_mask) == model
    assert swapped(old, old, swap, compare_mask, ALL) == swap


@given(numbers, numbers, numbers)
def test_masked_add_is_an_adder_with_cut_carries(old: int, add: int, nocarry_mask: int) -> None:
    carry = model = 0
    for bit in range(64):
        total = (old >> bit & 1) + (add >> bit & 1) + carry
        model |= (total & 1) << bit
        carry = 0 if nocarry_mask >> bit & 1 else total >> 1
    assert added(old, add, nocarry_mask) == model
    assert added(old, add, 0) == (old + add) % 2**64


@both
async def test_many_at_once(transport: str) -> None:
    """More than a peer is asked for at a time, by several tasks: each has its own outcome, messages stay in order."""
    async with scene(transport) as it:
        at = it.aligned
        it.number = 0
        seen: list[int] = []

        async def add() -> None:
            for _ in range(40):
                operation = await it.asker.fetch_and_add(1, it.cookie, it.to, offset=at)
                assert await operation.wait() is rdsx.RdmaOutcome.SUCCESS
                seen.append(operation.old_value)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(add)
        assert sorted(seen) == list(range(2000))
        assert it.number == 2000


# -- what is refused


@both
async def test_refused_and_its_message_is_not_delivered(transport: str) -> None:
    async with scene(transport) as it:
        before = bytes(it.memory)
        ended = await it.owner.get_mr(bytearray(64))
        it.owner.free_mr(ended)
        for cookie, offset in ((it.cookie ^ 1, 0), (it.cookie, 4093), (it.cookie, 2**32 - 4096), (ended, 0)):
            operation = await it.asker.rdma_write(b"four", cookie, it.to, offset=offset, message=b"never")
            assert await operation.wait() is rdsx.RdmaOutcome.REMOTE_ERROR
            target = bytearray(4)
            operation = await it.asker.rdma_read(target, cookie, it.to, offset=offset, message=b"never")
            assert await operation.wait() is rdsx.RdmaOutcome.REMOTE_ERROR
            assert target == bytes(4)
        await it.asker.sendto(b"next", it.to)
        assert await it.owner.recv() == b"next"
        assert it.memory == before
        with pytest.raises(ValueError, match="no old value"):
            print(operation.old_value)
        for cookie, offset in ((-1, 0), (2**64, 0), (it.cookie, -1), (it.cookie, 2**32)):
            with pytest.raises(ValueError, match=f"{cookie} with offset {offset}"):
                await it.asker.rdma_write(b"x", cookie, it.to, offset=offset)


@both
async def test_memory_that_can_be_registered(transport: str) -> None:
    numbers, mapped = array.array("d", [1.5, 2.5]), mmap.mmap(-1, 4096)
    async with duo(transport) as two:
        asker, owner = await two.sockets()
        for buffer in (numbers, mapped, memoryview(bytearray(100))[10:20]):
            cookie = await owner.get_mr(buffer)
            operation = await asker.rdma_write(b"\x07", cookie, owner.getsockname(), offset=1)
            assert await operation.wait() is rdsx.RdmaOutcome.SUCCESS
            assert memoryview(buffer).cast("B")[:3].tobytes()[1] == 7
            owner.free_mr(cookie)
        for bad, text in ((b"fixed", "writable"), (memoryview(bytearray(10))[::2], "contiguous")):
            with pytest.raises(TypeError, match=text):
                await owner.get_mr(bad)
        with raises_errno(errno.EINVAL, "0 bytes"):
            await owner.get_mr(bytearray())
        with pytest.raises(TypeError, match="writable"):
            await asker.rdma_read(b"fixed", cookie, owner.getsockname())
    gc.collect()
    mapped.close()  # nobody holds it any more


@both
async def test_memory_behind_a_descriptor(transport: str) -> None:
    descriptor = os.memfd_create("memory")
    os.truncate(descriptor, 8192)
    async with duo(transport) as two:
        asker, owner = await two.sockets()
        cookie = await owner.get_mr(rdsx.DmaBuf(descriptor, 4000, offset=100))
        assert await (await asker.rdma_write(b"shared", cookie, owner.getsockname())).wait() is rdsx.RdmaOutcome.SUCCESS
        assert os.pread(descriptor, 6, 100) == b"shared"
        operation = await asker.rdma_write(b"x", cookie, owner.getsockname(), offset=4000)
        assert await operation.wait() is rdsx.RdmaOutcome.REMOTE_ERROR
        for bad in (rdsx.DmaBuf(descriptor, 8192, offset=4096), rdsx.DmaBuf(999, 4096)):
            with pytest.raises((OSError, ValueError)):
                await owner.get_mr(bad)
    os.close(descriptor)


@both
async def test_a_lease_keeps_memory_where_it_is(transport: str) -> None:
    async with scene(transport) as it:
        with pytest.raises(BufferError):
            it.memory.extend(b"more")
        it.owner.free_mr(it.cookie)
        it.memory.extend(b"more")
        with raises_errno(errno.EINVAL, f"{it.cookie:#x}"):
            it.owner.free_mr(it.cookie)
        with raises_errno(errno.EINVAL, "get_mr()"):
            it.asker.free_mr(await it.owner.get_mr(bytearray(8)))
        it.owner.close()


@both
async def test_memory_that_stays_registered(transport: str) -> None:
    async with scene(transport, idle_registration_bytes=5000) as it:
        it.owner.free_mr(it.cookie, invalidate=False)
        assert await it.done(await it.asker.rdma_write(b"late", it.cookie, it.to)) is rdsx.RdmaOutcome.SUCCESS
        with raises_errno(errno.EINVAL):
            it.owner.free_mr(it.cookie)
        assert await it.owner.get_mr(it.memory) == it.cookie
        it.owner.free_mr(it.cookie, invalidate=False)
        other = bytearray(1000)
        it.owner.free_mr(await it.owner.get_mr(other), invalidate=False)
        assert await (await it.asker.rdma_write(b"late", it.cookie, it.to)).wait() is rdsx.RdmaOutcome.REMOTE_ERROR
        it.memory.extend(b"more")


@both
async def test_used_once(transport: str) -> None:
    async with scene(transport) as it:
        memory = bytearray(8)
        cookie = await it.owner.get_mr(memory, use_once=True)
        assert await it.done(await it.asker.rdma_write(b"once", cookie, it.to)) is rdsx.RdmaOutcome.SUCCESS
        assert await (await it.asker.rdma_write(b"more", cookie, it.to)).wait() is rdsx.RdmaOutcome.REMOTE_ERROR
        assert memory == b"once" + bytes(4)
        memory.extend(b"free")


@both
async def test_a_cookie_beside_a_message(transport: str) -> None:
    async with scene(transport) as it:
        control = [ancillary.RdmaDest(it.cookie).control()]
        assert await it.owner.sendmsg([b"use ", b"this"], control, 0, it.asker.getsockname()) == 8
        data, ancdata, _, sender = await it.asker.recvmsg(None, 100)
        assert (data, sender, ancillary.parse(ancdata)) == (b"use this", it.to, [ancillary.RdmaDest(it.cookie)])
        with raises_errno(errno.EINVAL, "get_mr()", f"{it.cookie:#x}"):
            await it.asker.sendmsg([b"not mine"], control, 0, it.to)
        it.owner.setsockopt(rdsx.SOL_RDS, rdsx.RDS_FREE_MR, ancillary.FreeMrArgs(it.cookie, rdsx.RDS_RDMA_INVALIDATE).pack())
        it.memory.clear()


async def test_control_messages_with_addresses_are_the_kernels() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        args = ancillary.RdmaArgs(1, IoVec(0, 8), 4096, 1)
        with raises_errno(errno.EOPNOTSUPP, "rdma_read()", "fetch_and_add()", "transport='kernel'"):
            await sock.sendmsg([b""], [args.control()], 0, (LEFT, 4000))


# -- cancellation and endings


CALLS: dict[str, Callable[[rdsx.RdsSocket, SockAddr], Any]] = {
    "rdma_write": lambda sock, to: sock.rdma_write(b"x", 1, to, message=b"m"),
    "rdma_read": lambda sock, to: sock.rdma_read(bytearray(8), 1, to, message=b"m"),
    "compare_and_swap": lambda sock, to: sock.compare_and_swap(0, 0, 1, to, message=b"m"),
    "fetch_and_add": lambda sock, to: sock.fetch_and_add(0, 1, to, message=b"m"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("why", ["congested", "congested over tcp", "never heard of"])
async def test_cancelled_while_it_waits(name: str, why: str) -> None:
    async def cancel(sock: rdsx.RdsSocket, to: SockAddr) -> None:
        before = sock.statistics()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CALLS[name], sock, to)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert sock.statistics() == before
        assert_nobody_waits(sock)

    if why == "never heard of":
        async with lonely_node() as node:
            await cancel(await bound(node, 4000, "10.0.0.1"), ("10.0.0.9", 4000))
    else:
        async with duo("tcp" if "tcp" in why else "loop") as two:
            left, right = await two.sockets()
            await congest(left, right.getsockname())
            await cancel(left, right.getsockname())


@pytest.mark.parametrize("name", CALLS)
async def test_errors_of_sendto_and_a_closed_socket(name: str) -> None:
    async with loop_node() as node:
        sock = node.socket()
        with raises_errno(errno.ENOTCONN, "bind()"):
            await CALLS[name](sock, (LEFT, 4000))
        await sock.bind((LEFT, 4000))
        with raises_errno(errno.ENETUNREACH):
            await CALLS[name](sock, ("10.0.0.9", 4000))
        with pytest.raises(OverflowError, match="65536"):
            await CALLS[name](sock, (LEFT, 65536))


def test_a_lost_connection_drops_what_is_under_way() -> None:
    """With the answer, or before the request was there: never repeated, its message not sent, what follows is."""

    async def main(late: bool) -> None:
        network = VirtualNetwork(1)
        config = rdsx.NodeConfig(seed=1, sequence_base=1)
        async with (
            rdsx.open_node("10.0.0.1", transport=network, config=config) as a,
            rdsx.open_node("10.0.0.2", transport=network, config=config) as b,
        ):
            asker, owner = await a.bind(4000), await b.bind(4000)
            memory = bytearray(8)
            cookie, to = await owner.get_mr(memory), owner.getsockname()
            first = await asker.fetch_and_add(1, cookie, to)
            assert await first.wait() is rdsx.RdmaOutcome.SUCCESS
            assert await owner.recv() == b""
            operation = await asker.fetch_and_add(1, cookie, to, message=b"maybe")
            with trio.CancelScope() as scope:
                scope.cancel()
                await operation.wait()
            assert operation.outcome is None
            if late:  # it is done there, and the answer on its way
                assert await owner.recv() == b"maybe"
            network.cut("10.0.0.1", "10.0.0.2")
            await asker.sendto(b"after", to)
            assert await operation.wait() is rdsx.RdmaOutcome.DROPPED
            assert await owner.recv() == b"after"
            assert struct.unpack("=Q", memory) == (1 + late,)
            again = await asker.fetch_and_add(1, cookie, to)
            assert await again.wait() is rdsx.RdmaOutcome.SUCCESS
            assert again.old_value == 1 + late

    for late in (False, True):
        run(main, late, seed=1)


def test_closing_cancels() -> None:
    async def main() -> None:
        network = VirtualNetwork(1)
        config = rdsx.NodeConfig(seed=1, sequence_base=1)
        async with rdsx.open_node("10.0.0.2", transport=network, config=config) as b:
            owner = await b.bind(4000)
            cookie = await owner.get_mr(bytearray(8))
            operations = []
            async with rdsx.open_node("10.0.0.1", transport=network, config=config) as a:
                for closes in (True, False):
                    asker = await a.bind()
                    await (await asker.rdma_write(b"x", cookie, owner.getsockname())).wait()
                    network.partition("10.0.0.1", "10.0.0.2")
                    source = bytearray(b"held")
                    operations.append(await asker.rdma_write(source, cookie, owner.getsockname()))
                    if closes:
                        asker.close()
                        assert operations[-1].outcome is rdsx.RdmaOutcome.CANCELED
                        source.clear()
                        network.heal("10.0.0.1", "10.0.0.2")
                    else:
                        with pytest.raises(BufferError):
                            source.clear()
            assert [one.outcome for one in operations] == [rdsx.RdmaOutcome.CANCELED] * 2
            source.clear()

    run(main, seed=1)


# -- peers


async def test_a_kernel_takes_none_over_tcp() -> None:
    async with kernel_and_node(SMALLER) as (kernel, node):
        sock = await node.bind(4000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.accept)
            with raises_errno(errno.EOPNOTSUPP, "Linux kernel", "'tcp'", "'verbs'"):
                await sock.rdma_write(b"x", 1, (kernel.host, 4001))


def hello(features: int = 1) -> bytes:
    """The map of an rdsx node."""
    extensions = struct.pack(">BBBxI8x", 0x52, 1, features, 7)
    return pack(0, pack_map()[48:], sport=0, dport=0, flags=1, extensions=extensions)


REQUEST = Request(READ, 9, 0x1234, 0, (8,)).pack()

HOSTILE = {
    "more than it acknowledges": ("operation_overrun", [pack(n, REQUEST[1], extensions=REQUEST[0]) for n in range(1, 66)]),
    "no such kind": ("bad_operation", [pack(1, b"", extensions=b"\x4f\x09" + bytes(14))]),
    "operands cut short": ("bad_operation", [pack(1, REQUEST[1][:3], extensions=REQUEST[0])]),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_requests(kind: str) -> None:
    reason, messages = HOSTILE[kind]
    async with kernel_and_node(SMALLER) as (kernel, node):
        await node.bind(4000)
        link = await kernel.raw_link()
        with drops_of(node) as drops:
            await send_all(link, hello() + b"".join(messages))
            await read_all(link)
            await until(lambda: node.statistics().drops.get(reason))
        assert drops[reason] == 1


async def test_requests_of_a_peer_that_takes_none_itself_are_ignored() -> None:
    async with kernel_and_node(SMALLER) as (kernel, node):
        sock = await node.bind(4000)
        memory = bytearray(8)
        cookie = await sock.get_mr(memory)
        link = await kernel.raw_link()
        extensions, payload = Request(WRITE, 1, cookie & 0xFFFFFFFF, cookie >> 32, data=b"mine").pack()
        await send_all(link, hello(0) + pack(1, payload, extensions=extensions) + pack(2, b"after"))
        assert await sock.recv() == b"after"
        assert memory == bytes(8)


# -- on the wire


@pytest.mark.parametrize(
    "message",
    [
        Request(READ, 1, 2, 3, (4,)),
        Request(WRITE, 1, 2, 3, data=b"data"),
        Request(FETCH_AND_ADD, 2**32 - 1, 2, 3, (4, ALL)),
        Answer(READ, 7, 0, b"x"),
        Answer(WRITE, 7, 1),
    ],
)
def test_what_is_packed_is_parsed(message: Request | Answer) -> None:
    assert parse_operation_untrusted(*message.pack()) == message


@given(st.binary(min_size=16, max_size=16), st.none() | st.binary(max_size=64))
def test_any_bytes_are_an_operation_or_refused(extensions: bytes, payload: bytes | None) -> None:
    for field in (extensions, b"\x4f" + extensions[1:], b"\x4f" + bytes([extensions[1] % 6]) + extensions[2:]):
        try:
            found = parse_operation_untrusted(field, payload)
        except WireError:
            continue
        if isinstance(found, Request):
            assert Regions(0).execute(found).status in (rdsx.RdmaOutcome.REMOTE_ERROR, rdsx.RdmaOutcome.OTHER_ERROR)
