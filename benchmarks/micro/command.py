"""`python -m benchmarks.micro`: run, count, check. Owns options, tables and exit statuses; measures nothing itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.micro import baseline, population  # noqa: F401  the latter adds all cases
from benchmarks.micro.baseline import Baseline, BaselineError, Verdict
from benchmarks.micro.case import CASES, Case
from benchmarks.micro.counting import Count, CountingError
from benchmarks.micro.counting import count as count_cases
from benchmarks.micro.environment import Environment, current_environment
from benchmarks.micro.timing import time_case

__all__ = ["main"]

STATUS_REGRESSION = 1
STATUS_FAILED = 2
TABLE_COLUMNS = 110  # where the output is no terminal


def select(ctx: click.Context, parameter: click.Parameter, wanted: tuple[str, ...]) -> list[Case]:
    """The cases that bear one of these names or are in a section of that name; all if none is given."""
    for name in wanted:
        if not any(name in (case.name, case.section) for case in CASES.values()):
            sections = sorted({case.section for case in CASES.values()})
            raise click.BadParameter(f"{name!r} is no case and no section; sections: {', '.join(sections)}", ctx, parameter)
    return [case for case in CASES.values() if not wanted or case.name in wanted or case.section in wanted]


only = click.option("--only", "cases", metavar="CASE", multiple=True, callback=select, help="A case, or a section. Can be repeated.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")


@click.group()
def main() -> None:
    """Measure the sections of the hot path, one operation at a time."""


@main.command()
@only
@as_json
def run(cases: list[Case], as_json: bool) -> None:
    """Nanoseconds per operation."""
    timings = {case.name: time_case(case) for case in cases}
    if as_json:
        click.echo(json.dumps({name: asdict(timing) for name, timing in timings.items()}, indent=2))
        return
    table = make_table("nanoseconds per operation", "best", "median")
    for name, timing in timings.items():
        table.add_row(name, f"{timing.best_ns:,.1f}", f"{timing.median_ns:,.1f}")
    show(table)


@main.command()
@only
@as_json
@click.option("--top", type=click.IntRange(0), default=0, show_default=True, help="List so many functions of each case.")
def count(cases: list[Case], as_json: bool, top: int) -> None:
    """Instructions per operation, counted by callgrind."""
    counts = counted(cases)
    if as_json:
        click.echo(json.dumps({"environment": asdict(current_environment()), "cases": as_figures(counts, top)}, indent=2))
        return
    table = make_table("instructions per operation", "total", "own")
    for name, one in counts.items():
        table.add_row(name, f"{one.total:,.1f}", f"{one.own:,.1f}")
        for function, instructions in list(one.functions.items())[:top]:
            table.add_row(f"    {function.name}", f"{instructions:,.1f}", "own" if function.is_own else "", style="dim")
    show(table)


@main.command()
@click.option("--baseline", "path", type=click.Path(dir_okay=False, path_type=Path), default=baseline.PATH, help="Another baseline file.")
@click.option("--update", is_flag=True, help="Write the baseline instead of comparing with it.")
@click.pass_context
def check(ctx: click.Context, path: Path, update: bool) -> None:
    """Count all cases and compare with the baseline. Exit status 1 if a case needs too many more instructions."""
    try:
        known = None if update else Baseline.load(path)
        here = current_environment()
    except (BaselineError, CountingError) as error:
        click.echo(str(error), err=True)
        ctx.exit(STATUS_FAILED)
    counts = counted(list(CASES.values()))
    if known is None:
        Baseline.of(here, counts).save(path)
        click.echo(f"{len(counts)} cases written to {path}")
        return
    verdicts = known.judge(here, counts)
    show_verdicts(known, counts, verdicts)
    warn_of_differences(known, here)
    complaints = [f"{verdict.name}: {verdict.complaint}" for verdict in verdicts if verdict.complaint]
    if complaints:
        click.echo("\n".join([*complaints, "Mend it; or, if it must be so, run `check --update` and say why in the commit."]), err=True)
        ctx.exit(STATUS_REGRESSION)
    click.echo(f"{len(verdicts)} cases are within their limits.")
    better = [verdict.name for verdict in verdicts if verdict.is_better]
    if better:
        click.echo(f"Some need much less: run `check --update`, or they may lose it again unseen. {', '.join(better)}")


def counted(cases: list[Case]) -> dict[str, Count]:
    try:
        return count_cases(case.name for case in cases)
    except CountingError as error:
        click.echo(str(error), err=True)
        click.get_current_context().exit(STATUS_FAILED)


def as_figures(counts: dict[str, Count], top: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, one in counts.items():
        figures[name] = {"total": one.total, "own": one.own}
        if top:
            figures[name]["functions"] = [
                {"name": function.name, "library": function.library, "instructions": round(instructions, 1)}
                for function, instructions in list(one.functions.items())[:top]
            ]
    return figures


def show_verdicts(known: Baseline, counts: dict[str, Count], verdicts: list[Verdict]) -> None:
    table = make_table("instructions per operation", "total", "baseline", "change", "own", "baseline", "change")
    for verdict in verdicts:
        one, expected = counts.get(verdict.name), known.cases.get(verdict.name)
        table.add_row(
            verdict.name,
            *(f"{one.total:,.1f}" if one else "", f"{expected.total:,.1f}" if expected else "", change(verdict.total)),
            *(f"{one.own:,.1f}" if one else "", f"{expected.own:,.1f}" if expected else "", change(verdict.own)),
            style="bold red" if verdict.complaint else None,
        )
    show(table)


def change(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio - 1:+.1%}"


def warn_of_differences(known: Baseline, here: Environment) -> None:
    """Say which limits hold, if they are not those of the baseline's own environment."""
    if here == known.environment:
        return
    _, own_limit = known.limits(here)
    ours = asdict(here)
    differences = [f"  {name}: {theirs}; here {ours[name]}" for name, theirs in asdict(known.environment).items() if theirs != ours[name]]
    lines = [
        "WARNING: the baseline was made in another environment:",
        *differences,
        f"So totals are not judged, and own instructions by a limit of {own_limit - 1:.0%}. For a sharp answer make a baseline of the",
        "code before the change here, with `check --update --baseline FILE`, and then `check --baseline FILE` the changed code.",
    ]
    click.echo("\n".join(lines), err=True)


def make_table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column("case")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_COLUMNS)
    console.print(table)
