"""Events: what the policy says has happened, for logs, metrics, `rdsx rdmaip monitor` and programs. Owns their fields and units.

Times are seconds on the clock whose `now_s` the policy was given. Ports are interface names, addresses canonical text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rdsx.rdmaip.actions import Action

__all__ = [
    "Barred",
    "Conflict",
    "Crippled",
    "Event",
    "HoldExtended",
    "Layer",
    "Moved",
    "Parked",
    "PortDown",
    "PortUp",
    "Reason",
    "Refused",
    "Settled",
    "Unparked",
]


class Layer(Enum):
    """What must be set for a port to be usable, in the order in which a port that is down is explained."""

    PRESENT = "present"  # the interface exists
    ENABLED = "enabled"  # no operator has drained it
    ADMIN = "admin"  # it is administratively up
    HARDWARE = "hardware"  # its RDMA port is active, if it has one
    CARRIER = "carrier"  # it has a link
    PATH = "path"  # probes are answered, if there are any


class Reason(Enum):
    """Why an address moved."""

    CARRIER = "carrier"
    ADMIN = "admin"
    HARDWARE = "hardware"
    PATH = "path"
    VANISHED = "vanished"
    DRAINED = "drained"
    FAILBACK = "failback"
    OPERATOR = "operator"
    STARTUP = "startup"  # it was somewhere else, or nowhere, when it was first looked at
    REMOVED = "removed"  # somebody else took it away
    NOT_ALLOWED = "not allowed"  # the port's tag or the configuration has changed
    BARRED = "barred"  # the kernel refused it where it should have gone
    RESTORED = "restored"  # the agent ends with on_exit = "restore"


@dataclass(frozen=True, slots=True)
class Moved:
    """An address is on `to_port` now and nowhere else. It was on `from_port` last, which is the same port after it had been taken away.

    `from_port` is None if it was nowhere.
    `outage_s`: since its old port became unusable, or since it was gone; 0 for a move between usable ports.
    """

    ip: str
    from_port: str | None
    to_port: str
    reason: Reason
    at_s: float
    outage_s: float


@dataclass(frozen=True, slots=True)
class Parked:
    """No usable port for an address: it stays on `port`, or nowhere for None. `why`: each of its ports and what is wrong with it."""

    ip: str
    port: str | None
    why: tuple[tuple[str, str], ...]
    at_s: float


@dataclass(frozen=True, slots=True)
class Unparked:
    """A parked address is on a usable port again; `outage_s` since it had none."""

    ip: str
    port: str
    at_s: float
    outage_s: float


@dataclass(frozen=True, slots=True)
class PortUp:
    """A port became usable, after `down_s`; its own addresses come home after `hold_s` more."""

    port: str
    at_s: float
    down_s: float
    hold_s: float


@dataclass(frozen=True, slots=True)
class PortDown:
    """A port became unusable after `up_s`, because of `layer`; for the `recent_downs`-th time in ten minutes."""

    port: str
    layer: Layer
    at_s: float
    up_s: float
    recent_downs: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A port has been usable for long enough: its own addresses may come home."""

    port: str
    at_s: float


@dataclass(frozen=True, slots=True)
class HoldExtended:
    """A port that flaps must be usable for longer, `hold_s`, before its own addresses come home."""

    port: str
    hold_s: float
    recent_downs: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Barred:
    """The kernel refused an address on a port with `error` (an errno); for `for_s` seconds it goes to other ports only."""

    ip: str
    port: str
    error: int
    for_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The kernel refused another action with `error` (an errno); it is tried again after `for_s` seconds."""

    action: Action
    error: int
    for_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Conflict:
    """Somebody else uses or removes an address of ours. `text` says who and what, in words.

    With `hands_off` it is no longer put back, until a `Failback` or `Move` of it.
    """

    ip: str
    text: str
    hands_off: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class Crippled:
    """A permission is missing: nothing is changed any more until the agent starts again. `capability` is its name."""

    action: Action
    capability: str
    at_s: float


Event = Moved | Parked | Unparked | PortUp | PortDown | Settled | HoldExtended | Barred | Refused | Conflict | Crippled
