"""`benchmarks compare`: two result files, cell by cell. Owns the question whether a difference is more than noise.

Rounds of different files did not meet the same machine, so medians are compared. A difference counts if the ranges of the rounds do not
overlap.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import click
from rich.table import Table

from benchmarks.results import Results, Spread
from benchmarks.tables import console, metric_of, number_text, population_text, size_text

__all__ = ["command", "comparison_table"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
def command(old: Path, new: Path) -> None:
    """Show what changed from the result file OLD to NEW."""
    former, latter = Results.load(old), Results.load(new)
    out = console()
    for name in sorted({*former.machine, *latter.machine} - {"date", "load_average"}):
        if former.machine.get(name) != latter.machine.get(name):
            out.print(f"[yellow]not the same {name}:[/] {former.machine.get(name)}; {latter.machine.get(name)}", highlight=False)
    tables = [comparison_table(former, latter, scenario) for scenario in latter.scenarios() if scenario in former.scenarios()]
    if not tables:
        raise click.ClickException("the files have no scenario in common")
    for table in tables:
        out.print(table)


def comparison_table(former: Results, latter: Results, scenario: str) -> Table:
    """The cells that both have."""
    heading, figure, more_is_better = metric_of(scenario)
    table = Table(title=scenario, title_justify="left")
    for name in ("", "backend"):
        table.add_column(name)
    for name in (f"old {heading}", f"new {heading}", "new / old", "CPU new / old"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for size, population, backend in latter.cells(scenario):
        cell = (scenario, backend, size, population)
        before, after = Spread.of(map(figure, former.rounds(*cell))), Spread.of(map(figure, latter.rounds(*cell)))
        if before is None or after is None:
            continue
        cpu = [Spread.of(map(attrgetter("cpu_s_per_million"), results.rounds(*cell))) for results in (former, latter)]
        assert cpu[0] is not None
        assert cpu[1] is not None
        table.add_row(
            size_text(size) + population_text(scenario, population),
            backend,
            number_text(before.median),
            number_text(after.median),
            number_text(after.median / before.median),
            number_text(cpu[1].median / cpu[0].median) if cpu[0].median else "–",
            verdict(before, after, more_is_better),
        )
    return table


def verdict(before: Spread, after: Spread, more_is_better: bool) -> str:
    if after.low > before.high:
        return "[green]better[/]" if more_is_better else "[red]worse[/]"
    if after.high < before.low:
        return "[red]worse[/]" if more_is_better else "[green]better[/]"
    return "same"
