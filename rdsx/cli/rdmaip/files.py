"""Configuration and state files as arguments. Owns the errors for files that cannot be read or are wrong."""

from __future__ import annotations

from pathlib import Path

import click

from rdsx.cli.running import CliError
from rdsx.rdmaip.config import Config, ConfigError, parse_config
from rdsx.rdmaip.facts import Snapshot
from rdsx.rdmaip.snapshot_file import parse_snapshot

__all__ = ["ConfigFileError", "file_argument", "live_snapshot", "read_config", "read_state"]

file_argument = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


class ConfigFileError(CliError):
    """The configuration file is wrong: starting again does not help, and the exit status says so (EX_CONFIG of sysexits.h)."""

    exit_code = 78


def read_config(path: Path) -> Config:
    """Raises CliError, for a wrong file ConfigFileError naming file, line and setting."""
    try:
        return parse_config(read_text(path), str(path))
    except ConfigError as error:
        raise ConfigFileError(str(error)) from error


def read_state(path: Path) -> Snapshot:
    """Raises CliError naming file and fact."""
    try:
        return parse_snapshot(read_text(path), str(path))
    except ValueError as error:
        raise CliError(str(error)) from error


def live_snapshot(config: Config) -> Snapshot:
    """What this host's kernel has now."""
    from rdsx.rdmaip.backend import read_snapshot

    try:
        return read_snapshot(config)
    except OSError as error:
        raise CliError(f"the network's state cannot be read: {error.strerror}; name a file with --state") from error


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{path}: this is not text: {error}") from error
