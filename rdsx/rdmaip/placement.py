"""Where each address should be. Owns the rules of placement, as functions of what is known; remembers nothing.

    1. Home, if home can be used and has settled; or unsettled, if no port that has the address can be used.
    2. Else where it is, if it is on a port that can be used.
    3. Else on the best usable port that may have it.
    4. Else it is parked: where it is, or if it is nowhere at home, or else on any port that exists.

Addresses that need no new port are placed first, so that the others are spread over what is really there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Situation", "Standing", "Verdict", "place"]


class Standing(Enum):
    """Which rule placed an address."""

    HOME = "home"
    STAY = "guest"
    FAILOVER = "failover"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Situation:
    """What counts for one address."""

    ip: str
    home: str
    """Where it belongs; while an operator pins it, the port where it is pinned."""
    home_ready: bool
    """Whether it may go home from a port that can be used: home has settled, and nothing holds the address back."""
    copies: tuple[str, ...]
    """Ports that have it and may have it, the one that has it longest first."""
    strays: tuple[str, ...]
    """Ports that have it and may not."""
    candidates: tuple[str, ...]
    """Ports that it may be put on, in the order of preference."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where an address should be, and by which rule."""

    port: str
    standing: Standing


def place(situations: Iterable[Situation], usable: Collection[str], choose: str) -> dict[str, Verdict]:
    """The verdict for each address, by IP. `usable`: ports that can carry traffic; `choose`: "least-loaded" or "first"."""
    verdicts: dict[str, Verdict] = {}
    homeless = []
    for situation in situations:
        verdict = _settled_verdict(situation, usable)
        if verdict is None:
            homeless.append(situation)
        else:
            verdicts[situation.ip] = verdict
    load = Counter(verdict.port for verdict in verdicts.values())
    for situation in homeless:
        open_ports = [port for port in situation.candidates if port in usable]
        port = min(open_ports, key=load.__getitem__) if choose == "least-loaded" else open_ports[0]
        load[port] += 1
        verdicts[situation.ip] = Verdict(port, Standing.FAILOVER)
    return verdicts


def _settled_verdict(situation: Situation, usable: Collection[str]) -> Verdict | None:
    """Rules 1, 2 and 4; None where a port must be chosen."""
    home = situation.home
    alive = [port for port in situation.copies if port in usable]
    can_be_home = home in usable and (home in situation.candidates or home in situation.copies)
    if can_be_home and (situation.home_ready or not alive):
        return Verdict(home, Standing.HOME)
    if alive:
        return Verdict(alive[0], Standing.HOME if alive[0] == home else Standing.STAY)
    if any(port in usable for port in situation.candidates):
        return None
    first_choice = (home,) if home in situation.candidates else ()
    return Verdict((*situation.copies, *situation.strays, *first_choice, *situation.candidates, home)[0], Standing.PARKED)
