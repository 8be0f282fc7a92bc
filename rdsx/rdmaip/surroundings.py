"""What else on this host bears on an agent: network managers and the clock. Reads; changes nothing and needs no privilege."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

__all__ = ["find_managers", "is_clock_synchronised"]

TIMEX_BYTES = 208  # sizeof(struct timex) where it is largest, 64-bit Linux; all zero asks only
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def find_managers(ports: Mapping[str, int], root: Path = Path("/")) -> dict[str, str]:
    """Which of some interfaces (name: index) systemd-networkd or NetworkManager configures, from what they leave below /run."""
    found = {}
    for port, index in ports.items():
        if _fields(root / "run/systemd/netif/links" / str(index)).get("ADMIN_STATE") in ("configured", "configuring"):
            found[port] = "systemd-networkd"
        elif _fields(root / "run/NetworkManager/devices" / str(index)).get("managed") == "true":
            found[port] = "NetworkManager"
    return found


def is_clock_synchronised() -> bool:
    """What the kernel says of the wall clock."""
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)) not in (-1, TIME_ERROR))


def _fields(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: value for key, sign, value in (line.partition("=") for line in lines) if sign}
