"""Help, and what a user is told who asks for what cannot be."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import rdsx
from rdsx.cli.group import main


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("ping", "-h"), ("serve", "-h")])
def test_help(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_version() -> None:
    assert invoke("--version").output == f"rdsx {rdsx.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nosuch",), "nosuch"),
        (("ping",), "HOST"),
        (("ping", "127.0.0.1", "-c", "1x"), "'1x' is not a count"),
        (("ping", "127.0.0.1", "-c", "0"), "'0' is not a count"),
        (("ping", "127.0.0.1", "-i", "1h"), "'1h' is not an interval"),
        (("ping", "127.0.0.1", "-i", "0"), "out of range"),
        (("ping", "127.0.0.1", "-Q", "256"), "256"),
        (("ping", "127.0.0.1", "-Q", "5"), "type of service"),
        (("ping", "127.0.0.1", "--port", "65536"), "65536"),
        (("demo", "--bytes", "none"), "'none' is not a size"),
        (("demo", "--cuts", "-1"), "-1"),
        (("demo", "--port", "0"), "0"),
    ],
)
def test_a_wrong_argument_is_a_usage_error_that_names_it(arguments: tuple[str, ...], named: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert named in result.output


@pytest.mark.parametrize("arguments", [("ping", "no-such-host.invalid"), ("ping", "127.0.0.1", "-I", "no-such-host.invalid")])
def test_an_unknown_host_is_named(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "unknown host 'no-such-host.invalid'" in result.output


def test_a_host_name_that_cannot_be_one(port: int) -> None:
    result = invoke("ping", "a" * 300, "--port", port)
    assert result.exit_code == 1
    assert "unknown host" in result.output


def test_ping_from_an_address_of_somebody_else(port: int) -> None:
    result = invoke("ping", "127.0.0.1", "-I", "192.0.2.1", "--port", port)
    assert result.exit_code == 1
    assert "192.0.2.1 is not an address of this machine" in result.output


@pytest.mark.parametrize("command", [("demo",), ("ping", "127.0.0.2", "-I", "127.0.0.1"), ("serve", "127.0.0.1")])
def test_a_port_in_use_is_named_with_the_remedy(command: tuple[str, ...], port: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        result = invoke(*command, "--port", port)
    assert result.exit_code == 1
    assert f"TCP 127.0.0.1:{port} is in use" in result.output
    assert ("-I" if command[0] == "ping" else "--port") in result.output


def test_a_demo_directory_that_does_not_exist(tmp_path: Path, port: int) -> None:
    result = invoke("demo", tmp_path / "nosuch", "--port", port)
    assert result.exit_code == 1
    assert f"{tmp_path / 'nosuch'} does not exist" in result.output


def test_a_demo_directory_that_is_a_file(tmp_path: Path, port: int) -> None:
    (tmp_path / "file").touch()
    result = invoke("demo", tmp_path / "file", "--port", port)
    assert result.exit_code == 1
    assert "is not a directory" in result.output


def test_a_demo_directory_without_files(tmp_path: Path, port: int) -> None:
    result = invoke("demo", tmp_path, "--port", port)
    assert result.exit_code == 1
    assert f"{tmp_path} holds no files" in result.output


def test_a_demo_that_may_send_too_little(source: Path, port: int) -> None:
    result = invoke("demo", source, "--bytes", "100", "--port", port)
    assert result.exit_code == 1
    assert "--bytes" in result.output


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from rdsx.cli import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert missing in done.stderr
    assert "pip install 'rdsx[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
