"""Addresses that move between ports, on virtual time: which links are kept, which are dropped, and how soon there is a new one."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable

import pytest
import trio

import rdsx
from movekit import Script
from rdsx.moves import AddressChange, NeighbourChange
from rdsx.testing import VirtualNetwork, run

SMALLER, LARGER = "10.0.0.1", "10.0.0.2"
MAC, OTHER_MAC = b"\0\0\0\0\0\1", b"\0\0\0\0\0\2"
either_end = pytest.mark.parametrize("mover", [SMALLER, LARGER], ids=["smaller moves", "larger moves"])


class Scene:
    """Two nodes that have spoken with each other, and a socket of each."""

    def __init__(self, network: VirtualNetwork, a: rdsx.Node, b: rdsx.Node, left: rdsx.RdsSocket, right: rdsx.RdsSocket) -> None:
        self.network = network
        self.a, self.b = a, b
        self.left, self.right = left, right

    @property
    def reconnects(self) -> list[int | None]:
        return [node.statistics().connections[0].reconnects for node in (self.a, self.b)]

    @property
    def drops(self) -> list[dict[str, int]]:
        return [dict(node.statistics().drops) for node in (self.a, self.b)]

    @property
    def survived(self) -> list[int]:
        return [node.statistics().moves_survived for node in (self.a, self.b)]

    async def exchange(self, count: int = 3) -> None:
        for sender, receiver in ((self.left, self.right), (self.right, self.left)):
            for number in range(count):
                await sender.sendto(b"%d" % number, receiver.getsockname())
            assert [await receiver.recv() for _ in range(count)] == [b"%d" % number for number in range(count)]
            await sender.flush()


def scene(story: Callable[[Scene], Awaitable[None]], **settings: object) -> None:
    async def main() -> None:
        network = VirtualNetwork(1)

        def config(seed: int) -> rdsx.NodeConfig:
            return rdsx.NodeConfig(seed=seed, sequence_base=1, **settings)  # type: ignore[arg-type]

        async with (
            rdsx.open_node(SMALLER, transport=network, config=config(1)) as a,
            rdsx.open_node(LARGER, transport=network, config=config(2)) as b,
        ):
            with await a.bind(4000) as left, await b.bind(4000) as right:
                one = Scene(network, a, b, left, right)
                await one.exchange()
                await story(one)

    run(main, seed=1)


@either_end
def test_a_link_that_goes_on_is_kept(mover: str) -> None:
    async def story(one: Scene) -> None:
        one.network.move(mover)
        await trio.sleep(0.01)
        await one.exchange()
        await trio.sleep(1)
        assert (one.reconnects, one.drops, one.survived) == ([0, 0], [{}, {}], [1, 1])

    scene(story)


@either_end
def test_an_idle_link_is_kept(mover: str) -> None:
    async def story(one: Scene) -> None:
        one.network.move(mover)
        await trio.sleep(1)
        await one.exchange()
        assert (one.reconnects, one.drops, one.survived) == ([0, 0], [{}, {}], [1, 1])

    scene(story)


@either_end
@pytest.mark.parametrize("sender", [SMALLER, LARGER], ids=["smaller sends", "larger sends"])
def test_a_link_that_stands_still_is_replaced_at_once(mover: str, sender: str) -> None:
    """The way is shut for 8 s: the address moves, a moment later the way is free. Whoever has sent notices; the smaller end dials."""

    async def story(one: Scene) -> None:
        here, there = (one.left, one.right) if sender == SMALLER else (one.right, one.left)
        one.network.partition(SMALLER, LARGER)
        await here.sendto(b"waits", there.getsockname())
        await trio.sleep(8)
        one.network.move(mover)
        await trio.sleep(0.001)
        freed_s = trio.current_time()
        one.network.heal(SMALLER, LARGER)
        assert await there.recv() == b"waits"
        assert trio.current_time() - freed_s < 0.5
        await one.exchange()
        assert one.reconnects == [1, 1]
        index = [SMALLER, LARGER].index(sender)
        assert one.drops[index]["address_moved" if mover == sender else "peer_moved"] == 1

    scene(story)


def test_bytes_that_have_just_been_sent_are_no_reason() -> None:
    """There was nothing to send for long; then there is, a moment before the second look."""

    async def story(one: Scene) -> None:
        await trio.sleep(100)
        one.network.move(SMALLER)
        await trio.sleep(0.2999)
        await one.left.sendto(b"just now", one.right.getsockname())
        assert await one.right.recv() == b"just now"
        await trio.sleep(1)
        assert (one.reconnects, one.survived) == ([0, 0], [1, 1])

    scene(story)


def test_a_link_that_comes_to_a_stand_after_the_move_is_replaced_too() -> None:
    """The address is elsewhere, and the way to it is not: that shows only at a later look."""

    async def story(one: Scene) -> None:
        one.network.partition(SMALLER, LARGER)
        await one.left.sendto(b"waits", one.right.getsockname())
        one.network.move(LARGER)
        await trio.sleep(0.1)
        assert one.drops == [{}, {}]
        await trio.sleep(0.3)
        assert one.drops == [{"peer_moved": 1}, {}]
        one.network.heal(SMALLER, LARGER)
        assert await one.right.recv() == b"waits"

    scene(story)


@either_end
@pytest.mark.parametrize("dialled_s", [0.05, 2.0])
def test_a_dial_that_went_the_old_way_is_given_up(mover: str, dialled_s: float) -> None:
    """It would ask again only after a second, and more and more rarely."""

    async def story(one: Scene) -> None:
        one.network.partition(SMALLER, LARGER)
        assert one.a.reset_connection(LARGER)
        await one.left.sendto(b"waits", one.right.getsockname())
        await trio.sleep(dialled_s)
        assert one.a.statistics().connections[0].state == "connecting"
        one.network.move(mover)
        await trio.sleep(0.001)
        reason = "address_moved" if mover == SMALLER else "peer_moved"
        assert one.drops[0] == {"reset_by_user": 1, reason: 1}
        assert one.a.statistics().connections[0].state == "connecting"
        one.network.heal(SMALLER, LARGER)
        assert await one.right.recv() == b"waits"

    scene(story)


@either_end
def test_who_does_not_follow_keeps_what_it_has(mover: str) -> None:
    async def story(one: Scene) -> None:
        one.network.partition(SMALLER, LARGER)
        await one.left.sendto(b"waits", one.right.getsockname())
        await trio.sleep(8)
        one.network.move(mover)
        await trio.sleep(1)
        one.network.heal(SMALLER, LARGER)
        assert await one.right.recv() == b"waits"
        assert (one.reconnects, one.drops, one.survived) == ([0, 0], [{}, {}], [0, 0])

    scene(story, follow_moves=False)


# -- what a node is told, step by step


class ToldNetwork(VirtualNetwork):
    """Tells nodes what the test has written."""

    def __init__(self, script: Script | OSError) -> None:
        super().__init__(1)
        self.script = script

    def watch(self, hosts: object) -> Script:  # type: ignore[override]
        if isinstance(self.script, OSError):
            raise self.script
        return self.script


async def told(story: Callable[[Scene, Script], Awaitable[None]], max_peers: int = 4096) -> None:
    """A scene whose smaller node hears what the test tells; the larger one hears nothing."""
    script = Script()
    network = ToldNetwork(script)
    async with (
        rdsx.open_node(SMALLER, transport=network, config=rdsx.NodeConfig(seed=1, sequence_base=1, max_peers=max_peers)) as a,
        rdsx.open_node(LARGER, transport=network, config=rdsx.NodeConfig(seed=2, sequence_base=1, follow_moves=False)) as b,
    ):
        with await a.bind(4000) as left, await b.bind(4000) as right:
            one = Scene(network, a, b, left, right)
            await one.exchange()
            await story(one, script)
    assert script.closed


def test_what_does_not_concern_the_node_is_ignored() -> None:
    async def story(one: Scene, script: Script) -> None:
        one.network.partition(SMALLER, LARGER)
        await one.left.sendto(b"waits", one.right.getsockname())
        await trio.sleep(1)
        script.tell(AddressChange("10.0.0.77", ("p0",), ("p1",)))
        script.tell(NeighbourChange("10.0.0.77", "p0", MAC, OTHER_MAC))
        # Gone is not somewhere else: nothing could be dialled.
        script.tell(AddressChange(SMALLER, ("p0",), ()))
        script.tell(NeighbourChange(LARGER, "p0", MAC, None))
        await trio.sleep(1)
        assert (one.drops, one.survived) == ([{}, {}], [0, 0])
        # Back where it was: what stands still is dropped, but it is no move.
        script.tell(AddressChange(SMALLER, (), ("p0",)))
        await trio.sleep(0.001)
        assert one.drops[0] == {"address_moved": 1}
        one.network.heal(SMALLER, LARGER)
        assert await one.right.recv() == b"waits"

    run(told, story, seed=1)


def test_a_return_is_no_move() -> None:
    async def story(one: Scene, script: Script) -> None:
        script.tell(AddressChange(SMALLER, ("p0",), ()))
        script.tell(AddressChange(SMALLER, (), ("p0",)))
        script.tell(NeighbourChange(LARGER, "p0", MAC, None))
        script.tell(NeighbourChange(LARGER, "p0", None, MAC))
        await trio.sleep(1)
        assert one.survived == [0, 0]
        script.tell(AddressChange(SMALLER, ("p0",), ("p0", "p1")))  # nothing has left its port
        await trio.sleep(1)
        assert one.survived == [0, 0]
        script.tell(AddressChange(SMALLER, ("p0", "p1"), ("p1",)))
        await trio.sleep(1)
        assert one.survived == [1, 0]

    run(told, story, seed=1)


def test_a_move_in_two_steps_is_one() -> None:
    async def story(one: Scene, script: Script) -> None:
        script.tell(AddressChange(SMALLER, ("p0",), ("p0", "p1")))
        await trio.sleep(0.02)
        script.tell(AddressChange(SMALLER, ("p0", "p1"), ("p1",)))
        await trio.sleep(1)
        assert one.survived == [1, 0]

    run(told, story, seed=1)


def test_a_move_by_way_of_nowhere_is_one() -> None:
    async def story(one: Scene, script: Script) -> None:
        script.tell(AddressChange(SMALLER, ("p0",), ()))
        script.tell(AddressChange(SMALLER, (), ("p1",)))
        await trio.sleep(1)
        assert one.survived == [1, 0]
        script.tell(NeighbourChange(LARGER, "p0", MAC, None))
        script.tell(NeighbourChange(LARGER, "p0", None, OTHER_MAC))
        await trio.sleep(1)
        assert one.survived == [2, 0]

    run(told, story, seed=1)


def test_many_moves_at_once_are_one_trial() -> None:
    async def story(one: Scene, script: Script) -> None:
        for number in range(10):
            script.tell(AddressChange(SMALLER, (f"p{number}",), (f"p{number + 1}",)))
            await trio.sleep(0.02)
        await trio.sleep(1)
        assert (one.survived, one.drops) == ([1, 0], [{}, {}])

    run(told, story, seed=1)


def test_what_is_remembered_of_silent_peers_is_bounded() -> None:
    """With room for one, the one that fell silent last is known again."""

    async def story(one: Scene, script: Script) -> None:
        for port in ("p0", "p1"):
            script.tell(NeighbourChange(LARGER, port, MAC, None))
        for port, survived in (("p0", 0), ("p1", 1)):
            script.tell(NeighbourChange(LARGER, port, None, OTHER_MAC))
            await trio.sleep(1)
            assert one.survived == [survived, 0]

    run(told, story, 1, seed=1)


def test_a_move_during_a_trial_begins_it_anew() -> None:
    """Bytes that got through before the second move would have the link kept."""

    async def story(one: Scene, script: Script) -> None:
        script.tell(AddressChange(SMALLER, ("p0",), ("p1",)))
        await trio.sleep(0.1)
        await one.exchange()
        one.network.partition(SMALLER, LARGER)
        await one.left.sendto(b"waits", one.right.getsockname())
        script.tell(AddressChange(SMALLER, ("p1",), ("p0",)))
        await trio.sleep(0.25)
        assert one.drops == [{}, {}]
        await trio.sleep(0.1)
        assert (one.drops[0], one.survived[0]) == ({"address_moved": 1}, 0)
        one.network.heal(SMALLER, LARGER)
        assert await one.right.recv() == b"waits"

    run(told, story, seed=1)


def test_a_link_that_ends_by_itself_ends_its_trial() -> None:
    async def story(one: Scene, script: Script) -> None:
        script.tell(AddressChange(SMALLER, ("p0",), ("p1",)))
        await trio.sleep(0.1)
        one.network.cut(SMALLER, LARGER)
        await one.exchange()
        await trio.sleep(1)
        assert one.survived == [0, 0]
        assert "address_moved" not in one.drops[0]

    run(told, story, seed=1)


def test_a_dial_is_not_disturbed_by_the_answer_to_it() -> None:
    """The neighbour becomes known because we dial it; only a dial that got no answer for long is begun anew."""

    async def story(one: Scene, script: Script) -> None:
        one.network.partition(SMALLER, LARGER)
        assert one.a.reset_connection(LARGER)
        await trio.sleep(0.1)
        script.tell(NeighbourChange(LARGER, "p0", None, MAC))
        await trio.sleep(0.001)
        assert one.drops[0] == {"reset_by_user": 1}
        await trio.sleep(0.2)
        script.tell(NeighbourChange(LARGER, "p0", MAC, None))
        script.tell(NeighbourChange(LARGER, "p0", None, MAC))
        await trio.sleep(0.001)
        assert one.drops[0] == {"reset_by_user": 1, "peer_moved": 1}
        one.network.heal(SMALLER, LARGER)
        await one.exchange()

    run(told, story, seed=1)


def test_a_node_that_cannot_be_told_works(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        network = ToldNetwork(OSError(errno.EAFNOSUPPORT, "no netlink here"))
        async with rdsx.open_node(SMALLER, transport=network) as a, rdsx.open_node(LARGER, transport=network) as b:
            with await a.bind(4000) as left, await b.bind(4000) as right:
                await Scene(network, a, b, left, right).exchange()

    with caplog.at_level(logging.WARNING, "rdsx"):
        run(main, seed=1)
    assert [record.message for record in caplog.records] == ["moves of addresses are not followed: [Errno 97] no netlink here"] * 2


def test_a_node_that_is_told_no_more_works(caplog: pytest.LogCaptureFixture) -> None:
    async def story(one: Scene, script: Script) -> None:
        script.fail(OSError(errno.EBUSY, "too much"))
        await trio.sleep(0.001)
        assert script.closed
        await one.exchange()

    with caplog.at_level(logging.WARNING, "rdsx"):
        run(told, story, seed=1)
    assert [record.message for record in caplog.records] == ["moves of addresses are no longer followed: [Errno 16] too much"]
