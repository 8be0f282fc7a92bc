"""What stands around the agent: the lock, the capabilities it needs, and what it tells systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rdmaip.cluster import config_text
from rdmaip.topology import Topology
from rdsx.rdmaip.capabilities import explain_missing, missing_capabilities
from rdsx.rdmaip.lock import AgentRunningError, take_lock
from rdsx.rdmaip.service import ServiceManager

GUARD_S = 20.0


def test_one_lock_for_each_network_namespace(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology("h1", "h2")
    with topology.hosts["h1"].inside():
        first = take_lock()
        with pytest.raises(AgentRunningError, match="another agent serves this network namespace"):
            take_lock()
    with topology.hosts["h2"].inside():
        take_lock().close()
    first.close()
    with topology.hosts["h1"].inside():
        take_lock().close()


# -- capabilities


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("0000000000003000", ()),
        ("000001ffffffffff", ()),
        ("0000000000001000", ("CAP_NET_RAW",)),
        ("0000000000002000", ("CAP_NET_ADMIN",)),
        ("0000000000000000", ("CAP_NET_ADMIN", "CAP_NET_RAW")),
    ],
)
def test_missing_capabilities(tmp_path: Path, effective: str, missing: tuple[str, ...]) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t000001ffffffffff\n")
    assert missing_capabilities(tmp_path) == missing


def test_explanation_names_what_is_missing_and_how_to_give_all() -> None:
    text = explain_missing(("CAP_NET_RAW",))
    assert text.startswith("this process lacks CAP_NET_RAW, to announce addresses to peers. Run it as root, or give")
    assert "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW" in text
    assert "--ambient-caps +net_admin,+net_raw" in text


# -- systemd


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def test_messages_to_systemd(systemd: socket.socket) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "5000000"})
    assert service.watchdog_interval_s == 2.5
    service.ready("4 addresses on 2 ports")
    service.status("one parked")
    service.alive()
    service.stopping()
    assert [systemd.recv(100) for _ in range(4)] == [
        b"READY=1\nSTATUS=4 addresses on 2 ports",
        b"STATUS=one parked",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]
    service.close()
    service.close()


def test_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel picks an abstract name
        sock.setblocking(False)
        service = ServiceManager({"NOTIFY_SOCKET": "@" + sock.getsockname()[1:].decode()})
        service.alive()
        assert sock.recv(100) == b"WATCHDOG=1"
        service.close()


def test_where_nobody_listens_nothing_happens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "absent"), "WATCHDOG_USEC": "0"}):
        service = ServiceManager(environment)
        assert service.watchdog_interval_s is None
        service.ready("")
        service.alive()
        service.close()


def test_another_process_watchdog_is_not_ours(systemd: socket.socket) -> None:
    mine = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "100", "WATCHDOG_PID": str(os.getpid())}
    for environment, interval_s in ((mine, 50e-6), (mine | {"WATCHDOG_PID": "1"}, None)):
        service = ServiceManager(environment)
        assert service.watchdog_interval_s == interval_s
        service.close()


@pytest.mark.slow
def test_the_agent_under_systemd(make_topology: Callable[..., Topology], systemd: socket.socket, tmp_path: Path) -> None:
    """READY when every address is where it should be, signs of life twice in the time that is given, STOPPING at SIGTERM."""
    host = make_topology("h1").hosts["h1"]
    file = tmp_path / "rdmaip.toml"
    file.write_text(config_text({"10.9.0.11/24": "p0", "10.9.0.12/24": "p1"}, control=str(tmp_path / "control.sock")))
    systemd.settimeout(GUARD_S)
    environment = os.environ | {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "100000"}
    with host.inside():
        command = [sys.executable, "-P", "-m", "rdsx.cli", "rdmaip", "run", str(file)]
        agent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    assert agent.stderr is not None
    with agent.stderr:
        assert systemd.recv(100) == b"READY=1\nSTATUS=2 addresses on 2 ports"
        assert host.addresses() == {"p0": {"10.9.0.11"}, "p1": {"10.9.0.12"}}
        assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        agent.terminate()
        while (message := systemd.recv(100)) != b"STOPPING=1":
            assert message == b"WATCHDOG=1"
        assert agent.wait(GUARD_S) == 0, agent.stderr.read()
