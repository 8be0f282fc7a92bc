"""A made-up host for the policy of `rdsx.rdmaip`: ports, addresses, rules and routes that behave as the kernel's, and peers that believe
what they were told. `Agent` carries out what a policy wants on it, as the real agent does.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import trio

from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.config import Config, Group, ManagedAddress
from rdsx.rdmaip.events import Event
from rdsx.rdmaip.facts import AddressFact, Command, Fact, LinkFact, RouteFact, RuleFact, Snapshot
from rdsx.rdmaip.policy import Policy
from rdsx.rdmaip.status import Status, status_of

__all__ = ["Agent", "FakeControlled", "FakeHost", "addresses_of", "config_of"]

READING_S = 0.25  # how long it takes until the first snapshot is there
MAX_ACTIONS = 1000  # a plan longer than this does not end


def addresses_of(count: int, ports: tuple[str, ...]) -> tuple[ManagedAddress, ...]:
    """`count` addresses, in turn IPv4 and IPv6, at home on one port after another."""
    return tuple(
        ManagedAddress(f"fd09::{n + 1}", 64, ports[n % len(ports)])
        if n % 2
        else ManagedAddress(f"10.9.0.{n + 1}", 24, ports[n % len(ports)])
        for n in range(count)
    )


def config_of(ports: int = 2, addresses: int = 2, **settings: object) -> Config:
    """One group of ports p0, p1 … with some addresses."""
    names = tuple(f"p{n}" for n in range(ports))
    choose = str(settings.pop("choose", "least-loaded"))
    group = Group(name="fabric", ports=names, addresses=addresses_of(addresses, names), choose=choose)
    return Config(groups=(group,), **settings)  # type: ignore[arg-type]


class FakeHost:
    """What the kernel has. `reports` is what it has told and nobody has read yet."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.links = {
            port: LinkFact(port, index=number + 2, admin=True, carrier=True, mac=bytes([2, 0, 0, 0, 0, number]))
            for number, port in enumerate(config.ports)
        }
        self.addresses: dict[tuple[str, str, int], int] = {}  # (ip, port, prefix) -> mark
        self.failed: set[tuple[str, str, int]] = set()  # duplicate detection has failed
        self.rules: dict[str, str] = {}
        self.routes: set[str] = set()
        self.believed: dict[str, str] = {}  # what peers were told last: ip -> port
        self.reports: deque[Fact] = deque()
        self.refusals: dict[tuple[type[Action], str], int] = {}  # (kind of action, port) -> errno
        self.crippled = False

    # -- what happens to it

    def change(self, port: str, **changes: object) -> None:
        """Change what an interface is, as LinkFact names it. One that is down or gone loses what the kernel takes from it."""
        before = self.links[port]
        link = self.links[port] = replace(before, **changes)  # type: ignore[arg-type]
        self.reports.append(link)
        gone = not link.present or link.index != before.index
        for ip, at, prefix in list(self.addresses):
            flushed = ":" in ip and before.admin and not link.admin
            if at == port and (gone or flushed):
                self.take(ip, port, prefix)
        if gone or not link.admin:
            self.routes.discard(port)

    def put(self, ip: str, port: str, prefix: int, mark: int = 0) -> None:
        """Somebody adds an address."""
        self.addresses[ip, port, prefix] = mark
        self.reports.append(AddressFact(ip, port, prefix, True, mark))

    def take(self, ip: str, port: str, prefix: int) -> None:
        """Somebody takes an address away. With its last IPv4 address a port loses its routes, in all tables."""
        del self.addresses[ip, port, prefix]
        self.failed.discard((ip, port, prefix))
        self.reports.append(AddressFact(ip, port, prefix, False))
        if ":" not in ip and not any(":" not in other and at == port for other, at, _ in self.addresses):
            self.routes.discard(port)
            self.reports.append(RouteFact(port, False))

    # -- what the agent does with it

    def execute(self, action: Action) -> int | None:
        """Returns the errno, as the kernel would."""
        if self.crippled and not isinstance(action, Resync):
            return errno.EPERM
        port = getattr(action, "port", "")
        if (type(action), port) in self.refusals:
            return self.refusals[type(action), port]
        match action:
            case AddAddress():
                return self._add(action)
            case RemoveAddress():
                if (action.ip, action.port, action.prefix) not in self.addresses:
                    return errno.EADDRNOTAVAIL
                self.take(action.ip, action.port, action.prefix)
            case SwitchRule():
                self.rules[action.ip] = action.port
            case EnsureRoutes():
                if not self.links[port].admin or not self.links[port].present:
                    return errno.ENETDOWN
                self.routes.add(port)
            case Announce():
                if not self.links[port].admin or not self.links[port].present:
                    return errno.ENETDOWN
                if self.links[port].carrier:  # else the packet is lost, and nobody says so
                    self.believed[action.ip] = port
        return None

    def _add(self, action: AddAddress) -> int | None:
        link = self.links.get(action.port)
        if link is None or not link.present:
            return errno.ENODEV
        for ip, port, prefix in self.addresses:
            if (ip, port) == (action.ip, action.port) and (":" in ip or prefix == action.prefix):
                return errno.EEXIST
        self.put(action.ip, action.port, action.prefix, self.config.mark)
        return None

    def snapshot(self) -> Snapshot:
        return Snapshot(
            links=tuple(link for link in self.links.values() if link.present),
            addresses=tuple(AddressFact(*key, present=True, mark=mark, failed=key in self.failed) for key, mark in self.addresses.items()),
            rules=tuple(RuleFact(ip, port) for ip, port in self.rules.items()),
            routes=tuple(RouteFact(port, port in self.routes) for port in self.links),
        )

    def ports_of(self, ip: str) -> list[str]:
        return [port for each, port, _ in self.addresses if each == ip]


class Agent:
    """A policy and the host that it is for. Start another one on the same host to see what a killed agent leaves behind."""

    def __init__(self, host: FakeHost, now_s: float = 0.0, make: Callable[[Config, float], Policy] = Policy) -> None:
        self.host = host
        self.now_s = now_s
        self.policy = make(host.config, now_s - READING_S)
        host.reports.clear()
        self.policy.handle(host.snapshot(), now_s)

    def deliver(self) -> None:
        """Hand in everything that the kernel has reported."""
        while self.host.reports:
            self.policy.handle(self.host.reports.popleft(), self.now_s)

    def act(self) -> Action | None:
        """Do the next thing, and report it; its echo is still to be delivered."""
        action = self.policy.next_action()
        if action is not None:
            error = self.host.execute(action)
            if isinstance(action, Resync) and error is None:
                self.policy.handle(self.host.snapshot(), self.now_s)
            self.policy.done(action, error, self.now_s)
        return action

    def rest(self) -> list[Action]:
        """Deliver and do until there is nothing to do; returns what was done."""
        done = []
        self.deliver()
        while (action := self.act()) is not None:
            done.append(action)
            self.deliver()
            assert len(done) < MAX_ACTIONS, f"the plan does not end: {done[-8:]}"
        return done

    def sleep_until(self, until_s: float) -> Iterator[Action]:
        """Let time pass, and do what becomes due."""
        while True:
            due_s = self.policy.next_deadline()
            if due_s is None or due_s > until_s:
                break
            assert due_s > self.now_s, "a deadline that is over keeps a processor busy"
            self.now_s = due_s
            self.policy.handle_timeout(due_s)
            yield from self.rest()
        self.now_s = max(self.now_s, until_s)
        self.policy.handle_timeout(self.now_s)
        yield from self.rest()

    def wait(self, seconds: float) -> list[Action]:
        return list(self.sleep_until(self.now_s + seconds))

    def events(self) -> list[Event]:
        found = []
        while (event := self.policy.poll_event()) is not None:
            found.append(event)
        return found


class FakeControlled:
    """Stands for the real agent behind a control socket: the same policy, on a made-up host, with its clock standing still."""

    def __init__(self, host: FakeHost) -> None:
        self.agent = Agent(host)
        self.channels: list[trio.MemorySendChannel[Event]] = []
        self.settle()

    def status(self) -> Status:
        return status_of(self.agent.policy, self.agent.now_s)

    def command(self, command: Command) -> None:
        self.agent.policy.handle(command, self.agent.now_s)
        self.settle()

    def subscribe(self, buffer: int = 256) -> trio.MemoryReceiveChannel[Event]:
        send, receive = trio.open_memory_channel[Event](buffer)
        self.channels.append(send)
        return receive

    def settle(self) -> None:
        self.agent.rest()
        for event in self.agent.events():
            for channel in self.channels:
                with contextlib.suppress(trio.WouldBlock):  # who is slow misses the newest
                    channel.send_nowait(event)

    def end(self) -> None:
        for channel in self.channels:
            channel.close()
