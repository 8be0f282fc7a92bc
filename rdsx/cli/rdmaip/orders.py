"""`rdsx rdmaip trigger`, `failback`, `move`, `drain`, `undrain`: what an operator wants of the running agent."""

from __future__ import annotations

import click

from rdsx.cli.rdmaip.asking import ask, control_option

__all__ = ["drain", "failback", "move", "trigger", "undrain"]


@click.command()
@control_option
def trigger(control: str) -> None:
    """End the boot delay (settle_boot_s): every port is configured, addresses may go home."""
    ask(control, "trigger")


@click.command()
@click.argument("ip", required=False)
@control_option
def failback(ip: str | None, control: str) -> None:
    """Send IP home now, without its hold; or every address. Ends what `move` asked for."""
    ask(control, "failback", ip=ip)


@click.command()
@click.argument("ip")
@click.argument("port")
@control_option
def move(ip: str, port: str, control: str) -> None:
    """Move IP to PORT. It belongs there until `failback`."""
    ask(control, "move", ip=ip, port=port)


@click.command()
@click.argument("port")
@control_option
def drain(port: str, control: str) -> None:
    """Take everything off PORT, for maintenance."""
    ask(control, "drain", port=port)


@click.command()
@click.argument("port")
@control_option
def undrain(port: str, control: str) -> None:
    """Let PORT carry its share again."""
    ask(control, "undrain", port=port)
