"""The deadline table against a plain dict."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from rdsx.calls.timers import Timers

keys = st.integers(0, 5)
times = st.integers(0, 50).map(float) | st.just(inf)


@given(st.lists(st.tuples(st.just("set"), keys, times) | st.tuples(st.just("pop"), keys, times.filter(lambda at: at < inf)), max_size=80))
def test_as_a_dict_would(steps: list[tuple[str, int, float]]) -> None:
    timers: Timers[int] = Timers()
    plain: dict[int, float] = {}
    for what, key, at_s in steps:
        if what == "set":
            timers.set(key, at_s)
            plain[key] = at_s
        else:
            due = {each for each, due_s in plain.items() if due_s <= at_s}
            assert sorted(timers.pop_due(at_s)) == sorted(due)
            for each in due:
                del plain[each]
        assert timers.next_s() <= min(plain.values(), default=inf)


def test_the_heap_does_not_grow_with_changes() -> None:
    timers: Timers[str] = Timers()
    for turn in range(10_000):
        timers.set("peer", turn + 900.0)  # a lease, far away
        timers.set("peer", turn + 0.05)  # a release, soon
        assert timers.pop_due(turn + 0.1) == ["peer"]
        timers.set("peer", turn + 900.0)
    assert len(timers._heap) < 200
    assert timers.next_s() <= 9_999 + 900.0
