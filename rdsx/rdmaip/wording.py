"""Events and actions in words: one line each, for logs, `rdsx rdmaip monitor` and `plan`. The reason is always named."""

from __future__ import annotations

import errno
from typing import assert_never

from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.events import (
    Barred,
    Conflict,
    Crippled,
    Event,
    HoldExtended,
    Moved,
    Parked,
    PortDown,
    PortUp,
    Refused,
    Settled,
    Unparked,
)

__all__ = ["describe_action", "describe_duration", "describe_event", "describe_why_not"]


def describe_event(event: Event) -> str:
    """`10.9.0.11 moved eth0 -> eth1 (carrier), out of reach for 1.4 ms`."""
    match event:
        case Moved():
            return describe_move(event)
        case Parked():
            where = f"parked on {event.port}" if event.port else "on no port"
            return f"{event.ip} {where}: no usable port ({describe_why_not(event.why)})"
        case Unparked():
            return f"{event.ip} can be used again, on {event.port}, after {describe_duration(event.outage_s)}"
        case PortUp():
            return f"port {event.port} up after {describe_duration(event.down_s)}, settled in {describe_duration(event.hold_s)}"
        case PortDown():
            often = f", time {event.recent_downs} in 10 min" if event.recent_downs > 1 else ""
            return f"port {event.port} down ({event.layer.value}) after {describe_duration(event.up_s)}{often}"
        case Settled():
            return f"port {event.port} settled"
        case HoldExtended():
            hold = describe_duration(event.hold_s)
            return f"port {event.port} failed {event.recent_downs} times in 10 min: its addresses come home after {hold} without a failure"
        case Barred():
            return f"{event.ip} refused on {event.port} ({name_of(event.error)}): for {describe_duration(event.for_s)} it goes elsewhere"
        case Refused():
            wait = describe_duration(event.for_s)
            return f"cannot {describe_action(event.action)} ({name_of(event.error)}): tried again in {wait}"
        case Conflict():
            return f"conflict: {event.text}"
        case Crippled():
            return f"not permitted to {describe_action(event.action)}: {event.capability} is missing; nothing is changed any more"
    assert_never(event)


def describe_move(event: Moved) -> str:
    if event.from_port is None:
        what = f"put on {event.to_port}"
    elif event.from_port == event.to_port:
        what = f"put back on {event.to_port}"
    else:
        what = f"moved {event.from_port} -> {event.to_port}"
    outage = f", out of reach for {describe_duration(event.outage_s)}" if event.outage_s else ""
    return f"{event.ip} {what} ({event.reason.value}){outage}"


def describe_action(action: Action) -> str:
    """`add 10.9.0.11/32 to eth1`."""
    match action:
        case AddAddress(ip, port, prefix):
            return f"add {ip}/{prefix} to {port}"
        case RemoveAddress(ip, port, prefix):
            return f"remove {ip}/{prefix} from {port}"
        case SwitchRule(ip, port):
            return f"route packets from {ip} by {port}"
        case EnsureRoutes(port):
            return f"fill the routing table of {port}"
        case Announce(ip, port):
            return f"announce {ip} on {port}"
        case Resync():
            return "read the network's state"
    assert_never(action)


def describe_why_not(why: tuple[tuple[str, str], ...]) -> str:
    """`eth0: carrier, eth1: drained`, as `Parked` has it."""
    return ", ".join(f"{port}: {reason}" for port, reason in why) or "none exists"


def describe_duration(seconds: float) -> str:
    """With three digits and the unit that fits."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 600:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def name_of(error: int) -> str:
    return errno.errorcode.get(error, str(error))
