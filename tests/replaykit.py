"""Plays what a kernel once said to an rdsx node of today, and holds what rdsx says to a kernel to the rules. No kernel, no sockets.

`tests/data` has the captures and their provenance, `capturekit` reads them. A `Case` is one of them: the connections of each life of
rdsx, in order. `ReplayNetwork` is a `transports.base.Network` on which those connections happen again, one after another, the kernel's
bytes cut as the test wants them. `check_rules()` is for the other direction, as captured or as written by the node under test.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

import rdsx
from capturekit import RST, Conversation, conversations, message_ends, read_pcap
from kernelkit import (
    HEADER,
    HEADER_BYTES,
    MAP_BYTES,
    NO_EXTENSIONS,
    PING_PORT,
    PROBE_PORT,
    RETRANSMITTED,
    Frame,
    check,
    check_map,
)
from lab.traffic import digests, messages
from rdsx.addresses import Host, parse_host

DATA = Path(__file__).parent / "data"
MAP_MESSAGE_BYTES = HEADER_BYTES + MAP_BYTES
NPATHS, GEN_NUM = 5, 6
GUARD_S = 600  # virtual
END_S = 0.5  # virtual: time for the node to say what it has to say, before a connection ends

Cut = Callable[[bytes, list[int]], Iterable[int]]
"""Where to cut the kernel's bytes, from them and from where the segments of the capture ended."""


# -- captures


@dataclass
class Connection:
    """One TCP connection of a capture: what each end wrote, cut as captured."""

    by_rdsx: bool  # who dialled
    refused: bool  # nobody listened
    reset: bool  # the kernel's end of it
    kernel: bytes = b""
    kernel_segments: list[int] = field(default_factory=list)
    rdsx: bytes = b""
    rdsx_segments: list[int] = field(default_factory=list)
    rdsx_heard: list[int] = field(default_factory=list)  # by each segment of rdsx, how much of the kernel's was there
    rdsx_acknowledged: int = 0  # bytes of rdsx that the kernel's TCP acknowledged


@dataclass
class Life:
    """One life of rdsx: its connections, and what was sent meanwhile."""

    connections: list[Connection] = field(default_factory=list)
    to_rdsx: list[dict[str, Any]] = field(default_factory=list)
    to_kernel: list[dict[str, Any]] = field(default_factory=list)
    pings_by_rdsx: int = 0
    pings_by_kernel: int = 0

    @property
    def kernel_frames(self) -> list[Frame]:
        return [frame for connection in self.connections for frame in frames(connection.kernel)]

    def begin_of(self, entry: dict[str, Any]) -> Connection:
        """On which connection rdsx first wrote the first message of an entry of `to_kernel`."""
        number = sum(each["count"] for each in self.to_kernel[: self.to_kernel.index(entry)])
        firsts: dict[int, Connection] = {}
        for connection in self.connections:
            for frame in frames(connection.rdsx):
                if frame.is_data and frame.sport:
                    firsts.setdefault(frame.sequence, connection)
        return firsts[sorted(firsts)[number]]

    @property
    def rdsx_frames(self) -> list[Frame]:
        return [frame for connection in self.connections for frame in frames(connection.rdsx)]


@dataclass
class Case:
    """A capture with its provenance."""

    name: str
    kernel: str
    rdsx: str
    lives: list[Life]

    @property
    def is_smaller(self) -> bool:
        """Whether rdsx has the smaller address, whose connections are the ones that carry messages."""
        return parse_host(self.rdsx).value < parse_host(self.kernel).value


def names() -> list[str]:
    """All captures: `6.1/single-rdsx-first-smaller`."""
    return sorted(str(path.relative_to(DATA)).removesuffix(".pcap.gz") for path in DATA.glob("*/*.pcap.gz"))


def load(name: str, folder: Path = DATA) -> Case:
    """Read a capture anew: what is changed in it stays with the caller."""
    series, title = name.split("/")
    facts = json.loads((folder / series / "provenance.json").read_text())[title]
    kernel, rdsx = facts["kernel_address"], facts["rdsx_address"]
    packets = read_pcap(gzip.decompress((folder / f"{name}.pcap.gz").read_bytes()))
    case = Case(name, kernel, rdsx, [])
    waiting: list[Connection] = []  # on which rdsx said nothing: of the next life that is heard
    generation = None
    for conversation in conversations(packets):
        connection = connection_of(conversation, kernel, rdsx)
        if not connection.by_rdsx and connection.refused:
            continue  # no rdsx is there
        waiting.append(connection)
        if connection.rdsx:
            if connection.rdsx[36:40] != generation:
                generation = connection.rdsx[36:40]
                case.lives.append(Life())
            case.lives[-1].connections += waiting
            waiting = []
    case.lives[-1].connections += waiting
    for life, played in enumerate(case.lives):
        for what in ("to_rdsx", "to_kernel"):
            setattr(played, what, [entry for entry in facts.get(what, []) if entry["life"] == life])
        for what in ("pings_by_rdsx", "pings_by_kernel"):
            setattr(played, what, sum(entry["count"] for entry in facts.get(what, []) if entry["life"] == life))
    return case


def connection_of(conversation: Conversation, kernel: str, rdsx: str) -> Connection:
    theirs, ours = conversation.stream(kernel), conversation.stream(rdsx)
    begin = (ours.next_sequence or 0) - len(ours.data)
    return Connection(
        by_rdsx=conversation.dialler is ours,
        refused=conversation.listener.next_sequence is None,
        reset=RST in theirs.ends[:1],
        kernel=bytes(theirs.data),
        kernel_segments=theirs.segments,
        rdsx=bytes(ours.data),
        rdsx_segments=ours.segments,
        rdsx_heard=ours.heard,
        rdsx_acknowledged=min((ours.acknowledged - begin) % 2**32, len(ours.data)) if ours.data else 0,
    )


def frames(data: bytes) -> list[Frame]:
    """The whole messages of a stream."""
    return [frame_at(data, start, end) for start, end in itertools.pairwise([0, *message_ends(data)])]


def frame_at(data: bytes, start: int, end: int) -> Frame:
    fields: tuple[Any, ...] = HEADER.unpack_from(data, start)
    return Frame(*fields, data[start + HEADER_BYTES : end])


def payload_digests(entries: Iterable[dict[str, Any]]) -> list[str]:
    """What these entries of the provenance sent."""
    return [digest for each in entries for digest in digests(each["seed"], each["count"], each["low"], each["high"])]


# -- cuts


def as_captured(data: bytes, segments: list[int]) -> Iterable[int]:
    return segments


def at_once(data: bytes, segments: list[int]) -> Iterable[int]:
    return [len(data)]


def byte_by_byte(data: bytes, segments: list[int]) -> Iterable[int]:
    return range(1, len(data) + 1)


def at_random(seed: int) -> Cut:
    """Pieces of all sizes, and cuts inside and beside headers."""

    def cut(data: bytes, segments: list[int]) -> Iterable[int]:
        source = random.Random(seed)
        cuts = {len(data)}
        for end in message_ends(data):
            cuts |= {end + source.randrange(-50, 50) for _ in range(source.randrange(4))}
        at = 0
        while at < len(data):
            at += source.choice((1, 47, 48, 49, source.randrange(1, 2000), source.randrange(1, 60000)))
            cuts.add(at)
        return sorted(at for at in cuts if 0 < at <= len(data))

    return cut


# -- the network


class ReplayStream:
    """See `rdsx.transports.base.ByteStream`. Gives one piece of the kernel's bytes for each time it is waited for.

    `is_over` is set when it is closed, `is_played` when the kernel has said everything; then it ends, unless it is the last one.
    """

    def __init__(self, connection: Connection, cut: Cut, is_over: trio.Event, is_played: trio.Event | None) -> None:
        self.connection = connection
        self.written = bytearray()
        self.segments: list[int] = []
        self.heard: list[int] = []
        self._is_over = is_over
        self._is_played = is_played
        self._cuts = deque(cut(connection.kernel, connection.kernel_segments) if connection.kernel else ())
        self._given = 0
        self._arrived = 0
        self._ended = False
        self._half_closed = trio.Event()

    def as_connection(self) -> Connection:
        """What this one carried."""
        connection = self.connection
        return replace(connection, rdsx=bytes(self.written), rdsx_segments=self.segments, rdsx_heard=self.heard)

    def send(self, buffers: Sequence[Any]) -> int:
        data = b"".join(buffers)
        self.written += data
        self.segments.append(len(self.written))
        self.heard.append(self._given)
        return len(data)

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        if self._given == self._arrived:
            if not self._ended:
                raise BlockingIOError(errno.EAGAIN, "the next piece comes when it is waited for")
            if self.connection.reset:
                raise ConnectionResetError(errno.ECONNRESET, "the kernel reset it")
            return 0
        count = 0
        for buffer in buffers:
            piece = self.connection.kernel[self._given : min(self._arrived, self._given + len(buffer))]
            buffer[: len(piece)] = piece
            self._given += len(piece)
            count += len(piece)
        return count

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._given < self._arrived:
            return
        if self._cuts:
            self._arrived = self._cuts.popleft()
            return
        with trio.move_on_after(END_S):
            await self._half_closed.wait()
        if self._is_played is not None:
            self._is_played.set()
            await self._half_closed.wait()
        self._ended = True

    async def wait_writable(self) -> None:
        raise AssertionError("this stream takes everything")

    def unacknowledged(self) -> int:
        """On the last connection nothing; before it what the kernel's TCP left unacknowledged then."""
        return 0 if self._is_played is not None else max(0, len(self.written) - self.connection.rdsx_acknowledged)

    def shutdown_write(self) -> None:
        self._half_closed.set()

    def close(self) -> None:
        self._half_closed.set()
        self._is_over.set()
        if self._is_played is not None:
            self._is_played.set()

    def abort(self) -> None:
        self.close()


class ReplayNetwork:
    """See `rdsx.transports.base.Network`. The connections of one life, each when the one before it is over.

    A larger rdsx gets as many pokes as it wants, each refused: they depend on its own timing.
    """

    name = "replay"

    def __init__(self, case: Case, life: Life, cut: Cut) -> None:
        self.streams: list[ReplayStream] = []
        self.pokes: list[ReplayStream] = []
        self.is_played = trio.Event()
        self._takes_pokes = not case.is_smaller
        self._kernel = parse_host(case.kernel)
        self._cut = cut
        script = [connection for connection in life.connections if case.is_smaller or not connection.by_rdsx]
        turns = [trio.Event() for _ in range(len(script) + 1)]
        turns[0].set()
        self.turns = dict(zip(map(id, script), turns, strict=False))  # set when it is a connection's turn
        steps = [(connection, turns[number], turns[number + 1]) for number, connection in enumerate(script)]
        self._dialled = deque(step for step in steps if step[0].by_rdsx)
        self._accepted = deque(step for step in steps if not step[0].by_rdsx)
        self._last = script[-1]

    async def listen(self, local: Host, port: int) -> ReplayNetwork:
        await trio.lowlevel.checkpoint()
        return self

    def close(self) -> None:
        """As the listener that it is, too."""

    async def accept(self) -> tuple[ReplayStream, Host]:
        return await self._next(self._accepted), self._kernel

    async def connect(self, local: Host, remote: Host, port: int) -> ReplayStream:
        await trio.lowlevel.checkpoint()
        assert remote == self._kernel
        if not self._takes_pokes:
            return await self._next(self._dialled)
        self.pokes.append(ReplayStream(Connection(by_rdsx=True, refused=False, reset=True), at_once, trio.Event(), None))
        return self.pokes[-1]

    async def _next(self, steps: deque[tuple[Connection, trio.Event, trio.Event]]) -> ReplayStream:
        if not steps:
            await trio.sleep_forever()
        connection, turn, next_turn = steps[0]
        await turn.wait()
        steps.popleft()
        is_last = connection is self._last
        if connection.refused:
            next_turn.set()
            if is_last:
                self.is_played.set()
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listened")
        stream = ReplayStream(connection, self._cut, next_turn, self.is_played if is_last else None)
        self.streams.append(stream)
        return stream


@dataclass
class Played:
    """What a node made of a life's connections."""

    received: dict[int, list[bytes]]
    statistics: rdsx.NodeStatistics
    events: list[rdsx.Event]
    connections: list[Connection]
    pokes: list[Connection]
    generation: int


async def play(case: Case, life: Life, cut: Cut, **config: Any) -> Played:
    """Let the connections happen to a new node that sends what rdsx sent then. Needs virtual time. `config`: more of NodeConfig."""
    network = ReplayNetwork(case, life, cut)
    settings = {"send_buffer_bytes": 4194304, "receive_buffer_bytes": 4194304} | config
    node_config = rdsx.NodeConfig(seed=1, sequence_base=1 << 40, wall_clock=trio.current_time, **settings)
    pingers = sorted({frame.sport for frame in life.rdsx_frames if frame.dport == 0 and frame.sport})
    ports = {*pingers, *(each["dport"] for each in life.to_rdsx), *(each["sport"] for each in life.to_kernel)}
    async with rdsx.open_node(case.rdsx, transport=network, config=node_config) as node, trio.open_nursery() as nursery:
        generation = node.generation
        sockets = {port: await node.bind(port) for port in sorted(ports)}

        async def send_all() -> None:
            for each in life.to_kernel:
                if each is not life.to_kernel[0]:
                    await network.turns[id(life.begin_of(each))].wait()
                for message in messages(each["seed"], each["count"], each["low"], each["high"]):
                    await sockets[each["sport"]].sendto(message, (case.kernel, each["dport"]))

        async def ping(port: int) -> None:
            for _ in range(life.pings_by_rdsx):
                await sockets[port].sendto(b"", (case.kernel, 0))

        with node.events(1024) as events, trio.fail_after(GUARD_S):
            async with trio.open_nursery() as senders:
                senders.start_soon(send_all)
                for port in pingers:
                    senders.start_soon(ping, port)
                await network.is_played.wait()
            received = {port: take_all(sock) for port, sock in sockets.items()}
            told = [events.receive_nowait() for _ in range(events.statistics().current_buffer_used)]
        statistics = node.statistics()
        nursery.cancel_scope.cancel()
    connections, pokes = ([stream.as_connection() for stream in some] for some in (network.streams, network.pokes))
    return Played(received, statistics, told, connections, pokes, generation)


def take_all(sock: rdsx.RdsSocket) -> list[bytes]:
    found = []
    with contextlib.suppress(trio.WouldBlock):
        while True:
            found.append(sock.recv_nowait())
    return found


# -- what the kernel's bytes mean


@dataclass
class Account:
    """What a receiver has to make of the kernel's messages: the two steps of the duplicate test, over all connections of a life."""

    maps: int = 0
    duplicates: int = 0
    data: dict[int, list[Frame]] = field(default_factory=dict)  # by port, answers to pings among them
    pings: list[Frame] = field(default_factory=list)
    probes: list[Frame] = field(default_factory=list)


def account_of(life: Life) -> Account:
    account = Account()
    expected = 0
    for frame in life.kernel_frames:
        if frame.is_map:
            account.maps += 1
            continue
        if frame.sequence < expected and frame.is_resent:
            account.duplicates += 1
            continue
        expected = frame.sequence + 1
        if frame.dport == PING_PORT:
            (account.probes if frame.sport == PROBE_PORT else account.pings).append(frame)
        elif not frame.is_probe_pong:
            account.data.setdefault(frame.dport, []).append(frame)
    return account


def generation_in(frame: Frame) -> bytes:
    """GEN_NUM of a probe, behind its NPATHS; b"" if it has none."""
    return frame.extensions[4:8] if frame.extensions[0] == NPATHS and frame.extensions[3] == GEN_NUM else b""


# -- the rules for what is sent to a kernel


class Rules:
    """Holds a life of rdsx to them, connection by connection. A `Violation` says which one was broken."""

    def __init__(self, *, is_smaller: bool) -> None:
        self.is_smaller = is_smaller
        self.sent: dict[int, Frame] = {}  # by number, as it was first
        self._begun: set[int] = set()  # numbers of which at least the header was on a wire
        self._hello = b""
        self._told_generations = False  # the kernel has sent a GEN_NUM

    def take(self, connection: Connection) -> None:
        if connection.by_rdsx != self.is_smaller:
            check(not connection.rdsx, "bytes on a connection that the larger address made")
            return
        self._check_begin(connection)
        probes = [frame for frame in frames(connection.kernel) if frame.sport == PROBE_PORT or frame.is_probe_pong]
        self._told_generations = self._told_generations or any(map(generation_in, probes))
        begun_before = set(self._begun)
        ours = frames(connection.rdsx)
        self._check_order(ours[1:], begun_before)
        for frame in ours[1:]:
            self._check_fields(frame)
        cut_short = connection.rdsx[message_ends(connection.rdsx)[-1] if ours else 0 :]
        if ours and len(cut_short) >= HEADER_BYTES:
            self._begun.add(HEADER.unpack_from(cut_short)[0])
        if len(ours) > 1:
            check(any(frame.is_probe_pong for frame in ours), "R2: no probe pong on this connection")

    def _check_begin(self, connection: Connection) -> None:
        """The map with the hello, and nothing else before the kernel has spoken."""
        data = connection.rdsx
        if len(data) >= HEADER_BYTES:
            first = frame_at(data.ljust(MAP_MESSAGE_BYTES, b"\0"), 0, MAP_MESSAGE_BYTES)
            check_map(first, is_first=True)
            self._hello = self._hello or first.extensions
            check(first.extensions == self._hello, "another hello in the same life")
        for end, heard in zip(connection.rdsx_segments, connection.rdsx_heard, strict=True):
            check(heard >= HEADER_BYTES or end <= MAP_MESSAGE_BYTES, "more than the map before the kernel's first header")

    def _check_order(self, ours: list[Frame], begun_before: set[int]) -> None:
        """R0, and what was on a wire before is flagged."""
        last = 0
        is_new = False
        for frame in ours:
            if frame.is_map:
                continue
            number = frame.sequence
            check(number > last, f"R0: #{number} behind #{last}")
            last = number
            if frame.is_resent:
                check(not is_new, f"R0: #{number} is resent behind a new message")
                check(number in begun_before, f"#{number} is flagged and was on no earlier connection")
                first = self.sent.get(number)
                check(first is None or replace(first, flags=RETRANSMITTED) == frame, f"#{number} is resent as another message")
            else:
                is_new = True
                check(
                    number > max(begun_before, default=0), f"#{number} was on an earlier connection, or a later number, and is not flagged"
                )
            self.sent.setdefault(number, replace(frame, flags=0))
            self._begun.add(number)

    def _check_fields(self, frame: Frame) -> None:
        check(frame.ack == 0, f"h_ack {frame.ack}")
        check(frame.credit == 0 and frame.checksum == 0 and frame.padding == bytes(4), "h_credit, h_csum and padding are 0 on TCP")
        if frame.is_map:
            check_map(frame, is_first=False)
            return
        check(frame.flags in (0, RETRANSMITTED), f"h_flags {frame.flags:#x}")
        if frame.is_probe_pong:
            generation = generation_in(frame)
            told = b"\x05\x00\x01" + (b"\x06" + generation if generation else b"")
            check(frame.extensions == told.ljust(16, b"\0"), f"a probe pong with extensions {frame.extensions.hex(' ')}")
            check(not generation or self._told_generations, "GEN_NUM to a kernel that has sent none")
            check(not generation or generation == self._hello[4:8], "another generation than in the hello")
        else:
            check(frame.extensions == NO_EXTENSIONS, f"extension headers {frame.extensions.hex(' ')} on a message")
            check(frame.sport != PROBE_PORT, "a probe ping: a kernel needs none")
        check(frame.length == 0 or frame.dport > PROBE_PORT, "a ping, pong or probe with a payload")


def check_rules(connections: Iterable[Connection], *, is_smaller: bool) -> list[Frame]:
    """Raise a `Violation` unless all of a life's connections are as they must be. Its messages, each once, in order."""
    rules = Rules(is_smaller=is_smaller)
    for connection in connections:
        rules.take(connection)
    return [rules.sent[number] for number in sorted(rules.sent)]
