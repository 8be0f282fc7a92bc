"""A virtual network: byte streams between addresses, with latency, partial writes and faults, all from one seed.

It is a `transports.base.Network`, so `open_node(address, transport=network)` puts a real node on it. It has no tasks of its own:
what is in flight carries its time of arrival, and whoever looks sees what has arrived by now. Every fault is written to
`network.transcript` with its virtual time.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

import trio

from rdsx.addresses import Host, parse_host
from rdsx.moves import AddressChange, Change, NeighbourChange, Progress

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Faults", "VirtualNetwork"]

RETRANSMIT_S = 0.2  # after which a real node's TCP sends again what was not acknowledged
KEEPALIVE_S = 30.0  # silence after which a real node's TCP gives up: 5 s + 5 probes of 5 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What a healthy virtual network does to every stream. Times in seconds, sizes in bytes."""

    min_latency_s: float = 0.0001
    max_latency_s: float = 0.001
    buffer_bytes: int = 65536
    """What a stream holds in flight and unread."""
    partial_writes: float = 0.0
    """Probability that a write takes only a random part."""


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of a stream."""

    segments: deque[tuple[float, bytes]] = field(default_factory=deque)  # (arrival, bytes)
    offset: int = 0  # bytes of the first segment already read
    held: int = 0  # bytes in segments, in flight or unread
    sent: int = 0  # bytes ever sent
    last_at: float = -inf  # arrivals never go back
    end_at: float = inf  # arrival of the end of the stream
    cut_at_byte: float = inf  # the stream breaks when this many bytes were sent
    lost: bool = False  # it has broken: nothing sent from now on arrives


class VirtualStream:
    """See `transports.base.ByteStream`."""

    def __init__(self, network: VirtualNetwork, local: Host, remote: Host) -> None:
        self.network = network
        self.local = local
        self.remote = remote
        self.inbound = Pipe()
        self.outbound = Pipe()
        self.peer: VirtualStream
        self.broken_at = inf  # from then on this end sees a reset
        self.broken_by = errno.ECONNRESET
        self.orphan = False  # the other end is gone without a word: whatever we send is answered by a reset
        self.closed = False
        self.changed = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"{self.local.key}>{self.remote.key}"

    # -- ByteStream

    def send(self, buffers: Sequence[Buffer]) -> int:
        now_s = trio.current_time()
        self._check(now_s)
        data = b"".join(buffers)
        network, pipe = self.network, self.outbound
        room = network.faults.buffer_bytes - pipe.held
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        data = data[:room]
        if len(data) > 1 and network.random.random() < network.faults.partial_writes:
            data = data[: network.random.randrange(1, len(data))]
        if self.orphan:
            network.note(f"{self} wrote to nobody")
            self.break_at(now_s + network.latency_s())
            return len(data)
        at_s = pipe.last_at = max(pipe.last_at, now_s + network.latency_s())
        arriving = b"" if pipe.lost else data
        if not pipe.lost and pipe.sent + len(data) >= pipe.cut_at_byte:
            arriving = data[: int(pipe.cut_at_byte) - pipe.sent]
            network.note(f"{self} cut at byte {pipe.cut_at_byte}")
            pipe.lost = True
            self.break_at(at_s)
            self.peer.break_at(at_s)
        pipe.sent += len(data)
        if arriving:
            pipe.held += len(arriving)
            pipe.segments.append((at_s, arriving))
        self.peer.changed.unpark_all()
        return len(data)

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        now_s = trio.current_time()
        pipe = self.inbound
        count = 0
        for buffer in buffers:
            at = 0
            while at < len(buffer) and self._arrived(now_s):
                _, segment = pipe.segments[0]
                part = segment[pipe.offset : pipe.offset + len(buffer) - at]
                buffer[at : at + len(part)] = part
                at += len(part)
                pipe.offset += len(part)
                if pipe.offset == len(segment):
                    pipe.segments.popleft()
                    pipe.offset = 0
            count += at
        if count:
            pipe.held -= count
            self.peer.changed.unpark_all()
            return count
        self._check(now_s)
        if self._ended(now_s):
            return 0
        raise BlockingIOError(errno.EAGAIN, "nothing has arrived")

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            now_s = trio.current_time()
            if self.closed:
                raise OSError(errno.EBADF, "the stream was closed here")
            if self._arrived(now_s) or self._ended(now_s) or now_s >= self.broken_at:
                return
            next_s = self.inbound.segments[0][0] if self.inbound.segments else self.inbound.end_at
            await self._park_until(min(inf if self._partitioned() else next_s, self.broken_at))

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            if self.closed:
                raise OSError(errno.EBADF, "the stream was closed here")
            if trio.current_time() >= self.broken_at or self.outbound.held < self.network.faults.buffer_bytes:
                return
            await self._park_until(self.broken_at)

    def unacknowledged(self) -> int:
        now_s = trio.current_time()
        self._check(now_s)
        pipe = self.outbound
        end = int(pipe.end_at < inf and (pipe.end_at > now_s or self._partitioned()))  # as TCP counts the FIN
        if self.orphan or self._partitioned():
            return pipe.held + end
        return sum(len(data) for at_s, data in pipe.segments if at_s > now_s) + end

    def progress(self) -> Progress | None:
        now_s = trio.current_time()
        try:
            outstanding_bytes = self.unacknowledged()
        except OSError:
            return None
        waits_s = now_s - self.outbound.segments[0][0] if self.outbound.segments else 0.0
        is_stalled = self._partitioned() and waits_s >= RETRANSMIT_S
        return Progress(outstanding_bytes, self.outbound.sent - outstanding_bytes, is_stalled)

    def shutdown_write(self) -> None:
        self._check(trio.current_time())
        self._end()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.inbound.segments:
            self.abort_peer()
        else:
            self._end()
        self._forget()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self.abort_peer()
            self._forget()

    # -- what the network does to it

    def break_at(self, at_s: float, number: int = errno.ECONNRESET) -> None:
        """From `at_s` on this end sees an error, once it has read what arrived before."""
        if at_s < self.broken_at:
            self.broken_at, self.broken_by = at_s, number
        self.changed.unpark_all()

    def abort_peer(self) -> None:
        """We are gone. The other end sees a reset; if that cannot get through, only when it sends, or by keepalive."""
        if self._partitioned():
            self.peer.orphan = True
        elif not self.orphan:
            self.peer.break_at(trio.current_time() + self.network.latency_s())

    def _end(self) -> None:
        pipe = self.outbound
        if pipe.end_at == inf and not self.orphan:
            pipe.end_at = max(pipe.last_at, trio.current_time() + self.network.latency_s())
        self.peer.changed.unpark_all()

    def _forget(self) -> None:
        self.network.streams.pop(self, None)
        self.changed.unpark_all()

    def _partitioned(self) -> bool:
        return frozenset((self.local.key, self.remote.key)) in self.network.partitions

    def _arrived(self, now_s: float) -> bool:
        if not self.inbound.segments or self._partitioned():
            return False
        at_s = self.inbound.segments[0][0]
        return at_s <= now_s and at_s <= self.broken_at

    def _ended(self, now_s: float) -> bool:
        return now_s >= self.inbound.end_at and not self.inbound.segments and not self._partitioned()

    def _check(self, now_s: float) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "the stream was closed here")
        if now_s >= self.broken_at:
            raise OSError(self.broken_by, errno.errorcode[self.broken_by])

    async def _park_until(self, deadline_s: float) -> None:
        with trio.move_on_at(deadline_s):
            await self.changed.park()


class VirtualListener:
    """See `transports.base.Listener`."""

    def __init__(self, network: VirtualNetwork, key: tuple[str, int]) -> None:
        self._network = network
        self._key = key
        self._send, self._receive = trio.open_memory_channel[VirtualStream](inf)

    def put(self, stream: VirtualStream) -> None:
        self._send.send_nowait(stream)

    async def accept(self) -> tuple[VirtualStream, Host]:
        stream = await self._receive.receive()
        return stream, stream.remote

    def close(self) -> None:
        if self._network.listeners.get(self._key) is self:
            del self._network.listeners[self._key]
        while self._receive.statistics().current_buffer_used:
            self._receive.receive_nowait().abort()
        self._receive.close()


class VirtualChanges:
    """See `moves.Changes`. What one node is told of moves."""

    def __init__(self, network: VirtualNetwork, hosts: frozenset[str]) -> None:
        self._network = network
        self.hosts = hosts
        self._send, self._receive = trio.open_memory_channel[Change](inf)
        network.watches[self] = None

    def tell(self, change: Change) -> None:
        self._send.send_nowait(change)

    def __aiter__(self) -> VirtualChanges:
        return self

    async def __anext__(self) -> Change:
        return await self._receive.receive()

    def close(self) -> None:
        self._network.watches.pop(self, None)
        self._receive.close()


class VirtualNetwork:
    """All addresses of a made-up cluster. Give it to `open_node(address, transport=network)`; use one for all nodes.

    Any unicast address can be a node's. `seed` decides latencies, partial writes and everything else that is left to chance.
    """

    name = "virtual"

    def __init__(self, seed: int = 0, faults: Faults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.transcript: list[str] = []
        self.listeners: dict[tuple[str, int], VirtualListener] = {}
        self.streams: dict[VirtualStream, None] = {}
        self.partitions: set[frozenset[str]] = set()
        self.watches: dict[VirtualChanges, None] = {}
        self._ports: dict[str, int] = {}  # on which port of its host an address is
        self._healed = trio.lowlevel.ParkingLot()

    # -- faults

    def cut(self, one: str, other: str, *, after_bytes: int = 0) -> bool:
        """Break the streams between two addresses, for both ends, once `one` has sent `after_bytes` more; False if there is none.

        What was sent before that byte still arrives; what follows is lost.
        """
        found = list(self._between(one, other))
        for stream in found:
            if after_bytes == 0 or stream.local.key != one:
                continue
            stream.outbound.cut_at_byte = min(stream.outbound.cut_at_byte, stream.outbound.sent + after_bytes)
        if after_bytes == 0:
            self.note(f"cut {one} - {other}")
            for stream in found:
                stream.break_at(trio.current_time())
        return bool(found)

    def half_open(self, gone: str, other: str) -> bool:
        """`gone` loses its ends of the streams to `other`, which learns of it only when it sends, or by keepalive."""
        found = False
        for stream in list(self._between(gone, other)):
            if stream.local.key == gone:
                found = True
                stream.break_at(trio.current_time())
                stream.orphan = stream.peer.orphan = True
                stream.peer.break_at(trio.current_time() + KEEPALIVE_S, errno.ETIMEDOUT)
        if found:
            self.note(f"half-open: {gone} lost {other}")
        return found

    def crash(self, host: str) -> None:
        """The host falls silent: its streams and listeners vanish without a word. Its node, if any, is to be cancelled by the caller."""
        self.note(f"crash {host}")
        for other in {stream.remote.key for stream in self.streams if stream.local.key == host}:
            self.half_open(host, other)
        for key in [key for key in self.listeners if key[0] == host]:
            del self.listeners[key]

    def partition(self, one: str, other: str) -> None:
        """Nothing passes between two addresses until heal(). Streams that wait too long break, as by keepalive."""
        self.note(f"partition {one} - {other}")
        self.partitions.add(frozenset((one, other)))
        for stream in self._between(one, other):
            stream.break_at(trio.current_time() + KEEPALIVE_S, errno.ETIMEDOUT)

    def heal(self, one: str, other: str) -> None:
        """End a partition: what waited arrives now."""
        pair = frozenset((one, other))
        if pair not in self.partitions:
            return
        self.note(f"heal {one} - {other}")
        self.partitions.discard(pair)
        now_s = trio.current_time()
        for stream in self._between(one, other):
            if stream.broken_by == errno.ETIMEDOUT and stream.broken_at > now_s and not stream.orphan:
                stream.broken_at, stream.broken_by = inf, errno.ECONNRESET
            stream.changed.unpark_all()
        self._healed.unpark_all()

    def heal_all(self) -> None:
        for pair in sorted(self.partitions, key=sorted):
            self.heal(*sorted(pair))

    def move(self, host: str) -> None:
        """An address goes to another port of its host: every node is told, its own and the others. Streams go on; what they do when the
        way is shut meanwhile, partition() shows."""
        key = parse_host(host).key
        before = self._ports.get(key, 0)
        after = self._ports[key] = before + 1
        self.note(f"move {key}")
        for watch in self.watches:
            if key in watch.hosts:
                watch.tell(AddressChange(key, (f"port{before}",), (f"port{after}",)))
            else:
                watch.tell(NeighbourChange(key, "port0", before.to_bytes(6), after.to_bytes(6)))

    # -- Network

    def watch(self, hosts: Iterable[Host]) -> VirtualChanges:
        """See `moves.Watched`."""
        return VirtualChanges(self, frozenset(host.key for host in hosts))

    async def listen(self, local: Host, port: int) -> VirtualListener:
        await trio.lowlevel.checkpoint()
        key = local.key, port
        if key in self.listeners:
            raise OSError(errno.EADDRINUSE, f"another virtual node has {local.key} port {port}")
        self.listeners[key] = listener = VirtualListener(self, key)
        return listener

    async def connect(self, local: Host, remote: Host, port: int) -> VirtualStream:
        await trio.sleep(self.latency_s())
        while frozenset((local.key, remote.key)) in self.partitions:
            await self._healed.park()
        listener = self.listeners.get((remote.key, port))
        if listener is None:
            await trio.sleep(self.latency_s())
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on {remote.key} port {port}")
        here, there = VirtualStream(self, local, remote), VirtualStream(self, remote, local)
        here.peer, there.peer = there, here
        here.outbound, there.outbound = there.inbound, here.inbound
        self.streams[here] = self.streams[there] = None
        listener.put(there)
        try:
            await trio.sleep(self.latency_s())
        except trio.Cancelled:
            here.abort()
            raise
        return here

    # -- helpers

    def latency_s(self) -> float:
        return self.random.uniform(self.faults.min_latency_s, self.faults.max_latency_s)

    def note(self, text: str) -> None:
        """Add a line to the transcript."""
        self.transcript.append(f"{trio.current_time():12.6f} {text}")

    def _between(self, one: str, other: str) -> Iterable[VirtualStream]:
        pair = {parse_host(one).key, parse_host(other).key}
        return [stream for stream in self.streams if {stream.local.key, stream.remote.key} == pair]
