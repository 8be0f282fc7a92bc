"""The systemd unit in contrib/: it must fit the agent, and what the agent needs must be let through."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from rdsx.cli.rdmaip import COMMANDS
from rdsx.cli.rdmaip.files import ConfigFileError
from rdsx.rdmaip.capabilities import NEEDED
from rdsx.rdmaip.config import DEFAULT_CONTROL

UNIT = Path(__file__).parents[2] / "contrib/rdsx-rdmaip.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    return unit["Service"]


def test_it_runs_the_agent(service: configparser.SectionProxy) -> None:
    program, group, command, file = shlex.split(service["ExecStart"])
    assert (Path(program).is_absolute(), Path(program).name, group, Path(file).is_absolute()) == (True, "rdsx", "rdmaip", True)
    assert command in COMMANDS
    assert "HUP" in service["ExecReload"]
    assert int(service["RestartPreventExitStatus"]) == ConfigFileError.exit_code
    assert service["Type"] == "notify"


def test_it_has_the_capabilities_that_are_needed_and_no_others(service: configparser.SectionProxy) -> None:
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert set(service[key].split()) == set(NEEDED)


def test_it_may_do_what_the_agent_does(service: configparser.SectionProxy) -> None:
    assert {"AF_NETLINK", "AF_PACKET", "AF_UNIX", "AF_INET", "AF_INET6"} == set(service["RestrictAddressFamilies"].split())
    assert service.get("ProtectKernelTunables", "no") == "no"  # it writes below /proc/sys/net
    assert Path("/run") / service["RuntimeDirectory"] == Path(DEFAULT_CONTROL).parent


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/rdsx", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert UNIT.name not in done.stderr
