"""What acknowledges a message to a kernel (spec A.7, rules R0 and R1): its TCP, but only where it has spoken."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

import rdsx
from kernelkit import (
    GUARD_S,
    HEADER_BYTES,
    KERNEL,
    LARGER,
    RETRANSMITTED,
    SMALLER,
    is_readable,
    kernel_and_node,
    next_event,
    pack,
    pack_map,
    read_exactly,
    reset,
    send_all,
    until,
)

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])
TO_KERNEL = (KERNEL, 4001)
KIB, MIB = 1024, 1024 * 1024


def unretired(node: rdsx.Node) -> int:
    (connection,) = node.statistics().connections
    return connection.send_queue_messages + connection.retransmit_queue_messages


@both_orders
async def test_flush_returns_when_tcp_has_acknowledged_and_nobody_has_read(address: str) -> None:
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            read_so_far = link.received_bytes
            for number in range(100):
                await sock.sendto(b"%d" % number, TO_KERNEL)
            await sock.flush()
            assert sock.statistics().unacknowledged_messages == 0
            assert link.received_bytes == read_so_far
            await link.until(lambda: len(kernel.delivered) == 100)
            assert kernel.duplicates == 0


@both_orders
async def test_flush_waits_for_what_tcp_has_not_acknowledged(address: str) -> None:
    """A message longer than what the kernel's TCP takes unread is not acknowledged before it reads."""
    async with kernel_and_node(address, receive_buffer_bytes=64 * KIB, send_buffer_bytes=4 * MIB) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await sock.sendto(bytes(MIB), TO_KERNEL)
            await sock.sendto(bytes(MIB), TO_KERNEL)
            flushed = trio.Event()

            async def flush() -> None:
                await sock.flush()
                flushed.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not flushed.is_set()
                await link.until(lambda: len(kernel.delivered) == 2)
                await flushed.wait()
            assert unretired(node) == 0


@both_orders
@pytest.mark.parametrize("how", ["reset", "close", "half a header"])
async def test_nothing_is_retired_where_the_kernel_has_not_spoken(address: str, how: str) -> None:
    """R1: its TCP takes and acknowledges everything, then RDS refuses the connection. We go further than the rule: until it has
    spoken we write our map and no message."""
    async with kernel_and_node(address, reconnect_max_delay_s=0.005) as (kernel, node):
        texts = [b"%d" % number for number in range(50)]
        with await node.bind(4000) as sock:
            await sock.sendmmsg([(text, TO_KERNEL) for text in texts])
            if kernel.is_smaller:
                await kernel.take_poke()
            flushed = trio.Event()

            async def flush() -> None:
                await sock.flush()
                flushed.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush)
                for _ in range(3):
                    refused = await kernel.raw_link(poked=True)
                    if how == "half a header":
                        await send_all(refused, pack_map()[:30])
                    assert (await read_exactly(refused, len(pack_map())))[:24] == pack_map()[:24]
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert not is_readable(refused)
                    assert not flushed.is_set()
                    assert unretired(node) == len(texts)
                    refused.close() if how != "reset" else reset(refused)
                link = await kernel.again()
                await link.until(lambda: link.probe_pongs)
                await flushed.wait()
            assert kernel.delivered == texts
            assert [frame.flags for frame in link.frames[1 : len(texts) + 1]] == [0] * len(texts)


@both_orders
async def test_what_was_written_and_not_retired_is_resent_flagged(address: str) -> None:
    """The connection breaks before anybody has looked at its acknowledgements. All of it goes again, each with 0x04, in order; the
    kernel drops what it has had."""
    async with kernel_and_node(address, ack_delay_s=GUARD_S) as (kernel, node):
        kernel.npaths = 1
        texts = [b"%d" % number for number in range(50)]
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await sock.sendmmsg([(text, TO_KERNEL) for text in texts])
            await link.until(lambda: len(kernel.delivered) == 20)
            for _ in range(3):
                link.drop()
                link = await kernel.again()
                await link.until(lambda: link.frames and link.frames[-1].sequence == 51)  # noqa: B023  used within the loop
            assert [(frame.sequence, frame.flags) for frame in link.frames[1:]] == [(1 + at, RETRANSMITTED) for at in range(51)]
            assert kernel.duplicates == 3 * 51 - 30
            assert kernel.delivered == texts


@both_orders
@pytest.mark.parametrize("cut_at", [1, 24, 47, 48, 49, 100 * KIB], ids=lambda at: f"byte-{at}")
async def test_reset_in_the_middle_of_a_message(address: str, cut_at: int) -> None:
    """T13: what was started is resent whole and flagged, what was not goes as it is, in order, and each arrives once."""
    buffers = {"receive_buffer_bytes": 32 * KIB, "send_buffer_bytes": 32 * MIB, "max_buffer_bytes": 32 * MIB}
    async with kernel_and_node(address, **buffers) as (kernel, node):
        kernel.npaths = 1  # no probes: the frames below are counted
        # more than the node's TCP takes while the kernel does not read, so that the last ones are not started
        sizes = (100, 3000, 256 * KIB, 5, *[MIB] * 12, 0, 70)
        texts = [bytes([number]) * size for number, size in enumerate(sizes)]
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await sock.sendmmsg([(text, TO_KERNEL) for text in texts])
            await link.until(lambda: len(kernel.delivered) == 2)
            assert await link.bytes(cut_at) == pack(4, texts[2], sport=4000, dport=4001)[:cut_at]
            link.drop()
            link = await kernel.again()
            await link.until(lambda: len(kernel.delivered) == len(texts) and link.probe_pongs)
            assert kernel.delivered == texts
            is_resent = {frame.sequence: frame.is_resent for frame in link.frames[1:]}
            assert is_resent[4]
            assert not is_resent[1 + len(texts)]
            await sock.flush()
            assert unretired(node) == 0


@both_orders
async def test_many_resets_in_both_directions(address: str) -> None:
    """T7, T12, T13: messages of all sizes both ways, and a reset in the middle of each long one: each once, in order, on both sides.

    The kernel's TCP cannot have acknowledged the end of the message that is cut, and RDS has read all before it: a real kernel
    reads at once, so what its TCP has acknowledged is never lost with the connection."""
    sizes = [0, 1, 47, 48, 4095, 4096, 4097, 65536, MIB]
    rounds = 6
    buffers = {"receive_buffer_bytes": 32 * KIB, "send_buffer_bytes": 4 * MIB}
    async with kernel_and_node(address, reconnect_max_delay_s=0.005, **buffers) as (kernel, node):
        with await node.bind(4000) as sock:
            out = [bytes([number]) * sizes[number % len(sizes)] for number in range(rounds * len(sizes))]
            got: list[bytes] = []

            async def send() -> None:
                for text in out:
                    await sock.sendto(text, TO_KERNEL)

            async def receive() -> None:
                while len(got) < len(out):
                    got.append(await sock.recv())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(receive)
                for done in range(len(sizes), len(out) + 1, len(sizes)):
                    if kernel.is_smaller and not kernel.links:
                        await kernel.take_poke()
                    link = await kernel.again()
                    for text in out[done - len(sizes) : done]:
                        kernel.push(text)
                    await link.until(lambda: len(kernel.delivered) >= done - 1)  # noqa: B023  used within the loop
                    await link.pump()
                    await until(lambda: len(got) >= done)  # noqa: B023  used within the loop
                    await link.bytes(1000)
                    link.drop()
                link = await kernel.again()
                await link.until(lambda: len(kernel.delivered) == len(out))
            assert kernel.delivered == out
            assert got == out


@both_orders
async def test_resends_leave_before_everything_new(address: str) -> None:
    """R0, T26: a pong and new messages that are queued meanwhile stand behind the resends, in ascending order."""
    async with kernel_and_node(address, ack_delay_s=GUARD_S) as (kernel, node):
        kernel.npaths = 1
        with await node.bind(4000) as sock, node.events() as events:
            link = await kernel.meet()
            await sock.sendto(b"one", TO_KERNEL)
            await sock.sendto(b"two", TO_KERNEL)
            await read_exactly(link.sock, 2 * (HEADER_BYTES + 3))
            link.drop()
            await next_event(events, rdsx.PeerDown)
            await sock.sendto(b"three", TO_KERNEL)
            kernel.probe()
            link = await kernel.again()
            await link.until(lambda: len(kernel.delivered) == 3 and link.probe_pongs == 2)
            assert kernel.delivered == [b"one", b"two", b"three"]
            assert [frame.sequence for frame in link.frames] == [0, 1, 2, 3, 4, 5]
            assert [frame.is_resent for frame in link.frames] == [False, True, True, True, False, False]


@both_orders
async def test_cancelled_messages_leave_gaps(address: str) -> None:
    """A.6: a number that was never on the wire is not used again, and nobody waits for it."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock, await node.bind(4002) as other:
            await sock.sendto(b"never", TO_KERNEL)
            await other.sendto(b"a", TO_KERNEL)
            assert sock.cancel_sent_to(TO_KERNEL) == 1
            if kernel.is_smaller:
                await kernel.take_poke()
                link = await kernel.dial()
            else:
                link = await kernel.accept()
            await link.until(lambda: kernel.delivered)
            assert kernel.delivered == [b"a"]
            assert link.frames[1].sequence == 2


@both_orders
async def test_a_reset_of_ours_loses_nothing_that_waits_to_be_read(address: str) -> None:
    """The kernel has forgotten what its TCP has had acknowledged: reset_connection() must read that before it lets go."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.until(lambda: link.probe_pongs)
            wire = b"".join(kernel.push(b"%d" % number).pack() for number in range(50))
            # No await from here to the reset: the node's reader has no turn in between.
            assert os.write(link.sock.fileno(), wire) == len(wire)
            kernel.queue.clear()  # acknowledged by TCP, and so forgotten
            assert node.reset_connection(KERNEL)
            assert [await sock.recv() for _ in range(50)] == [b"%d" % number for number in range(50)]
            while await link.frame() is not None:  # to the end: a half-close, not a reset
                pass
            link.close()
            link = await kernel.again()
            await link.send(b"afterwards")
            assert await sock.recv() == b"afterwards"
            assert node.statistics().drops["reset_by_user"] == 1
