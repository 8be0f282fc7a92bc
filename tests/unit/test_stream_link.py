"""StreamLink on a stream that a test makes: how it shares the scheduler with others."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from fastkit import MIB, Side, frame, map_frame
from rdsx.transports.stream import READ_TURN_BYTES, StreamLink

SCRATCH_BYTES = 262144  # one read at most
FRAME = frame(1, bytes(952))  # a kernel may send the same sequence again and again


class Flood:
    """A stream with so many bytes to read that it never runs empty; then it ends. Takes nothing."""

    def __init__(self, total_bytes: int) -> None:
        self._data = memoryview((map_frame() + FRAME * (total_bytes // len(FRAME)))[:total_bytes])
        self.read_bytes = 0

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        raise BlockingIOError

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        before = self.read_bytes
        for buffer in buffers:
            piece = self._data[self.read_bytes : self.read_bytes + len(buffer)]
            buffer[: len(piece)] = piece
            self.read_bytes += len(piece)
        return self.read_bytes - before

    async def wait_readable(self) -> None:
        assert self.read_bytes == len(self._data)  # only then is a read short
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        await trio.sleep_forever()

    def unacknowledged(self) -> int:
        return 0

    def progress(self) -> None:
        return None

    def shutdown_write(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Nobody:
    """See rdsx.transports.base.LinkOwner. Decides nothing."""

    def heard_hello(self, extensions: bytes, ack: int) -> None:
        pass

    def heard_probe(self, extensions: bytes, sport: int) -> None:
        pass

    def heard_map(self, freed: int) -> None:
        pass

    def attend(self) -> None:
        pass

    def owes_acks(self) -> None:
        pass


class Passes(trio.abc.Instrument):
    """Notes how much was read by each pass through the scheduler."""

    def __init__(self, stream: Flood) -> None:
        self._stream = stream
        self.marks = [0]

    def before_io_wait(self, timeout: float) -> None:
        self.marks.append(self._stream.read_bytes)


async def test_a_stream_that_never_runs_empty_lets_others_run() -> None:
    stream = Flood(4 * MIB)
    passes = Passes(stream)
    link = StreamLink(stream, Side("10.0.0.1", "10.0.0.2").path, Nobody(), hello_timeout_s=1.0)
    trio.lowlevel.add_instrument(passes)
    assert await link.run() == "closed_by_peer"
    trio.lowlevel.remove_instrument(passes)
    assert stream.read_bytes == 4 * MIB
    assert max(after - before for before, after in zip(passes.marks, passes.marks[1:], strict=False)) < READ_TURN_BYTES + SCRATCH_BYTES
