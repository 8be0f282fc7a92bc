"""An hour of virtual time leaves nothing behind: all that couriers hold is counted, object by object, before and after.

RDSX_CALLS=1000000 is the full size; it takes minutes.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest
import trio

import rdsx
from callskit import PORT, A, B, node_config
from rdsx.calls import CallConfig, Courier, IncomingCall
from rdsx.calls.driver import CourierDriver
from rdsx.testing import VirtualNetwork, run

T = 0x21
CALLS = int(os.environ.get("RDSX_CALLS", "4000"))
HOUR_S = 3600
CALM_S = 1.4 * HOUR_S  # longer than leases, and than what the monitor remembers
TASKS = 20
REPLY_BYTES = 100


def held_by(courier: Courier) -> Iterator[Any]:
    """Everything that can be reached from a courier's engines and tables, each object once; not the node, nor plain numbers."""
    driver = courier._driver
    seen: set[int] = set()
    todo: list[Any] = [driver.caller, driver.callee, driver.counters, driver._monitor, driver._warned_s, driver._awaiting_room]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(
            each, CourierDriver | CallConfig | ModuleType | type | FunctionType | MethodType | BuiltinFunctionType | int | float
        ):
            continue
        seen.add(id(each))
        yield each
        todo += gc.get_referents(each)


def measure(courier: Courier) -> tuple[int, int]:
    """How many objects, and their bytes."""
    sizes = [sys.getsizeof(each) for each in held_by(courier)]
    return len(sizes), sum(sizes)


class Traffic:
    """A callee, a caller that stays, and one that restarts each minute, half of the times without a word."""

    def __init__(self) -> None:
        self.chance = random.Random(1)
        self.calls = 0
        self.most_holders = 0
        self.callee: Courier
        self.stays: Courier

    async def handle(self, call: IncomingCall) -> bytes:
        self.most_holders = max(self.most_holders, self.callee.statistics().holders if self.calls % 100 == 0 else 0)
        await trio.sleep(self.chance.choice([0.0, 0.01, 0.3]))
        return bytes(REPLY_BYTES)

    async def call(self, courier: Courier) -> None:
        self.calls += 1
        pending = courier.start_call((B, PORT), T, bytes(50))
        fate = self.chance.random()
        if fate < 0.02:
            await trio.sleep(0.005)
            pending.abandon()
        elif fate < 0.03:
            await pending.cancel()
        else:
            await pending.wait()

    async def work(self, courier: Courier, count: int, seconds: float) -> None:
        for _ in range(count):
            await self.call(courier)
            await trio.sleep(seconds / count * self.chance.uniform(0.2, 1.8))

    async def spread(self, courier: Courier, count: int, seconds: float) -> None:
        async with trio.open_nursery() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(self.work, courier, max(count // TASKS, 1), seconds)

    async def restart(self, node: rdsx.Node, count: int, minutes: int) -> None:
        for minute in range(minutes):
            with trio.move_on_after(60.0):  # virtual; the courier is cancelled in the middle of its calls
                async with rdsx.open_courier(await node.bind(PORT + 1), config=CallConfig(seed=100 + minute, grace_s=1.0)) as courier:
                    await self.spread(courier, count // minutes, 50.0 if minute % 2 else 100.0)

    async def hours(self, node: rdsx.Node, count: int, minutes: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.spread, self.stays, count // 2, 60.0 * minutes)
            nursery.start_soon(self.restart, node, count // 2, minutes)
        await trio.sleep(CALM_S)


async def main() -> None:
    network, traffic = VirtualNetwork(1), Traffic()
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(rdsx.open_node(A, transport=network, config=node_config(1)))
        there = await stack.enter_async_context(rdsx.open_node(B, transport=network, config=node_config(2)))
        traffic.callee = await stack.enter_async_context(rdsx.open_courier(await there.bind(PORT), config=CallConfig(seed=1)))
        traffic.stays = await stack.enter_async_context(rdsx.open_courier(await here.bind(PORT), config=CallConfig(seed=2)))
        traffic.callee.register(T, traffic.handle, cancellable=True)
        await traffic.hours(here, CALLS // 10, minutes=6)
        before = [measure(courier) for courier in (traffic.callee, traffic.stays)]
        await traffic.hours(here, CALLS, minutes=60)
        after = [measure(courier) for courier in (traffic.callee, traffic.stays)]
        print(f"{traffic.calls} calls, at most {traffic.most_holders} holders; objects and bytes {before}, then {after}")
        for (objects, size), (more_objects, more_size) in zip(before, after, strict=True):
            assert more_objects <= objects + 16
            assert more_size <= size + 4096  # tables keep room for what they once had
        statistics = traffic.callee.statistics()
        assert (statistics.sessions, statistics.holders, statistics.held_bytes) == (0, 0, 0)
        assert traffic.calls > CALLS // 2
        assert traffic.most_holders < 4 * TASKS + CallConfig().window // 4  # what runs, and what is released at once when it is more


@pytest.mark.slow
def test_nothing_grows_in_an_hour() -> None:
    run(main)
