"""Lot: everybody is woken at once, and whoever is cancelled leaves."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing

from rdsx.lot import Lot

TASKS = 4


@pytest.mark.parametrize("cancelled", [gone for count in range(TASKS + 1) for gone in itertools.combinations(range(TASKS), count)])
async def test_who_stays_is_woken_and_who_is_cancelled_is_not(cancelled: tuple[int, ...]) -> None:
    lot = Lot()
    scopes = [trio.CancelScope() for _ in range(TASKS)]
    woken = []

    async def wait(number: int) -> None:
        with scopes[number]:
            await lot.park()
            woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert len(lot) == TASKS
        for number in cancelled:
            scopes[number].cancel()
            await trio.testing.wait_all_tasks_blocked()
        assert len(lot) == TASKS - len(cancelled)
        for number in cancelled:  # and come back, each now at another place
            scopes[number] = trio.CancelScope()
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert len(lot) == TASKS
        assert not woken
        lot.unpark_all()
        assert len(lot) == 0
    assert sorted(woken) == list(range(TASKS))


async def test_who_is_woken_may_park_again() -> None:
    lot = Lot()
    rounds = 0

    async def wait_twice() -> None:
        nonlocal rounds
        for _ in range(2):
            await lot.park()
            rounds += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_twice)
        nursery.start_soon(wait_twice)
        for expected in (2, 4):
            await trio.testing.wait_all_tasks_blocked()
            lot.unpark_all()
            lot.unpark_all()  # nobody is there any more
            await trio.testing.wait_all_tasks_blocked()
            assert rounds == expected
