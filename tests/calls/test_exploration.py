"""The protocol's promises in every state of small worlds, on the real engines; and that a missing rule would be noticed.

The numbers of states are not promises: they say how much was looked at, and that it was not nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from explorekit import Bounds, Violated, World, explore
from mutants import MUTANTS, Mutant

STATES = int(os.environ.get("RDSX_STATES", "600"))  # of each world that is too large to see all of it; 60,000 take a minute or two
COMPLETE = {
    "one call that may be refused, cancelled, abandoned or fail": Bounds(cancels=True, abandons=True, fails=True, registers=True),
    "the socket refuses": Bounds(refuses=True, cancels=True),
    "window smaller than the number of calls": Bounds(calls=2, window=1),
    "no room for a second holder": Bounds(calls=2, max_holders=1),
    "one handler at a time": Bounds(calls=2, max_running=1),
    "callee restarts": Bounds(callee_lives=2),
    "callee ends in order, with a journal": Bounds(callee_lives=2, callee_ends=True, durability="journal"),
    "callee restarts, with a journal": Bounds(callee_lives=3, durability="journal", cancels=True, abandons=True),
    "callee restarts, with transactions": Bounds(callee_lives=3, durability="transaction", cancels=True, abandons=True),
    "two callers": Bounds(callers=2),
    "durable caller": Bounds(durable_calls=True, caller_lives=2),
    "durable caller, callee with a journal": Bounds(durable_calls=True, caller_lives=2, callee_lives=2, durability="journal"),
    "durable caller, callee with transactions": Bounds(durable_calls=True, caller_lives=2, callee_lives=2, durability="transaction"),
}
BOUNDED = {
    "no room for a second reply": Bounds(calls=2, max_reply_bytes=1),
    "released ranges": Bounds(calls=3, abandons=True),
    "lanes, in order of start": Bounds(calls=2, order="start", abandons=True),
    "lanes, one after another": Bounds(calls=2, order="serial", cancels=True),
    "caller restarts": Bounds(caller_lives=2),
    "both restart": Bounds(caller_lives=2, callee_lives=2, cancels=True, abandons=True),
    "callee ends in order": Bounds(callee_lives=2, callee_ends=True),
    "sessions end in order": Bounds(cancels=True, abandons=True, closes=True),
    "half-open sessions age, leases end, callees ask": Bounds(evicts=True, expires=True, max_sessions=3),
    "restarts without a store, two calls": Bounds(calls=2, callee_lives=2, cancels=True),
    "restarts with a journal, two calls": Bounds(calls=2, callee_lives=2, durability="journal", cancels=True),
    "restarts with transactions, two calls": Bounds(calls=2, callee_lives=2, durability="transaction", abandons=True),
    "durable caller, calls are given up, and its socket refuses": Bounds(
        durable_calls=True, caller_lives=3, cancels=True, abandons=True, refuses=True
    ),
    "durable caller, half-open sessions age": Bounds(calls=2, durable_calls=True, caller_lives=2, evicts=True),
    "durable and other calls, in order of start": Bounds(
        calls=2, durable_calls=True, fleeting_calls=True, caller_lives=2, order="start", abandons=True
    ),
    "both durable, two calls": Bounds(
        calls=2, durable_calls=True, fleeting_calls=True, caller_lives=2, callee_lives=2, durability="transaction", cancels=True
    ),
    "durable caller, callee without a store": Bounds(calls=2, durable_calls=True, caller_lives=2, callee_lives=2),
    "three lives of a caller, room for two half-open sessions": Bounds(caller_lives=3, ticks=False),
    "three calls, no room for a second holder": Bounds(calls=3, max_holders=1),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_every_state(name: str) -> None:
    found = explore(COMPLETE[name])
    assert found.complete
    assert found.states > 50
    assert found.resting > 0


@pytest.mark.parametrize("name", BOUNDED)
def test_the_first_states(name: str) -> None:
    found = explore(BOUNDED[name], max_states=STATES)
    assert found.complete or found.states >= STATES


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_a_missing_rule_is_noticed(mutant: Mutant) -> None:
    with pytest.raises(Violated) as caught:
        explore(mutant.bounds, mutant.world, max_states=20_000)
    assert caught.value.promise.startswith(mutant.promise), caught.value


@pytest.mark.parametrize(
    "bounds",
    {mutant.bounds: mutant.rule for mutant in MUTANTS},
    ids=lambda bounds: "-".join(f"{key}={value}" for key, value in vars(bounds).items() if value != getattr(Bounds, key)),
)
def test_what_mutants_live_in_holds_with_all_rules(bounds: Bounds) -> None:
    """So it is the missing rule that is noticed, and not the world that is wrong."""
    assert explore(replace(bounds), World, max_states=400).states > 10
