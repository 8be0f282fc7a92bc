"""Cases of `_rings`: posting and polling, on a made-up device that carries at once. The device's work is in the totals, and not in
our own instructions."""

from __future__ import annotations

import ctypes
from itertools import repeat
from typing import Any

from benchmarks.micro.case import Measure, case
from benchmarks.micro.fast import BATCH, LARGE, PEER, SMALL, make_batch, make_core
from rdsx._fast import BindTable, CongestionMap, Endpoint, Path, pack_header
from rdsx._rings import Rings, ring_bytes
from tests.fakenic import FakeNic

HOST = "10.0.0.1"
SLOTS = 512
LKEY = 77
LARGE_BATCH = 16
QUEUE_BYTES = 1 << 30  # no queue is ever full
ACK_REQUIRED = 2


class Side:
    """One end of a queue pair, with an endpoint; its peer is rdsx."""

    def __init__(self, host: str, peer: str, port: int, *, sink: bool = False, packed: bool = False) -> None:
        table = BindTable(make_core(), host)
        self.path = table.routes[peer] = Path(table, peer, CongestionMap(), header_acks=True)
        self.endpoint = Endpoint(QUEUE_BYTES, QUEUE_BYTES)
        table.bind(self.endpoint, port)
        size = ring_bytes(SLOTS, SLOTS)
        self._memory = ctypes.create_string_buffer(size)
        memory = ctypes.addressof(self._memory)
        self.nic = FakeNic(memory=memory, memory_bytes=size, lkey=LKEY, send_depth=SLOTS, receive_depth=SLOTS, automatic=True, sink=sink)
        slots = {"send_slots": SLOTS, "receive_slots": SLOTS}
        self.rings = Rings(self.path, self.nic, memory=memory, memory_bytes=size, lkey=LKEY, **slots, packed=packed)
        self.rings.post_receives()
        self.path.open(b"")

    def settle(self) -> None:
        """As a link does between two waits."""
        self.rings.transmit()
        while self.rings.poll():
            self.rings.transmit()


def opened_pair(*, packed: bool) -> tuple[Side, Side]:
    a, b = Side(HOST, PEER, 4000, packed=packed), Side(PEER, HOST, 4001, packed=packed)
    a.nic.connect(b.nic)
    for side in (a, b, a, b):
        side.settle()
    return a, b


@case("rings post 64 B", operations=BATCH)
async def post_small(measure: Measure) -> None:
    """Submit, post with one doorbell, and poll what completes: 16 sends, and one frame that acknowledges all of them."""
    side = Side(HOST, PEER, 4000, sink=True)
    side.nic.inject(pack_header(0, 0, 0, 0, 0, checksum=True))
    side.settle()
    batch = make_batch(SMALL)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            side.endpoint.submit_many(batch)
            side.rings.transmit()
            side.nic.inject(pack_header(0, side.path.next_sequence - 1, 0, 0, 0, checksum=True))
            side.settle()

    await measure(loop)


@case("rings poll 64 B", operations=BATCH)
async def poll_small(measure: Measure) -> None:
    """Poll frames, deliver their messages, post their slots again, and acknowledge once for each batch of 32."""
    side = Side(HOST, PEER, 4000, sink=True)
    side.path.peer_is_kernel = True  # whose numbers may begin anew
    frames = [pack_header(sequence, 0, len(SMALL), 4001, 4000, ACK_REQUIRED, checksum=True) + SMALL for sequence in range(1, BATCH + 1)]
    side.nic.inject(pack_header(0, 0, 0, 0, 0, checksum=True))
    side.settle()

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            for frame in frames:
                side.nic.inject(frame)
            side.settle()
            side.endpoint.take_many(BATCH)

    await measure(loop)


@case("rings both ends 64 B", operations=BATCH)
async def exchange_small(measure: Measure) -> None:
    await exchange(measure, make_batch(SMALL))


@case("rings both ends 64 B, packed", operations=BATCH)
async def exchange_packed(measure: Measure) -> None:
    """As two rdsx nodes do: 146 messages in a frame."""
    await exchange(measure, make_batch(SMALL), packed=True)


@case("rings both ends 64 KiB", operations=LARGE_BATCH)
async def exchange_large(measure: Measure) -> None:
    await exchange(measure, make_batch(LARGE, count=LARGE_BATCH))


async def exchange(measure: Measure, batch: list[Any], *, packed: bool = False) -> None:
    """From one socket's send queue to the other's receive queue and back with the acknowledgement."""
    a, b = opened_pair(packed=packed)
    count = len(batch)

    async def loop(rounds: int) -> None:
        for _ in repeat(None, rounds):
            a.endpoint.submit_many(batch)
            a.settle()
            b.settle()
            b.endpoint.take_many(count)
            a.settle()

    await measure(loop)
