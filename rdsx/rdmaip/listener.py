"""Hears what neighbours say of addresses: ARP on all interfaces, and IPv6 neighbour advertisements.

Two uses: answers to probes, and somebody else's claim to an address of ours. Owns the two sockets and the sending of probes. Needs
CAP_NET_RAW in the network namespace of the thread that makes it. What is heard was written by strangers: it is parsed, and believed by
nobody here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from rdsx.rdmaip.announce import (
    ETHERNET_BROADCAST,
    REPLY,
    emit_arp_probe,
    emit_solicitation,
    parse_advertisement_untrusted,
    parse_arp_untrusted,
    solicited_node,
)
from rdsx.rdmaip.announcer import ICMPV6_FILTER, send_cooked

__all__ = ["Heard", "Listener"]

ETH_P_ARP = 0x0806
LONGEST = 256  # bytes of a packet that are looked at; both kinds are shorter
BATCH = 64  # packets of each kind taken at once: a flood must not keep the agent from its work
PASS_ADVERTISEMENTS = bytes(0xFF if index != 136 // 8 else 0xFE for index in range(32))  # a set bit blocks; 136 % 8 is bit 0


@dataclass(frozen=True, slots=True)
class Heard:
    """Somebody on the wire of an interface says that an address is at a link address. Not an `answer`: it asks for somebody else's."""

    interface: int
    ip: str
    link: bytes
    answer: bool


class Listener:
    """Ears, and questions. Close it when done. PermissionError when made without CAP_NET_RAW."""

    def __init__(self) -> None:
        kind = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | kind, socket.htons(ETH_P_ARP))
        try:
            self._icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW | kind, socket.IPPROTO_ICMPV6)
        except BaseException:
            self._packet.close()
            raise
        try:
            self._icmp.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, PASS_ADVERTISEMENTS)
            self._icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            self._icmp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        except BaseException:
            self.close()
            raise

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """What to wait for; when one is readable, `take` gives something."""
        return self._packet, self._icmp

    def take(self) -> Iterator[Heard]:
        """What has been heard and not yet taken, in batches; ends when there is nothing, or enough for now. Never waits.

        Raises:
            OSError: a socket failed, other than by having nothing.
        """
        for _ in range(BATCH):
            try:
                packet, where = self._packet.recvfrom(LONGEST)
            except BlockingIOError:
                break
            found = parse_arp_untrusted(packet)
            if found is not None:
                operation, address, link = found
                yield Heard(interface_index(where[0]), str(address), link, operation == REPLY)
        for _ in range(BATCH):
            try:
                packet, controls, _, _ = self._icmp.recvmsg(LONGEST, socket.CMSG_SPACE(20))
            except BlockingIOError:
                break
            advertised = parse_advertisement_untrusted(packet)
            if advertised is not None and controls:
                yield Heard(struct.unpack_from("=16xI", controls[0][2])[0], str(advertised[0]), advertised[1], True)

    def ask(self, target: IPv4Address | IPv6Address, interface: int, link: bytes, broadcast: bytes) -> None:
        """Ask who has `target`, on the interface with that index and link address.

        An ARP question names no sender, so that nobody learns anything from it (RFC 5227, section 1.1). It is answered all the same.

        Raises:
            OSError: the kernel did not take it.
            ValueError: the link address is neither Ethernet's nor IPoIB's.
        """
        if isinstance(target, IPv6Address):
            where = (str(solicited_node(target)), 0, 0, interface)
            # No source: the kernel takes the interface's link-local address.
            self._icmp.sendto(emit_solicitation(target, link), where)
        else:
            send_cooked(self._packet, emit_arp_probe(link, target), interface, broadcast or ETHERNET_BROADCAST)

    def close(self) -> None:
        """Close both sockets; a second call does nothing."""
        self._packet.close()
        self._icmp.close()


def interface_index(name: str) -> int:
    """0 for an interface that has gone in the meantime."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0
