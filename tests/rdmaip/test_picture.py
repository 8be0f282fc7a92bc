"""What the picture tells of the kernel's messages: moves as one change, in whatever order their steps are reported."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rdsx.moves import AddressChange, Change, NeighbourChange
from rdsx.netlink.picture import Picture
from rdsx.netlink.rtnetlink import Address, Done, Link, Message, Neighbour

IP, SECOND = "10.9.0.1", "10.9.0.2"
MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
PERMANENT, TENTATIVE, DADFAILED = 0x80, 0x40, 0x08
STALE, FAILED = 4, 32


def link(index: int, *, up: bool = True, carrier: bool = True, gone: bool = False) -> Link:
    return Link(index, f"p{index}", MAC, b"\xff" * 6, 1, up, carrier, "", None, None, None, gone)


def address(index: int, text: str = IP, *, prefix: int = 24, flags: int = PERMANENT, gone: bool = False) -> Address:
    return Address(index, ipaddress.ip_address(text), prefix, "", flags, 0, gone)


def neighbour(hardware: bytes | None, index: int = 0, text: str = SECOND, *, gone: bool = False) -> Neighbour:
    return Neighbour(index, ipaddress.ip_address(text), hardware, FAILED if hardware is None else STALE, gone)


def told(picture: Picture, *messages: Message) -> list[Change]:
    picture.apply(messages)
    return picture.changes()


def two_ports(*more: Message) -> Picture:
    picture = Picture()
    told(picture, link(0), link(1), *more)
    return picture


def test_a_move_is_one_change_in_either_order() -> None:
    """Of an IPv6 address the addition, which came first, can be reported last."""
    for steps in ((address(1), address(0, gone=True)), (address(0, gone=True), address(1))):
        picture = two_ports(address(0))
        assert told(picture, *steps) == [AddressChange(IP, ("p0",), ("p1",))]
        assert picture.ports(IP) == ("p1",)
        assert picture.changes() == []


def test_what_is_as_it_was_is_no_change() -> None:
    picture = two_ports(address(0), neighbour(MAC))
    assert told(picture, address(0, gone=True), address(0), neighbour(None), neighbour(MAC)) == []
    assert told(picture, link(0, carrier=False), link(0)) == []
    assert not picture.apply([Done(1, interrupted=False), neighbour(MAC), link(0)])


def test_an_address_is_where_it_can_be_reached() -> None:
    picture = two_ports(address(0))
    for broken in (link(0, carrier=False), link(0, up=False), link(0, gone=True)):
        assert told(picture, broken) == [AddressChange(IP, ("p0",), ())]
        assert told(picture, link(0)) == [AddressChange(IP, (), ("p0",))]
    assert told(picture, address(1)) == [AddressChange(IP, ("p0",), ("p0", "p1"))]
    assert told(picture, address(0, gone=True), address(1, gone=True)) == [AddressChange(IP, ("p0", "p1"), ())]


def test_an_address_that_cannot_be_used_yet_is_not_there() -> None:
    picture = two_ports()
    six = "fd09::1"
    assert told(picture, address(0, six, flags=PERMANENT | TENTATIVE)) == []
    assert told(picture, address(0, six)) == [AddressChange(six, (), ("p0",))]
    assert told(picture, address(0, six, flags=PERMANENT | DADFAILED)) == [AddressChange(six, ("p0",), ())]


def test_one_address_with_two_prefixes_is_there_until_both_are_gone() -> None:
    picture = two_ports(address(0), address(0, prefix=32))
    assert told(picture, address(0, gone=True)) == []
    assert told(picture, address(0, prefix=32, gone=True)) == [AddressChange(IP, ("p0",), ())]


def test_link_local_addresses_are_of_one_interface() -> None:
    picture = two_ports()
    changes = told(picture, address(0, "fe80::1"), address(1, "fe80::1"))
    assert changes == [AddressChange("fe80::1%0", (), ("p0",)), AddressChange("fe80::1%1", (), ("p1",))]


def test_a_neighbour_that_moves_is_told_for_each_port() -> None:
    picture = two_ports(neighbour(MAC), neighbour(MAC, 1))
    assert told(picture, neighbour(OTHER_MAC), neighbour(OTHER_MAC, 1)) == [
        NeighbourChange(SECOND, "p0", MAC, OTHER_MAC),
        NeighbourChange(SECOND, "p1", MAC, OTHER_MAC),
    ]


def test_a_neighbour_that_no_longer_answers() -> None:
    picture = two_ports(neighbour(MAC))
    assert told(picture, neighbour(None)) == [NeighbourChange(SECOND, "p0", MAC, None)]
    assert told(picture, neighbour(None, gone=True)) == []
    assert told(picture, neighbour(MAC), neighbour(MAC, gone=True)) == []  # the kernel tells what it forgets
    assert told(picture, neighbour(OTHER_MAC)) == [NeighbourChange(SECOND, "p0", None, OTHER_MAC)]


def test_multicast_is_nobodys_address() -> None:
    assert told(two_ports(), neighbour(MAC, text="ff02::16"), neighbour(MAC, text="224.0.0.22")) == []


def test_the_port_of_a_neighbour_is_named_even_when_it_is_gone() -> None:
    picture = two_ports(neighbour(MAC))
    assert told(picture, neighbour(None, gone=True), link(0, gone=True)) == [NeighbourChange(SECOND, "p0", MAC, None)]
    assert told(picture, neighbour(MAC, 77)) == [NeighbourChange(SECOND, "77", None, MAC)]


def test_everything_anew_tells_what_is_different() -> None:
    picture = two_ports(address(0), address(0, "10.9.0.7"), neighbour(MAC), neighbour(MAC, text="10.9.0.8"))
    picture.replace([link(0), link(1), address(1), address(0, "10.9.0.7"), neighbour(OTHER_MAC)])
    assert picture.changes() == [
        AddressChange(IP, ("p0",), ("p1",)),
        NeighbourChange(SECOND, "p0", MAC, OTHER_MAC),
        NeighbourChange("10.9.0.8", "p0", MAC, None),
    ]


EVENTS = st.one_of(
    st.builds(link, st.integers(0, 2), up=st.booleans(), carrier=st.booleans(), gone=st.booleans()),
    st.builds(address, st.integers(0, 2), st.sampled_from([IP, SECOND]), prefix=st.sampled_from([24, 32]), gone=st.booleans()),
    st.builds(neighbour, st.sampled_from([MAC, OTHER_MAC, None]), st.integers(0, 1), gone=st.booleans()),
)


@given(st.lists(st.lists(EVENTS, max_size=6), max_size=8))
def test_what_was_told_adds_up(bursts: list[list[Message]]) -> None:
    """Each change begins where the last one about the same thing ended; at the end all is as the last messages say."""
    picture = Picture()
    ports: dict[str, tuple[str, ...]] = {}
    hardware: dict[tuple[str, str], bytes | None] = {}
    latest: dict[object, Message] = {}
    for burst in bursts:
        for change in told(picture, *burst):
            if isinstance(change, AddressChange):
                assert change.before == ports.get(change.ip, ()) != change.after
                ports[change.ip] = change.after
                assert change.after == picture.ports(change.ip)
            else:
                # A neighbour's port may have no name yet when it is first told, so it is looked up by its number.
                key = change.ip, change.port.removeprefix("p")
                assert change.before == hardware.get(key) != change.after
                hardware[key] = change.after
        for message in burst:
            latest[key_of(message)] = message
    standing = [message for message in latest.values() if not message.gone]  # type: ignore[union-attr]
    usable = {message.index for message in standing if isinstance(message, Link) and message.is_up and message.has_carrier}
    for ip in (IP, SECOND):
        where = {message.index for message in standing if isinstance(message, Address) and str(message.ip) == ip}
        assert ports.get(ip, ()) == tuple(f"p{index}" for index in sorted(where & usable))
    for message in latest.values():
        if isinstance(message, Neighbour):
            assert hardware.get((SECOND, str(message.index))) == (None if message.gone else message.hardware)


def key_of(message: Message) -> object:
    if isinstance(message, Address):
        return message.index, message.ip, message.prefix
    return type(message), message.index  # type: ignore[union-attr]


def test_a_renamed_port_is_another_one() -> None:
    picture = two_ports(address(0))
    assert told(picture, replace(link(0), name="fast0")) == [AddressChange(IP, ("p0",), ("fast0",))]
