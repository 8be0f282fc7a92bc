"""What the tests of the socket face share: two hosts that talk by loopback or by TCP, a peer that never answers, and inventories.

Nothing here waits for time to pass: tests wait for events, or until all tasks are blocked.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest
import trio

import rdsx
from rdsx.addresses import Host, SockAddr
from rdsx.transports.base import ByteStream, Listener

GUARD_S = 30.0  # only a guard: no test waits for it
LEFT, RIGHT = "127.0.0.1", "127.0.0.2"
MIB = 1048576

both = pytest.mark.parametrize("transport", ["loop", "tcp"])

# Listening ports below the range from which the system takes those of dialling sockets, apart for processes that run at once.
_ports = itertools.count(20000 + os.getpid() * 37 % 9000)


def free_tcp_port() -> int:
    """A port that is free on both hosts."""
    for port in _ports:
        with contextlib.ExitStack() as stack:
            try:
                for host in (LEFT, RIGHT):
                    stack.enter_context(socket.socket()).bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")


def config(**settings: object) -> rdsx.NodeConfig:
    """Settings of a test node: fixed randomness, own port, and no patience at the end."""
    base = rdsx.NodeConfig(port=free_tcp_port(), seed=1, close_drain_s=0.5, reconnect_max_delay_s=0.05, poke_min_delay_s=0.01)
    return replace(base, **settings)  # type: ignore[arg-type]


@dataclass
class Duo:
    """Two hosts: two nodes over TCP, or one node with two addresses over loopback."""

    left: rdsx.Node
    right: rdsx.Node

    async def sockets(self, left_port: int = 4000, right_port: int = 5000) -> tuple[rdsx.RdsSocket, rdsx.RdsSocket]:
        return await bound(self.left, left_port, LEFT), await bound(self.right, right_port, RIGHT)


async def bound(node: rdsx.Node, port: int, host: str) -> rdsx.RdsSocket:
    sock = node.socket()
    await sock.bind((host, port))
    return sock


@contextlib.asynccontextmanager
async def duo(transport: str, **settings: object) -> AsyncIterator[Duo]:
    chosen = config(**settings)
    with trio.fail_after(GUARD_S):
        if transport == "loop":
            async with rdsx.open_node([LEFT, RIGHT], transport="loop", config=chosen) as node:
                yield Duo(node, node)
        else:
            async with rdsx.open_node(LEFT, config=chosen) as left, rdsx.open_node(RIGHT, config=chosen) as right:
                yield Duo(left, right)


@dataclass
class Scene:
    """What operations need: a socket that asks, one that has memory, and the memory with its cookie."""

    asker: rdsx.RdsSocket
    owner: rdsx.RdsSocket
    memory: bytearray
    cookie: int
    to: SockAddr

    @classmethod
    async def between(cls, asker: rdsx.RdsSocket, owner: rdsx.RdsSocket, size: int) -> Scene:
        memory = bytearray(os.urandom(size))
        return cls(asker, owner, memory, await owner.get_mr(memory), owner.getsockname())

    @property
    def aligned(self) -> int:
        """The first offset in the memory at which an atomic can work."""
        return -(self.cookie >> 32) % 8

    @property
    def number(self) -> int:
        """What is there."""
        return int.from_bytes(self.memory[self.aligned : self.aligned + 8], sys.byteorder)

    @number.setter
    def number(self, value: int) -> None:
        self.memory[self.aligned : self.aligned + 8] = value.to_bytes(8, sys.byteorder)

    async def done(self, operation: rdsx.RdmaOperation) -> rdsx.RdmaOutcome:
        """Its outcome; the message behind it is thrown away."""
        outcome = await operation.wait()
        if outcome is rdsx.RdmaOutcome.SUCCESS:
            await self.owner.recv()
        return outcome


@contextlib.asynccontextmanager
async def loop_node(*hosts: str, **settings: object) -> AsyncIterator[rdsx.Node]:
    """A node that talks to itself, without a real socket."""
    async with rdsx.open_node(hosts or (LEFT,), transport="loop", config=config(**settings)) as node:
        yield node


class Nowhere:
    """A network on which nobody answers: what is sent stays queued. No real socket either."""

    name = "nowhere"

    async def listen(self, local: Host, port: int) -> Listener:
        return NobodyCalls()

    async def connect(self, local: Host, remote: Host, port: int) -> ByteStream:
        await trio.sleep_forever()


class NobodyCalls:
    async def accept(self) -> tuple[ByteStream, Host]:
        await trio.sleep_forever()

    def close(self) -> None: ...


FAR = ("10.0.0.2", 5000)  # an address on the Nowhere network


@contextlib.asynccontextmanager
async def lonely_node(**settings: object) -> AsyncIterator[rdsx.Node]:
    async with rdsx.open_node("10.0.0.1", transport=Nowhere(), config=config(**settings)) as node:
        yield node


async def fill(sock: rdsx.RdsSocket, address: SockAddr = FAR) -> int:
    """Send until the send queue is full; returns how many messages that took."""
    for count in itertools.count():
        try:
            sock.sendto_nowait(bytes(50000), address)
        except trio.WouldBlock:
            return count
    raise AssertionError("unreachable")


def knows_congested(sock: rdsx.RdsSocket, address: SockAddr) -> bool:
    """Whether the sender's host has heard that this port is congested."""
    assert sock._host is not None
    path = sock._driver.tables[sock._host.key].routes.get(address[0])
    return path is not None and path.foreign.test(address[1])


async def congest(sender: rdsx.RdsSocket, address: SockAddr) -> int:
    """Send to a receiver that does not read, until the sender knows that its port is congested; returns how many messages."""
    events = sender._driver.subscribe(256)
    count = 0
    while not knows_congested(sender, address):
        if count < 3:
            await sender.sendto(bytes(50000), address)
            count += 1
            await sender.flush()
        elif sender._driver.transport_name != "loop":
            await events.receive()
    events.close()
    return count


@dataclass(frozen=True)
class Accounts:
    """What must not have changed when a call did nothing."""

    statistics: rdsx.SocketStatistics
    node_queued_bytes: int
    bound: object
    peer: object


def accounts(sock: rdsx.RdsSocket) -> Accounts:
    return Accounts(sock.statistics(), sock._driver.statistics().queued_bytes, sock._host, sock._peer_address)


def waits(sock: rdsx.RdsSocket) -> bool:
    """Whether a task is parked on it."""
    waiting = sock._waiting
    return waiting is not None and bool(waiting.receivers or waiting.senders or +waiting.congested)


def assert_nobody_waits(sock: rdsx.RdsSocket) -> None:
    """No task is parked, and the hot path does not believe that one is."""
    assert not waits(sock)
    assert not any(lot for lots in sock._driver._congested.values() for lot in lots.values())
    assert not sock._endpoint.receive_waiting
    assert not sock._endpoint.send_waiting


@contextlib.contextmanager
def raises_errno(number: int, *words: str, kind: type[OSError] = OSError) -> Iterator[None]:
    """The block raises OSError with this errno, and its text has each of `words`: the value and the remedy."""
    with pytest.raises(kind) as caught:
        yield
    wanted, found = errno.errorcode[number], errno.errorcode.get(caught.value.errno or 0, str(caught.value.errno))
    assert found == wanted, f"{found}, not {wanted}: {caught.value}"
    assert_text(caught.value, *words)


def assert_text(error: BaseException, *words: str) -> None:
    missing = [word for word in words if word not in str(error)]
    assert not missing, f"{missing} not in {str(error)!r}"


def public_methods(cls: type) -> set[str]:
    """Names of the methods that users may call, async iteration and `with` included; properties left out."""
    special = {"__anext__", "__aiter__", "__enter__", "__exit__"}
    return {name for name, value in vars(cls).items() if callable(value) and (not name.startswith("_") or name in special)}
