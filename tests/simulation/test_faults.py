"""Single faults on the virtual network, each with what must come of it and when."""

from __future__ import annotations

import trio

import rdsx
from rdsx.testing import VirtualNetwork, run

SMALLER, LARGER, NOBODY = "10.0.0.1", "10.0.0.2", "10.0.0.99"


def config(number: int) -> rdsx.NodeConfig:
    return rdsx.NodeConfig(seed=number, sequence_base=1)


async def settle(network: VirtualNetwork, one: rdsx.RdsSocket, other: rdsx.RdsSocket) -> None:
    """A message each way: the link is up and both ends have spoken."""
    for sender, receiver in ((one, other), (other, one)):
        await sender.sendto(b"begin", receiver.getsockname())
        assert await receiver.recv() == b"begin"
        await sender.flush()


def test_a_lost_link_is_replaced_as_soon_as_the_larger_end_has_something_to_say() -> None:
    """It can only poke; the smaller end, which still believes in the link, finds out by writing on it, not by keepalive."""

    async def main() -> float:
        network = VirtualNetwork(1)
        async with (
            rdsx.open_node(SMALLER, transport=network, config=config(1)) as a,
            rdsx.open_node(LARGER, transport=network, config=config(2)) as b,
        ):
            here, there = await a.bind(4000), await b.bind(4000)
            await settle(network, here, there)
            assert network.half_open(LARGER, SMALLER)
            began_s = trio.current_time()
            await there.sendto(b"still here", (SMALLER, 4000))
            assert await here.recv() == b"still here"
            return trio.current_time() - began_s

    assert run(main, seed=1) < 1.0


def test_a_peer_that_cannot_be_reached_does_not_cost_others_their_orderly_end() -> None:
    async def main() -> tuple[float, dict[str, int]]:
        network = VirtualNetwork(1)
        async with rdsx.open_node(LARGER, transport=network, config=config(2)) as b:
            there = await b.bind(4000)
            async with rdsx.open_node(SMALLER, transport=network, config=config(1)) as a:
                here = await a.bind(4000)
                await settle(network, here, there)
                await here.sendto(b"to nobody", (NOBODY, 4000))
                left_s = trio.current_time()
            await trio.sleep(0.01)
            return trio.current_time() - left_s, dict(b.statistics().drops)

    seconds, drops = run(main, seed=1)
    assert seconds < 5.0
    assert drops == {"closed_by_peer": 1}


def test_no_end_of_stream_passes_a_partition_or_overtakes_data() -> None:
    async def main() -> list[bytes]:
        network = VirtualNetwork(1)
        async with rdsx.open_node(LARGER, transport=network, config=config(2)) as b:
            there = await b.bind(4000)
            async with rdsx.open_node(SMALLER, transport=network, config=config(1)) as a:
                here = await a.bind(4000)
                await settle(network, here, there)
                network.partition(SMALLER, LARGER)
                await here.sendto(b"before the end", (LARGER, 4000))
            assert b.statistics().connections[0].state == "up"
            network.heal(SMALLER, LARGER)
            return [await there.recv()]

    assert run(main, seed=1) == [b"before the end"]
