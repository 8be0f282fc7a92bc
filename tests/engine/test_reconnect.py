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


@given(st.integers(), st.floats(0.0001, 1), st.floats(1, 100))
def test_delays_stay_below_the_maximum(seed: int, low: float, high: float) -> None:
    backoff = Backoff(low, high, random.Random(seed).random)
    assert all(0 <= backoff.next_delay_s() <= high for _ in range(30))
