"""Every interleaving in small hosts: ports fail and return, holds expire, one action is done, the agent is killed and started again.

After each step the promises of `World.check` hold; and a policy with one rule removed breaks one of them, so the search can see what each
rule prevents. The numbers of states are not promises: they say how much was looked at. `RDSX_STATES` sets how much of the larger hosts is.
"""

from __future__ import annotations

import os

import pytest

from rdmaipexplore import Bounds, Violated, explore
from rdmaipmutants import MUTANTS, Mutant

STATES = int(os.environ.get("RDSX_STATES", "400"))  # of each host that is too large to see all of it; 100,000 take minutes
COMPLETE = {
    "one port, two addresses": Bounds(ports=1, addresses=2, kills=1),
    "two ports, one address": Bounds(ports=2, addresses=1),
}
BOUNDED = {
    "two ports, two addresses that never go home": Bounds(ports=2, addresses=2, failback="never"),
    "two ports, one address, two kills": Bounds(ports=2, addresses=1, kills=2),
    "two ports, two addresses, one kill": Bounds(ports=2, addresses=2, kills=1),
    "two ports, four addresses, one kill": Bounds(ports=2, addresses=4, kills=1),
    "three ports, two addresses, two kills": Bounds(ports=3, addresses=2, kills=2),
    "three ports, three addresses, one kill": Bounds(ports=3, addresses=3, kills=1),
    "four ports, two addresses, one kill": Bounds(ports=4, addresses=2, kills=1),
    "ports vanish": Bounds(ports=2, addresses=2, vanish=True),
    "interfaces go down": Bounds(ports=2, addresses=2, admin=True, kills=1),
    "somebody takes and puts addresses": Bounds(ports=2, addresses=1, meddle=3, kills=1),
    "operators move and drain": Bounds(ports=3, addresses=1, operate=True, kills=1),
    "the kernel refuses": Bounds(ports=3, addresses=1, refuse=True, kills=1),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_every_state(name: str) -> None:
    found = explore(COMPLETE[name])
    assert found.complete
    assert found.states > 100
    assert found.resting > 10


@pytest.mark.parametrize("name", BOUNDED)
def test_the_first_states(name: str) -> None:
    found = explore(BOUNDED[name], max_states=STATES)
    assert found.complete or found.states >= STATES
    assert found.longest_plan > 3


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_a_missing_rule_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.apply(monkeypatch)
    with pytest.raises(Violated) as caught:
        explore(mutant.bounds, max_states=5_000)
    assert caught.value.promise.startswith(mutant.promise), caught.value


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_what_mutants_live_in_holds_with_all_rules(mutant: Mutant) -> None:
    """So it is the missing rule that is noticed, and not the host that is wrong."""
    assert explore(mutant.bounds, max_states=150).states > 10
