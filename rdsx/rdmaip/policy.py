"""The policy: which address should be on which port, and what to do next about it. Does no I/O and reads no clock.

    Rule 1. Reconcile, do not react: the plan follows from where addresses are and where they should be. Nothing of a move under way has to
            be remembered, so an agent that was killed anywhere in it goes on from what it reads back.
    Rule 2. Add first, then remove, then announce: an address that is somewhere is never nowhere.
    Rule 3. One action at a time, for the whole host. Each takes microseconds, and the order is then right.
    Rule 4. Nothing is done before the first `Snapshot`, and nothing after a permission was refused.

The caller's loop: hand in all facts that there are (`handle`), then carry out `next_action()` and report it by `done` until there is none,
take the events (`poll_event`), sleep until a fact or `next_deadline()`, then `handle_timeout`.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from math import inf
from typing import assert_never

from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.address import Address, Copy, Goal, Key
from rdsx.rdmaip.config import Config
from rdsx.rdmaip.echoes import Echoes
from rdsx.rdmaip.events import (
    Barred,
    Conflict,
    Crippled,
    Event,
    Layer,
    Moved,
    Parked,
    PortUp,
    Reason,
    Refused,
    Unparked,
)
from rdsx.rdmaip.facts import (
    AddressFact,
    ClockFact,
    Command,
    Drain,
    Fact,
    Failback,
    HardwareFact,
    LinkFact,
    Move,
    NeighbourConflict,
    PathFact,
    Restore,
    RouteFact,
    RuleFact,
    Snapshot,
    Trigger,
    Undrain,
)
from rdsx.rdmaip.placement import Situation, Standing, Verdict, place
from rdsx.rdmaip.planner import next_announcement, next_step
from rdsx.rdmaip.port import Port
from rdsx.rdmaip.retries import Retries, RetryKey

__all__ = ["CommandError", "Policy"]

RESYNC_S = 60.0  # everything is read back so often, to heal what was missed
HISTORY = 20  # events that `status` shows
UNTAKEN = 10_000  # events that nobody has taken; of more the oldest are forgotten
CONFLICT_QUIET_S = 60.0  # between two reports that somebody claims the same address

REASONS = {
    Layer.PRESENT: Reason.VANISHED,
    Layer.ENABLED: Reason.DRAINED,
    Layer.ADMIN: Reason.ADMIN,
    Layer.HARDWARE: Reason.HARDWARE,
    Layer.CARRIER: Reason.CARRIER,
    Layer.PATH: Reason.PATH,
}
HARMLESS: dict[type[Action], tuple[int, ...]] = {
    AddAddress: (errno.EEXIST,),
    RemoveAddress: (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENOENT, errno.ESRCH),
    SwitchRule: (errno.EEXIST,),
    EnsureRoutes: (errno.EEXIST,),
    Announce: (),
    Resync: (),
}


class CommandError(ValueError):
    """A command that cannot be carried out: the text names the address or port, and what is wrong with it."""


class Policy:
    """The state of one host. `now_s` is any clock in seconds that does not go back; every call takes it."""

    def __init__(self, config: Config, now_s: float) -> None:
        """Raises ValueError for a configuration that leaves addresses to be discovered (`Config.discovered`)."""
        self.now_s = now_s
        self.concluded_s = now_s  # up to when everything that is due has been looked at
        self.boot_s = -inf  # until when addresses do not go home; known with the first snapshot
        self.wall_offset_s: float | None = None
        self.ports: dict[str, Port] = {}
        self.addresses: dict[str, Address] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.routed: set[str] = set()  # ports whose table is complete
        self.retries = Retries()
        self.echoes = Echoes()
        self.started = False  # the first snapshot is there
        self.rested = False  # ... and everything has been put right once
        self.restoring = False
        self.crippled: Crippled | None = None
        self.resync_s = inf  # when to read everything back
        self.conflicts_s: dict[str, float] = {}
        self.events: deque[Event] = deque(maxlen=UNTAKEN)
        self.history: deque[Event] = deque(maxlen=HISTORY)
        self.done_actions: Counter[str] = Counter()  # by kind
        self.refused_actions: Counter[str] = Counter()
        self._configure(config)

    # -- the contract

    def handle(self, fact: Fact, now_s: float) -> None:
        """Take a fact in. Raises CommandError for a command that cannot be carried out; then nothing has changed."""
        if self.started and self._is_known(fact, now_s):
            return  # most facts are the kernel's echo of our own actions
        self.now_s = now_s
        match fact:
            case Snapshot():
                self._handle_snapshot(fact)
            case LinkFact():
                self._handle_link(fact)
            case HardwareFact() if fact.port in self.ports:
                self.ports[fact.port].handle_hardware(fact, now_s)
            case PathFact() if fact.port in self.ports:
                self.ports[fact.port].handle_path(fact, now_s)
            case AddressFact():
                self._handle_address(fact)
            case RuleFact() if fact.ip in self.addresses:
                self.addresses[fact.ip].rule_port = fact.port
            case RouteFact():
                (self.routed.add if fact.complete else self.routed.discard)(fact.port)
            case NeighbourConflict() if fact.ip in self.addresses:
                self._report_claim(fact)
            case ClockFact():
                self.wall_offset_s = fact.wall_s - fact.now_s
            case Move() | Failback() | Drain() | Undrain() | Trigger() | Restore():
                self._obey(fact)
            case _:
                pass  # of a port or address that is not ours
        self._conclude()

    def next_action(self) -> Action | None:
        """The next thing to do, or None. It stays the same until it is reported by `done`, or facts or time change."""
        if not self.started or self.crippled:
            return None
        if self.resync_s <= self.now_s and self.retries.allows((Resync,), self.now_s):
            return Resync()
        for is_urgent in (True, False):
            for address in self.addresses.values():
                if address.is_urgent is is_urgent:
                    action = address.step or next_announcement(self, address)
                    if action is not None:
                        return action
        for port in self.ports.values():
            if self.lacks_routes(port.name) and self.allows(EnsureRoutes(port.name)):
                return EnsureRoutes(port.name)
        self.rested = True
        return None

    def done(self, action: Action, error: int | None, now_s: float) -> None:
        """Report what came of an action: None, or the errno it failed with. A `Resync` is done when its snapshot has been handed in."""
        self.now_s = now_s
        if error is None or error in HARMLESS[type(action)]:
            self._succeeded(action, error)
            if isinstance(action, AddAddress | RemoveAddress | SwitchRule | Announce) and action.ip in self.addresses:
                self._follow(self.addresses[action.ip])  # concerns no other, and changes no verdict
                return
        elif error == errno.EPERM:
            self.crippled = Crippled(action, "CAP_NET_RAW" if isinstance(action, Announce) else "CAP_NET_ADMIN", now_s)
            self.events.append(self.crippled)
        else:
            self._failed(action, error)
        self._conclude()

    def poll_event(self) -> Event | None:
        """The oldest event that was not taken yet, or None. Of more than 10,000 the oldest are lost."""
        if not self.events:
            return None
        event = self.events.popleft()
        self.history.append(event)
        return event

    def next_deadline(self) -> float | None:
        """When to call `handle_timeout` if no fact comes before; None: not at all."""
        if not self.started or self.crippled:
            return None
        instants = [self.resync_s, self.echoes.next_s(), self.retries.next_s(self.concluded_s)]
        instants += [port.deadline_s() for port in self.ports.values()]
        for address in self.addresses.values():
            instants += [*address.announce_s[:1], address.put_back_s, address.moved_s + self.config.min_stay_s]
        # What was due already has been done, or waits for a fact or for a retry.
        first_s = min((each for each in instants if each > self.concluded_s), default=inf)
        return None if first_s == inf else first_s

    def handle_timeout(self, now_s: float) -> None:
        """Time has passed."""
        self.now_s = now_s
        if self.started and self.echoes.overdue(now_s):
            self.resync_s = now_s
        self._conclude()

    def reconfigure(self, config: Config, now_s: float) -> None:
        """Take another configuration. Addresses that are in both do not move for it; those no longer listed stay where they are."""
        self.now_s = now_s
        self._configure(config)
        if self.started:
            self.resync_s = now_s
        self._conclude()

    # -- what the planner asks

    def allows(self, action: Action) -> bool:
        """Whether it need not wait after a refusal, or after having been repeated too often."""
        return self.retries.allows(key_of(action), self.now_s)

    def lacks_routes(self, port: str) -> bool:
        if self.config.routing != "rules" or port in self.routed or port not in self.ports:
            return False
        return self.ports[port].layers[Layer.ADMIN]

    def is_usable(self, port: str) -> bool:
        return port in self.ports and self.ports[port].usable

    def is_present(self, port: str) -> bool:
        return port in self.ports and self.ports[port].layers[Layer.PRESENT]

    # -- configuration

    def _configure(self, config: Config) -> None:
        if any(group.discover for group in config.groups):
            raise ValueError('address = "discover": look the addresses up first, with Config.discovered(snapshot)')
        self.config = config
        self.ports = {name: self.ports.get(name) or Port(name, config, self.now_s) for name in config.ports}
        for port in self.ports.values():
            port.config = config
        former = self.addresses
        self.addresses = {managed.ip: former.get(managed.ip) or Address(managed) for managed in config.addresses}
        for managed in config.addresses:
            address = self.addresses[managed.ip]
            address.managed = managed
            if address.pin not in self.allowed_ports(address):
                address.pin = None
        self.verdicts = {ip: verdict for ip, verdict in self.verdicts.items() if ip in self.addresses}

    def allowed_ports(self, address: Address) -> tuple[str, ...]:
        """Ports where an address may be: of its group, in its list if it has one, with its home's tag and kind of link; and its home.

        A home that was never seen, because its adapter died before we started, says nothing of its tag; then the others must agree.
        """
        managed = address.managed
        group = self.config.group_of(managed.home)
        listed = managed.allowed or (group.ports if group else ())
        seen = {name: self.ports[name] for name in listed if self.ports[name].seen}
        kinds = {(port.tag, port.link_type) for port in seen.values()}
        if managed.home in seen:
            kinds = {(seen[managed.home].tag, seen[managed.home].link_type)}
        same = [name for name, port in seen.items() if len(kinds) == 1 and (port.tag, port.link_type) in kinds]
        return tuple(name for name in listed if name in same or name == managed.home)

    # -- facts

    def _handle_snapshot(self, snapshot: Snapshot) -> None:
        if not self.started:
            self.boot_s = self.now_s + self.config.settle_boot_s
            for port in self.ports.values():
                port.begin(self.now_s)
        links = {link.port: link for link in snapshot.links}
        for name in self.ports:
            self._handle_link(links.get(name) or LinkFact(name, present=False))
        for hardware in snapshot.hardware:
            if hardware.port in self.ports:
                self.ports[hardware.port].handle_hardware(hardware, self.now_s)
        for address in self.addresses.values():
            there = {(each.port, each.prefix): each for each in snapshot.addresses if each.ip == address.ip and each.present}
            for key in [key for key in (*address.copies, *address.strays) if key not in there]:
                self._lost_copy(address, key)
            for key, fact in there.items():
                self._gained_copy(address, key, fact)
        rules = {rule.ip: rule.port for rule in snapshot.rules}
        for address in self.addresses.values():
            address.rule_port = rules.get(address.ip)
        self.routed = {route.port for route in snapshot.routes if route.complete}
        self.echoes.read_back()
        self.resync_s = self.now_s + RESYNC_S
        if not self.started:
            self.started = True
            for address in self.addresses.values():
                address.place = next(iter(address.sound_ports()), None)

    def _handle_link(self, fact: LinkFact) -> None:
        port = self.ports.get(fact.port)
        if port is None:
            return
        replaced = port.seen and fact.present and fact.index != port.index
        new_mac = port.seen and fact.present and fact.mac != port.mac
        port.handle_link(fact, self.now_s)
        if not fact.present or replaced:
            for address in self.addresses.values():
                for key in [key for key in (*address.copies, *address.strays) if key[0] == port.name]:
                    self._lost_copy(address, key, Reason.VANISHED)
        if not port.layers[Layer.ADMIN] or replaced:
            self.routed.discard(port.name)
        if replaced and self.started:
            self.resync_s = self.now_s
        if new_mac:
            for address in self.addresses.values():
                if address.has_on(port.name):
                    address.announce_once(self.now_s)

    def _handle_address(self, fact: AddressFact) -> None:
        address = self.addresses.get(fact.ip)
        if address is None:
            return
        key = (fact.port, fact.prefix)
        known = key in address.copies or key in address.strays
        if not self.echoes.believes((fact.ip, *key), fact.present, self.now_s) and known is not fact.present:
            self.resync_s = self.now_s
        elif fact.present:
            self._gained_copy(address, key, fact)
        elif known:
            self._lost_copy(address, key)

    def _gained_copy(self, address: Address, key: Key, fact: AddressFact) -> None:
        """Also for a copy that is known: its mark and state are as they are now."""
        former = address.copies.pop(key, None) or address.strays.pop(key, None)
        copy = Copy(former.since_s if former else self.now_s, fact.mark, fact.failed)
        ours = fact.mark == self.config.mark or fact.port in self.allowed_ports(address)
        (address.copies if ours else address.strays)[key] = copy
        if fact.failed and not (former and former.failed):
            text = f"{address.ip} on {fact.port}: the kernel found that another host has it (duplicate detection failed)"
            self.events.append(Conflict(address.ip, text, False, self.now_s))
        if not ours and former is None:
            text = f"{address.ip}/{fact.prefix} is on {fact.port} (protocol mark {fact.mark}), where it may not be"
            self.events.append(Conflict(address.ip, text, not address.copies, self.now_s))

    def _lost_copy(self, address: Address, key: Key, reason: Reason = Reason.REMOVED) -> None:
        """A copy is gone, not by us: with its port, or because somebody took it."""
        address.strays.pop(key, None)
        if address.copies.pop(key, None) is None or address.copies or not self.started:
            return
        port = self.ports.get(key[0])
        if port is not None and not port.layers[Layer.PRESENT]:
            reason = Reason.VANISHED
        address.lost = reason, self.now_s
        if reason is Reason.REMOVED and self.is_usable(key[0]) and not address.note_removal(self.now_s):
            address.hands_off = f"{address.ip} was taken off {key[0]} again and again"
            text = f"{address.hands_off} by another program; it is left alone until `rdsx rdmaip failback {address.ip}`"
            self.events.append(Conflict(address.ip, text, True, self.now_s))

    def _is_known(self, fact: Fact, now_s: float) -> bool:
        """Whether a fact says what we know already; an echo then confirms what we did."""
        match fact:
            case AddressFact():
                address = self.addresses.get(fact.ip)
                if address is None:
                    return True
                copy = address.copies.get((fact.port, fact.prefix)) or address.strays.get((fact.port, fact.prefix))
                is_known = (copy.mark, copy.failed) == (fact.mark, fact.failed) and fact.present if copy else not fact.present
                if is_known:
                    self.echoes.believes((fact.ip, fact.port, fact.prefix), fact.present, now_s)
                return is_known
            case RuleFact():
                return fact.ip not in self.addresses or self.addresses[fact.ip].rule_port == fact.port
            case RouteFact():
                return (fact.port in self.routed) is fact.complete
            case _:
                return False

    def _report_claim(self, fact: NeighbourConflict) -> None:
        if self.now_s >= self.conflicts_s.get(fact.ip, -inf) + CONFLICT_QUIET_S:
            self.conflicts_s[fact.ip] = self.now_s
            self.events.append(Conflict(fact.ip, f"{fact.ip} claimed by {fact.mac.hex(':')}", False, self.now_s))

    # -- commands

    def _obey(self, command: Command) -> None:
        match command:
            case Move():
                address = self._managed(command.ip)
                self._check_move(address, command.port)
                address.pin = None if command.port == address.managed.home else command.port
                address.asked = True
                address.forgive()
            case Failback():
                for address in self.addresses.values() if command.ip is None else [self._managed(command.ip)]:
                    address.pin = None
                    address.asked = self.config.failback != "never"
                    address.forgive()
            case Drain() | Undrain():
                self._port(command.port).set_layer(Layer.ENABLED, isinstance(command, Undrain), self.now_s)
            case Trigger():
                self.boot_s = min(self.boot_s, self.now_s)
                for port in self.ports.values():
                    port.end_boot(self.now_s)
            case Restore():
                self.restoring = True
            case _:
                assert_never(command)

    def _managed(self, ip: str) -> Address:
        if ip not in self.addresses:
            raise CommandError(f"{ip} is not a managed address; those are {', '.join(self.addresses)}")
        return self.addresses[ip]

    def _port(self, name: str) -> Port:
        if name not in self.ports:
            raise CommandError(f"{name} is not a port of any group; those are {', '.join(self.ports)}")
        return self.ports[name]

    def _check_move(self, address: Address, name: str) -> None:
        port = self._port(name)
        allowed = self.allowed_ports(address)
        if name not in allowed:
            raise CommandError(f"{address.ip} may not be on {name}, only on {', '.join(allowed)}")
        broken = port.clear_layer()
        if broken is not None:
            raise CommandError(f"{name} cannot be used now: {broken.value} is clear; name another port, or wait")

    # -- conclusions

    def _conclude(self) -> None:
        """Bring everything that follows from facts and time up to date."""
        self.concluded_s = self.now_s
        for port in self.ports.values():
            events = port.update(self.now_s, self.boot_s, self.wall_offset_s)
            self.events += events
            if any(isinstance(event, PortUp) for event in events):
                self.retries.forget([key for key in self.retries.waiting() if key[-1] == port.name])
        if self.started:
            self._place()
            for address in self.addresses.values():
                self._follow(address)

    def _place(self) -> None:
        usable = {name for name, port in self.ports.items() if port.usable}
        for group in self.config.groups:
            managed = [self.addresses[each.ip] for each in group.addresses]
            if self.restoring:
                verdicts = {address.ip: Verdict(address.managed.home, Standing.HOME) for address in managed}
            else:
                verdicts = place([self._situation(address) for address in managed if self._is_managed(address)], usable, group.choose)
            for address in managed:
                if address.ip in verdicts:
                    self.verdicts[address.ip] = verdicts[address.ip]
                else:
                    self.verdicts.pop(address.ip, None)

    def _is_managed(self, address: Address) -> bool:
        return not address.hands_off and not (address.strays and not address.copies)

    def _situation(self, address: Address) -> Situation:
        allowed = self.allowed_ports(address)
        held = address.sound_ports()
        home = address.home
        if not self.is_usable(home):
            address.asked = False
        ready = address.asked or (
            self.config.failback == "auto"
            and home in self.ports
            and self.ports[home].settled
            and self.now_s >= address.moved_s + self.config.min_stay_s
        )
        return Situation(
            ip=address.ip,
            home=home,
            home_ready=ready,
            copies=tuple(port for port in held if port in allowed),
            strays=tuple(port for port in held if port not in allowed),
            candidates=tuple(port for port in allowed if self._can_be_put(address, port)),
        )

    def _can_be_put(self, address: Address, port: str) -> bool:
        """Whether the interface exists and the kernel has not refused the address there."""
        return self.is_present(port) and self.retries.allows((AddAddress, address.ip, port), self.now_s)

    def _follow(self, address: Address) -> None:
        """Note what the verdict means for an address: a new goal, parked, or arrived."""
        verdict = self.verdicts.get(address.ip)
        address.step = next_step(self, address)
        if verdict is None:
            address.goal, address.is_urgent = None, False
            return
        self._note_parked(address, verdict)
        if address.place == verdict.port and address.lost is None:
            address.goal = None
        elif address.goal is None or address.goal.port != verdict.port:
            address.goal = self._new_goal(address, verdict)
        if address.step is None and address.wanted(verdict.port, self.config.mark) is not None:
            self._arrived(address, verdict)
        address.is_urgent = self._is_urgent(address, verdict)

    def _note_parked(self, address: Address, verdict: Verdict) -> None:
        if verdict.standing is not Standing.PARKED:
            return
        if address.parked_s is None:
            address.parked_s = self.now_s
            where = verdict.port if address.has_on(verdict.port) else None
            self.events.append(Parked(address.ip, where, self.why_not(address), self.now_s))

    def why_not(self, address: Address) -> tuple[tuple[str, str], ...]:
        """Each port of an address's group, and what keeps the address off it."""
        group = self.config.group_of(address.managed.home)
        allowed = self.allowed_ports(address)
        found = []
        for name in group.ports if group else ():
            broken = self.ports[name].clear_layer()
            found.append((name, broken.value if broken else "refused by the kernel" if name in allowed else "not allowed"))
        return tuple(found)

    def _new_goal(self, address: Address, verdict: Verdict) -> Goal:
        former = self.ports.get(address.place or "")
        unreachable_s = None
        if address.lost is not None:
            reason, unreachable_s = address.lost
        elif former is not None and not former.usable:
            broken = former.clear_layer()
            reason, unreachable_s = REASONS[broken] if broken else Reason.CARRIER, former.broken_s
        elif address.place is None:
            reason = Reason.STARTUP
        elif address.place not in self.allowed_ports(address):
            reason = Reason.NOT_ALLOWED
        elif verdict.port == address.home:
            reason = Reason.OPERATOR if address.asked else Reason.FAILBACK
        else:
            reason = Reason.BARRED
        if self.restoring:
            reason = Reason.RESTORED
        elif not self.rested:
            reason, unreachable_s = Reason.STARTUP, None
        return Goal(verdict.port, reason, unreachable_s)

    def _arrived(self, address: Address, verdict: Verdict) -> None:
        """It is where it should be, and nowhere else."""
        goal, address.goal, address.lost = address.goal, None, None
        if verdict.port == address.home:
            address.asked = False
        unparked = address.parked_s is not None and verdict.standing is not Standing.PARKED
        if goal is not None:
            outage_s = 0.0 if goal.unreachable_s is None else self.now_s - goal.unreachable_s
            self.events.append(Moved(address.ip, address.place, verdict.port, goal.reason, self.now_s, outage_s))
            address.place, address.moved_s = verdict.port, self.now_s
        if unparked:
            assert address.parked_s is not None
            self.events.append(Unparked(address.ip, verdict.port, self.now_s, self.now_s - address.parked_s))
            address.parked_s = None
        if goal is not None or unparked:
            address.announce_at([self.now_s + instant_ms / 1000 for instant_ms in self.config.announce_at_ms])
            address.announced = False
        elif not address.announced and not address.announce_s:
            address.announce_once(self.now_s)

    def _is_urgent(self, address: Address, verdict: Verdict) -> bool:
        """Whether nobody can reach an address though somebody could: until its move has been announced it comes first."""
        return self.is_usable(verdict.port) and not (address.announced and self.is_usable(address.place or ""))

    # -- results

    def _succeeded(self, action: Action, error: int | None) -> None:
        self.done_actions[type(action).__name__] += 1
        if isinstance(action, Announce):
            self.retries.forget((key_of(action),))  # these have a schedule, and are meant to be repeated
        else:
            self.retries.succeeded(key_of(action), self.now_s)
        match action:
            case AddAddress() if action.ip in self.addresses:
                address = self.addresses[action.ip]
                address.copies[action.port, action.prefix] = Copy(self.now_s, self.config.mark)
                self.echoes.did((action.ip, action.port, action.prefix), True, self.now_s)
                if error is not None:
                    self.resync_s = self.now_s  # there already: with which flags?
            case RemoveAddress() if action.ip in self.addresses:
                self.addresses[action.ip].copies.pop((action.port, action.prefix), None)
                self.echoes.did((action.ip, action.port, action.prefix), False, self.now_s)
            case SwitchRule() if action.ip in self.addresses:
                self.addresses[action.ip].rule_port = action.port
            case EnsureRoutes():
                self.routed.add(action.port)
            case Announce() if action.ip in self.addresses:
                address = self.addresses[action.ip]
                address.announce_s = [at_s for at_s in address.announce_s if at_s > self.now_s]
                address.announced = True
            case _:
                pass  # a Resync; or what was listed when it was begun is not listed any more

    def _failed(self, action: Action, error: int) -> None:
        self.refused_actions[type(action).__name__] += 1
        for_s = self.retries.refused(key_of(action), self.now_s)
        if isinstance(action, AddAddress):
            self.events.append(Barred(action.ip, action.port, error, for_s, self.now_s))
        else:
            self.events.append(Refused(action, error, for_s, self.now_s))
        if error == errno.ENODEV:
            self.resync_s = self.now_s


def key_of(action: Action) -> RetryKey:
    """What an action is remembered by; the port comes last."""
    match action:
        case Resync():
            return (Resync,)
        case EnsureRoutes(port):
            return EnsureRoutes, port
        case AddAddress(ip, port) | RemoveAddress(ip, port) | SwitchRule(ip, port) | Announce(ip, port):
            return type(action), ip, port
