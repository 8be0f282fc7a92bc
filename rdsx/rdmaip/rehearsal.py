"""A backend that changes nothing: it says what would be done, and then shows the network as if it had been done.

What is imagined is laid over what the kernel says, so that a plan can be followed through failures that are real. Invariant: nothing but
questions is ever sent to the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from rdsx.netlink.rtnetlink import Message
from rdsx.netlink.sockets import Commands
from rdsx.rdmaip.actions import Action, AddAddress, EnsureRoutes, RemoveAddress, SwitchRule
from rdsx.rdmaip.backend import read_tables
from rdsx.rdmaip.config import Config
from rdsx.rdmaip.facts import AddressFact, Fact, RouteFact, RuleFact, Snapshot
from rdsx.rdmaip.kernel_state import KernelState
from rdsx.rdmaip.wording import describe_action

__all__ = ["Rehearsal"]

log = logging.getLogger("rdsx.rdmaip")

Key = tuple[str, str, int]  # address, port, prefix


class Rehearsal:
    """Stands in for `Backend`. Does not own `commands`."""

    def __init__(self, config: Config, commands: Commands) -> None:
        self._config = config
        self._commands = commands
        self.state = KernelState(config)
        self._addresses: dict[Key, AddressFact] = {}
        self._rules: dict[str, RuleFact] = {}
        self._routes: dict[str, RouteFact] = {}
        self._fresh: list[Fact] = []

    def snapshot(self) -> Snapshot:
        """What there is, and what would be. OSError as for `Backend`."""
        real = read_tables(self.state, self._commands)
        addresses = {key_of(fact): fact for fact in real.addresses} | self._addresses
        rules = {fact.ip: fact for fact in real.rules} | self._rules
        routes = {fact.port: fact for fact in real.routes} | self._routes
        present = tuple(fact for fact in addresses.values() if fact.present)
        return replace(real, addresses=present, rules=tuple(rules.values()), routes=tuple(routes.values()))

    def facts(self, messages: Iterable[Message]) -> list[Fact]:
        """What the monitor's messages mean, but for what is imagined; and the imagined kernel's own."""
        fresh, self._fresh = self._fresh, []
        return fresh + [fact for fact in self.state.handle(messages) if not self._is_imagined(fact)]

    def execute(self, action: Action) -> int | None:
        """Log it; it always succeeds."""
        log.info("would %s", describe_action(action))
        match action:
            case AddAddress(ip, port, prefix):
                fact = AddressFact(ip, port, prefix, mark=self._config.mark)
                self._addresses[key_of(fact)] = fact
                self._fresh.append(fact)
            case RemoveAddress(ip, port, prefix):
                fact = AddressFact(ip, port, prefix, present=False)
                self._addresses[key_of(fact)] = fact
                self._fresh.append(fact)
            case SwitchRule(ip, port):
                self._rules[ip] = RuleFact(ip, port)
            case EnsureRoutes(port):
                self._routes[port] = RouteFact(port, complete=True)
            case _:
                pass  # an announcement leaves nothing behind
        return None

    def withdraw(self) -> None:
        """Log it."""
        log.info("would take back all rules and routes")

    def _is_imagined(self, fact: Fact) -> bool:
        match fact:
            case AddressFact():
                return key_of(fact) in self._addresses
            case RuleFact():
                return fact.ip in self._rules
            case RouteFact():
                return fact.port in self._routes
            case _:
                return False


def key_of(fact: AddressFact) -> Key:
    return fact.ip, fact.port, fact.prefix
