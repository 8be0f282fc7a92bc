"""`rdsx demo calls`, `rdsx calls top` and `rdsx calls dump` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

import rdsx
from rdsx.calls import CallConfig, IncomingCall, SqliteStore
from rdsx.cli.group import main
from rdsx.testing import VirtualNetwork

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


@pytest.mark.usefixtures("courier")
def test_top_tells_prometheus(start: Start, port: int) -> None:
    process = start("calls", "top", "127.0.0.2", 7000, "-I", "127.0.0.3", "-i", "0.01", "--json", "--port", port, "--metrics", 0)
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stderr.readline().removeprefix("metrics at ").strip()
    for _ in range(3):
        process.stdout.readline()
    with urllib.request.urlopen(url) as response:
        text = response.read().decode()
    samples = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert samples["rdsx_calls_sessions"].labels == {"courier": "127.0.0.2:7000"}
    assert samples["rdsx_calls_sessions"].value == 1
    assert samples["rdsx_calls_peer_floor_lag"].labels["peer"].startswith("127.0.0.3:")


@pytest.mark.usefixtures("courier")
def test_top_with_a_metrics_port_in_use(start: Start, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        process = start("calls", "top", "127.0.0.2", 7000, "-I", "127.0.0.3", "--port", port, "--metrics", number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert f"--metrics {number}: Address already in use" in errors


# -- dump


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Of a courier at 10.0.0.2 that died while a handler ran, with a result and a durable call of its own."""
    path = tmp_path / "calls.db"

    async def scenario(task_status: trio.TaskStatus[None]) -> None:
        network = VirtualNetwork(1)
        async with (
            rdsx.open_node("10.0.0.1", transport=network) as a,
            rdsx.open_node("10.0.0.2", transport=network) as b,
            rdsx.open_courier(await a.bind(7000), config=CallConfig(release_delay_s=60.0)) as caller,
            rdsx.open_courier(await b.bind(7000), store=SqliteStore(path)) as callee,
        ):

            async def handle(call: IncomingCall) -> bytes:
                if call.payload == b"long":
                    begun.set()
                    await trio.sleep_forever()
                return b"result"

            begun = trio.Event()
            callee.register(0x21, handle)
            callee.start_call(("10.0.0.9", 7000), 0x22, b"durable", durable=True)
            first, second = (caller.start_call(("10.0.0.2", 7000), 0x21, payload) for payload in (b"short", b"long"))
            await first.wait()
            await begun.wait()
            task_status.started()
            await second.wait()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(scenario)
            copy_files(tmp_path)
            nursery.cancel_scope.cancel()

    trio.run(main)
    return tmp_path / "killed-calls.db"


def copy_files(folder: Path) -> None:
    """As SIGKILL leaves them."""
    for each in sorted(folder.iterdir()):
        (folder / f"killed-{each.name}").write_bytes(each.read_bytes())


def dump(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["calls", "dump", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_dump_as_json(store: Path) -> None:
    before = store.read_bytes()
    records = [json.loads(line) for line in dump(store, "--json").splitlines()]
    assert store.read_bytes() == before
    kinds = {kind: [record for record in records if record["kind"] == kind] for kind in ("store", "session", "holder", "own call")}
    assert kinds["store"][0]["address"] == ["10.0.0.2", 7000]
    assert kinds["store"][0]["clean"] is False
    assert [session["address"] for session in kinds["session"]] == [["10.0.0.1", 7000]]
    done, running = kinds["holder"]
    assert (done["state"], done["code"], bytes.fromhex(done["reply"])) == ("done", "ok", b"result")
    assert (running["state"], running["code"], running["msg_type"]) == ("running", "", 0x21)
    assert [(call["seq"], bytes.fromhex(call["payload"])) for call in kinds["own call"]] == [(0, b"durable")]


def test_dump_for_people(store: Path) -> None:
    output = dump(store)
    for word in ("10.0.0.1:7000", "0x21", "running", "done", "6 bytes", "crashed", "own durable calls", "not sent", "10.0.0.9:7000"):
        assert word in output


def test_dump_of_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no store, however long it may be" * 100)
    result = CliRunner().invoke(main, ["calls", "dump", str(path)])
    assert result.exit_code == 1
    assert "no store of calls" in result.output
    assert [each.name for each in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("arguments", [("demo", "calls", "--help"), ("calls", "--help"), ("calls", "top", "-h"), ("calls", "dump", "-h")])
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
