"""`rdsx demo` as a user runs it: two node processes, a connection that is cut, and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
ENDLESS = ("--bytes", "2g", "--json")  # by far longer than any of these tests
TIMEOUT_S = 120
PROMPT_S = 10  # far above the promised second, for slow machines


def next_event(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name:
            return event
    raise AssertionError(f"no {name!r}: {process.communicate()[1]}")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_everything_arrives_once_in_order_while_the_connection_is_cut(start: Start, source: Path, port: int) -> None:
    process = start("demo", source, "--bytes", "4m", "--cuts", 3, "--json", "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert errors == ""
    result = json.loads(output.splitlines()[-1])
    assert result["ok"] is True
    assert result["sent"] == result["delivered"] > 1000
    assert (result["lost"], result["duplicated"], result["out_of_order"], result["corrupted"]) == (0, 0, 0, 0)
    assert result["cuts"] == 3
    assert result["reconnects"] >= 3
    assert result["files"] == result["files_verified"] > 0
    assert result["messages_per_s"] > 0
    assert 0 < result["latency_p50_us"] <= result["latency_p99_us"]
    assert 5 << 20 > result["delivered_bytes"] == result["sent_bytes"] > 3 << 20


def test_the_table(start: Start, source: Path, port: int) -> None:
    process = start("demo", source, "--bytes", "1m", "--cuts", 1, "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert errors == ""
    for label in ("messages sent", "lost", "duplicated", "out of order", "reconnects", "retransmissions", "messages/s", "MB/s", "p99"):
        assert label in output
    assert "every file with its SHA-256" in output


def test_the_seed_decides_what_is_sent(start: Start, source: Path, port: int) -> None:
    def sent(seed: int) -> tuple[int, int]:
        process = start("demo", source, "--bytes", "1m", "--cuts", 0, "--json", "--seed", seed, "--port", port)
        result = json.loads(process.communicate(timeout=TIMEOUT_S)[0].splitlines()[-1])
        return result["sent"], result["sent_bytes"]

    assert sent(7) == sent(7) != sent(8)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_its_processes(start: Start, port: int, signal_number: signal.Signals) -> None:
    process = start("demo", *ENDLESS, "--port", port)
    nodes = next_event(process, "started")["processes"]
    next_event(process, "progress")
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=PROMPT_S)
    assert process.returncode == 128 + signal_number
    assert errors == "rdsx demo: interrupted; both node processes have ended\n"
    assert sorted(nodes) == ["127.0.0.1", "127.0.0.2"]
    assert not any(is_running(pid) for pid in nodes.values())


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_node_process_that_dies_is_an_error_and_ends_the_other(start: Start, port: int, address: str) -> None:
    process = start("demo", *ENDLESS, "--port", port)
    nodes = next_event(process, "started")["processes"]
    os.kill(nodes[address], signal.SIGKILL)
    _, errors = process.communicate(timeout=PROMPT_S)
    assert process.returncode == 1
    assert errors == f"Error: the node process of {address} was killed by SIGKILL\n"
    assert not any(is_running(pid) for pid in nodes.values())


@pytest.mark.slow
def test_the_default_demo(start: Start, port: int) -> None:
    process = start("demo", "--json", "--port", port)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert result["reconnects"] >= 5
    assert result["delivered_bytes"] > 200 << 20
