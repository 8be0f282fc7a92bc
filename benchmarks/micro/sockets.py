"""Cases of the public calls over loopback, and of `_pace`: what Python and trio add to `_fast`."""

from __future__ import annotations

from itertools import repeat

import rdsx
from benchmarks.micro.case import Measure, case
from benchmarks.micro.fast import HOST, SMALL
from rdsx._pace import Pace

BATCH = 64
# Yields are counted in calls alone: a count must not depend on how fast the machine is.
CONFIG = rdsx.NodeConfig(yield_interval_s=1e9, seed=1, sequence_base=1)


@case("pace due")
async def due(measure: Measure) -> None:
    pace = Pace(1e9, 1 << 31)
    pace.yielded()

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            pace.due()

    await measure(loop)


@case("sockets sendto and recvfrom")
async def one_by_one(measure: Measure) -> None:
    async with rdsx.open_node(HOST, transport="loop", config=CONFIG) as node:
        with await node.bind(4000) as sock:
            address = sock.getsockname()

            async def loop(rounds: int) -> None:
                for _ in repeat(None, rounds):
                    await sock.sendto(SMALL, address)
                    await sock.recvfrom()

            await measure(loop)


@case("sockets sendmmsg and recvmmsg", operations=BATCH, counted_rounds=256)
async def batches(measure: Measure) -> None:
    async with rdsx.open_node(HOST, transport="loop", config=CONFIG) as node:
        with await node.bind(4000) as sock:
            batch = [(SMALL, sock.getsockname())] * BATCH

            async def loop(rounds: int) -> None:
                for _ in repeat(None, rounds):
                    await sock.sendmmsg(batch)
                    await sock.recvmmsg(BATCH)

            await measure(loop)
