"""`benchmarks plot`: one SVG for each scenario of a result file. Owns what a plot shows: bars of medians, with lines from min to max."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.results import Results, Spread
from benchmarks.tables import metric_of, population_text, size_text

__all__ = ["command", "plot_scenario"]


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def command(path: Path, folder: Path) -> None:
    """Plot a result file: DIR/<scenario>.svg for each scenario."""
    results = Results.load(path)
    try:
        import matplotlib as mpl
    except ImportError:
        raise click.ClickException("plots need matplotlib: pip install matplotlib") from None
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same results give the same file
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in results.scenarios():
        target = folder / f"{scenario}.svg"
        plot_scenario(results, scenario, target)
        click.echo(target)


def plot_scenario(results: Results, scenario: str, target: Path) -> None:
    from matplotlib import pyplot

    heading, figure, _ = metric_of(scenario)
    cells = results.cells(scenario)
    groups = list(dict.fromkeys((size, population) for size, population, _ in cells))
    backends = list(dict.fromkeys(backend for _, _, backend in cells))
    fig, axes = pyplot.subplots(figsize=(9, 1.2 + 0.28 * (len(cells) + len(groups))), layout="constrained")
    row, rows, names = 0.0, [], []
    for size, population in groups:
        for backend in backends:
            spread = Spread.of(map(figure, results.rounds(scenario, backend, size, population)))
            if spread is None:
                continue
            around = [[spread.median - spread.low], [spread.high - spread.median]]
            axes.barh(row, spread.median, xerr=around, color=f"C{backends.index(backend)}", ecolor="0.3", capsize=2)
            rows.append(row)
            names.append(f"{size_text(size)}{population_text(scenario, population)}  {backend}")
            row += 1
        row += 0.6
    axes.set_yticks(rows, names)
    axes.set_ylim(row - 0.6, -1.0)  # first on top
    axes.set_xscale("log")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(heading)
    axes.set_title(scenario, loc="left")
    fig.savefig(target, metadata={"Date": None})
    pyplot.close(fig)
