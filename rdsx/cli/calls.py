"""`rdsx calls`: what couriers elsewhere are doing. Owns the display; asks with a call of the type that every courier answers."""

from __future__ import annotations

import json
from typing import Any

import click
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

import rdsx
from rdsx.calls import STATISTICS, CallError
from rdsx.cli.hosts import local_address_towards, resolve_host
from rdsx.cli.quantities import parse_interval_s
from rdsx.cli.running import CliError, Interrupt, explain_bind_error, print_json, run

__all__ = ["command"]

DEFAULT_PORT = 16385
PATIENCE_S = 10.0
SHOWN_COUNTERS = 12


@click.group()
def command() -> None:
    """Look at couriers: the endpoints of exactly-once calls."""


@command.command()
@click.argument("host")
@click.argument("rds_port", type=click.IntRange(2, 65535))
@click.option("-I", "local", metavar="ADDRESS", help="Local address; default: what the routes choose.")
@click.option("-i", "interval_s", metavar="TIME", type=parse_interval_s, default="1", show_default=True, help="Between two looks.")
@click.option("-c", "count", type=click.IntRange(1), help="Look so often, then end.")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="TCP port of the nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print each look as a JSON line.")
@click.pass_context
def top(
    ctx: click.Context, host: str, rds_port: int, local: str | None, interval_s: float, count: int | None, port: int, as_json: bool
) -> None:
    """Show the tables of the courier at HOST and RDS_PORT: what it holds for each peer, and what it waits for.

    The courier must allow it, which is the default (CallConfig.serve_statistics).
    """
    interrupt = Interrupt()
    run(_run, host, rds_port, local, interval_s, count, port, as_json, interrupt)
    ctx.exit(interrupt.exit_status if interrupt.signal_number and count is not None else 0)


async def _run(
    host: str, rds_port: int, local: str | None, interval_s: float, count: int | None, port: int, as_json: bool, interrupt: Interrupt
) -> None:
    async with interrupt.ends_block():
        address = await resolve_host(host)
        source = await resolve_host(local) if local else await local_address_towards(address)
        if source == address:
            raise CliError(f"{address} is the courier's own address, and a node has it; name another local address with -I")
        try:
            async with (
                rdsx.open_node(source, config=rdsx.NodeConfig(port=port)) as node,
                rdsx.open_courier(await node.bind()) as courier,
            ):
                await _look(courier, (address, rds_port), interval_s, count, as_json)
        except OSError as error:
            raise explain_bind_error(error, source, port, "name another local address with -I") from error


async def _look(courier: rdsx.calls.Courier, peer: tuple[str, int], interval_s: float, count: int | None, as_json: bool) -> None:
    console = Console()
    with Live(console=console, auto_refresh=False, screen=False) if not as_json else Quiet() as live:
        looks = 0
        while True:
            statistics = await _ask(courier, peer)
            if as_json:
                print_json(**statistics)
            elif isinstance(live, Live):
                live.update(picture(peer, statistics), refresh=True)
            looks += 1
            if looks == count:
                return
            await trio.sleep(interval_s)


class Quiet:
    """In place of a live display."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass


async def _ask(courier: rdsx.calls.Courier, peer: tuple[str, int]) -> dict[str, Any]:
    with trio.move_on_after(PATIENCE_S):
        try:
            reply = await courier.call(peer, STATISTICS)
        except CallError as error:
            raise CliError(f"{error}; the courier must have CallConfig.serve_statistics on") from error
        statistics: dict[str, Any] = json.loads(reply.payload)
        return statistics
    raise CliError(f"no courier at {peer[0]}, RDS port {peer[1]}, answered within {PATIENCE_S:.0f} s")


def picture(peer: tuple[str, int], statistics: dict[str, Any]) -> Group:
    """One look as tables."""
    title = f"courier at {peer[0]}, port {peer[1]}: {statistics['running']} running, {statistics['waiting']} waiting"
    table = Table(title=title, title_justify="left")
    columns = {
        "peer": "peer", "holders": "held", "running": "run", "held_bytes": "bytes", "oldest_s": "oldest", "floor_lag": "lag",
        "duplicates": "copies", "busy": "busy", "live_calls": "calls",
    }  # fmt: skip
    for name, label in columns.items():
        if name == "peer":
            table.add_column(label, min_width=max((len(each["peer"]) for each in statistics["peers"]), default=0))
        else:
            table.add_column(label, justify="right")
    for each in statistics["peers"]:
        table.add_row(*(f"{each[name]:.1f} s" if name == "oldest_s" else str(each[name]) for name in columns))
    counters = Table(show_header=False, box=None)
    largest = sorted(statistics["counters"].items(), key=lambda item: -item[1])[:SHOWN_COUNTERS]
    for name, value in largest:
        counters.add_row(name, f"{value:,}")
    return Group(table, counters)
