"""What is told of addresses that move between the ports of a host, and of how a byte stream fares meanwhile. Records only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rdsx.addresses import Host

__all__ = ["AddressChange", "Change", "Changes", "NeighbourChange", "Progress", "Watched"]


@dataclass(frozen=True, slots=True)
class AddressChange:
    """A local address is reached through other ports than before.

    Ports are names of interfaces on which the address is, and which are up and have a carrier; none: it is not here, or nobody can
    reach it. So a cable that is pulled shows as a change to no port, and a move as one from port to port.
    """

    ip: str
    """Canonical text; of a link-local IPv6 address with "%" and the number of its interface."""
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NeighbourChange:
    """The kernel knows another hardware address for a neighbour on one port; None: none, or it no longer answers."""

    ip: str
    """As in `AddressChange`."""
    port: str
    before: bytes | None
    after: bytes | None


Change = AddressChange | NeighbourChange


class Changes(Protocol):
    """Changes as they happen, from when this was made. One task at a time may wait for the next; cancelled: none is lost."""

    def __aiter__(self) -> Changes: ...

    async def __anext__(self) -> Change: ...

    def close(self) -> None:
        """Twice is harmless."""


@runtime_checkable
class Watched(Protocol):
    """A network whose addresses can move, and that can tell when."""

    def watch(self, hosts: Iterable[Host]) -> Changes | None:
        """Changes that concern a node with these addresses; None if there cannot be any. OSError if they cannot be had."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a byte stream fares."""

    outstanding_bytes: int
    """Under way: sent, and not acknowledged by the peer's end of the stream. What waits for the peer to take more is not."""
    acknowledged_bytes: int
    """Acknowledged, ever. What was received says nothing of the way out."""
    is_stalled: bool
    """Something was sent again because no answer came in time; on TCP that is 200 ms at least. From then on it is tried more and more
    rarely."""
