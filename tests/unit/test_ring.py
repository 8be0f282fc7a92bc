"""Slot arithmetic of work-request rings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx import _fast, _reference

RINGS = [_fast.Ring, _reference.Ring]


@given(
    st.sampled_from([1, 2, 4, 8, 32, 1024]),
    st.lists(st.tuples(st.sampled_from(["allocate", "unallocate", "release"]), st.integers(0, 40)), max_size=50),
)
def test_like_the_twin(size: int, steps: list[tuple[str, int]]) -> None:
    fast, slow = _fast.Ring(size), _reference.Ring(size)
    for verb, count in steps:
        outcomes: list[Any] = []
        for ring in (fast, slow):
            try:
                outcomes.append(getattr(ring, verb)(count))
            except ValueError:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1]
        assert (fast.used, fast.free, fast.low, fast.oldest) == (slow.used, slow.free, slow.low, slow.oldest)
        assert fast.used + fast.free == size


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("size", [0, 3, 6, 1000])
def test_the_size_is_a_power_of_two(ring: Any, size: int) -> None:
    with pytest.raises(ValueError):
        ring(size)


def test_counters_wrap() -> None:
    """The counters are 32 bits wide and run freely: 2**32 slots later all is as it was."""
    ring = _fast.Ring(1 << 31)
    for _ in range(5):
        assert ring.allocate(0xFFFFFFFF) == (0, 1 << 31)
        assert (ring.free, ring.used, ring.oldest) == (0, 1 << 31, 0)
        ring.release(1 << 31)
    ring.allocate((1 << 31) - 5)
    ring.release((1 << 31) - 7)
    assert ring.allocate(10) == ((1 << 31) - 5, 10)
    assert (ring.used, ring.oldest) == (12, (1 << 31) - 7)
    ring.unallocate(12)
    assert ring.used == 0


@pytest.mark.parametrize("ring", RINGS)
def test_more_than_there_is(ring: Any) -> None:
    slots = ring(8)
    assert slots.allocate(20) == (0, 8)
    assert slots.allocate(1) == (0, 0)
    with pytest.raises(ValueError):
        slots.release(9)
    with pytest.raises(ValueError):
        slots.unallocate(9)
    assert slots.used == 8
    slots.release(6)
    assert slots.low
    assert slots.oldest == 6
