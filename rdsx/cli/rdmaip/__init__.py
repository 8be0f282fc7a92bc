"""`rdsx rdmaip`: addresses that move between the ports of this host. Owns the list of its commands and what they share.

A command's module is imported only when that command runs, so that `plan` does not pay for netlink.
"""

from __future__ import annotations

import importlib

import click

__all__ = ["command"]

COMMANDS = {
    "check": "check",
    "import-oracle": "oracle",
    "plan": "plan",
}  # name: the module that has it as `command`


class RdmaipGroup(click.Group):
    """A group that imports its commands on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = importlib.import_module(f"rdsx.cli.rdmaip.{COMMANDS[cmd_name]}").command
        assert isinstance(found, click.Command)
        return found


@click.group(cls=RdmaipGroup)
def command() -> None:
    """Keep addresses on ports that work, and bring them home."""
