"""Nodes over verbs whose addresses move: a queue pair belongs to a port, so it is dropped at once, and the next one is asked for."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from trio.testing import MockClock

fabrickit = pytest.importorskip("fabrickit", reason="rdsx was built without the headers of rdma-core")

import rdsx  # noqa: E402
from fabrickit import Fabric, FabricNetwork, fabric_node  # noqa: E402
from movekit import Script  # noqa: E402
from rdsx.moves import AddressChange, NeighbourChange  # noqa: E402

A, B = "10.0.0.1", "10.0.0.2"
MAC, OTHER_MAC = b"\0\0\0\0\0\1", b"\0\0\0\0\0\2"
SOON_S = 0.2  # both ends ask at once, and refuse each other, until random delays let one in
AWAY = AddressChange(A, ("p0",), ("p1",))


class WatchedNetwork(FabricNetwork):  # type: ignore[misc]
    """A fabric on which the first node is told of moves, and where what it dials can have no way for a while."""

    def __init__(self, fabric: Any, config: rdsx.NodeConfig) -> None:
        super().__init__(fabric, config)
        self.moved: list[str] = fabric.moved
        self.failures: list[OSError] = fabric.failures

    def watch(self, hosts: Any) -> Any:
        return self._fabric.script if A in {host.key for host in hosts} else None

    def address_moved(self, local: str) -> None:
        self.moved.append(local)

    async def connect(self, local: Any, remote: Any, path: Any) -> Any:
        if local.key == A and self.failures:
            await trio.lowlevel.checkpoint()
            raise self.failures.pop(0)
        while self.failures:  # the other end waits for the first
            await trio.sleep(0.001)
        return await super().connect(local, remote, path)


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tests ask for the clock themselves: pytest-trio takes no notice of one that only a fixture asks for."""
    monkeypatch.setattr(fabrickit, "FabricNetwork", WatchedNetwork)
    made: Any = Fabric()
    made.script, made.moved, made.failures = Script(), [], []
    return made


async def settle(left: rdsx.RdsSocket, right: rdsx.RdsSocket) -> None:
    for sender, receiver in ((left, right), (right, left)):
        await sender.sendto(b"hello", receiver.getsockname())
        assert await receiver.recv() == b"hello"
        await sender.flush()


def drops(node: rdsx.Node) -> dict[str, int]:
    return dict(node.statistics().drops)


async def test_an_own_address_that_moves(autojump_clock: MockClock, fabric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await settle(left, right)
            began_s = trio.current_time()
            fabric.script.tell(AWAY)
            await trio.testing.wait_all_tasks_blocked()
            assert drops(a)["address_moved"] == 1
            await settle(left, right)
            assert trio.current_time() - began_s < SOON_S
            assert fabric.moved == [A]
            assert a.statistics().moves_survived == 0


async def test_a_peers_address_that_moves(autojump_clock: MockClock, fabric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await settle(left, right)
            fabric.script.tell(NeighbourChange(B, "p0", MAC, None))
            fabric.script.tell(NeighbourChange(B, "p0", None, MAC))
            await trio.testing.wait_all_tasks_blocked()
            assert (drops(a), fabric.connections) == ({}, 1)
            fabric.script.tell(NeighbourChange(B, "p0", MAC, OTHER_MAC))
            await trio.testing.wait_all_tasks_blocked()
            assert drops(a)["peer_moved"] == 1
            await settle(left, right)
            assert fabric.moved == []


async def test_a_port_that_comes_back_is_no_move(autojump_clock: MockClock, fabric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await settle(left, right)
            fabric.script.tell(AddressChange(A, ("p0",), ()))
            fabric.script.tell(AddressChange(A, (), ("p0",)))
            await settle(left, right)
            assert (drops(a), fabric.connections, fabric.moved) == ({}, 1, [])


async def test_a_device_that_does_not_know_the_address_yet_is_asked_again_soon(
    autojump_clock: MockClock, fabric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table of addresses follows a moment later; meanwhile resolving the address fails. 10, 20, 50 and 100 ms."""
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await settle(left, right)
            fabric.failures += [OSError(errno.EADDRNOTAVAIL, "ADDR_ERROR"), *(OSError(errno.EHOSTUNREACH, "ADDR_ERROR") for _ in range(3))]
            began_s = trio.current_time()
            fabric.script.tell(AWAY)
            await trio.testing.wait_all_tasks_blocked()
            left.sendto_nowait(b"waits", (B, 4000))
            assert await right.recv() == b"waits"
            assert (drops(a)["address_absent"], drops(a)["unreachable"]) == (1, 3)
            assert 0.08 <= trio.current_time() - began_s < 0.08 + SOON_S


async def test_messages_under_way_arrive_once_and_in_order(autojump_clock: MockClock, fabric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fabric_node(fabric, A, monkeypatch) as a, fabric_node(fabric, B, monkeypatch) as b:
        with await a.bind(4000) as left, await b.bind(4000) as right:
            await settle(left, right)

            async def send(sender: rdsx.RdsSocket, receiver: rdsx.RdsSocket) -> None:
                for number in range(1000):
                    await sender.sendto(b"%d" % number, receiver.getsockname())
                    if number % 10 == 0:
                        await trio.sleep(0.001)

            async def receive(receiver: rdsx.RdsSocket) -> None:
                for number in range(1000):
                    assert await receiver.recv() == b"%d" % number

            async def move() -> None:
                for number in range(5):
                    await trio.sleep(0.003)
                    while a.statistics().connections[0].state != "up":
                        await trio.sleep(0.001)
                    fabric.script.tell(AddressChange(A, (f"p{number}",), (f"p{number + 1}",)))

            async with trio.open_nursery() as nursery:
                for one, other in ((left, right), (right, left)):
                    nursery.start_soon(send, one, other)
                    nursery.start_soon(receive, other)
                nursery.start_soon(move)
            assert drops(a)["address_moved"] == 5
            assert fabric.connections >= 6
