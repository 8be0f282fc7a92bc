"""Routing netlink as records: what the kernel says of links, addresses, neighbours, rules and routes, and what it is asked for.

Bytes in, records out; records in, bytes out; no sockets (`sockets` has them). The codec is pyroute2's, whose message classes are used and
nothing else of it; importing them takes 80 ms and 10 MB, so this module is imported where it is used. Invariant: `parse()` is
total: any bytes give records or `BadNetlink`.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

from pyroute2.netlink import nlmsg, nlmsgerr
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = [
    "Address",
    "BadNetlink",
    "Done",
    "Dump",
    "Link",
    "Message",
    "Neighbour",
    "Refusal",
    "Route",
    "Rule",
    "add_address",
    "add_route",
    "add_rule",
    "dump",
    "parse",
    "remove_address",
    "remove_neighbour",
    "remove_route",
    "remove_rule",
]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Numbers of include/uapi/linux/{netlink,rtnetlink,if,if_addr,neighbour,fib_rules}.h.
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTM_NEWRULE, RTM_DELRULE = 32, 33
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x100, 0x200, 0x400
AF_INET, AF_INET6 = 2, 10
IFF_UP, IFF_LOWER_UP, IFF_DORMANT = 0x1, 0x10000, 0x20000
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x02, 0x08, 0x40, 0x80, 0x200
NUD_INCOMPLETE = 0x01
NUD_VALID = 0xDE  # REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: the hardware address is known
RT_TABLE_UNSPEC, RT_TABLE_COMPAT = 0, 252
RT_TABLE_LOCAL = b"\xff"  # the kernel's own, which changes with every address
TABLE_AT = HEADER.size + 4  # in a route message
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNICAST = 1
FR_ACT_TO_TBL = 1


class BadNetlink(ValueError):
    """Bytes that are not netlink messages: a bug, or a kernel newer than we know."""


class Dump(IntEnum):
    """What can be asked for as a whole; the numbers are those of the requests."""

    LINKS = 18
    ADDRESSES = 22
    ROUTES = 26
    NEIGHBOURS = 30
    RULES = 34


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `gone`: it has been deleted, or has left this network namespace."""

    index: int
    name: str
    hardware: bytes
    """Hardware address: 6 bytes on Ethernet, 20 on IPoIB, none on some tunnels."""
    broadcast: bytes
    """Hardware address of everybody."""
    hardware_type: int
    """ARPHRD_*: 1 Ethernet, 32 InfiniBand, 772 loopback."""
    is_up: bool
    """IFF_UP: administratively up."""
    has_carrier: bool
    """IFF_LOWER_UP and not IFF_DORMANT."""
    kind: str
    """What made it: "vlan", "bond", "veth", …; "" for most hardware."""
    tag: int | None
    """VLAN id, or the P_Key of an IPoIB child; None without one."""
    parent: int | None
    """Index of the interface that this one is on."""
    master: int | None
    """Index of the bridge, bond or VRF that it belongs to."""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """An address on an interface. `gone`: no longer."""

    index: int
    ip: IpAddress
    prefix: int
    """Prefix length in bits."""
    label: str
    """IPv4; the interface's name, or that with ":" and a word."""
    flags: int
    """IFA_F_*."""
    mark: int
    """IFA_PROTO: who put it there; 0 if nobody said, and on kernels before 5.18."""
    gone: bool = False

    @property
    def is_tentative(self) -> bool:
        """IPv6: duplicate detection has not finished; it cannot be used yet."""
        return bool(self.flags & IFA_F_TENTATIVE)

    @property
    def has_failed(self) -> bool:
        """IPv6: a duplicate was found; it cannot be used."""
        return bool(self.flags & IFA_F_DADFAILED)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the kernel knows of a neighbour on an interface. `gone`: it has forgotten it."""

    index: int
    ip: IpAddress
    hardware: bytes | None
    """Its hardware address; None while that is not known, or did not answer."""
    state: int
    """NUD_*."""
    gone: bool = False

    @property
    def is_awaited(self) -> bool:
        """It has been asked for its hardware address, and packets may wait for the answer."""
        return self.state == NUD_INCOMPLETE


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule that looks up a table. `source`: None for any."""

    family: int
    source: IpNetwork | None
    table: int
    priority: int
    mark: int
    """FRA_PROTOCOL: who made it."""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route. `destination`: None for the default; `index`: the interface, None for several or none."""

    family: int
    destination: IpNetwork | None
    table: int
    index: int | None
    mark: int
    """rtm_protocol: who made it."""
    scope: int
    """RT_SCOPE_*: 253 for a link's own subnet."""
    priority: int
    """The metric."""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request. `error`: the errno, 0 for done; `text`: what the kernel adds in words."""

    sequence: int
    error: int
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """A dump has ended. `interrupted`: the table changed meanwhile, so it may be inconsistent."""

    sequence: int
    interrupted: bool


Message = Link | Address | Neighbour | Rule | Route | Refusal | Done


# -- bytes to records


def parse(data: bytes) -> list[Message]:
    """The messages of one datagram, in order; those of other kinds are left out. Raises BadNetlink."""
    messages = []
    interrupted = False
    for kind, flags, sequence, frame in frames(data):
        interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
        message: Message | None
        if kind == NLMSG_DONE:
            message = Done(sequence, interrupted)
        elif kind == NLMSG_ERROR:
            message = refusal(sequence, frame)
        else:
            message = record(kind, frame)
        if message is not None:
            messages.append(message)
    if interrupted and not any(isinstance(message, Done) for message in messages):
        messages.append(Done(0, True))
    return messages


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and bytes of each message."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            raise BadNetlink(f"{len(data) - at} bytes behind the last netlink message: a header has {HEADER.size}")
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if not HEADER.size <= length <= len(data) - at:
            raise BadNetlink(f"a netlink message says that it has {length} bytes, of {len(data) - at} that are there")
        yield kind, flags, sequence, data[at : at + length]
        at += length + 3 & ~3


def record(kind: int, frame: bytes) -> Message | None:
    """One message as a record; None for kinds, families and sorts that nobody here is interested in."""
    entry = PARSERS.get(kind)
    if entry is None or (entry[1] is route and frame[TABLE_AT : TABLE_AT + 1] == RT_TABLE_LOCAL):
        return None
    message_class, make, gone = entry
    message = decoded(message_class, frame)
    try:
        result: Message | None = make(message, gone)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadNetlink(f"a netlink message of type {kind} has a field that cannot be: {error}") from error
    return result


def decoded(message_class: type[nlmsg], frame: bytes) -> Any:
    message = message_class(frame)
    try:
        message.decode()
    except Exception as error:  # the library lets through whatever its struct, socket and text calls raise
        raise BadNetlink(f"a netlink message cannot be decoded: {error}") from error
    return message


def link(message: Any, gone: bool) -> Link | None:
    if message["family"]:  # a bridge's view of its port
        return None
    flags = message["flags"]
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    details = info.get_attr("IFLA_INFO_DATA") if kind in ("vlan", "ipoib") else None
    tag = details.get_attr("IFLA_VLAN_ID" if kind == "vlan" else "IFLA_IPOIB_PKEY") if details else None
    return Link(
        index=message["index"],
        name=str(message.get_attr("IFLA_IFNAME") or ""),
        hardware=hardware(message.get_attr("IFLA_ADDRESS")) or b"",
        broadcast=hardware(message.get_attr("IFLA_BROADCAST")) or b"",
        hardware_type=message["ifi_type"],
        is_up=bool(flags & IFF_UP),
        has_carrier=bool(flags & IFF_LOWER_UP) and not flags & IFF_DORMANT,
        kind=str(kind),
        tag=tag,
        parent=message.get_attr("IFLA_LINK"),
        master=message.get_attr("IFLA_MASTER"),
        gone=gone,
    )


def address(message: Any, gone: bool) -> Address | None:
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")  # the former is ours where there is a far end
    if message["family"] not in (AF_INET, AF_INET6) or text is None:
        return None
    flags = message.get_attr("IFA_FLAGS")
    return Address(
        index=message["index"],
        ip=ipaddress.ip_address(text),
        prefix=message["prefixlen"],
        label=message.get_attr("IFA_LABEL") or "",
        flags=message["flags"] if flags is None else flags,
        mark=message.get_attr("IFA_PROTO") or 0,
        gone=gone,
    )


def neighbour(message: Any, gone: bool) -> Neighbour | None:
    text = message.get_attr("NDA_DST")
    if message["family"] not in (AF_INET, AF_INET6) or text is None:
        return None
    known = hardware(message.get_attr("NDA_LLADDR")) if message["state"] & NUD_VALID else None
    return Neighbour(message["ifindex"], ipaddress.ip_address(text), known, message["state"], gone)


def rule(message: Any, gone: bool) -> Rule | None:
    if message["family"] not in (AF_INET, AF_INET6) or message["action"] != FR_ACT_TO_TBL:
        return None
    return Rule(
        family=message["family"],
        source=network(message.get_attr("FRA_SRC"), message["src_len"]),
        table=message.get_attr("FRA_TABLE") or message["table"],
        priority=message.get_attr("FRA_PRIORITY") or 0,
        mark=message.get_attr("FRA_PROTOCOL") or 0,
        gone=gone,
    )


def route(message: Any, gone: bool) -> Route | None:
    if message["family"] not in (AF_INET, AF_INET6) or message["type"] != RTN_UNICAST:
        return None
    return Route(
        family=message["family"],
        destination=network(message.get_attr("RTA_DST"), message["dst_len"]),
        table=message.get_attr("RTA_TABLE") or message["table"],
        index=message.get_attr("RTA_OIF"),
        mark=message["proto"],
        scope=message["scope"],
        priority=message.get_attr("RTA_PRIORITY") or 0,
        gone=gone,
    )


PARSERS = {
    RTM_NEWLINK: (ifinfmsg, link, False),
    RTM_DELLINK: (ifinfmsg, link, True),
    RTM_NEWADDR: (ifaddrmsg, address, False),
    RTM_DELADDR: (ifaddrmsg, address, True),
    RTM_NEWNEIGH: (ndmsg, neighbour, False),
    RTM_DELNEIGH: (ndmsg, neighbour, True),
    RTM_NEWRULE: (fibmsg, rule, False),
    RTM_DELRULE: (fibmsg, rule, True),
    RTM_NEWROUTE: (rtmsg, route, False),
    RTM_DELROUTE: (rtmsg, route, True),
}


def refusal(sequence: int, frame: bytes) -> Refusal:
    message = decoded(nlmsgerr, frame)
    return Refusal(sequence, abs(message["error"]), str(message.get_attr("NLMSGERR_ATTR_MSG") or ""))


def hardware(text: str | None) -> bytes | None:
    """A hardware address from how the library spells it."""
    return None if text is None else bytes.fromhex(text.replace(":", ""))


def network(text: str | None, length: int) -> IpNetwork | None:
    return None if text is None else ipaddress.ip_network((text, length), strict=False)


# -- requests to bytes; the socket fills in the sequence number

# A host has few addresses and ports, and does the same again when it matters: encoding takes up to 0.7 ms, as long as all else of a move.
remembered = lru_cache(maxsize=1024)


def dump(what: Dump, family: int = 0, *, index: int = 0) -> bytes:
    """Ask for a whole table; family AF_INET or AF_INET6, 0 for both. `index`: only the neighbours on this interface."""
    classes = {Dump.LINKS: ifinfmsg, Dump.ADDRESSES: ifaddrmsg, Dump.ROUTES: rtmsg, Dump.NEIGHBOURS: ndmsg, Dump.RULES: fibmsg}
    return encoded(classes[what], what, NLM_F_DUMP, {"family": family}, {"NDA_IFINDEX": index} if index else {})


def remove_neighbour(index: int, ip: IpAddress) -> bytes:
    """Forget a neighbour; packets that wait for its hardware address are dropped. ENOENT if it is not known."""
    return encoded(ndmsg, RTM_DELNEIGH, 0, {"family": family_of(ip), "ifindex": index}, {"NDA_DST": str(ip)})


@remembered
def add_address(
    index: int, ip: IpAddress, prefix: int, *, mark: int, prefix_route: bool, label: str = "", broadcast: bool = False
) -> bytes:
    """Put an address on an interface, permanently, for IPv6 without duplicate detection. EEXIST if it is there with that prefix.

    `broadcast`: with the subnet's broadcast address, as `ip address add … brd +` (IPv4).
    """
    flags = IFA_F_PERMANENT | (0 if prefix_route else IFA_F_NOPREFIXROUTE) | (IFA_F_NODAD if ip.version == 6 else 0)
    attributes: dict[str, object] = {"IFA_FLAGS": flags, "IFA_PROTO": mark}
    if label:
        attributes["IFA_LABEL"] = label
    if broadcast:
        attributes["IFA_BROADCAST"] = str(ipaddress.ip_network((str(ip), prefix), strict=False).broadcast_address)
    return address_request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, ip, prefix, attributes)


@remembered
def remove_address(index: int, ip: IpAddress, prefix: int) -> bytes:
    """Take the address with this prefix off an interface. EADDRNOTAVAIL if it is not there."""
    return address_request(RTM_DELADDR, 0, index, ip, prefix, {})


def address_request(kind: int, flags: int, index: int, ip: IpAddress, prefix: int, attributes: dict[str, object]) -> bytes:
    fields = {"family": family_of(ip), "prefixlen": prefix, "index": index}
    return encoded(ifaddrmsg, kind, flags, fields, {"IFA_LOCAL": str(ip), "IFA_ADDRESS": str(ip)} | attributes)


@remembered
def add_rule(source: IpNetwork, table: int, priority: int, *, mark: int) -> bytes:
    """Packets from there look up this table; lower priorities are asked first. EEXIST if there is exactly this rule."""
    return rule_request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, source, table, priority, mark)


@remembered
def remove_rule(source: IpNetwork, table: int, priority: int, *, mark: int) -> bytes:
    """ENOENT if there is no such rule."""
    return rule_request(RTM_DELRULE, 0, source, table, priority, mark)


def rule_request(kind: int, flags: int, source: IpNetwork, table: int, priority: int, mark: int) -> bytes:
    fields = {
        "family": family_of(source),
        "src_len": source.prefixlen,
        "table": RT_TABLE_COMPAT if table > 255 else table,
        "action": FR_ACT_TO_TBL,
    }
    attributes = {"FRA_SRC": str(source.network_address), "FRA_TABLE": table, "FRA_PRIORITY": priority, "FRA_PROTOCOL": mark}
    return encoded(fibmsg, kind, flags, fields, attributes)


@remembered
def add_route(destination: IpNetwork, index: int, table: int, *, mark: int) -> bytes:
    """A subnet is on this interface's link, in this table; replaces a route of that destination, as `ip route replace … scope link`."""
    return route_request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, destination, index, table, mark)


@remembered
def remove_route(destination: IpNetwork, index: int, table: int, *, mark: int) -> bytes:
    """ESRCH if there is no such route."""
    return route_request(RTM_DELROUTE, 0, destination, index, table, mark)


def route_request(kind: int, flags: int, destination: IpNetwork, index: int, table: int, mark: int) -> bytes:
    fields = {
        "family": family_of(destination),
        "dst_len": destination.prefixlen,
        "table": RT_TABLE_COMPAT if table > 255 else table,
        "proto": mark,
        "scope": RT_SCOPE_LINK if destination.version == 4 else RT_SCOPE_UNIVERSE,  # IPv6 routes have no scopes
        "type": RTN_UNICAST,
    }
    attributes = {"RTA_DST": str(destination.network_address), "RTA_TABLE": table, "RTA_OIF": index}
    return encoded(rtmsg, kind, flags, fields, attributes)


def encoded(message_class: type[nlmsg], kind: int, flags: int, fields: dict[str, int], attributes: dict[str, object]) -> bytes:
    message = message_class()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attributes.items())
    message["header"] = {"type": int(kind), "flags": NLM_F_REQUEST | flags | (0 if flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_ACK)}
    message.encode()
    return bytes(message.data)


def family_of(ip: IpAddress | IpNetwork) -> int:
    return AF_INET if ip.version == 4 else AF_INET6
