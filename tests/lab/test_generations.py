"""Whether either side can tell a restart of the other from a reconnect. From 7.0 on a kernel says its generation in probes, and asks again
after each reconnect; older ones say none."""

from __future__ import annotations

import pytest
import trio

from lab.bench import Bench, Flow, open_bench
from lab.disturbances import ResetByKernel, ResetByRdsx, Restart
from lab.guest import Guest
from lab.lab import LARGER, SMALLER, Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BOTH_SIDES = pytest.mark.parametrize("address", [pytest.param(SMALLER, id="smaller"), pytest.param(LARGER, id="larger")])
MANY = 50


def has_generations(guest: Guest) -> bool:
    return int(guest.settings.kernel.release.split(".")[0]) >= 7


@BOTH_SIDES
async def test_a_reconnect_is_no_restart(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_bench(lab, fresh_guest, address, "kernel") as bench:
        await begin(bench)
        generation = (await bench.connection())["generation"]
        assert (generation is not None) == has_generations(fresh_guest)
        for disturbance in (ResetByRdsx(), ResetByKernel()):
            sent_before = await kernel_sequence(bench)
            await disturbance.strike(bench)
            await talk(bench, seed=20)
            assert (await bench.connection())["generation"] == generation
            assert await kernel_sequence(bench) > sent_before
        assert "PeerRestarted" not in await bench.events()


@BOTH_SIDES
async def test_a_restart_of_the_kernel(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_bench(lab, fresh_guest, address, "kernel") as bench:
        await begin(bench)
        generation = (await bench.connection())["generation"]
        restart = Restart("kernel")
        await restart.down(bench)
        await restart.up(bench)
        await talk(bench, seed=20)
        assert (await bench.events()).count("PeerRestarted") == has_generations(fresh_guest)
        assert ((await bench.connection())["generation"] != generation) == has_generations(fresh_guest)


@BOTH_SIDES
async def test_a_restart_of_rdsx(lab: Lab, fresh_guest: Guest, address: str) -> None:
    """A kernel that knows generations begins to count anew."""
    async with open_bench(lab, fresh_guest, address, "kernel") as bench:
        await begin(bench)
        sent_before = await kernel_sequence(bench)
        restart = Restart("rdsx")
        await restart.down(bench)
        await restart.up(bench)
        await talk(bench, seed=20)
        assert (await kernel_sequence(bench) < sent_before) == has_generations(fresh_guest)


async def begin(bench: Bench) -> None:
    for end in bench.ends:
        await end.bind()
    await talk(bench, seed=1, count=MANY)


async def talk(bench: Bench, seed: int, count: int = 1) -> None:
    """Messages each way."""
    for end in bench.ends:
        flow = Flow(sender=end.name, seed=seed, count=count)
        await bench.send(flow)
        with trio.fail_after(30):
            await bench.wait_came(flow)


async def kernel_sequence(bench: Bench) -> int:
    """The number of the kernel's next message to rdsx."""
    connections = (await bench.kernel.now.do("info"))["connections"]
    (number,) = [connection["next_tx_seq"] for connection in connections if connection["peer"] == bench.rdsx.address]
    return int(number)
