"""The datagrams of calls: one message in one RDS datagram, as bytes and as a `Message`. Owns the layout; knows no session and no state.

Parsing is total: any bytes are a `Message` or a `BadCall`, after which the datagram is counted and dropped, never answered. Invariant:
`parse_untrusted(emit(m)) == m` for every message that this side makes. Integers are big-endian; docs/calls.md has the table of fields.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "EXTENSION_ROOM_BYTES",
    "HEADER_BYTES",
    "MAX_RANGES",
    "VERSION",
    "BadCall",
    "Code",
    "Kind",
    "Limits",
    "Message",
    "OpenCode",
    "Resume",
    "emit",
    "parse_untrusted",
]

MAGIC = 0x5243
VERSION = 1
HEADER = struct.Struct(">HBBHHQIIQQiI")
HEADER_BYTES = HEADER.size
LIMITS = struct.Struct(">QBBHIII")
RESUME = struct.Struct(">16sIQ")
RANGE = struct.Struct(">QQ")
PAIR = struct.Struct(">HH")

FLAG_EXTENSIONS, FLAG_NEVER_CONFIRMED, FLAG_DURABLE = 1, 2, 4
EXTENSION_RANGES, EXTENSION_RESUME, EXTENSION_TEXT = 1, 2, 3
MUST_UNDERSTAND = 0x8000
MAX_RANGES = 64
"""Released ranges in one message. Those left out are told later: a holder lives longer, nothing else."""
MAX_TEXT_BYTES = 256
EXTENSION_ROOM_BYTES = PAIR.size + sum(PAIR.size + size for size in (MAX_RANGES * RANGE.size, RESUME.size, MAX_TEXT_BYTES))
"""What extensions can take at most: a payload leaves room for it in a datagram."""


class BadCall(Exception):
    """Bytes that are no message of this protocol. Stays inside the courier, which counts the datagram and drops it."""


class Kind(IntEnum):
    """What a message is. The first group goes from caller to callee, the second one back."""

    OPEN = 1
    CALL = 3
    RELEASE = 5
    CANCEL = 7
    CLOSE = 9
    GONE = 11

    OPEN_ACK = 2
    STATUS = 4
    RELEASED = 6
    WORKING = 8
    CLOSED = 10
    BUSY = 12
    RESET = 14
    QUERY = 16


class Code(IntEnum):
    """What a STATUS says happened to the call."""

    OK = 0
    NO_HANDLER = 1
    TOO_LONG = 2
    HANDLER_FAILED = 3
    CANCELLED_BEFORE_START = 4
    CANCELLED_WHILE_RUNNING = 5
    INTERRUPTED = 6
    CLOSING = 7
    BAD_REQUEST = 8


class OpenCode(IntEnum):
    """Why an OPEN_ACK names session 0."""

    OK = 0
    NO_COMMON_VERSION = 1
    STORE_ROLLED_BACK = 2


KINDS = {int(kind): kind for kind in Kind}
NUMBERED = {Kind.CALL, Kind.STATUS, Kind.CANCEL, Kind.WORKING, Kind.BUSY}  # those that name a call
CODES = {int(code) for code in Code}


@dataclass(frozen=True, slots=True)
class Limits:
    """The payload of OPEN and OPEN_ACK. `life` is the caller's. `versions` is a range in OPEN, (chosen, 0) in OPEN_ACK; `lease_s` is 0 in
    OPEN."""

    life: int
    versions: tuple[int, int]
    window: int
    max_payload_bytes: int
    lease_s: int = 0
    features: int = 0


@dataclass(frozen=True, slots=True)
class Resume:
    """A caller with a store opens again what it had: the store's id, the session, and the next number it will use in it."""

    store_id: bytes
    session: int
    next_seq: int


@dataclass(slots=True)
class Message:
    """One message. Fields that its kind does not use are 0 or empty; `refused` names an extension that had to be understood and was not."""

    kind: Kind
    life: int = 0
    session: int = 0
    seq: int = 0
    floor: int = 0
    msg_type: int = 0
    status: int = 0
    credit: int = 0
    code: int = 0
    never_confirmed: bool = False
    durable: bool = False
    ranges: tuple[tuple[int, int], ...] = ()
    resume: Resume | None = None
    text: str = ""
    limits: Limits | None = None
    payload: bytes = b""
    refused: int = 0


def emit(message: Message) -> bytes:
    """The datagram of a message. The payload is copied."""
    extensions = b""
    if message.ranges or message.resume is not None or message.text:
        extensions = _emit_extensions(message)
    payload = message.payload if message.limits is None else _emit_limits(message.limits)
    flags = message.code << 8 | (FLAG_EXTENSIONS if extensions else 0)
    if message.never_confirmed:
        flags |= FLAG_NEVER_CONFIRMED
    if message.durable:
        flags |= FLAG_DURABLE
    header = HEADER.pack(
        MAGIC, VERSION, message.kind, flags, message.credit, message.life, message.session, message.msg_type, message.seq, message.floor,
        message.status, len(payload),
    )  # fmt: skip
    return header + extensions + payload


def parse_untrusted(data: bytes) -> Message:
    """A datagram as a message. Raises BadCall, and nothing else, for what is not one."""
    if len(data) < HEADER_BYTES:
        raise BadCall(f"{len(data)} bytes are less than a header of {HEADER_BYTES}")
    magic, version, number, flags, credit, life, session, msg_type, seq, floor, status, length = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise BadCall(f"magic {magic:#06x} version {version} is not {MAGIC:#06x} version {VERSION}")
    kind = KINDS.get(number)
    if kind is None:
        raise BadCall(f"there is no message of kind {number}")
    message = Message(kind, life, session, seq, floor, msg_type, status, credit, flags >> 8)
    start = HEADER_BYTES
    if flags & ~0xFF00:
        message.never_confirmed = bool(flags & FLAG_NEVER_CONFIRMED)
        message.durable = bool(flags & FLAG_DURABLE)
        if flags & FLAG_EXTENSIONS:
            start += _parse_extensions_untrusted(message, data)
    if start + length != len(data):
        raise BadCall(f"{len(data)} bytes are not {start} and a payload of {length}")
    message.payload = data[start:]
    _check_untrusted(message)
    return message


def _check_untrusted(message: Message) -> None:
    kind = message.kind
    if kind in NUMBERED and message.seq == 0:
        raise BadCall(f"{kind.name} with number 0: numbers begin with 1")
    if kind is Kind.STATUS and message.code not in CODES:
        raise BadCall(f"STATUS with code {message.code}, which has no meaning")
    if kind is Kind.OPEN or kind is Kind.OPEN_ACK:
        message.limits = _parse_limits_untrusted(message.payload, is_ack=kind is Kind.OPEN_ACK)
        message.payload = b""
    elif message.payload and kind is not Kind.CALL and kind is not Kind.STATUS:
        raise BadCall(f"{kind.name} with a payload of {len(message.payload)} bytes")
    if message.refused and kind is not Kind.CALL:
        raise BadCall(f"extension {message.refused:#06x} must be understood and is not known")


def _emit_limits(limits: Limits) -> bytes:
    low, high = limits.versions
    return LIMITS.pack(limits.life, low, high, limits.window, limits.features, limits.max_payload_bytes, limits.lease_s)


def _parse_limits_untrusted(payload: bytes, *, is_ack: bool) -> Limits:
    if len(payload) != LIMITS.size:
        raise BadCall(f"{len(payload)} bytes are no limits: {LIMITS.size} are")
    life, low, high, window, features, max_payload_bytes, lease_s = LIMITS.unpack(payload)
    if life == 0:
        raise BadCall("life 0: a life is a random number that is not 0")
    if window == 0:
        raise BadCall("a window of 0 allows no call")
    if not is_ack and low > high:
        raise BadCall(f"versions {low} to {high} are none")
    return Limits(life, (low, high), window, max_payload_bytes, lease_s if is_ack else 0, features)


def _emit_extensions(message: Message) -> bytes:
    items = []
    if message.ranges:
        items.append((EXTENSION_RANGES, b"".join([RANGE.pack(*pair) for pair in message.ranges])))
    if message.resume is not None:
        items.append((EXTENSION_RESUME, RESUME.pack(message.resume.store_id, message.resume.session, message.resume.next_seq)))
    if message.text:
        items.append((EXTENSION_TEXT, _cut_text(message.text)))
    body = b"".join([PAIR.pack(number, len(data)) + data + bytes(-len(data) % 4) for number, data in items])
    return PAIR.pack(PAIR.size + len(body), 0) + body


def _cut_text(text: str) -> bytes:
    """At most MAX_TEXT_BYTES, whole characters."""
    return text.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore").encode()


def _parse_extensions_untrusted(message: Message, data: bytes) -> int:
    """Store what the extensions say; returns how many bytes they take."""
    if len(data) < HEADER_BYTES + PAIR.size:
        raise BadCall("extensions are announced and absent")
    total: int
    total, reserved = PAIR.unpack_from(data, HEADER_BYTES)
    at, end = HEADER_BYTES + PAIR.size, HEADER_BYTES + total
    if reserved or total < PAIR.size or total % 4 or end > len(data):
        raise BadCall(f"extensions of {total} bytes, reserved {reserved}, in a datagram of {len(data)}")
    while at < end:
        number, length = PAIR.unpack_from(data, at)
        at += PAIR.size
        if at + length + -length % 4 > end:
            raise BadCall(f"extension {number} of {length} bytes ends behind the extensions")
        _parse_extension_untrusted(message, number, data[at : at + length])
        at += length + -length % 4
    return total


def _parse_extension_untrusted(message: Message, number: int, data: bytes) -> None:
    if number == EXTENSION_RANGES:
        message.ranges = _parse_ranges_untrusted(data)
    elif number == EXTENSION_RESUME:
        if len(data) != RESUME.size:
            raise BadCall(f"a resume of {len(data)} bytes: {RESUME.size} are needed")
        message.resume = Resume(*RESUME.unpack(data))
    elif number == EXTENSION_TEXT:
        try:
            message.text = data[:MAX_TEXT_BYTES].decode()
        except UnicodeDecodeError as error:
            raise BadCall(f"a text that is not UTF-8: {error.reason}") from None
    elif number & MUST_UNDERSTAND:
        message.refused = number


def _parse_ranges_untrusted(data: bytes) -> tuple[tuple[int, int], ...]:
    """Ascending and apart, so that nobody can make us look at one number twice."""
    if len(data) % RANGE.size or len(data) > MAX_RANGES * RANGE.size:
        raise BadCall(f"released ranges of {len(data)} bytes: at most {MAX_RANGES} of {RANGE.size} are possible")
    ranges = tuple(RANGE.iter_unpack(data))
    last = 0
    for start, stop in ranges:
        if not last < start < stop:
            raise BadCall(f"released range [{start}, {stop}) after {last}: ranges ascend and do not touch")
        last = stop
    return ranges
