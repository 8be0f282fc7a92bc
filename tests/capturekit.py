"""Reads captures: pcap as tcpdump writes it, pcapng as `rdsx.transports.capture` does, and the TCP streams in them.

Made from the file formats' descriptions and not from the code that writes them. Whatever is not as those have it is an AssertionError.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ETHERNET, RAW_IP = 1, 101
HEADER_BYTES = 48


@dataclass(frozen=True)
class Packet:
    """A TCP segment. `is_outbound` and `comment` only from pcapng; `length` is that of its data, also where the capture is cut."""

    time_us: int
    source: tuple[str, int]
    target: tuple[str, int]
    sequence: int
    acknowledged: int
    flags: int
    data: bytes
    length: int
    interface: str = ""
    is_outbound: bool | None = None
    comment: str = ""


@dataclass
class Stream:
    """One direction of a connection."""

    source: tuple[str, int]
    data: bytearray = field(default_factory=bytearray)
    segments: list[int] = field(default_factory=list)  # where in `data` each segment ends, in order
    heard: list[int] = field(default_factory=list)  # ... and how many bytes of the other direction had passed by then
    ends: list[int] = field(default_factory=list)  # FIN, RST
    next_sequence: int | None = None
    acknowledged: int = 0  # the last number that the other end has acknowledged
    waiting: dict[int, bytes] = field(default_factory=dict)  # segments that came before their turn

    def take(self, packet: Packet, heard: int) -> None:
        """Add a segment's bytes, once and in order."""
        at = packet.sequence
        if packet.flags & SYN:
            if self.next_sequence is None:
                self.next_sequence = (at + 1) % 2**32
            assert self.next_sequence == (at + 1) % 2**32, "a second SYN that is not the first one again"
        self.ends += [flag for flag in (FIN, RST) if packet.flags & flag]
        if packet.data:
            self.waiting[at] = max(self.waiting.get(at, b""), packet.data, key=len)
        assert self.next_sequence is not None or not packet.data, "a connection of which the capture has not the begin"
        while self.waiting:
            behind = {(self.next_sequence - start) % 2**32: start for start in self.waiting}  # type: ignore[operator]
            offset = min(behind)
            if offset >= 2**31:  # the first of them is still to come
                break
            new = self.waiting.pop(behind[offset])[offset:]
            if new:
                self.data += new
                self.segments.append(len(self.data))
                self.heard.append(heard)
                self.next_sequence = (self.next_sequence + len(new)) % 2**32  # type: ignore[operator]


@dataclass
class Conversation:
    """One TCP connection: who dialled, and what each end sent."""

    began_us: int
    dialler: Stream
    listener: Stream

    def stream(self, host: str) -> Stream:
        """What this host sent."""
        (found,) = (stream for stream in (self.dialler, self.listener) if stream.source[0] == host)
        return found


def conversations(packets: list[Packet]) -> list[Conversation]:
    """The connections in a capture, in the order in which they were dialled; every byte that anybody could read must be there."""
    found: list[Conversation] = []
    current: dict[frozenset[tuple[str, int]], Conversation] = {}
    for packet in packets:
        key = frozenset((packet.source, packet.target))
        if packet.flags & SYN and not packet.flags & ACK:
            known = current.get(key)
            if known is None or known.dialler.next_sequence != (packet.sequence + 1) % 2**32:
                current[key] = Conversation(packet.time_us, Stream(packet.source), Stream(packet.target))
                found.append(current[key])
        conversation = current.get(key)
        assert conversation is not None, f"{packet.source} - {packet.target}: the capture has not the begin of this connection"
        is_dialler = packet.source == conversation.dialler.source
        stream, other = (conversation.dialler, conversation.listener)[:: 1 if is_dialler else -1]
        stream.take(packet, len(other.data))
        if packet.flags & ACK:
            other.acknowledged = packet.acknowledged
    for conversation in found:
        for stream in (conversation.dialler, conversation.listener):
            # What is behind a hole never came to be read if the other end has not acknowledged the hole: then the stream ends there.
            missing = (stream.acknowledged - (stream.next_sequence or 0)) % 2**32 if stream.waiting else 0
            assert not 0 < missing < 2**31, f"{stream.source}: the capture has a hole behind byte {len(stream.data)}"
    return found


# -- files


def read_pcap(data: bytes) -> list[Packet]:
    """The TCP segments of a pcap file, of Ethernet."""
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}[data[:4]]
    major, _, _, _, _, link_type = struct.unpack_from(f"{order}HHiIII", data, 4)
    assert (major, link_type) == (2, ETHERNET)
    packets = []
    at = 24
    while at < len(data):
        seconds, us, kept, length = struct.unpack_from(f"{order}IIII", data, at)
        frame = data[at + 16 : at + 16 + kept]
        assert len(frame) == kept == length, "a packet that is cut short"
        assert frame[12:14] in (b"\x08\x00", b"\x86\xdd")
        packets.append(read_ip(frame[14:], seconds * 10**6 + us))
        at += 16 + kept
    return packets


def read_pcapng(data: bytes) -> tuple[list[Packet], list[str]]:
    """The TCP segments of a pcapng file, and the comments on anything else in it."""
    packets: list[Packet] = []
    comments: list[str] = []
    interfaces: list[str] = []
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        assert length >= 12
        assert struct.unpack_from("<I", data, at + length - 4) == (length,), "the two lengths of a block differ"
        body = data[at + 8 : at + length - 4]
        at += length
        if kind == 0x0A0D0D0A:
            assert not interfaces
            assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
            options = read_options(body[16:])
        elif kind == 1:
            assert struct.unpack_from("<HH", body) == (RAW_IP, 0)
            options = read_options(body[8:])
            interfaces.append(options[2].decode())
        elif kind == 6:
            number, upper, lower, kept, length = struct.unpack_from("<5I", body)
            frame = body[20 : 20 + kept]
            options = read_options(body[20 + kept + -kept % 4 :])
            direction = struct.unpack("<I", options[2])[0]
            assert direction in (1, 2)
            details = {"interface": interfaces[number], "is_outbound": direction == 2, "comment": options.pop(1, b"").decode()}
            packets.append(read_ip(frame, upper << 32 | lower, length - kept, details))
        else:
            assert kind == 5, f"block type {kind}"
            options = read_options(body[12:])
        if 1 in options:
            comments.append(options[1].decode())
    return packets, comments


def read_options(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            assert data == bytes(4)
            break
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]
    return found


def read_ip(packet: bytes, time_us: int, missing: int = 0, details: dict[str, object] | None = None) -> Packet:
    """A TCP segment in IPv4 or IPv6, of which the capture left out `missing` bytes."""
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        (total,) = struct.unpack_from(">H", packet, 2)
        protocol, addresses = packet[9], (packet[12:16], packet[16:20])
        assert internet_sum(packet[:header]) == 0xFFFF, "the checksum of the IP header"
    else:
        assert packet[0] >> 4 == 6
        header = 40
        total = struct.unpack_from(">H", packet, 4)[0] + header
        protocol, addresses = packet[6], (packet[8:24], packet[24:40])
    assert protocol == 6
    assert total <= len(packet) + missing
    segment = packet[header:total]
    sport, dport, sequence, acknowledged, offset, flags = struct.unpack_from(">HHIIBB", segment)
    source, target = (str(ipaddress.ip_address(address)) for address in addresses)
    if details is not None and not missing:
        assert internet_sum(b"".join(addresses) + struct.pack(">II", len(segment), protocol) + segment) == 0xFFFF, "the TCP checksum"
    data = segment[(offset >> 4) * 4 :]
    return Packet(time_us, (source, sport), (target, dport), sequence, acknowledged, flags, data, len(data) + missing, **(details or {}))  # type: ignore[arg-type]


def internet_sum(data: bytes) -> int:
    """The sum of 16-bit words in ones' complement."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def message_ends(data: bytes) -> list[int]:
    """Where the RDS messages of a stream end; the last may be cut short and is then not counted."""
    ends, at = [], 0
    while at + HEADER_BYTES <= len(data):
        at += HEADER_BYTES + struct.unpack_from(">I", data, at + 16)[0]
        if at <= len(data):
            ends.append(at)
    return ends
