"""One process of a pair: plays its part of a case. Owns the measured section: its clock, its CPU time, its memory.

The parent (`pair.py`) writes commands to standard input, one on a line; events go to standard output as JSON lines:

    (start)   booted                everything is imported
    open      ready                 the right side listens; the left side has connected
    prepare   prepared              nothing is left over from before: a measured section may begin
    go N      done                  N messages were sent, or all have arrived: when it began and ended, what arrived, latencies
    report    report                CPU time since the last `go`, resident memory, counters
    stop      (end)

`benchmarks/yardstick.c` speaks the same. Invariant: a worker never outlives its parent: it ends with its standard input.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import resource
import sys
import threading
import time
from typing import Any

from benchmarks.backends import load
from benchmarks.scenarios import Job
from benchmarks.side import Side

__all__ = ["main", "play"]


async def play(side: Side, job: Job, count: int) -> None:
    """One side's part in moving `count` messages: the scenario, for every backend."""
    both = side.runtime.gather
    if job.case.scenario.pattern == "ping-pong":
        left, right = side.ping, side.echo
    else:
        left, right = side.send, side.receive
    if job.case.scenario.pattern == "both-ways" and job.role != "both":
        share = count // 2 if job.is_right else count - count // 2  # of what this side sends; the other gets it
        await both(side.send(share), side.receive(count - share))
    elif job.role == "both":
        await both(left(count), right(count))
    else:
        await (left if job.is_left else right)(count)


def main() -> None:
    """The process: its job is the last argument."""
    job = Job.from_json(json.loads(sys.argv[-1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    side = load(job.backend).Side(job)
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    side.runtime.run(lambda: _serve(side, job, commands))


async def _serve(side: Side, job: Job, commands: queue.Queue[str]) -> None:
    _emit("booted")
    await side.runtime.wait_for(commands.get)
    idle_resident_bytes = 0
    cpu_before_s = 0.0
    counters_before: dict[str, int] = {}
    async with side.opened(lambda: _emit("ready")):
        while True:
            command, *arguments = (await side.runtime.wait_for(commands.get)).split()
            if command == "prepare":
                gc.collect()  # not in the measured section, where it can take long
                if not idle_resident_bytes:
                    idle_resident_bytes = _resident_bytes()
                    await side.prepare()
                _emit("prepared")
            elif command == "go":
                counters_before = side.counters()
                cpu_before_s = _cpu_s()
                started_ns = time.monotonic_ns()
                await play(side, job, int(arguments[0]))
                ended_ns = time.monotonic_ns()
                _emit("done", started_ns=started_ns, ended_ns=ended_ns, **_arrived(side), **_latencies(side))
            elif command == "report":
                cpu_s = _cpu_s() - cpu_before_s
                counters = {name: count - counters_before.get(name, 0) for name, count in side.counters().items()}
                memory = {"resident_bytes": _resident_bytes(), "idle_resident_bytes": idle_resident_bytes}
                _emit("report", cpu_s=cpu_s, **memory, counters=counters)
            elif command == "stop":
                os._exit(0)  # an orderly end is not what is measured
    raise AssertionError("not reached")


def _read_commands(commands: queue.Queue[str]) -> None:
    for line in sys.stdin:
        commands.put(line)
    os._exit(1)


def _arrived(side: Side) -> dict[str, int]:
    """What arrived since the last call. Not since the phase began: what the other side sends may come before this side begins."""
    messages, total = side.messages, side.bytes
    side.messages = side.bytes = 0
    return {"messages": messages, "bytes": total}


def _latencies(side: Side) -> dict[str, float]:
    times_ns = sorted(side.round_trips_ns)
    side.round_trips_ns = []
    if not times_ns:
        return {}
    return {"p50_us": times_ns[len(times_ns) // 2] / 1e3, "p99_us": times_ns[len(times_ns) * 99 // 100] / 1e3}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)  # all threads
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _emit(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
