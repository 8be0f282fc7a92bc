"""Instructions per operation: runs the worker under callgrind and reads what it wrote.

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
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.micro.worker import MARKS

__all__ = ["WORKER", "CountingError", "count", "has_valgrind", "valgrind_version"]

WORKER = ("-m", "benchmarks.micro.worker")


class CountingError(Exception):
    """Callgrind or the worker failed."""


def has_valgrind() -> bool:
    return shutil.which("valgrind") is not None


def valgrind_version() -> str:
    if not has_valgrind():
        raise CountingError("valgrind is not installed: apt-get install valgrind")
    return subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip().removeprefix("valgrind-")


def count(names: Iterable[str], *, worker: Sequence[str] = WORKER, profiles: Path | None = None) -> dict[str, float]:
    """Instructions per operation of each case. Leaves a profile of each for callgrind_annotate in the folder `profiles`."""
    valgrind_version()
    with tempfile.TemporaryDirectory(prefix="rdsx-callgrind-") as folder:
        out = Path(folder) / "out"
        operations = run_worker([f"--callgrind-out-file={out}", "--dump-before=getppid"], [*worker, *names])
        dumps = len(list(Path(folder).glob("out.*")))
        if dumps != MARKS * len(operations):
            raise CountingError(f"callgrind wrote {dumps} dumps for {len(operations)} cases, not {MARKS} for each: who else calls getppid()?")
        counts = {}
        for index, (name, done) in enumerate(operations.items()):
            short, long = (Path(f"{out}.{MARKS * index + mark}") for mark in (2, 3))
            counts[name] = round((total(long) - total(short)) / done, 1)
            if profiles is not None:
                profiles.mkdir(parents=True, exist_ok=True)
                shutil.copy(long, profiles / f"{name.replace(' ', '-')}.callgrind")
    return counts


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
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise CountingError(f"the worker failed with status {run.returncode}:\n{run.stderr[-2000:]}")
    operations: dict[str, int] = json.loads(run.stdout)
    return operations


def total(dump: Path) -> int:
    for line in dump.read_text().splitlines():
        if line.startswith("totals:"):
            return int(line.split()[1])
    raise CountingError(f"{dump.name} has no totals")
