"""`rdsx serve`: a node that answers pings, for somebody to ping. Owns nothing but the printing of peers as they come and go."""

from __future__ import annotations

import dataclasses

import click

import rdsx
from rdsx.cli.hosts import resolve_host
from rdsx.cli.running import Interrupt, explain_bind_error, print_json, run

__all__ = ["command"]

DEFAULT_PORT = 16385


@click.command()
@click.argument("address")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="TCP port of the nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.pass_context
def command(ctx: click.Context, address: str, port: int, as_json: bool) -> None:
    """Open a node at the local ADDRESS, answer pings and show peers, until Ctrl-C."""
    interrupt = Interrupt()
    run(_run, address, port, as_json, interrupt)
    ctx.exit(interrupt.exit_status)


async def _run(address: str, port: int, as_json: bool, interrupt: Interrupt) -> None:
    async with interrupt.ends_block():
        host = await resolve_host(address)
        try:
            async with rdsx.open_node(host, config=rdsx.NodeConfig(port=port)) as node:
                with node.events() as events:
                    _show(as_json, "listening", f"answering pings at {host}, TCP port {port}", local=host, port=port)
                    async for event in events:
                        _show_event(as_json, event)
        except OSError as error:
            raise explain_bind_error(error, host, port, "stop that program, or give --port (peers need the same)") from error


def _show_event(as_json: bool, event: rdsx.Event) -> None:
    match event:
        case rdsx.PeerUp():
            text = f"{event.peer} is up ({event.kind})"
        case rdsx.PeerDown():
            text = f"{event.peer} is down ({event.reason})"
        case rdsx.PeerRestarted():
            text = f"{event.peer} has restarted"
        case _:
            return  # congestion: nothing that somebody who pings would look for
    name = {rdsx.PeerUp: "peer_up", rdsx.PeerDown: "peer_down", rdsx.PeerRestarted: "peer_restarted"}[type(event)]
    _show(as_json, name, text, **dataclasses.asdict(event))


def _show(as_json: bool, name: str, text: str, **fields: object) -> None:
    if as_json:
        print_json(event=name, **fields)
    else:
        click.echo(text)
