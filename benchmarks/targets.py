"""`benchmarks targets`: what rdsx over TCP must reach, and whether it does. Owns the list of targets, as figures of one result file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

import click
from rich.table import Table

from benchmarks.results import Figure, Measurement, Results, Spread, ratio
from benchmarks.tables import console

__all__ = ["TARGETS", "Target", "command"]

RATE: Figure = attrgetter("messages_per_s")
CPU: Figure = attrgetter("cpu_s_per_million")
CALLS: Figure = attrgetter("calls_per_message")
SMALL, LARGE, LARGEST = 64, 65536, 1048576
SOME_SOCKETS, MANY_SOCKETS, MANY_PEERS = 100, 10_000, 1_000
POLLING = "rdsx-tcp-poll"
BUFFERED = "rdsx-tcp-4M"


@dataclass(frozen=True)
class Target:
    """One figure, and on which side of `limit` it must be."""

    figure: str
    relation: Literal["≥", "≤", "<"]
    limit: float
    measure: Callable[[Results], Spread | None]
    """None if the result file lacks what it is made of."""
    unit: str = ""

    def is_met(self, value: float) -> bool:
        if self.relation == "≥":
            return value >= self.limit
        return value <= self.limit if self.relation == "≤" else value < self.limit


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(path: Path) -> None:
    """Check the targets against a result file of `benchmarks run --json`. Exit status 1 if one is not met."""
    results = Results.load(path)
    table = Table(title="rdsx over TCP", title_justify="left")
    table.add_column("figure")
    for name in ("target", "measured", "min .. max"):
        table.add_column(name, justify="right")
    table.add_column("")
    missed = 0
    for target in TARGETS:
        spread = target.measure(results)
        wanted = f"{target.relation} {target.limit:g}{target.unit}"
        if spread is None:
            table.add_row(target.figure, wanted, "–", "", "[yellow]not measured[/]")
            continue
        met = target.is_met(spread.median)
        missed += not met
        around = f"{spread.low:.3g} .. {spread.high:.3g}"
        table.add_row(target.figure, wanted, f"{spread.median:.3g}{target.unit}", around, "[green]met[/]" if met else "[red]not met[/]")
    console().print(table)
    if missed:
        click.get_current_context().exit(1)


def against(
    scenario: str, backend: str, size: int = SMALL, *, figure: Figure = RATE, ours: str = "rdsx-tcp"
) -> Callable[[Results], Spread | None]:
    """rdsx / another backend, in the same scenario."""
    return lambda results: ratio(results.rounds(scenario, ours, size), results.rounds(scenario, backend, size), figure)


def latency(backend: str, percentile: str, ours: str = "rdsx-tcp") -> Callable[[Results], Spread | None]:
    """Of a round trip, rdsx / another backend."""
    return against("ping-pong", backend, figure=attrgetter(percentile), ours=ours)


def against_stream(scenario: str) -> Callable[[Results], Spread | None]:
    """rdsx in this scenario / rdsx in the stream of one sender."""
    return lambda results: ratio(results.rounds(scenario, "rdsx-tcp", SMALL), results.rounds("stream", "rdsx-tcp", SMALL), RATE)


def alone(scenario: str, figure: Figure) -> Callable[[Results], Spread | None]:
    return lambda results: Spread.of(map(figure, results.rounds(scenario, "rdsx-tcp", SMALL)))


def growth(scenario: str, few: int, many: int) -> Callable[[Results], Spread | None]:
    """CPU time for each message with many of them / with few."""
    return lambda results: ratio(results.rounds(scenario, "rdsx-tcp", SMALL, many), results.rounds(scenario, "rdsx-tcp", SMALL, few), CPU)


def idle_memory(scenario: str, many: int) -> Callable[[Results], Spread | None]:
    """Resident KiB for each of them, before any traffic."""

    def measure(results: Results) -> Spread | None:
        without = {each.round: each.idle_resident_bytes for each in results.rounds(scenario, "rdsx-tcp", SMALL, 0)}
        full = results.rounds(scenario, "rdsx-tcp", SMALL, many)
        return Spread.of((each.idle_resident_bytes - without[each.round]) / many / 1024 for each in full if each.round in without)

    return measure


TARGETS = (
    Target("stream 64 B, batched / pyzmq", "≥", 10, against("stream", "pyzmq")),
    Target("stream 64 B, batched / C yardstick", "≥", 0.5, against("stream", "yardstick")),
    Target("stream 64 B, batched / C yardstick, a vector for each", "≥", 0.5, against("stream", "yardstick-writev")),
    Target("stream 64 B, one call each / pyzmq", "≥", 3, against("stream-single", "pyzmq")),
    Target("stream 64 B, one call each / trio streams", "≥", 10, against("stream-single", "trio-streams")),
    Target("ping-pong 64 B p50 / uvloop", "≤", 1.15, latency("uvloop", "p50_us")),
    Target("ping-pong 64 B p50, polling / uvloop", "≤", 1.15, latency("uvloop", "p50_us", POLLING)),
    Target("ping-pong 64 B p99, polling / uvloop", "≤", 1.15, latency("uvloop", "p99_us", POLLING)),
    Target("ping-pong 64 B p50 / pyzmq", "<", 1, latency("pyzmq", "p50_us")),
    Target("ping-pong 64 B p50, polling / pyzmq", "<", 1, latency("pyzmq", "p50_us", POLLING)),
    Target("ping-pong 64 B p99, polling / pyzmq", "<", 1, latency("pyzmq", "p99_us", POLLING)),
    Target("stream 64 KiB / C yardstick", "≥", 0.85, against("stream", "yardstick", LARGE)),
    Target("stream 64 KiB, buffers of 4 MiB / C yardstick", "≥", 0.85, against("stream", "yardstick", LARGE, ours=BUFFERED)),
    Target("stream 1 MiB / C yardstick", "≥", 0.85, against("stream", "yardstick", LARGEST)),
    Target("stream 1 MiB, buffers of 4 MiB / C yardstick", "≥", 0.85, against("stream", "yardstick", LARGEST, ours=BUFFERED)),
    Target("fan-in 16→1, 64 B / stream", "≥", 0.7, against_stream("fan-in")),
    Target("all-to-all, 64 B / stream", "≥", 0.7, against_stream("all-to-all")),
    Target("CPU for a million 64 B messages, batched", "≤", 0.5, alone("stream", CPU), " s"),
    Target("CPU for a million 64 B messages, one call each", "≤", 1.2, alone("stream-single", CPU), " s"),
    Target("memory of an idle socket", "≤", 1, idle_memory("idle-sockets", MANY_SOCKETS), " KiB"),
    Target("memory of an idle peer", "≤", 24, idle_memory("idle-peers", MANY_PEERS), " KiB"),
    Target("CPU for each message, 10,000 idle sockets / none", "≤", 1.2, growth("idle-sockets", 0, MANY_SOCKETS)),
    Target("CPU for each message, 10,000 sockets in turn / 1", "≤", 1.2, growth("sockets", 1, MANY_SOCKETS)),
    Target("CPU for each message, 10,000 sockets in turn / 100", "≤", 1.2, growth("sockets", SOME_SOCKETS, MANY_SOCKETS)),
    Target("CPU for each message, 1,000 idle peers / none", "≤", 1.2, growth("idle-peers", 0, MANY_PEERS)),
    Target("stream 64 B: reads and writes for 64 messages, both sides", "≤", 1, alone("stream", lambda each: calls_for(each, 64))),
)


def calls_for(measurement: Measurement, messages: int) -> float | None:
    calls = CALLS(measurement)
    return None if calls is None else calls * messages
