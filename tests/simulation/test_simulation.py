"""At least 1,000 seeded clusters, each with its own faults; see simkit. RDSX_SEED=N runs one seed alone, RDSX_SEEDS=N that many."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from simkit import simulate

SEEDS = int(os.environ.get("RDSX_SEEDS", "1000"))
CHUNK = 50
FAULTS = ("cut at byte", "partition", "half-open", "wrote to nobody", "restart", "crash", "superseded", "reset_by_user")
MOVES = ("move ", "address_moved", "peer_moved")


def chunks() -> list[range]:
    if "RDSX_SEED" in os.environ:
        seed = int(os.environ["RDSX_SEED"])
        return [range(seed, seed + 1)]
    return [range(first, min(first + CHUNK, SEEDS)) for first in range(0, SEEDS, CHUNK)]


@pytest.mark.parametrize("seeds", chunks(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_seeds(seeds: range) -> None:
    for seed in seeds:
        simulate(seed)


def test_a_seed_repeats_itself() -> None:
    first, second = simulate(7), simulate(7)
    assert first.network.transcript == second.network.transcript
    assert first.got == second.got


def test_the_seeds_meet_every_fault() -> None:
    """The chaos is real: over a few seeds every kind of fault happens, and messages get through nonetheless."""
    seen: Counter[str] = Counter()
    delivered = 0
    for seed in range(40):
        cluster = simulate(seed)
        delivered += sum(len(life) for flow in cluster.got.values() for life in flow.values())
        for line in cluster.network.transcript:
            for fault in FAULTS + MOVES:
                seen[fault] += fault in line
    assert delivered > 1000
    assert all(seen[fault] for fault in FAULTS + MOVES), seen
