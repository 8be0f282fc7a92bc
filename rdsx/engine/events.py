"""What an application can be told about its peers. Frozen records; `peer` is the peer's host as a string."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CongestionChanged", "Event", "PeerDown", "PeerRestarted", "PeerUp"]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events: `local` is our address, `peer` theirs."""

    local: str
    peer: str


@dataclass(frozen=True, slots=True)
class PeerUp(Event):
    """The peer has spoken on a new link. `kind` is "rdsx" or "kernel"."""

    kind: str


@dataclass(frozen=True, slots=True)
class PeerDown(Event):
    """The link is gone. Messages stay queued and are sent when the peer is back. `reason` is a name counted in statistics()."""

    reason: str


@dataclass(frozen=True, slots=True)
class PeerRestarted(Event):
    """The peer came back as a new process. `flushed` messages that its former life may have seen were dropped, not resent."""

    flushed: int


@dataclass(frozen=True, slots=True)
class CongestionChanged(Event):
    """The peer sent a new congestion map."""
