"""Facts: what the policy is told of the host. Owns their fields and units; knows nothing of where they come from.

A fact is what the kernel says now, never a wish. Ports are named by interface name, addresses by their canonical text
(`str(ipaddress.ip_address(…))`). Facts may repeat; a `Snapshot` is everything at once and replaces what was known. Whoever hands facts in
hands in all that have arrived before asking for the next action: the kernel's own report of a removal is then always known before a
later addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "AddressFact",
    "ClockFact",
    "Command",
    "Drain",
    "Fact",
    "Failback",
    "HardwareFact",
    "LinkFact",
    "LinkType",
    "Move",
    "NeighbourConflict",
    "PathFact",
    "Restore",
    "RouteFact",
    "RuleFact",
    "Snapshot",
    "Trigger",
    "Undrain",
]


class LinkType(Enum):
    """What announcements look like on a port, and among which ports an address can move."""

    ETHERNET = "ethernet"  # RoCE too
    INFINIBAND = "infiniband"  # IPoIB


@dataclass(frozen=True, slots=True)
class LinkFact:
    """An interface as it is now. One that has vanished, or was renamed away, has `present=False` and nothing else of interest.

    The index tells one interface from another of the same name: with another index, everything known of the former is void.
    """

    port: str
    present: bool = True
    index: int = 0
    admin: bool = False
    """IFF_UP."""
    carrier: bool = False
    """IFF_LOWER_UP; false also while the interface is dormant."""
    mac: bytes = b""
    """Hardware address: 6 bytes, on IPoIB 20."""
    tag: int | None = None
    """VLAN id, or on IPoIB the P_Key; None without one."""
    link_type: LinkType = LinkType.ETHERNET


@dataclass(frozen=True, slots=True)
class HardwareFact:
    """State of the RDMA port under an interface. `active=None`: there is none, or nobody looks; the layer then counts as set."""

    port: str
    active: bool | None


@dataclass(frozen=True, slots=True)
class PathFact:
    """Whether probes through a port are answered. `answered=None`: nobody probes; the layer then counts as set."""

    port: str
    answered: bool | None


@dataclass(frozen=True, slots=True)
class AddressFact:
    """An address is on an interface, or no longer. An interface can have one IPv4 address several times, with different prefixes."""

    ip: str
    port: str
    prefix: int
    """Prefix length in bits."""
    present: bool = True
    mark: int = 0
    """IFA_PROTO: who put it there; 0 if nobody said, and on kernels before 5.18."""
    failed: bool = False
    """IPv6: the kernel found a duplicate (IFA_F_DADFAILED); the address is there and cannot be used."""


@dataclass(frozen=True, slots=True)
class RuleFact:
    """Whose table the source rule of an address names: a port of the configuration, or None if there is no such rule."""

    ip: str
    port: str | None


@dataclass(frozen=True, slots=True)
class RouteFact:
    """Whether the table of a port has every route that it should have."""

    port: str
    complete: bool


@dataclass(frozen=True, slots=True)
class NeighbourConflict:
    """Somebody else says that an address of ours is theirs."""

    ip: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class ClockFact:
    """Wall time, for failbacks at the same instant on all hosts: `wall_s` (seconds since 1970, UTC) was at policy time `now_s`."""

    wall_s: float
    now_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at once, as read back from the kernel: what is not in here is not there.

    Only ports and addresses of the configuration matter; others may be in it and are ignored. `hardware` is not part of what the kernel
    dumps, so an empty one leaves what was known.
    """

    links: tuple[LinkFact, ...] = ()
    addresses: tuple[AddressFact, ...] = ()
    rules: tuple[RuleFact, ...] = ()
    routes: tuple[RouteFact, ...] = ()
    hardware: tuple[HardwareFact, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """An operator wants an address on a port; it stays there while it can, until a `Failback` of it."""

    ip: str
    port: str


@dataclass(frozen=True, slots=True)
class Failback:
    """An operator wants an address home now; all addresses for None. Ends what `Move` asked for, and a conflict.

    With `failback = "never"` it does no more than end these.
    """

    ip: str | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """An operator wants a port to carry nothing."""

    port: str


@dataclass(frozen=True, slots=True)
class Undrain:
    """... and again to carry its share."""

    port: str


@dataclass(frozen=True, slots=True)
class Trigger:
    """The boot delay (`settle_boot_s`) is over: every port is configured."""


@dataclass(frozen=True, slots=True)
class Restore:
    """The agent ends and hands over: every address goes home, even to a dead port, and stays."""


Command = Move | Failback | Drain | Undrain | Trigger | Restore
Fact = LinkFact | HardwareFact | PathFact | AddressFact | RuleFact | RouteFact | NeighbourConflict | ClockFact | Snapshot | Command
