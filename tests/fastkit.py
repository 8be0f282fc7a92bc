"""Two ends of the hot path wired together, for tests of `_fast` and `_stream`: no sockets, no clock, every byte under control."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

from rdsx._fast import BindTable, CongestionMap, Core, Endpoint, Path, pack_header
from rdsx._stream import StreamReader, StreamWriter

MIB = 1 << 20
HELLO = b"R\x01\0\0\0\0\0\x07"  # any extensions do: the stream does not interpret them

# Codes of StreamReader.parse.
NEED_MORE, FIRST_HEADER, PROBE, NEW_MAP = range(4)
# Codes of Endpoint.submit.
SENT, CONGESTED, FULL, TOO_LONG, NO_ROUTE = range(5)
# Header flags.
CONG_BITMAP, ACK_REQUIRED, RETRANSMITTED = 1, 2, 4

MAP_FRAME_BYTES = 48 + 8192


def make_core(**changes: Any) -> Core:
    limits: dict[str, Any] = {
        "max_message_bytes": MIB,
        "max_peer_queued_bytes": 64 * MIB,
        "max_node_queued_bytes": 256 * MIB,
        "max_unacked_packets": 8,
        "max_unacked_bytes": 16 * MIB,
        "answer_pings": True,
    }
    return Core(**(limits | changes))


class Side:
    """One node: a core, a local address, a path to one peer, and the two ends of the link to it."""

    def __init__(self, host: str, peer: str, **limits: Any) -> None:
        self.core = make_core(**limits)
        self.table = BindTable(self.core, host)
        self.foreign = CongestionMap()
        self.path = Path(self.table, peer, self.foreign)
        self.table.routes[peer] = self.path
        self.peer = peer
        self.link()

    def link(self, hello: bytes = HELLO) -> None:
        """A new link. The path must be new, or reset."""
        self.path.open(hello)
        self.writer = StreamWriter(self.path)
        self.reader = StreamReader(self.path)

    def endpoint(self, port: int, send_limit: int = MIB, receive_limit: int = MIB) -> Endpoint:
        endpoint = Endpoint(send_limit, receive_limit)
        self.table.bind(endpoint, port)
        return endpoint

    def write(self, limit: int | None = None, max_bytes: int = 65536) -> bytes:
        """What the writer gives out, of which only `limit` bytes get through to the wire."""
        polled = self.writer.poll(max_bytes)
        wire = b"".join(bytes(piece) for piece in polled) if polled else b""
        if limit is not None:
            wire = wire[:limit]
        if polled:
            self.writer.written(len(wire))
        return wire

    def write_all(self) -> bytes:
        """Everything that is to be written now."""
        wire = b""
        while piece := self.write():
            wire += piece
        return wire

    def read(self, data: bytes, on_code: Callable[[int], object] | None = None) -> list[int]:
        """Feed bytes; returns the codes that parse() stopped with."""
        codes = []
        view = memoryview(data)
        while view:
            view = view[self.reader.feed(view) :]
            while code := self.reader.parse():
                codes.append(code)
                if on_code is not None:
                    on_code(code)
        return codes

    def counter(self, name: str) -> int:
        return self.core.statistics()[name]

    def acks(self) -> None:
        """The peer is rdsx."""
        self.path.peer_acks = True


def pair(**limits: int | bool) -> tuple[Side, Side]:
    return Side("10.0.0.1", "10.0.0.2", **limits), Side("10.0.0.2", "10.0.0.1", **limits)


def chop(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes (0 counts as 1); what is left over comes last."""
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        yield data[at : at + max(size, 1)]
        at += max(size, 1)
    if at < len(data):
        yield data[at:]


def pump(a: Side, b: Side, sizes: Iterable[int] = repeat(65536)) -> None:
    """Carry bytes both ways until both ends are quiet, in reads of these sizes."""
    lengths = iter(sizes)
    while True:
        to_b, to_a = a.write_all(), b.write_all()
        if not to_a and not to_b:
            return
        for piece in chop(to_b, lengths):
            b.read(piece)
        for piece in chop(to_a, lengths):
            a.read(piece)


def frame(
    sequence: int,
    payload: bytes = b"",
    *,
    sport: int = 4000,
    dport: int = 4001,
    flags: int = 0,
    ack: int = 0,
    extensions: bytes = b"",
    length: int | None = None,
    checksum: bool = False,
) -> bytes:
    """One message as it is on the wire; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    return pack_header(sequence, ack, size, sport, dport, flags, 0, extensions, checksum=checksum) + payload


def map_frame(*ports: int, extensions: bytes = b"") -> bytes:
    """A congestion map in which these ports are full."""
    bits = bytearray(8192)
    for port in ports:
        bits[port >> 3] |= 1 << (port & 7)
    return frame(0, bytes(bits), sport=0, dport=0, flags=CONG_BITMAP, extensions=extensions)


def received(endpoint: Endpoint) -> list[bytes]:
    """The payloads of everything in the receive queue, which is empty afterwards."""
    return [data for data, _ in endpoint.take_many(1 << 30)]
