"""A million messages over real sockets, with the connection cut every ten thousand: nothing lost, nothing twice, all in order."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
import trio

import rdsx
from kernelkit import free_port, resident_bytes, until

A, B = "127.0.0.2", "127.0.0.9"
MESSAGES = 1_000_000
CUT_EVERY = 10_000
FLOWS_EACH_WAY = 3
BATCH = 250
GUARD_S = 120
STAMP = struct.Struct(">IQ")
FLAT_BYTES = 16 << 20


class Flow:
    """One socket that sends to one socket of the other node; the receiver checks number and filling of each message."""

    def __init__(self, number: int, sender: rdsx.RdsSocket, receiver: rdsx.RdsSocket, count: int) -> None:
        self.number = number
        self.sender = sender
        self.receiver = receiver
        self.count = count
        self.received = 0

    def texts(self, start: int) -> Iterator[bytes]:
        for number in range(start, min(start + BATCH, self.count)):
            yield STAMP.pack(self.number, number) + bytes(number % 29)

    async def send(self) -> None:
        to = self.receiver.getsockname()
        for start in range(0, self.count, BATCH):
            await self.sender.sendmmsg([(text, to) for text in self.texts(start)])
        await self.sender.flush()

    async def receive(self) -> None:
        source = self.sender.getsockname()
        while self.received < self.count:
            for data, address in await self.receiver.recvmmsg(BATCH):
                expected = STAMP.pack(self.number, self.received) + bytes(self.received % 29)
                assert data == expected, f"flow {self.number}: {STAMP.unpack_from(data)} where {self.received} was due"
                assert address == source
                self.received += 1


@pytest.mark.soak
async def test_a_million_messages_with_a_cut_every_ten_thousand() -> None:
    port = free_port(A, B)
    config = rdsx.NodeConfig(port=port)
    cuts = 0
    memory: list[int] = []
    with trio.fail_after(GUARD_S):
        async with rdsx.open_node(A, config=config) as a, rdsx.open_node(B, config=config) as b:
            flows = []
            for number in range(2 * FLOWS_EACH_WAY):
                here, there = (a, b) if number % 2 else (b, a)
                flows.append(Flow(number, await here.bind(), await there.bind(), MESSAGES // (2 * FLOWS_EACH_WAY)))
            total = sum(flow.count for flow in flows)

            async def cut() -> None:
                """Cut as soon as the next ten thousand have arrived and there is a connection; the nodes take turns."""
                nonlocal cuts
                while (due := (cuts + 1) * CUT_EVERY) < total:
                    await until(lambda: sum(flow.received for flow in flows) >= due)
                    node, peer = ((a, B), (b, A))[cuts % 2]
                    await until(lambda: node.reset_connection(peer))  # noqa: B023  used within the loop
                    cuts += 1
                    if cuts == total // CUT_EVERY // 5:
                        memory.append(resident_bytes())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut)
                for flow in flows:
                    nursery.start_soon(flow.send)
                    nursery.start_soon(flow.receive)
            memory.append(resident_bytes())

            for flow in flows:
                assert flow.received == flow.count
                with pytest.raises(trio.WouldBlock):
                    flow.receiver.recv_nowait()
                assert flow.sender.statistics().unacknowledged_messages == 0
                assert flow.receiver.statistics().queued_bytes == 0
            assert cuts == (total - 1) // CUT_EVERY
            for node in (a, b):
                stats = node.statistics()
                assert stats.queued_bytes == 0
                assert stats.connections[0].links > cuts // 2
                assert stats.drops["reset_by_user"] >= cuts // 4  # some hit a connection that the other node's cut had just ended
                assert set(stats.drops) <= {"reset_by_user", "reset_by_peer", "closed_by_peer", "superseded", "refused"}
            assert a.statistics().connections[0].retransmitted_messages + b.statistics().connections[0].retransmitted_messages > 0
            assert memory[1] - memory[0] < FLAT_BYTES
