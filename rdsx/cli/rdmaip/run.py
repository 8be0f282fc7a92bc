"""`rdsx rdmaip run`: the agent in the foreground. Owns signals, the log and what is beside the agent: control socket and metrics."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import click
import trio

from rdsx.cli.rdmaip.files import file_argument, live_snapshot, read_config
from rdsx.cli.running import CliError, run
from rdsx.rdmaip.agent import Agent
from rdsx.rdmaip.config import Config, ConfigError
from rdsx.rdmaip.control import open_listener, serve_control

__all__ = ["command"]

log = logging.getLogger("rdsx.rdmaip")


@click.command()
@file_argument
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics over HTTP, for example on 127.0.0.1:9474.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def command(file: Path, dry_run: bool, metrics: str | None, quiet: bool) -> None:
    """Keep the addresses of the configuration FILE on ports that work, until SIGTERM or Ctrl-C; SIGHUP reads FILE again.

    Needs CAP_NET_ADMIN and CAP_NET_RAW, but for a dry run.
    """
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s")
    run(_run, file, dry_run, parse_metrics(metrics))


async def _run(file: Path, dry_run: bool, metrics: tuple[str, int] | None) -> None:
    config = load(file)
    with Agent(config, dry_run=dry_run) as agent, contextlib.ExitStack() as resources:
        listener = None if dry_run else resources.enter_context(open_listener(config.control))
        async with trio.open_nursery() as tasks:
            await tasks.start(obey_signals, agent, file, tasks.cancel_scope)
            await tasks.start(agent.run)
            async with open_metrics(agent, metrics):
                if listener is not None:
                    await serve_control(listener, agent)
                await trio.sleep_forever()


@contextlib.asynccontextmanager
async def open_metrics(agent: Agent, address: tuple[str, int] | None) -> AsyncIterator[None]:
    """The metrics of the block, if an address is given for them."""
    if address is None:
        yield
        return
    try:
        from rdsx.rdmaip import metrics
    except ImportError as error:
        raise CliError("--metrics needs prometheus-client. Run: python -m pip install 'rdsx[metrics]'") from error
    async with metrics.open_metrics(agent, *address) as port:
        log.info("metrics at http://%s:%d/metrics", address[0], port)
        yield


def load(file: Path) -> Config:
    """The configuration, with addresses that are to be discovered. Raises CliError."""
    config = read_config(file)
    if not any(group.discover for group in config.groups):
        return config
    try:
        return config.discovered(live_snapshot(config))
    except ConfigError as error:
        raise CliError(f"{file}: {error}") from error


async def obey_signals(
    agent: Agent, file: Path, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number != signal.SIGHUP:
                scope.cancel()
                return
            try:
                agent.reconfigure(load(file))
                log.info("read %s again", file)
            except CliError as error:
                log.error("%s; going on with what was read before", error.message)


def parse_metrics(text: str | None) -> tuple[str, int] | None:
    """`127.0.0.1:9474` or `[::1]:9474`."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9474", param_hint="--metrics")
    return host.strip("[]"), int(port)
