"""When an action may be tried again."""

from __future__ import annotations

from rdsx.rdmaip.actions import AddAddress
from rdsx.rdmaip.retries import FIRST_S, FREE, LAST_S, SPACING_S, Retries

ON_P0, ON_P1 = (AddAddress, "10.9.0.11", "p0"), (AddAddress, "10.9.0.11", "p1")
OTHER = (AddAddress, "10.9.0.12", "p0")


def test_refusals_wait_longer_each_time() -> None:
    retries = Retries()
    assert [retries.refused(ON_P0, 0.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not retries.allows(ON_P0, LAST_S - 0.1)
    assert retries.allows(ON_P0, LAST_S)
    assert retries.allows(ON_P1, 0.0)
    retries.succeeded(ON_P0, LAST_S)
    assert retries.refused(ON_P0, LAST_S) == FIRST_S


def test_what_somebody_undoes_all_the_time_is_slowed_down() -> None:
    retries = Retries()
    for time_s in range(FREE):
        assert retries.allows(ON_P0, time_s)
        retries.succeeded(ON_P0, time_s)
        retries.succeeded(OTHER, time_s + 0.5)
    assert not retries.allows(ON_P0, FREE - 1 + SPACING_S - 0.1)
    assert retries.allows(ON_P0, FREE - 1 + SPACING_S)


def test_what_we_move_ourselves_does_not_wait() -> None:
    retries = Retries()
    for time_s in range(10 * FREE):
        for key in (ON_P0, ON_P1):
            assert retries.allows(key, time_s / 100)
            retries.succeeded(key, time_s / 100)
