"""`benchmarks run`: scenarios over backends, in rounds. Owns the order of measurements and the progress line.

Invariant: all backends, and all populations of one scenario and size, are measured one after the other, round by round (A, B, C, A, B, C,
...), so that a change of the machine's speed meets all of them. Only different scenarios and sizes are apart.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import click
import trio
from rich.console import Console

from benchmarks import perftest
from benchmarks.backends import BACKENDS, Backend, Guest
from benchmarks.pair import BenchmarkError, Plan, measure
from benchmarks.results import Results, machine_facts
from benchmarks.scenarios import SCENARIOS, SIZES, Case, Scenario
from benchmarks.tables import label, print_results

__all__ = ["command", "run_all"]

BASELINE = "yardstick"
GUEST_COMMANDS: dict[Guest, str] = {"tcp": "guest", "rdma": "verbs"}  # the guest of a backend -> the command that boots it
LARGEST_BYTES = 1 << 20


@click.command()
@click.option("--scenario", "scenarios", multiple=True, type=click.Choice(list(SCENARIOS)), help="Run only this one; may be repeated.")
@click.option("--backend", "backends", multiple=True, type=click.Choice(list(BACKENDS)), help="Run only this one; may be repeated.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=click.IntRange(1, LARGEST_BYTES),
    help="Payload bytes, instead of each scenario's own; may be repeated.",
)
@click.option("--all-sizes", is_flag=True, help=f"As --size for each of {', '.join(map(str, SIZES))}.")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1), help="Measurements of each cell, in fresh processes.")
@click.option("--seconds", default=0.25, show_default=True, type=click.FloatRange(0.01, 60), help="Wanted length of a measured section.")
@click.option("--messages", default=0, type=click.IntRange(0), help="Measure exactly so many messages, instead of --seconds.")
@click.option("--baseline", default=BASELINE, show_default=True, type=click.Choice(list(BACKENDS)), help="What ratios are to.")
@click.option("--guest", default="", type=click.Choice(["", *GUEST_COMMANDS]), hidden=True, help="What guest this runs in; see `Plan`.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write a result file.")
def command(
    scenarios: Sequence[str],
    backends: Sequence[str],
    sizes: Sequence[int],
    all_sizes: bool,
    rounds: int,
    seconds: float,
    messages: int,
    baseline: str,
    guest: Guest,
    path: Path | None,
) -> None:
    """Run scenarios over backends and print one table for each scenario.

    Every measurement has processes of its own on the loopback interface, a warm-up, and a measured section from the first message sent to
    the last received. Tables show medians and the smallest and largest of all rounds. CPU seconds are those of both sides, user and system.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path.parent} is not a directory", param_hint="--json")
    chosen = [SCENARIOS[name] for name in scenarios or SCENARIOS]
    with Console(stderr=True).status("starting") as status:
        results = trio.run(
            run_all,
            chosen,
            [BACKENDS[name] for name in dict.fromkeys(backends or BACKENDS)],
            SIZES if all_sizes else tuple(sizes),
            rounds,
            Plan(seconds, messages, guest=guest),
            status.update,
        )
    results.settings["baseline"] = baseline
    if path is not None:
        results.save(path)
    print_results(results, baseline)
    if not results.measurements:
        raise click.ClickException("nothing was measured")


async def run_all(
    scenarios: Iterable[Scenario],
    backends: Iterable[Backend],
    sizes: tuple[int, ...],
    rounds: int,
    plan: Plan,
    show_progress: Callable[[str], None],
) -> Results:
    """Every case with every backend that can do it. A measurement that fails is noted in the results, and its cell is given up."""
    results = Results(machine=machine_facts(), settings={"rounds": rounds, "seconds": plan.seconds, "messages": plan.messages})
    present: list[Backend] = []
    for backend in backends:
        if missing := backend.missing():
            results.skipped[backend.name] = missing
        elif backend.guest and backend.guest != plan.guest:
            results.skipped[backend.name] = f"runs in a guest: python -m benchmarks {GUEST_COMMANDS[backend.guest]}"
        else:
            present.append(backend)
    groups = [
        [(case, backend) for case in cases for backend in present if scenario.name in backend.scenarios]
        for scenario in scenarios
        for _, cases in groupby(scenario.cases(sizes or (scenario.rdma_sizes if plan.guest == "rdma" else ())), attrgetter("size"))
    ]
    total, done = rounds * sum(map(len, groups)), 0
    for group in groups:
        failed: set[tuple[Case, str]] = set()
        for number in range(rounds):
            for case, backend in group:
                done += 1
                if (case, backend.name) in failed:
                    continue
                show_progress(f"{done} of {total}: {label(case)}, {backend.name}, round {number + 1}")
                try:
                    with kernel_module(backend.kernel_module):
                        measured = await (perftest.measure if backend.tool else measure)(backend, case, plan)
                    results.measurements.append(replace(measured, round=number))
                except BenchmarkError as error:
                    failed.add((case, backend.name))
                    results.failures.append(f"{label(case)}, {backend.name}: {error}")
    return results


@contextlib.contextmanager
def kernel_module(name: str) -> Iterator[None]:
    """A module of the kernel while in the block; no name, no module."""
    if name:
        subprocess.run(["modprobe", name], check=True)
    try:
        yield
    finally:
        if name:
            subprocess.run(["modprobe", "--remove", name], check=True)
