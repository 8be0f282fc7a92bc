"""A Linux kernel's RDS over TCP, played by a script: what tests hold an rdsx node against when no kernel is at hand.

A `Kernel` keeps what a kernel keeps for one peer for as long as its module is loaded (numbers, queue, what it learned from probes); a
`KernelLink` is one TCP connection of it, a plain non-blocking socket. It sends what a 6.1 kernel sends, or with `generation` a 7.x
one, and it reads only when the test says so. Everything it reads it holds against the rules for peers of a kernel: a byte that a
kernel peer must not send is a `Violation`. Imports nothing of rdsx but what opens the node under test.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

import rdsx

HEADER = struct.Struct(">QQIHHBB4sH16s")
HEADER_BYTES = 48
MAP_BYTES = 8192
CONG_BITMAP, ACK_REQUIRED, RETRANSMITTED = 0x01, 0x02, 0x04
PING_PORT, PROBE_PORT = 0, 1
NO_EXTENSIONS = bytes(16)
PONG_OF_ONE_PATH = b"\x05\x00\x01" + bytes(13)
CUT = (ConnectionResetError, BrokenPipeError)

# The kernel peer, and a node address on either side of it in the order that decides who dials.
KERNEL = "127.0.0.9"
SMALLER, LARGER = "127.0.0.2", "127.0.0.12"
GUARD_S = float(os.environ.get("RDSX_GUARD_S", "20"))

_ports = itertools.count(os.getpid() * 37 % 11000)


def free_port(*hosts: str) -> int:
    """A TCP port that is free on all these hosts, below the range from which systems pick ports for connects."""
    for step in _ports:
        port = 20000 + step % 11000
        with contextlib.ExitStack() as stack:
            try:
                for host in hosts:
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable")


class Violation(AssertionError):
    """The node sent what no peer of a kernel may send."""


@dataclass(frozen=True)
class Frame:
    """One message as it came in, header fields under their wire names."""

    sequence: int
    ack: int
    length: int
    sport: int
    dport: int
    flags: int
    credit: int
    padding: bytes
    checksum: int
    extensions: bytes
    payload: bytes

    @property
    def is_map(self) -> bool:
        return self.flags == CONG_BITMAP

    @property
    def is_probe_pong(self) -> bool:
        return self.sport == PING_PORT and self.dport == PROBE_PORT and not self.is_map

    @property
    def is_data(self) -> bool:
        return self.dport > PROBE_PORT

    @property
    def is_resent(self) -> bool:
        return bool(self.flags & RETRANSMITTED)

    def pack(self) -> bytes:
        return (
            HEADER.pack(
                self.sequence,
                self.ack,
                self.length,
                self.sport,
                self.dport,
                self.flags,
                self.credit,
                self.padding,
                self.checksum,
                self.extensions,
            )
            + self.payload
        )


def pack(
    sequence: int,
    payload: bytes = b"",
    *,
    sport: int = 4001,
    dport: int = 4000,
    flags: int = 0,
    extensions: bytes = b"",
    length: int | None = None,
    ack: int = 0,
    checksum: int = 0,
) -> bytes:
    """The bytes of one message; `length` and `checksum` may lie."""
    size = len(payload) if length is None else length
    return HEADER.pack(sequence, ack, size, sport, dport, flags, 0, bytes(4), checksum, extensions.ljust(16, b"\0")) + payload


def pack_map(*ports: int) -> bytes:
    """A congestion map in which these ports are full."""
    bits = bytearray(MAP_BYTES)
    for port in ports:
        bits[port >> 3] |= 1 << (port & 7)
    return pack(0, bytes(bits), sport=0, dport=0, flags=CONG_BITMAP)


def check(is_so: object, what: str) -> None:
    if not is_so:
        raise Violation(what)


@dataclass
class Queued:
    """A message of the kernel's, until TCP has acknowledged it."""

    sequence: int
    sport: int
    dport: int
    payload: bytes = b""
    extensions: bytes = b""
    flags: int = 0
    end: int | None = None  # offset of its last byte on the present connection

    def pack(self) -> bytes:
        return pack(self.sequence, self.payload, sport=self.sport, dport=self.dport, flags=self.flags, extensions=self.extensions)


@dataclass
class Kernel:
    """The RDS of `host`, which is the peer of a node at `peer`. `generation`: of a 7.x kernel; None for 6.1."""

    host: str
    peer: str
    port: int
    generation: int | None = None
    receive_buffer_bytes: int | None = None
    next_tx: int = 1
    next_rx: int = 0
    npaths: int = 0
    ping_outstanding: bool = False
    congested: set[int] = field(default_factory=set)
    peer_congested: bytes = bytes(MAP_BYTES)
    peer_generation: int | None = None
    queue: list[Queued] = field(default_factory=list)
    delivered: list[bytes] = field(default_factory=list)
    duplicates: int = 0
    answers: list[int] = field(default_factory=list)  # ports of ours that an answer to an rds-ping came to
    links: list[KernelLink] = field(default_factory=list)
    highest_seen: int = 0  # of the node's numbers, on any connection
    asked_generation: bool = False
    listener: trio.socket.SocketType | None = None
    unadopted: deque[trio.socket.SocketType] = field(default_factory=deque)

    @property
    def is_smaller(self) -> bool:
        return socket.inet_aton(self.host) < socket.inet_aton(self.peer)

    # -- connections

    async def listen(self) -> None:
        self.listener = self._socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await self.listener.bind((self.host, self.port))
        self.listener.listen(64)

    def _socket(self) -> trio.socket.SocketType:
        sock = trio.socket.socket()
        if self.receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)
        return sock

    async def accept_raw(self) -> trio.socket.SocketType:
        """The node's next connection, before RDS has decided anything about it: TCP acknowledges, nobody reads."""
        assert self.listener is not None
        sock, address = await self.listener.accept()
        check(address[0] == self.peer, f"the node dialled from {address[0]}, not from its own address")
        self.unadopted.append(sock)
        return sock

    async def dial_raw(self) -> trio.socket.SocketType:
        sock = self._socket()
        self.unadopted.append(sock)
        await sock.bind((self.host, 0))
        await sock.connect((self.peer, self.port))
        return sock

    def adopt(self, sock: trio.socket.SocketType) -> KernelLink:
        """The connection comes UP: everything started and not acknowledged goes again, flagged."""
        link = KernelLink(self, sock)
        self.unadopted.remove(sock)
        self.links.append(link)
        for message in self.queue:
            if message.end is not None:
                message.flags = RETRANSMITTED
                message.end = None
        return link

    async def accept(self) -> KernelLink:
        """Accept as the larger address: UP, map, a probe if the node's path count is not known, then what is queued."""
        assert not self.is_smaller
        link = self.adopt(await self.accept_raw())
        if (not self.npaths or self.generation is not None) and not self.ping_outstanding:
            self.probe()
        await link.begin()
        return link

    async def dial(self) -> KernelLink:
        """Connect as the smaller address: UP as soon as TCP is, map, what is queued."""
        assert self.is_smaller
        link = self.adopt(await self.dial_raw())
        if self.generation is not None and not self.ping_outstanding:
            self.probe()
        await link.begin()
        return link

    async def raw_link(self, *, poked: bool = False) -> trio.socket.SocketType:
        """A connection in the direction that carries messages, on which the kernel does nothing of itself. `poked`: the node knows
        already that it is to dial."""
        if self.is_smaller:
            return await self.dial_raw()
        if not poked:
            await self.poke()
        return await self.accept_raw()

    async def poke(self) -> None:
        """Connect as the larger address does when it wants to be dialled: gone at once, and nothing may have been written to it."""
        assert not self.is_smaller
        sock = await self.dial_raw()
        sock.shutdown(socket.SHUT_WR)
        check(not await read_all(sock), "the node wrote on a connection that the larger address made")
        self.unadopted.remove(sock)
        sock.close()

    async def take_poke(self) -> None:
        """Accept a connection of the larger node, see that it carries nothing, and refuse it as the smaller address does: FIN and RST."""
        assert self.is_smaller
        sock = await self.accept_raw()
        check(not await read_all(sock), "the node wrote on its poke")
        self.unadopted.remove(sock)
        reset(sock)

    async def again(self) -> KernelLink:
        """The next connection, between two that know each other: whoever is smaller dials unasked."""
        return await (self.dial() if self.is_smaller else self.accept())

    async def meet(self) -> KernelLink:
        """A first connection in the way that this order of addresses has it; read up to the node's announcement of one path."""
        if not self.is_smaller:
            await self.poke()
        link = await self.again()
        await link.until(lambda: link.probe_pongs > 0)
        return link

    # -- what it sends

    def push(self, payload: bytes = b"", *, sport: int = 4001, dport: int = 4000, extensions: bytes = b"", flags: int = 0) -> Queued:
        """Number and queue a message; `KernelLink.pump()` writes it."""
        message = Queued(self.next_tx, sport, dport, payload, extensions, flags)
        self.next_tx += 1
        self.queue.append(message)
        return message

    @property
    def probe_extensions(self) -> bytes:
        if self.generation is None:
            return b"\x05\x00\x08"
        return struct.pack(">BHBIBB", 5, 8, 6, self.generation, 8, 0)

    def probe(self, *, flags: int = 0) -> Queued:
        self.ping_outstanding = True
        self.asked_generation |= self.generation is not None
        return self.push(sport=PROBE_PORT, dport=PING_PORT, extensions=self.probe_extensions, flags=flags)

    # -- what it does with what it gets

    def take(self, frame: Frame) -> None:
        """Steps 1 and 2 of the duplicate test, then as the kernel dispatches."""
        if frame.is_map:
            self.peer_congested = frame.payload
            return
        if frame.sequence < self.next_rx and frame.is_resent:
            self.duplicates += 1
            return
        self.next_rx = frame.sequence + 1
        if frame.dport == PING_PORT:
            check(frame.sport != PROBE_PORT, "the node has no need to probe a kernel")
            if frame.sport:
                self.push(sport=PING_PORT, dport=frame.sport)
        elif frame.is_probe_pong:
            self.npaths = struct.unpack_from(">H", frame.extensions, 1)[0]
            self.ping_outstanding = False
            if frame.extensions[3]:
                self.peer_generation = struct.unpack_from(">I", frame.extensions, 4)[0]
        elif frame.sport == PING_PORT:
            self.answers.append(frame.dport)
        else:
            self.delivered.append(frame.payload)

    def is_port_full(self, port: int) -> bool:
        """Whether the node's last map says so of its port."""
        return bool(self.peer_congested[port >> 3] >> (port & 7) & 1)

    def restart(self) -> None:
        """The module was unloaded and loaded again."""
        self.next_tx, self.next_rx, self.npaths, self.ping_outstanding, self.highest_seen = 1, 0, 0, False, 0
        self.asked_generation = False
        self.queue.clear()
        if self.generation is not None:
            self.generation += 1

    def summary(self) -> str:
        """For the report of a test that got stuck."""
        last = self.links[-1].frames[-5:] if self.links else []
        frames = ", ".join(f"#{frame.sequence} {frame.sport}->{frame.dport} flags {frame.flags}, {frame.length} bytes" for frame in last)
        return (
            f"the kernel: next_tx {self.next_tx}, next_rx {self.next_rx}, npaths {self.npaths}, {len(self.queue)} queued, "
            f"{len(self.delivered)} delivered, {len(self.links)} links; the last one brought {frames or 'nothing'}"
        )

    def close(self) -> None:
        for link in self.links:
            link.sock.close()
        for sock in self.unadopted:
            sock.close()
        if self.listener is not None:
            self.listener.close()


class KernelLink:
    """One TCP connection of a `Kernel`."""

    def __init__(self, kernel: Kernel, sock: trio.socket.SocketType) -> None:
        self.kernel = kernel
        self.sock = sock
        self.frames: list[Frame] = []
        self.received_bytes = 0
        self.probe_pongs = 0
        self._written = 0
        self._buffer = bytearray()
        self._highest_before = kernel.highest_seen
        self._last = 0
        self._unflagged = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # -- writing

    async def begin(self) -> None:
        """What comes first on every connection: the map, whatever it says; the queue is right behind it, in one batch."""
        wire = bytearray(pack_map(*self.kernel.congested))
        for message in self.kernel.queue:
            wire += message.pack()
            message.end = len(wire)
        await self.write(bytes(wire))

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = await self.sock.send(view)
            self._written += sent
            view = view[sent:]

    async def send_map(self) -> None:
        await self.write(pack_map(*self.kernel.congested))

    async def pump(self) -> None:
        """Write what is queued and was not written here, and retire what TCP has acknowledged."""
        for message in self.kernel.queue:
            if message.end is None:
                wire = message.pack()
                message.end = self._written + len(wire)
                await self.write(wire)
        self.retire()

    async def send(self, *payloads: bytes, sport: int = 4001, dport: int = 4000) -> None:
        for payload in payloads:
            self.kernel.push(payload, sport=sport, dport=dport)
        await self.pump()

    def retire(self) -> None:
        """The kernel's only acknowledgement: its TCP's."""
        if self.sock.fileno() >= 0:
            waiting = struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
            queue = self.kernel.queue
            while queue and queue[0].end is not None and queue[0].end <= self._written - waiting:
                queue.pop(0)

    # -- reading

    async def frame(self) -> Frame | None:
        """The next message, checked and taken in; None at the end of the stream."""
        header = await self._exactly(HEADER_BYTES)
        if header is None:
            return None
        fields: tuple[Any, ...] = HEADER.unpack(header)
        payload = await self._exactly(fields[2]) if fields[2] else b""
        if payload is None:
            return None
        frame = Frame(*fields, payload)
        self._check(frame)
        self.frames.append(frame)
        self.kernel.take(frame)
        if self.kernel.queue and self.kernel.queue[-1].end is None:
            await self.pump()
        return frame

    async def until(self, is_done: Callable[[], object]) -> None:
        """Read until the condition holds. The connection must not end before."""
        while not is_done():
            check(await self.frame() is not None, "the node ended the connection")

    async def serve(self) -> None:
        """Read to the end of the stream or a reset."""
        with contextlib.suppress(*CUT):
            while await self.frame() is not None:
                pass

    async def bytes(self, count: int) -> bytes:
        """Raw bytes, not looked at: for messages that the test tears apart."""
        data = await self._exactly(count)
        check(data is not None, "the node ended the connection")
        assert data is not None
        return data

    async def _exactly(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            data = await self.sock.recv(min(65536, count - len(self._buffer)))
            if not data:
                return None
            self._buffer += data
            self.received_bytes += len(data)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _check(self, frame: Frame) -> None:
        kernel = self.kernel
        check(frame.ack == 0, f"h_ack {frame.ack}")
        check(frame.credit == 0 and frame.checksum == 0 and frame.padding == bytes(4), "h_credit, h_csum and padding are 0 on TCP")
        if frame.is_map or not self.frames:
            check_map(frame, is_first=not self.frames)
            return
        check(frame.flags in (0, RETRANSMITTED), f"h_flags {frame.flags:#x}")
        check(frame.sequence > self._last, f"R0: #{frame.sequence} behind #{self._last}")
        self._last = frame.sequence
        kernel.highest_seen = max(kernel.highest_seen, frame.sequence)
        if frame.is_resent:
            check(not self._unflagged, f"R0: #{frame.sequence} is resent behind a new message")
        else:
            self._unflagged = True
            check(frame.sequence > self._highest_before, f"#{frame.sequence} was on an earlier connection and is not flagged")
        if frame.is_probe_pong:
            self.probe_pongs += 1
            generation = frame.extensions[4:8] if frame.extensions[3] == 6 else b""
            told = PONG_OF_ONE_PATH if not generation else (b"\x05\x00\x01\x06" + generation).ljust(16, b"\0")
            check(frame.extensions == told, f"a probe pong with extensions {frame.extensions.hex(' ')}")
            check(not generation or kernel.asked_generation or frame.is_resent, "GEN_NUM to a peer that sent none")
            check(generation != bytes(4), "a generation of 0")
            check(frame.length == 0, "a probe pong is empty")
        else:
            check(frame.extensions == NO_EXTENSIONS, f"extension headers {frame.extensions.hex(' ')} on a message")

    # -- the end

    def drop(self) -> None:
        """The connection breaks with a reset, which both ends see; what TCP had acknowledged before stays acknowledged."""
        self.retire()
        reset(self.sock)

    def close(self) -> None:
        """An ordinary close: FIN, or RST when something is unread."""
        self.retire()
        self.sock.close()


def check_map(frame: Frame, *, is_first: bool) -> None:
    """A map as F.1 has it. The first of a connection may carry the 8-byte hello that kernels do not look at."""
    check(frame.is_map, f"h_flags {frame.flags:#x} where the map must be")
    check((frame.sequence, frame.length, frame.sport, frame.dport) == (0, MAP_BYTES, 0, 0), "a map has no number, no ports, and 8192 bytes")
    check(frame.payload[0] & 3 == 0, "ports 0 and 1 are never congested")
    if is_first:
        magic, version, features, generation, rest = struct.unpack(">BBBxI8s", frame.extensions)
        # Nodes that take no operations by message have no features; older captures are of such.
        check((magic, version, rest) == (0x52, 1, bytes(8)) and features <= 1 and generation, f"hello {frame.extensions.hex(' ')}")
    else:
        check(frame.extensions == NO_EXTENSIONS, "extension headers on a later map")


def reset(sock: trio.socket.SocketType | socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def read_all(sock: trio.socket.SocketType) -> bytes:
    """Bytes up to the end of the stream; a reset is an end too."""
    data = b""
    with contextlib.suppress(*CUT):
        while piece := await sock.recv(65536):
            data += piece
    return data


async def read_exactly(sock: trio.socket.SocketType, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = await sock.recv(count - len(data))
        check(piece, f"the end of the stream {count - len(data)} bytes too early")
        data += piece
    return bytes(data)


def is_readable(sock: trio.socket.SocketType | socket.socket) -> bool:
    """Whether there is something to read now, the end of the stream included; for a listener: somebody to accept."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


@contextlib.asynccontextmanager
async def kernel_and_node(
    address: str, *, generation: int | None = None, listens: bool = True, receive_buffer_bytes: int | None = None, **config: Any
) -> AsyncIterator[tuple[Kernel, rdsx.Node]]:
    """A kernel at KERNEL, listening, and an rdsx node at `address`; numbers start at 1, seeds are fixed, delays are short."""
    port = free_port(KERNEL, address)
    settings: dict[str, Any] = {"port": port, "sequence_base": 1, "seed": 7, "poke_min_delay_s": 0.005, "close_drain_s": 0.0} | config
    kernel = Kernel(KERNEL, address, port, generation, receive_buffer_bytes)
    node: rdsx.Node | None = None
    try:
        with trio.fail_after(GUARD_S), contextlib.closing(kernel):
            if listens:
                await kernel.listen()
            async with rdsx.open_node(address, config=rdsx.NodeConfig(**settings)) as node:
                yield kernel, node
    except trio.TooSlowError as error:
        error.add_note(f"the node: {node and node.statistics()}\n{kernel.summary()}")
        raise


@dataclass
class Bystanders:
    """A socket of the node and one of another rdsx node that exchange numbered messages all the time, whatever else goes on."""

    rounds: int = 0

    async def go_on(self, rounds: int = 20) -> None:
        """Until they have had so many more rounds."""
        wanted = self.rounds + rounds
        await until(lambda: self.rounds >= wanted)

    async def run(self, here: rdsx.RdsSocket, there: rdsx.RdsSocket) -> None:
        while True:
            text = b"%d" % self.rounds
            await there.sendto(text, here.getsockname())
            data, address = await here.recvfrom()
            check(data == text, f"{data!r} arrived in round {self.rounds}")
            await here.sendto(text, address)
            check(await there.recv() == text, f"another answer than that of round {self.rounds}")
            self.rounds += 1


BYSTANDER = "127.0.0.3"


@contextlib.asynccontextmanager
async def bystanders(node: rdsx.Node, port: int) -> AsyncIterator[Bystanders]:
    """Bystanders while the block runs; they must get on during and after it, on the one connection they began with."""
    pair = Bystanders()
    async with rdsx.open_node(BYSTANDER, config=rdsx.NodeConfig(port=port, close_drain_s=0.0)) as other:
        here, there = await node.bind(3000), await other.bind(3000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.run, here, there)
            await pair.go_on()
            yield pair
            await pair.go_on()
            nursery.cancel_scope.cancel()
        (connection,) = (each for each in node.statistics().connections if each.peer == BYSTANDER)
        check((connection.state, connection.links, connection.retransmitted_messages) == ("up", 1, 0), f"disturbed: {connection}")
        check(other.statistics().drops == {}, f"bystanders lost connections: {other.statistics().drops}")


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def drops_of(node: rdsx.Node) -> Iterator[dict[str, int]]:
    """The connections that ended or were refused while the block ran, by reason; filled in when it is left."""
    before = node.statistics().drops
    found: dict[str, int] = {}
    yield found
    after = node.statistics().drops
    found.update({reason: count - before.get(reason, 0) for reason, count in after.items() if count > before.get(reason, 0)})


Some = TypeVar("Some", bound=rdsx.Event)


async def next_event(events: trio.MemoryReceiveChannel[rdsx.Event], kind: type[Some]) -> Some:
    """The next event of this kind; others are skipped."""
    while True:
        event = await events.receive()
        if isinstance(event, kind):
            return event


async def until(is_so: Callable[[], object]) -> None:
    """Let the other tasks run until the condition holds. Use it under a guard."""
    while not is_so():
        await trio.lowlevel.checkpoint()
