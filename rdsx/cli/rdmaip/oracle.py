"""`rdsx rdmaip import-oracle`: the settings of Oracle's kernel module as a configuration file, on standard output."""

from __future__ import annotations

import click

from rdsx.cli.running import CliError
from rdsx.rdmaip.config import ConfigError
from rdsx.rdmaip.oracle import import_oracle

__all__ = ["command"]


@click.command()
@click.argument("groups")
@click.option("--no-failback", is_flag=True, help="As rdmaip_active_bonding_failback=0.")
@click.option("--exclude", default="169.254/16", show_default=True, help="As rdmaip_ipv4_exclude_ips_list.")
def command(groups: str, no_failback: bool, exclude: str) -> None:
    """Print a configuration file for GROUPS, the value of rdmaip_active_bonding_failover_groups: 'ib0,ib1;ib2,ib3'.

    Addresses are left to be discovered, as that module did.
    """
    try:
        click.echo(import_oracle(groups, failback=not no_failback, exclude=exclude), nl=False)
    except ConfigError as error:
        raise CliError(str(error)) from error
