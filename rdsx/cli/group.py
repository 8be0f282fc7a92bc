"""The click group. Owns the list of commands and what all of them share: `--version`, Ctrl-C, errors of the system as one line.

A command's module is imported only when that command runs, so that `rdsx ping` does not pay for `rdsx demo`.
"""

from __future__ import annotations

import importlib

import click

import rdsx

__all__ = ["main"]

COMMANDS = ("calls", "demo", "doctor", "ping", "rdmaip", "serve")  # each is the click command `command` of the module with its name
STATUS_INTERRUPTED = 130


class CommandGroup(click.Group):
    """A group that imports `rdsx.cli.<command>` on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"rdsx.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """`demo calls` is a command with two words; what else follows `demo` is a directory or an option of it."""
        if args[:2] == ["demo", "calls"]:
            command = importlib.import_module("rdsx.cli.demo_calls").command
            assert isinstance(command, click.Command)
            return "demo calls", command, args[2:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an interrupt that it does not handle itself ends with status 130, as in a shell, not with click's 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("rdsx: interrupted", err=True)
            ctx.exit(STATUS_INTERRUPTED)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"rdsx {rdsx.__version__}")
    ctx.exit()


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version and exit.")
def main() -> None:
    """Reliable Datagram Sockets in user space."""
