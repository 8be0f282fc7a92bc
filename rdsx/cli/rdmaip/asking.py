"""Requests of commands to the running agent. Owns the option that names its socket, and the errors as one line."""

from __future__ import annotations

from typing import Any

import click
import trio

from rdsx.cli.running import CliError, run
from rdsx.rdmaip.config import DEFAULT_CONTROL
from rdsx.rdmaip.control_client import ControlError, open_control

__all__ = ["ask", "control_option"]

PATIENCE_S = 10.0

control_option = click.option("--control", metavar="PATH", default=DEFAULT_CONTROL, show_default=True, help="The agent's control socket.")


def ask(control: str, op: str, **arguments: str | None) -> dict[str, Any]:
    """What the agent answers. Raises CliError."""
    return run(_ask, control, op, arguments)


async def _ask(control: str, op: str, arguments: dict[str, str | None]) -> dict[str, Any]:
    try:
        with trio.move_on_after(PATIENCE_S):
            async with open_control(control) as client:
                return await client.request(op, **arguments)
    except ControlError as error:
        raise CliError(str(error)) from error
    raise CliError(f"the agent at {control} did not answer within {PATIENCE_S:.0f} s; its log may say why")
