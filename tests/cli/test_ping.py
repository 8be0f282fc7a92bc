"""`rdsx ping` and `rdsx serve`: real nodes on loopback addresses, and the lines they print."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import trio

import rdsx
from rdsx.cli.ping import Tally, print_answer

Start = Callable[..., "subprocess.Popen[str]"]
TIMEOUT_S = 60
LINE = re.compile(r" +(\d+): \d+ usec")


async def ping(command: list[str], *arguments: object, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(TIMEOUT_S):
        return await trio.run_process(
            [*command, "ping", *map(str, arguments)], capture_stdout=True, capture_stderr=True, check=check
        )  # fmt: skip


@pytest.mark.parametrize(("server", "client"), [("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")])
async def test_a_node_answers(rdsx_command: list[str], port: int, server: str, client: str) -> None:
    async with rdsx.open_node(server, config=rdsx.NodeConfig(port=port)) as node:
        done = await ping(rdsx_command, server, "-I", client, "-c", 20, "-i", "200ms", "--port", port)
        assert node.statistics().counters["recv_ping"] >= 20
    lines = done.stdout.decode().splitlines()
    assert [int(match[1]) for line in lines if (match := LINE.fullmatch(line))] == list(range(1, 21))
    assert lines[0].startswith("   1: ")
    assert lines[20] == f"--- {server}: 20 sent, 20 received, 0 lost"
    assert re.fullmatch(r"    min/p50/p90/p99/max \d+/\d+/\d+/\d+/\d+ usec", lines[21])
    assert len(lines) == 22
    assert done.stderr == b""


async def test_the_summary_for_programs(rdsx_command: list[str], port: int) -> None:
    async with rdsx.open_node("127.0.0.2", config=rdsx.NodeConfig(port=port)):
        done = await ping(rdsx_command, "127.0.0.2", "-c", 9, "-i", "200ms", "--port", port, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["number"] for event in events[:-1]] == list(range(1, 10))
    summary = events[-1]
    assert (summary["sent"], summary["received"], summary["lost"], summary["duplicates"]) == (9, 9, 0, 0)
    assert 0 < summary["min_usec"] <= summary["p50_usec"] <= summary["p90_usec"] <= summary["p99_usec"] <= summary["max_usec"]


async def test_pings_as_fast_as_answers_come(rdsx_command: list[str], port: int) -> None:
    """Each of the eight sockets waits for its answer: none is given up because the interval is short."""
    async with rdsx.open_node("127.0.0.2", config=rdsx.NodeConfig(port=port)):
        done = await ping(rdsx_command, "127.0.0.2", "-c", "1k", "-i", "1us", "--port", port, "--json")
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["sent"] == 1000
    assert summary["lost"] <= 8  # the last ones are only waited for as long as the interval


async def test_a_node_pings_itself(rdsx_command: list[str], port: int) -> None:
    done = await ping(rdsx_command, "127.0.0.1", "-c", 3, "-i", "200ms", "--port", port)
    assert b"3 sent, 3 received, 0 lost" in done.stdout


async def test_a_name_is_looked_up(rdsx_command: list[str], port: int) -> None:
    done = await ping(rdsx_command, "localhost", "-I", "127.0.0.1", "-c", 1, "-i", "1", "--port", port)
    assert b"--- localhost: 1 sent, 1 received, 0 lost" in done.stdout


async def test_nobody_answers(rdsx_command: list[str], port: int) -> None:
    done = await ping(rdsx_command, "127.0.0.2", "-c", 3, "-i", "50ms", "--port", port, check=False)
    assert done.returncode == 1
    assert done.stdout.decode() == "--- 127.0.0.2: 3 sent, 0 received, 3 lost\n"


async def test_nobody_answers_more_pings_than_there_are_sockets(rdsx_command: list[str], port: int) -> None:
    done = await ping(rdsx_command, "127.0.0.2", "-c", 10, "-i", "1ms", "--port", port, "--json", check=False)
    assert done.returncode == 1
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["sent"], summary["received"], summary["min_usec"], summary["p99_usec"]) == (10, 0, None, None)


def test_the_node_that_serve_opens(start: Start, port: int) -> None:
    server = start("serve", "127.0.0.2", "--port", port, "--json")
    assert server.stdout is not None
    assert json.loads(server.stdout.readline()) == {"event": "listening", "local": "127.0.0.2", "port": port}
    client = start("ping", "127.0.0.2", "-c", 2, "-i", ".1", "--port", port)
    output, errors = client.communicate(timeout=TIMEOUT_S)
    assert client.returncode == 0, errors
    assert "2 received" in output
    up: dict[str, Any] = json.loads(server.stdout.readline())
    assert (up["event"], up["peer"], up["kind"]) == ("peer_up", "127.0.0.1", "rdsx")
    assert json.loads(server.stdout.readline())["event"] == "peer_down"
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=TIMEOUT_S)
    assert (server.returncode, errors) == (130, "")


def test_an_interrupt_still_prints_the_summary(start: Start, port: int) -> None:
    process = start("ping", "127.0.0.1", "-i", ".01", "--port", port)
    assert process.stdout is not None
    assert LINE.fullmatch(process.stdout.readline().rstrip())
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    assert "--- 127.0.0.1: " in output


def test_the_lines_are_those_of_rds_ping(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(print_answer)
    tally.answered(1, 123_456, None, duplicate=False)
    tally.answered(1, 130_000, None, duplicate=True)
    tally.answered(12, 999, "10.0.0.9", duplicate=False)
    tally.answered(1234, 5_000_000_000, "10.0.0.9", duplicate=True)
    tally.failed(13, 7_000, OSError(errno.ENETUNREACH, "Network is unreachable"))
    assert capsys.readouterr().out.splitlines() == [
        "   1: 123 usec",
        "   1: 130 usec DUP!",
        "  12: 0 usec (10.0.0.9)",
        " 1234: 5000000 usec (10.0.0.9) DUP!",
        "  13: 7 usec ERROR: Network is unreachable",
    ]
    summary = tally.summary()
    assert (summary["received"], summary["duplicates"], summary["errors"]) == (2, 2, 1)


def test_einval_is_remarked_upon_once(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(print_answer)
    for number in (1, 2):
        tally.failed(number, 0, OSError(errno.EINVAL, "Invalid argument"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("      ") for line in lines] == [False, True, False]
