"""`rdsx rdmaip run` and the commands that talk to it, on a host that the test makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from rdmaip.topology import Host, Topology
from rdsx.cli.group import main
from rdsx.rdmaip.lock import is_locked

GUARD_S = 30.0
CONFIG = """
[rdmaip]
control = "{control}"
announce_at_ms = [0]
{extra}

[[group]]
name = "fabric"
ports = ["p0", "p1"]
subnets = ["10.9.0.0/24", "fd09::/64"]
address = [
  {{ ip = "10.9.0.11/24", home = "p0" }},
  {{ ip = "fd09::12/64", home = "p1" }},
]
"""


class Command:
    """Runs `rdsx rdmaip …` on a host, in processes."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.control = str(directory / "agent.sock")
        self.file = directory / "rdmaip.toml"
        self.processes: list[subprocess.Popen[str]] = []
        self.write("")

    def write(self, extra: str) -> None:
        self.file.write_text(CONFIG.format(control=self.control, extra=extra))

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "rdsx.cli", "rdmaip", *map(str, arguments)]
        with self.host.inside():
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=os.environ | {"COLUMNS": "150"}
            )
        self.processes.append(process)
        return process

    def ask(self, *arguments: object) -> str:
        """What a command says, asked from here: the socket is a file, and so in every namespace."""
        result = CliRunner().invoke(main, ["rdmaip", *map(str, arguments), "--control", self.control])
        assert result.exit_code == 0, result.output
        return result.output

    def ports(self) -> dict[str, list[str]]:
        """Where every managed address is, as the kernel says."""
        found: dict[str, list[str]] = {}
        for link in json.loads(self.host.ip_output("-j address")):
            for entry in link.get("addr_info", ()):
                if entry["local"].startswith(("10.9.", "fd09:")):
                    found.setdefault(f"{entry['local']}/{entry['prefixlen']}", []).append(link["ifname"])
        return found


@pytest.fixture
def command(make_topology: Callable[..., Topology], tmp_path: Path) -> Iterator[Command]:
    command = Command(make_topology("h1").hosts["h1"], tmp_path)
    yield command
    for process in command.processes:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str, lines: list[str]) -> None:
    """Read its log up to a line with these words."""
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return
    raise AssertionError(f"no {words!r} in {lines}")


def test_the_life_of_an_agent(command: Command) -> None:
    """Started, asked, ordered about, given another configuration, and ended with everything at home."""
    agent = command.start("run", command.file, "--metrics", "127.0.0.1:0")
    log: list[str] = []
    read_until(agent, "fd09::12 put on p1 (startup)", log)
    assert command.ports() == {"10.9.0.11/24": ["p0"], "fd09::12/64": ["p1"]}
    assert any("set net/ipv4/conf/p0/arp_ignore to 1" in line for line in log)

    monitor = command.start("monitor", "--control", command.control)
    assert monitor.stdout is not None
    assert monitor.stdout.readline() == "10.9.0.11 on p0: home\n"
    status = json.loads(command.ask("status", "--json"))
    assert [(each["ip"], each["state"]) for each in status["addresses"]] == [("10.9.0.11", "home"), ("fd09::12", "home")]
    assert "settled" in command.ask("status")

    assert command.ask("drain", "p0") == ""
    assert command.ports() == {"10.9.0.11/32": ["p1"], "fd09::12/64": ["p1"]}
    read_until(agent, "10.9.0.11 moved p0 -> p1 (drained)", log)
    command.ask("undrain", "p0")
    command.ask("move", "fd09::12", "p0")
    assert command.ports() == {"10.9.0.11/32": ["p1"], "fd09::12/128": ["p0"]}

    command.write('on_exit = "restore"')
    agent.send_signal(signal.SIGHUP)
    read_until(agent, "again", log)
    command.write("mark = 0")
    agent.send_signal(signal.SIGHUP)
    read_until(agent, "mark: must be a whole number in 1..255, not 0; going on with what was read before", log)

    agent.send_signal(signal.SIGTERM)
    output, _ = agent.communicate(timeout=GUARD_S)
    assert (agent.returncode, output) == (0, "")
    assert command.ports() == {"10.9.0.11/24": ["p0"], "fd09::12/64": ["p1"]}
    assert not os.path.exists(command.control)
    with command.host.inside():
        assert Path("/proc/sys/net/ipv4/conf/p0/arp_ignore").read_text() == "0\n"
    seen, errors = monitor.communicate(timeout=GUARD_S)
    assert (monitor.returncode, errors) == (0, "")
    assert "fd09::12 moved p1 -> p0 (operator)" in seen


def test_a_second_agent_is_refused(command: Command) -> None:
    with command.host.inside():
        assert not is_locked()
    agent = command.start("run", command.file)
    read_until(agent, "put on p1", [])
    with command.host.inside():
        assert is_locked()
        assert (
            "ok agent: one serves this network namespace already" in CliRunner().invoke(main, ["rdmaip", "check", str(command.file)]).output
        )
    second = command.start("run", command.file)
    _, errors = second.communicate(timeout=GUARD_S)
    assert second.returncode == 1
    assert errors.startswith("Error: another agent serves this network namespace")


def test_a_dry_run_changes_nothing(command: Command) -> None:
    agent = command.start("run", command.file, "--dry-run", "--metrics", "127.0.0.1:0")
    log: list[str] = []
    read_until(agent, "fd09::12 put on p1 (startup)", log)
    assert "would add 10.9.0.11/24 to p0\n" in log
    assert command.ports() == {}
    agent.send_signal(signal.SIGINT)
    agent.communicate(timeout=GUARD_S)
    assert agent.returncode == 0


def test_addresses_that_are_discovered(command: Command) -> None:
    command.host.ip("address add 10.9.0.21/24 dev p0")
    command.file.write_text(f'[rdmaip]\ncontrol = "{command.control}"\n[[group]]\nports = ["p0", "p1"]\naddress = "discover"\n')
    agent = command.start("run", command.file)
    read_until(agent, "port p0 settled", [])
    command.ask("drain", "p0")
    assert command.ports() == {"10.9.0.21/32": ["p1"]}
    agent.kill()
    agent.communicate()
    failed = command.start("run", command.file)
    _, errors = failed.communicate(timeout=GUARD_S)
    assert failed.returncode == 1
    assert "10.9.0.21 is a guest on p1, so its home is not known" in errors


def test_metrics_of_an_agent(command: Command) -> None:
    agent = command.start("run", command.file, "--metrics", "127.0.0.1:9474")
    read_until(agent, "metrics at http://127.0.0.1:9474/metrics", [])
    with command.host.inside(), urllib.request.urlopen("http://127.0.0.1:9474/metrics", timeout=GUARD_S) as answer:
        text = answer.read().decode()
    assert 'rdsx_rdmaip_address{home="p0",ip="10.9.0.11",port="p0",state="home"} 1.0' in text
