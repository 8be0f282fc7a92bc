"""What is said of each thing that RDMA may lack: found, needed, remedy. Made-up /sys trees and made-up pyverbs packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from machinekit import add_device, write_files
from rdsx.transports.verbs import detection
from rdsx.transports.verbs.devices import list_devices, node_problem

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


# -- devices


def test_no_devices(tmp_path: Path) -> None:
    assert list_devices(tmp_path) == []
    obstacle = detection.device_obstacle(list_devices(tmp_path), tmp_path)
    assert obstacle is not None
    assert (obstacle.found, "rdma link add rxe0 type rxe" in obstacle.remedy) == ("none", True)


def test_a_device_of_soft_roce(tmp_path: Path) -> None:
    add_device(tmp_path)
    (device,) = list_devices(tmp_path)
    assert (device.name, device.is_adapter, device.node, device.interfaces) == ("rxe0", True, "dev/infiniband/uverbs0", {"eth0"})
    assert device.addresses == {"10.77.0.2", "fe80::5054:ff:fe77:2"}
    (port,) = device.ports
    assert (port.number, port.is_active, port.link_layer, [gid.index for gid in port.gids]) == (1, True, "Ethernet", [0, 1])
    assert detection.device_obstacle(list_devices(tmp_path), tmp_path) is None


def test_a_gid_table_with_holes(tmp_path: Path) -> None:
    add_device(tmp_path, gids={0: ("fe80::1", "eth0"), 3: ("::ffff:10.0.0.3", "eth0.5"), 7: ("fd00::7", "eth1")})
    (device,) = list_devices(tmp_path)
    assert [(gid.index, gid.address, gid.interface) for gid in device.ports[0].gids] == [
        (0, "fe80::1", "eth0"),
        (3, "10.0.0.3", "eth0.5"),
        (7, "fd00::7", "eth1"),
    ]


def test_gids_of_infiniband_are_no_addresses(tmp_path: Path) -> None:
    add_device(tmp_path, "mlx5_0", link_layer="InfiniBand", gids={0: ("fe80::1", "")}, interfaces=("ib0",))
    (device,) = list_devices(tmp_path)
    assert (device.addresses, device.interfaces) == (set(), {"ib0"})


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """As of a device that goes while it is looked at."""
    write_files(tmp_path, {"sys/class/infiniband/rxe0/ports/1/gids/0": "nonsense"})
    (device,) = list_devices(tmp_path)
    assert (device.kind, device.is_adapter, device.ports[0].state, device.ports[0].gids) == ("", False, "", ())


@pytest.mark.parametrize(
    ("settings", "found", "remedy"),
    [
        ({"node_type": "4: RNIC"}, "only rxe0 (4: RNIC)", "rdma_rxe"),
        ({"node": ""}, "rxe0 has no file below /dev/infiniband: 'modprobe ib_uverbs' as root", "rdsx doctor"),
        ({"state": "1: DOWN"}, "rxe0/1 is 1: DOWN", "link set"),
    ],
)
def test_a_device_that_is_of_no_use(settings: dict[str, str], found: str, remedy: str, tmp_path: Path) -> None:
    add_device(tmp_path, **settings)  # type: ignore[arg-type]
    obstacle = detection.device_obstacle(list_devices(tmp_path), tmp_path)
    assert obstacle is not None
    assert obstacle.found == found
    assert remedy in obstacle.remedy


@pytest.mark.parametrize(("node", "module"), [("rdma_cm", "rdma_ucm"), ("uverbs0", "ib_uverbs")])
def test_a_file_that_is_absent(node: str, module: str, tmp_path: Path) -> None:
    add_device(tmp_path)
    (tmp_path / "dev/infiniband" / node).unlink()
    problem = node_problem(tmp_path, list_devices(tmp_path)[0])
    assert problem is not None
    assert problem.startswith(f"/dev/infiniband/{node} is absent: 'modprobe {module}'")


def test_a_file_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_device(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read what it likes
    problem = node_problem(tmp_path, list_devices(tmp_path)[0])
    assert problem is not None
    assert problem.startswith("/dev/infiniband/uverbs0 cannot be opened")


def test_one_good_device_is_enough(tmp_path: Path) -> None:
    add_device(tmp_path, "a0", node="")
    add_device(tmp_path, "b0", node="uverbs1")
    assert detection.device_obstacle(list_devices(tmp_path), tmp_path) is None


# -- libraries


def test_libraries_that_are_absent_are_named() -> None:
    obstacle = detection.library_obstacle(lambda library: library == "libibverbs.so.1")
    assert obstacle is not None
    assert obstacle.found == "librdmacm.so.1 cannot be loaded"
    assert "apt install" in obstacle.remedy
    assert detection.library_obstacle(lambda library: True) is None
    assert detection.rdma_core_version("libnosuch.so.1") is None


def test_the_version_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "libc.so.6.14.57.0").touch()
    (tmp_path / "libc.so.6").symlink_to("libc.so.6.14.57.0")
    maps = tmp_path / "maps"
    maps.write_text(f"7f0 r-xp 0 00:00 1 {tmp_path}/libc.so.6\n")
    assert detection.rdma_core_version("libc.so.6", maps) == "57.0"
    maps.write_text("")
    assert detection.rdma_core_version("libc.so.6", maps) == "unknown"


def test_modules_of_ours_that_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "OWN_MODULES", ("rdsx._fast", "rdsx._nosuch"))
    obstacle = detection.build_obstacle()
    assert obstacle is not None
    assert obstacle.found == "this rdsx has no rdsx._nosuch"
    assert "libibverbs-dev" in obstacle.remedy


# -- pyverbs

SAY = """
import json, logging, sys
from rdsx.transports.verbs import detection
detection.PYVERBS_FOLDERS = tuple(sys.argv[1:])
before = logging.getLogger().level, list(logging.getLogger().handlers)
obstacle = detection.pyverbs_obstacle()
assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
print(json.dumps(None if obstacle is None else [obstacle.found, obstacle.needed, obstacle.remedy]))
"""
LOUD = "import logging; logging.basicConfig(level=logging.INFO)\n"  # as the real one


def look(place: Path, *folders: Path) -> list[str] | None:
    """found, needed and remedy in a process whose Python has what is in `place`, and nothing else of pyverbs."""
    command = [sys.executable, "-P", "-c", SAY, *map(str, folders)]
    paths = [path for path in sys.path if path and not (Path(path) / "pyverbs").exists()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place), *paths])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said: list[str] | None = json.loads(done.stdout)
    return said


def test_pyverbs_that_works(tmp_path: Path) -> None:
    modules = {f"pyverbs/{name}.py": LOUD for name in detection.PYVERBS_MODULES}
    write_files(tmp_path, modules | {"pyverbs/__init__.py": ""})
    assert look(tmp_path) is None


def test_pyverbs_that_is_nowhere(tmp_path: Path) -> None:
    said = look(tmp_path, tmp_path / "elsewhere")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert said == ["it is not installed", f"pyverbs for Python {version}", detection.PYVERBS_REMEDY]


def test_pyverbs_of_the_distribution_that_would_fit(tmp_path: Path) -> None:
    """A virtual environment does not see it; it needs no more than a link."""
    elsewhere = tmp_path / "dist-packages"
    write_files(elsewhere, {f"pyverbs/device{SUFFIX}": ""})
    said = look(tmp_path / "empty", elsewhere)
    assert said is not None
    assert said[0] == f"it is in {elsewhere}/pyverbs, for {SUFFIX[1:-3]}, where {sys.executable} does not look"
    assert said[2].startswith(f"'ln -s {elsewhere}/pyverbs ")


def test_pyverbs_of_the_distribution_for_another_python(tmp_path: Path) -> None:
    elsewhere = tmp_path / "dist-packages"
    write_files(elsewhere, {"pyverbs/device.cpython-39-x86_64-linux-gnu.so": ""})
    said = look(tmp_path / "empty", elsewhere)
    assert said is not None
    assert "for cpython-39-x86_64-linux-gnu" in said[0]
    assert said[2] == detection.PYVERBS_REMEDY


def test_pyverbs_for_another_python_in_sight(tmp_path: Path) -> None:
    write_files(tmp_path, {"pyverbs/__init__.py": "", "pyverbs/device.cpython-39-x86_64-linux-gnu.so": ""})
    said = look(tmp_path)
    assert said is not None
    assert said[0] == f"it is in {tmp_path}/pyverbs, for cpython-39-x86_64-linux-gnu, not for this Python ({SUFFIX})"


def test_pyverbs_for_another_rdma_core(tmp_path: Path) -> None:
    device = 'raise ImportError("libibverbs.so.1: version `IBVERBS_PRIVATE_59\' not found (required by device.so)")'
    write_files(tmp_path, {"pyverbs/__init__.py": LOUD, "pyverbs/device.py": device})
    said = look(tmp_path)
    assert said is not None
    assert said[0].startswith("it was built for rdma-core 59, and that of this machine is ")


def test_pyverbs_that_fails_otherwise(tmp_path: Path) -> None:
    write_files(tmp_path, {"pyverbs/__init__.py": "", "pyverbs/device.py": "raise ImportError('libnl-3.so.200: no such file')"})
    said = look(tmp_path)
    assert said is not None
    assert said[0] == f"it is in {tmp_path}/pyverbs, but cannot be imported: libnl-3.so.200: no such file"


# -- all of it


def test_the_first_obstacle_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = ("library_obstacle", "build_obstacle", "pyverbs_obstacle")
    obstacles = {name: detection.Obstacle(name, "it is not there", "it", f"get {name}") for name in looks}
    for name in looks:
        monkeypatch.setattr(detection, name, lambda name=name: obstacles[name])
    for name in looks:
        assert detection.find_obstacle(tmp_path) == obstacles[name]
        assert str(obstacles[name]) == f"{name}: it is not there; needed: it; get {name}"
        monkeypatch.setattr(detection, name, lambda: None)
    missing = detection.find_obstacle(tmp_path)
    assert missing is not None
    assert missing.subject == "RDMA device"
    add_device(tmp_path)
    assert detection.find_obstacle(tmp_path) is None
