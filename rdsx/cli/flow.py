"""One flow: everything that one socket sends to one other. Owns the demo's datagram format, its sender and
its checker; does no I/O on sockets.

A flow is a stream of files, each after a frame with its number and size, cut into datagrams of varied length. A datagram starts with
a header: its number in the flow, how many empty datagrams went before it, the time, the offset in the stream. An empty datagram has no
room for a header, so the next header vouches for it; the last datagram of a flow is a header with `END`. The checker takes what the
receiving socket gives and counts: new, repeated, late. What is missing is only known at the end, by comparing with the sender's count.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections import deque
from collections.abc import Iterable
from typing import IO

from rdsx.cli.payload import SourceFile
from rdsx.cli.running import CliError

__all__ = ["MAX_DATAGRAM_BYTES", "FlowChecker", "FlowSender"]

MAX_DATAGRAM_BYTES = 1 << 20
HEADER = struct.Struct("<IIQQ")  # number from 0, empty datagrams before, send time in ns, stream offset
FRAME = struct.Struct("<IQ")  # file number, size
END = 1 << 63  # in the offset: the flow's last datagram
EMPTY_SHARE = 0.03
LARGEST_GAP = 1 << 20  # a number so far ahead is garbage, not a gap

# Share of datagrams and the powers of two between which their length lies.
BULK_LENGTHS = ((0.70, 5, 13), (0.25, 13, 16), (0.05, 16, 20))
LIGHT_LENGTHS = ((0.95, 5, 10), (0.05, 10, 15))


class FlowSender:
    """Cuts the flow's files into datagrams: call `next_datagram` until it gives None."""

    def __init__(self, files: Iterable[tuple[int, SourceFile]], seed: str, *, bulk: bool) -> None:
        self._files = deque(files)
        self._random = random.Random(seed)
        self._lengths = BULK_LENGTHS if bulk else LIGHT_LENGTHS
        self._unread = sum(FRAME.size + file.size for _, file in self._files)
        self._longest_due = bulk  # one datagram of the full length, as soon as there is enough to fill it
        self._frame = b""
        self._file: IO[bytes] | None = None
        self._file_left = 0
        self._offset = 0
        self.ended = False
        self.sent = 0  # with a header, the last one included
        self.sent_empty = 0

    def next_datagram(self, now_ns: int) -> bytes | None:
        """The next datagram, stamped with `now_ns`; None after the last."""
        if self.ended:
            return None
        if self._random.random() < EMPTY_SHARE:
            self.sent_empty += 1
            return b""
        length = min(self._choose_length() - HEADER.size, self._unread)
        self.ended = self._unread == 0
        header = HEADER.pack(self.sent, self.sent_empty, now_ns, self._offset | (END if self.ended else 0))
        self.sent += 1
        self._offset += length
        self._unread -= length
        return b"".join((header, *self._read(length)))

    def close(self) -> None:
        """Close the file that is being read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _choose_length(self) -> int:
        if self._longest_due and self._unread >= MAX_DATAGRAM_BYTES:
            self._longest_due = False
            return MAX_DATAGRAM_BYTES
        share = self._random.random()
        for part, low, high in self._lengths:
            share -= part
            if share < 0:
                return int(2 ** self._random.uniform(low, high))
        return HEADER.size + 1

    def _read(self, length: int) -> Iterable[bytes]:
        # Files are read here and not in a thread: they were just hashed, so they are in the page cache.
        while length:
            if self._frame:
                piece, self._frame = self._frame[:length], self._frame[length:]
            elif self._file_left:
                assert self._file is not None
                piece = self._file.read(min(length, self._file_left))
                if not piece:
                    self._file.close()
                    raise CliError(f"{self._file.name} became shorter while it was sent; give a directory that is not being written to")
                self._file_left -= len(piece)
            else:
                self._open_next()
                continue
            length -= len(piece)
            yield piece

    def _open_next(self) -> None:
        self.close()
        index, source = self._files.popleft()
        self._frame = FRAME.pack(index, source.size)
        self._file_left = source.size
        if source.size:
            self._file = open(source.path, "rb")  # noqa: SIM115  closed by close(), or when the next one is opened


class FlowChecker:
    """Takes a flow's datagrams as they are delivered, counts every deviation, and hashes the files in them."""

    def __init__(self, files: list[SourceFile]) -> None:
        self._files = files
        self._expected = 0
        self._missing: set[int] = set()
        self._empty_drift = 0
        self._stream = bytearray()
        self._offset = 0
        self._broken = False
        self._hash = hashlib.sha256()
        self._file: SourceFile | None = None
        self._file_left = 0
        self.ended = False
        self.delivered = 0  # different ones with a header
        self.delivered_empty = 0
        self.duplicated = 0
        self.out_of_order = 0
        self.corrupted = 0
        self.files_verified = 0
        self.files_wrong: list[str] = []

    def take(self, datagram: bytes) -> int | None:
        """Count a datagram. Returns its send time if it has one and is new."""
        if not datagram:
            self.delivered_empty += 1
            return None
        if len(datagram) < HEADER.size:
            self.corrupted += 1
            return None
        number, empty_before, sent_ns, offset = HEADER.unpack_from(datagram)
        if number - self._expected > LARGEST_GAP:
            self.corrupted += 1
            return None
        if not self._take_number(number):
            return None
        self._check_empty(empty_before)
        self.delivered += 1
        self.ended = self.ended or bool(offset & END)
        if len(datagram) > HEADER.size:
            self._take_stream(offset & ~END, memoryview(datagram)[HEADER.size :])
        return int(sent_ns)

    def _take_number(self, number: int) -> bool:
        """True if this number is new."""
        if number == self._expected:
            self._expected += 1
        elif number > self._expected:
            self._missing.update(range(self._expected, number))
            self._expected = number + 1
        elif number in self._missing:
            self._missing.remove(number)
            self.out_of_order += 1
        else:
            self.duplicated += 1
            return False
        return True

    def _check_empty(self, empty_before: int) -> None:
        """Empty datagrams look alike: one that comes too early or late shows as a difference that goes away again."""
        drift = self.delivered_empty - empty_before
        self.out_of_order += max(abs(self._empty_drift) - abs(drift), 0)
        self._empty_drift = drift

    def _take_stream(self, offset: int, data: memoryview) -> None:
        if self._broken or offset != self._offset:
            self._broken = True  # the rest of the flow's files count as not verified
            return
        self._offset += len(data)
        while data or (self._file is not None and not self._file_left):
            if self._file is None:
                data = self._take_frame(data)
                continue
            part = data[: self._file_left]
            self._hash.update(part)
            self._file_left -= len(part)
            data = data[len(part) :]
            if not self._file_left:
                self._finish_file(self._file)

    def _take_frame(self, data: memoryview) -> memoryview:
        wanted = FRAME.size - len(self._stream)
        self._stream += data[:wanted]
        if len(self._stream) == FRAME.size:
            index, size = FRAME.unpack(self._stream)
            self._stream.clear()
            if index >= len(self._files):
                self._broken = True
                self.corrupted += 1
                return data[:0]
            self._file, self._file_left, self._hash = self._files[index], size, hashlib.sha256()
        return data[wanted:]

    def _finish_file(self, file: SourceFile) -> None:
        if self._hash.hexdigest() == file.sha256:
            self.files_verified += 1
        else:
            self.files_wrong.append(file.path)
        self._file = None
