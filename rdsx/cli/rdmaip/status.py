"""`rdsx rdmaip status`: what the running agent knows, as tables. Owns the layout."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import click
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rdsx.cli.rdmaip.asking import ask, control_option
from rdsx.cli.running import CliError, Interrupt, run
from rdsx.rdmaip.control_client import ControlClient, ControlError, open_control
from rdsx.rdmaip.wording import describe_duration

__all__ = ["command", "picture"]

WATCH_S = 1.0
SHOWN_EVENTS = 8
STYLES = {"home": "green", "guest": "yellow", "moving": "yellow"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch a line for each look.")
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@control_option
def command(as_json: bool, watch: bool, control: str) -> None:
    """Show ports by layer, addresses with home and place, and what happened last."""
    if watch:
        run(_run, control, as_json, Interrupt())
        return
    status = ask(control, "status")["status"]
    if as_json:
        click.echo(json.dumps(status, indent=1))
    else:
        Console(highlight=False).print(picture(status))


async def _run(control: str, as_json: bool, interrupt: Interrupt) -> None:
    async with interrupt.ends_block():
        try:
            async with open_control(control) as client:
                await watch_status(client, as_json)
        except ControlError as error:
            raise CliError(str(error)) from error


async def watch_status(client: ControlClient, as_json: bool) -> None:
    """Look again and again, until cancelled."""
    console = Console(highlight=False)
    with contextlib.nullcontext() if as_json else Live(console=console, auto_refresh=False) as live:
        while True:
            status = (await client.request("status"))["status"]
            if live is not None:
                live.update(picture(status), refresh=True)
            else:
                click.echo(json.dumps(status))
            await trio.sleep(WATCH_S)


def picture(status: dict[str, Any]) -> Group:
    """One look as tables."""
    parts: list[Any] = [ports_table(status["ports"]), addresses_table(status["addresses"])]
    if status["crippled"]:
        parts.insert(0, f"[red]nothing is changed: {status['crippled']} is missing[/]")
    if status["boot_left_s"] > 0:
        parts.insert(0, f"starting: addresses go home in {describe_duration(status['boot_left_s'])}; `rdsx rdmaip trigger` ends the wait")
    parts += [escape(f"{describe_duration(event['ago_s'])} ago: {event['text']}") for event in status["events"][-SHOWN_EVENTS:]]
    return Group(*parts)


def ports_table(ports: list[dict[str, Any]]) -> Table:
    table = Table(title="ports", title_justify="left")
    for label in ("port", "group", "state", "for", "failures", "addresses"):
        table.add_column(label, justify="right" if label in ("for", "failures") else "left")
    for port in ports:
        broken = [name for name, layer in port["layers"].items() if not layer["set"]]
        if broken:
            state = f"[red]down: {', '.join(broken)}[/]"
        elif port["settled"]:
            state = "[green]settled[/]"
        elif not port["usable"]:
            state = "[yellow]coming up[/]"
        else:
            left = "at the shared instant" if port["settles_in_s"] is None else f"in {describe_duration(port['settles_in_s'])}"
            state = f"[yellow]up, settles {left}[/]"
        downs = f"{port['recent_downs']} in 10 min" if port["recent_downs"] else str(port["total_downs"] or "")
        table.add_row(port["name"], port["group"], state, describe_duration(port["for_s"]), downs, " ".join(port["addresses"]))
    return table


def addresses_table(addresses: list[dict[str, Any]]) -> Table:
    table = Table(title="addresses", title_justify="left")
    for label in ("address", "home", "on", "state", "for"):
        table.add_column(label, justify="right" if label == "for" else "left")
    for address in addresses:
        why = f": {address['why']}" if address["why"] else ""
        pinned = f" (moved by an operator to {address['pinned_to']})" if address["pinned_to"] else ""
        style = STYLES.get(address["state"], "red")
        state = f"[{style}]{address['state']}[/]{escape(why + pinned)}"
        since = "" if address["for_s"] is None else describe_duration(address["for_s"])
        table.add_row(address["ip"], address["home"], " ".join(address["ports"]), state, since)
    return table
