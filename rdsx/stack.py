"""What a node stands on: our own protocol engine (`driver.Driver`), or the running kernel's (`kernel.stack.KernelStack`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from rdsx._pace import Pace
from rdsx.addresses import Host
from rdsx.config import NodeConfig
from rdsx.engine.events import Event
from rdsx.statistics import NodeStatistics
from rdsx.wire.info import Info

if TYPE_CHECKING:
    from rdsx.sockets import RdsSocket

__all__ = ["Stack"]

SocketT = TypeVar("SocketT", bound="RdsSocket")

SYSTEM_CLOCK = trio._core._run.SystemClock
YIELD_CALLS = 256  # async calls that need not wait between two yields, at most


class Stack(ABC, Generic[SocketT]):
    """The inside of a `Node`. Invariant: a socket is in `sockets` until it is closed, and closed before the node's block ends."""

    def __init__(self, hosts: Iterable[Host], config: NodeConfig) -> None:
        self.hosts = {host.key: host for host in hosts}
        self.config = config
        self.sockets: dict[SocketT, None] = {}
        self.closed = False
        system_clock = isinstance(trio.lowlevel.current_clock(), SYSTEM_CLOCK)
        self.pace = Pace(config.yield_interval_s, YIELD_CALLS, None if system_clock else trio.current_time)

    async def pause(self) -> None:
        """What has to follow when `pace.due()`: see a cancellation, let others run."""
        await trio.lowlevel.checkpoint()
        self.pace.yielded()

    def forget_socket(self, sock: SocketT) -> None:
        """It was closed."""
        self.sockets.pop(sock, None)

    @property
    @abstractmethod
    def transport_name(self) -> str:
        """As errors and statistics call it."""

    @property
    @abstractmethod
    def generation(self) -> int | None:
        """See Node.generation."""

    @abstractmethod
    async def start(self, nursery: trio.Nursery) -> None:
        """Begin to work; OSError if an address cannot be served."""

    @abstractmethod
    def socket(self) -> SocketT:
        """A new socket, in `sockets`."""

    @abstractmethod
    def subscribe(self, buffer: int) -> trio.MemoryReceiveChannel[Event]:
        """See Node.events()."""

    @abstractmethod
    def reset_connection(self, peer: str) -> bool:
        """See Node.reset_connection(); `peer` is the key of a Host."""

    @abstractmethod
    def statistics(self) -> NodeStatistics:
        """See Node.statistics()."""

    @abstractmethod
    def info(self) -> Info:
        """See Node.info()."""

    @abstractmethod
    async def drain(self) -> None:
        """Give what was sent a chance to be acknowledged, for at most `config.close_drain_s`."""

    @abstractmethod
    def close(self) -> None:
        """Close every socket, and refuse to make new ones."""
