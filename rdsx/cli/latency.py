"""Percentiles of durations in bounded memory. Owns a histogram of buckets a thousandth wide; never keeps the samples.

Invariant: a percentile is within 0.1% of the true one, and between the smallest and the largest sample, which are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

__all__ = ["Latencies"]

SIGNIFICANT_BITS = 10


class Latencies:
    """Durations in nanoseconds: `add` them, `merge` other processes' `buckets`, then ask for `percentile_ns`."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # lowest duration of the bucket -> samples in it
        self.count = 0
        self.min_ns = 0
        self.max_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one sample. A negative one (clocks) counts as 0."""
        duration_ns = max(duration_ns, 0)
        shift = max(duration_ns.bit_length() - SIGNIFICANT_BITS, 0)
        self._counts[duration_ns >> shift << shift] += 1
        self.min_ns = min(self.min_ns, duration_ns) if self.count else duration_ns
        self.max_ns = max(self.max_ns, duration_ns)
        self.count += 1

    def percentile_ns(self, percent: float) -> int | None:
        """The nearest-rank percentile; None without samples."""
        rank = max(1, -(-self.count * percent // 100))
        seen = 0
        for bucket_ns, samples in sorted(self._counts.items()):
            seen += samples
            if seen == self.count:
                return self.max_ns
            if seen >= rank:
                width_ns = 1 << max(bucket_ns.bit_length() - SIGNIFICANT_BITS, 0)
                return max(bucket_ns + width_ns // 2, self.min_ns)
        return None

    @property
    def buckets(self) -> dict[str, int]:
        """What `merge` takes, fit for JSON."""
        return {str(bucket_ns): samples for bucket_ns, samples in self._counts.items()}

    def merge(self, buckets: Mapping[str, int]) -> None:
        """Add another histogram's `buckets`; its smallest and largest samples are then known to a bucket's width."""
        for key, samples in buckets.items():
            bucket_ns = int(key)
            self.min_ns = min(self.min_ns, bucket_ns) if self.count else bucket_ns
            self.max_ns = max(self.max_ns, bucket_ns)
            self.count += samples
            self._counts[bucket_ns] += samples
