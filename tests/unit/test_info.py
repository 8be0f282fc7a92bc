"""RDS_INFO records: sizes as the kernel's header has them, and arrays whose records are longer than those known here."""

from __future__ import annotations

import ipaddress
import struct

import pytest

import rdsx
from rdsx.wire.info import COUNTERS, PAGES, parse_page

# include/uapi/linux/rds.h on 64-bit machines: with IPv6, and for IPv4 only.
SIZES = {
    "connections": (65, 42),
    "send_messages": (50, 26),
    "retransmit_messages": (50, 26),
    "receive_messages": (50, 26),
    "sockets": (52, 28),
    "tcp_sockets": (64, 41),
    "ib_connections": (92, 68),
}
MAPPED = ipaddress.ip_address("::ffff:10.0.0.1").packed
SIX = ipaddress.ip_address("fd00::2").packed


def test_sizes() -> None:
    assert {name: tuple(page.layout.size for page in pages) for name, pages in PAGES.items()} == SIZES
    assert COUNTERS.layout.size == 40
    numbers = [COUNTERS.number] + [page.number for pages in PAGES.values() for page in pages]
    assert len(set(numbers)) == len(numbers)


def test_fields() -> None:
    complete, only_ipv4 = PAGES["connections"]
    packed = struct.pack("=QQ4s4s16sBB", 5, 7, b"\x0a\0\0\1", b"\x0a\0\0\2", b"tcp", 0b101, 9)
    expected = rdsx.ConnectionInfo(5, 7, "10.0.0.1", "10.0.0.2", "tcp", sending=True, connecting=False, connected=True, tos=9)
    assert list(parse_page(only_ipv4, packed, 42)) == [expected]
    packed = struct.pack("=QQ16s16s16sB", 5, 7, MAPPED, SIX, b"infiniband", 0b10)
    expected = rdsx.ConnectionInfo(5, 7, "10.0.0.1", "fd00::2", "infiniband", sending=False, connecting=True, connected=False, tos=0)
    assert list(parse_page(complete, packed, 65)) == [expected]
    packed = struct.pack("=QI16s16sHHBB", 3, 100, MAPPED, SIX, 0xA00F, 0x0100, 0, 1)
    assert list(parse_page(PAGES["send_messages"][0], packed, 50)) == [rdsx.MessageInfo(3, 100, ("10.0.0.1", 4000), ("fd00::2", 1), 1)]
    packed = struct.pack("=I16s16sHHIQ", 1000, MAPPED, bytes(16), 0xA00F, 0, 2000, 77)
    assert list(parse_page(PAGES["sockets"][0], packed, 52)) == [rdsx.SocketInfo(1000, 2000, ("10.0.0.1", 4000), ("::", 0), 77)]
    packed = struct.pack("=16sH16sHQQIII", MAPPED, 0x0140, SIX, 0xA00F, 48, 10, 1, 2, 3)
    assert list(parse_page(PAGES["tcp_sockets"][0], packed, 64)) == [
        rdsx.TcpSocketInfo(("10.0.0.1", 0x4001), ("fd00::2", 4000), 48, 10, 1, 2, 3)
    ]
    packed = struct.pack("=16s16s16s16sIIIIIBB2xI", MAPPED, SIX, SIX, MAPPED, 1, 2, 3, 4, 5, 6, 7, 8)
    gids = "fd00::2", str(ipaddress.ip_address(MAPPED))
    assert list(parse_page(PAGES["ib_connections"][0], packed, 92)) == [
        rdsx.IbConnectionInfo("10.0.0.1", "fd00::2", *gids, 1, 2, 3, 4, 5, 6, 7, 8)
    ]


def test_records_of_a_newer_kernel() -> None:
    """The size that the kernel returned is the step; what follows the fields known here is ignored."""
    record = struct.pack("=32sQ", b"conn_reset", 5) + b"more"
    assert list(parse_page(COUNTERS, record * 3, 44)) == [("conn_reset", 5)] * 3


def test_records_of_an_older_kernel() -> None:
    with pytest.raises(ValueError, match=r"39 bytes.*40"):
        list(parse_page(COUNTERS, bytes(78), 39))


def test_nothing() -> None:
    assert list(parse_page(COUNTERS, b"", 40)) == []
