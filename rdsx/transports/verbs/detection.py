"""Whether RDMA works for this process, and if not, what stands in the way: what was found, what is needed, what to install.

Looks only when asked, in the order in which things build on each other: the libraries of rdma-core, our own modules, pyverbs, a device.
Changes nothing: what pyverbs does to Python's logging as it is imported is undone. Never raises for what it finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdsx.transports.verbs.devices import Device, list_devices, node_problem

__all__ = ["Obstacle", "find_obstacle"]

LIBRARIES = ("libibverbs.so.1", "librdmacm.so.1")
LIBRARY_PACKAGES = "'apt install libibverbs1 librdmacm1 ibverbs-providers', or 'dnf install rdma-core libibverbs librdmacm'"
HEADER_PACKAGES = "'apt install libibverbs-dev librdmacm-dev', or 'dnf install rdma-core-devel'"
OWN_MODULES = ("rdsx._bridge", "rdsx._rings")
PYVERBS_MODULES = ("device", "pd", "mr", "cq", "qp", "cmid")
# Where distributions put it, for their own Python only.
PYVERBS_FOLDERS = ("/usr/lib/python3/dist-packages", "/usr/lib64/python3*/site-packages")
PYVERBS_REMEDY = (
    "'apt install python3-pyverbs' or 'dnf install python3-pyverbs', and use the distribution's Python, in a virtual environment made with "
    "--system-site-packages; or, with rdma-core 57 to 63, 'pip install rdsx[verbs]'"
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The first thing that RDMA lacks here."""

    subject: str
    found: str
    needed: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}; needed: {self.needed}; {self.remedy}"


def find_obstacle(root: Path = Path("/")) -> Obstacle | None:
    """What keeps `transport="verbs"` from working, or None. Takes milliseconds; importing pyverbs for the first time up to 50."""
    looks: tuple[Callable[[], Obstacle | None], ...] = (
        library_obstacle,
        build_obstacle,
        pyverbs_obstacle,
        lambda: device_obstacle(list_devices(root), root),
    )
    return next((obstacle for look in looks if (obstacle := look()) is not None), None)


def rdma_core_version(library: str = LIBRARIES[0], maps: Path = Path("/proc/self/maps")) -> str | None:
    """The version of rdma-core that the library is of, such as "44.0"; "unknown" where its file name does not say; None without it."""
    if not loads(library):
        return None
    stem = re.escape(library.partition(".so")[0])
    path = re.search(rf"\S*/{stem}\.so\S*", maps.read_text()) if maps.exists() else None
    version = re.search(r"\.so\.\d+\.\d+\.(\d+(?:\.\d+)*)$", os.path.realpath(path[0])) if path else None
    return version[1] if version else "unknown"


def library_obstacle(load: Callable[[str], bool] | None = None) -> Obstacle | None:
    missing = [library for library in LIBRARIES if not (load or loads)(library)]
    if not missing:
        return None
    return Obstacle("rdma-core", f"{' and '.join(missing)} cannot be loaded", "the libraries of rdma-core", LIBRARY_PACKAGES)


def build_obstacle() -> Obstacle | None:
    missing = [name for name in OWN_MODULES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    found = f"this rdsx has no {' and no '.join(missing)}"
    return Obstacle("rdsx", found, "a build with the headers of rdma-core", f"{HEADER_PACKAGES}, then install rdsx from source")


def pyverbs_obstacle() -> Obstacle | None:
    """What is wrong with pyverbs for this Python; None if it can be imported, and then it is."""
    root_logger = logging.getLogger()
    level, handlers = root_logger.level, list(root_logger.handlers)
    try:
        for name in PYVERBS_MODULES:
            importlib.import_module(f"pyverbs.{name}")
    except ImportError as error:
        needed = f"pyverbs for Python {sys.version_info[0]}.{sys.version_info[1]}"
        return Obstacle("pyverbs", explain_pyverbs(error), needed, link_remedy() or PYVERBS_REMEDY)
    finally:  # importing pyverbs configures the root logger, which is the application's
        root_logger.setLevel(level)
        root_logger.handlers[:] = handlers
    return None


def pyverbs_location() -> str | None:
    """The folder of the pyverbs that this Python finds, whether it can be imported or not."""
    spec = importlib.util.find_spec("pyverbs")
    return next(iter(spec.submodule_search_locations or ()), None) if spec is not None else None


def pyverbs_version() -> str | None:
    """Its version as pip knows it, or what its modules say of themselves; None if this Python finds none.

    A distribution's package has no record of it: its version is that of the rdma-core it was built with.
    """
    location = pyverbs_location()
    if location is None:
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("pyverbs")
    interfaces = {tag for path in Path(location).glob("device.*.so") for tag in re.findall(rb"IBVERBS_PRIVATE_\d+", path.read_bytes())}
    return " ".join(sorted(tag.decode() for tag in interfaces)) or "unknown"


def explain_pyverbs(error: ImportError) -> str:
    """What was found of pyverbs, from how its import failed."""
    private = re.search(r"IBVERBS_PRIVATE_(\d+)", str(error))
    if private:
        return f"it was built for rdma-core {private[1]}, and that of this machine is {rdma_core_version() or 'absent'}"
    location = pyverbs_location()
    if location is None:
        elsewhere = distribution_folders()
        if not elsewhere:
            return "it is not installed"
        return f"it is in {elsewhere[0]}, for {builds(elsewhere[0])}, where {sys.executable} does not look"
    folder = Path(location)
    if isinstance(error, ModuleNotFoundError):
        return f"it is in {folder}, for {builds(folder)}, not for this Python ({sysconfig.get_config_var('EXT_SUFFIX')})"
    return f"it is in {folder}, but cannot be imported: {error}"


def distribution_folders() -> list[Path]:
    return [folder for pattern in PYVERBS_FOLDERS for folder in Path("/").glob(pattern.lstrip("/") + "/pyverbs")]


def link_remedy() -> str | None:
    """Where the distribution's pyverbs fits this Python, a link is enough: all of one Python version have one ABI."""
    if pyverbs_location() is not None:
        return None
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    fitting = [folder for folder in distribution_folders() if (folder / f"device{suffix}").exists()]
    return f"'ln -s {fitting[0]} {sysconfig.get_path('platlib')}/'" if fitting else None


def builds(folder: Path) -> str:
    """For which Pythons a folder has pyverbs, by the names of its extension modules."""
    found = sorted({name[len("device.") : -len(".so")] for path in folder.glob("device.*.so") if (name := path.name)})
    return " and ".join(found) or "no Python"


def device_obstacle(devices: Sequence[Device], root: Path) -> Obstacle | None:
    soft = "for soft-RoCE on eth0, as root: 'modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0'"
    if not devices:
        return Obstacle("RDMA device", "none", "an InfiniBand or RoCE adapter with its driver loaded", f"see 'rdma link'; {soft}")
    adapters = [device for device in devices if device.is_adapter]
    if not adapters:
        kinds = ", ".join(f"{device.name} ({device.kind})" for device in devices)
        return Obstacle("RDMA device", f"only {kinds}", "an InfiniBand or RoCE adapter (1: CA); RDS does not use iWARP", soft)
    problems = [problem for device in adapters if (problem := node_problem(root, device)) is not None]
    if len(problems) == len(adapters):
        return Obstacle("RDMA device", problems[0], "a device that this user can open", "'rdsx doctor' shows them all")
    if not any(port.is_active for device in adapters for port in device.ports):
        states = ", ".join(f"{device.name}/{port.number} is {port.state}" for device in adapters for port in device.ports)
        return Obstacle("RDMA device", states, "an active port", "check cable and switch; on RoCE, 'ip link set … up'")
    return None


def loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
