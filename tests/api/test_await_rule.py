"""The await rule: every async call looks for a cancellation; one that need not wait lets others run every so often, never never."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

import rdsx
from apikit import LEFT, bound, loop_node

CALLS_PER_TURN = 256  # at most so many calls between two turns of others

Call = Callable[[rdsx.RdsSocket], Awaitable[object]]
HERE, NOBODY = (LEFT, 4000), (LEFT, 9)

# Calls that never have to wait: what is sent goes nowhere, and there is enough to receive.
CALLS: dict[str, Call] = {
    "sendto": lambda sock: sock.sendto(b"", NOBODY),
    "send": lambda sock: sock.send(b""),
    "sendmsg": lambda sock: sock.sendmsg([b""], [], 0, NOBODY),
    "sendmmsg": lambda sock: sock.sendmmsg([(b"", NOBODY)]),
    "sendmmsg of none": lambda sock: sock.sendmmsg([]),
    "wait_writable": lambda sock: sock.wait_writable(NOBODY),
    "flush": lambda sock: sock.flush(),
    "connect": lambda sock: sock.connect(NOBODY),
    "recv": lambda sock: sock.recv(),
    "recvfrom": lambda sock: sock.recvfrom(),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(1)),
    "recvmmsg": lambda sock: sock.recvmmsg(1),
    "recvmsg": lambda sock: sock.recvmsg(),
    "__anext__": anext,
}
every_call = pytest.mark.parametrize("name", CALLS)


class Turns(trio.abc.Instrument):
    """Counts how often a task has let others run."""

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self.count = 0
        trio.lowlevel.add_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


@asynccontextmanager
async def stage(interval_s: float) -> AsyncIterator[tuple[rdsx.RdsSocket, Turns]]:
    async with loop_node(yield_interval_s=interval_s) as node:
        sock = await bound(node, 4000, LEFT)
        await sock.connect(NOBODY)
        sock.sendmmsg_nowait([(b"", HERE)] * 3000)
        await trio.lowlevel.checkpoint()
        turns = Turns()
        yield sock, turns
        trio.lowlevel.remove_instrument(turns)


@every_call
async def test_others_get_a_turn(name: str, mock_clock: trio.testing.MockClock) -> None:
    """Even when no time passes at all."""
    async with stage(interval_s=0.001) as (sock, turns):
        for _ in range(10 * CALLS_PER_TURN):
            await CALLS[name](sock)
        assert turns.count == 10


@every_call
async def test_others_get_a_turn_when_time_passes(name: str, mock_clock: trio.testing.MockClock) -> None:
    async with stage(interval_s=0.001) as (sock, turns):
        for expected in range(5):
            mock_clock.jump(0.0006)
            await CALLS[name](sock)
            assert turns.count == expected
            mock_clock.jump(0.0006)
            await CALLS[name](sock)
            assert turns.count == expected + 1


@every_call
async def test_a_turn_on_every_call(name: str, mock_clock: trio.testing.MockClock) -> None:
    async with stage(interval_s=0.0) as (sock, turns):
        for expected in range(1, 301):
            await CALLS[name](sock)
            assert turns.count == expected


async def test_another_task_runs_beside_a_tight_loop(mock_clock: trio.testing.MockClock) -> None:
    async with stage(interval_s=0.001) as (sock, _), trio.open_nursery() as nursery:
        steps = 0

        async def other() -> None:
            nonlocal steps
            for _ in range(20):
                await trio.lowlevel.checkpoint()
                steps += 1

        nursery.start_soon(other)
        while steps < 20:  # ends only because the other task gets on
            await sock.sendto(b"", NOBODY)


@every_call
async def test_a_tight_loop_sees_a_cancel_of_its_own_making(name: str, mock_clock: trio.testing.MockClock) -> None:
    """On the very next call, not only when it is time for a turn."""
    async with stage(interval_s=1e9) as (sock, _):
        calls = 0
        with trio.CancelScope() as scope:
            while True:
                await CALLS[name](sock)
                calls += 1
                if calls == 5:
                    scope.cancel()
        assert calls == 5


@every_call
async def test_a_tight_loop_sees_a_cancel_from_outside(name: str, mock_clock: trio.testing.MockClock) -> None:
    async with stage(interval_s=1e9) as (sock, _), trio.open_nursery() as nursery:
        calls = 0

        async def loop() -> None:
            nonlocal calls
            while True:
                await CALLS[name](sock)
                calls += 1

        nursery.start_soon(loop)
        while not calls:
            await trio.lowlevel.checkpoint()
        seen = calls
        nursery.cancel_scope.cancel()
    assert calls - seen <= CALLS_PER_TURN


async def test_turns_are_counted_for_the_node(mock_clock: trio.testing.MockClock) -> None:
    """Many sockets, each used now and then, are one tight loop all the same."""
    async with stage(interval_s=0.001) as (sock, turns):
        socks = [sock, *(sock._driver.socket() for _ in range(127))]
        for _ in range(20):
            for one in socks:
                await one.flush()
        assert turns.count == 10
