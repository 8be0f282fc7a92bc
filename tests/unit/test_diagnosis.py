"""What `rdsx doctor` finds on made-up machines, and what it makes of it for each transport."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from machinekit import add_device, add_modules, write_files
from rdsx import diagnosis, machine
from rdsx.cli.group import main
from rdsx.diagnosis import Diagnosis, Finding, Meaning
from rdsx.machine import InterfaceAddress, Listener
from rdsx.transports.verbs.devices import list_devices


def levels(finding: Finding) -> dict[str, str]:
    return {meaning.transport: meaning.level for meaning in finding.meanings}


# -- facts


def test_modules(tmp_path: Path) -> None:
    add_modules(tmp_path, "rds", "rds_tcp", "ext4")
    assert machine.loaded_modules(diagnosis.MODULES, tmp_path) == ["rds", "rds_tcp"]


@pytest.mark.parametrize(("capabilities", "bound"), [("0000000000000000", True), ("0000000000004000", False), ("000001ffffffffff", False)])
def test_who_may_lock_memory_without_limit(capabilities: str, bound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"proc/self/status": f"Name:\tpython\nCapEff:\t{capabilities}\n"})
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (8192, 8192))
    assert machine.locked_memory_bytes(tmp_path) == (8192 if bound else None)


def test_a_limit_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (machine.resource.RLIM_INFINITY,) * 2)
    assert machine.locked_memory_bytes(tmp_path) is None


ADDRESSES = json.dumps(
    [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {"ifname": "eth0", "addr_info": [{"local": "10.77.0.2", "scope": "global"}, {"local": "fe80::1", "scope": "link"}, {}]},
        {"ifname": "down"},
    ]
)


def test_addresses() -> None:
    assert machine.interface_addresses(ADDRESSES) == [InterfaceAddress("127.0.0.1", "lo"), InterfaceAddress("10.77.0.2", "eth0")]
    assert machine.interface_addresses("no JSON") == []


@pytest.mark.skipif(shutil.which("ip", path=machine.PATH) is None, reason="iproute2 is not installed")
def test_addresses_of_this_machine() -> None:
    assert InterfaceAddress("127.0.0.1", "lo") in machine.interface_addresses()


# As `rdma -j resource show cm_id` of iproute2 6.1 prints it.
CM_IDS = """[
{"ifindex":0,"ifname":"rxe0","cm-idn":0,"state":"LISTEN","ps":"TCP","comm":"rds_rdma","src-addr":"0.0.0.0:18634"},
{"ifindex":0,"ifname":"rxe0","cm-idn":1,"state":"LISTEN","ps":"TCP","comm":"rds_rdma","src-addr":":::16385"},
{"ifindex":0,"ifname":"rxe0","cm-idn":2,"state":"CONNECT","ps":"TCP","pid":7,"comm":"rping","src-addr":"10.0.0.1:9","dst-addr":"10.0.0.2:18634"},
{"ifindex":1,"ifname":"rxe1","cm-idn":3,"state":"LISTEN","ps":"TCP","comm":"rds_rdma","src-addr":"0.0.0.0:18634"},
{"ifindex":1,"ifname":"rxe1","cm-idn":4,"state":"LISTEN","ps":"TCP","src-addr":"10.0.0.1:7174"}]"""


def test_cm_listeners() -> None:
    """One for each port, on however many devices."""
    assert machine.cm_listeners(CM_IDS) == [
        Listener("10.0.0.1", 7174, None),
        Listener("::", 16385, "rds_rdma"),
        Listener("0.0.0.0", 18634, "rds_rdma"),
    ]
    assert machine.cm_listeners("[]") == []


def test_a_real_tcp_listener_and_its_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = server.getsockname()[1]
        assert machine.tcp_listeners(port) == [Listener("127.0.0.1", port, Path("/proc/self/comm").read_text().strip())]
        assert [one.address for one in machine.tcp_listeners(other.getsockname()[1])] == ["::1"]
    assert machine.tcp_listeners(port) == []


def test_a_listener_that_is_nobodys(tmp_path: Path) -> None:
    """A socket of the kernel's is in nobody's table of files."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    entry = "   0: 00000000000000000000000000000000:4001 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 10291 1 0 100 0 0 10 0\n"
    write_files(tmp_path, {"proc/net/tcp6": head + entry, "proc/net/tcp": head})
    assert machine.tcp_listeners(16385, tmp_path) == [Listener("::", 16385, None)]


# -- meanings


def test_no_rds_in_the_kernel() -> None:
    finding = diagnosis.module_finding([])
    assert levels(finding) == {"kernel": "obstacle"}
    assert "modprobe rds_tcp" in finding.meanings[0].remedy


def test_rds_in_the_kernel_is_in_the_way_of_ours() -> None:
    assert levels(diagnosis.module_finding(["rds", "rds_tcp"])) == {"kernel": "ok", "tcp": "note"}
    assert levels(diagnosis.module_finding(["rds", "rds_rdma"])) == {"kernel": "ok", "verbs": "note"}


def test_the_tcp_port() -> None:
    def finding(*addresses: str, modules: tuple[str, ...] = (), port: int = 16385) -> Finding:
        return diagnosis.tcp_listener_finding(port, [Listener(address, port, None) for address in addresses], modules)

    assert levels(finding()) == {"tcp": "ok"}
    assert levels(finding("10.0.0.1")) == {"tcp": "note"}
    assert levels(finding("10.0.0.1", "::")) == {"tcp": "obstacle"}
    assert "10.0.0.1: not to be seen by this user" in finding("10.0.0.1").found
    assert finding("::", modules=("rds_tcp",)).found == "::: the kernel's rds_tcp"
    assert "not to be seen" in finding("::", modules=("rds_tcp",), port=4000).found


def test_the_ports_of_rdma() -> None:
    taken = diagnosis.cm_listener_finding(machine.cm_listeners(CM_IDS), True)
    assert levels(taken) == {"verbs": "obstacle"}
    assert "modprobe -r rds_rdma" in taken.meanings[0].remedy
    assert taken.details["listeners"] == [
        {"address": "::", "port": 16385, "program": "rds_rdma"},
        {"address": "0.0.0.0", "port": 18634, "program": "rds_rdma"},
    ]
    other = diagnosis.cm_listener_finding([Listener("10.0.0.1", 18634, "rping")], True)
    assert other.meanings[0].remedy == "stop that program"
    assert levels(diagnosis.cm_listener_finding([], True)) == {"verbs": "ok"}
    assert diagnosis.cm_listener_finding(None, True).found == "not known: no 'rdma' program of iproute2"
    assert diagnosis.cm_listener_finding(None, False).meanings == ()


def test_which_device_has_which_address(tmp_path: Path) -> None:
    add_device(tmp_path)
    add_device(tmp_path, "mlx5_0", link_layer="InfiniBand", gids={0: ("fe80::1", "")}, interfaces=("ib0",), node="uverbs1")
    devices = list_devices(tmp_path)
    addresses = [InterfaceAddress("10.77.0.2", "eth0"), InterfaceAddress("10.8.0.1", "ib0"), InterfaceAddress("127.0.0.1", "lo")]
    finding = diagnosis.address_finding(addresses, devices, ["rds_rdma"])
    assert finding.details["devices"] == {"10.77.0.2": "rxe0", "10.8.0.1": "mlx5_0", "127.0.0.1": None}
    assert levels(finding) == {"tcp": "ok", "verbs": "ok", "kernel": "note"}
    # On RoCE an address counts when the device has it as a GID, not when it is on the same interface.
    assert levels(diagnosis.address_finding([InterfaceAddress("10.77.0.3", "eth0")], devices, [])) == {"tcp": "ok", "verbs": "obstacle"}
    assert diagnosis.address_finding([], [], []).found == "not known: no 'ip' program"


def test_locked_memory() -> None:
    assert levels(diagnosis.locked_memory(None)) == {"verbs": "ok"}
    enough = diagnosis.locked_memory(8 * 1024 * 1024)
    assert (levels(enough), "rings of 1 peers" in enough.meanings[0].text) == ({"verbs": "note"}, True)
    assert levels(diagnosis.locked_memory(65536)) == {"verbs": "obstacle"}


def test_devices(tmp_path: Path) -> None:
    assert levels(diagnosis.device_finding([], tmp_path)) == {"verbs": "obstacle"}
    add_device(tmp_path)
    add_device(tmp_path, "siw0", node_type="4: RNIC", node="uverbs1")
    add_device(tmp_path, "rxe1", node="")
    finding = diagnosis.device_finding(list_devices(tmp_path), tmp_path)
    assert [meaning.level for meaning in finding.meanings] == ["ok", "note", "note"]
    assert finding.found.startswith("rxe0 (port 1 ACTIVE, Ethernet, 2.5 Gb/sec (1X SDR)); ")
    assert finding.details["devices"][0]["ports"][0]["gids"][1] == {
        "index": 1,
        "gid": "::ffff:a4d:2",
        "address": "10.77.0.2",
        "type": "RoCE v2",
        "interface": "eth0",
    }


def test_a_transport_works_unless_something_is_in_its_way() -> None:
    findings = (
        Finding("one", "found", (Meaning("tcp", "note", "fine"), Meaning("verbs", "obstacle", "lacks one", "get it"))),
        Finding("two", "found", (Meaning("verbs", "obstacle", "lacks two"),)),
    )
    result: dict[str, Any] = Diagnosis(findings).as_json()["transports"]
    assert result["tcp"] == {"usable": True, "obstacles": []}
    assert result["verbs"] == {"usable": False, "obstacles": ["lacks one", "lacks two"]}


# -- the command


def doctor(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["doctor", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_json_of_this_machine() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        found = json.loads(doctor("--json", "--port", str(port)))
    assert set(found["transports"]) == {"loop", "tcp", "verbs", "kernel"}
    assert found["transports"]["loop"] == {"usable": True, "obstacles": []}
    assert found["transports"]["tcp"] == {"usable": False, "obstacles": ["no node can be opened at every address of this machine"]}
    subjects = [finding["subject"] for finding in found["findings"]]
    assert subjects == [
        "versions", "rdma-core", "pyverbs", "RDMA devices", "addresses", "locked memory", "kernel modules", f"TCP port {port}",
        "RDMA ports 18634 and 16385",
    ]  # fmt: skip


def test_text_of_this_machine() -> None:
    text = doctor()
    assert "loop: works here" in text
    for finding in diagnosis.diagnose().findings:
        assert finding.subject in text
        for meaning in finding.meanings:
            assert meaning.text.split()[0] in text


def test_nothing_is_needed(tmp_path: Path) -> None:
    """Neither /proc nor /sys, nor a program."""
    found = diagnosis.diagnose(root=tmp_path)
    assert found.obstacles("loop") == []
    assert [one.text for one in found.obstacles("kernel")] == ["this kernel has no RDS transport loaded"]
