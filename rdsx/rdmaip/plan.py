"""A dry run: what would be done to a host in a given state, and why. Carries the policy's actions out in imagination only.

A plan is what an agent that starts in this state would do at once. What it would do later, such as sending an address home, is
not in it. Announcements appear once, however often they would be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.config import Config
from rdsx.rdmaip.facts import AddressFact, Fact, Snapshot
from rdsx.rdmaip.policy import Policy
from rdsx.rdmaip.status import AddressStatus, status_of
from rdsx.rdmaip.wording import describe_action

__all__ = ["Plan", "Step", "make_plan"]


@dataclass(frozen=True, slots=True)
class Step:
    """One action, and why."""

    action: Action
    why: str

    def __str__(self) -> str:
        return f"{describe_action(self.action)} ({self.why})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done, in order, and where everything would be then."""

    steps: tuple[Step, ...]
    addresses: tuple[AddressStatus, ...]


def make_plan(config: Config, snapshot: Snapshot, assumed: Iterable[Fact] = ()) -> tuple[Plan, Plan]:
    """What would be done in the state of `snapshot`; and then, when the `assumed` facts are told. ValueError as `Policy` has it."""
    policy = Policy(config, 0.0)
    policy.handle(snapshot, 0.0)
    now = _rest(policy)
    for fact in assumed:
        policy.handle(fact, 0.0)
    return now, _rest(policy)


def _rest(policy: Policy) -> Plan:
    steps = []
    while (action := policy.next_action()) is not None:
        if not isinstance(action, Resync):
            steps.append(Step(action, _why(policy, action)))
        policy.done(action, None, 0.0)
        if isinstance(action, AddAddress | RemoveAddress):
            is_there = isinstance(action, AddAddress)
            policy.handle(AddressFact(action.ip, action.port, action.prefix, is_there, policy.config.mark), 0.0)
    return Plan(tuple(steps), status_of(policy, 0.0).addresses)


def _why(policy: Policy, action: Action) -> str:
    match action:
        case Resync():
            return "to be sure"
        case EnsureRoutes():
            return "routes are missing in it"
        case Announce():
            return "so that peers know"
        case AddAddress(ip) | RemoveAddress(ip) | SwitchRule(ip):
            goal = policy.addresses[ip].goal
            if goal is not None:
                return goal.reason.value
            return "a copy too many" if isinstance(action, RemoveAddress) else "not as it should be"
