"""Results as text. Owns the tables of `run` and `compare`, and how figures are spelled."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.results import Figure, Measurement, Results, Spread, ratio
from benchmarks.scenarios import SCENARIOS, Case

__all__ = ["console", "label", "metric_of", "number_text", "population_text", "print_results", "size_text"]

WIDTH = 170  # where standard output is no terminal


def console() -> Console:
    """Standard output; wide enough for the tables where it is a file."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def label(case: Case) -> str:
    return f"{case.scenario.name} {size_text(case.size)}{population_text(case.scenario.name, case.population)}"


def size_text(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def population_text(scenario: str, population: int) -> str:
    of = SCENARIOS[scenario].population_of if scenario in SCENARIOS else ""
    return f", {population:,} {of.replace('_', ' ')}" if of else ""


def metric_of(scenario: str) -> tuple[str, Figure, bool]:
    """What a scenario is about: heading, figure, and whether more of it is better."""
    if scenario in SCENARIOS and SCENARIOS[scenario].pattern == "ping-pong":
        return "p50 µs", attrgetter("p50_us"), False
    return "messages/s", attrgetter("messages_per_s"), True


def print_results(results: Results, baseline: str) -> None:
    """The tables, then what was left out and what failed."""
    out = console()
    for scenario in results.scenarios():
        out.print(scenario_table(results, scenario, baseline))
    for backend, reason in results.skipped.items():
        out.print(f"skipped [bold]{backend}[/]: {escape(reason)}")
    for failure in results.failures:
        out.print(f"[red]failed[/] {escape(failure)}")


def scenario_table(results: Results, scenario: str, baseline: str) -> Table:
    heading, figure, _ = metric_of(scenario)
    latencies = heading.startswith("p50")
    summary = f": {SCENARIOS[scenario].summary}" if scenario in SCENARIOS else ""
    table = Table(title=f"{scenario}{summary}", title_justify="left")
    table.add_column("")
    table.add_column("backend")
    table.add_column(heading, justify="right", style="bold")
    table.add_column("min .. max", justify="right")
    if latencies:
        table.add_column("p99 µs", justify="right")
    else:
        table.add_column("MB/s", justify="right")
    table.add_column(f"× {baseline}", justify="right")
    table.add_column("CPU s / million", justify="right")
    table.add_column("calls / message", justify="right")
    table.add_column("MiB, left + right", justify="right")
    before: tuple[int, int] | None = None
    for size, population, backend in results.cells(scenario):
        if before not in (None, (size, population)):
            table.add_section()
        first = before != (size, population)
        before = (size, population)
        rounds = results.rounds(scenario, backend, size, population)
        against = results.rounds(scenario, baseline, size, population)

        def median(figure: Figure, spell: Callable[[float], str], rounds: list[Measurement] = rounds) -> str:
            spread = Spread.of(map(figure, rounds))
            return spell(spread.median) if spread else "–"

        spread = Spread.of(map(figure, rounds))
        assert spread is not None
        factor = ratio(rounds, against, figure)
        table.add_row(
            size_text(size) + population_text(scenario, population) if first else "",
            backend,
            number_text(spread.median),
            f"{number_text(spread.low)} .. {number_text(spread.high)}",
            median(attrgetter("p99_us"), number_text) if latencies else median(lambda each: each.bytes_per_s / 1e6, number_text),
            number_text(factor.median) if factor else "–",
            median(attrgetter("cpu_s_per_million"), number_text),
            median(attrgetter("calls_per_message"), number_text),
            median(memory_mib, lambda mib: f"{mib:.0f}"),
        )
    return table


def memory_mib(measurement: Measurement) -> float:
    return (measurement.left_resident_bytes + measurement.right_resident_bytes) / (1 << 20)


def number_text(number: float) -> str:
    """Three digits that matter."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"
