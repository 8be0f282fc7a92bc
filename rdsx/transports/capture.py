"""What a node's links carry, as a pcapng file that Wireshark and tcpdump open.

`CaptureNetwork` is a `Network` around another one: every stream that this makes is recorded beside its use, one call for each read
and each write. Headers of IP and TCP are made up around the bytes: addresses, the listening port, order, times and contents are true,
the dialling port and the TCP numbers are not. A packet holds bytes of one RDS message only, and PSH marks the one that ends it: no tool
dissects RDS over TCP, so packets that begin with the RDS header are what makes a list of them readable, and finding where messages
end takes no more than following `h_len`. That is Python for each message, paid while capturing and at no other time. Invariant: nothing
that goes wrong with the file reaches a link.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

import rdsx
from rdsx.addresses import Host
from rdsx.moves import Changes, Watched
from rdsx.transports.base import ByteStream, Listener, Network

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

__all__ = ["CaptureNetwork"]

log = logging.getLogger("rdsx.capture")

MAX_BYTES = 67108864
MAX_PACKET_BYTES = 65535
MAX_SEGMENT_BYTES = MAX_PACKET_BYTES - 60  # behind the headers of IPv6 and TCP
EPHEMERAL_PORTS = range(49152, 65536)
COMMENT = "Recorded inside an rdsx node. The dialling port, TCP numbers and checksums are made up; PSH marks the end of an RDS message."

HEADER_BYTES = 48
LENGTH = struct.Struct(">I")
LENGTH_AT = 16

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TCP = struct.Struct(">HHIIBBHHH")
IPV4 = struct.Struct(">BBHHHBBH4s4s")
IPV6 = struct.Struct(">IHBB16s16s")
TCP_PROTOCOL, TTL, DONT_FRAGMENT, WINDOW = 6, 64, 0x4000, 65535

# pcapng: block types, option codes, directions.
SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
OPT_END, OPT_COMMENT, IF_NAME, EPB_FLAGS, SHB_USERAPPL = 0, 1, 2, 2, 4
INBOUND, OUTBOUND = 1, 2
LINKTYPE_RAW = 101
NOTICE_BYTES = 128  # room for the last block, which says why there is no more

RESETS = (errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED)


class CaptureNetwork:
    """A network whose streams are recorded. Give it to `open_node(address, transport=…)` in the place of the one it wraps.

    Args:
        network: the network to record, such as `TcpNetwork(config)` or a `VirtualNetwork`.
        file: where to write: a path, which is overwritten, or a binary file open for writing, which is not closed. Each read and each
            write of a link is in it when the call returns; a file that blocks stops the node meanwhile.
        max_bytes: size at which recording stops, with a warning to the logger `rdsx.capture`.
        snaplen: record only so many bytes of each packet, IP and TCP headers included; 88 shows RDS headers over IPv4.
        wall_clock: seconds since the epoch; give `config.wall_clock` if you have set that.

    One node to one of these: of two nodes on one, each message between them is recorded twice, at either end. Close it when the
    node is closed, or use it in `with`. An error of the file later than here is logged and ends the recording, not the node.

    Raises:
        OSError: the file cannot be opened or written.
        ValueError: `max_bytes` or `snaplen` is below 1.
    """

    def __init__(
        self,
        network: Network,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        max_bytes: int = MAX_BYTES,
        snaplen: int = MAX_PACKET_BYTES,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < 1 or snaplen < 1:
            raise ValueError(f"max_bytes and snaplen must be at least 1, not {max_bytes} and {snaplen}")
        self.name = network.name
        self._network = network
        self._file = CaptureFile(file, max_bytes, min(snaplen, MAX_PACKET_BYTES), wall_clock)
        self._ports = itertools.cycle(EPHEMERAL_PORTS)

    def close(self) -> None:
        """Record no more, and close the file if it was opened here. Twice is harmless; links go on."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def watch(self, hosts: Iterable[Host]) -> Changes | None:
        """See `moves.Watched`."""
        return self._network.watch(hosts) if isinstance(self._network, Watched) else None

    async def listen(self, local: Host, port: int) -> CapturedListener:
        return CapturedListener(await self._network.listen(local, port), self, local, port)

    async def connect(self, local: Host, remote: Host, port: int) -> CapturedStream:
        tape = self.tape(local, next(self._ports), remote, port)
        tape.here.put(SYN)
        try:
            stream = await self._network.connect(local, remote, port)
        except OSError as error:
            if error.errno in RESETS:
                tape.broken(error)
            raise
        tape.there.put(SYN | ACK)
        tape.here.put(ACK)
        return CapturedStream(stream, tape)

    def accepted(self, stream: ByteStream, local: Host, port: int, remote: Host) -> CapturedStream:
        tape = self.tape(local, port, remote, next(self._ports))
        tape.there.put(SYN)
        tape.here.put(SYN | ACK)
        tape.there.put(ACK)
        return CapturedStream(stream, tape)

    def tape(self, local: Host, local_port: int, remote: Host, remote_port: int) -> Tape:
        interface = self._file.interface(f"{self.name} {local.key}")
        return Tape(self._file, interface, (local.ip.packed, local_port), (remote.ip.packed, remote_port))


class CapturedListener:
    """See `transports.base.Listener`."""

    def __init__(self, listener: Listener, network: CaptureNetwork, local: Host, port: int) -> None:
        self._listener = listener
        self._network = network
        self._local = local
        self._port = port

    async def accept(self) -> tuple[CapturedStream, Host]:
        stream, remote = await self._listener.accept()
        return self._network.accepted(stream, self._local, self._port, remote), remote

    def close(self) -> None:
        self._listener.close()


class CapturedStream:
    """See `transports.base.ByteStream`."""

    def __init__(self, stream: ByteStream, tape: Tape) -> None:
        self._stream = stream
        self._tape = tape
        self.wait_readable = stream.wait_readable
        self.wait_writable = stream.wait_writable
        self.unacknowledged = stream.unacknowledged
        self.progress = stream.progress

    def send(self, buffers: Sequence[Buffer]) -> int:
        try:
            count = self._stream.send(buffers)
        except BlockingIOError:
            raise
        except OSError as error:
            self._tape.broken(error)
            raise
        self._tape.here.carry(buffers, count)
        return count

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        try:
            count = self._stream.receive_into(buffers)
        except BlockingIOError:
            raise
        except OSError as error:
            self._tape.broken(error)
            raise
        if count:
            self._tape.there.carry(buffers, count)
        else:
            self._tape.there.end(FIN)
        return count

    def shutdown_write(self) -> None:
        self._stream.shutdown_write()
        self._tape.here.end(FIN)

    def close(self) -> None:
        self._stream.close()
        self._tape.here.end(FIN)

    def abort(self) -> None:
        self._stream.abort()
        self._tape.here.end(RST)


class Tape:
    """The two ends of a stream, ours and the peer's."""

    def __init__(self, file: CaptureFile, interface: int, local: tuple[bytes, int], remote: tuple[bytes, int]) -> None:
        self.here = End(file, interface, OUTBOUND, *local)
        self.there = End(file, interface, INBOUND, *remote)
        self.here.peer, self.there.peer = self.there, self.here

    def broken(self, error: OSError) -> None:
        """A reset: the peer's if the error says so, otherwise ours, of a stream that our TCP has given up."""
        (self.there if error.errno in RESETS else self.here).end(RST, error.strerror or str(error))
        self.here.ended = self.there.ended = True


class End:
    """What one end of a stream sends."""

    def __init__(self, file: CaptureFile, interface: int, direction: int, address: bytes, port: int) -> None:
        self.peer: End
        self.sequence = 0
        self.ended = False
        self._file = file
        self._interface = interface
        self._direction = direction
        self._address = address
        self._port = port
        self._header = bytearray()  # of the next message, as far as it is there
        self._left: int | None = None  # bytes of a message's payload to come; None: its header is not complete

    def carry(self, buffers: Sequence[Buffer], count: int) -> None:
        """Record the first `count` bytes of the buffers."""
        if not self._file.is_recording:
            return
        data = memoryview(b"".join(leading(buffers, count)))
        now_us = self._file.now_us()
        blocks = []
        for start, end, is_whole in self._messages(data):
            for at in range(start, end, MAX_SEGMENT_BYTES):
                piece = data[at : min(at + MAX_SEGMENT_BYTES, end)]
                is_last = is_whole and at + len(piece) == end
                blocks.append(self._packet(now_us, ACK | PSH if is_last else ACK, piece))
        self._file.write(b"".join(blocks))

    def put(self, flags: int, comment: str = "") -> None:
        """Record a packet without data."""
        if self._file.is_recording:
            self._file.write(self._packet(self._file.now_us(), flags, b"", comment))

    def end(self, flag: int, comment: str = "") -> None:
        """Record FIN or RST, once; a RST also behind a FIN that the other end has not answered."""
        if not self.ended or (flag == RST and not self.peer.ended):
            self.ended = True
            self.put(flag | ACK, comment)

    def _messages(self, data: memoryview) -> Iterator[tuple[int, int, bool]]:
        """`data` cut where messages end: start and end of each piece, and whether it ends one."""
        start = end = 0
        while start < len(data):
            if self._left is None:
                end = min(start + HEADER_BYTES - len(self._header), len(data))
                self._header += data[start:end]
                if len(self._header) == HEADER_BYTES:
                    (self._left,) = LENGTH.unpack_from(self._header, LENGTH_AT)
                    self._header.clear()
            if self._left is not None:
                step = min(self._left, len(data) - end)
                self._left -= step
                end += step
            is_whole = self._left == 0
            if is_whole:
                self._left = None
            yield start, end, is_whole
            start = end

    def _packet(self, now_us: int, flags: int, data: bytes | memoryview, comment: str = "") -> bytes:
        """A pcapng block; takes the sequence numbers of what it holds."""
        length = TCP.size + len(data)
        acknowledged = self.peer.sequence if flags & ACK else 0
        fields = (self._port, self.peer._port, self.sequence % 2**32, acknowledged % 2**32, TCP.size << 2, flags, WINDOW)
        pseudo_header = self._address + self.peer._address + struct.pack(">II", length, TCP_PROTOCOL)
        segment = TCP.pack(*fields, checksum(pseudo_header + TCP.pack(*fields, 0, 0) + data), 0)
        self.sequence += len(data) + bool(flags & (SYN | FIN))
        if len(self._address) == 4:
            ip = [0x45, 0, IPV4.size + length, 0, DONT_FRAGMENT, TTL, TCP_PROTOCOL, 0, self._address, self.peer._address]
            ip[7] = checksum(IPV4.pack(*ip))
            packet = IPV4.pack(*ip) + segment + data
        else:
            packet = IPV6.pack(6 << 28, length, TCP_PROTOCOL, TTL, self._address, self.peer._address) + segment + data
        kept = packet[: self._file.snaplen]
        body = struct.pack("=5I", self._interface, *halves(now_us), len(kept), len(packet)) + padded(kept)
        return block(PACKET, body, (EPB_FLAGS, struct.pack("=I", self._direction)), (OPT_COMMENT, comment.encode()))


def leading(buffers: Sequence[Buffer], count: int) -> Iterator[memoryview]:
    """The first `count` bytes of the buffers, which may have room for many more."""
    for buffer in buffers:
        if count == 0:
            break
        view = memoryview(buffer)[:count]
        count -= len(view)
        yield view


def checksum(data: bytes) -> int:
    """The Internet checksum: what makes the sum of all 16-bit words 0 in ones' complement."""
    return -int.from_bytes(data + bytes(len(data) & 1), "big") % 0xFFFF


# -- pcapng


def halves(time_us: int) -> tuple[int, int]:
    """A time as pcapng has it: the upper and the lower 32 bits."""
    return time_us >> 32, time_us & 0xFFFFFFFF


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def block(kind: int, body: bytes, *options: tuple[int, bytes]) -> bytes:
    """A pcapng block, in the byte order of this machine. Options without a value are left out."""
    present = [struct.pack("=HH", code, len(value)) + padded(value) for code, value in options if value]
    body += b"".join([*present, struct.pack("=HH", OPT_END, 0)]) if present else b""
    length = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + length + body + length


class CaptureFile:
    """The file, until it is full, fails or is closed."""

    def __init__(self, file: str | os.PathLike[str] | BinaryIO, max_bytes: int, snaplen: int, wall_clock: Callable[[], float]) -> None:
        self.snaplen = snaplen
        self.is_recording = True
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._interfaces: dict[str, int] = {}
        self._size = 0
        if isinstance(file, (str, os.PathLike)):
            self._is_ours, self._name = True, os.fspath(file)
            self._file = cast(BinaryIO, open(file, "wb", buffering=0))  # noqa: SIM115  close() closes it
        else:
            self._is_ours, self._name = False, str(getattr(file, "name", file))
            self._file = file
        version = (SHB_USERAPPL, f"rdsx {rdsx.__version__}".encode())
        try:
            self._put(block(SECTION, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1), (OPT_COMMENT, COMMENT.encode()), version))
        except BaseException:
            self.close()
            raise

    def now_us(self) -> int:
        return int(self._wall_clock() * 1e6)

    def interface(self, name: str) -> int:
        """The number of a local address in the file."""
        if name not in self._interfaces:
            self._interfaces[name] = len(self._interfaces)
            self.write(block(INTERFACE, struct.pack("=HHI", LINKTYPE_RAW, 0, self.snaplen), (IF_NAME, name.encode())))
        return self._interfaces[name]

    def write(self, blocks: bytes) -> None:
        """Whole blocks, if there is room for all of them. Raises nothing."""
        if not self.is_recording:
            return
        try:
            if self._size + len(blocks) + NOTICE_BYTES > self._max_bytes:
                notice = f"recording stopped: max_bytes={self._max_bytes} reached"
                self._put(block(STATISTICS, struct.pack("=III", 0, *halves(self.now_us())), (OPT_COMMENT, notice.encode())))
                self._stop(notice)
            else:
                self._put(blocks)
        except (OSError, ValueError) as error:  # ValueError: the user's file was closed
            self._stop(f"recording stopped: {error}")

    def close(self) -> None:
        self.is_recording = False
        if self._is_ours:
            try:
                self._file.close()
            except OSError as error:
                log.warning("%s: %s", self._name, error)

    def _stop(self, notice: str) -> None:
        log.warning("%s: %s", self._name, notice)
        self.close()

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                count = self._file.write(view)
                if not count:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[count:]
            self._file.flush()
        except OSError:
            if self._is_ours:
                with contextlib.suppress(OSError):  # leave no half block; a pipe cannot be cut
                    self._file.truncate(self._size)
            raise
        self._size += len(data)
