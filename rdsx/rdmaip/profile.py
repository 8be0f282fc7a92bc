"""The kernel settings under which addresses may move: which there are, what they must be, and the way to set and restore them.

Owns /proc/sys of managed ports; reads it, writes it, and remembers what was there. It judges by the *effective* value where the kernel
takes the larger of "all" and the port's own. Invariant: a setting that is already right is not written, so restoring puts back only what
we changed. /proc/sys/net is that of the network namespace of the thread that opens it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "Profile", "Setting", "inspect"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One kernel setting of a port. `path` below /proc/sys, with {port}; `good` in order of preference; `why` for the report."""

    path: str
    good: tuple[int, ...]
    why: str
    larger_of_all: bool = False


SETTINGS = (
    Setting("net/ipv4/conf/{port}/arp_ignore", (1,), "else any port answers for any address, and peers send to the wrong one", True),
    Setting("net/ipv4/conf/{port}/arp_announce", (2,), "else questions from a port carry another port's address", True),
    Setting("net/ipv4/conf/{port}/rp_filter", (2, 0), "strict filtering drops what comes in on the second port of a subnet", True),
    Setting("net/ipv4/conf/{port}/promote_secondaries", (1,), "else deleting a primary address deletes others of its subnet", True),
    Setting("net/ipv4/conf/{port}/ignore_routes_with_linkdown", (1,), "else traffic keeps going into a port without carrier"),
    Setting("net/ipv6/conf/{port}/ignore_routes_with_linkdown", (1,), "else traffic keeps going into a port without carrier"),
    Setting("net/ipv6/conf/{port}/keep_addr_on_down", (1,), "else IPv6 addresses vanish when the port is set down", True),
    Setting("net/ipv4/neigh/{port}/locktime", (0,), "else old kernels ignore an announcement that follows another within a second"),
)

# What concerns this host as a peer of others that move their addresses: advice, never written.
ADVICE = (
    Setting("net/ipv4/conf/{port}/drop_gratuitous_arp", (0,), "else announcements of addresses that moved are ignored", True),
    Setting("net/ipv6/conf/{port}/drop_unsolicited_na", (0,), "else announcements of IPv6 addresses that moved are ignored"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A setting that is not as it should be. `path` is what to write `wanted` to; `found` is the effective value."""

    port: str
    path: str
    found: int
    wanted: int
    why: str

    def __str__(self) -> str:
        # Interface names may have dots, which sysctl(8) takes for separators: with slashes the name means itself.
        return f"{self.path} is {self.found}, must be {self.wanted}: {self.why}; run: sysctl -w {self.path}={self.wanted}"


def inspect(ports: Iterable[str], root: Path = Path("/proc/sys"), settings: tuple[Setting, ...] = SETTINGS + ADVICE) -> list[Finding]:
    """What is wrong now on these ports. Needs no privilege; what this kernel does not have (no IPv6) is left out."""
    found = (inspect_one(port, setting, root) for port in ports for setting in settings)
    return [finding for finding in found if finding is not None]


def inspect_one(port: str, setting: Setting, root: Path) -> Finding | None:
    path = setting.path.format(port=port)
    own = read(root / path)
    if own is None:
        return None
    everywhere = setting.path.format(port="all")
    common = (read(root / everywhere) or 0) if setting.larger_of_all else own
    effective = max(own, common) if setting.larger_of_all else own
    if effective in setting.good:
        return None
    wanted = setting.good[0]
    # Where "all" alone exceeds what is good, only lowering it helps.
    where = everywhere if setting.larger_of_all and common > max(setting.good) else path
    return Finding(port, where, effective, wanted, setting.why)


class Profile:
    """Sets what is wrong on ports, remembers what was there, restores it."""

    def __init__(self, root: Path = Path("/proc/sys")) -> None:
        self._root = root
        self._before: dict[str, int] = {}

    @property
    def changed(self) -> dict[str, int]:
        """What was written, by path below /proc/sys, with the value from before."""
        return dict(self._before)

    def apply(self, port: str) -> tuple[list[Finding], list[Finding]]:
        """(set, not set): put a port's settings right. Raises nothing: what cannot be written, or is of all ports, is in the second."""
        done, left = [], []
        for finding in inspect([port], self._root, SETTINGS):
            path = self._root / finding.path
            before = read(path)
            if before is None or "/all/" in finding.path or not write(path, finding.wanted):
                left.append(finding)
            else:
                self._before.setdefault(finding.path, before)
                done.append(finding)
        return done, left

    def restore(self) -> list[str]:
        """Put back what was there; returns what could not be, such as settings of a port that is gone. Afterwards nothing is remembered."""
        lost = [path for path, value in self._before.items() if not write(self._root / path, value)]
        self._before.clear()
        return lost


def read(path: Path) -> int | None:
    """A setting's value; None where it cannot be read or is no number."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def write(path: Path, value: int) -> bool:
    try:
        path.write_text(f"{value}\n")
    except OSError:
        return False
    return True
