"""The plain-Python twin of the hot path: what the tests hold `_fast` and `_stream` against.

Simple and slow on purpose, written from the wire format and not from the Cython code, and never a fallback: nothing in rdsx imports
it. Functions and classes with a public twin have its name and its signature; `ReceiveQueue`, `SendQueue` and `parse_stream` model
what an `Endpoint`, a `Path` with its `StreamWriter`, and a `StreamReader` do. Invariant: sums and masks are computed from the whole
state each time they are asked for, so that they cannot drift.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rdsx.errors import WireError

__all__ = [
    "CongestionMap",
    "Credits",
    "Frame",
    "Header",
    "Message",
    "Reassembly",
    "ReceiveQueue",
    "Ring",
    "SendQueue",
    "checksum",
    "fragments",
    "is_duplicate",
    "pack_header",
    "parse_stream",
    "unpack_extensions",
    "unpack_header",
    "verify_checksum",
]

HEADER = struct.Struct(">QQIHHBB4xH16s")
FRAGMENT_BYTES = 4096
MAP_BYTES = 8192

CONG_BITMAP = 0x01
ACK_REQUIRED = 0x02
RETRANSMITTED = 0x04

# Data bytes behind each extension type; every other type below 16 has none.
EXTENSION_BYTES = {1: 4, 2: 4, 3: 8, 4: 8, 5: 2, 6: 4, 8: 1}


class Header(NamedTuple):
    """The fields of one header."""

    sequence: int
    ack: int
    length: int
    sport: int
    dport: int
    flags: int
    credit: int
    checksum: int
    extensions: bytes


class Frame(NamedTuple):
    """A header and the payload that followed it."""

    header: Header
    payload: bytes


# -- header ----------------------------------------------------------------------------------------------------------------


def pack_header(
    sequence: int,
    ack: int,
    length: int,
    sport: int,
    dport: int,
    flags: int = 0,
    credit: int = 0,
    extensions: bytes = b"",
    *,
    checksum: bool = False,
) -> bytes:
    if len(extensions) > 16:
        raise ValueError("extension headers take at most 16 bytes")
    packed = HEADER.pack(sequence, ack, length, sport, dport, flags, credit, 0, extensions)
    if checksum:
        packed = HEADER.pack(sequence, ack, length, sport, dport, flags, credit, _internet_checksum(packed), extensions)
    return packed


def unpack_header(source: bytes) -> Header:
    if len(source) < HEADER.size:
        raise WireError("short_header", f"{len(source)} bytes")
    return Header(*HEADER.unpack(source[: HEADER.size]))


def checksum(header: bytes) -> int:
    if len(header) != HEADER.size:
        raise ValueError("a header has 48 bytes")
    return _internet_checksum(header[:30] + b"\0\0" + header[32:])


def verify_checksum(header: bytes) -> bool:
    if len(header) != HEADER.size:
        raise ValueError("a header has 48 bytes")
    return header[30:32] == b"\0\0" or _internet_checksum(header) == 0


def _internet_checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def unpack_extensions(field: bytes) -> list[tuple[int, bytes]]:
    if len(field) != 16:
        raise ValueError("the extension headers have 16 bytes")
    found = []
    at = 0
    while at < 16 and 0 < field[at] < 16:
        end = at + 1 + EXTENSION_BYTES.get(field[at], 0)
        if end > 16:
            break
        found.append((field[at], field[at + 1 : end]))
        at = end
    return found


def is_duplicate(sequence: int, flags: int, next_receive: int, *, peer_acks: bool = False) -> bool:
    """The kernel's test: lower and flagged. A peer that acknowledges at our level never goes back, flagged or not."""
    return sequence < next_receive and (peer_acks or bool(flags & RETRANSMITTED))


# -- streams and fragments -------------------------------------------------------------------------------------------------


def parse_stream(stream: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames at the beginning of a stream, and the rest."""
    frames = []
    at = 0
    while len(stream) - at >= HEADER.size:
        header = unpack_header(stream[at : at + HEADER.size])
        end = at + HEADER.size + header.length
        if len(stream) < end:
            break
        frames.append(Frame(header, stream[at + HEADER.size : end]))
        at = end
    return frames, stream[at:]


def fragments(
    sequence: int, ack: int, sport: int, dport: int, payload: bytes, flags: int = 0, credit: int = 0, extensions: bytes = b""
) -> list[bytes]:
    header = pack_header(sequence, ack, len(payload), sport, dport, flags, credit, extensions, checksum=True)
    return [header + payload[at : at + FRAGMENT_BYTES] for at in range(0, max(len(payload), 1), FRAGMENT_BYTES)]


class Reassembly:
    def __init__(self, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self._first: Header | None = None
        self._payload = b""

    @property
    def pending_bytes(self) -> int:
        return len(self._payload)

    def feed(self, fragment: bytes) -> tuple[int, int, int, int, bytes, bytes] | None:
        first, payload = self._first, self._payload
        self._first, self._payload = None, b""  # forgotten, unless this fragment continues it
        if len(fragment) < HEADER.size:
            raise WireError("short_fragment", f"{len(fragment)} bytes")
        if not verify_checksum(fragment[: HEADER.size]):
            raise WireError("bad_checksum", "fragment")
        header, piece = unpack_header(fragment), fragment[HEADER.size :]
        if first is None:
            first = header
            if header.length > self.max_message_bytes:
                raise WireError("bad_length", f"{header.length} bytes")
        elif (header.sequence, header.length, header.sport, header.dport) != (first.sequence, first.length, first.sport, first.dport):
            raise WireError("bad_fragment", "another message")
        if len(piece) != min(first.length - len(payload), FRAGMENT_BYTES):
            raise WireError("bad_fragment", "wrong size")
        payload += piece
        if len(payload) == first.length:
            return first.sequence, first.sport, first.dport, first.flags, first.extensions, payload
        self._first, self._payload = first, payload
        return None


# -- congestion maps and rings ---------------------------------------------------------------------------------------------


class CongestionMap:
    def __init__(self) -> None:
        self.ports: set[int] = set()
        self.version = 0

    def test(self, port: int) -> bool:
        return port in self.ports

    def set(self, port: int) -> None:
        if port <= 1:
            raise ValueError("ports 0 and 1 are never congested")
        self.ports.add(port)
        self.version += 1

    def clear(self, port: int) -> None:
        if port <= 1:
            raise ValueError("ports 0 and 1 are never congested")
        self.ports.discard(port)
        self.version += 1

    def replace(self, received: bytes) -> int:
        if len(received) != MAP_BYTES:
            raise ValueError("a congestion map has 8192 bytes")
        ports = {at * 8 + bit for at, byte in enumerate(received) if byte for bit in range(8) if byte >> bit & 1}
        freed = {port % 64 for port in self.ports - ports}
        self.ports = ports
        self.version += 1
        return sum(1 << bit for bit in freed)

    def reset(self) -> None:
        self.ports = set()
        self.version += 1

    def freed(self, waiting: Iterable[int]) -> list[int]:
        return [port for port in waiting if port not in self.ports]

    def __bytes__(self) -> bytes:
        packed = bytearray(MAP_BYTES)
        for port in self.ports:
            packed[port // 8] |= 1 << port % 8
        return bytes(packed)


class Ring:
    def __init__(self, size: int) -> None:
        if size < 1 or size.bit_count() != 1:
            raise ValueError("a ring has a power of two slots")
        self.size = size
        self._slots: deque[int] = deque()  # in use, oldest first
        self._next = 0

    @property
    def used(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        return self.size - len(self._slots)

    @property
    def low(self) -> bool:
        return len(self._slots) <= self.size // 4

    @property
    def oldest(self) -> int:
        return self._slots[0] if self._slots else self._next

    def allocate(self, wanted: int) -> tuple[int, int]:
        first, taken = self._next, min(wanted, self.free)
        self._slots.extend((first + i) % self.size for i in range(taken))
        self._next = (first + taken) % self.size
        return first, taken

    def unallocate(self, count: int) -> None:
        if count > len(self._slots):
            raise ValueError("more than was taken")
        for _ in range(count):
            self._next = self._slots.pop()

    def release(self, count: int) -> None:
        if count > len(self._slots):
            raise ValueError("more than is in use")
        for _ in range(count):
            self._slots.popleft()


class Credits:
    """One end's view of flow control, as the history of what was posted, granted, sent and received."""

    def __init__(self, receive_slots: int, available: int = 0, owed: int = 0) -> None:
        self.threshold = min(max(receive_slots // 4, 2), 16)
        self._available = available
        self._owed = owed
        self._grants_heard: list[int] = []
        self._sent = self._received = 0
        self._posted: list[int] = []
        self._grants: list[int] = []

    @property
    def owed(self) -> int:
        return max(self._owed - sum(self._grants_heard), 0)

    @property
    def available(self) -> int:
        return self._available + max(sum(self._grants_heard) - self._owed, 0) - self._sent

    @property
    def unadvertised(self) -> int:
        return sum(self._posted) - sum(self._grants)

    @property
    def granted(self) -> int:
        return sum(self._grants) - self._received

    def sendable(self) -> int:
        kept_back = 0 if self.unadvertised else 1
        return max(self.available - kept_back, 0)

    def advertise(self) -> int:
        self._grants.append(min(self.unadvertised, 255))
        return self._grants[-1]

    def spend(self, frames: int) -> bool:
        is_possible = frames <= self.available
        self._sent += frames if is_possible else 0
        return is_possible

    def posted(self, receives: int) -> None:
        self._posted.append(receives)

    def heard(self, credit: int) -> bool:
        is_possible = self.available + max(credit - self.owed, 0) < 1 << 16
        self._grants_heard += [credit] if is_possible else []
        return is_possible

    def received(self) -> bool:
        is_possible = self.granted > 0
        self._received += is_possible
        return is_possible

    def is_update_due(self) -> bool:
        return self.unadvertised >= self.threshold

    def grant_all(self) -> int:
        self._grants.append(self.unadvertised)
        return self.granted


# -- queues ----------------------------------------------------------------------------------------------------------------


class ReceiveQueue:
    """What a socket has received, and whether its port is congested."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.congested = False
        self.messages: deque[bytes] = deque()

    @property
    def received_bytes(self) -> int:
        return sum(map(len, self.messages))

    def append(self, payload: bytes) -> None:
        self.messages.append(payload)
        if payload and self.received_bytes > self.limit:
            self.congested = True

    def take(self) -> bytes | None:
        if not self.messages:
            return None
        payload = self.messages.popleft()
        if payload and self.received_bytes < self.limit // 2:
            self.congested = False
        return payload

    def close(self) -> None:
        self.messages.clear()
        self.congested = False


@dataclass(slots=True)
class Message:
    """One entry of a `SendQueue`."""

    sequence: int
    owner: Hashable | None  # the socket it is on the account of
    sport: int
    dport: int
    payload: bytes = b""
    extensions: bytes = b""
    flags: int = 0
    dead: bool = False  # not to be sent again
    end: int = 0  # offset just past it in the link's stream

    def pack(self, ack: int, *, peer_acks: bool) -> bytes:
        flags = self.flags if peer_acks else self.flags & ~ACK_REQUIRED
        return pack_header(self.sequence, ack, len(self.payload), self.sport, self.dport, flags, 0, self.extensions) + self.payload


class SendQueue:
    """Send and retransmit queue of a path: one list in sequence order.

    `messages[:cursor]` are written and not acknowledged; `messages[:picked]` may have touched a wire; `half` is the frame of
    `messages[cursor]` while it is half written, and `partial` how much of it has gone.
    """

    def __init__(self, max_unacked_packets: int = 8, max_unacked_bytes: int = 1 << 24) -> None:
        self.messages: list[Message] = []
        self.cursor = 0
        self.picked = 0
        self.partial = 0
        self.half = b""
        self.position = 0  # bytes written to this link
        self.ack = 0  # h_ack of the batch being written
        self.next_sequence = 1
        self.peer_acks = False
        self.held = False
        self.limits = max_unacked_packets, max_unacked_bytes
        self.left = 0, 0  # of these limits, before the next mark

    def sent_bytes(self, owner: Hashable) -> int:
        return sum(len(message.payload) for message in self.messages if message.owner == owner)

    def pending(self, owner: Hashable, dport: int | None = None) -> int:
        return sum(message.owner == owner and dport in (None, message.dport) for message in self.messages)

    def push(self, owner: Hashable | None, sport: int, dport: int, payload: bytes = b"", extensions: bytes = b"", limit: int = 0) -> None:
        message = Message(self.next_sequence, owner, sport, dport, payload, extensions)
        self.messages.append(message)
        self.next_sequence += 1
        if owner is not None and self.peer_acks and self.sent_bytes(owner) >= limit // 2:
            message.flags |= ACK_REQUIRED

    def poll(self, max_bytes: int, before: int = 0, ack: int = 0) -> bytes:
        """What goes out behind `before` bytes of maps and acks."""
        self.ack = ack if self.peer_acks else 0
        batch = b""
        index = self.cursor
        while index < len(self.messages) and before + len(batch) < max_bytes and not self.held:
            if index >= self.picked:
                self._pick(self.messages[index])
                self.picked = index + 1
            batch += self._frame(index)[self.partial if index == self.cursor else 0 :]
            self.messages[index].end = self.position + before + len(batch)
            index += 1
        return batch

    def written(self, count: int) -> None:
        """`count` bytes of the batch went out; those of maps and acks are reported as `written_control`."""
        self.position += count
        while count:
            self.half = self._frame(self.cursor)
            take = min(count, len(self.half) - self.partial)
            self.partial += take
            count -= take
            if self.partial == len(self.half):
                self.cursor += 1
                self.partial = 0

    def written_control(self, count: int) -> None:
        self.position += count

    def retire(self, ack: int) -> None:
        """The peer has everything up to sequence `ack`."""
        self._retire(lambda message: message.sequence <= ack)

    def retire_written(self, acked_bytes: int) -> int:
        """The peer's TCP has everything up to this offset of the link's stream."""
        return self._retire(lambda message: message.end <= acked_bytes)

    def cancel(self, owner: Hashable, dport: int | None = None) -> int:
        """Take the owner's messages off; the rest of a half-written one still goes out, but on nobody's account."""
        return self._remove(lambda message: message.owner == owner and dport in (None, message.dport))

    def flush(self) -> int:
        """The peer restarted: what may have touched a wire must not reach it."""
        touched = {message.sequence for message in self.messages[: self.picked]}
        before = len(self.messages)
        self._remove(lambda message: message.sequence in touched)
        self.held = False
        return before - len(self.messages)

    def reset(self) -> None:
        """The link is gone: what touched a wire goes again, flagged."""
        for message in self.messages[: self.picked]:
            message.flags |= RETRANSMITTED | (ACK_REQUIRED if self.peer_acks else 0)
        self.partial = 0
        self._remove(lambda message: message.dead)
        self.cursor = self.position = 0
        self.left = self.limits
        self.held = False

    def resume(self, ack: int) -> None:
        """After reset: the peer is the one we know, and has everything up to `ack`."""
        gone = sum(message.sequence <= ack for message in self.messages[: self.picked])
        self.messages = self.messages[gone:]
        self.cursor = max(self.cursor - gone, 0)
        self.picked -= gone
        self.held = False

    def _frame(self, index: int) -> bytes:
        if index == self.cursor and self.partial:
            return self.half
        return self.messages[index].pack(self.ack, peer_acks=self.peer_acks)

    def _pick(self, message: Message) -> None:
        packets, size = self.left
        if not self.peer_acks:
            return
        if packets == 0 or size < len(message.payload):
            message.flags |= ACK_REQUIRED
            self.left = self.limits
        else:
            self.left = packets - 1, size - len(message.payload)

    def _retire(self, is_acked: Callable[[Message], bool]) -> int:
        gone = 0
        while gone < self.cursor and is_acked(self.messages[gone]):
            gone += 1
        self.messages = self.messages[gone:]
        self.cursor -= gone
        self.picked -= gone
        return gone

    def _remove(self, is_gone: Callable[[Message], bool]) -> int:
        kept: list[Message] = []
        cursor, picked, removed = self.cursor, self.picked, 0
        for index, message in enumerate(self.messages):
            if not is_gone(message):
                kept.append(message)
                continue
            removed += 1
            if index == self.cursor and self.partial:
                message.owner, message.dead = None, True
                kept.append(message)
            else:
                cursor -= index < self.cursor
                picked -= index < self.picked
        self.messages, self.cursor, self.picked = kept, cursor, picked
        return removed
