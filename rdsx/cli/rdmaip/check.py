"""`rdsx rdmaip check`: what would keep an agent from its work on this host, with remedies, and what it would do now."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from rdsx.cli.rdmaip.files import file_argument, live_snapshot, read_config
from rdsx.cli.rdmaip.plan import describe_plan
from rdsx.rdmaip.capabilities import explain_missing, missing_capabilities
from rdsx.rdmaip.checks import Finding, check_config, check_managers
from rdsx.rdmaip.config import Config, ConfigError
from rdsx.rdmaip.lock import is_locked
from rdsx.rdmaip.plan import make_plan
from rdsx.rdmaip.profile import inspect
from rdsx.rdmaip.surroundings import find_managers, is_clock_synchronised

__all__ = ["command"]

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "error": "[red]error[/]"}


@click.command()
@file_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check the configuration FILE on this host, and show what an agent would do now.

    Needs no privilege, and changes nothing. Exit status 1 if an agent could not do its work.
    """
    config = read_config(file)
    snapshot = live_snapshot(config)
    findings = check_config(config, snapshot, [name for _, name in socket.if_nameindex()])
    findings += check_managers(find_managers({link.port: link.index for link in snapshot.links if link.present}))
    findings += check_host(config)
    plan = ""
    try:
        plan = describe_plan(make_plan(config.discovered(snapshot), snapshot)[0])
    except ConfigError as error:
        findings.append(Finding("error", str(file), str(error)))
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings], "plan": plan.splitlines()}, indent=1))
    else:
        show(findings, plan)
    ctx.exit(1 if any(finding.level == "error" for finding in findings) else 0)


def check_host(config: Config) -> list[Finding]:
    """Kernel settings, permissions, the clock."""
    findings = []
    if config.sysctl != "ignore":
        level = "warning" if config.sysctl == "set" else "error"
        for setting in inspect(config.ports):
            text = f"{setting.path} is {setting.found}, must be {setting.wanted}: {setting.why}"
            remedy = (
                "the agent sets it"
                if config.sysctl == "set" and "/all/" not in setting.path
                else f"run: sysctl -w {setting.path}={setting.wanted}"
            )
            findings.append(Finding(level, setting.port, text, remedy))
    if is_locked():
        findings.append(Finding("ok", "agent", "one serves this network namespace already; `rdsx rdmaip status` asks it"))
    missing = missing_capabilities()
    if missing:
        findings.append(Finding("warning", "permissions", explain_missing(missing)))
    if config.failback_sync_s and not is_clock_synchronised():
        text = "the clock is not synchronised, and failback_sync_s counts on the same time on all hosts"
        findings.append(Finding("error", "clock", text, "run chrony, ntpd or systemd-timesyncd"))
    return findings


def show(findings: list[Finding], plan: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        console.print(f"{MARKS[finding.level]} {escape(f'{finding.subject}: {finding.text}{remedy}')}")
    if plan:
        console.print("\nAn agent would do now:")
        console.print(escape(plan))
