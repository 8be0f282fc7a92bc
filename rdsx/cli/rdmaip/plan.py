"""`rdsx rdmaip plan`: what an agent would do, and why, without doing it. Owns the words; the plan is made elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from rdsx.cli.rdmaip.files import file_argument, live_snapshot, read_config, read_state
from rdsx.cli.running import CliError
from rdsx.rdmaip.config import Config, ConfigError
from rdsx.rdmaip.facts import Fact, HardwareFact, LinkFact, PathFact, Snapshot
from rdsx.rdmaip.plan import Plan, make_plan
from rdsx.rdmaip.snapshot_file import format_snapshot

__all__ = ["command", "describe_plan"]


@click.command()
@file_argument
@click.option("--down", "down", metavar="PORT", multiple=True, help="Assume that this port loses its link; may be repeated.")
@click.option("--up", "up", metavar="PORT", multiple=True, help="Assume that this port is up and has a link; may be repeated.")
@click.option("--state", type=click.Path(dir_okay=False, path_type=Path), help="A state from this file instead of this host's.")
@click.option("--save-state", type=click.Path(dir_okay=False, path_type=Path), help="Write this host's state to a file, for --state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, down: tuple[str, ...], up: tuple[str, ...], state: Path | None, save_state: Path | None, as_json: bool) -> None:
    """Show what an agent with the configuration FILE would do now, and then if ports failed.

    Needs no privilege, and changes nothing.
    """
    config = read_config(file)
    snapshot = read_state(state) if state else live_snapshot(config)
    if save_state:
        try:
            save_state.write_text(format_snapshot(snapshot), encoding="utf-8")
        except OSError as error:
            raise CliError(f"{save_state}: {error.strerror}") from error
    try:
        config = config.discovered(snapshot)
    except ConfigError as error:
        raise CliError(f"{file}: {error}") from error
    now, then = make_plan(config, snapshot, assumed_facts(config, snapshot, down, up))
    if as_json:
        plans = {"now": now, "then": then} if down or up else {"now": now}
        click.echo(json.dumps({name: plan_as_json(plan) for name, plan in plans.items()}, indent=1))
        return
    click.echo("Now:")
    click.echo(describe_plan(now))
    if down or up:
        assumed = [f"{port} loses its link" for port in down] + [f"{port} is up" for port in up]
        click.echo(f"\nIf {' and '.join(assumed)}:")
        click.echo(describe_plan(then))


def assumed_facts(config: Config, snapshot: Snapshot, down: tuple[str, ...], up: tuple[str, ...]) -> list[Fact]:
    links = {link.port: link for link in snapshot.links}
    facts: list[Fact] = []
    for port in (*down, *up):
        if port not in config.ports:
            raise CliError(f"{port} is not a port of any group; those are {', '.join(config.ports)}")
        if port in down and port in up:
            raise CliError(f"{port} cannot be assumed to be both up and down")
        link = links.get(port, LinkFact(port))
        if port in down:
            facts.append(replace(link, carrier=False))
        else:
            facts += [replace(link, present=True, admin=True, carrier=True), HardwareFact(port, None), PathFact(port, None)]
    return facts


def describe_plan(plan: Plan) -> str:
    """The steps, and where every address is then."""
    lines = [f"  {step}" for step in plan.steps] or ["  nothing to do"]
    for address in plan.addresses:
        where = ", ".join(address.ports) or "no port"
        why = f" ({address.why})" if address.why else ""
        lines.append(f"  = {address.ip} on {where}: {address.state}{why}")
    return "\n".join(lines)


def plan_as_json(plan: Plan) -> dict[str, Any]:
    steps = [{"action": type(step.action).__name__, **asdict(step.action), "why": step.why} for step in plan.steps]
    return {"steps": steps, "addresses": [asdict(address) for address in plan.addresses]}
