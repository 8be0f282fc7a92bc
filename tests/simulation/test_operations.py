"""One-sided operations while connections are cut: each is done once or not at all, and its outcome says which it may be.

RDSX_SEED=N runs one seed alone.
"""

from __future__ import annotations

import os
import random
import struct

import pytest
import trio

import rdsx
from rdsx.testing import Faults, VirtualNetwork, run

SEEDS = [int(os.environ["RDSX_SEED"])] if "RDSX_SEED" in os.environ else range(25)
A, B = "10.0.0.1", "10.0.0.2"
TASKS, EACH = 8, 40
SLOTS = 64


async def cut_now_and_then(network: VirtualNetwork, choices: random.Random) -> None:
    while True:
        await trio.sleep(choices.uniform(0.001, 0.02))
        network.cut(A, B, after_bytes=choices.choice([0, 0, choices.randrange(4000)]))


async def add(sock: rdsx.RdsSocket, cookie: int, to: tuple[str, int], at: int, found: list[int], unknown: list[int]) -> None:
    for _ in range(EACH):
        operation = await sock.fetch_and_add(1, cookie, to, offset=at)
        outcome = await operation.wait()
        if outcome is rdsx.RdmaOutcome.SUCCESS:
            found.append(operation.old_value)
        else:
            assert outcome is rdsx.RdmaOutcome.DROPPED
            unknown.append(1)


async def write(sock: rdsx.RdsSocket, cookie: int, to: tuple[str, int], slot: int, told: dict[int, bytes]) -> None:
    """A slot of its own: what the last write that succeeded left there, or a later one that was dropped."""
    for number in range(EACH):
        data = struct.pack("=QQ", slot, number)
        operation = await sock.rdma_write(data, cookie, to, offset=16 * slot, message=data)
        if await operation.wait() is rdsx.RdmaOutcome.SUCCESS:
            told[slot] = data


async def receive(sock: rdsx.RdsSocket, memory: bytearray, start: int) -> None:
    """A message that comes behind a write finds it done."""
    async for data, _ in sock:
        if len(data) == 16:
            slot, number = struct.unpack("=QQ", data)
            at = start + 16 * slot
            assert struct.unpack_from("=QQ", memory, at)[1] >= number


@pytest.mark.parametrize("seed", SEEDS)
def test_each_is_done_once_or_not_at_all(seed: int) -> None:
    print(f"RDSX_SEED={seed}")
    simulate(seed)


def test_the_seeds_meet_both() -> None:
    """Among the operations that were dropped are some that had been done, and some that had not."""
    counts = [simulate(seed) for seed in range(6)]
    assert any(number > succeeded for number, succeeded in counts)
    assert any(number < TASKS * EACH for number, _ in counts)


def simulate(seed: int) -> tuple[int, int]:
    """What all additions came to, and how many said that they were done."""

    async def main() -> tuple[int, int]:
        choices = random.Random(seed)
        network = VirtualNetwork(seed, Faults(partial_writes=0.2))
        async with (
            rdsx.open_node(A, transport=network, config=rdsx.NodeConfig(seed=seed, sequence_base=1)) as a,
            rdsx.open_node(B, transport=network, config=rdsx.NodeConfig(seed=seed + 1, sequence_base=1)) as b,
        ):
            asker, owner = (await a.bind(4000), await b.bind(4000)) if seed % 2 else (await b.bind(4000), await a.bind(4000))
            memory = bytearray(8 + 16 * SLOTS + 8)
            cookie, to = await owner.get_mr(memory), owner.getsockname()
            at = -(cookie >> 32) % 8
            found: list[int] = []
            unknown: list[int] = []
            told: dict[int, bytes] = {}
            async with trio.open_nursery() as disturbing:
                disturbing.start_soon(cut_now_and_then, network, choices)
                disturbing.start_soon(receive, owner, memory, 0)
                async with trio.open_nursery() as working:
                    for _ in range(TASKS):
                        working.start_soon(add, asker, cookie, to, at, found, unknown)
                    for slot in range(2, 2 + TASKS):
                        working.start_soon(write, asker, cookie, to, slot, told)
                disturbing.cancel_scope.cancel()
            (number,) = struct.unpack_from("=Q", memory, at)
            assert len(found) + len(unknown) == TASKS * EACH
            assert len(set(found)) == len(found), "two additions found the same number"
            assert len(found) <= number <= len(found) + len(unknown)
            for slot, data in told.items():
                kept = struct.unpack_from("=QQ", memory, 16 * slot)
                assert kept[0] == slot
                assert kept[1] >= struct.unpack("=QQ", data)[1]
            return number, len(found)

    return run(main, seed=seed)
