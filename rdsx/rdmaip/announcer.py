"""Sends what `announce` builds: one packet socket and one raw ICMPv6 socket, opened once, because opening is what costs.

Owns the two sockets; decides nothing about when and how often. Never waits: an announcement that the kernel will not take at once is an
error for the caller, who has others scheduled. Needs CAP_NET_RAW in the network namespace of the thread that makes it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from rdsx.rdmaip.announce import ALL_NODES, REPLY, REQUEST, emit_advertisement, emit_arp

__all__ = ["Announcer", "emit_link_address"]

OPERATIONS = {"request": (REQUEST,), "reply": (REPLY,), "both": (REQUEST, REPLY)}

ETH_P_ARP = 0x0806
ICMPV6_FILTER = 1  # linux/icmpv6.h; a set bit blocks that type
IPV6_AUTOFLOWLABEL = 70  # linux/in6.h
SOCKADDR_LL = struct.Struct("=H2sIHBB")  # family, protocol (big-endian), interface, ARP hardware type, packet type, address length

libc = ctypes.CDLL(None, use_errno=True)
libc.sendto.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
libc.sendto.restype = ctypes.c_ssize_t


class Announcer:
    """Tells peers which port an address is on, by ARP in the form "request", "reply" or "both". Close it when done.

    Raises PermissionError when made without CAP_NET_RAW.
    """

    def __init__(self, form: str = "request") -> None:
        self.form = form
        # Protocol 0: it receives nothing. Cooked (DGRAM): the kernel writes the link header, for IPoIB as for Ethernet.
        self._packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            self._icmp = open_icmp_socket()
        except BaseException:
            self._packet.close()
            raise

    def announce(self, address: IPv4Address | IPv6Address, interface: int, link: bytes, broadcast: bytes) -> None:
        """Announce that `address` is at link address `link`, on the interface with that index. Does not wait.

        IPv4 goes to the port's link broadcast address, IPv6 to all nodes, from `address` itself, which must be on the port.

        Raises:
            OSError: the kernel did not take it (ENETDOWN, ENXIO, ENOBUFS, EINVAL when an IPv6 address is not there).
            ValueError: a link address is neither Ethernet's nor IPoIB's.
        """
        if isinstance(address, IPv6Address):
            self._advertise(address, interface, link)
        else:
            for operation in OPERATIONS[self.form]:
                packet = emit_arp(operation, address, link, address, link if operation == REPLY else None)
                send_cooked(self._packet, packet, interface, broadcast)

    def _advertise(self, address: IPv6Address, interface: int, link: bytes) -> None:
        source = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address.packed + struct.pack("=I", interface))
        self._icmp.sendmsg([emit_advertisement(address, link)], [source], 0, (ALL_NODES, 0, 0, interface))

    def close(self) -> None:
        """Close both sockets; a second call does nothing."""
        self._packet.close()
        self._icmp.close()


def open_icmp_socket() -> socket.socket:
    """A raw ICMPv6 socket that only sends, with the hop limit without which advertisements are ignored (RFC 4861, section 7.1.2)."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    try:
        sock.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, bytes([0xFF] * 32))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0)  # as the kernel's own advertisements
    except BaseException:
        sock.close()
        raise
    return sock


def emit_link_address(interface: int, link: bytes) -> bytes:
    """A sockaddr_ll for ARP. Python's own takes link addresses of at most 8 bytes; IPoIB's have 20."""
    return SOCKADDR_LL.pack(socket.AF_PACKET, ETH_P_ARP.to_bytes(2, "big"), interface, 0, 0, len(link)) + link.ljust(8, b"\0")


def send_cooked(sock: socket.socket, packet: bytes, interface: int, destination: bytes) -> None:
    """Send an ARP packet on a cooked packet socket. OSError as from `sendto`."""
    where = emit_link_address(interface, destination)
    if libc.sendto(sock.fileno(), packet, len(packet), 0, where, len(where)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
