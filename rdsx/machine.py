"""Facts about this machine that decide which transport can work: kernel modules, listeners, addresses, lockable memory.

Reads /proc and /sys and asks two programs of iproute2 at most; needs no privilege, and says less without. Changes nothing.
"""

from __future__ import annotations

import ipaddress
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["InterfaceAddress", "Listener", "cm_listeners", "interface_addresses", "loaded_modules", "locked_memory_bytes", "tcp_listeners"]

LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp
CAP_IPC_LOCK = 14  # include/uapi/linux/capability.h
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # where iproute2 is, also for users whose PATH has no sbin
PROGRAM_S = 10.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens. `program` is a process's name, or a kernel module's; None where this user is not told."""

    address: str
    port: int
    program: str | None


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of this network namespace."""

    address: str
    interface: str


def loaded_modules(names: tuple[str, ...], root: Path = Path("/")) -> list[str]:
    """Those of the modules that the kernel has, loaded or built in."""
    return [name for name in names if (root / "sys/module" / name).exists()]


def locked_memory_bytes(root: Path = Path("/")) -> int | None:
    """How much memory this process may lock, which is how much it may register with RDMA devices; None: no limit."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY or may_lock_all(root) else limit


def may_lock_all(root: Path) -> bool:
    """Whether the process has CAP_IPC_LOCK, which no limit binds."""
    for line in lines(root / "proc/self/status"):
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    return False


# -- addresses


def interface_addresses(text: str | None = None) -> list[InterfaceAddress]:
    """Addresses of this network namespace that a node can have, as `ip -json address` prints them; empty without that program.

    Link-local ones are left out: they are no names for a node, each link has them.
    """
    found = parse_json(output("ip", "-json", "address") if text is None else text)
    return [
        InterfaceAddress(str(address["local"]), str(interface.get("ifname", "")))
        for interface in found
        for address in interface.get("addr_info", [])
        if "local" in address and address.get("scope") != "link"
    ]


# -- listeners


def tcp_listeners(port: int, root: Path = Path("/")) -> list[Listener]:
    """Who listens on a TCP port in this network namespace."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in lines(root / "proc/net" / name)[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == LISTENING:
                host, _, number = fields[1].partition(":")
                if int(number, 16) == port:
                    found.append(Listener(unpack_address(host), port, program_of(fields[9], root)))
    return found


def unpack_address(text: str) -> str:
    """An address of /proc/net/tcp: 32-bit words in hexadecimal, each read as a number of this machine."""
    packed = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(packed))


def program_of(inode: str, root: Path) -> str | None:
    """The process that has this socket open; None for the kernel's own, and for those of users whose files we may not see."""
    for folder in root.glob("proc/[0-9]*/fd"):
        try:
            if any(str(link.readlink()) == f"socket:[{inode}]" for link in folder.iterdir()):
                return (folder.parent / "comm").read_text().strip()
        except OSError:
            continue  # not ours to see, or gone meanwhile
    return None


def cm_listeners(text: str | None = None) -> list[Listener] | None:
    """Who listens through the RDMA CM, as `rdma -j resource show cm_id` prints it; None without that program, or without RDMA."""
    if text is None and not (text := output("rdma", "-j", "resource", "show", "cm_id")):
        return None
    return sorted(set(parse_cm_listeners(text)), key=lambda listener: (listener.port, listener.address))


def parse_cm_listeners(text: str) -> Iterator[Listener]:
    for one in parse_json(text):
        if one.get("state") == "LISTEN":
            host, _, port = str(one.get("src-addr", "")).rpartition(":")
            if port.isdigit():
                yield Listener(host, int(port), str(one["comm"]) if "comm" in one else None)


# -- helpers


def lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def output(program: str, *arguments: str) -> str:
    """What it prints; "" if it is absent or fails."""
    path = shutil.which(program) or shutil.which(program, path=PATH)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def parse_json(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
