"""Where an address should be, in every situation of three ports, against the rules read word for word; and how a choice is made."""

from __future__ import annotations

from itertools import chain, combinations, permutations

import pytest

from rdsx.rdmaip.placement import Situation, Standing, Verdict, place

PORTS = ("a", "b", "c")


def subsets(ports: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(ports, size) for size in range(len(ports) + 1)))


def ordered(ports: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [order for subset in subsets(ports) if len(subset) < 3 for order in permutations(subset)]


def as_specified(situation: Situation, usable: tuple[str, ...]) -> Verdict | None:
    """The rules, one line each; None where one of several ports may be chosen."""
    alive = [port for port in situation.copies if port in usable]
    home = situation.home
    reachable = home in usable and home in (*situation.candidates, *situation.copies)
    if reachable and situation.home_ready:
        return Verdict(home, Standing.HOME)
    if reachable and not alive:
        return Verdict(home, Standing.HOME)
    if alive:
        return Verdict(alive[0], Standing.HOME if alive[0] == home else Standing.STAY)
    if set(situation.candidates) & set(usable):
        return None
    if situation.copies:
        return Verdict(situation.copies[0], Standing.PARKED)
    if situation.strays:
        return Verdict(situation.strays[0], Standing.PARKED)
    if situation.candidates and home not in situation.candidates:
        return Verdict(situation.candidates[0], Standing.PARKED)
    return Verdict(home, Standing.PARKED)


@pytest.mark.parametrize("choose", ["least-loaded", "first"])
def test_every_situation(choose: str) -> None:
    looked_at = 0
    for usable in subsets(PORTS):
        for copies in ordered(PORTS):
            for candidates in subsets(PORTS):
                for home_ready in (True, False):
                    for strays in ((), ("x",)):
                        situation = Situation("ip", "a", home_ready, copies, strays, candidates)
                        found = place([situation], usable, choose)["ip"]
                        expected = as_specified(situation, usable)
                        if expected is None:
                            first = next(port for port in candidates if port in usable)
                            expected = Verdict(first, Standing.FAILOVER)
                        assert found == expected, (situation, usable)
                        looked_at += 1
    assert looked_at == 8 * 10 * 8 * 2 * 2


def lost(ip: str, candidates: tuple[str, ...] = PORTS) -> Situation:
    return Situation(ip, "gone", False, (), (), candidates)


def settled(ip: str, port: str) -> Situation:
    return Situation(ip, port, True, (port,), (), PORTS)


def test_the_least_loaded() -> None:
    verdicts = place([lost("1"), lost("2"), settled("3", "a"), settled("4", "b"), lost("5")], PORTS, "least-loaded")
    assert [verdicts[ip].port for ip in "125"] == ["c", "a", "b"]


def test_the_first() -> None:
    verdicts = place([lost("1"), lost("2", ("b", "c")), settled("3", "a")], PORTS, "first")
    assert [verdicts[ip].port for ip in "12"] == ["a", "b"]
