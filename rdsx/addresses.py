"""Addresses of nodes and sockets: what is a valid one, its one canonical spelling, and which of two is smaller.

Internally a node is its canonical host string (`"10.0.0.1"`, `"fd00::1"`, `"fe80::1%2"` with a numeric scope); IPv4-mapped IPv6
spellings become IPv4. Names are resolved only by async callers, never by `_nowait` ones.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any

import trio

__all__ = ["Host", "SockAddr", "parse_host", "parse_sockaddr", "resolve_sockaddr"]

SockAddr = tuple[Any, ...]
"""(host, port) for IPv4, (host, port, flowinfo, scope_id) for IPv6, as the socket module has them."""


@dataclass(frozen=True, slots=True)
class Host:
    """A numeric host address. `key` is its canonical spelling, `value` its 16 bytes as a number: the kernel's order."""

    key: str
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    scope: int = 0

    @property
    def is_ipv6(self) -> bool:
        return self.ip.version == 6

    @property
    def value(self) -> int:
        return int(self.ip) if self.ip.version == 6 else 0xFFFF_0000_0000 | int(self.ip)

    @property
    def text(self) -> str:
        """The host as the socket module spells it: without the scope."""
        return str(self.ip).partition("%")[0]

    def sockaddr(self, port: int) -> SockAddr:
        return (self.text, port, 0, self.scope) if self.is_ipv6 else (self.text, port)

    @property
    def is_usable(self) -> bool:
        """Unicast: something a socket can be bound to or a message sent to."""
        if self.ip.is_multicast or self.ip.is_unspecified:
            return False
        if self.ip.version == 4:
            return int(self.ip) != 0xFFFFFFFF
        return self.scope != 0 or not self.ip.is_link_local


def parse_host(text: object, scope: int = 0) -> Host:
    """A `Host` from its text. ValueError for anything that is not a numeric IPv4 or IPv6 address."""
    if not isinstance(text, str):
        raise TypeError(f"a host is a str such as '10.0.0.1', not {text!r}")
    plain, _, zone = text.partition("%")
    try:
        ip = ipaddress.ip_address(plain)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if zone:
        try:
            scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
        except OSError:
            raise ValueError(f"{text!r}: there is no interface {zone!r}") from None
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.version == 4 or not ip.is_link_local:
        scope = 0
    return Host(f"{ip}%{scope}" if scope else str(ip), ip, scope)


def parse_port(port: object, address: object) -> int:
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"address {address!r}: the port must be an int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise OverflowError(f"address {address!r}: port {port} is out of range, RDS ports are 0..65535")
    return port


def parse_sockaddr(address: object) -> tuple[Host, int]:
    """(host, port) of a socket address whose host is numeric. TypeError, ValueError or OverflowError that names what is wrong."""
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise TypeError(f"an RDS address is (host, port), or (host, port, flowinfo, scope_id) for IPv6, not {address!r}")
    port = parse_port(address[1], address)
    scope = address[3] if len(address) == 4 else 0
    if not isinstance(scope, int) or not 0 <= scope < 2**32:
        raise ValueError(f"address {address!r}: the scope id is the index of an interface, not {scope!r}; see socket.if_nametoindex()")
    return parse_host(address[0], scope), port


async def resolve_sockaddr(address: object) -> tuple[Host, int]:
    """parse_sockaddr() that also looks names up. Raises socket.gaierror naming a host that is not known."""
    try:
        return parse_sockaddr(address)
    except ValueError:
        assert isinstance(address, tuple)
        name, port = address[0], address[1]
    try:
        found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, f"unknown host {name!r}: this cannot be a host name") from None
    except socket.gaierror as error:
        text = f"unknown host {name!r}: {error.strerror}; give a numeric address, or a name that resolves"
        raise socket.gaierror(error.errno, text) from None
    sockaddr = found[0][4]
    return parse_host(sockaddr[0], sockaddr[3] if len(sockaddr) == 4 else 0), port


def bad_address(number: int, address: object, remedy: str) -> OSError:
    """An OSError with the kernel's errno that names the address and what to do."""
    return OSError(number, f"{os.strerror(number)}: address {address!r}: {remedy}")
