"""A node on streams in memory: any bytes, in any split, on connections that a test makes. No sockets, and time that jumps.

What the property test and the atheris target share.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import trio
import trio.testing

import rdsx
from rdsx.addresses import Host, parse_host

NODE, PEER = "10.9.0.5", "10.9.0.1"  # the peer is smaller: it dials
PORT, OTHER_PORT = 4000, 4002
MAX_MESSAGE_BYTES = 20_000
REASONS = {"closed_by_peer", "bad_length", "bad_checksum"}
HEADER = struct.Struct(">QQIHHBB4xH16s")


class Pipe:
    """The node's end of a stream; see rdsx.transports.base.ByteStream. Takes whatever is written and forgets it."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = deque(piece for piece in pieces if piece)
        self.closed = False

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        return sum(len(buffer) for buffer in buffers)

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        """One piece at most, so that the split is the test's; then nothing for one call, so that the reader has to wait."""
        if not self._pieces:
            return 0
        piece = self._pieces.popleft()
        room = sum(len(buffer) for buffer in buffers)
        if len(piece) > room:
            self._pieces.appendleft(piece[room:])
            piece = piece[:room]
        at = 0
        for buffer in buffers:
            part = piece[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
        return len(piece)

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def unacknowledged(self) -> int:
        return 0

    def shutdown_write(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Streams:
    """See rdsx.transports.base.Network and Listener: hands the node the connections that the test makes."""

    name = "memory"

    def __init__(self) -> None:
        self._to_accept, self._accepted = trio.open_memory_channel[Pipe](math.inf)

    async def listen(self, local: Host, port: int) -> Streams:
        return self

    async def connect(self, local: Host, remote: Host, port: int) -> Pipe:
        raise OSError("nobody dials in this test")

    async def accept(self) -> tuple[Pipe, Host]:
        return await self._accepted.receive(), parse_host(PEER)

    def close(self) -> None:
        pass

    def dial(self, pieces: Iterable[bytes]) -> Pipe:
        pipe = Pipe(pieces)
        self._to_accept.send_nowait(pipe)
        return pipe


@dataclass
class Outcome:
    """What came of a connection: what each socket got, and why it ended."""

    messages: dict[int, list[bytes]]
    reason: str
    counters: dict[str, int]


def feed(streams: Sequence[Sequence[bytes]]) -> list[Outcome]:
    """Run a node, make these connections one after another, each with its pieces and then the end of the stream."""

    async def main() -> list[Outcome]:
        network = Streams()
        config = rdsx.NodeConfig(
            sequence_base=1,
            seed=1,
            close_drain_s=0.0,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_peer_queued_bytes=2**30,
            max_node_queued_bytes=2**30,
        )
        outcomes = []
        async with rdsx.open_node(NODE, transport=network, config=config) as node:
            sockets = {port: await node.bind(port) for port in (PORT, OTHER_PORT)}
            drops: dict[str, int] = {}
            for pieces in streams:
                pipe = network.dial(pieces)
                await trio.testing.wait_all_tasks_blocked()
                assert pipe.closed
                after = dict(node.statistics().drops)
                (reason,) = [name for name, count in after.items() if count != drops.get(name, 0)]
                assert sum(after.values()) == sum(drops.values()) + 1
                drops = after
                messages = {port: drained(sock) for port, sock in sockets.items()}
                outcomes.append(Outcome(messages, reason, dict(node.statistics().counters)))
        return outcomes

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def drained(sock: rdsx.RdsSocket) -> list[bytes]:
    try:
        return [data for data, _ in sock.recvmmsg_nowait(2**31)]
    except trio.WouldBlock:
        return []


# -- what ought to come of it


class Model:
    """The receiver of a kernel's messages, from the wire format and the duplicate test alone."""

    def __init__(self) -> None:
        self.next_receive = 0

    def take(self, wire: bytes) -> tuple[dict[int, list[bytes]], str]:
        """Messages per port, and the reason for which the connection ends."""
        messages: dict[int, list[bytes]] = {PORT: [], OTHER_PORT: []}
        reason = "closed_by_peer"
        is_first, acks = True, False
        at = 0
        while len(wire) - at >= HEADER.size:
            sequence, _, length, _, dport, flags, _, checksum, extensions = HEADER.unpack_from(wire, at)
            if checksum and not is_good(wire[at : at + HEADER.size]):
                return messages, "bad_checksum"
            if is_first:
                magic, version, generation = struct.unpack_from(">BBxxI", extensions)
                acks = magic == 0x52 and version >= 1 and generation != 0
                assert not acks, "the model is of a kernel's messages; give it no hello"
                is_first = False
            is_map = flags == 1
            if length > 2**20:
                return messages, "bad_length"
            at += HEADER.size
            payload = wire[at : at + length]
            at += length
            is_whole = len(payload) == length
            if is_map or (flags & 4 and sequence < self.next_receive):
                continue
            if not is_whole:
                break
            self.next_receive = (sequence + 1) % 2**64
            if dport in messages and length <= MAX_MESSAGE_BYTES:
                messages[dport].append(payload)
        return messages, reason


def is_good(header: bytes) -> bool:
    """The Internet checksum of 48 bytes."""
    total = sum(struct.unpack(">24H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def split(wire: bytes, sizes: int | Iterable[int]) -> Iterator[bytes]:
    """`wire` in pieces of these sizes, or all of one; what is left over comes last."""
    at = 0
    for size in repeat(sizes) if isinstance(sizes, int) else sizes:
        if at >= len(wire):
            return
        yield wire[at : at + max(1, size)]
        at += max(1, size)
    yield wire[at:]
