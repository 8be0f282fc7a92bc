"""What the kernel says, as facts: which message means what, and what it means for others."""

from __future__ import annotations

import ipaddress

import pytest

from rdsx.netlink.rtnetlink import Address, Link, Message, Route, Rule
from rdsx.rdmaip.config import Config, Group, ManagedAddress
from rdsx.rdmaip.facts import AddressFact, LinkFact, LinkType, RouteFact, RuleFact
from rdsx.rdmaip.kernel_state import KernelState

IP = "10.9.0.11"
SUBNET, SUBNET6 = ipaddress.ip_network("10.9.0.0/24"), ipaddress.ip_network("fd09::/64")
CONFIG = Config(
    groups=(Group(name="fabric", ports=("p0", "p1"), addresses=(ManagedAddress(IP, 24, "p0"), ManagedAddress("fd09::11", 64, "p0"))),)
)
MARK = CONFIG.mark
TABLES = {port: CONFIG.table(port) for port in CONFIG.ports}


def link(index: int, name: str, *, up: bool = True, carrier: bool = True, gone: bool = False, kind: int = 1) -> Link:
    return Link(index, name, bytes([10, 0, 0, 0, 0, index]), b"\xff" * 6, kind, up, carrier, "veth", None, None, None, gone)


def address(index: int, text: str = IP, prefix: int = 24, *, gone: bool = False) -> Address:
    return Address(index, ipaddress.ip_address(text), prefix, "", 0, MARK, gone)


def rule(port: str, priority: int, *, ip: str = IP, gone: bool = False, mark: int = MARK) -> Rule:
    return Rule(2, ipaddress.ip_network(ip), TABLES[port], priority, mark, gone)


def route(port: str, index: int, destination: ipaddress.IPv4Network | ipaddress.IPv6Network = SUBNET, *, mark: int = MARK) -> Route:
    return Route(2 if destination.version == 4 else 10, destination, TABLES[port], index, mark, 253, 0)


@pytest.fixture
def state() -> KernelState:
    """Two ports, both with all their routes, the address on the first."""
    found = KernelState(CONFIG)
    routes = [route(port, index, subnet) for port, index in (("p0", 2), ("p1", 3)) for subnet in (SUBNET, SUBNET6)]
    snapshot = found.replace([*routes, rule("p0", 18900), address(2), link(2, "p0"), link(3, "p1"), link(1, "lo", kind=772)])
    assert snapshot.links == (
        LinkFact("p0", True, 2, True, True, bytes([10, 0, 0, 0, 0, 2])),
        LinkFact("p1", True, 3, True, True, bytes([10, 0, 0, 0, 0, 3])),
    )
    assert snapshot.addresses == (AddressFact(IP, "p0", 24, True, MARK),)
    assert snapshot.rules == (RuleFact(IP, "p0"),)
    assert snapshot.routes == (RouteFact("p0", True), RouteFact("p1", True))
    return found


def test_ports_that_are_not_there() -> None:
    snapshot = KernelState(CONFIG).replace([link(1, "lo")])
    assert [fact.present for fact in snapshot.links] == [False, False]
    assert snapshot.routes == (RouteFact("p0", False), RouteFact("p1", False))


def test_an_interface_of_infiniband() -> None:
    assert KernelState(CONFIG).replace([link(2, "p0", kind=32)]).links[0].link_type is LinkType.INFINIBAND


def test_others_are_left_out(state: KernelState) -> None:
    strangers: list[Message] = [
        link(4, "eth7"),
        address(4),
        rule("p1", 5, mark=3),
        rule("p1", 5, ip="10.9.0.0/25"),
        Rule(2, ipaddress.ip_network(IP), 254, 5, MARK),
        Rule(2, None, TABLES["p0"], 5, MARK),
        route("p0", 3, ipaddress.ip_network("10.8.0.0/24")),
        Route(2, SUBNET, 254, 2, MARK, 253, 0),
    ]
    assert state.handle(strangers) == []


def test_a_switch_is_one_fact(state: KernelState) -> None:
    assert state.handle([rule("p1", 18901), rule("p0", 18900, gone=True)]) == [RuleFact(IP, "p1")]


def test_two_rules_are_none_until_one_is_gone(state: KernelState) -> None:
    assert state.handle([rule("p1", 18901)]) == [RuleFact(IP, None)]
    assert state.rules(IP) == [(18900, TABLES["p0"]), (18901, TABLES["p1"])]
    assert state.handle([rule("p0", 18900, gone=True)]) == [RuleFact(IP, "p1")]
    assert state.handle([rule("p1", 18901, gone=True)]) == [RuleFact(IP, None)]


def test_a_route_that_somebody_deletes(state: KernelState) -> None:
    gone = route("p0", 2)
    assert state.handle([Route(*(getattr(gone, name) for name in gone.__slots__[:-1]), gone=True)]) == [RouteFact("p0", False)]
    assert state.handle([gone]) == [RouteFact("p0", True)]


def test_a_port_that_is_set_down_has_no_routes(state: KernelState) -> None:
    facts = state.handle([link(2, "p0", up=False)])
    assert facts == [LinkFact("p0", True, 2, False, True, bytes([10, 0, 0, 0, 0, 2])), RouteFact("p0", False)]
    assert state.lacks_routes("p0")
    assert not state.lacks_routes("p1")


def test_a_port_without_its_last_ipv4_address_has_only_ipv6_routes(state: KernelState) -> None:
    state.handle([address(2, "10.9.0.99"), address(2, "fd09::11", 64)])
    assert state.handle([address(2, gone=True)]) == [AddressFact(IP, "p0", 24, False, MARK), RouteFact("p0", True)]
    assert state.handle([address(2, "10.9.0.99", gone=True)])[1:] == [RouteFact("p0", False)]
    assert state.handle([route("p0", 2)]) == [RouteFact("p0", True)]
    # It was the last of IPv4; IPv6 keeps its routes without addresses, too.
    assert state.handle([address(2, "fd09::11", 64, gone=True)])[1:] == [RouteFact("p0", True)]


def test_our_own_removal_is_counted_once(state: KernelState) -> None:
    state.address_removed(IP, "p0", 24)
    assert state.lacks_routes("p0")
    state.route_added("p0", SUBNET)
    assert state.handle([address(2, gone=True)])[1:] == [RouteFact("p0", True)]


def test_an_interface_that_is_deleted(state: KernelState) -> None:
    assert state.handle([link(2, "p0", gone=True)]) == [LinkFact("p0", present=False), RouteFact("p0", False)]
    assert state.port_of(2) is None
    assert state.handle([address(2, gone=True)]) == []
    assert not state.needs_resync


def test_an_interface_that_is_replaced(state: KernelState) -> None:
    facts = state.handle([link(2, "p0", gone=True), link(9, "p0")])
    assert [fact.index for fact in facts if isinstance(fact, LinkFact)] == [0, 9]
    assert state.port_of(9) == "p0"
    assert not state.needs_resync  # what is on it will be told


def test_interfaces_that_are_renamed(state: KernelState) -> None:
    """What is on them was told under another name, or not at all: only a dump knows."""
    assert state.handle([link(2, "old")])[0] == LinkFact("p0", present=False)
    assert not state.needs_resync
    state.handle([link(7, "new"), link(7, "p0")])
    assert state.needs_resync
    state.replace([link(7, "p0")])
    assert not state.needs_resync


def test_our_own_link_addresses(state: KernelState) -> None:
    assert state.link_addresses == {bytes([10, 0, 0, 0, 0, index]) for index in (1, 2, 3)}
