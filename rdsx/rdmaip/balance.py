"""Spreading over a group: which local address to use. As with Oracle's module that is the program's choice; the group keeps each alive."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdsx.rdmaip.config import DEFAULT_CONTROL
from rdsx.rdmaip.control_client import ControlError, open_control

__all__ = ["GroupAddress", "addresses", "group_addresses", "pick_local"]


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """One address of a group. `weight`: its share of its port, in Mbit/s where the port says how fast it is."""

    ip: str
    home: str
    port: str | None
    is_guest: bool
    is_usable: bool
    weight: float


async def addresses(group: str | None = None, *, control: str = DEFAULT_CONTROL) -> list[GroupAddress]:
    """The addresses of a group (None: of all), as the agent of this host has them now: usable ones first, of these the least loaded first.

    Raises ControlError if there is no agent, or no such group.
    """
    async with open_control(control) as client:
        status = (await client.request("status"))["status"]
    names = list(dict.fromkeys(address["group"] for address in status["addresses"]))
    if group is not None and group not in names:
        raise ControlError(f"there is no group {group!r}; those are {', '.join(names)}")
    return group_addresses(status, group, {port["name"]: read_speed_mbps(port["name"]) for port in status["ports"]})


def group_addresses(status: Mapping[str, Any], group: str | None, speeds_mbps: Mapping[str, float]) -> list[GroupAddress]:
    """The same from a status, as `Status.as_json()` has it."""
    usable = {port["name"] for port in status["ports"] if port["usable"]}
    load = {port["name"]: len(port["addresses"]) for port in status["ports"]}
    found = []
    for address in status["addresses"]:
        if group not in (None, address["group"]):
            continue
        port = next((each for each in address["ports"] if each in usable), next(iter(address["ports"]), None))
        weight = speeds_mbps.get(port, 1.0) / max(load.get(port, 1), 1) if port is not None else 0.0
        found.append(GroupAddress(address["ip"], address["home"], port, port not in (None, address["home"]), port in usable, weight))
    return sorted(found, key=lambda each: (not each.is_usable, -each.weight))


def pick_local(candidates: Sequence[GroupAddress], peer: str, *, used: Mapping[str, float] | None = None) -> str:
    """The local address to use towards a peer.

    By itself the choice depends on the pair of addresses alone (rendezvous hashing, the same from both ends): it stays while the address
    can be used, also when it moves to another port. With `used`, how much each local address carries already (connections, messages,
    bytes), it is the one with the least for its weight.

    Args:
        candidates: what `addresses` returned.
        peer: numeric address; only local addresses of its family are considered.

    Raises ValueError if none can be used, or `peer` is no address.
    """
    version = ipaddress.ip_address(peer).version
    fitting = [each for each in candidates if each.is_usable and ipaddress.ip_address(each.ip).version == version]
    if not fitting:
        raise ValueError(f"no usable IPv{version} address among {', '.join(each.ip for each in candidates) or 'none'}")
    if used is not None:
        return min(fitting, key=lambda each: (used.get(each.ip, 0.0) / each.weight, each.ip)).ip
    return max(fitting, key=lambda each: hashlib.sha256("|".join(sorted((each.ip, peer))).encode()).digest()).ip


def read_speed_mbps(port: str, root: Path = Path("/sys/class/net")) -> float:
    """What an interface says of its speed; 1 if it does not know."""
    try:
        return max(float((root / port / "speed").read_text()), 1.0)
    except (OSError, ValueError):
        return 1.0
