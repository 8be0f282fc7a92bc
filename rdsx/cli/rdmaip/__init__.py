"""`rdsx rdmaip`: addresses that move between the ports of this host. Owns the list of its commands and what they share.

A command's module is imported only when that command runs, so that `plan` does not pay for netlink.
"""

from __future__ import annotations

import importlib

import click

__all__ = ["command"]

COMMANDS = {
    "check": "check:command",
    "drain": "orders:drain",
    "failback": "orders:failback",
    "import-oracle": "oracle:command",
    "monitor": "monitor:command",
    "move": "orders:move",
    "plan": "plan:command",
    "run": "run:command",
    "status": "status:command",
    "trigger": "orders:trigger",
    "undrain": "orders:undrain",
}  # name: where it is, as module:attribute


class RdmaipGroup(click.Group):
    """A group that imports its commands on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        found = getattr(importlib.import_module(f"rdsx.cli.rdmaip.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=RdmaipGroup)
def command() -> None:
    """Keep addresses on ports that work, and bring them home."""
