"""The transition table: exactly these moves, and every state can get back to DOWN."""

from __future__ import annotations

from itertools import product

import pytest

from rdsx.engine.states import TRANSITIONS, IllegalMove, Move, State, diagram, moved

LEGAL = {(state, move) for state, moves in TRANSITIONS.items() for move in moves}


@pytest.mark.parametrize(("state", "move"), sorted(product(State, Move), key=str))
def test_every_pair_is_legal_or_refused(state: State, move: Move) -> None:
    if (state, move) in LEGAL:
        assert moved(state, move) is TRANSITIONS[state][move]
    else:
        with pytest.raises(IllegalMove, match=state.name):
            moved(state, move)


def test_only_connected_leads_to_up() -> None:
    assert {move for moves in TRANSITIONS.values() for move, after in moves.items() if after is State.UP} == {Move.CONNECTED}


def test_down_is_reachable_from_everywhere() -> None:
    home = {State.DOWN}
    while grown := {state for state, moves in TRANSITIONS.items() if home & set(moves.values())} - home:
        home |= grown
    assert home == set(State)


def test_only_a_link_that_is_up_can_be_dropped() -> None:
    assert {state for state in State if Move.DROP in TRANSITIONS[state]} == {State.UP}


def test_the_diagram_has_one_arrow_for_each_move() -> None:
    assert diagram().count("-->") == len(LEGAL) + 1
