"""The kernel's backoff: at once, then uniform below a ceiling that doubles up to the maximum."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from rdsx.engine.reconnect import Backoff


def test_ceilings_double() -> None:
    backoff = Backoff(0.001, 0.010, lambda: 1.0)
    assert [backoff.next_delay_s() for _ in range(7)] == [0.0, 0.001, 0.002, 0.004, 0.008, 0.010, 0.010]


def test_reset_makes_the_next_attempt_immediate() -> None:
    backoff = Backoff(0.001, 1.0, lambda: 1.0)
    for _ in range(5):
        backoff.next_delay_s()
    backoff.reset()
    assert [backoff.next_delay_s(), backoff.next_delay_s()] == [0.0, 0.001]


def test_while_an_address_moves_attempts_without_a_way_follow_quickly() -> None:
    backoff = Backoff(0.001, 1.0, lambda: 1.0)
    for _ in range(9):
        backoff.next_delay_s(no_way=True)
    backoff.moved()
    assert [backoff.next_delay_s(no_way=True) for _ in range(7)] == [0.010, 0.020, 0.050, 0.100, 0.0, 0.001, 0.002]


def test_other_attempts_do_not() -> None:
    """Two ends that refuse each other must not go on in step."""
    backoff = Backoff(0.001, 1.0, lambda: 1.0)
    backoff.moved()
    assert [backoff.next_delay_s(no_way=no_way) for no_way in (False, False, True, False)] == [0.0, 0.001, 0.010, 0.002]


@given(st.integers(), st.floats(0.0001, 1), st.floats(1, 100))
def test_delays_stay_below_the_maximum(seed: int, low: float, high: float) -> None:
    backoff = Backoff(low, high, random.Random(seed).random)
    assert all(0 <= backoff.next_delay_s() <= high for _ in range(30))
