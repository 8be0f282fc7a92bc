"""`python -m benchmarks`. Owns the list of commands; a command's module is imported only when that command runs.

A new command is an entry in COMMANDS: its name, and the module that has it as the click command `command`.
"""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "run": "benchmarks.run",
    "guest": "benchmarks.guest",
    "verbs": "benchmarks.verbs",
    "compare": "benchmarks.compare",
    "plot": "benchmarks.plot",
    "targets": "benchmarks.targets",
    "calls": "benchmarks.calls",
    "rdmaip": "benchmarks.rdmaip",
}
STATUS_INTERRUPTED = 130


class CommandGroup(click.Group):
    """A group that imports its commands on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; Ctrl-C ends with status 130, as in a shell."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("benchmarks: interrupted", err=True)
            ctx.exit(STATUS_INTERRUPTED)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """rdsx measured against what a user would pick instead."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
