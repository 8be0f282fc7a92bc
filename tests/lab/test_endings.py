"""Ends of connections that the matrix does not have: with unread data in rdsx's socket, and by leaving `open_node`."""

from __future__ import annotations

import pytest

from lab.bench import Flow, open_bench
from lab.driver import RdsxDriver
from lab.guest import Guest
from lab.lab import LARGER, SMALLER, Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BOTH_SIDES = pytest.mark.parametrize("address", [pytest.param(SMALLER, id="smaller"), pytest.param(LARGER, id="larger")])
STALL_S = 3.0  # the kernel's 50 messages are in the socket by then


@BOTH_SIDES
async def test_reset_by_rdsx_before_it_has_read(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_bench(lab, fresh_guest, address, "kernel") as bench:
        for end in bench.ends:
            await end.bind()
        before, unread = Flow(sender="kernel", seed=1), Flow(sender="kernel", seed=2, count=50, low=1000, high=1000)
        await bench.send(before)
        await bench.wait_came(before)
        rdsx = bench.rdsx.now
        assert isinstance(rdsx, RdsxDriver)
        await rdsx.tell("stall_and_reset", host=fresh_guest.address, stall_s=STALL_S)
        await rdsx.wait_log("stalled")
        await bench.send(unread)
        await bench.wait_came(unread)
        bench.account("rdsx", before, unread)


@BOTH_SIDES
async def test_rdsx_is_closed_in_order_and_started_again(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_bench(lab, fresh_guest, address, "kernel") as bench:
        await bench.kernel.bind()
        came = []
        for life in range(3):
            if life:
                await bench.rdsx.start()
            await bench.rdsx.bind()
            flows = [Flow(sender=end.name, seed=10 * life + number, count=20, high=4096) for number, end in enumerate(bench.ends)]
            for flow in reversed(flows) if life % 2 else flows:
                await bench.send(flow)
                await bench.wait_came(flow)
            bench.account("rdsx", flows[0])
            came.append(flows[1])
            # The last thing before it closes is not waited for: leaving the node does that.
            last = Flow(sender="rdsx", seed=10 * life + 5, count=20, low=65536, high=65536)
            assert await bench.queue(last) == (last.count, None)
            rdsx = bench.rdsx.now
            assert isinstance(rdsx, RdsxDriver)
            await rdsx.close()
            await bench.wait_came(last)
            came.append(last)
        bench.account("kernel", *came)
