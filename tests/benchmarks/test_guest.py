"""The kernel's own RDS is measured beside rdsx, in a guest; no test here looks at a time."""

from __future__ import annotations

import json

import pytest

from benchmarks.guest import run_in_guest
from benchmarks.results import Measurement
from lab.readiness import require_host, require_kernel

pytestmark = pytest.mark.slow


async def test_the_kernel_in_a_guest() -> None:
    require_host()
    require_kernel("6.1")
    options = "--guest tcp --backend rdsx-kernel --scenario ping-pong --rounds 1 --messages 20 --json /run/results.json"
    results = json.loads(await run_in_guest("6.1", options.split()))
    assert (results["skipped"], results["failures"]) == ({}, [])
    measured = [Measurement(**each) for each in results["measurements"]]
    assert [(each.backend, each.messages) for each in measured] == [("rdsx-kernel", 20)]
