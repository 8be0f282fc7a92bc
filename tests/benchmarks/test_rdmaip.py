"""The benchmark of moving addresses runs, and has a figure for everything it promises; no test here looks at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import rdmaip
from benchmarks.__main__ import main
from rdmaip.topology import obstacle

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"network namespaces: {obstacle()}")


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (rdmaip.planned_move, {"silence"}),
        (rdmaip.cable_cut, {"cut to event", "event to moved", "moved to first message", "silence"}),
        (rdmaip.other_cable_cut, {"silence"}),
        (rdmaip.dead_agent, {"restart to moved", "moved to first message"}),
    ],
)
def test_every_case(case: Callable[[Any, str], dict[str, float]], names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdmaip, "DEAD_S", 0.5)
    samples = rdmaip.play("ipv4", 1, case)
    assert set(samples) == names
    assert all(len(values) == 1 and values[0] >= 0 for values in samples.values())


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdmaip, "play", lambda family, rounds, case: {"silence": [float(rounds)]})
    result = CliRunner().invoke(main, ["rdmaip", "--rounds", "20", "--family", "ipv6", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {f"{case}, ipv6" for case in rdmaip.TARGETS_MS}
    result = CliRunner().invoke(main, ["rdmaip"])
    assert result.exit_code == 0, result.output
    assert all(case.partition(",")[0] in result.stdout for case in rdmaip.TARGETS_MS)
