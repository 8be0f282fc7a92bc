"""Cases of `_fast`: headers, fragments, congestion maps, ports, queues and rings."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from benchmarks.micro.case import Measure, case
from rdsx._fast import (
    BindTable,
    CongestionMap,
    Core,
    Endpoint,
    Path,
    Reassembly,
    Ring,
    checksum,
    fragments,
    pack_header,
    unpack_extensions,
    unpack_header,
    verify_checksum,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BATCH", "HOST", "LARGE", "SMALL", "make_batch", "make_path"]

HOST, PEER = "10.0.0.1", "10.0.0.2"
SMALL, LARGE = bytes(64), bytes(65536)
BATCH = 256
QUEUE_BYTES = 1 << 30  # no queue is ever full
EXTENSIONS = bytes([5, 0, 8, 6, 0, 0, 0, 7]).ljust(16, b"\0")  # what a probe carries: number of paths, generation
HEADER = pack_header(7, 3, 64, 4000, 4001, extensions=EXTENSIONS, checksum=True)
MAP_BYTES = 8192


def make_core() -> Core:
    return Core(
        max_message_bytes=1 << 20,
        max_peer_queued_bytes=QUEUE_BYTES,
        max_node_queued_bytes=QUEUE_BYTES,
        max_unacked_packets=8,
        max_unacked_bytes=16 << 20,
        answer_pings=True,
    )


def make_path(*, peer_acks: bool = True) -> tuple[Path, Endpoint]:
    """A path from port 4000 of HOST to PEER, which is another rdsx unless `peer_acks` is false."""
    table = BindTable(make_core(), HOST)
    path = table.routes[PEER] = Path(table, PEER, CongestionMap())
    path.peer_acks = peer_acks
    endpoint = Endpoint(QUEUE_BYTES, QUEUE_BYTES)
    table.bind(endpoint, 4000)
    return path, endpoint


def make_loopback() -> Endpoint:
    """A socket that can send to itself."""
    table = BindTable(make_core(), HOST)
    table.routes[HOST] = Path(table, HOST, table.congestion, peer_table=table)
    endpoint = Endpoint(QUEUE_BYTES, QUEUE_BYTES)
    table.bind(endpoint, 4000)
    return endpoint


def make_batch(payload: Buffer, *, host: str = PEER, port: int = 4001, count: int = BATCH) -> list[tuple[Buffer, tuple[Any, ...]]]:
    """What `submit_many` takes: the same message again and again."""
    return [(payload, (host, port))] * count


# -- headers


@case("header pack")
async def pack(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            pack_header(7, 3, 64, 4000, 4001)

    await measure(loop)


@case("header pack with checksum")
async def pack_with_checksum(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            pack_header(7, 3, 64, 4000, 4001, checksum=True)

    await measure(loop)


@case("header unpack")
async def unpack(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            unpack_header(HEADER)

    await measure(loop)


@case("header checksum")
async def compute_checksum(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            checksum(HEADER)

    await measure(loop)


@case("header verify")
async def verify(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            verify_checksum(HEADER)

    await measure(loop)


@case("extensions pack")
async def pack_extensions(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            pack_header(7, 3, 0, 1, 0, 0, 0, EXTENSIONS)

    await measure(loop)


@case("extensions unpack")
async def take_extensions(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            unpack_extensions(EXTENSIONS)

    await measure(loop)


# -- fragments


@case("fragments 64 B")
async def fragment_small(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            fragments(7, 3, 4000, 4001, SMALL)

    await measure(loop)


@case("fragments 64 KiB", counted_rounds=256)
async def fragment_large(measure: Measure) -> None:
    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            fragments(7, 3, 4000, 4001, LARGE)

    await measure(loop)


@case("reassembly 64 B")
async def reassemble_small(measure: Measure) -> None:
    (whole,) = fragments(7, 3, 4000, 4001, SMALL)
    reassembly = Reassembly(1 << 20)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            reassembly.feed(whole)

    await measure(loop)


@case("reassembly 64 KiB", counted_rounds=256)
async def reassemble_large(measure: Measure) -> None:
    pieces = fragments(7, 3, 4000, 4001, LARGE)
    reassembly = Reassembly(1 << 20)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            for piece in pieces:
                reassembly.feed(piece)

    await measure(loop)


# -- congestion maps


@case("congestion test")
async def test_port(measure: Measure) -> None:
    congestion = CongestionMap()
    congestion.set(4000)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            congestion.test(4001)

    await measure(loop)


@case("congestion set and clear")
async def set_port(measure: Measure) -> None:
    congestion = CongestionMap()

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            congestion.set(4001)
            congestion.clear(4001)

    await measure(loop)


@case("congestion replace", operations=2, counted_rounds=64)
async def replace_map(measure: Measure) -> None:
    """What a received map costs: one port became full, one became free."""
    congestion = CongestionMap()
    received = []
    for port in (4000, 4001):
        bits = bytearray(MAP_BYTES)
        bits[port >> 3] |= 1 << (port & 7)
        received.append(bytes(bits))

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            for bits in received:
                congestion.replace(bits)

    await measure(loop)


@case("congestion freed among 64")
async def find_freed(measure: Measure) -> None:
    congestion = CongestionMap()
    waiting = range(4000, 4064)
    for port in waiting:
        congestion.set(port)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            congestion.freed(waiting)

    await measure(loop)


# -- ports


@case("ports find")
async def find(measure: Measure) -> None:
    table = BindTable(make_core(), HOST)
    endpoint = Endpoint(QUEUE_BYTES, QUEUE_BYTES)
    table.bind(endpoint, 4000)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            table.find(4000)

    await measure(loop)


@case("ports bind and close")
async def bind_and_close(measure: Measure) -> None:
    table = BindTable(make_core(), HOST)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint = Endpoint(QUEUE_BYTES, QUEUE_BYTES)
            table.bind(endpoint, 4000)
            endpoint.close()

    await measure(loop)


@case("ports free_port behind 256")
async def free_port(measure: Measure) -> None:
    table = BindTable(make_core(), HOST)
    endpoints = [Endpoint(QUEUE_BYTES, QUEUE_BYTES) for _ in range(256)]
    for port, endpoint in enumerate(endpoints, 4000):
        table.bind(endpoint, port)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            table.free_port(4000)

    await measure(loop)


# -- endpoints: each message is queued over loopback, which is an append without anything around it


@case("receive append and take")
async def take(measure: Measure) -> None:
    endpoint = make_loopback()
    path = endpoint.table.routes[HOST]

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_to(SMALL, path, 4000)
            endpoint.take()

    await measure(loop)


@case("receive append and take_many", operations=BATCH)
async def take_many(measure: Measure) -> None:
    endpoint = make_loopback()
    batch = make_batch(SMALL, host=HOST, port=4000)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_many(batch)
            endpoint.take_many(BATCH)

    await measure(loop)


@case("send submit", operations=BATCH)
async def submit(measure: Measure) -> None:
    """A round ends with `clear()`, so the release of each message is in the figure, here and below."""
    path, endpoint = make_path()
    address = (PEER, 4001)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            for _ in repeat(None, BATCH):
                endpoint.submit(SMALL, address)
            path.clear()

    await measure(loop)


@case("send submit_many", operations=BATCH)
async def submit_many(measure: Measure) -> None:
    path, endpoint = make_path()
    batch = make_batch(SMALL)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_many(batch)
            path.clear()

    await measure(loop)


@case("send submit_many of bytearrays", operations=BATCH)
async def submit_mutable(measure: Measure) -> None:
    path, endpoint = make_path()
    batch = make_batch(bytearray(SMALL))

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            endpoint.submit_many(batch)
            path.clear()

    await measure(loop)


# -- rings


@case("ring allocate and release")
async def ring_slots(measure: Measure) -> None:
    ring = Ring(1024)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            ring.allocate(16)
            ring.release(16)

    await measure(loop)
