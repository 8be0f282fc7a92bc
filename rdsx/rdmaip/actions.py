"""Actions: what the policy wants done to the host, one at a time. Owns what each one promises; does nothing itself.

Each is safe to repeat: what is there already, or is gone already, is a success for the policy (EEXIST, EADDRNOTAVAIL, ESRCH, ENOENT).
Whoever executes one reports the result by `Policy.done` before asking for the next.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Action", "AddAddress", "Announce", "EnsureRoutes", "RemoveAddress", "Resync", "SwitchRule"]


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Put an address on a port, permanently, with our mark, and for IPv6 without duplicate detection.

    A guest has the prefix of a single host and makes no prefix route, so that no other address of the port becomes its primary.
    """

    ip: str
    port: str
    prefix: int
    guest: bool


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take the address with exactly this prefix off a port."""

    ip: str
    port: str
    prefix: int


@dataclass(frozen=True, slots=True)
class SwitchRule:
    """Make packets *from* an address look routes up in the table of a port. The new rule is there before the old one goes."""

    ip: str
    port: str


@dataclass(frozen=True, slots=True)
class EnsureRoutes:
    """Give the table of a port its routes: one for each subnet of the group."""

    port: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell everybody on the port's wire that the address is here: one packet."""

    ip: str
    port: str


@dataclass(frozen=True, slots=True)
class Resync:
    """Read everything back from the kernel and hand in the `Snapshot`; what was done and what was reported do not agree."""


Action = AddAddress | RemoveAddress | SwitchRule | EnsureRoutes | Announce | Resync
