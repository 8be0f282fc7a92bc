"""A node: the local addresses and the sockets on them. The public face; `driver` is the inside."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Literal

import trio

from rdsx.addresses import parse_host
from rdsx.config import NodeConfig
from rdsx.driver import Driver
from rdsx.engine.events import Event
from rdsx.sockets import RdsSocket
from rdsx.statistics import NodeStatistics
from rdsx.transports.base import Network
from rdsx.transports.tcp import TcpNetwork

__all__ = ["Node", "open_node"]

TransportName = Literal["tcp", "loop"]


@contextlib.asynccontextmanager
async def open_node(
    address: str | Iterable[str], *, transport: TransportName | Network = "tcp", config: NodeConfig | None = None
) -> AsyncIterator[Node]:
    """Open a node that speaks for one or several local addresses.

    Args:
        address: numeric IPv4 or IPv6 address, or several; each must be configured on this host.
        transport: "tcp"; "loop" (the sockets of this node only); or a `Network`, such as a `rdsx.testing.VirtualNetwork`.
        config: settings; the defaults are the kernel's.

    Leaving the block waits until peers have acknowledged what open sockets sent, at most half of `config.close_drain_s`; then it
    half-closes every connection, reads each to its end, and closes all sockets. Leaving it by an exception or a cancellation
    closes at once.

    Raises:
        OSError: an address is not local (EADDRNOTAVAIL), or its port is in use (EADDRINUSE).
        ValueError: an address is not numeric, or unusable.
    """
    config = config or NodeConfig()
    hosts = [parse_host(text) for text in ([address] if isinstance(address, str) else address)]
    if not hosts:
        raise ValueError("open_node needs at least one local address")
    for host in hosts:
        if not host.is_usable:
            raise ValueError(f"{host.key!r} cannot be a node's address: give a unicast address of this host")
    network: Network | None
    if transport == "tcp":
        network = TcpNetwork(config)
    elif transport == "loop":
        network = None
    elif isinstance(transport, str):
        raise ValueError(f"transport must be 'tcp' or 'loop', not {transport!r}")
    else:
        network = transport
    driver = Driver(hosts, network, config)
    # What the block raises leaves as it is, not wrapped in the nursery's exception group.
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            await driver.start(nursery)
            yield Node(driver)
            await driver.drain()
        except BaseException as error:
            raised = error
        driver.close()
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class Node:
    """Made by `open_node`. All methods must be called from the same trio run."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    @property
    def config(self) -> NodeConfig:
        return self._driver.config

    @property
    def addresses(self) -> tuple[str, ...]:
        """The local addresses, as they were given, in canonical spelling."""
        return tuple(self._driver.hosts)

    @property
    def generation(self) -> int:
        """The number by which peers tell this node's life from an earlier one."""
        return self._driver.generation

    def socket(self) -> RdsSocket:
        """A new unbound socket of this node. Close it, or use it in `with`."""
        if self._driver.closed:
            raise trio.ClosedResourceError("this node was closed: its open_node block has ended")
        sock = RdsSocket(self._driver)
        self._driver.sockets[sock] = None
        return sock

    async def bind(self, port: int = 0) -> RdsSocket:
        """A new socket bound to `port` (0: any free one) of the node's first address."""
        sock = self.socket()
        try:
            await sock.bind(next(iter(self._driver.hosts.values())).sockaddr(port))
        except BaseException:
            sock.close()
            raise
        return sock

    def events(self, buffer: int = 256) -> trio.MemoryReceiveChannel[Event]:
        """A channel of what happens to peers from now on; close it when done, or use it in `with`.

        A subscriber that is more than `buffer` events behind misses the newest ones, counted in `statistics().missed_events`. The
        channel ends when the node closes.
        """
        return self._driver.subscribe(buffer)

    def reset_connection(self, peer: str) -> bool:
        """Drop the connections to a peer, as an operator or a test would; False if none was up.

        They are re-established as after any loss, and everything unacknowledged is resent. To an rdsx peer a connection is reset at
        once. A kernel has forgotten what its TCP has had acknowledged, so towards it we half-close and first read what is there.
        """
        return self._driver.reset_connection(parse_host(peer).key)

    def statistics(self) -> NodeStatistics:
        """A snapshot."""
        return self._driver.statistics()
