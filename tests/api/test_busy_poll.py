"""NodeConfig.busy_poll_s: who waits for a message reads the connections itself, before the scheduler does."""

from __future__ import annotations

import pytest
import trio

import rdsx
from apikit import LEFT, RIGHT, Duo, duo

LONG_S = 5.0  # a test that polls so long has failed
HERE, THERE = (LEFT, 4000), (RIGHT, 5000)
TWO_TO_THERE = TWO_FROM_THERE = [(b"one", THERE), (b"two", THERE)]  # two in one call leave at once, however soon they follow others
TWO_TO_HERE = TWO_FROM_HERE = [(b"one", HERE), (b"two", HERE)]


class Passes(trio.abc.Instrument):
    """Counts the passes through the scheduler."""

    def __init__(self) -> None:
        self.count = 0
        trio.lowlevel.add_instrument(self)

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def connected(two: Duo) -> tuple[rdsx.RdsSocket, rdsx.RdsSocket]:
    left, right = await two.sockets()
    await left.sendto(b"first", THERE)
    assert await right.recvfrom() == (b"first", HERE)
    await left.flush()
    return left, right


@pytest.mark.parametrize(("busy_poll_s", "passes"), [(LONG_S, False), (0.0, True)])
async def test_who_polls_does_without_the_scheduler(busy_poll_s: float, passes: bool) -> None:
    async with duo("tcp", busy_poll_s=busy_poll_s, yield_interval_s=1e9) as two:
        left, right = await connected(two)
        count = 0
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
            counted = Passes()
            await left.sendmmsg(TWO_TO_THERE)
            assert await right.recvmmsg() == TWO_FROM_HERE
            await right.sendmmsg(TWO_TO_HERE)
            assert await left.recvmmsg() == TWO_FROM_THERE
            trio.lowlevel.remove_instrument(counted)
            count += counted.count
        assert (count > 0) == passes


async def test_what_gathers_is_sent_before_polling() -> None:
    """Messages that wait for the end of the scheduler's turn would wait for ever if nobody lets it turn."""
    async with duo("tcp", busy_poll_s=0.001, yield_interval_s=1e9) as two:
        left, right = await connected(two)
        counted = Passes()
        for number in range(5):
            await left.sendto(b"%d" % number, THERE)
        assert not left._driver.busy_poll(left._endpoint)
        assert [(await right.recvfrom())[0] for _ in range(5)] == [b"%d" % number for number in range(5)]
        trio.lowlevel.remove_instrument(counted)
        assert not counted.count


async def test_a_connection_that_ends_while_polled() -> None:
    async with duo("tcp", busy_poll_s=0.001) as two:
        left, right = await connected(two)
        two.right.reset_connection(LEFT)
        with trio.move_on_after(0.01):
            await left.recvfrom()
        await right.sendto(b"after all", HERE)
        assert await left.recvfrom() == (b"after all", THERE)


async def test_polling_is_bounded_and_then_waits() -> None:
    async with duo("tcp", busy_poll_s=0.001) as two:
        left, right = await connected(two)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                assert await right.recvfrom() == (b"late", HERE)

            await trio.testing.wait_all_tasks_blocked()
            await left.sendto(b"late", THERE)


async def test_a_cancelled_receive_takes_nothing() -> None:
    async with duo("tcp", busy_poll_s=0.001) as two:
        left, right = await connected(two)
        with trio.CancelScope() as scope:
            scope.cancel()
            await right.recvfrom()
        assert scope.cancelled_caught
        await left.sendto(b"kept", THERE)
        assert await right.recvfrom() == (b"kept", HERE)
