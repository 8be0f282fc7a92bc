"""`rdsx demo calls` and `rdsx calls top` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import trio
from click.testing import CliRunner

import rdsx
from rdsx.cli.group import main

Start = Callable[..., "subprocess.Popen[str]"]
TIMEOUT_S = 120


def test_every_lock_is_granted_once_though_the_master_is_killed(start: Start, port: int) -> None:
    process = start("demo", "calls", "--workers", 6, "--locks", 20, "--cuts", 5, "--kills", 2, "--json", "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    result = json.loads(output.splitlines()[-1])
    assert result["ok"] is True
    assert result["requests"] == result["granted"] == result["locks"] == 120
    assert (result["granted_twice"], result["never_granted"], result["violations"]) == (0, 0, 0)
    assert result["kills"] == 2
    assert result["cuts"] >= 1
    assert result["blocked"] > 0


def test_the_table(start: Start, port: int) -> None:
    process = start("demo", "calls", "--workers", 2, "--locks", 3, "--kills", 0, "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    for label in ("locks asked for", "granted twice", "never granted", "blocking ASTs", "Every lock was granted exactly once."):
        assert label in output


def test_a_signal_ends_the_demo_and_its_processes(start: Start, port: int) -> None:
    process = start("demo", "calls", "--workers", 50, "--locks", 10_000, "--kills", 0, "--json", "--port", port)
    assert process.stdout is not None
    started = json.loads(process.stdout.readline())
    assert sorted(started["processes"]) == ["127.0.0.1", "127.0.0.2"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert errors == "rdsx demo calls: interrupted; both processes have ended\n"
    for pid in started["processes"].values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


SERVER = """
import sys, trio, rdsx
async def main(port):
    async with rdsx.open_node("127.0.0.2", config=rdsx.NodeConfig(port=port)) as node:
        async with rdsx.open_courier(await node.bind(7000), config=rdsx.calls.CallConfig(serve_statistics=sys.argv[2] == "yes")):
            print("ready", flush=True)
            await trio.sleep_forever()
trio.run(main, int(sys.argv[1]))
"""


@pytest.fixture
def courier(port: int, request: pytest.FixtureRequest) -> object:
    """A courier at 127.0.0.2, RDS port 7000, in a process of its own."""
    allows = getattr(request, "param", "yes")
    with subprocess.Popen([sys.executable, "-P", "-c", SERVER, str(port), allows], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.usefixtures("courier")
def test_top_as_json(start: Start, port: int) -> None:
    process = start("calls", "top", "127.0.0.2", 7000, "-I", "127.0.0.3", "-c", 2, "-i", "0.01", "--json", "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    looks = [json.loads(line) for line in output.splitlines()]
    assert [look["counters"].get("handled_ok", 0) for look in looks] == [0, 1]
    assert looks[1]["peers"][0]["peer"].startswith("127.0.0.3:")


@pytest.mark.usefixtures("courier")
def test_top_for_people(start: Start, port: int) -> None:
    process = start("calls", "top", "127.0.0.2", 7000, "-I", "127.0.0.3", "-c", 2, "-i", "0.01", "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    for word in ("courier at 127.0.0.2, port 7000", "127.0.0.3:", "held", "copies", "sessions_confirmed"):
        assert word in output


@pytest.mark.parametrize("courier", ["no"], indirect=True)
@pytest.mark.usefixtures("courier")
def test_top_of_a_courier_that_does_not_allow_it(start: Start, port: int) -> None:
    process = start("calls", "top", "127.0.0.2", 7000, "-I", "127.0.0.3", "-c", 1, "--port", port)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert "serve_statistics" in errors


def test_top_from_the_couriers_own_address(port: int) -> None:
    result = CliRunner().invoke(main, ["calls", "top", "127.0.0.1", "7000", "-I", "127.0.0.1", "--port", str(port)])
    assert result.exit_code == 1
    assert "-I" in result.output


@pytest.mark.parametrize("arguments", [("demo", "calls", "--help"), ("calls", "--help"), ("calls", "top", "-h")])
def test_help(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_a_port_in_use_is_named(port: int) -> None:
    async def invoke() -> str:
        async with rdsx.open_node("127.0.0.1", config=rdsx.NodeConfig(port=port)):
            result = await trio.to_thread.run_sync(CliRunner().invoke, main, ["demo", "calls", "--port", str(port)])
            assert result.exit_code == 1
            return result.output

    assert f"TCP 127.0.0.1:{port} is in use" in trio.run(invoke)
