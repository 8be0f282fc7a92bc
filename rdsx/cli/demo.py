"""`rdsx demo`: two node processes exchange files while their connection is cut. Owns the options, the plan and the display.

The payload and its deal are in `payload`, a flow's datagrams and their checking in `flow`, the node process in `worker`, its parent in
`supervisor`, the outcome in `report`.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rdsx.cli.payload import Deal, SourceFile, deal_files, find_files
from rdsx.cli.quantities import parse_bytes
from rdsx.cli.report import Outcome, compare
from rdsx.cli.running import Interrupt, explain_bind_error, print_json, run
from rdsx.cli.supervisor import STALL_S, NodeProcess, supervise

__all__ = ["ADDRESSES", "DEFAULT_PORT", "STATUS_FAULTY", "check_port", "command"]

ADDRESSES = ("127.0.0.1", "127.0.0.2")
SOCKETS = 8
DEFAULT_PORT = 16385
DEFAULT_BYTES = "256m"
PROGRESS_INTERVAL_S = 0.1
LAST_CUT = 0.9  # of what is to be sent: after a later one there might be nothing left to resend
STATUS_FAULTY = 1


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--bytes", "total_bytes", metavar="SIZE", type=parse_bytes, default=DEFAULT_BYTES, show_default=True,
              help="About how much to send in all; may end in k, m or g.")  # fmt: skip
@click.option("--cuts", type=click.IntRange(0, 10_000), default=5, show_default=True, help="How often to cut the TCP connection.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides who sends which file and how it is cut into datagrams.")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="TCP port of both nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print progress and the result as JSON lines; the last line is the result.")
@click.pass_context
def command(ctx: click.Context, directory: Path | None, total_bytes: int, cuts: int, seed: int, port: int, as_json: bool) -> None:
    """Prove it: send files between two nodes, cutting the connection, and check every byte.

    Two node processes on 127.0.0.1 and 127.0.0.2, eight sockets each; every socket sends to every socket of the other node. The payload is
    the files of DIR (default: the sources of Python's standard library), in datagrams from 0 bytes to 1 MiB. Exit status 0 only if every
    datagram arrived once and in order and every file with its SHA-256. `rdsx demo calls` does the like for calls.
    """
    check_port(port)
    files = find_files(directory, total_bytes // 2)
    deals = [deal_files(files, SOCKETS, total_bytes // 2, f"{seed}/{address}") for address in ADDRESSES]
    nodes = [NodeProcess(address, _job(index, files, deals, cuts, seed, port)) for index, address in enumerate(ADDRESSES)]
    interrupt = Interrupt()
    complete = run(_run, nodes, deals, as_json, interrupt)
    if interrupt.signal_number:
        click.echo("rdsx demo: interrupted; both node processes have ended", err=True)
        ctx.exit(interrupt.exit_status)
    outcome = compare(ADDRESSES, [node.result for node in nodes], [deal.transfers for deal in deals])
    _show(outcome, as_json, complete)
    ctx.exit(0 if outcome.ok and complete else STATUS_FAULTY)


def check_port(port: int) -> None:
    """Raise CliError if a node could not listen: the parent finds out before it starts anything."""
    for address in ADDRESSES:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen()
            except OSError as error:
                raise explain_bind_error(error, address, port, "choose another port with --port") from error


def _job(index: int, files: list[SourceFile], deals: list[Deal], cuts: int, seed: int, port: int) -> dict[str, Any]:
    """What node `index` is to do. The nodes take turns in cutting: both the end that dials and the end that accepts must recover."""
    cut_at_bytes = [int((cut + 1) / (cuts + 1) * LAST_CUT * deals[index].payload_bytes) for cut in range(cuts)]
    return {
        "local": ADDRESSES[index],
        "remote": ADDRESSES[1 - index],
        "port": port,
        "seed": f"{seed}/{ADDRESSES[index]}",
        "files": [file.as_json() for file in files],
        "flows": deals[index].flows,
        "cuts": list(enumerate(cut_at_bytes))[index::2],
    }


async def _run(nodes: list[NodeProcess], deals: list[Deal], as_json: bool, interrupt: Interrupt) -> bool:
    """Run both processes; True if all was delivered. Ended by Ctrl-C: `interrupt` says so, and the processes have ended."""
    complete = False
    display = Display(nodes, deals, as_json)
    async with interrupt.ends_block():
        with display:
            complete = await supervise(nodes, display.update, PROGRESS_INTERVAL_S)
    return complete


class Display:
    """Progress while the demo runs: bars on a terminal, lines for programs, else nothing."""

    def __init__(self, nodes: list[NodeProcess], deals: list[Deal], as_json: bool) -> None:
        self._nodes = nodes
        self._as_json = as_json
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=as_json or not console.is_terminal, transient=True)
        names = [f"{sender.name} → {receiver.name}" for sender, receiver in zip(nodes, reversed(nodes), strict=True)]
        self._bars = [self._progress.add_task(name, total=deal.payload_bytes, note="") for name, deal in zip(names, deals, strict=True)]
        # Without the demo's own headers: the bars may be full a little early.
        self._totals = dict(zip(self._bars, (deal.payload_bytes for deal in deals), strict=True))
        self._started = False

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self) -> None:
        progress = [node.progress for node in self._nodes]
        if not all(progress):
            return
        reconnects = max(each["reconnects"] for each in progress)
        if self._as_json:
            if not self._started:
                self._started = True
                print_json(event="started", processes={node.name: node.pid for node in self._nodes})
            totals = {name: sum(each[name] for each in progress) for name in ("sent", "delivered", "sent_bytes", "delivered_bytes")}
            print_json(event="progress", **totals, reconnects=reconnects)
            return
        for bar, receiver in zip(self._bars, reversed(progress), strict=True):
            note = f"messages: {receiver['delivered']:,}, reconnects: {reconnects}"
            self._progress.update(bar, completed=min(receiver["delivered_bytes"], self._totals[bar]), note=note)


def _show(outcome: Outcome, as_json: bool, complete: bool) -> None:
    for direction in outcome.directions:
        for path in direction.files_wrong:
            click.echo(f"{direction.sender} → {direction.receiver}: {path} arrived with another SHA-256", err=True)
    if not complete:
        click.echo(f"Nothing was delivered for {STALL_S:.0f} s; what had not arrived by then counts as lost.", err=True)
    if as_json:
        print_json(**outcome.as_json())
        return
    Console(file=sys.stdout).print(outcome.as_table())
    verdict = "Every datagram arrived once, in order, and every file with its SHA-256." if outcome.ok else "NOT RELIABLE: see above."
    click.echo(verdict)
