"""The control socket: what it answers, what it refuses, and that nobody can make it crash, hang or grow."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from click.testing import CliRunner, Result

from rdmaipkit import FakeControlled, FakeHost, config_of
from rdsx.cli.group import main
from rdsx.cli.rdmaip.asking import _ask
from rdsx.cli.rdmaip.status import watch_status
from rdsx.cli.running import CliError
from rdsx.rdmaip.balance import GroupAddress, addresses, group_addresses, pick_local, read_speed_mbps
from rdsx.rdmaip.control import MAX_CONNECTIONS, MAX_LINE_BYTES, open_listener, serve_control
from rdsx.rdmaip.control_client import ControlError, open_control
from rdsx.rdmaip.facts import Drain, Undrain

GUARD_S = 20


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "rdmaip.sock")


@contextlib.asynccontextmanager
async def serving(path: str, host: FakeHost | None = None) -> AsyncIterator[FakeControlled]:
    controlled = FakeControlled(host or FakeHost(config_of(2, 2)))
    with trio.fail_after(GUARD_S), open_listener(path) as listener:
        async with trio.open_nursery() as tasks:
            await tasks.start(serve_control, listener, controlled)
            yield controlled
            tasks.cancel_scope.cancel()


# -- answers


async def test_status(path: str) -> None:
    async with serving(path), open_control(path) as client:
        status = (await client.request("status"))["status"]
        assert [(port["name"], port["usable"], port["addresses"]) for port in status["ports"]] == [
            ("p0", True, ["10.9.0.1"]),
            ("p1", True, ["fd09::2"]),
        ]
        assert [(each["ip"], each["state"], each["ports"]) for each in status["addresses"]] == [
            ("10.9.0.1", "home", ["p0"]),
            ("fd09::2", "home", ["p1"]),
        ]
        assert status["done_actions"] == {"AddAddress": 2, "EnsureRoutes": 2, "SwitchRule": 2, "Announce": 2}
        assert status["events"][-1]["text"] == "fd09::2 put on p1 (startup)"


async def test_orders_are_carried_out_before_they_are_answered(path: str) -> None:
    async with serving(path) as controlled, open_control(path) as client:
        for op, arguments, where in [
            ("move", {"ip": "10.9.0.1", "port": "p1"}, ["p1"]),
            ("failback", {"ip": "10.9.0.1"}, ["p0"]),
            ("drain", {"port": "p0"}, ["p1"]),
            ("undrain", {"port": "p0"}, ["p1"]),
            ("failback", {}, ["p0"]),
            ("trigger", {}, ["p0"]),
        ]:
            assert await client.request(op, **arguments) == {"ok": True}
            assert controlled.agent.host.ports_of("10.9.0.1") == where, op
        await client.request("move", ip="FD09::0002", port="p0")
        assert controlled.agent.host.ports_of("fd09::2") == ["p0"]


async def test_events_after_a_status(path: str) -> None:
    async with serving(path) as controlled, open_control(path) as client, open_control(path) as operator:
        answer = await client.request("subscribe")
        assert answer["status"]["addresses"][0]["state"] == "home"
        await operator.request("drain", port="p0")
        controlled.end()
        events = [event async for event in client.events()]
        assert [event["event"] for event in events] == ["PortDown", "Moved"]
        assert events[1] == {
            "event": "Moved", "ip": "10.9.0.1", "from_port": "p0", "to_port": "p1", "reason": "drained", "at_s": 0.0, "outage_s": 0.0,
            "text": "10.9.0.1 moved p0 -> p1 (drained)",
        }  # fmt: skip


# -- refusals


@pytest.mark.parametrize(
    ("op", "arguments", "said"),
    [
        ("move", {"ip": "10.9.0.7", "port": "p1"}, "10.9.0.7 is not a managed address; those are 10.9.0.1, fd09::2"),
        ("move", {"ip": "10.9.0.1", "port": "p7"}, "p7 is not a port of any group; those are p0, p1"),
        ("move", {"ip": "10.9.0", "port": "p1"}, "'10.9.0' is not an IPv4 or IPv6 address"),
        ("move", {"ip": "10.9.0.1"}, "'move' cannot be done so; operations are status, subscribe, trigger"),
        ("drain", {"port": "p7"}, "p7 is not a port of any group"),
        ("explode", {}, "'explode' cannot be done so"),
    ],
)
async def test_what_cannot_be_done(path: str, op: str, arguments: dict[str, str], said: str) -> None:
    async with serving(path), open_control(path) as client:
        with pytest.raises(ControlError) as caught:
            await client.request(op, **arguments)
        assert said in str(caught.value)
        assert (await client.request("status"))["ok"]


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"op": 5}', b"[" * 4000, b"\xff\xfe", b'"op"', b"null"])
async def test_what_is_no_request(path: str, line: bytes) -> None:
    async with serving(path):
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(line + b"\n" + b'{"op": "status"}\n')
            answers = await read_lines(stream, 2)
        assert answers[0] == {"ok": False, "error": 'a request is a JSON object with "op", such as {"op": "status"}'}
        assert answers[1]["ok"]


async def read_lines(stream: trio.SocketStream, count: int) -> list[Any]:
    data = b""
    while data.count(b"\n") < count:
        more = await stream.receive_some()
        assert more
        data += more
    return [json.loads(line) for line in data.splitlines()]


async def test_a_request_without_end_is_cut_off(path: str) -> None:
    async with serving(path):
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(b"x" * (2 * MAX_LINE_BYTES))
            assert "at most 4096 bytes" in (await read_lines(stream, 1))[0]["error"]
            with contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""


async def test_too_many_connections(path: str) -> None:
    """Further ones are closed; when one ends, there is room again."""
    async with serving(path), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_control(path)) for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            await client.request("status")
        async with open_control(path) as late:
            with pytest.raises(ControlError, match="it may have too many"):
                await late.request("status")
        await clients[0]._stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        async with open_control(path) as next_one:
            assert (await next_one.request("status"))["ok"]


async def test_a_subscriber_that_does_not_read_holds_up_nobody(path: str) -> None:
    async with serving(path) as controlled, open_control(path) as client:
        await client.request("subscribe")
        for _ in range(1000):
            controlled.command(Drain("p0"))
            controlled.command(Undrain("p0"))
            await trio.lowlevel.checkpoint()
        async with open_control(path) as other:
            assert (await other.request("status"))["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_others_may_look_and_not_touch() -> None:
    """As the kernel names the peer, whatever the file's mode lets through."""
    program = """
import json, os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    for op in ("status", "trigger"):
        sock.sendall(json.dumps({"op": op}).encode() + b"\\n")
        print(sock.makefile().readline(), end="", flush=True)
"""

    async def run(path: str) -> list[Any]:
        async with serving(path):
            os.chmod(path, 0o666)
            done = await trio.to_thread.run_sync(
                lambda: subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, cwd="/")
            )
            return [json.loads(line) for line in done.stdout.splitlines()]

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        looked, touched = trio.run(run, f"{directory}/rdmaip.sock")
    assert looked["ok"]
    assert touched == {"ok": False, "error": "only root and the agent's own user may trigger; you are uid 65534"}


# -- the socket file


def test_the_file_is_for_owner_and_group(path: str) -> None:
    before = os.umask(0)
    try:
        with open_listener(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    finally:
        os.umask(before)
    assert not os.path.exists(path)


def test_a_file_that_a_dead_agent_left_is_replaced(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with open_listener(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_an_agent_that_lives_is_not_replaced(path: str) -> None:
    with open_listener(path):
        with pytest.raises(OSError, match="another agent listens there"), open_listener(path):
            pass
        assert os.path.exists(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(OSError, match="no socket; see the setting `control`"), open_listener(str(file)):
        pass
    assert file.read_text() == "data"


async def test_no_agent(path: str) -> None:
    with pytest.raises(ControlError, match=r"no agent listens there; start one with `rdsx rdmaip run FILE`"):
        async with open_control(path):
            pass


# -- commands, with a server in another thread: they handle signals, which is for the main one


@pytest.fixture
def served(path: str) -> Iterator[str]:
    ready, scope = threading.Event(), trio.CancelScope()
    token: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        with scope:
            host = FakeHost(config_of(2, 2))
            host.change("p1", carrier=False)
            async with serving(path, host):
                token.append(trio.lowlevel.current_trio_token())
                ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(GUARD_S)
    yield path
    token[0].run_sync_soon(scope.cancel)
    thread.join(GUARD_S)


def invoke(*arguments: object) -> Result:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(main, ["rdmaip", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_status_as_tables(served: str) -> None:
    result = invoke("status", "--control", served)
    assert result.exit_code == 0
    for words in ("p0", "settled", "down: carrier", "10.9.0.1", "home", "fd09::2", "guest", "ago: port p0 up after"):
        assert words in result.output


def test_status_as_json(served: str) -> None:
    status = json.loads(invoke("status", "--json", "--control", served).output)
    assert [each["state"] for each in status["addresses"]] == ["home", "guest"]


@pytest.mark.parametrize("as_json", [True, False])
async def test_watching(as_json: bool, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    """A look each second; the agent ends after the third."""
    looks: list[float] = []
    controlled = FakeControlled(FakeHost(config_of(2, 2)))

    class Client:
        async def request(self, op: str) -> dict[str, Any]:
            assert op == "status"
            looks.append(trio.current_time())
            if len(looks) > 3:
                raise ControlError("the agent has ended")
            return {"ok": True, "status": controlled.status().as_json()}

    with pytest.raises(ControlError):
        await watch_status(Client(), as_json)  # type: ignore[arg-type]
    assert [at_s - looks[0] for at_s in looks] == [0, 1, 2, 3]
    output = capsys.readouterr().out
    if as_json:
        assert [json.loads(line)["addresses"][0]["ip"] for line in output.splitlines()] == ["10.9.0.1"] * 3
    else:
        assert "10.9.0.1" in output


async def test_an_agent_that_does_not_answer(path: str, autojump_clock: trio.testing.MockClock) -> None:
    with open_listener(path), pytest.raises(CliError, match="did not answer within 10 s"):
        await _ask(path, "status", {})


def test_orders(served: str) -> None:
    for order in (("drain", "p1"), ("undrain", "p1"), ("move", "10.9.0.1", "p0"), ("failback", "10.9.0.1"), ("failback",), ("trigger",)):
        result = invoke(*order, "--control", served)
        assert (result.exit_code, result.output) == (0, ""), order
    result = invoke("move", "10.9.0.1", "p1", "--control", served)
    assert result.exit_code == 1
    assert result.output == "Error: p1 cannot be used now: carrier is clear; name another port, or wait\n"


@pytest.mark.parametrize("command", [("status",), ("monitor",), ("trigger",), ("drain", "p0")])
def test_commands_without_an_agent(command: tuple[str, ...], path: str) -> None:
    result = invoke(*command, "--control", path)
    assert result.exit_code == 1
    assert f"Error: control socket {path}: no agent listens there" in result.output


# -- spreading


async def test_addresses_of_a_group(path: str) -> None:
    host = FakeHost(config_of(2, 3))
    host.change("p1", carrier=False)
    async with serving(path, host):
        found = await addresses("fabric", control=path)
        assert [(each.ip, each.port, each.is_guest, each.is_usable) for each in found] == [
            ("10.9.0.1", "p0", False, True),
            ("fd09::2", "p0", True, True),
            ("10.9.0.3", "p0", False, True),
        ]
        with pytest.raises(ControlError, match="there is no group 'x'; those are fabric"):
            await addresses("x", control=path)


def status_with(**ports: tuple[bool, list[str]]) -> dict[str, Any]:
    """Ports with whether they can be used, and their addresses; every address is at home."""
    return {
        "ports": [{"name": name, "usable": usable, "addresses": ips} for name, (usable, ips) in ports.items()],
        "addresses": [{"ip": ip, "group": "g", "home": name, "ports": [name]} for name, (_, ips) in ports.items() for ip in ips],
    }


def test_the_least_loaded_comes_first() -> None:
    status = status_with(p0=(True, ["10.0.0.1", "10.0.0.2"]), p1=(True, ["10.0.0.3"]), p2=(False, ["10.0.0.4"]))
    found = group_addresses(status, "g", {"p0": 100_000, "p1": 25_000})
    assert [(each.ip, each.weight, each.is_usable) for each in found] == [
        ("10.0.0.1", 50_000, True), ("10.0.0.2", 50_000, True), ("10.0.0.3", 25_000, True), ("10.0.0.4", 1, False),
    ]  # fmt: skip
    assert group_addresses(status, "other", {}) == []


def usable(ip: str, weight: float = 1.0) -> GroupAddress:
    return GroupAddress(ip, "p0", "p0", False, True, weight)


def test_picking_by_the_pair() -> None:
    """The same from both ends, spread, and only what must moves when an address cannot be used."""
    ours = [usable(f"10.0.0.{n}") for n in range(1, 5)]
    peers = [f"10.0.1.{n}" for n in range(200)]
    picked = {peer: pick_local(ours, peer) for peer in peers}
    assert all(30 <= list(picked.values()).count(each.ip) <= 70 for each in ours)
    left = ours[1:]
    for peer in peers:
        if picked[peer] != ours[0].ip:
            assert pick_local(left, peer) == picked[peer]
    assert pick_local([usable("10.0.0.1")], "10.0.0.2") == "10.0.0.1"


def test_picking_what_is_used_least() -> None:
    ours = [usable("10.0.0.1", 100), usable("10.0.0.2", 50)]
    used: dict[str, float] = {}
    for _ in range(30):
        ip = pick_local(ours, "10.0.1.1", used=used)
        used[ip] = used.get(ip, 0) + 1
    assert used == {"10.0.0.1": 20, "10.0.0.2": 10}


def test_picking_among_none() -> None:
    with pytest.raises(ValueError, match=r"no usable IPv6 address among 10\.0\.0\.1"):
        pick_local([usable("10.0.0.1")], "fd00::1")
    with pytest.raises(ValueError, match="does not appear to be"):
        pick_local([usable("10.0.0.1")], "nowhere")


def test_the_speed_of_a_port(tmp_path: Path) -> None:
    for name, text in (("p0", "25000\n"), ("p1", "-1\n"), ("p2", "?")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(text)
    assert [read_speed_mbps(name, tmp_path) for name in ("p0", "p1", "p2", "p3")] == [25000, 1, 1, 1]
