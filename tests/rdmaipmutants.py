"""The policy with one rule removed each. The search must find what each rule prevents, or it has lost its teeth.

A mutant replaces one function; `bounds` is the smallest host that shows the damage, `promise` the one that breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from rdmaipexplore import Bounds
from rdsx.rdmaip import planner, policy
from rdsx.rdmaip.actions import Action, AddAddress, RemoveAddress
from rdsx.rdmaip.address import Address
from rdsx.rdmaip.placement import Situation, Standing, Verdict
from rdsx.rdmaip.policy import Policy

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    rule: str
    promise: str
    bounds: Bounds
    owner: Any
    name: str
    replacement: Callable[..., Any]

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.owner, self.name, self.replacement)
        if self.owner is planner and self.name == "next_step":
            monkeypatch.setattr(policy, "next_step", self.replacement)


next_step, next_announcement = planner.next_step, planner.next_announcement


def removes_first(view: Policy, address: Address) -> Action | None:
    verdict = view.verdicts.get(address.ip)
    if verdict is not None:
        for port, prefix in address.copies:
            if port != verdict.port:
                return RemoveAddress(address.ip, port, prefix)
    return next_step(view, address)


def never_trims(view: Policy, address: Address, port: str) -> Action | None:
    return None


def adds_without_room(view: Policy, address: Address) -> Action | None:
    verdict = view.verdicts.get(address.ip)
    if verdict is None or address.wanted(verdict.port, view.config.mark) or not view.is_present(verdict.port):
        return next_step(view, address)
    return AddAddress(address.ip, verdict.port, address.prefix_on(verdict.port), guest=verdict.port != address.managed.home)


def never_routes(view: Policy, address: Address, port: str) -> Action | None:
    return None


def never_removes(view: Policy, address: Address, keys: Iterable[Any]) -> Action | None:
    return None


def takes_everything_for_announced(view: Policy, address: Address, verdict: Verdict) -> None:
    address.goal, address.lost, address.parked_s = None, None, None
    address.place, address.announced = verdict.port, True


def announces_moves_only(view: Policy, address: Address) -> Action | None:
    return None if address.moved_s < 0 else next_announcement(view, address)


def ignores_ports(situations: Iterable[Situation], usable: Iterable[str], choose: str) -> dict[str, Verdict]:
    return {each.ip: Verdict(each.copies[0] if each.copies else each.home, Standing.STAY) for each in situations}


def knows_no_tags(view: Policy, address: Address) -> tuple[str, ...]:
    return view.config.ports


def guests_keep_the_prefix(address: Address, port: str) -> int:
    return address.managed.prefix


MUTANTS = [
    Mutant("add first, then remove", "an address that was somewhere is nowhere", Bounds(addresses=1), planner, "next_step", removes_first),
    Mutant("make room before adding", "three copies", Bounds(ports=3, addresses=1), planner, "next_step", adds_without_room),
    Mutant("trim", "not exactly one copy", Bounds(ports=3, addresses=1), planner, "_trim", never_trims),
    Mutant("remove the old copy", "not exactly one copy", Bounds(addresses=1), planner, "_remove", never_removes),
    Mutant("announce", "peers believe another port", Bounds(addresses=1), Policy, "_arrived", takes_everything_for_announced),
    Mutant(
        "announce at the start",
        "peers believe another port",
        Bounds(addresses=1, kills=1),
        policy,
        "next_announcement",
        announces_moves_only,
    ),
    Mutant("switch the rule", "packets leave by another port", Bounds(addresses=1), planner, "_route", never_routes),
    Mutant("leave dead ports", "on an unusable port", Bounds(addresses=1), policy, "place", ignores_ports),
    Mutant("stay in the VLAN", "a copy where it may not be", Bounds(addresses=1, tags=True), Policy, "allowed_ports", knows_no_tags),
    Mutant("guests have a host prefix", "a guest with a prefix", Bounds(addresses=1), Address, "prefix_on", guests_keep_the_prefix),
]
