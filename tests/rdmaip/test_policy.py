"""The policy where a transcript or the search would not show it: late reports, other configurations, what it says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rdmaipkit import Agent, FakeHost, config_of
from rdsx.rdmaip.actions import AddAddress, Resync
from rdsx.rdmaip.config import Config, Group, ManagedAddress
from rdsx.rdmaip.events import Moved, Reason
from rdsx.rdmaip.facts import AddressFact, Drain, HardwareFact, LinkFact, Move, NeighbourConflict, PathFact, RouteFact, RuleFact, Snapshot
from rdsx.rdmaip.policy import RESYNC_S, CommandError, Policy
from rdsx.rdmaip.status import status_of
from rdsx.rdmaip.wording import describe_action, describe_duration, describe_event


def states(agent: Agent) -> dict[str, tuple[str, str]]:
    return {each.ip: (each.state, each.why) for each in status_of(agent.policy, agent.now_s).addresses}


# -- before and beside


def test_nothing_is_done_before_everything_is_known() -> None:
    policy = Policy(config_of(2, 2), 0.0)
    policy.handle(LinkFact("p0", index=2, admin=True, carrier=True), 0.0)
    assert policy.next_action() is None
    assert policy.next_deadline() is None
    policy.handle_timeout(100.0)
    assert policy.next_action() is None


def test_what_is_not_ours_is_ignored() -> None:
    host = FakeHost(config_of(2, 2))
    agent = Agent(host)
    agent.rest()
    agent.events()
    for fact in (
        LinkFact("eth9", index=99, admin=True, carrier=True),
        HardwareFact("eth9", False),
        PathFact("eth9", False),
        AddressFact("192.0.2.1", "p0", 24),
        RuleFact("192.0.2.1", "p0"),
        RouteFact("eth9", False),
        NeighbourConflict("192.0.2.1", b"\x02" * 6),
    ):
        agent.policy.handle(fact, agent.now_s)
    assert agent.rest() == []
    assert agent.events() == []


def test_an_action_stays_the_same_until_it_is_reported() -> None:
    agent = Agent(FakeHost(config_of(2, 2)))
    first = agent.policy.next_action()
    assert first == agent.policy.next_action() == AddAddress("10.9.0.1", "p0", 24, guest=False)


def test_a_command_that_cannot_be_carried_out_changes_nothing() -> None:
    agent = Agent(FakeHost(config_of(2, 2)))
    agent.rest()
    for command in (Move("10.9.0.9", "p1"), Move("10.9.0.1", "eth9"), Drain("eth9")):
        with pytest.raises(CommandError):
            agent.policy.handle(command, agent.now_s)
    assert agent.rest() == []


# -- reports that come late


def test_an_ipv6_address_that_is_reported_as_added_after_it_was_removed() -> None:
    """Believed, the address would be kept where it is not, and taken from where it is."""
    host = FakeHost(config_of(2, 2))
    agent = Agent(host)
    agent.rest()
    ip = "fd09::2"
    late = AddressFact(ip, "p0", 128, True, host.config.mark)
    host.change("p1", carrier=False)
    agent.rest()
    host.change("p0", carrier=False)
    host.change("p1", carrier=True)
    agent.rest()
    assert host.ports_of(ip) == ["p1"]
    agent.policy.handle(late, agent.now_s)
    host.change("p1", carrier=False)
    host.change("p0", carrier=True)
    done = agent.rest()
    assert done[0] == Resync()
    assert host.ports_of(ip) == ["p0"]


def test_an_action_that_is_not_reported_back_is_looked_after() -> None:
    host = FakeHost(config_of(2, 1, announce_at_ms=(0,)))
    agent = Agent(host)
    while agent.act() is not None:
        host.reports.clear()
    assert agent.wait(0.5) == []
    assert agent.wait(1.0) == [Resync()]
    assert agent.wait(10.0) == []


def test_everything_is_read_back_once_a_minute() -> None:
    host = FakeHost(config_of(2, 1, announce_at_ms=(0,)))
    agent = Agent(host)
    agent.rest()
    del host.addresses["10.9.0.1", "p0", 24]  # and nobody said so
    done = agent.wait(RESYNC_S + 1)
    assert done[0] == Resync()
    assert host.ports_of("10.9.0.1") == ["p0"]


def test_a_report_that_was_lost_is_no_trouble_if_the_address_is_where_it_was() -> None:
    host = FakeHost(config_of(2, 2))
    agent = Agent(host)
    agent.rest()
    agent.events()
    agent.policy.handle(host.snapshot(), agent.now_s)
    assert agent.rest() == []
    assert agent.events() == []


def test_a_deadline_that_passes_while_something_is_done_is_not_forgotten() -> None:
    host = FakeHost(config_of(2, 2, announce_at_ms=(0, 9_990)))
    agent = Agent(host)
    agent.rest()
    agent.wait(60.0)
    host.change("p0", carrier=False)
    agent.rest()
    host.change("p0", carrier=True)
    agent.rest()
    settles_s = agent.now_s + 10.0
    agent.wait(9.985)
    agent.now_s = settles_s - 0.01
    agent.policy.handle_timeout(agent.now_s)
    action = agent.policy.next_action()
    assert action is not None
    assert host.execute(action) is None
    agent.policy.done(action, None, settles_s + 0.5)  # it took its time
    assert agent.policy.next_deadline() == settles_s


# -- another configuration


def with_addresses(config: Config, *addresses: ManagedAddress, ports: tuple[str, ...] | None = None) -> Config:
    group = config.groups[0]
    return replace(config, groups=(Group(name=group.name, ports=ports or group.ports, addresses=addresses),))


def test_another_configuration() -> None:
    """What is in both does not move, what is new is placed, what is no longer listed stays where it is."""
    host = FakeHost(config_of(2, 2, announce_at_ms=(0,)))
    agent = Agent(host)
    agent.rest()
    first, second = host.config.addresses
    third = ManagedAddress("10.9.0.9", 24, "p1")
    agent.policy.reconfigure(with_addresses(host.config, first, third), agent.now_s)
    agent.events()
    agent.rest()
    assert [event.ip for event in agent.events() if isinstance(event, Moved)] == [third.ip]
    assert host.ports_of(first.ip) == ["p0"]
    assert host.ports_of(second.ip) == ["p1"]
    assert host.ports_of(third.ip) == ["p1"]
    host.change("p1", carrier=False)
    agent.rest()
    assert host.ports_of(second.ip) == ["p1"]
    assert host.ports_of(third.ip) == ["p0"]


def test_another_home() -> None:
    host = FakeHost(config_of(2, 1, announce_at_ms=(0,)))
    agent = Agent(host)
    agent.rest()
    agent.wait(5.0)
    agent.policy.reconfigure(with_addresses(host.config, ManagedAddress("10.9.0.1", 24, "p1")), agent.now_s)
    agent.events()
    agent.rest()
    assert list(host.addresses) == [("10.9.0.1", "p1", 24)]
    assert [event.reason for event in agent.events() if isinstance(event, Moved)] == [Reason.FAILBACK]


def test_a_port_that_leaves_the_group() -> None:
    """What we had put there comes away from it."""
    host = FakeHost(config_of(3, 1, announce_at_ms=(0,)))
    agent = Agent(host)
    agent.rest()
    host.change("p0", carrier=False)
    agent.rest()
    assert host.ports_of("10.9.0.1") == ["p1"]
    agent.policy.reconfigure(with_addresses(host.config, *host.config.addresses, ports=("p0", "p2")), agent.now_s)
    agent.rest()
    assert host.ports_of("10.9.0.1") == ["p2"]


def test_a_prefix_that_changes() -> None:
    """IPv4: the new one is there before the old one goes. IPv6 cannot be there twice."""
    host = FakeHost(config_of(2, 2, announce_at_ms=(0,)))
    agent = Agent(host)
    agent.rest()
    addresses = tuple(replace(managed, prefix=managed.prefix - 8) for managed in host.config.addresses)
    agent.policy.reconfigure(with_addresses(host.config, *addresses), agent.now_s)
    names = [describe_action(action) for action in agent.rest() if not isinstance(action, Resync)]
    assert sorted(host.addresses) == [("10.9.0.1", "p0", 16), ("fd09::2", "p1", 56)]
    assert names.index("add 10.9.0.1/16 to p0") < names.index("remove 10.9.0.1/24 from p0")
    assert names.index("remove fd09::2/64 from p1") < names.index("add fd09::2/56 to p1")


# -- what it says of itself


def test_states_of_addresses() -> None:
    host = FakeHost(config_of(2, 3))
    host.put("10.9.0.3", "lo", 32, mark=4)
    agent = Agent(host)
    assert states(agent)["10.9.0.1"] == ("absent", "to p0: startup")
    agent.rest()
    assert states(agent) == {
        "10.9.0.1": ("home", ""),
        "fd09::2": ("home", ""),
        "10.9.0.3": ("left alone", "it is on lo, where it may not be"),
    }
    host.change("p0", carrier=False)
    agent.deliver()
    assert states(agent)["10.9.0.1"] == ("moving", "to p1: carrier")
    agent.rest()
    assert states(agent)["10.9.0.1"] == ("guest", "")
    host.change("p1", admin=False)
    agent.rest()
    assert states(agent)["10.9.0.1"] == ("parked", "p0: carrier, p1: admin")


def test_status_of_ports() -> None:
    host = FakeHost(config_of(2, 1))
    agent = Agent(host)
    agent.rest()
    agent.wait(100.0)
    host.change("p0", carrier=False)
    agent.rest()
    agent.wait(1.0)
    host.change("p0", carrier=True)
    agent.rest()
    agent.wait(4.0)
    first, second = status_of(agent.policy, agent.now_s).ports
    assert (first.usable, first.settled, first.for_s, first.settles_in_s, first.recent_downs) == (True, False, 4.0, 6.0, 1)
    assert (first.layers["carrier"].for_s, first.layers["admin"].for_s) == (4.0, 105.0)
    assert (second.settled, second.settles_in_s, second.addresses) == (True, None, ("10.9.0.1",))


def test_every_event_and_action_has_words() -> None:
    """The transcripts show all of them; here they only must have one line that names what it is about."""
    host = FakeHost(config_of(2, 2, announce_at_ms=(0,)))
    agent = Agent(host)
    actions = agent.rest()
    for _ in range(2):
        host.change("p0", carrier=False)
        host.change("p1", carrier=False)
        actions += agent.rest()
        host.change("p0", carrier=True)
        actions += agent.rest() + agent.wait(30.0)
    host.crippled = True
    host.change("p0", carrier=False)
    host.change("p1", carrier=True)
    actions += agent.rest()
    lines = [describe_event(event) for event in agent.events()] + [describe_action(action) for action in actions]
    assert all("\n" not in line and line for line in lines)
    assert "10.9.0.1 put on p0 (startup)" in lines
    assert "10.9.0.1 parked on p0: no usable port (p0: carrier, p1: carrier)" in lines
    assert "port p0 failed 2 times in 10 min: its addresses come home after 20 s without a failure" in lines
    assert "not permitted to add 10.9.0.1/32 to p1: CAP_NET_ADMIN is missing; nothing is changed any more" in lines


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 ms"), (0.00142, "1.42 ms"), (3.0, "3 s"), (599.9, "600 s"), (1800, "30 min"), (8123, "2 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text


def test_snapshots_say_what_is_not_there() -> None:
    agent = Agent(FakeHost(config_of(2, 1)))
    agent.rest()
    agent.policy.handle(Snapshot(), agent.now_s)
    assert states(agent)["10.9.0.1"] == ("absent", "p0: present, p1: present")
