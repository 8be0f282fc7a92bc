"""Helpers of the command-line tests: TCP ports nobody else uses, and the command as a process of its own."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
# Below the range of ephemeral ports; the start differs between test processes, so that two of them do not meet.
PORTS = itertools.count(20_000 + os.getpid() * 16 % 10_000)


def is_free(port: int) -> bool:
    for address in ADDRESSES:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


@pytest.fixture
def port() -> int:
    return next(port for port in PORTS if is_free(port))


@pytest.fixture
def rdsx_command() -> list[str]:
    """The beginning of the command line. -P: never import rdsx from the current directory."""
    return [sys.executable, "-P", "-m", "rdsx.cli"]


@pytest.fixture
def start(rdsx_command: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `rdsx …` as a process; killed at the end of the test if it still runs."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(*arguments: object) -> subprocess.Popen[str]:
        command = [*rdsx_command, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of files of many sizes, in two levels."""
    directory = tmp_path / "source"
    (directory / "below").mkdir(parents=True)
    for number, size in enumerate((0, 1, 11, 12, 13, 1_000, 4_096, 65_536, 300_000)):
        parent = directory / "below" if number % 2 else directory
        (parent / f"file{number}").write_bytes(bytes((number + i) % 251 for i in range(size)))
    return directory
