"""Nanoseconds per operation of a case, best and median of several samples. The best one is the least disturbed by other programs."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass

import trio

from benchmarks.micro.case import Case, Loop

__all__ = ["Timing", "time_case"]

SAMPLES = 15
SAMPLE_S = 0.01


@dataclass(frozen=True)
class Timing:
    """Of one operation."""

    best_ns: float
    median_ns: float


def time_case(case: Case, *, samples: int = SAMPLES, sample_s: float = SAMPLE_S) -> Timing:
    """Run a case in samples of about `sample_s`. The garbage collector rests."""
    taken_ns: list[float] = []

    async def measure(loop: Loop) -> None:
        rounds = 1
        while await timed_s(loop, rounds) < sample_s:
            rounds *= 2
        for _ in range(samples):
            taken_ns.append(await timed_s(loop, rounds) * 1e9 / (rounds * case.operations))

    enabled = gc.isenabled()
    gc.disable()
    try:
        trio.run(case.run, measure)
    finally:
        if enabled:
            gc.enable()
    return Timing(round(min(taken_ns), 1), round(statistics.median(taken_ns), 1))


async def timed_s(loop: Loop, rounds: int) -> float:
    start = time.perf_counter()
    await loop(rounds)
    return time.perf_counter() - start
