"""RDMA ports under interfaces, from a made-up /sys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from rdsx.rdmaip.facts import Fact, HardwareFact
from rdsx.rdmaip.hardware import RdmaPort, find_rdma_ports, hardware_facts
from rdsx.rdmaip.hardware_watch import POLL_S, SEARCH_S, HardwareWatch, watch_hardware

GID = "fe80:0000:0000:0000:0002:c903:000e:0b72"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def add_port(root: Path, device: str, number: int, state: str = "4: ACTIVE", **files: str) -> Path:
    folder = f"sys/class/infiniband/{device}/ports/{number}"
    write(root, {f"sys/class/infiniband/{device}/node_type": "1: CA", f"{folder}/state": state})
    write(root, {f"{folder}/{name.replace('__', '/')}": text for name, text in files.items()})
    return root / folder


def test_roce_is_found_by_its_gid_table(tmp_path: Path) -> None:
    first = add_port(tmp_path, "mlx5_0", 1, gid_attrs__ndevs__0="eth0", gid_attrs__ndevs__3="eth0.7")
    second = add_port(tmp_path, "mlx5_1", 1, "1: DOWN", gid_attrs__ndevs__0="eth1")
    ports = find_rdma_ports(["eth0", "eth1", "eth2"], tmp_path)
    assert ports == {"eth0": RdmaPort("mlx5_0", 1, first), "eth1": RdmaPort("mlx5_1", 1, second)}
    assert set(hardware_facts(ports)) == {HardwareFact("eth0", True), HardwareFact("eth1", False)}


def test_ipoib_is_found_by_the_gid_in_its_address(tmp_path: Path) -> None:
    add_port(tmp_path, "mlx4_0", 1, gids__0="fe80:0000:0000:0000:0002:c903:000e:0b71")
    second = add_port(tmp_path, "mlx4_0", 2, gids__0=GID)
    write(tmp_path, {"sys/class/net/ib1/address": "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:0e:0b:72"})
    write(tmp_path, {"sys/class/net/eth0/address": "0a:00:00:00:00:01", "sys/class/net/odd/address": ":".join(["zz"] * 20)})
    assert find_rdma_ports(["ib1", "eth0", "odd"], tmp_path) == {"ib1": RdmaPort("mlx4_0", 2, second)}


def test_iwarp_is_not_ours(tmp_path: Path) -> None:
    add_port(tmp_path, "cxgb4_0", 1, gid_attrs__ndevs__0="eth0")
    write(tmp_path, {"sys/class/infiniband/cxgb4_0/node_type": "4: RNIC"})
    assert find_rdma_ports(["eth0"], tmp_path) == {}


def test_a_device_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    folder = add_port(tmp_path, "rxe0", 1, gid_attrs__ndevs__0="eth0")
    ports = find_rdma_ports(["eth0"], tmp_path)
    (folder / "state").unlink()
    assert hardware_facts(ports) == [HardwareFact("eth0", None)]


def test_a_look_reports_what_is_news(tmp_path: Path) -> None:
    folder = add_port(tmp_path, "rxe0", 1, gid_attrs__ndevs__0="eth0")
    add_port(tmp_path, "rxe1", 1, gid_attrs__ndevs__0="eth1")
    reported: list[list[Fact]] = []
    watch = HardwareWatch(find_rdma_ports(["eth0", "eth1"], tmp_path), reported.append)
    watch.look()
    watch.look()
    (folder / "state").write_text("1: DOWN\n")
    watch.look()
    assert reported == [[HardwareFact("eth0", True), HardwareFact("eth1", True)], [HardwareFact("eth0", False)]]


async def test_states_are_polled_where_events_cannot_be_had(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add_port(tmp_path, "no_such_device", 1, gid_attrs__ndevs__0="eth0")
    monkeypatch.setattr("rdsx.rdmaip.hardware_watch.find_rdma_ports", lambda names: find_rdma_ports(names, tmp_path))
    reported: list[list[Fact]] = []
    async with trio.open_nursery() as tasks:
        tasks.start_soon(watch_hardware, ["eth0"], reported.append)
        await trio.sleep(POLL_S / 2)
        (folder / "state").write_text("2: INIT\n")
        await trio.sleep(POLL_S)
        tasks.cancel_scope.cancel()
    assert reported == [[HardwareFact("eth0", True)], [HardwareFact("eth0", False)]]


async def test_devices_come_and_go(tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdsx.rdmaip.hardware_watch.find_rdma_ports", lambda names: find_rdma_ports(names, tmp_path))
    reported: list[list[Fact]] = []
    async with trio.open_nursery() as tasks:
        tasks.start_soon(watch_hardware, ["eth0"], reported.append)
        await trio.sleep(SEARCH_S / 2)
        assert reported == []
        add_port(tmp_path, "no_such_device", 1, gid_attrs__ndevs__0="eth0")
        await trio.sleep(SEARCH_S)
        assert reported == [[HardwareFact("eth0", True)]]
        shutil.rmtree(tmp_path / "sys")
        await trio.sleep(1.5 * POLL_S)  # between two looks: at the instant of one it would be anybody's guess who comes first
        assert reported[1:] == [[HardwareFact("eth0", None)]]
        await trio.sleep(SEARCH_S)
        assert reported[2:] == [[HardwareFact("eth0", None)]]
        add_port(tmp_path, "no_such_device", 1, "1: DOWN", gid_attrs__ndevs__0="eth0")
        await trio.sleep(SEARCH_S)
        assert reported[3:] == [[HardwareFact("eth0", False)]]
        tasks.cancel_scope.cancel()
