"""One measurement by the programs of perftest: `ib_send_bw`, `ib_write_bw` one way, `ib_send_lat` there and back. Owns their processes and
reads what they print; Debian has them in the package perftest.

They move buffers, not messages: nobody looks at what arrives, and nothing is copied.
"""

from __future__ import annotations

import contextlib
import math
import re
import resource
import subprocess
from collections.abc import AsyncIterator

import trio

from benchmarks.backends import Backend
from benchmarks.pair import GUEST_HOSTS, BenchmarkError, Plan, free_port
from benchmarks.results import Measurement
from benchmarks.scenarios import Case

__all__ = ["measure", "parse_bandwidth", "parse_latency"]

PROGRAMS = {"ping-pong": "ib_send_lat", "writes": "ib_write_bw"}
HEADER_BYTES, FRAGMENT_BYTES = 48, 4096  # of a frame of RDS
FEWEST = 5  # messages that these programs agree to send
FIRST_MESSAGES, FIRST_BYTES = 256, 4 << 20  # of the first run, at most
GROWTH = 8  # from one run to the next, at most
MOST_RUNS = 20
SHORTEST_S = 1e-6
LIMIT_S = 90.0
LISTEN_POLL_S = 0.02
LISTENING = "0A"  # in /proc/net/tcp
MIB = 1 << 20
RATE_DIGITS_BELOW = 1024  # bytes: smaller messages are counted more exactly than their bytes

# A row of figures below "#bytes #iterations ...".
ROW = re.compile(r"^ (\d+) +(\d+) +(.+)$", re.MULTILINE)


async def measure(backend: Backend, case: Case, plan: Plan) -> Measurement:
    """One round of one cell. Raises BenchmarkError."""
    is_latency = case.scenario.pattern == "ping-pong"
    program = PROGRAMS.get(case.scenario.pattern, "ib_send_bw")
    size, per_message = frames_of(case.size) if backend.tool == "frames" else (case.size, 1)
    arguments = [program, "-F", "-s", str(size), *(["-e"] if backend.tool == "events" else [])]
    count = max(FEWEST, plan.messages * per_message or min(FIRST_MESSAGES, FIRST_BYTES // size))
    for _ in range(MOST_RUNS):
        cpu_s, text = await run_both(arguments, count)
        if is_latency:
            p50_us, p99_us, mean_us = parse_latency(text)
            seconds, latencies = mean_us * count / 1e6, {"p50_us": p50_us, "p99_us": p99_us}
        else:
            rate = parse_bandwidth(text)  # 0: too few to tell
            seconds, latencies = count / rate if rate else 0.0, {}
        if math.isinf(seconds):
            continue  # it has not found out how fast its clock runs
        if seconds and (plan.messages or seconds >= plan.seconds / 2):
            break
        count = min(GROWTH * count, 1 + round(count * plan.seconds / max(seconds, SHORTEST_S)))
    else:
        raise BenchmarkError(f"{arguments[0]} gave no figure for {count} messages in {MOST_RUNS} runs")
    return Measurement(
        scenario=case.scenario.name,
        backend=backend.name,
        size=case.size,
        population=case.population,
        messages=count // per_message,
        seconds=seconds * (count // per_message * per_message) / count,
        cpu_s=cpu_s,
        left_resident_bytes=0,
        right_resident_bytes=0,
        idle_resident_bytes=0,
        **latencies,
    )


def frames_of(size: int) -> tuple[int, int]:
    """Bytes of the frames that RDS makes of a message, and how many."""
    return HEADER_BYTES + min(size, FRAGMENT_BYTES), -(-size // FRAGMENT_BYTES)


def parse_bandwidth(text: str) -> float:
    """Messages in a second, from what ib_send_bw prints."""
    size, _, (_, mib_per_s, million_per_s) = figures(text, 3)
    return million_per_s * 1e6 if size < RATE_DIGITS_BELOW else mib_per_s * MIB / size


def parse_latency(text: str) -> tuple[float, float, float]:
    """Median, 99th percentile and mean of a round trip in µs, from what ib_send_lat prints: half of each."""
    _, _, (_, _, median, mean, _, p99, _) = figures(text, 7)
    return 2 * median, 2 * p99, 2 * mean


def figures(text: str, count: int) -> tuple[int, int, list[float]]:
    """Size, number of messages, and the other figures of the one row. BenchmarkError if it is not there."""
    match = ROW.search(text)
    if match is None or len(match[3].split()) != count:
        raise BenchmarkError(f"perftest printed no row of {2 + count} figures: {text.strip().splitlines()[-1:]}")
    return int(match[1]), int(match[2]), [float(figure) for figure in match[3].split()]


async def run_both(arguments: list[str], count: int) -> tuple[float, str]:
    """CPU seconds of both sides, and what the left one prints."""
    right = GUEST_HOSTS[1]
    port = free_port()
    command = [*arguments, "-n", str(count), "-p", str(port)]
    before_s = children_s()
    with trio.move_on_after(LIMIT_S):
        async with started(command) as server:
            await listening(server, port)
            client = await trio.run_process([*command, right], capture_stdout=True, capture_stderr=True, check=False)
            text = (client.stdout + client.stderr).decode(errors="replace")
            if client.returncode or await server.wait():
                raise BenchmarkError(f"{arguments[0]} ended with status {client.returncode}: {text.strip().splitlines()[-1:]}")
        return children_s() - before_s, text
    raise BenchmarkError(f"{arguments[0]} took longer than {LIMIT_S:.0f} s")


@contextlib.asynccontextmanager
async def started(command: list[str]) -> AsyncIterator[trio.Process]:
    """A process while in the block, then killed if it has not ended."""
    process = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def listening(server: trio.Process, port: int) -> None:
    """Until it takes connections, or has ended."""
    while server.returncode is None and not is_listening(port):  # noqa: ASYNC110  nothing tells
        await trio.sleep(LISTEN_POLL_S)


def is_listening(port: int) -> bool:
    """Whether somebody takes TCP connections there. Not by a connection: these programs take one, and it is not ours."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in open(f"/proc/net/{table}").readlines()[1:]]  # noqa: SIM115  of procfs
    return any(row[1].endswith(f":{port:04X}") and row[3] == LISTENING for row in rows)


def children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
