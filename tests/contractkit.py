"""What the contract suite runs on: two hosts on loopback, over TCP, over RDMA, or over the RDS of a live kernel; and the departures.

The kernel's cases, and those over RDMA, run in guests of the lab (`contract/conftest.py` sends them there). For the kernel's there is one
kernel with two network namespaces, so its RDS goes over TCP; for RDMA there is a device of soft-RoCE with two addresses. A kernel never
forgets a connection, so every test takes ports of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio

import apikit
import rdsx
from lab.readiness import BRIEF
from namespaces import HOSTS, inside

__all__ = [
    "DEPARTURES",
    "IN_GUEST",
    "LEFT",
    "NOBODY",
    "RIGHT",
    "SERIES",
    "Pair",
    "departs",
    "eventually",
    "every_stack",
    "kernels",
    "pair",
    "with_operations",
]

IN_GUEST = "RDSX_CONTRACT_REPORT" in os.environ  # the file that the guest's run writes its outcomes to
SERIES = os.environ.get("RDSX_LAB_KERNELS", "6.1").split(",")
VERBS = [] if BRIEF and not IN_GUEST else [pytest.param("verbs", marks=pytest.mark.slow)]
KERNELS = [pytest.param(f"kernel-{series}", marks=pytest.mark.slow) for series in SERIES]

every_stack = pytest.mark.parametrize("stack", ["loop", "tcp", *VERBS, *KERNELS])
with_operations = pytest.mark.parametrize("stack", ["loop", "tcp", *VERBS])  # a kernel's RDS over TCP has none
kernels = pytest.mark.parametrize("stack", KERNELS)
with_a_wire = pytest.mark.parametrize("stack", ["tcp", *VERBS, *KERNELS])

LEFT, RIGHT = HOSTS if IN_GUEST else (apikit.LEFT, apikit.RIGHT)
NOBODY = "10.78.0.77" if IN_GUEST else "127.0.0.77"  # where no RDS is

# Where rdsx and the kernel differ on purpose. docs/contract.md says how, and why.
DEPARTURES = {
    "flush",
    "loop congestion",
    "monitor off",
    "monitor mask",
    "zerocopy",
    "receive path",
    "congested",
    "events",
    "reset",
    "binding",
    "info option",
}


def is_kernel(stack: str) -> bool:
    return stack.startswith("kernel")


def departs(stack: str, name: str) -> bool:
    """Whether this stack is the kernel, where the named departure shows."""
    assert name in DEPARTURES
    return is_kernel(stack)


@dataclass
class Pair:
    """Two hosts: one node with two addresses (loop), two nodes over TCP, or two in namespaces of one kernel."""

    left: rdsx.Node
    right: rdsx.Node

    async def sockets(self) -> tuple[rdsx.RdsSocket, rdsx.RdsSocket]:
        return await self.left_socket(), await self.right_socket()

    async def left_socket(self) -> rdsx.RdsSocket:
        return await apikit.bound(self.left, next_port(), LEFT)

    async def right_socket(self) -> rdsx.RdsSocket:
        return await apikit.bound(self.right, next_port(), RIGHT)


ports = itertools.count(3000)


def next_port(count: int = 1) -> int:
    """A port, the first of `count`, that no other test of this run has used."""
    first = next(ports)
    for _ in range(count - 1):
        next(ports)
    return first


@contextlib.asynccontextmanager
async def pair(stack: str, **settings: Any) -> AsyncIterator[Pair]:
    if is_kernel(stack):
        config = replace(rdsx.NodeConfig(close_drain_s=0.5), **settings)
        with trio.fail_after(apikit.GUARD_S):
            async with kernel_node(LEFT, config) as left, kernel_node(RIGHT, config) as right:
                yield Pair(left, right)
    elif stack == "verbs":
        config = replace(apikit.config(), **settings)
        with trio.fail_after(apikit.GUARD_S):
            async with verbs_node(LEFT, config) as left, verbs_node(RIGHT, config) as right:
                yield Pair(left, right)
    else:
        async with apikit.duo(stack, **settings) as two:
            yield Pair(two.left, two.right)


def verbs_node(host: str, config: rdsx.NodeConfig) -> contextlib.AbstractAsyncContextManager[rdsx.Node]:
    return rdsx.open_node(host, transport="verbs", config=config)


@contextlib.asynccontextmanager
async def kernel_node(host: str, config: rdsx.NodeConfig) -> AsyncIterator[Any]:
    namespace = HOSTS[host]
    manager = rdsx.open_node(host, transport="kernel", config=config)
    with inside(namespace):
        node = await manager.__aenter__()
    try:
        yield Elsewhere(node, namespace)
    except BaseException as error:
        if not await manager.__aexit__(type(error), error, error.__traceback__):
            raise
    else:
        await manager.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def third_node(stack: str, two: Pair) -> AsyncIterator[rdsx.Node]:
    """Another node that reaches the pair's right one; with a kernel on the left one's address, which nodes can share there."""
    config = replace(two.left.config, close_drain_s=5.0)
    opened = {"verbs": verbs_node, "tcp": tcp_node}.get(stack, kernel_node)
    async with opened(THIRD.get(stack, LEFT), config) as node:
        yield node


THIRD = {"tcp": "127.0.0.3", "verbs": "10.78.0.3"}


def tcp_node(host: str, config: rdsx.NodeConfig) -> contextlib.AbstractAsyncContextManager[rdsx.Node]:
    return rdsx.open_node(host, config=config)


class Elsewhere:
    """A node whose sockets are made in another namespace."""

    def __init__(self, node: rdsx.Node, namespace: str) -> None:
        self._node = node
        self._namespace = namespace

    def socket(self) -> rdsx.RdsSocket:
        with inside(self._namespace):
            return self._node.socket()

    async def bind(self, port: int = 0) -> rdsx.RdsSocket:
        return await apikit.bound(self, port, self._node.addresses[0])  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for what no event tells. The guard of pair() bounds it."""
    while not condition():
        await trio.sleep(0.002)


async def arrived(receiver: rdsx.RdsSocket, messages: int) -> None:
    """Wait until so many are in its queue."""
    await eventually(lambda: receiver.statistics().queued_messages >= messages)


async def congest(sender: rdsx.RdsSocket, receiver: rdsx.RdsSocket, size: int = 50000) -> int:
    """Send until the sender is told that the receiver's port is congested; returns how many messages that took."""
    there = receiver.getsockname()
    for count in itertools.count():
        try:
            await sender.sendmsg([bytes(size)], [], apikit.socket.MSG_DONTWAIT, there)
        except rdsx.CongestedError:
            return count
        except BlockingIOError:
            await trio.sleep(0.002)
            continue
        await arrived(receiver, count + 1)
    raise AssertionError("unreachable")
