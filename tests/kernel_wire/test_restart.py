"""A kernel whose module was unloaded and loaded again, and what a generation number changes about it (spec A.16)."""

from __future__ import annotations

import contextlib

import pytest
import trio

import rdsx
from kernelkit import (
    GUARD_S,
    HEADER_BYTES,
    KERNEL,
    LARGER,
    SMALLER,
    Kernel,
    free_port,
    kernel_and_node,
    next_event,
    pack_map,
    read_exactly,
    reset,
    send_all,
)

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])
TO_KERNEL = (KERNEL, 4001)


@both_orders
async def test_low_numbers_without_the_flag_are_taken(address: str) -> None:
    """T18: 6.1 says nothing of a restart; it begins again at 1."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.send(*[b"%d" % number for number in range(10)])
            assert [await sock.recv() for _ in range(10)] == [b"%d" % number for number in range(10)]
            link.drop()
            kernel.restart()
            link = await kernel.again()
            await link.send(b"again", b"and again")
            assert [await sock.recv() for _ in range(2)] == [b"again", b"and again"]
            await sock.sendto(b"to the new one", TO_KERNEL)
            await link.until(lambda: kernel.delivered == [b"to the new one"])
            assert node.statistics().connections[0].generation is None


@both_orders
async def test_a_new_generation_is_a_restart(address: str) -> None:
    """T18 with 7.x: an event; what the former life may have seen is not sent to the new one; what it cannot have seen is."""
    async with kernel_and_node(address, generation=0x1000, ack_delay_s=GUARD_S) as (kernel, node):
        with await node.bind(4000) as sock, node.events() as events:
            link = await kernel.meet()
            await link.until(lambda: link.probe_pongs == 2)
            for text in (b"seen 1", b"seen 2", b"seen 3"):
                await sock.sendto(text, TO_KERNEL)
            await link.until(lambda: len(kernel.delivered) == 3)
            assert node.statistics().connections[0].generation == 0x1000
            link.drop()
            await next_event(events, rdsx.PeerDown)
            await sock.sendto(b"not seen", TO_KERNEL)
            kernel.restart()
            assert kernel.generation == 0x1001
            link = await kernel.again()
            restarted = await next_event(events, rdsx.PeerRestarted)
            assert (restarted.local, restarted.peer, restarted.flushed) == (address, KERNEL, 5)  # two of them are probe pongs
            await link.until(lambda: link.probe_pongs and len(kernel.delivered) == 4)
            assert kernel.delivered == [b"seen 1", b"seen 2", b"seen 3", b"not seen"]
            assert not any(frame.is_resent for frame in link.frames)
            assert sock.statistics().unacknowledged_messages == 1
            assert node.statistics().counters["send_flushed"] == 5
            assert node.statistics().connections[0].generation == 0x1001
            await link.send(b"low number, no flag")
            assert await sock.recv() == b"low number, no flag"


@both_orders
async def test_the_same_generation_is_none(address: str) -> None:
    """7.x asks again after every reconnect, with the same number."""
    async with kernel_and_node(address, generation=5) as (kernel, node):
        with await node.bind(4000) as sock, node.events() as events:
            link = await kernel.meet()
            for number in range(5):
                await sock.sendto(b"%d" % number, TO_KERNEL)
                await link.until(lambda: len(kernel.delivered) == number + 1)  # noqa: B023  used within the loop
                link.drop()
                link = await kernel.again()
                await link.until(lambda: link.probe_pongs == 2)  # noqa: B023  used within the loop
            assert kernel.delivered == [b"%d" % number for number in range(5)]
            seen = [type(events.receive_nowait()) for _ in range(events.statistics().current_buffer_used)]
            assert rdsx.PeerRestarted not in seen
            assert seen.count(rdsx.PeerUp) == 6


@both_orders
async def test_generation_that_goes_missing_changes_nothing(address: str) -> None:
    """A.16: an older kernel boots on the same machine."""
    async with kernel_and_node(address, generation=5) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.until(lambda: link.probe_pongs == 2)
            link.drop()
            kernel.restart()
            kernel.generation = None
            link = await kernel.again()
            kernel.probe()
            await link.pump()
            await link.until(lambda: link.probe_pongs == 2)
            await link.send(b"x")
            assert await sock.recv() == b"x"
            assert node.statistics().connections[0].generation == 5


@both_orders
async def test_restarted_node_goes_on_with_larger_numbers(address: str) -> None:
    """A.16 remedy 1, T19: the first connection after our restart is killed, so its messages come flagged; none is dropped."""
    port = free_port(KERNEL, address)
    config = rdsx.NodeConfig(port=port, poke_min_delay_s=0.005, close_drain_s=0.0, ack_delay_s=GUARD_S)
    kernel = Kernel(KERNEL, address, port)
    with trio.fail_after(GUARD_S), contextlib.closing(kernel):
        await kernel.listen()
        async with rdsx.open_node(address, config=config) as node:
            sock = await node.bind(4000)
            link = await kernel.meet()
            await sock.sendto(b"before", TO_KERNEL)
            await link.until(lambda: kernel.delivered)
        await link.serve()
        link.close()
        async with rdsx.open_node(address, config=config) as node:
            sock = await node.bind(4000)
            await sock.sendto(b"after", TO_KERNEL)
            if kernel.is_smaller:
                await kernel.take_poke()
            killed = await kernel.raw_link(poked=True)
            await send_all(killed, pack_map())
            await read_exactly(killed, len(pack_map()) + HEADER_BYTES + 5)
            reset(killed)
            link = await kernel.again()
            await link.until(lambda: len(kernel.delivered) == 2)
            assert link.frames[1].is_resent
            assert kernel.delivered == [b"before", b"after"]
