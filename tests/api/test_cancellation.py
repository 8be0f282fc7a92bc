"""Cancelling at every checkpoint of every public async method leaves what its docstring says: queued or taken, or not, never half."""

from __future__ import annotations

import gc
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from apikit import (
    FAR,
    GUARD_S,
    LEFT,
    accounts,
    assert_nobody_waits,
    bound,
    config,
    congest,
    duo,
    fill,
    lonely_node,
    loop_node,
    public_methods,
    waits,
)

Call = Callable[[rdsx.RdsSocket, Any], Awaitable[Any]]

SENDS: dict[str, Call] = {
    "sendto": lambda sock, to: sock.sendto(b"x", to),
    "send": lambda sock, to: sock.send(b"x"),
    "sendmsg": lambda sock, to: sock.sendmsg([b"x"], [], 0, to),
    "sendmmsg": lambda sock, to: sock.sendmmsg([(b"x", to), (b"y", to)]),
    "wait_writable": lambda sock, to: sock.wait_writable(to),
}
FLUSHES: dict[str, Call] = {
    "flush": lambda sock, to: sock.flush(),
    "flush to": lambda sock, to: sock.flush(to),
}
RECEIVES: dict[str, Call] = {
    "recv": lambda sock, to: sock.recv(),
    "recvfrom": lambda sock, to: sock.recvfrom(),
    "recvfrom peek": lambda sock, to: sock.recvfrom(None, socket.MSG_PEEK),
    "recv_into": lambda sock, to: sock.recv_into(bytearray(9)),
    "recvfrom_into": lambda sock, to: sock.recvfrom_into(bytearray(9)),
    "recvmmsg": lambda sock, to: sock.recvmmsg(),
    "recvmsg": lambda sock, to: sock.recvmsg(),
    "__anext__": lambda sock, to: anext(sock),
}
OPERATIONS: dict[str, Call] = {  # while they wait: test_operations.py
    "get_mr": lambda sock, to: sock.get_mr(bytearray(8)),
    "rdma_write": lambda sock, to: sock.rdma_write(b"x", 1, to),
    "rdma_read": lambda sock, to: sock.rdma_read(bytearray(8), 1, to),
    "compare_and_swap": lambda sock, to: sock.compare_and_swap(0, 0, 1, to),
    "fetch_and_add": lambda sock, to: sock.fetch_and_add(0, 1, to),
}
NAMES: dict[str, Call] = {  # those that look names up
    "bind": lambda sock, to: sock.bind(("name.test", 4000)),
    "connect": lambda sock, to: sock.connect(("name.test", 4001)),
    "sendto": lambda sock, to: sock.sendto(b"x", ("name.test", 4001)),
    "sendmsg": lambda sock, to: sock.sendmsg([b"x"], [], 0, ("name.test", 4001)),
    "sendmmsg": lambda sock, to: sock.sendmmsg([(b"x", ("name.test", 4001))]),
    "wait_writable": lambda sock, to: sock.wait_writable(("name.test", 4001)),
    "flush": lambda sock, to: sock.flush(("name.test", 4001)),
}


def methods(*tables: dict[str, Call]) -> set[str]:
    return {name.split()[0] for table in tables for name in table}


ASYNC = {name for name in public_methods(rdsx.RdsSocket) if inspect.iscoroutinefunction(getattr(rdsx.RdsSocket, name))}


def test_no_method_is_forgotten() -> None:
    assert methods(SENDS, FLUSHES, RECEIVES, OPERATIONS, NAMES) == ASYNC
    assert {name for name in public_methods(rdsx.Node) if inspect.iscoroutinefunction(getattr(rdsx.Node, name))} == {"bind"}


# -- before it starts


@pytest.mark.parametrize("yields", [False, True])
@pytest.mark.parametrize("name", [*SENDS, *FLUSHES, *RECEIVES, *OPERATIONS, "bind", "connect"])
async def test_cancelled_before_it_starts(name: str, yields: bool) -> None:
    """Where it would not even have waited. Both ways through the await rule: with a turn for others, and only a look."""
    async with loop_node(yield_interval_s=0.0 if yields else 1e9) as node:
        sock = node.socket()
        here = (LEFT, 4000)
        if name != "bind":
            await sock.bind(here)
        if name == "send":
            await sock.connect(here)
        if name in RECEIVES:
            await sock.sendto(b"waits", here)
        if not yields:
            await node.socket().flush()  # has had its turn
        before = accounts(sock)
        calls: dict[str, Call] = {
            **SENDS,
            **FLUSHES,
            **RECEIVES,
            **OPERATIONS,
            "bind": lambda sock, to: sock.bind(to),
            "connect": lambda sock, to: sock.connect(to),
        }
        with trio.CancelScope() as scope:
            scope.cancel()
            await calls[name](sock, here)
            raise AssertionError("it is no checkpoint")
        assert scope.cancelled_caught
        assert accounts(sock) == before
        assert_nobody_waits(sock)
        await calls[name](sock, here)


async def test_node_bind_cancelled() -> None:
    async with loop_node() as node:
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.bind(4000)
        assert scope.cancelled_caught
        assert node.statistics().sockets == 0
        assert (await node.bind(4000)).getsockname() == (LEFT, 4000)


# -- while it waits


@dataclass
class Scene:
    """A socket on which the call under test parks, and what ends that."""

    sock: rdsx.RdsSocket
    to: Any
    release: Callable[[], Any]


@asynccontextmanager
async def full() -> AsyncIterator[Scene]:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        await sock.connect(FAR)
        await fill(sock)
        yield Scene(sock, FAR, lambda: sock.cancel_sent_to(FAR))


@asynccontextmanager
async def congested() -> AsyncIterator[Scene]:
    async with loop_node() as node:
        sock, receiver = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        await sock.connect(receiver.getsockname())
        await congest(sock, receiver.getsockname())
        yield Scene(sock, receiver.getsockname(), receiver.recvmmsg_nowait)


@asynccontextmanager
async def congested_over_tcp() -> AsyncIterator[Scene]:
    async with duo("tcp") as two:
        left, right = await two.sockets()
        await left.connect(right.getsockname())
        await congest(left, right.getsockname())
        yield Scene(left, right.getsockname(), right.recvmmsg_nowait)


@asynccontextmanager
async def unacknowledged() -> AsyncIterator[Scene]:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        await sock.sendto(b"x", FAR)
        yield Scene(sock, FAR, lambda: sock.cancel_sent_to(FAR))


@asynccontextmanager
async def empty() -> AsyncIterator[Scene]:
    async with loop_node() as node:
        sock, sender = await bound(node, 4000, LEFT), await bound(node, 5000, LEFT)
        yield Scene(sock, None, lambda: sender.sendto_nowait(b"x", sock.getsockname()))


SCENES = {"full": full, "congested": congested, "congested over tcp": congested_over_tcp, "unacknowledged": unacknowledged, "empty": empty}
CASES = [
    *((name, scene) for name in SENDS for scene in ("full", "congested", "congested over tcp")),
    *((name, "unacknowledged") for name in FLUSHES),
    *((name, "empty") for name in RECEIVES),
]
CALLS = {**SENDS, **FLUSHES, **RECEIVES}


@pytest.mark.parametrize(("name", "scene"), CASES)
async def test_cancelled_while_it_waits(name: str, scene: str) -> None:
    with trio.fail_after(GUARD_S):
        async with SCENES[scene]() as stage, trio.open_nursery() as nursery:
            sock, scope, ended = stage.sock, trio.CancelScope(), trio.Event()
            before = accounts(sock)

            async def run() -> None:
                with scope:
                    await CALLS[name](sock, stage.to)
                assert scope.cancelled_caught
                ended.set()

            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            assert waits(sock)
            scope.cancel()
            await ended.wait()
            assert accounts(sock) == before
            assert_nobody_waits(sock)
            stage.release()
            await CALLS[name](sock, stage.to)  # as good as new
            assert_nobody_waits(sock)


@pytest.mark.parametrize(("name", "scene"), CASES)
async def test_cancelling_one_of_two_leaves_the_other(name: str, scene: str) -> None:
    with trio.fail_after(GUARD_S):
        async with SCENES[scene]() as stage, trio.open_nursery() as nursery:
            sock, scope = stage.sock, trio.CancelScope()
            ended, done = trio.Event(), trio.Event()

            async def one() -> None:
                with scope:
                    await CALLS[name](sock, stage.to)
                ended.set()

            async def other() -> None:
                await CALLS[name](sock, stage.to)
                done.set()

            nursery.start_soon(one)
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not done.is_set()
            stage.release()
            await done.wait()
            assert_nobody_waits(sock)


@pytest.mark.parametrize("cancel_first", [False, True])
@pytest.mark.parametrize(("name", "scene"), CASES)
async def test_cancelled_and_released_at_once(name: str, scene: str, cancel_first: bool) -> None:
    """Either it is cancelled and nothing happened, or it happened; what it leaves, the next one gets."""
    with trio.fail_after(GUARD_S):
        async with SCENES[scene]() as stage, trio.open_nursery() as nursery:
            sock, scope, ended = stage.sock, trio.CancelScope(), trio.Event()
            before = sock.statistics()

            async def run() -> None:
                with scope:
                    await CALLS[name](sock, stage.to)
                ended.set()

            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            for step in (scope.cancel, stage.release) if cancel_first else (stage.release, scope.cancel):
                step()
            await ended.wait()
            after = sock.statistics()
            sent, received = after.sent_messages - before.sent_messages, after.received_messages - before.received_messages
            if scope.cancelled_caught:
                assert sent == received == 0
            else:
                assert sent == {"wait_writable": 0, "sendmmsg": 2}.get(name, 1 if name in SENDS else 0)
                assert received == (1 if name in RECEIVES and "peek" not in name else 0)
            if name in RECEIVES:
                assert after.queued_messages + received == 1
            assert_nobody_waits(sock)


@pytest.mark.parametrize("scene", ["full", "congested", "congested over tcp"])
async def test_batch_cancelled_in_the_middle(scene: str) -> None:
    """It returns how many were queued; the cancellation comes at the next checkpoint."""
    with trio.fail_after(GUARD_S):
        async with SCENES[scene]() as stage, trio.open_nursery() as nursery:
            sock, scope, ended = stage.sock, trio.CancelScope(), trio.Event()
            stage.release()
            await sock.wait_writable(stage.to)
            free = ("10.0.0.9", 1) if scene == "full" else (sock.getsockname()[0], 9)
            counts: list[int] = []

            async def run() -> None:
                with scope:
                    counts.append(await sock.sendmmsg(batch))
                    await trio.lowlevel.checkpoint()
                assert scope.cancelled_caught
                ended.set()

            if scene == "full":
                batch = [(bytes(60000), free)] * 9
            else:
                await congest(sock, stage.to)
                batch = [(b"x", free)] * 3 + [(b"x", stage.to)] * 3
            before = sock.statistics().sent_messages
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await ended.wait()
            assert counts == [sock.statistics().sent_messages - before] == [2 if scene == "full" else 3]
            assert_nobody_waits(sock)


# -- while a name is looked up


@pytest.mark.parametrize("name", NAMES)
async def test_cancelled_while_a_name_is_looked_up(name: str) -> None:
    class Resolver(trio.abc.HostnameResolver):
        answers = False

        async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
            if not self.answers:
                await trio.sleep_forever()
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (LEFT, 0))]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    async with loop_node() as node, trio.open_nursery() as nursery:
        sock = node.socket() if name == "bind" else await bound(node, 4000, LEFT)
        before = accounts(sock)
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await NAMES[name](sock, None)
            assert scope.cancelled_caught

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert accounts(sock) == before
        assert_nobody_waits(sock)
        resolver.answers = True
        await NAMES[name](sock, None)


# -- a whole node


async def test_cancelling_the_node() -> None:
    """Leaving by a cancellation closes at once, however much is unacknowledged."""
    with trio.CancelScope() as scope:
        async with lonely_node(close_drain_s=3600.0) as node:
            sock = await bound(node, 4000, "10.0.0.1")
            await fill(sock)
            scope.cancel()
            await sock.recv()
    assert scope.cancelled_caught
    with pytest.raises(trio.ClosedResourceError):
        sock.recv_nowait()
    assert_nobody_waits(sock)


async def test_cancelling_before_the_node_is_open() -> None:
    """Nothing is left open: an unclosed socket would be reported when it is collected."""
    settings = config()
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with rdsx.open_node(LEFT, config=settings):
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
    gc.collect()
    async with rdsx.open_node(LEFT, config=settings):
        pass


async def test_exceptions_leave_as_they_are() -> None:
    """Not wrapped in an exception group, and the node closed at once."""
    with pytest.raises(KeyError):
        async with lonely_node(close_drain_s=3600.0) as node:
            sock = await bound(node, 4000, "10.0.0.1")
            await fill(sock)
            raise KeyError
    assert node.statistics().sockets == 0
