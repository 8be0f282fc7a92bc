"""Cases of `_stream`, and of the paths that it empties and fills: write, acknowledge, send again, read."""

from __future__ import annotations

from itertools import repeat

from benchmarks.micro.case import Measure, case
from benchmarks.micro.fast import BATCH, LARGE, SMALL, make_batch, make_path
from rdsx._fast import Path, pack_header
from rdsx._stream import StreamReader, StreamWriter

HELLO = b""  # of a link whose first map carries no extensions
LARGE_BATCH = 16
READ_BYTES = 16384


def frame(sequence: int, payload: bytes, ack: int = 0) -> bytes:
    return pack_header(sequence, ack, len(payload), 4001, 4000) + payload


def opened_writer(path: Path) -> StreamWriter:
    """The writer of a new link that has sent its first map."""
    path.open(HELLO)
    writer = StreamWriter(path)
    write_all(writer)
    return writer


def opened_reader(path: Path) -> StreamReader:
    """The reader of a new link that has met its first header."""
    reader = StreamReader(path)
    reader.feed(frame(0, b""))
    while reader.parse():
        pass
    return reader


def read(reader: StreamReader, data: bytes) -> None:
    """As a link does, of data that fills the first buffer at most."""
    reader.buffers()[0][: len(data)] = data
    reader.received(len(data))
    reader.parse()


def write_all(writer: StreamWriter) -> None:
    while buffers := writer.poll():
        writer.written(sum(map(len, buffers)))  # type: ignore[arg-type]  # these have a length in bytes


# -- paths


@case("path acknowledged by bytes", operations=BATCH)
async def retire_written(measure: Measure) -> None:
    """Submit, write, and hear from TCP that all of it arrived: a message to a kernel."""
    path, endpoint = make_path(peer_acks=False)
    writer = opened_writer(path)
    batch = make_batch(SMALL)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_many(batch)
            write_all(writer)
            path.retire_written(writer.position)

    await measure(loop)


@case("path acknowledged by h_ack", operations=BATCH)
async def retire_acknowledged(measure: Measure) -> None:
    """Submit, write, and read one header that acknowledges all of it: a message to another rdsx."""
    path, endpoint = make_path()
    writer, reader = opened_writer(path), opened_reader(path)
    batch = make_batch(SMALL)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_many(batch)
            write_all(writer)
            read(reader, frame(0, b"", ack=path.next_sequence - 1))

    await measure(loop)


@case("path resend after reset", operations=BATCH)
async def resend(measure: Measure) -> None:
    """A link is lost and another one made, which takes our map and all messages again."""
    path, endpoint = make_path()
    endpoint.submit_many(make_batch(SMALL))
    opened_writer(path)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            path.reset()
            opened_writer(path)

    await measure(loop)


# -- writers


@case("writer 64 B", operations=BATCH)
async def write_small(measure: Measure) -> None:
    """Only poll(): nothing is said to be written, so the same messages are given out again."""
    path, endpoint = make_path()
    writer = opened_writer(path)
    endpoint.submit_many(make_batch(SMALL))

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            writer.poll()

    await measure(loop)


@case("writer 64 KiB", operations=LARGE_BATCH)
async def write_large(measure: Measure) -> None:
    path, endpoint = make_path()
    writer = opened_writer(path)
    batch = make_batch(LARGE, count=LARGE_BATCH)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_many(batch)
            write_all(writer)
            path.retire_written(writer.position)

    await measure(loop)


# -- readers


@case("reader 64 B", operations=BATCH)
async def read_small(measure: Measure) -> None:
    path, endpoint = make_path()
    reader = opened_reader(path)
    wire = b"".join(frame(sequence, SMALL) for sequence in range(1, BATCH + 1))

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            path.next_receive = 1
            read(reader, wire)
            endpoint.take_many(BATCH)

    await measure(loop)


@case("reader 64 KiB")
async def read_large(measure: Measure) -> None:
    """The header and a part of the payload come in one read, the rest in another: received in place."""
    path, endpoint = make_path()
    reader = opened_reader(path)
    wire = frame(1, LARGE)
    parts = wire[:READ_BYTES], wire[READ_BYTES:]

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            path.next_receive = 1
            for part in parts:
                read(reader, part)
            endpoint.take()

    await measure(loop)
