"""Probes, counted: a silent port is dead after so many intervals, but never the last one that answers."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from rdsx.rdmaip.facts import PathFact
from rdsx.rdmaip.prober import Prober

BOTH = ("p0", "p1")
MISSES = 3


class Rounds:
    """Intervals of probing, with answers through some ports in each."""

    def __init__(self) -> None:
        self.prober = Prober(BOTH, MISSES)
        self.news: list[PathFact] = []
        self.prober.tick(BOTH)

    def play(self, times: int, answers: Iterable[str], connected: Iterable[str] = BOTH) -> list[PathFact]:
        """What was new in these intervals."""
        news = []
        for _ in range(times):
            for port in answers:
                self.prober.answered(port)
            news += self.prober.tick(connected)
        return news


def test_answers_are_no_news() -> None:
    assert Rounds().play(10, BOTH) == []


def test_silence_is_news_after_so_many_misses_and_only_once() -> None:
    rounds = Rounds()
    assert rounds.play(MISSES - 1, ["p1"]) == []
    assert rounds.play(1, ["p1"]) == [PathFact("p0", False)]
    assert rounds.play(10, ["p1"]) == []


def test_one_answer_forgives_all_misses() -> None:
    rounds = Rounds()
    rounds.play(MISSES - 1, ["p1"])
    rounds.play(1, BOTH)
    assert rounds.play(MISSES - 1, ["p1"]) == []


def test_one_answer_brings_a_dead_port_back() -> None:
    rounds = Rounds()
    rounds.play(MISSES, ["p1"])
    assert rounds.play(1, BOTH) == [PathFact("p0", True)]


def test_all_silent_at_once_says_nothing() -> None:
    assert Rounds().play(10, []) == []


def test_the_last_one_is_never_declared_dead() -> None:
    rounds = Rounds()
    assert rounds.play(MISSES, ["p1"]) == [PathFact("p0", False)]
    assert rounds.play(10, []) == []
    assert rounds.play(1, ["p0"]) == [PathFact("p0", True), PathFact("p1", False)]


def test_no_link_is_no_silence() -> None:
    """A port without a link is not probed; when it is back it has all its misses before it."""
    rounds = Rounds()
    assert rounds.play(10, ["p1"], connected=["p1"]) == []
    assert rounds.play(MISSES, ["p1"]) == []
    assert rounds.play(1, ["p1"]) == [PathFact("p0", False)]


@given(st.lists(st.tuples(st.sets(st.sampled_from(BOTH)), st.sets(st.sampled_from(BOTH)))))
def test_never_all_dead_and_an_answer_is_always_believed(rounds: list[tuple[set[str], set[str]]]) -> None:
    prober = Prober(BOTH, MISSES)
    dead: set[str] = set()
    for answers, connected in rounds:
        for port in answers:
            prober.answered(port)
        for fact in prober.tick(connected):
            assert (fact.port in dead) == fact.answered  # news only
            (dead.discard if fact.answered else dead.add)(fact.port)
        assert not answers & dead
        assert dead < set(BOTH)
