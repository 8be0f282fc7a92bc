"""Announcements: byte for byte what the standards say, and what the kernel itself sends when it announces."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdmaip.topology import Host, Topology
from rdsx.rdmaip.announce import (
    ETHERNET_BROADCAST,
    REPLY,
    REQUEST,
    emit_advertisement,
    emit_arp,
    emit_arp_probe,
    emit_solicitation,
    parse_advertisement_untrusted,
    parse_arp_untrusted,
    solicited_node,
)  # fmt: skip
from rdsx.rdmaip.announcer import Announcer, emit_link_address

IPV4 = IPv4Address("10.9.0.11")
IPV6 = IPv6Address("fd09::11")
MAC = bytes.fromhex("0a0000000001")
IPOIB = bytes.fromhex("80000208fe800000000000000002c903000e0b72")
ETH_P_ALL, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0806, 0x86DD
GUARD_S = 10.0


def test_request_on_ethernet() -> None:
    expected = "0001 0800 06 04 0001  0a0000000001 0a09000b  000000000000 0a09000b"
    assert emit_arp(REQUEST, IPV4, MAC, IPV4) == bytes.fromhex(expected)


def test_reply_on_ethernet() -> None:
    expected = "0001 0800 06 04 0002  0a0000000001 0a09000b  0a0000000001 0a09000b"
    assert emit_arp(REPLY, IPV4, MAC, IPV4, MAC) == bytes.fromhex(expected)


def test_request_on_ipoib() -> None:
    expected = f"0020 0800 14 04 0001  {IPOIB.hex()} 0a09000b  {bytes(20).hex()} 0a09000b"
    assert emit_arp(REQUEST, IPV4, IPOIB, IPV4) == bytes.fromhex(expected)


def test_probe_teaches_nobody() -> None:
    expected = "0001 0800 06 04 0001  0a0000000001 00000000  000000000000 0a09000b"
    assert emit_arp_probe(MAC, IPV4) == bytes.fromhex(expected)


def test_advertisement_on_ethernet() -> None:
    expected = "88 00 0000 20000000  fd09 0000 0000 0000 0000 0000 0000 0011  02 01 0a0000000001"
    assert emit_advertisement(IPV6, MAC) == bytes.fromhex(expected)


def test_advertisement_on_ipoib() -> None:
    expected = f"88 00 0000 20000000  fd09 0000 0000 0000 0000 0000 0000 0011  02 03 0000 {IPOIB.hex()}"
    assert emit_advertisement(IPV6, IPOIB) == bytes.fromhex(expected)


def test_solicitation() -> None:
    expected = "87 00 0000 00000000  fd09 0000 0000 0000 0000 0000 0000 0011  01 01 0a0000000001"
    assert emit_solicitation(IPV6, MAC) == bytes.fromhex(expected)
    assert solicited_node(IPv6Address("fd09::12:3456")) == IPv6Address("ff02::1:ff12:3456")


@pytest.mark.parametrize("link", [b"", bytes(8), bytes(21)])
def test_other_link_addresses_are_refused(link: bytes) -> None:
    with pytest.raises(ValueError, match=f"{len(link)} bytes: ports are Ethernet"):
        emit_arp(REQUEST, IPV4, link, IPV4)
    with pytest.raises(ValueError, match=f"{len(link)} bytes: ports are Ethernet"):
        emit_advertisement(IPV6, link)


@given(st.integers(1, 2), st.ip_addresses(v=4), st.sampled_from([6, 20]).flatmap(lambda n: st.binary(min_size=n, max_size=n)), st.binary())
def test_what_is_emitted_is_read_back_whatever_follows(operation: int, sender: IPv4Address, link: bytes, padding: bytes) -> None:
    assert parse_arp_untrusted(emit_arp(operation, sender, link, IPV4) + padding) == (operation, sender, link)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_packet_or_none(packet: bytes) -> None:
    found = parse_arp_untrusted(packet)
    assert found is None or emit_arp(found[0], found[1], found[2], IPV4)[:8] == packet[:8]


@given(st.ip_addresses(v=6), st.sampled_from([6, 20]).flatmap(lambda n: st.binary(min_size=n, max_size=n)), st.sampled_from([8, 16, 24]))
def test_advertisements_are_read_back_behind_other_options(address: IPv6Address, link: bytes, other: int) -> None:
    packet = emit_advertisement(address, link)
    assert parse_advertisement_untrusted(packet) == (address, link)
    option = bytes([14, other // 8]) + bytes(other - 2)  # a nonce
    assert parse_advertisement_untrusted(packet[:24] + option + packet[24:]) == (address, link)


@given(st.binary(max_size=64), st.integers(0, 64))
def test_any_bytes_are_an_advertisement_or_none(tail: bytes, length: int) -> None:
    packet = (emit_advertisement(IPV6, MAC)[:24] + tail)[:length]
    found = parse_advertisement_untrusted(packet)
    assert found is None or (found[0] == IPV6 and len(found[1]) in (6, 20) and found[1] in tail)


def test_an_option_without_length_ends_the_packet() -> None:
    assert parse_advertisement_untrusted(emit_advertisement(IPV6, MAC)[:24] + bytes([2, 0]) + bytes(6)) is None
    assert parse_advertisement_untrusted(emit_solicitation(IPV6, MAC)) is None


@pytest.mark.parametrize("link", [MAC, IPOIB])
def test_every_byte_counts(link: bytes) -> None:
    packet = emit_arp(REQUEST, IPV4, link, IPV4)
    for length in range(len(packet)):
        assert parse_arp_untrusted(packet[:length]) is None
    advertisement = emit_advertisement(IPV6, link)
    for length in range(len(advertisement)):
        assert parse_advertisement_untrusted(advertisement[:length]) is None


def test_socket_address_has_room_for_ipoib() -> None:
    assert emit_link_address(7, IPOIB) == bytes.fromhex("1100 0806 07000000 0000 00 14") + IPOIB
    assert emit_link_address(7, MAC) == bytes.fromhex("1100 0806 07000000 0000 00 06") + MAC + bytes(2)


# -- beside the kernel's own


def listen(host: Host, port: str) -> socket.socket:
    """All frames of a port, Ethernet header included."""
    with host.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.bind((port, ETH_P_ALL))
    sock.settimeout(GUARD_S)
    return sock


def frame(sock: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    """The next frame of that kind, from now on."""
    end_s = time.monotonic() + GUARD_S
    while time.monotonic() < end_s:
        found = sock.recv(2048)
        if wanted(found):
            return found
    raise AssertionError("the frame did not come")


def is_arp(found: bytes) -> bool:
    return found[12:14] == ETH_P_ARP.to_bytes(2, "big")


def is_advertisement(found: bytes) -> bool:
    """... of the address under test, not of the port's link-local one."""
    return found[12:14] == ETH_P_IPV6.to_bytes(2, "big") and found[54] == 136 and found[62:78] == IPV6.packed


def test_kernel_announces_the_same(make_topology: Callable[..., Topology]) -> None:
    """With arp_notify and ndisc_notify the kernel announces when a port's link address changes: its frames and ours are equal."""
    topology = make_topology("h1", "h2")
    here, there = topology.hosts["h1"], topology.hosts["h2"]
    here.sysctl(ipv4__conf__p0__arp_notify=1, ipv6__conf__p0__ndisc_notify=1)
    here.ip(f"address add {IPV4}/24 dev p0", f"address add {IPV6}/64 dev p0 nodad")
    with listen(there, "p0") as sock:
        here.ip("link set p0 address 0a:00:00:00:00:01")
        kernels_arp = frame(sock, is_arp)
    with listen(there, "p0") as sock:
        here.ip("link set p0 address 0a:00:00:00:00:02", "link set p0 address 0a:00:00:00:00:01")
        kernels_advertisement = [frame(sock, is_advertisement) for _ in range(2)][-1]
    index, mac = interface(here, "p0")
    here.sysctl(ipv4__conf__p0__arp_notify=0, ipv6__conf__p0__ndisc_notify=0)
    with here.inside():
        announcer = Announcer()
    with closing(announcer), listen(there, "p0") as sock:
        announcer.announce(IPV4, index, mac, ETHERNET_BROADCAST)
        assert frame(sock, is_arp) == kernels_arp
        announcer.announce(IPV6, index, mac, ETHERNET_BROADCAST)
        assert frame(sock, is_advertisement) == kernels_advertisement


@pytest.mark.parametrize("form", ["request", "reply", "both"])
def test_peer_believes(make_topology: Callable[..., Topology], form: str) -> None:
    """An entry of the peer's neighbour table takes the new link address from one announcement, in each form."""
    topology = make_topology("h1", "h2")
    here, there = topology.hosts["h1"], topology.hosts["h2"]
    here.ip(f"address add {IPV4}/24 dev p1", f"address add {IPV6}/64 dev p1 nodad")
    there.ip("address add 10.9.0.21/24 dev p0")
    for address in (IPV4, IPV6):
        there.ip(f"neighbour replace {address} dev p0 lladdr 02:00:00:00:00:99 nud reachable")
    index, mac = interface(here, "p1")
    with here.inside():
        announcer = Announcer(form)
    with closing(announcer):
        for address in (IPV4, IPV6):
            announcer.announce(address, index, mac, ETHERNET_BROADCAST)
            end_s = time.monotonic() + GUARD_S
            while mac.hex(":") not in there.ip_output(f"neighbour show {address} dev p0"):
                assert time.monotonic() < end_s, address


def test_refusals_are_os_errors(make_topology: Callable[..., Topology]) -> None:
    here = make_topology("h1").hosts["h1"]
    index, mac = interface(here, "p0")
    here.set_admin("p0", up=False)
    with here.inside():
        announcer = Announcer()
    with closing(announcer):
        with pytest.raises(OSError, match="Network is down"):
            announcer.announce(IPV4, index, mac, ETHERNET_BROADCAST)
        with pytest.raises(OSError):
            announcer.announce(IPV6, index, mac, ETHERNET_BROADCAST)  # the address is not on the port
        with pytest.raises(OSError):
            announcer.announce(IPV4, 4711, mac, ETHERNET_BROADCAST)
    announcer.close()


def interface(host: Host, port: str) -> tuple[int, bytes]:
    with host.inside():
        index = socket.if_nametoindex(port)
    return index, bytes.fromhex(host.ip_output(f"-br link show {port}").split()[2].replace(":", ""))
