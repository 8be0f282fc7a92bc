"""RDS_INFO: what a kernel tells about its counters, sockets, connections and queues, as typed records.

getsockopt(SOL_RDS, number) fills an array of fixed-size records and returns the size of one. Newer kernels may have longer records:
the size that the kernel returned decides the step, and what follows the fields known here is ignored. Addresses and ports are
big-endian in the records, other integers in the host's order; layouts from include/uapi/linux/rds.h (6.1).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COUNTERS",
    "PAGES",
    "ConnectionInfo",
    "IbConnectionInfo",
    "Info",
    "InfoPage",
    "MessageInfo",
    "SocketInfo",
    "TcpSocketInfo",
    "parse_page",
]


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """A connection (its path 0). `next_tx_seq` is the number the next message gets, `next_rx_seq` the lowest acceptable."""

    next_tx_seq: int
    next_rx_seq: int
    local: str
    peer: str
    transport: str
    sending: bool
    connecting: bool
    connected: bool
    tos: int


@dataclass(frozen=True, slots=True)
class MessageInfo:
    """A message in a send, retransmit or receive queue; `local` is this host, also for received ones.

    `sequence`: None where it is not kept, which is so for messages received by our own engine.
    """

    sequence: int | None
    length: int
    local: tuple[str, int]
    peer: tuple[str, int]
    tos: int


@dataclass(frozen=True, slots=True)
class SocketInfo:
    """A socket; buffer sizes are the effective ones, in payload bytes. Unbound, unconnected: ("0.0.0.0" or "::", 0).

    `inode`: the socket's, as in /proc/PID/fd; 0 on our own engine.
    """

    send_buffer_bytes: int
    receive_buffer_bytes: int
    bound: tuple[str, int]
    connected: tuple[str, int]
    inode: int


@dataclass(frozen=True, slots=True)
class TcpSocketInfo:
    """A TCP connection under RDS. Remaining bytes are of the message being received; the rest are TCP sequence numbers."""

    local: tuple[str, int]
    peer: tuple[str, int]
    header_remaining: int
    data_remaining: int
    last_sent_nxt: int
    last_expected_una: int
    last_seen_una: int


@dataclass(frozen=True, slots=True)
class IbConnectionInfo:
    """An InfiniBand or RoCE connection."""

    local: str
    peer: str
    local_gid: str
    peer_gid: str
    max_send_wr: int
    max_recv_wr: int
    max_send_sge: int
    rdma_mr_max: int
    rdma_mr_size: int
    tos: int
    service_level: int
    cache_allocs: int


@dataclass(frozen=True, slots=True)
class Info:
    """All pages. Of the kernel's stack they are those of the whole machine, of our own engine those of the node.

    `counters`: by the kernel's names. A page that the kernel does not have (no such transport, no IPv6) is empty.
    """

    counters: Mapping[str, int]
    connections: tuple[ConnectionInfo, ...]
    send_messages: tuple[MessageInfo, ...]
    retransmit_messages: tuple[MessageInfo, ...]
    receive_messages: tuple[MessageInfo, ...]
    sockets: tuple[SocketInfo, ...]
    tcp_sockets: tuple[TcpSocketInfo, ...] = ()
    ib_connections: tuple[IbConnectionInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class InfoPage:
    """One number of RDS_INFO: the layout of its records, and how to make a value of one."""

    number: int
    layout: struct.Struct
    make: Callable[..., Any]


def host(packed: bytes) -> str:
    """4 or 16 address bytes as text; mapped IPv4 as IPv4."""
    ip = ipaddress.ip_address(packed)
    return str(ip.ipv4_mapped or ip) if ip.version == 6 else str(ip)


def port(packed: bytes) -> int:
    return int.from_bytes(packed, "big")


def text(packed: bytes) -> str:
    return packed.partition(b"\0")[0].decode("ascii", "replace")


def counter(name: bytes, value: int) -> tuple[str, int]:
    return text(name), value


def connection(tx: int, rx: int, local: bytes, peer: bytes, transport: bytes, flags: int, tos: int = 0) -> ConnectionInfo:
    return ConnectionInfo(tx, rx, host(local), host(peer), text(transport), bool(flags & 1), bool(flags & 2), bool(flags & 4), tos)


def message(sequence: int, length: int, local: bytes, peer: bytes, lport: bytes, fport: bytes, _flags: int, tos: int) -> MessageInfo:
    return MessageInfo(sequence, length, (host(local), port(lport)), (host(peer), port(fport)), tos)


def bound_socket(sndbuf: int, bound: bytes, connected: bytes, bport: bytes, cport: bytes, rcvbuf: int, inode: int) -> SocketInfo:
    return SocketInfo(sndbuf, rcvbuf, (host(bound), port(bport)), (host(connected), port(cport)), inode)


def tcp_socket(local: bytes, lport: bytes, peer: bytes, pport: bytes, header: int, data: int, *numbers: int) -> TcpSocketInfo:
    return TcpSocketInfo((host(local), port(lport)), (host(peer), port(pport)), header, data, *numbers[:3])


def ib_connection(local: bytes, peer: bytes, local_gid: bytes, peer_gid: bytes, *numbers: int) -> IbConnectionInfo:
    gids = str(ipaddress.IPv6Address(local_gid)), str(ipaddress.IPv6Address(peer_gid))
    return IbConnectionInfo(host(local), host(peer), *gids, *numbers)


MESSAGE = struct.Struct("=QI4s4s2s2sBB")
MESSAGE6 = struct.Struct("=QI16s16s2s2sBB")

CONNECTION, CONNECTION6 = struct.Struct("=QQ4s4s16sBB"), struct.Struct("=QQ16s16s16sB")
SOCKET, SOCKET6 = struct.Struct("=I4s4s2s2sIQ"), struct.Struct("=I16s16s2s2sIQ")
TCP_SOCKET, TCP_SOCKET6 = struct.Struct("=4s2s4s2sQQIIIB"), struct.Struct("=16s2s16s2sQQIII")
IB_CONNECTION, IB_CONNECTION6 = struct.Struct("=4s4s16s16sIIIIIBB2xI"), struct.Struct("=16s16s16s16sIIIIIBB2xI")

# By the field of Info: the page that has IPv6, and IPv4 as mapped addresses; and the one for IPv4, where a kernel has no other.
# The latter is not as good: 6.1 shows the addresses of queued messages as 0.0.0.0 there.
PAGES: dict[str, tuple[InfoPage, InfoPage]] = {
    "connections": (InfoPage(10011, CONNECTION6, connection), InfoPage(10001, CONNECTION, connection)),
    "send_messages": (InfoPage(10012, MESSAGE6, message), InfoPage(10003, MESSAGE, message)),
    "retransmit_messages": (InfoPage(10013, MESSAGE6, message), InfoPage(10004, MESSAGE, message)),
    "receive_messages": (InfoPage(10014, MESSAGE6, message), InfoPage(10005, MESSAGE, message)),
    "sockets": (InfoPage(10015, SOCKET6, bound_socket), InfoPage(10006, SOCKET, bound_socket)),
    "tcp_sockets": (InfoPage(10016, TCP_SOCKET6, tcp_socket), InfoPage(10007, TCP_SOCKET, tcp_socket)),
    "ib_connections": (InfoPage(10017, IB_CONNECTION6, ib_connection), InfoPage(10008, IB_CONNECTION, ib_connection)),
}
COUNTERS = InfoPage(10000, struct.Struct("=32sQ"), counter)


def parse_page(page: InfoPage, packed: bytes, record_bytes: int) -> Iterator[Any]:
    """The records of one answer; `record_bytes` is what getsockopt returned. ValueError if they are shorter than those known here."""
    if record_bytes < page.layout.size:
        raise ValueError(f"RDS_INFO {page.number}: records of {record_bytes} bytes, expected at least {page.layout.size}")
    for offset in range(0, len(packed) - page.layout.size + 1, record_bytes):
        yield page.make(*page.layout.unpack_from(packed, offset))
