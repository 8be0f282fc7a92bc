"""`rdsx rdmaip monitor`: where everything is, then what happens, a line for each event, as long as the agent runs."""

from __future__ import annotations

import json
from typing import Any

import click

from rdsx.cli.rdmaip.asking import control_option
from rdsx.cli.running import CliError, Interrupt, run
from rdsx.rdmaip.control_client import ControlError, open_control

__all__ = ["command"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print each event as a JSON line.")
@control_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, control: str) -> None:
    """Show where addresses are, then events as they happen, until Ctrl-C or the end of the agent."""
    interrupt = Interrupt()
    run(_run, control, as_json, interrupt)
    ctx.exit(interrupt.exit_status if interrupt.signal_number else 0)


def show_status(status: dict[str, Any], as_json: bool) -> None:
    """What is, before what happens."""
    if as_json:
        click.echo(json.dumps({"event": "Status", "status": status}))
        return
    for address in status["addresses"]:
        why = f" ({address['why']})" if address["why"] else ""
        click.echo(f"{address['ip']} on {', '.join(address['ports']) or 'no port'}: {address['state']}{why}")


async def _run(control: str, as_json: bool, interrupt: Interrupt) -> None:
    async with interrupt.ends_block():
        try:
            async with open_control(control) as client:
                status = (await client.request("subscribe"))["status"]
                show_status(status, as_json)
                async for event in client.events():
                    click.echo(json.dumps(event) if as_json else event["text"])
        except ControlError as error:
            raise CliError(str(error)) from error
