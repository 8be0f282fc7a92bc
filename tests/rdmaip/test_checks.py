"""What `rdsx rdmaip check` finds: in made-up states, and on hosts that the test makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

from rdmaip.topology import Topology
from rdmaipkit import FakeHost, config_of
from rdsx.cli.group import main
from rdsx.rdmaip.checks import Finding, check_config, check_managers
from rdsx.rdmaip.facts import LinkType
from rdsx.rdmaip.surroundings import find_managers, is_clock_synchronised

INTERFACES = ("lo", "p0", "p1")


def texts(findings: list[Finding], level: str) -> list[str]:
    return [f"{each.subject}: {each.text}" for each in findings if each.level == level]


def test_a_host_where_all_is_well() -> None:
    host = FakeHost(config_of(2, 2))
    findings = check_config(host.config, host.snapshot(), INTERFACES)
    assert texts(findings, "ok") == ["p0: up, index 2, ethernet", "p1: up, index 3, ethernet"]
    assert len(findings) == 2


def test_ports_that_cannot_be_used() -> None:
    host = FakeHost(config_of(3, 1))
    host.change("p0", present=False)
    host.change("p1", admin=False, carrier=False)
    host.change("p2", carrier=False)
    findings = check_config(host.config, host.snapshot(), INTERFACES)
    assert texts(findings, "error") == ["p0: there is no such interface"]
    assert "interfaces are lo, p0, p1" in findings[0].remedy
    assert texts(findings, "warning") == ["p1: the interface is down", "p2: it has no link"]


def test_ports_that_do_not_belong_together() -> None:
    host = FakeHost(config_of(2, 1))
    host.change("p1", link_type=LinkType.INFINIBAND)
    assert texts(check_config(host.config, host.snapshot(), INTERFACES), "error") == [
        "fabric: addresses cannot move between different kinds of links: p0 is ethernet, p1 is infiniband"
    ]
    host.change("p1", link_type=LinkType.ETHERNET, tag=7)
    assert texts(check_config(host.config, host.snapshot(), INTERFACES), "warning") == [
        "fabric: addresses move only between ports of one VLAN or partition: p0 has none, p1 has 7"
    ]


def test_a_group_with_one_port() -> None:
    host = FakeHost(config_of(1, 1))
    assert texts(check_config(host.config, host.snapshot(), INTERFACES), "warning") == ["fabric: with one port there is nowhere to go"]


def test_addresses_that_are_somewhere_else() -> None:
    host = FakeHost(config_of(2, 2))
    host.put("10.9.0.1", "lo", 32, mark=4)
    host.put("fd09::2", "p1", 48)
    host.put("10.9.0.99", "p0", 24)  # not ours
    findings = check_config(host.config, host.snapshot(), INTERFACES)
    assert texts(findings, "error") == ["10.9.0.1: it is on lo, which is no port of its group"]
    assert texts(findings, "warning") == ["fd09::2: it is on p1 with prefix length 48, and /64 in the file; it is left so"]


def test_network_managers(tmp_path: Path) -> None:
    """As systemd-networkd 252 and NetworkManager 1.42 write their state."""
    networkd, manager = tmp_path / "run/systemd/netif/links", tmp_path / "run/NetworkManager/devices"
    networkd.mkdir(parents=True)
    manager.mkdir(parents=True)
    (networkd / "2").write_text("# private\nADMIN_STATE=configured\nOPER_STATE=routable\n")
    (networkd / "3").write_text("ADMIN_STATE=unmanaged\n")
    (manager / "4").write_text("[device]\nmanaged=true\nconnection-uuid=x\n")
    (manager / "5").write_text("[device]\nmanaged=false\n")
    found = find_managers({"p2": 2, "p3": 3, "p4": 4, "p5": 5, "p6": 6}, tmp_path)
    assert found == {"p2": "systemd-networkd", "p4": "NetworkManager"}
    first, second = check_managers(found)
    assert (first.level, first.subject) == ("warning", "p2")
    assert "KeepConfiguration" in first.remedy
    assert second.remedy == "run: nmcli device set p4 managed no"


def test_the_clock_can_be_asked() -> None:
    assert is_clock_synchronised() in (True, False)


# -- the command


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["rdmaip", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def written(directory: Path, text: str) -> Path:
    path = directory / "rdmaip.toml"
    path.write_text(text)
    return path


def test_without_privileges(tmp_path: Path) -> None:
    """On the loopback interface, which every host has and nobody has to change."""
    path = written(
        tmp_path, '[rdmaip]\nsysctl = "ignore"\n[[group]]\nports = ["lo", "nosuch0"]\naddress = [{ ip = "10.99.9.9/32", home = "lo" }]'
    )
    result = invoke("check", path)
    assert result.exit_code == 1
    assert "ok lo: up, index 1" in result.output
    assert "error nosuch0: there is no such interface (interfaces are " in result.output
    assert "add 10.99.9.9/32 to lo (startup)" in result.output


def test_a_configuration_that_cannot_be_discovered(tmp_path: Path) -> None:
    path = written(tmp_path, '[[group]]\nports = ["nosuch0"]\naddress = "discover"')
    findings = json.loads(invoke("check", path, "--json").output)["findings"]
    assert findings[-1]["text"].startswith("the ports of group 'group1' have no address")


def test_on_a_host_of_two_ports(make_topology: Callable[..., Topology], tmp_path: Path) -> None:
    topology = make_topology("h1", "h2")
    host = topology.hosts["h1"]
    path = written(
        tmp_path,
        '[rdmaip]\nfailback_sync_s = 0\n[[group]]\nname = "fabric"\nports = ["p0", "p1"]\naddress = [{ ip = "10.9.0.11/24", home = "p0" }]',
    )
    with host.inside():
        result = invoke("check", path)
        assert result.exit_code == 0, result.output
        assert "ok p0: up" in result.output
        assert "warning p0: net/ipv4/conf/p0/arp_ignore is 0, must be 1" in result.output
        assert "(the agent sets it)" in result.output
        assert "add 10.9.0.11/24 to p0 (startup)" in result.output
        saved = tmp_path / "state.json"
        live = invoke("plan", path, "--save-state", saved, "--down", "p0")
        assert "add 10.9.0.11/32 to p1 (carrier)" in live.output
        assert invoke("plan", path, "--state", saved, "--down", "p0").output == live.output
