"""The recorder still makes captures that the replay takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.guest import Guest
from lab.lab import LARGER, SMALLER, Lab
from lab.record import CASES, Case, keep, record_case
from lab.traffic import digest
from replaykit import check_rules, load, payload_digests

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.mark.parametrize("address", [pytest.param(SMALLER, id="smaller"), pytest.param(LARGER, id="larger")])
async def test_record_and_load(lab: Lab, guest: Guest, address: str, tmp_path: Path) -> None:
    case = Case(lab, guest, address)
    raw = await record_case(case, CASES["single-kernel-first"])
    keep(tmp_path / "some", "single", raw, case.provenance)
    recorded = load("some/single", tmp_path)
    (life,) = recorded.lives
    assert (recorded.kernel, recorded.rdsx) == (guest.address, address)
    written = check_rules(life.connections, is_smaller=recorded.is_smaller)
    assert [digest(frame.payload) for frame in written if frame.is_data] == payload_digests(life.to_kernel)
    assert [digest(frame.payload) for frame in life.kernel_frames if frame.is_data] == payload_digests(life.to_rdsx)
