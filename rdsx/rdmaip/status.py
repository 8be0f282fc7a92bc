"""What an agent says of itself: frozen records, made from a policy, for `rdsx rdmaip status` and for metrics. Changes nothing.

Instants are given as ages in seconds, because the policy's clock means nothing to anybody else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rdsx.rdmaip.address import Address
from rdsx.rdmaip.events import Layer
from rdsx.rdmaip.placement import Standing
from rdsx.rdmaip.policy import Policy
from rdsx.rdmaip.port import Port
from rdsx.rdmaip.wording import describe_event

__all__ = ["AddressStatus", "LayerStatus", "PastEvent", "PortStatus", "State", "Status", "status_of"]


State = Literal["home", "guest", "moving", "parked", "absent", "left alone"]


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """One layer of a port: whether it is set, and since when."""

    set: bool
    for_s: float


@dataclass(frozen=True, slots=True)
class PortStatus:
    """One port. `settles_in_s`: None if it has settled, cannot be used, or waits for the wall clock."""

    name: str
    group: str
    mac: str
    tag: int | None
    layers: dict[str, LayerStatus]
    usable: bool
    for_s: float
    settled: bool
    settles_in_s: float | None
    recent_downs: int
    total_downs: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddressStatus:
    """One address. `why` explains every state but home and guest."""

    ip: str
    group: str
    home: str
    ports: tuple[str, ...]
    state: State
    why: str
    pinned_to: str | None
    for_s: float | None


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One of the last events, in words, and how long ago it was."""

    text: str
    ago_s: float


@dataclass(frozen=True, slots=True)
class Status:
    """An agent's picture of its host."""

    ports: tuple[PortStatus, ...]
    addresses: tuple[AddressStatus, ...]
    events: tuple[PastEvent, ...]
    crippled: str | None
    """The capability that is missing, if one is."""
    boot_left_s: float
    done_actions: dict[str, int]
    refused_actions: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """As what JSON has."""
        return asdict(self)


def status_of(policy: Policy, now_s: float) -> Status:
    """The records for what a policy knows."""
    return Status(
        ports=tuple(port_status(policy, port, now_s) for port in policy.ports.values()),
        addresses=tuple(address_status(policy, address, now_s) for address in policy.addresses.values()),
        events=tuple(PastEvent(describe_event(event), now_s - event.at_s) for event in policy.history),
        crippled=policy.crippled.capability if policy.crippled else None,
        boot_left_s=max(0.0, policy.boot_s - now_s),
        done_actions=dict(policy.done_actions),
        refused_actions=dict(policy.refused_actions),
    )


def port_status(policy: Policy, port: Port, now_s: float) -> PortStatus:
    group = policy.config.group_of(port.name)
    settles_in_s = port.settle_at_s - now_s
    return PortStatus(
        name=port.name,
        group=group.name if group else "",
        mac=port.mac.hex(":"),
        tag=port.tag,
        layers={layer.value: LayerStatus(port.layers[layer], now_s - port.since_s[layer]) for layer in Layer},
        usable=port.usable,
        for_s=now_s - port.usable_since_s,
        settled=port.settled,
        settles_in_s=settles_in_s if 0 <= settles_in_s < float("inf") and not port.settled else None,
        recent_downs=port.recent_downs(now_s),
        total_downs=port.total_downs,
        addresses=tuple(address.ip for address in policy.addresses.values() if address.has_on(port.name)),
    )


def address_status(policy: Policy, address: Address, now_s: float) -> AddressStatus:
    group = policy.config.group_of(address.managed.home)
    state, why = standing_of(policy, address)
    return AddressStatus(
        ip=address.ip,
        group=group.name if group else "",
        home=address.managed.home,
        ports=address.sound_ports(),
        state=state,
        why=why,
        pinned_to=address.pin,
        for_s=None if address.moved_s == float("-inf") else now_s - address.moved_s,
    )


def standing_of(policy: Policy, address: Address) -> tuple[State, str]:
    """State and explanation."""
    verdict = policy.verdicts.get(address.ip)
    if verdict is None:
        strays = ", ".join(port for port, _ in address.strays)
        return "left alone", address.hands_off or (f"it is on {strays}, where it may not be" if strays else "nothing is known yet")
    if verdict.standing is Standing.PARKED:
        why = ", ".join(f"{port}: {reason}" for port, reason in policy.why_not(address))
        return ("parked" if address.copies else "absent"), why
    if address.goal is not None:
        return ("moving" if address.copies else "absent"), f"to {verdict.port}: {address.goal.reason.value}"
    return ("home" if verdict.port == address.managed.home else "guest"), ""
