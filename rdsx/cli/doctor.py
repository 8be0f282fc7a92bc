"""`rdsx doctor`: what this machine has for each transport, and what to do about the rest. Owns the layout, looks at nothing itself."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from rdsx.diagnosis import TRANSPORTS, Diagnosis, Meaning, diagnose

__all__ = ["command"]

DEFAULT_PORT = 16385
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "obstacle": "[red]no[/]"}
INDENT = 4


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="TCP port of the nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(port: int, as_json: bool) -> None:
    """Show what this machine has for each transport: software, RDMA devices, addresses, limits, kernel modules, who listens.

    Needs no privilege, and changes nothing; as root it also names other users' programs. Exit status 0, whatever it finds.
    """
    diagnosis = diagnose(port=port)
    if as_json:
        click.echo(json.dumps(diagnosis.as_json(), indent=1))
    else:
        show(diagnosis, Console(highlight=False))


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Each finding with what it means, then what it comes to for each transport."""
    for finding in diagnosis.findings:
        console.print(f"[bold]{escape(finding.subject)}[/]: {escape(finding.found)}")
        for meaning in finding.meanings:
            console.print(Padding(describe(meaning), (0, 0, 0, INDENT)))
    console.print()
    for transport in TRANSPORTS:
        obstacles = diagnosis.obstacles(transport)
        console.print(f"[bold]{transport}[/]: {'[red]does not work here[/]' if obstacles else '[green]works here[/]'}")
        for obstacle in obstacles:
            console.print(Padding(escape(f"{obstacle.text}: {obstacle.remedy}"), (0, 0, 0, INDENT)))


def describe(meaning: Meaning) -> str:
    remedy = f" ({meaning.remedy})" if meaning.remedy else ""
    return f"{MARKS[meaning.level]} {meaning.transport}: {escape(meaning.text + remedy)}"
