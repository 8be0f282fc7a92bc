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
MOVED_ON = Progress(500, 1001, is_stalled=False)
MOVED_ON_AND_STALLED = Progress(500, 1001, is_stalled=True)


@pytest.mark.parametrize(
    ("looks", "verdicts"),
    [
        ([STALLED], [Verdict.DROP]),
        ([BUSY, MOVED_ON], [Verdict.WAIT, Verdict.KEEP]),
        ([BUSY, STALLED], [Verdict.WAIT, Verdict.DROP]),
        # Something got through since the move: that it waits again is an ordinary loss.
        ([BUSY, MOVED_ON_AND_STALLED], [Verdict.WAIT, Verdict.KEEP]),
        ([IDLE, IDLE], [Verdict.WAIT, Verdict.KEEP]),
        # What is under way may have been sent a moment ago.
        ([IDLE, BUSY, BUSY, MOVED_ON], [Verdict.WAIT, Verdict.WAIT, Verdict.WAIT, Verdict.KEEP]),
        ([IDLE, BUSY, STALLED], [Verdict.WAIT, Verdict.WAIT, Verdict.DROP]),
    ],
)
def test_verdicts(looks: list[Progress], verdicts: list[Verdict]) -> None:
    trial = Trial()
    assert [trial.look(progress) for progress in looks] == verdicts


@given(st.lists(st.builds(Progress, st.integers(0, 9), st.integers(0, 3), is_stalled=st.booleans()), min_size=1))
def test_only_what_stands_still_is_dropped(looks: list[Progress]) -> None:
    """And a link that has nothing under way is not looked at for ever."""
    trial = Trial()
    before = None
    for now in looks:
        verdict = trial.look(now)
        if verdict is Verdict.DROP:
            assert now.is_stalled
            assert before is None or now.acknowledged_bytes == before.acknowledged_bytes
        if verdict is Verdict.WAIT and before is not None:
            assert now.outstanding_bytes
        if verdict is not Verdict.WAIT:
            break
        before = now
