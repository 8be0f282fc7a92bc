"""`rdsx calls`: what couriers elsewhere are doing, and what is in a store. Owns the display.

Asks couriers with a call of the type that each of them answers; reads files without changing them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import click
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

import rdsx
from rdsx.calls import STATISTICS, CallError, StoreError
from rdsx.calls.holder import HolderState
from rdsx.calls.records import HolderRow, Rows
from rdsx.calls.store import read_store
from rdsx.calls.wire import Code
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
@click.option("--metrics", "metrics_port", type=click.IntRange(0, 65535), help="Tell Prometheus of the last look: HTTP on 127.0.0.1.")
@click.pass_context
def top(
    ctx: click.Context,
    host: str,
    rds_port: int,
    local: str | None,
    interval_s: float,
    count: int | None,
    port: int,
    as_json: bool,
    metrics_port: int | None,
) -> None:
    """Show the tables of the courier at HOST and RDS_PORT: what it holds for each peer, and what it waits for.

    The courier must allow it, which is the default (CallConfig.serve_statistics).
    """
    interrupt = Interrupt()

    async def look(export: Export) -> None:
        async with interrupt.ends_block(), courier_towards(host, local, port) as (courier, address):
            await _look(courier, (address, rds_port), interval_s, count, as_json, export)

    with metrics_server(metrics_port) as export:
        run(look, export)
    ctx.exit(interrupt.exit_status if interrupt.signal_number and count is not None else 0)


Export = Callable[[str, dict[str, Any]], None]
"""What is told of each look: whose, and what it was."""


@contextlib.contextmanager
def metrics_server(port: int | None) -> Iterator[Export]:
    """Serve what `Export` was told last, while in the block. None: tell nobody."""
    if port is None:
        yield lambda courier, statistics: None
        return
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from rdsx.calls.metrics import CourierCollector
    except ImportError as error:
        raise CliError(f"--metrics needs prometheus-client ({error}): pip install 'rdsx[metrics]'") from error
    registry, looks = CollectorRegistry(), dict[str, dict[str, Any]]()

    def export(courier: str, statistics: dict[str, Any]) -> None:
        known = courier in looks
        looks[courier] = statistics  # the server's threads read the old dict or the new one
        if not known:
            registry.register(CourierCollector(courier, lambda: looks[courier]))

    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise CliError(f"--metrics {port}: {error.strerror}; name a port that is free") from error
    click.echo(f"metrics at http://127.0.0.1:{server.server_port}/metrics", err=True)
    try:
        yield export
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.asynccontextmanager
async def courier_towards(host: str, local: str | None, port: int) -> AsyncIterator[tuple[rdsx.calls.Courier, str]]:
    """(a courier of our own, the address of `host`)."""
    address = await resolve_host(host)
    source = await resolve_host(local) if local else await local_address_towards(address)
    if source == address:
        raise CliError(f"{address} is the courier's own address, and a node has it; name another local address with -I")
    try:
        async with (
            rdsx.open_node(source, config=rdsx.NodeConfig(port=port)) as node,
            rdsx.open_courier(await node.bind()) as courier,
        ):
            yield courier, address
    except OSError as error:
        raise explain_bind_error(error, source, port, "name another local address with -I") from error


async def _look(
    courier: rdsx.calls.Courier, peer: tuple[str, int], interval_s: float, count: int | None, as_json: bool, export: Export
) -> None:
    console = Console()
    with Live(console=console, auto_refresh=False, screen=False) if not as_json else Quiet() as live:
        looks = 0
        while True:
            statistics = await _ask(courier, peer)
            export(f"{peer[0]}:{peer[1]}", statistics)
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


@command.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: the store, its sessions, holders, own sessions, own calls.")
def dump(path: str, as_json: bool) -> None:
    """List what the store at PATH holds: results that wait for their callers, and own durable calls.

    It only reads, and a courier may have the store open meanwhile.
    """
    try:
        meta, rows = read_store(path)
    except StoreError as error:
        raise CliError(str(error)) from error
    if as_json:
        print_rows(meta, rows)
    else:
        Console().print(picture_of_store(path, meta, rows))


def holder_words(row: HolderRow) -> tuple[str, str]:
    """Its state, and what a STATUS would say."""
    state = HolderState(row.state)
    return state.name.lower(), "" if state is HolderState.RUNNING else Code(row.code).name.lower()


def print_rows(meta: dict[str, str], rows: Rows) -> None:
    print_json(kind="store", address=json.loads(meta["address"]), life=int(meta["life"]), clean=meta["clean"] == "yes")
    for session in rows.sessions:
        print_json(kind="session", **session._asdict())
    for holder in rows.holders:
        state, code = holder_words(holder)
        print_json(kind="holder", **{**holder._asdict(), "state": state, "code": code, "reply": holder.reply.hex()})
    for own in rows.outgoing:
        print_json(kind="own session", **own._asdict())
    for call in rows.calls:
        print_json(kind="own call", **{**call._asdict(), "payload": call.payload.hex()})


def picture_of_store(path: str, meta: dict[str, str], rows: Rows) -> Group:
    """A store as tables."""
    host, port = json.loads(meta["address"])[:2]
    ended = "ended in order" if meta["clean"] == "yes" else "has it open, or crashed"
    sessions = {session.number: session for session in rows.sessions}
    holders = Table(title=f"{path}: the courier at {host}, port {port} {ended}; {len(sessions)} sessions", title_justify="left")
    for label in ("caller", "session", "number", "type", "state", "answer", "status", "reply"):
        holders.add_column(label, justify="left" if label in ("caller", "state", "answer") else "right")
    for row in sorted(rows.holders):
        session = sessions.get(row.session)
        caller = "?" if session is None else f"{session.address[0]}:{session.address[1]}"
        state, code = holder_words(row)
        answer = f"{code}: {row.text}" if row.text else code
        holders.add_row(
            caller, str(row.session), str(row.seq), f"{row.msg_type:#x}", state, answer, str(row.status), f"{len(row.reply)} bytes"
        )
    calls = Table(title="own durable calls", title_justify="left")
    for label in ("peer", "number", "type", "request"):
        calls.add_column(label, justify="left" if label == "peer" else "right")
    for call in sorted(rows.calls):
        number = str(call.seq) if call.seq else "not sent"
        calls.add_row(f"{call.address[0]}:{call.address[1]}", number, f"{call.msg_type:#x}", f"{len(call.payload)} bytes")
    return Group(holders, calls)
