"""Whether a link outlives a move: what its stream does between two looks decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx.engine.survival import Trial, Verdict
from rdsx.moves import Progress

IDLE = Progress(0, 1000, is_stalled=False)
BUSY = Progress(500, 1000, is_stalled=False)
STALLED = Progress(500, 1000, is_stalled=True)
SOME_ARRIVED = Progress(400, 1200, is_stalled=False)
ARRIVED = Progress(300, 1500, is_stalled=False)
ARRIVED_AND_STALLED = Progress(300, 1500, is_stalled=True)
KEEP, WAIT, DROP = Verdict.KEEP, Verdict.WAIT, Verdict.DROP


@pytest.mark.parametrize(
    ("looks", "verdicts"),
    [
        ([STALLED], [DROP]),
        ([BUSY, ARRIVED], [WAIT, KEEP]),
        ([BUSY, STALLED], [WAIT, DROP]),
        ([BUSY, ARRIVED_AND_STALLED], [WAIT, DROP]),
        # TCP need not have given up: as long as later segments arrive, it does not.
        ([BUSY, BUSY], [WAIT, DROP]),
        # Some of it arrives: a slow link, or one of whose segments one is caught.
        ([BUSY, SOME_ARRIVED, ARRIVED], [WAIT, WAIT, KEEP]),
        ([BUSY, SOME_ARRIVED, SOME_ARRIVED], [WAIT, WAIT, DROP]),
        ([IDLE, IDLE], [WAIT, KEEP]),
        ([IDLE, ARRIVED], [WAIT, KEEP]),
        # What is under way may have been sent a moment ago.
        ([IDLE, BUSY, ARRIVED], [WAIT, WAIT, KEEP]),
        ([IDLE, BUSY, BUSY], [WAIT, WAIT, DROP]),
    ],
)
def test_verdicts(looks: list[Progress], verdicts: list[Verdict]) -> None:
    trial = Trial()
    assert [trial.look(progress) for progress in looks] == verdicts


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), min_size=1))
def test_only_what_stands_still_is_dropped(steps: list[tuple[int, int, bool]]) -> None:
    """`steps`: bytes acknowledged and sent between two looks. A link with nothing under way is not looked at for ever."""
    trial = Trial()
    acknowledged = outstanding = 0
    for number, (arrived, sent, is_stalled) in enumerate(steps):
        arrived = min(arrived, outstanding)
        stood_still = outstanding > 0 and not arrived
        acknowledged, outstanding = acknowledged + arrived, outstanding - arrived + sent
        verdict = trial.look(Progress(outstanding, acknowledged, is_stalled))
        if verdict is Verdict.DROP:
            assert is_stalled or (number and stood_still)
        if verdict is Verdict.WAIT and number:
            assert outstanding
        if verdict is not Verdict.WAIT:
            break
