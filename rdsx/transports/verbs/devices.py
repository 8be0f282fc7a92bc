"""RDMA devices as /sys shows them: names, ports, GIDs, and which address of this machine belongs to which of them.

Reads files only: no library, no privilege, no device opened. What cannot be read is left out, because a device may go at any time. Layout
as in Linux 6.1, Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ACTIVE", "ADAPTER", "Device", "Gid", "Port", "list_devices", "listed", "node_problem", "read"]

ADAPTER = "1: CA"  # InfiniBand and RoCE, soft-RoCE included; iWARP is "4: RNIC"
ACTIVE = "4: ACTIVE"
CM_NODE = "dev/infiniband/rdma_cm"


@dataclass(frozen=True, slots=True)
class Gid:
    """An entry of a port's GID table. On RoCE it is an address of `interface`, with IPv4 mapped into IPv6."""

    index: int
    value: ipaddress.IPv6Address
    kind: str  # "RoCE v2", "IB/RoCE v1"; "" where it cannot be read
    interface: str

    @property
    def address(self) -> str:
        return str(self.value.ipv4_mapped or self.value)


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a device, with the words of the kernel for what it is."""

    number: int
    state: str
    link_layer: str
    rate: str
    gids: tuple[Gid, ...]

    @property
    def is_active(self) -> bool:
        return self.state == ACTIVE


@dataclass(frozen=True, slots=True)
class Device:
    """An RDMA device. `interfaces`: network interfaces on it (IPoIB, or of its RoCE GIDs). `node`: its file below /, "" if none."""

    name: str
    kind: str
    ports: tuple[Port, ...]
    interfaces: frozenset[str]
    node: str

    @property
    def is_adapter(self) -> bool:
        """InfiniBand or RoCE: what RDS, the kernel's and ours, goes over. iWARP is not."""
        return self.kind == ADAPTER

    @property
    def addresses(self) -> set[str]:
        """Addresses that its active ports answer for, as its GIDs tell. InfiniBand's GIDs are no IP addresses: see `interfaces`."""
        return {gid.address for port in self.ports if port.is_active for gid in port.gids if gid.interface}


def list_devices(root: Path = Path("/")) -> list[Device]:
    """All devices of this network namespace, by name; empty without any, or without RDMA in this kernel."""
    return [read_device(root, folder) for folder in folders(root / "sys/class/infiniband")]


def node_problem(root: Path, device: Device) -> str | None:
    """Why a program of this user could not open the device; None if it could."""
    if not device.node:
        return f"{device.name} has no file below /dev/infiniband: 'modprobe ib_uverbs' as root"
    for node in (device.node, CM_NODE):
        if not (root / node).exists():
            module = "rdma_ucm" if node == CM_NODE else "ib_uverbs"
            return f"/{node} is absent: 'modprobe {module}' as root; a container needs the file passed in"
        if not os.access(root / node, os.R_OK | os.W_OK):
            return f"/{node} cannot be opened for reading and writing by this user: give it the rights, as udev's rules of rdma-core do"
    return None


def read_device(root: Path, folder: Path) -> Device:
    ports = tuple(read_port(port) for port in folders(folder / "ports"))
    roce = {gid.interface for port in ports for gid in port.gids if gid.interface}
    ipoib = {interface.name for interface in folders(folder / "device/net")}
    node = ""
    for verbs in folders(root / "sys/class/infiniband_verbs"):
        if read(verbs / "ibdev") == folder.name:
            node = f"dev/infiniband/{verbs.name}"
    return Device(folder.name, read(folder / "node_type"), ports, frozenset(roce | ipoib), node)


def read_port(folder: Path) -> Port:
    return Port(
        number=int(folder.name) if folder.name.isdigit() else 0,
        state=read(folder / "state"),
        link_layer=read(folder / "link_layer"),
        rate=read(folder / "rate"),
        gids=tuple(read_gids(folder)),
    )


def read_gids(folder: Path) -> Iterator[Gid]:
    """The entries in use. A table has up to 1,024; the kernel fills it from the front and leaves holes, so all are looked at."""
    attributes = folder / "gid_attrs"
    indices = sorted(int(path.name) for path in listed(attributes / "types") or listed(folder / "gids") if path.name.isdigit())
    for index in indices:
        # An unused entry has no type: reading it fails, which spares the other two files.
        kind = read(attributes / f"types/{index}")
        if not kind and (attributes / "types").exists():
            continue
        try:
            value = ipaddress.IPv6Address(read(folder / f"gids/{index}"))
        except ValueError:
            continue
        if int(value):
            yield Gid(index, value, kind, read(attributes / f"ndevs/{index}"))


def folders(path: Path) -> list[Path]:
    return [entry for entry in listed(path) if entry.is_dir()]


def listed(path: Path) -> list[Path]:
    """What is in a folder of /sys, by name; nothing if it is gone."""
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def read(path: Path) -> str:
    """What a file of /sys says, without the line's end; "" if it is gone."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
