"""The packets that tell peers where an address now lives, ARP announcements and unsolicited neighbour advertisements; and those that ask.

Pure bytes. Owns their layout, on Ethernet and on IPoIB; `announcer` sends them, `listener` hears them. What is built here begins behind
the link header, which the kernel writes. Invariant: sender and target of an ARP announcement are the same address, so it can create no
false entry for another.

Sources: RFC 826 and RFC 5227 section 3 (ARP and its announcements), RFC 4391 (20-byte addresses of IPoIB, hardware type 32), RFC 4861
section 4.4 (advertisements), RFC 4391 section 9.3 (their link-layer option on IPoIB).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

__all__ = [
    "ALL_NODES", "ETHERNET_BROADCAST", "REPLY", "REQUEST", "emit_advertisement", "emit_arp", "emit_arp_probe", "emit_solicitation",
    "parse_advertisement_untrusted", "parse_arp_untrusted", "solicited_node",
]  # fmt: skip

REQUEST = 1  # ARP operations
REPLY = 2
ETHERNET = 1  # ARP hardware types
INFINIBAND = 32
IPV4 = 0x0800  # ARP's protocol type: an EtherType
ETHERNET_BROADCAST = bytes([0xFF] * 6)
ALL_NODES = "ff02::1"

ARP_HEADER = struct.Struct("!HHBBH")  # hardware type, protocol type, their address lengths, operation
ICMP = struct.Struct("!BBHI16s")  # type, code, checksum, flags, target; of solicitations and advertisements
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
OVERRIDE = 0x20000000  # replace what the cache says; neither "router" nor "solicited"
SOURCE_LINK_ADDRESS = 1
TARGET_LINK_ADDRESS = 2
OPTION_UNIT = 8  # bytes in which an option counts its length
OPTION_OFFSETS = {8: 2, 24: 4}  # where the link address begins in an option of that size: Ethernet, IPoIB
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")

HARDWARE_TYPES = {6: ETHERNET, 20: INFINIBAND}  # by length of the address


def emit_arp(operation: int, sender: IPv4Address, sender_link: bytes, target: IPv4Address, target_link: bytes | None = None) -> bytes:
    """An ARP packet without its link header. `target_link` None: not known, all zero.

    `emit_arp(REQUEST, a, mac, a)` announces `a`; so does `emit_arp(REPLY, a, mac, a, mac)`, for peers that heed replies only.

    Raises:
        ValueError: the link address has neither 6 bytes (Ethernet) nor 20 (IPoIB).
    """
    header = ARP_HEADER.pack(hardware_type(sender_link), IPV4, len(sender_link), 4, operation)
    return header + sender_link + sender.packed + (target_link or bytes(len(sender_link))) + target.packed


def emit_arp_probe(sender_link: bytes, target: IPv4Address) -> bytes:
    """A question that leaves no trace: with no sender address nobody learns anything from it (RFC 5227, section 1.1)."""
    return emit_arp(REQUEST, IPv4Address(0), sender_link, target)


def parse_arp_untrusted(packet: bytes) -> tuple[int, IPv4Address, bytes] | None:
    """(operation, sender, its link address) of an ARP packet for IPv4 behind the link header; None for anything else."""
    if len(packet) < ARP_HEADER.size:
        return None
    hardware, protocol, link_length, address_length, operation = ARP_HEADER.unpack_from(packet)
    if protocol != IPV4 or address_length != 4 or HARDWARE_TYPES.get(link_length) != hardware:
        return None
    link_end = ARP_HEADER.size + link_length
    if len(packet) < link_end + 4 + link_length + 4:
        return None
    return operation, IPv4Address(packet[link_end : link_end + 4]), packet[ARP_HEADER.size : link_end]


def emit_advertisement(address: IPv6Address, link: bytes) -> bytes:
    """An unsolicited neighbour advertisement, ICMPv6 without its checksum, which the kernel fills in on a raw socket.

    Raises:
        ValueError: the link address has neither 6 bytes (Ethernet) nor 20 (IPoIB).
    """
    return ICMP.pack(NEIGHBOUR_ADVERTISEMENT, 0, 0, OVERRIDE, address.packed) + emit_option(TARGET_LINK_ADDRESS, link)


def emit_solicitation(target: IPv6Address, link: bytes) -> bytes:
    """A question for the link address of `target`, from the one at `link`; ValueError as for an advertisement."""
    return ICMP.pack(NEIGHBOUR_SOLICITATION, 0, 0, 0, target.packed) + emit_option(SOURCE_LINK_ADDRESS, link)


def solicited_node(target: IPv6Address) -> IPv6Address:
    """The multicast address where `target` hears questions (RFC 4291, section 2.7.1)."""
    return IPv6Address(SOLICITED_NODE + target.packed[-3:])


def parse_advertisement_untrusted(packet: bytes) -> tuple[IPv6Address, bytes] | None:
    """(address, its link address) of an advertisement that names both; None for anything else. The kernel has proved the checksum."""
    if len(packet) < ICMP.size or packet[0] != NEIGHBOUR_ADVERTISEMENT or packet[1] != 0:
        return None
    place = ICMP.size
    while place + 2 <= len(packet):
        kind, size = packet[place], packet[place + 1] * OPTION_UNIT
        if size == 0 or place + size > len(packet):
            return None
        if kind == TARGET_LINK_ADDRESS and size in OPTION_OFFSETS:
            start = place + OPTION_OFFSETS[size]
            return IPv6Address(packet[8 : ICMP.size]), packet[start : place + size]
        place += size
    return None


def emit_option(kind: int, link: bytes) -> bytes:
    hardware_type(link)
    # IPoIB: two reserved bytes before the address. Both forms end on a multiple of the unit.
    body = link if len(link) == 6 else bytes(2) + link
    return bytes([kind, (2 + len(body)) // OPTION_UNIT]) + body


def hardware_type(link: bytes) -> int:
    kind = HARDWARE_TYPES.get(len(link))
    if kind is None:
        raise ValueError(f"link address {link.hex(':')!r} has {len(link)} bytes: ports are Ethernet (6 bytes) or IPoIB (20 bytes)")
    return kind
