"""A node: the local addresses and the sockets on them. The public face; `driver` is the inside."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

import trio

from rdsx.addresses import Host, parse_host
from rdsx.config import NodeConfig
from rdsx.driver import Driver
from rdsx.engine.events import Event
from rdsx.errors import UnsupportedError
from rdsx.kernel.stack import KernelStack
from rdsx.sockets import RdsSocket
from rdsx.stack import Stack
from rdsx.statistics import NodeStatistics
from rdsx.transports.base import Network
from rdsx.transports.tcp import TcpNetwork
from rdsx.transports.verbs.detection import find_obstacle
from rdsx.wire.info import Info

__all__ = ["Node", "open_node"]

TransportName = Literal["tcp", "loop", "verbs", "kernel"]


@contextlib.asynccontextmanager
async def open_node(
    address: str | Iterable[str], *, transport: TransportName | Network = "tcp", config: NodeConfig | None = None
) -> AsyncIterator[Node]:
    """Open a node that speaks for one or several local addresses.

    Args:
        address: numeric IPv4 or IPv6 address, or several; each must be configured on this host.
        transport: "tcp"; "loop" (the sockets of this node only); "verbs" (InfiniBand and RoCE); "kernel" (AF_RDS: the running kernel
            does it all); or a `Network`, such as a `rdsx.testing.VirtualNetwork`.
        config: settings; the defaults are the kernel's.

    Leaving the block waits until peers have acknowledged what open sockets sent, at most half of `config.close_drain_s`; then it
    half-closes every connection, reads each to its end, and closes all sockets. Leaving it by an exception or a cancellation
    closes at once.

    Raises:
        OSError: an address is not local (EADDRNOTAVAIL), its port is in use (EADDRINUSE), or the kernel has no RDS (EAFNOSUPPORT).
        UnsupportedError: "verbs" cannot work here; the text says what was found, what is needed and what to install.
        ValueError: an address is not numeric, or unusable.
    """
    config = config or NodeConfig()
    hosts = [parse_host(text) for text in ([address] if isinstance(address, str) else address)]
    if not hosts:
        raise ValueError("open_node needs at least one local address")
    for host in hosts:
        if not host.is_usable:
            raise ValueError(f"{host.key!r} cannot be a node's address: give a unicast address of this host")
    stack = make_stack(hosts, transport, config)
    # What the block raises leaves as it is, not wrapped in the nursery's exception group.
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            await stack.start(nursery)
            yield Node(stack)
            await stack.drain()
        except BaseException as error:
            raised = error
        stack.close()
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


def make_stack(hosts: list[Host], transport: TransportName | Network, config: NodeConfig) -> Stack[Any]:
    if not isinstance(transport, str):
        return Driver(hosts, transport, config)
    if transport == "tcp":
        return Driver(hosts, TcpNetwork(config), config)
    if transport == "loop":
        return Driver(hosts, None, config)
    if transport == "kernel":
        return KernelStack(hosts, config)
    if transport == "verbs":
        obstacle = find_obstacle()
        if obstacle is not None:
            raise UnsupportedError(f"transport 'verbs': {obstacle}")
        # Here: they need modules that not every build has.
        from rdsx.transports.verbs.network import VerbsNetwork
        from rdsx.verbs import VerbsDriver

        return VerbsDriver(hosts, VerbsNetwork(config), config)
    raise ValueError(f"transport must be 'tcp', 'loop', 'verbs' or 'kernel', not {transport!r}")


class Node:
    """Made by `open_node`. All methods must be called from the same trio run."""

    def __init__(self, stack: Stack[Any]) -> None:
        self._stack = stack

    @property
    def config(self) -> NodeConfig:
        return self._stack.config

    @property
    def addresses(self) -> tuple[str, ...]:
        """The local addresses, as they were given, in canonical spelling."""
        return tuple(self._stack.hosts)

    @property
    def generation(self) -> int | None:
        """The number by which peers tell this node's life from an earlier one. None: the kernel does not tell its own."""
        return self._stack.generation

    def socket(self) -> RdsSocket:
        """A new unbound socket of this node. Close it, or use it in `with`."""
        if self._stack.closed:
            raise trio.ClosedResourceError("this node was closed: its open_node block has ended")
        sock: RdsSocket = self._stack.socket()
        return sock

    async def bind(self, port: int = 0) -> RdsSocket:
        """A new socket bound to `port` (0: any free one) of the node's first address."""
        sock = self.socket()
        try:
            await sock.bind(next(iter(self._stack.hosts.values())).sockaddr(port))
        except BaseException:
            sock.close()
            raise
        return sock

    def events(self, buffer: int = 256) -> trio.MemoryReceiveChannel[Event]:
        """A channel of what happens to peers from now on; close it when done, or use it in `with`.

        A subscriber that is more than `buffer` events behind misses the newest ones, counted in `statistics().missed_events`. The
        channel ends when the node closes. UnsupportedError on the kernel's stack.
        """
        return self._stack.subscribe(buffer)

    def reset_connection(self, peer: str) -> bool:
        """Drop the connections to a peer, as an operator or a test would; False if none was up.

        They are re-established as after any loss, and everything unacknowledged is resent. To an rdsx peer a connection is reset at
        once. A kernel has forgotten what its TCP has had acknowledged, so towards it we half-close and first read what is there.
        UnsupportedError on the kernel's stack.
        """
        return self._stack.reset_connection(parse_host(peer).key)

    def statistics(self) -> NodeStatistics:
        """A snapshot."""
        return self._stack.statistics()

    def info(self) -> Info:
        """Counters, connections, sockets and every message in a queue, as records with the kernel's meaning (RDS_INFO): a look from
        outside, for operators and tools. It lists all messages, so its cost grows with the queues. On the kernel's stack it is about
        the whole machine."""
        return self._stack.info()
