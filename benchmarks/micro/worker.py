"""What runs under callgrind: `python -m benchmarks.micro.worker CASE...` prints how many operations it did of each case.

Callgrind writes what it has counted whenever the process calls getppid(), which nothing else here does. Each case calls it three times:
before a short run, between that and a long run, and after it. What the two runs have in common is in both figures and drops out.
"""

from __future__ import annotations

import gc
import json
import os
import sys

import trio

from benchmarks.micro import fast, sockets, stream  # noqa: F401  each adds its cases
from benchmarks.micro.case import CASES, Case, Loop

__all__ = ["MARKS", "main"]

MARKS = 3  # calls of getppid() for each case


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
    return {name: await count(CASES[name]) for name in names}


def main() -> None:
    gc.disable()
    print(json.dumps(trio.run(count_all, sys.argv[1:])))


if __name__ == "__main__":
    main()
