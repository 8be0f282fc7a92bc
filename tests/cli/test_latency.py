"""The histogram behind the percentiles, against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rdsx.cli.latency import Latencies

DURATIONS = st.lists(st.integers(0, 10**12), min_size=1, max_size=200)


@given(DURATIONS, st.sampled_from([1, 50, 90, 99, 100]))
def test_a_percentile_is_within_a_thousandth_of_the_true_one(durations_ns: list[int], percent: int) -> None:
    latencies = Latencies()
    for duration_ns in durations_ns:
        latencies.add(duration_ns)
    true_ns = sorted(durations_ns)[max(1, -(-len(durations_ns) * percent // 100)) - 1]
    found_ns = latencies.percentile_ns(percent)
    assert found_ns is not None
    assert abs(found_ns - true_ns) <= max(durations_ns) - min(durations_ns)
    assert abs(found_ns - true_ns) <= true_ns / 500
    assert (latencies.min_ns, latencies.max_ns, latencies.count) == (min(durations_ns), max(durations_ns), len(durations_ns))


@given(DURATIONS, DURATIONS)
def test_merged_histograms_count_everything(first_ns: list[int], second_ns: list[int]) -> None:
    parts = (Latencies(), Latencies())
    for latencies, durations_ns in zip(parts, (first_ns, second_ns), strict=True):
        for duration_ns in durations_ns:
            latencies.add(duration_ns)
    merged = Latencies()
    for latencies in parts:
        merged.merge(latencies.buckets)
    assert merged.count == len(first_ns) + len(second_ns)
    median_ns = sorted(first_ns + second_ns)[-(-merged.count // 2) - 1]
    found_ns = merged.percentile_ns(50)
    assert found_ns is not None
    assert abs(found_ns - median_ns) <= median_ns / 500


def test_no_samples_no_percentile() -> None:
    assert Latencies().percentile_ns(50) is None


def test_a_clock_that_goes_back_counts_as_zero() -> None:
    latencies = Latencies()
    latencies.add(-5)
    assert (latencies.min_ns, latencies.max_ns, latencies.percentile_ns(99)) == (0, 0, 0)
