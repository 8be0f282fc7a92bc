"""Instructions per operation: runs the worker under callgrind and subtracts the short run of each case from the long one.

The worker sees a bare environment, no randomized hashes, and the import path of this process, so it measures the rdsx that is imported
here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.micro.profile import Function, read_profile
from benchmarks.micro.worker import MARKS

__all__ = ["WORKER", "Count", "CountingError", "count", "valgrind_version"]

WORKER = ("-m", "benchmarks.micro.worker")
TIMEOUT_S = 600


class CountingError(Exception):
    """Callgrind or the worker failed."""


@dataclass(frozen=True)
class Count:
    """Instructions per operation of one case."""

    total: float
    own: float
    """Those in the extension modules of rdsx; the rest is Python, trio and the C library."""
    functions: dict[Function, float]


def valgrind_version() -> str:
    if shutil.which("valgrind") is None:
        raise CountingError("valgrind is not installed: apt-get install valgrind")
    run = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    return run.stdout.strip().removeprefix("valgrind-")


def count(names: Iterable[str], *, worker: Sequence[str] = WORKER) -> dict[str, Count]:
    """Count the cases of these names, in one process. `worker`: the arguments that start Python as the worker."""
    valgrind_version()
    with tempfile.TemporaryDirectory(prefix="rdsx-callgrind-") as folder:
        out = Path(folder) / "out"
        operations = run_worker([f"--callgrind-out-file={out}", "--dump-before=getppid"], [*worker, *names])
        dumps = len(list(Path(folder).glob("out.*")))
        if dumps != MARKS * len(operations):
            raise CountingError(f"{dumps} dumps for {len(operations)} cases, not {MARKS} for each: something else calls getppid()")
        counts = {}
        for index, (name, done) in enumerate(operations.items()):
            short, long = (read_profile(Path(f"{out}.{MARKS * index + mark}")) for mark in (2, 3))
            counts[name] = per_operation(short, long, done)
        return counts


def per_operation(short: Counter[Function], long: Counter[Function], operations: int) -> Count:
    long.subtract(short)
    functions = {function: instructions / operations for function, instructions in long.most_common()}
    own = sum(instructions for function, instructions in functions.items() if function.is_own)
    return Count(round(long.total() / operations, 1), round(own, 1), functions)


def run_worker(options: list[str], arguments: list[str]) -> dict[str, int]:
    """The worker's own account: operations of each case, in the order in which they ran."""
    command = ["valgrind", "--tool=callgrind", *options, sys.executable, "-s", "-P", *arguments]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise CountingError(f"the worker was not done after {TIMEOUT_S} s") from error
    if run.returncode:
        raise CountingError(f"the worker failed with status {run.returncode}:\n{run.stderr[-2000:]}")
    operations: dict[str, int] = json.loads(run.stdout)
    return operations
