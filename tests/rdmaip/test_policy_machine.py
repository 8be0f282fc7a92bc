"""The policy as hypothesis sees it: a host where everything can go wrong, reports that come late or never, and a clock that jumps.

In the end faults stop; a bounded time later every address must be home, announced and routed, whatever happened before.
`RDSX_HYPOTHESIS=explore` draws new examples.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rdmaipkit import Agent, FakeHost, config_of
from rdsx.rdmaip.actions import AddAddress, Announce, EnsureRoutes, RemoveAddress, Resync, SwitchRule
from rdsx.rdmaip.events import Layer
from rdsx.rdmaip.facts import AddressFact, ClockFact, Drain, Failback, Move, Undrain
from rdsx.rdmaip.policy import CommandError

pick = st.integers(0, 100)
KINDS = (AddAddress, RemoveAddress, SwitchRule, EnsureRoutes, Announce, Resync)
ERRORS = (12, 22, 105)  # ENOMEM, EINVAL, ENOBUFS
REST_S = 900.0  # more than the longest hold, retry and resync after one another


class Host(RuleBasedStateMachine):
    @initialize(
        ports=st.integers(2, 4),
        addresses=st.integers(1, 6),
        choose=st.sampled_from(["least-loaded", "first"]),
        delay_ms=st.sampled_from([0, 0, 500]),
        sync_s=st.sampled_from([0, 0, 60]),
        routing=st.sampled_from(["rules", "rules", "none"]),
    )
    def begin(self, ports: int, addresses: int, choose: str, delay_ms: int, sync_s: int, routing: str) -> None:
        config = config_of(ports, addresses, choose=choose, failover_delay_ms=delay_ms, failback_sync_s=sync_s, routing=routing)
        self.host = FakeHost(config)
        self.wall_s = 1_700_000_000.0
        self.disturbed: set[str] = set()  # addresses that the world has touched and that are not in order again
        self.held: set[str] = set()
        self.start(0.0)

    def start(self, now_s: float) -> None:
        self.agent = Agent(self.host, now_s)
        self.tell_time()

    def tell_time(self) -> None:
        self.agent.policy.handle(ClockFact(self.wall_s, self.agent.now_s), self.agent.now_s)

    def port(self, number: int) -> str:
        return self.host.config.ports[number % len(self.host.config.ports)]

    def ip(self, number: int) -> str:
        return self.host.config.addresses[number % len(self.host.config.addresses)].ip

    # -- what happens

    @rule(port=pick, change=st.sampled_from(["carrier", "carrier", "carrier", "admin", "present"]))
    def toggle(self, port: int, change: str) -> None:
        name = self.port(port)
        self.disturb(name)
        self.host.change(name, **{change: not getattr(self.host.links[name], change)})

    @rule(port=pick, what=st.sampled_from(["index", "mac", "tag"]), number=st.integers(1, 200))
    def replace(self, port: int, what: str, number: int) -> None:
        name = self.port(port)
        self.disturb(name)
        values: dict[str, Any] = {"index": number + 10, "mac": bytes([2, 0, 0, 0, 1, number]), "tag": number % 2 or None}
        self.host.change(name, **{what: values[what]})

    def disturb(self, port: str) -> None:
        self.disturbed |= {ip for ip, at, _ in self.host.addresses if at == port}

    @rule(number=pick)
    def take(self, number: int) -> None:
        there = sorted(self.host.addresses)
        if there:
            self.disturbed.add(there[number % len(there)][0])
            self.host.take(*there[number % len(there)])

    @rule(ip=pick, port=pick, prefix=st.sampled_from([24, 32]))
    def put(self, ip: int, port: int, prefix: int) -> None:
        key = (self.ip(ip), self.port(port), prefix if ":" not in self.ip(ip) else 64)
        if key not in self.host.addresses and self.host.links[key[1]].present:
            self.disturbed.add(key[0])
            self.host.put(*key)

    @rule(kind=st.sampled_from(KINDS), port=pick, error=st.sampled_from(ERRORS))
    def refuse(self, kind: Any, port: int, error: int) -> None:
        self.host.refusals[kind, "" if kind is Resync else self.port(port)] = error

    @rule()
    def allow(self) -> None:
        self.host.refusals.clear()

    @rule(ip=pick, port=pick, what=st.sampled_from(["move", "failback", "drain", "undrain"]))
    def order(self, ip: int, port: int, what: str) -> None:
        name = self.port(port)
        command = {"move": Move(self.ip(ip), name), "failback": Failback(self.ip(ip)), "drain": Drain(name), "undrain": Undrain(name)}[what]
        try:
            self.agent.policy.handle(command, self.agent.now_s)
        except CommandError:
            assert what == "move"

    @rule(seconds=st.sampled_from([-3600.0, 0.3, 40.0, 7200.0]))
    def jump_clock(self, seconds: float) -> None:
        self.wall_s += seconds
        self.tell_time()

    @rule(count=st.integers(1, 4))
    def act(self, count: int) -> None:
        """What was done is reported later, or never."""
        for _ in range(count):
            if self.agent.act() is None:
                break

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.host.reports))):
            self.agent.policy.handle(self.host.reports.popleft(), self.agent.now_s)

    @rule()
    @precondition(lambda self: len(self.host.reports) > 0)
    def lose_report(self) -> None:
        """As when the socket overruns; the agent notices that, and so it reads everything back."""
        self.host.reports.popleft()
        self.read_back()

    def read_back(self) -> None:
        if (Resync, "") not in self.host.refusals:
            self.agent.policy.handle(self.host.snapshot(), self.agent.now_s)

    @rule()
    @precondition(lambda self: len(self.host.reports) > 1)
    def delay_addition(self) -> None:
        """An IPv6 address is reported as added from a work queue: after what came later."""
        first = self.host.reports[0]
        if isinstance(first, AddressFact) and first.present and ":" in first.ip:
            self.host.reports.rotate(-1)

    @rule()
    def kill(self) -> None:
        self.start(self.agent.now_s)

    @rule(seconds=st.sampled_from([0.01, 0.6, 3.0, 12.0, 70.0]))
    def sleep(self, seconds: float) -> None:
        self.wall_s += seconds
        self.agent.wait(seconds)
        self.disturbed = {ip for ip in self.disturbed if len(self.host.ports_of(ip)) != 1}  # what cannot be removed is there still

    # -- what holds

    @invariant()
    def nobody_but_the_world_takes_the_last_copy(self) -> None:
        if not hasattr(self, "host"):
            return
        there = {ip for ip, _, _ in self.host.addresses}
        assert self.held - there <= self.disturbed
        self.held = there

    @invariant()
    def never_three_copies(self) -> None:
        for ip in {ip for ip, _, _ in self.host.addresses} - self.disturbed if hasattr(self, "host") else ():
            assert len([key for key in self.host.addresses if key[0] == ip]) <= 2, ip

    def teardown(self) -> None:
        """Faults stop: everything comes to rest, at home."""
        if not hasattr(self, "host"):
            return
        host = self.host
        host.refusals.clear()
        for name in host.config.ports:
            host.change(name, present=True, admin=True, carrier=True, tag=None)
        self.read_back()
        for name, port in self.agent.policy.ports.items():
            if not port.layers[Layer.ENABLED]:
                self.agent.policy.handle(Undrain(name), self.agent.now_s)
        self.agent.policy.handle(Failback(), self.agent.now_s)
        self.agent.wait(REST_S)
        for managed in host.config.addresses:
            copies = [key for key in host.addresses if key[0] == managed.ip]
            assert [key[1] for key in copies] == [managed.home], (copies, self.agent.policy.verdicts)
            assert host.believed[managed.ip] == managed.home
            if host.config.routing == "rules":
                assert host.rules[managed.ip] == managed.home
        if host.config.routing == "rules":
            assert host.routes == set(host.config.ports)
        assert self.agent.rest() == []


TestHost = Host.TestCase
TestHost.settings = settings(max_examples=60, stateful_step_count=40)
