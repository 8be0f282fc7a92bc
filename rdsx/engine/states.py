"""The life of a connection, as a table.

    Rule 1. A connection outlives its links. It owns sequence numbers and unacknowledged messages; a link is one TCP connection.
    Rule 2. Only UP carries messages.
    Rule 3. Every link ends in DOWN: a broken one by way of ERROR, one that we close in order directly by way of DISCONNECTING.
    Rule 4. A move is legal from exactly the states that the table names; anything else is a bug of ours.

The names are the kernel's. RESETTING, by which a kernel swaps the socket under an outstanding connect, has no place here: a newer
link waits until the older one is read to its end. The diagram in docs/protocol.md is drawn from TRANSITIONS and a test holds the
two together.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "IllegalMove", "Move", "State", "diagram", "moved"]


class State(Enum):
    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    ERROR = "error"
    DISCONNECTING = "disconnecting"


class Move(Enum):
    DIAL = "dial"  # we start a connect
    ACCEPT = "accept"  # the peer's connect is taken up, our own dial having been given up
    CONNECTED = "connected"  # a link is there
    CONNECT_FAILED = "connect failed"  # refused, unreachable, timed out; or a poke has done its work
    DROP = "drop"  # end of stream, reset, bad bytes, or somebody asked
    SHUT = "shut down"  # the link is being torn down
    GONE = "gone"  # the link is gone, the path is reset


TRANSITIONS: dict[State, dict[Move, State]] = {
    State.DOWN: {Move.DIAL: State.CONNECTING, Move.ACCEPT: State.CONNECTING},
    State.CONNECTING: {Move.CONNECTED: State.UP, Move.CONNECT_FAILED: State.DOWN},
    State.UP: {Move.DROP: State.ERROR, Move.SHUT: State.DISCONNECTING},
    State.ERROR: {Move.SHUT: State.DISCONNECTING},
    State.DISCONNECTING: {Move.GONE: State.DOWN},
}


class IllegalMove(AssertionError):
    """A move that the table does not have: a bug in rdsx, never a peer's doing."""


def moved(state: State, move: Move) -> State:
    """The state after `move`. Raises IllegalMove."""
    try:
        return TRANSITIONS[state][move]
    except KeyError:
        raise IllegalMove(f"{move.value!r} in state {state.name}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", "    [*] --> DOWN"]
    for state, moves in TRANSITIONS.items():
        lines += [f"    {state.name} --> {after.name}: {move.value}" for move, after in moves.items()]
    return "\n".join(lines)
