"""Made-up machines: folders that look like /sys, /proc and /dev of one with RDMA devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["add_device", "add_modules", "write_files"]

NO_GID = ":".join(["0000"] * 8)


def write_files(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def add_modules(root: Path, *names: str) -> None:
    for name in names:
        (root / "sys/module" / name).mkdir(parents=True)


def add_device(
    root: Path,
    name: str = "rxe0",
    *,
    node_type: str = "1: CA",
    state: str = "4: ACTIVE",
    link_layer: str = "Ethernet",
    gids: Mapping[int, tuple[str, str]] | None = None,
    node: str = "uverbs0",
    interfaces: tuple[str, ...] = (),
) -> None:
    """A device with one port, as Linux 6.1 shows one of soft-RoCE. `gids`: index: (GID, interface); `node` "": not below /dev."""
    device = f"sys/class/infiniband/{name}"
    port = f"{device}/ports/1"
    files = {f"{device}/node_type": node_type, f"{port}/state": state, f"{port}/link_layer": link_layer}
    files[f"{port}/rate"] = "2.5 Gb/sec (1X SDR)"
    entries = {0: ("fe80:0000:0000:0000:5054:00ff:fe77:0002", "eth0"), 1: ("0000:0000:0000:0000:0000:ffff:0a4d:0002", "eth0")}
    entries = entries if gids is None else dict(gids)
    for index in range(max(entries, default=0) + 2):
        gid, interface = entries.get(index, (NO_GID, ""))
        files[f"{port}/gids/{index}"] = gid
        # The kernel has all files of an entry that is not used, and fails to read them; an empty one reads alike.
        files[f"{port}/gid_attrs/types/{index}"] = "RoCE v2" if gid != NO_GID else ""
        files[f"{port}/gid_attrs/ndevs/{index}"] = interface
    for interface in interfaces:
        (root / device / "device/net" / interface).mkdir(parents=True)
    if node:
        files |= {f"sys/class/infiniband_verbs/{node}/ibdev": name, f"dev/infiniband/{node}": "", "dev/infiniband/rdma_cm": ""}
    write_files(root, {path: text + "\n" for path, text in files.items()})
