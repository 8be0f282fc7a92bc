"""Exhaustive search of what can happen to a small host with the real policy. States that differ only in what cannot matter are one.

Time stands still while things happen and passes in steps of half a hold, so that the distances between deadlines, and with them the states,
are few. What the policy forgets in time (recent failures, the next look at everything) is switched off.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from rdmaipkit import MAX_ACTIONS, Agent, FakeHost, config_of
from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.events import Layer
from rdsx.rdmaip.facts import Drain, Failback, Move, Undrain
from rdsx.rdmaip.policy import CommandError

__all__ = ["Bounds", "Found", "Violated", "World", "explore"]

HOLD_S = 10.0
STEP_S = 5.0
PLAN_PER_ADDRESS = 5  # add, rule, remove, announce, and one copy too many


@dataclass(frozen=True)
class Bounds:
    """The host, and what happens to it."""

    ports: int = 2
    addresses: int = 2
    kills: int = 0
    failback: str = "auto"
    admin: bool = False  # interfaces are taken down, and not only their links lost
    vanish: bool = False
    meddle: int = 0  # how often somebody takes or puts an address
    operate: bool = False
    refuse: bool = False
    tags: bool = False  # the last port is in another VLAN


@dataclass
class Found:
    states: int = 0
    steps: int = 0
    resting: int = 0
    longest_plan: int = 0
    complete: bool = False


class Violated(AssertionError):
    """A promise that was broken, and the steps that led there."""

    def __init__(self, promise: str, path: list[str]) -> None:
        super().__init__(f"{promise}, after {' · '.join(path) or 'nothing'}")
        self.promise = promise


class World:
    """One host with its agent, and what is left of what may happen to it."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.kills = bounds.kills
        self.meddle = bounds.meddle
        config = config_of(
            bounds.ports,
            bounds.addresses,
            failback=bounds.failback,
            failback_hold_s=HOLD_S,
            hold_max_s=0,
            min_stay_s=0,
            announce_at_ms=(0,),
        )
        self.host = FakeHost(config)
        if bounds.tags:
            self.host.change(config.ports[-1], tag=7)
        self.agent = Agent(self.host)
        self.simplify()
        self.had: set[str] = set()
        self.taken: set[str] = set()  # somebody took the last copy

    def simplify(self) -> None:
        """Switch off what only time would tell."""
        policy = self.agent.policy
        if policy.resync_s > self.agent.now_s:
            policy.resync_s = inf
        policy.events.clear()
        policy.echoes.read_back()
        policy.retries._done_s.clear()
        for port in policy.ports.values():
            port.downs.clear()
            port.total_downs = 0
        for address in policy.addresses.values():
            address.removals_s.clear()
            address.put_back_s = -inf

    # -- what can happen

    def steps(self) -> Iterator[tuple[Any, ...]]:
        for name, link in self.host.links.items():
            yield ("cut" if link.carrier else "mend"), name
            if self.bounds.admin:
                yield ("admin_down" if link.admin else "admin_up"), name
            if self.bounds.vanish:
                yield ("vanish" if link.present else "appear"), name
            if self.bounds.operate:
                yield ("drain" if self.agent.policy.ports[name].layers[Layer.ENABLED] else "undrain"), name
        if self.agent.policy.next_action() is not None:
            yield ("act",)
        if any(not port.settled and port.usable for port in self.agent.policy.ports.values()) or self.host.refusals:
            yield ("wait",)
        if self.kills:
            yield ("kill",)
        for managed in self.host.config.addresses:
            yield from self.steps_of(managed.ip)
        if self.bounds.refuse:
            yield ("allow",) if self.host.refusals else ("refuse", "p1")

    def steps_of(self, ip: str) -> Iterator[tuple[Any, ...]]:
        if self.bounds.operate:
            for port in self.host.links:
                yield "move", ip, port
            yield "failback", ip
        if self.meddle:
            for each, port, prefix in self.host.addresses:
                if each == ip:
                    yield "take", ip, port, prefix
            for port in self.host.links:
                if port not in self.host.ports_of(ip) and len(self.host.ports_of(ip)) < 2 and self.host.links[port].present:
                    yield "put", ip, port

    def step(self, name: str, *arguments: Any) -> None:
        getattr(self, name)(*arguments)
        if name not in ("kill", "act"):
            self.agent.deliver()
        self.simplify()

    def cut(self, port: str) -> None:
        self.host.change(port, carrier=False)

    def mend(self, port: str) -> None:
        self.host.change(port, carrier=True)

    def admin_down(self, port: str) -> None:
        self.host.change(port, admin=False)
        self.note_losses()

    def admin_up(self, port: str) -> None:
        self.host.change(port, admin=True)

    def vanish(self, port: str) -> None:
        self.host.change(port, present=False)
        self.note_losses()

    def appear(self, port: str) -> None:
        self.host.change(port, present=True)

    def take(self, ip: str, port: str, prefix: int) -> None:
        self.meddle -= 1
        self.host.take(ip, port, prefix)
        self.note_losses()

    def put(self, ip: str, port: str) -> None:
        self.meddle -= 1
        self.host.put(ip, port, 24 if ":" not in ip else 64)

    def note_losses(self) -> None:
        """What is nowhere now was taken by the world."""
        self.had &= {ip for ip, _, _ in self.host.addresses}

    def drain(self, port: str) -> None:
        self.agent.policy.handle(Drain(port), self.agent.now_s)

    def undrain(self, port: str) -> None:
        self.agent.policy.handle(Undrain(port), self.agent.now_s)

    def move(self, ip: str, port: str) -> None:
        try:
            self.agent.policy.handle(Move(ip, port), self.agent.now_s)
        except CommandError:
            assert not self.agent.policy.ports[port].usable

    def failback(self, ip: str) -> None:
        self.agent.policy.handle(Failback(ip), self.agent.now_s)

    def refuse(self, port: str) -> None:
        self.host.refusals = {(kind, port): 105 for kind in (AddAddress, RemoveAddress, Announce, SwitchRule)}

    def allow(self) -> None:
        self.host.refusals = {}

    def wait(self) -> None:
        self.agent.now_s += STEP_S
        self.agent.policy.handle_timeout(self.agent.now_s)

    def kill(self) -> None:
        """The agent dies and is started again; peers know nothing of it."""
        self.kills -= 1
        self.agent = Agent(self.host, self.agent.now_s)

    def act(self) -> None:
        self.agent.act()
        self.agent.deliver()

    # -- what must hold

    def check(self) -> str | None:
        """The promise that is broken, or None."""
        host, policy = self.host, self.agent.policy
        for managed in host.config.addresses:
            copies = [key for key in host.addresses if key[0] == managed.ip]
            if not copies and managed.ip in self.had:
                return f"an address that was somewhere is nowhere: {managed.ip}"
            if copies:
                self.had.add(managed.ip)
            if len(copies) > 2:
                return f"three copies: {copies}"
            if self.bounds.tags and any(port == host.config.ports[-1] != managed.home for _, port, _ in copies):
                return f"a copy where it may not be: {copies}"
            known = {(managed.ip, *key) for key in policy.addresses[managed.ip].copies}
            if known != set(copies) and policy.resync_s > self.agent.now_s:
                return f"the picture is not the kernel's: {known} for {copies}"
        return None

    def check_rest(self) -> str | None:
        """What must hold when there is nothing to do."""
        policy, host = self.agent.policy, self.host
        usable = [name for name, link in host.links.items() if link.present and link.admin and link.carrier]
        usable = [name for name in usable if policy.ports[name].layers[Layer.ENABLED]]
        for managed in host.config.addresses:
            ports = host.ports_of(managed.ip)
            allowed = [port for port in usable if not self.bounds.tags or port != host.config.ports[-1] or port == managed.home]
            if host.refusals or policy.retries.waiting():
                continue
            if len(ports) != 1 and (ports or any(link.present for link in host.links.values())):
                return f"not exactly one copy at rest: {managed.ip} on {ports}"
            if allowed and ports[0] not in allowed:
                return f"on an unusable port at rest: {managed.ip} on {ports[0]}"
            if allowed and host.believed.get(managed.ip) != ports[0]:
                return f"peers believe another port: {managed.ip} on {host.believed.get(managed.ip)}, not {ports[0]}"
            if allowed and (host.rules.get(managed.ip) != ports[0] or ports[0] not in host.routes):
                return f"packets leave by another port: {managed.ip} on {ports[0]}, rule {host.rules.get(managed.ip)}"
            prefix = managed.prefix if allowed and ports[0] == managed.home else managed.host_prefix
            if allowed and (managed.ip, ports[0], prefix) not in host.addresses and not self.bounds.meddle:
                return f"a guest with a prefix that is not that of a host, or a home without: {list(host.addresses)}"
            pin = policy.addresses[managed.ip].pin
            home = pin or managed.home
            if self.bounds.failback == "auto" and policy.ports[home].settled and ports[0] != home:
                return f"not at home though home has settled: {managed.ip} on {ports[0]}"
        return None

    # -- one state

    def key(self) -> Any:
        """All that can matter, with times counted from now."""
        policy, now_s = self.agent.policy, self.agent.now_s
        ports = tuple(
            (
                port.index,
                tuple(port.layers.values()),
                port.usable,
                port.settled,
                0.0 if port.settled else round(min(port.settle_at_s - now_s, 99.0), 3),
            )
            for port in policy.ports.values()
        )
        addresses = tuple(
            (
                tuple(sorted(address.copies, key=lambda key: address.copies[key].since_s)),
                tuple(copy.mark for copy in address.copies.values()),
                address.place, address.rule_port, address.pin, address.asked, address.parked_s is None, address.lost is None,
                bool(address.announce_s), address.announced, address.goal and address.goal.port,
            )
            for address in policy.addresses.values()
        )  # fmt: skip
        waiting = tuple(sorted(str((key, round(policy.retries._until_s.get(key, 0) - now_s, 3))) for key in policy.retries.waiting()))
        return (
            ports, addresses, waiting, frozenset(policy.routed), policy.resync_s <= now_s, self.kills, self.meddle,
            tuple(self.host.links.values()), frozenset(self.host.addresses.items()), frozenset(self.host.rules.items()),
            frozenset(self.host.routes), frozenset(self.host.believed.items()), frozenset(self.host.refusals), frozenset(self.had),
        )  # fmt: skip

    def copy(self) -> World:
        copied: World = pickle.loads(pickle.dumps(self, pickle.HIGHEST_PROTOCOL))
        return copied

    def plan_length(self) -> int:
        """How many actions it takes from here to rest if nothing happens; looking at everything is none."""
        agent = self.copy().agent
        actions: list[Action] = []
        while len(actions) < MAX_ACTIONS and (action := agent.act()) is not None:
            agent.deliver()
            actions.append(action)
        return sum(not isinstance(action, Resync | EnsureRoutes) for action in actions)


def explore(bounds: Bounds, max_states: int = 10**9) -> Found:
    """Look at every state, the nearest first. Raises Violated with the shortest way to a broken promise."""
    first = World(bounds)
    parents: dict[Any, tuple[Any, str]] = {}
    found = Found(states=1)
    frontier = deque([(first.key(), first)])
    parents[first.key()] = (None, "")

    def path(key: Any) -> list[str]:
        names: list[str] = []
        while parents[key][0] is not None:
            key, name = parents[key]
            names.append(name)
        return names[::-1]

    while frontier:
        key, world = frontier.popleft()
        steps = list(world.steps())
        frozen = pickle.dumps(world, pickle.HIGHEST_PROTOCOL)
        if not any(step[0] == "act" for step in steps):
            found.resting += 1
            broken = world.check_rest()
            if broken:
                raise Violated(broken, path(key))
        for step in steps:
            after: World = pickle.loads(frozen)
            after.step(*step)
            found.steps += 1
            new_key = after.key()
            if new_key in parents:
                continue
            parents[new_key] = key, " ".join(map(str, step))
            broken = after.check()
            if not broken and step[0] != "act":
                length = after.plan_length()
                found.longest_plan = max(found.longest_plan, length)
                if length > PLAN_PER_ADDRESS * bounds.addresses:
                    broken = f"the plan is too long: {length} actions"
            if broken:
                raise Violated(broken, path(new_key))
            found.states += 1
            frontier.append((new_key, after))
            if found.states >= max_states:
                return found
    found.complete = True
    return found
