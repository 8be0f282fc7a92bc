"""What runs under callgrind: `python -m benchmarks.micro.worker CASE...` prints how many operations it did of each case.

Callgrind writes what it has counted whenever the process calls getppid(), which nothing else here does. Each case calls it three times:
before a short run, between that and a long run, and after it. What the two runs have in common is in both figures and drops out.

What else is in memory must not matter. A loop that happens to fill and empty one pool of Python's allocator again and again costs up to
5 % more, so each case finds the pools of every size half in use.
"""

from __future__ import annotations

import gc
import json
import os
import sys

import trio

from benchmarks.micro import population  # noqa: F401  adds all cases
from benchmarks.micro.case import CASES, Case, Loop

__all__ = ["MARKS", "main"]

MARKS = 3  # calls of getppid() for each case
POOL_BYTES = 16384  # Python allocates small objects of one size in pools of this size
BLOCK_SIZES = range(48, 513, 16)
BYTES_OVERHEAD = 33  # of an object of type bytes


async def count(case: Case) -> int:
    short = case.counted_rounds // 8

    async def measure(loop: Loop) -> None:
        await loop(short)
        os.getppid()
        await loop(short)
        os.getppid()
        await loop(short + case.counted_rounds)
        os.getppid()

    await case.run(measure)
    return case.counted_rounds * case.operations


async def count_all(names: list[str]) -> dict[str, int]:
    operations = {}
    for name in names:
        ballast = half_filled_pools()
        operations[name] = await count(CASES[name])
        del ballast
    return operations


def half_filled_pools() -> list[list[object]]:
    """Objects that keep two pools of each size half full, while they live."""
    full: list[list[object]] = [[object() for _ in range(2 * POOL_BYTES // 16)], [n / 3 for n in range(2 * POOL_BYTES // 32)]]
    full += [[bytes(size - BYTES_OVERHEAD) for _ in range(2 * POOL_BYTES // size)] for size in BLOCK_SIZES]
    return [blocks[::2] for blocks in full]


def main() -> None:
    gc.disable()
    print(json.dumps(trio.run(count_all, sys.argv[1:])))


if __name__ == "__main__":
    main()
