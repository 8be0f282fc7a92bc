"""Routing netlink: what a kernel has sent, as records; requests, read back by their own codec; any bytes at all."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from rdsx.netlink.rtnetlink import (
    Address,
    BadNetlink,
    Done,
    Dump,
    Link,
    Neighbour,
    Refusal,
    Route,
    Rule,
    add_address,
    add_route,
    add_rule,
    dump,
    parse,
    remove_address,
    remove_route,
    remove_rule,
)

CAPTURED = Path(__file__).parents[1] / "data/rtnetlink/linux-6.18.txt"
IPV4, IPV6 = ipaddress.ip_address("10.9.0.1"), ipaddress.ip_address("fd09::1")
NEIGHBOUR = ipaddress.ip_address("10.9.0.2")
MARK = 189
PERMANENT, NODAD, TENTATIVE, DADFAILED, NOPREFIXROUTE = 0x80, 0x02, 0x40, 0x08, 0x200
HOME_NETWORK, HOST_NETWORK = ipaddress.ip_network("10.9.0.0/24"), ipaddress.ip_network("10.9.0.1/32")


def captured() -> dict[str, bytes]:
    lines = CAPTURED.read_text().splitlines()[1:]
    return {name: bytes.fromhex(text) for name, text in (line.split() for line in lines)}


def link(**changed: object) -> Link:
    fields: dict[str, object] = {
        "index": 2,
        "name": "p0",
        "hardware": bytes.fromhex("020000000100"),
        "broadcast": b"\xff" * 6,
        "hardware_type": 1,
        "is_up": True,
        "has_carrier": True,
        "kind": "veth",
        "tag": None,
        "parent": 3,
        "master": None,
    }
    return Link(**fields | changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cut-1", link(has_carrier=False)),
        ("restored", link()),
        ("added", Address(3, IPV4, 24, "p1:home", PERMANENT, MARK)),
        ("removed", Address(3, IPV4, 24, "p1:home", PERMANENT, MARK, gone=True)),
        ("added6", Address(3, IPV6, 128, "", PERMANENT | NODAD | NOPREFIXROUTE, MARK)),
        ("tentative-1", Address(3, ipaddress.ip_address("fd09::7"), 64, "", PERMANENT | TENTATIVE, 0)),
        ("rule", Rule(2, HOST_NETWORK, 18901, 1000, MARK)),
        ("route", Route(2, HOME_NETWORK, 18901, 3, MARK, 253, 0)),
        ("removed-1", Route(2, HOME_NETWORK, 254, 3, 2, 253, 0, gone=True)),
        ("neighbour", Neighbour(3, NEIGHBOUR, bytes.fromhex("020000000200"), 2)),
        ("neighbour-moved", Neighbour(3, NEIGHBOUR, bytes.fromhex("020000000201"), 4)),
        ("neighbour-gone", Neighbour(3, NEIGHBOUR, None, 32)),
        ("neighbour-gone-1", Neighbour(3, NEIGHBOUR, None, 32, gone=True)),
        ("refused", Refusal(0, 99, "ipv4: Address not found")),
        ("acknowledged", Refusal(0, 0, "")),
        ("dump-1", Done(0, interrupted=False)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_kernel_says(name: str, expected: object) -> None:
    assert parse(captured()[name]) == [expected]


def test_a_dump_has_many_messages_in_one_datagram() -> None:
    addresses = parse(captured()["dump-0"])
    assert len(addresses) == 7
    assert all(isinstance(address, Address) for address in addresses)


def test_routes_that_are_no_unicast_and_local_broadcasts_are_nobodys_business() -> None:
    assert [parse(captured()[name]) for name in ("added-1", "added-2", "removed-2", "removed-3")] == [[], [], [], []]


def test_tentative_and_duplicate_addresses_say_so() -> None:
    plain = Address(1, IPV6, 64, "", PERMANENT, 0)
    assert (plain.is_tentative, plain.has_failed) == (False, False)
    assert Address(1, IPV6, 64, "", TENTATIVE, 0).is_tentative
    assert Address(1, IPV6, 64, "", DADFAILED, 0).has_failed


@pytest.mark.parametrize(("kind", "attribute"), [("vlan", "IFLA_VLAN_ID"), ("ipoib", "IFLA_IPOIB_PKEY")])
def test_the_tag_of_a_link(kind: str, attribute: str) -> None:
    message = ifinfmsg()
    message["index"] = 9
    message["attrs"] = [
        ("IFLA_IFNAME", "tagged"),
        ("IFLA_LINK", 2),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": [(attribute, 7)]})]}),
    ]
    message["header"]["type"] = 16
    message.encode()
    (record,) = parse(bytes(message.data))
    assert isinstance(record, Link)
    assert (record.name, record.kind, record.tag, record.parent) == ("tagged", kind, 7, 2)


def test_an_interrupted_dump_is_told() -> None:
    """The flag can stand on any message of a dump, also in a datagram before the last."""
    data = bytearray(captured()["dump-0"])
    data[6] |= 0x10
    assert parse(bytes(data))[-1] == Done(0, interrupted=True)
    assert parse(bytes(data) + captured()["dump-1"])[-1] == Done(0, interrupted=True)


# -- requests


def test_requests_are_what_their_own_codec_reads() -> None:
    """The kernel's answer to a request is the same message, so reading one back shows every field."""
    guest = Address(7, IPV4, 32, "", PERMANENT | NOPREFIXROUTE, MARK)
    assert parse(add_address(7, IPV4, 32, mark=MARK, prefix_route=False)) == [guest]
    home = Address(7, IPV6, 64, "", PERMANENT | NODAD, MARK)
    assert parse(add_address(7, IPV6, 64, mark=MARK, prefix_route=True)) == [home]
    labelled = Address(7, IPV4, 24, "p1:P00", PERMANENT, MARK)
    assert parse(add_address(7, IPV4, 24, mark=MARK, prefix_route=True, label="p1:P00", broadcast=True)) == [labelled]
    assert parse(remove_address(7, IPV4, 24)) == [Address(7, IPV4, 24, "", 0, 0, gone=True)]
    rule = Rule(2, HOST_NETWORK, 18901, 1000, MARK)
    assert parse(add_rule(HOST_NETWORK, 18901, 1000, mark=MARK)) == [rule]
    assert parse(remove_rule(HOST_NETWORK, 99, 1000, mark=MARK)) == [Rule(2, HOST_NETWORK, 99, 1000, MARK, gone=True)]
    assert parse(add_route(HOME_NETWORK, 7, 18901, mark=MARK)) == [Route(2, HOME_NETWORK, 18901, 7, MARK, 253, 0)]
    six = ipaddress.ip_network("fd09::/64")
    assert parse(remove_route(six, 7, 18901, mark=MARK)) == [Route(10, six, 18901, 7, MARK, 0, 0, gone=True)]


def test_every_change_asks_for_an_answer_and_no_dump_does() -> None:
    change = add_address(7, IPV4, 32, mark=MARK, prefix_route=False)
    assert struct.unpack_from("=IHH", change) == (len(change), 20, 0x1 | 0x4 | 0x600)
    for what in Dump:
        assert struct.unpack_from("=HH", dump(what), 4) == (what, 0x301)


def test_the_broadcast_address_is_the_subnets() -> None:
    assert bytes.fromhex("080004000a0900ff") in add_address(7, IPV4, 24, mark=MARK, prefix_route=True, broadcast=True)


# -- bytes that are no messages


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x10", "1 bytes behind"),
        (struct.pack("=IHHII", 15, 3, 0, 0, 0), "15 bytes"),
        (struct.pack("=IHHII", 17, 3, 0, 0, 0), "17 bytes, of 16"),
        (struct.pack("=IHHII", 16, 20, 0, 0, 0), "cannot be"),
    ],
)
def test_bad_bytes_are_named(data: bytes, words: str) -> None:
    with pytest.raises(BadNetlink, match=words):
        parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_bad(data: bytes) -> None:
    try_to_parse(data)


@given(st.sampled_from(sorted(captured())), st.data())
def test_damaged_messages_are_messages_or_bad(name: str, draw: st.DataObject) -> None:
    data = bytearray(captured()[name])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try_to_parse(bytes(data[: draw.draw(st.integers(0, len(data)))]))


def try_to_parse(data: bytes) -> None:
    with contextlib.suppress(BadNetlink):
        parse(data)
