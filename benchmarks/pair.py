"""The processes of one measurement. Owns them: starts, commands, and ends them; says how many messages make a measured section.

Invariant: when `measure` returns or raises, for whatever reason, its processes have ended and been waited for.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from benchmarks.backends import BACKENDS, Backend, Guest
from benchmarks.results import Measurement
from benchmarks.scenarios import Case, Job, Role

__all__ = ["BenchmarkError", "Plan", "measure"]

# As multiprocessing's spawn: the same import path as here, and never the current directory in front of it.
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from benchmarks.worker import main; main()"
YARDSTICK = Path(__file__).with_name("yardstick.c")
YARDSTICK_PATTERNS = {"one-way": "single", "ping-pong": "echo"}  # not batched
CC = ("cc", "-O3", "-march=native", "-std=gnu11")
OPEN_S = 90.0  # a thousand peers take their time
PHASE_S = 60.0
WARM_UP_BYTES = 2 << 20  # of the first phase, at most
WARM_UP_SHARE = 0.3  # of the wanted time: how long the phase takes that tells how many messages fill it
SHORTEST_SHARE = 0.5  # of the wanted time: what a measured section has at least
GROWTH = 8  # from one phase to the next, at most
GUEST_HOSTS = ("10.78.0.1", "10.78.0.2")  # in a guest
PORTS = range(20_000, 32_000)  # below the range of ephemeral ports
ports = itertools.cycle(PORTS[os.getpid() * 16 % len(PORTS) :])


class BenchmarkError(Exception):
    """A measurement that failed; the text says why."""


class Plan:
    """How long to measure: `seconds`, or exactly so many `messages`, for tests.

    `guest`: which guest this runs in. "tcp": each side in a network namespace of its own. "rdma": both on one device of soft-RoCE.
    """

    def __init__(self, seconds: float, messages: int = 0, *, guest: Guest = "") -> None:
        self.seconds = seconds
        self.messages = messages
        self.guest = guest


class Worker:
    """One process; see benchmarks/worker.py for what is said."""

    def __init__(self, role: Role, process: trio.Process) -> None:
        self.role = role
        self.process = process
        self._pending = b""
        self._events: deque[dict[str, Any]] = deque()

    async def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(trio.BrokenResourceError):  # `hear` says why it has ended
            await self.process.stdin.send_all(command.encode() + b"\n")

    async def hear(self, event: str, patience_s: float) -> dict[str, Any]:
        """The next event, which must be this one. BenchmarkError if the process ends or takes too long."""
        assert self.process.stdout is not None
        with trio.move_on_after(patience_s):
            while not self._events:
                chunk = await self.process.stdout.receive_some()
                if not chunk:
                    raise BenchmarkError(f"the {self.role} process ended: {await self._last_words()}")
                *lines, self._pending = (self._pending + chunk).split(b"\n")
                self._events.extend(json.loads(line) for line in lines)
            heard = self._events.popleft()
            assert heard["event"] == event, f"expected {event!r} from the {self.role} process, not {heard}"
            return heard
        raise BenchmarkError(f"the {self.role} process did not say {event!r} within {patience_s:.0f} s")

    async def _last_words(self) -> str:
        assert self.process.stderr is not None
        said = b"".join([chunk async for chunk in self.process.stderr]).decode(errors="replace").strip()
        return said.splitlines()[-1] if said else f"status {await self.process.wait()}"


async def measure(backend: Backend, case: Case, plan: Plan) -> Measurement:
    """One round of one cell, in fresh processes. Raises BenchmarkError."""
    async with open_workers(backend, case, plan) as workers:
        right, left = workers[0], workers[-1]
        for worker in workers:
            await worker.hear("booted", OPEN_S)
        for worker in workers:  # the right one listens before the left one connects
            await worker.tell("open")
            await worker.hear("ready", OPEN_S)
        count, dones = await measured_phase(workers, case, plan)
        reports = []
        for worker in workers:
            await worker.tell("report")
            reports.append(await worker.hear("report", PHASE_S))
        for worker in workers:
            await worker.tell("stop")
        seconds = elapsed_s(dones)
        counters = [report["counters"] for report in reports]
        return Measurement(
            scenario=case.scenario.name,
            backend=backend.name,
            size=case.size,
            population=case.population,
            messages=count,
            seconds=seconds,
            cpu_s=sum(report["cpu_s"] for report in reports),
            left_resident_bytes=reports[workers.index(left)]["resident_bytes"],
            right_resident_bytes=reports[workers.index(right)]["resident_bytes"],
            idle_resident_bytes=reports[workers.index(right)]["idle_resident_bytes"],
            p50_us=dones[-1].get("p50_us"),
            p99_us=dones[-1].get("p99_us"),
            stream_reads=sum(each["stream_reads"] for each in counters) if all(counters) else None,
            stream_writes=sum(each["stream_writes"] for each in counters) if all(counters) else None,
        )


async def measured_phase(workers: list[Worker], case: Case, plan: Plan) -> tuple[int, list[dict[str, Any]]]:
    """How many messages the measured section had, and what the workers said of it.

    Phases before it grow until one tells how many messages fill the wanted time: they are the warm-up. A phase that then turns out to
    be much too short (the machine was busy with something else before) becomes one more of them.
    """
    count = max(8, min(256, WARM_UP_BYTES // case.size))
    if plan.messages:
        await run_phase(workers, case, min(count, plan.messages))
        return plan.messages, await run_phase(workers, case, plan.messages)
    await run_phase(workers, case, count)  # too cold to tell anything
    wanted_s = WARM_UP_SHARE * plan.seconds
    while True:
        count = max(count, case.turn_messages)
        dones = await run_phase(workers, case, count)
        seconds = max(elapsed_s(dones), 1e-6)
        if wanted_s == plan.seconds and seconds >= SHORTEST_SHARE * plan.seconds:
            return count, dones
        if seconds >= wanted_s:
            wanted_s = plan.seconds
        count = max(count, min(GROWTH * count, round(count * wanted_s / seconds)))


async def run_phase(workers: list[Worker], case: Case, count: int) -> list[dict[str, Any]]:
    """Move so many messages; what the workers said of it, right one first. BenchmarkError if not all arrived."""
    for worker in workers:
        await worker.tell("prepare")
    for worker in workers:
        await worker.hear("prepared", PHASE_S)
    for worker in workers:
        await worker.tell(f"go {count}")
    dones = [await worker.hear("done", PHASE_S) for worker in workers]
    counted = dones[-1:] if case.scenario.pattern == "ping-pong" else dones
    messages, received = (sum(done[field] for done in counted) for field in ("messages", "bytes"))
    if (messages, received) != (count, count * case.size):
        raise BenchmarkError(f"{messages} messages with {received} bytes arrived, not {count} with {count * case.size}")
    return dones


def elapsed_s(dones: list[dict[str, Any]]) -> float:
    """From the start of the first sender to the last message of the last receiver. The right side is told first, and waits."""
    left = dones[-1]
    senders = dones if left["messages"] else [left]
    elapsed_ns: int = max(done["ended_ns"] for done in dones) - min(sender["started_ns"] for sender in senders)
    return elapsed_ns / 1e9


@contextlib.asynccontextmanager
async def open_workers(backend: Backend, case: Case, plan: Plan) -> AsyncIterator[list[Worker]]:
    """The worker processes, the right one first."""
    port = free_port()
    roles: tuple[Role, ...] = ("both",) if backend.one_process else ("right", "left")
    workers: list[Worker] = []
    pipe = subprocess.PIPE
    try:
        for role in roles:
            job = Job(backend=backend.name, role=role, port=port, case=case)
            if plan.guest:
                job = replace(job, hosts=GUEST_HOSTS)
            command = worker_command(job)
            if plan.guest == "tcp":
                command = ["ip", "netns", "exec", role, *command]
            # A session of its own: Ctrl-C in the terminal reaches the parent only, which then ends both.
            process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
            workers.append(Worker(role, process))
        yield workers
        with trio.move_on_after(2.0):
            for worker in workers:
                await worker.process.wait()
    finally:
        for worker in workers:
            if worker.process.returncode is None:
                worker.process.kill()
            with trio.CancelScope(shield=True):
                await worker.process.wait()
            for stream in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
                assert stream is not None
                with trio.CancelScope(shield=True):
                    await stream.aclose()


def worker_command(job: Job) -> list[str]:
    case = job.case
    if BACKENDS[job.backend].module:
        return [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), json.dumps(job.as_json())]
    pattern = BACKENDS[job.backend].batch if case.scenario.batched else YARDSTICK_PATTERNS[case.scenario.pattern]
    connections = max(case.scenario.left_peers, case.scenario.right_peers)
    return [str(build_yardstick()), job.role, pattern, *map(str, (case.size, connections, case.idle_peers, job.port))]


def build_yardstick() -> Path:
    """The compiled yardstick, in the user's cache folder, under a name that tells its source and how it was compiled."""
    digest = hashlib.sha256(YARDSTICK.read_bytes() + " ".join(CC).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rdsx-benchmarks"
    program = cache / f"yardstick-{digest}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(f".{os.getpid()}")
        built = subprocess.run([*CC, "-o", str(fresh), str(YARDSTICK)], capture_output=True, text=True, check=False)
        if built.returncode:
            raise BenchmarkError(f"{' '.join(CC)} could not compile {YARDSTICK.name}: {built.stderr.strip()}")
        fresh.rename(program)
    return program


def free_port() -> int:
    """A TCP port that nobody listens on at the addresses of a pair."""
    return next(port for port in ports if all(is_free(address, port) for address in ("127.0.0.1", "127.0.0.2")))


def is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
