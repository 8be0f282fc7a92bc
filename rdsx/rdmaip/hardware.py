"""The RDMA ports under network interfaces, and their states as /sys has them.

Looks, and never opens a device: the asynchronous events of one are only a hint to look again. What cannot be read is left out, because a
device may go at any time. Layout as in Linux 6.1, Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rdsx.rdmaip.facts import HardwareFact
from rdsx.transports.verbs.devices import ACTIVE, ADAPTER, listed, read

__all__ = ["RdmaPort", "find_rdma_ports", "hardware_facts"]


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """Port `number` of an RDMA device; `folder` is its folder in /sys."""

    device: str
    number: int
    folder: Path


def find_rdma_ports(interfaces: Iterable[str], root: Path = Path("/")) -> dict[str, RdmaPort]:
    """The RDMA port under each interface that has one. RoCE: by its GID table; IPoIB: by the GID in the hardware address."""
    wanted = set(interfaces)
    gids = {gid: name for name in wanted if (gid := ipoib_gid(root, name))}
    found: dict[str, RdmaPort] = {}
    for device in listed(root / "sys/class/infiniband"):
        if read(device / "node_type") != ADAPTER:
            continue
        for folder in listed(device / "ports"):
            if not folder.name.isdigit():
                continue
            port = RdmaPort(device.name, int(folder.name), folder)
            for entry in listed(folder / "gid_attrs/ndevs"):
                name = read(entry)
                if name in wanted:
                    found.setdefault(name, port)
            for entry in listed(folder / "gids") if gids else []:
                name = gids.get(read(entry), "")
                if name:
                    found[name] = port
    return found


def is_active(port: RdmaPort) -> bool | None:
    """Whether the port carries traffic now; None if its device is gone."""
    state = read(port.folder / "state")
    return state == ACTIVE if state else None


def hardware_facts(ports: dict[str, RdmaPort]) -> list[HardwareFact]:
    """What the ports' states are now."""
    return [HardwareFact(name, is_active(port)) for name, port in ports.items()]


def ipoib_gid(root: Path, interface: str) -> str:
    """The GID in a 20-byte hardware address, spelled as in /sys; "" for other interfaces."""
    octets = read(root / "sys/class/net" / interface / "address").split(":")
    if len(octets) != 20:
        return ""
    try:
        return ipaddress.IPv6Address(bytes.fromhex("".join(octets[4:]))).exploded
    except ValueError:
        return ""
