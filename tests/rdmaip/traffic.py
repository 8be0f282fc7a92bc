"""RDS traffic of one host, counted exactly: every message of every pair of addresses once, in order.

Each pair has a sender that numbers its messages and hashes them, and the receiver hashes what it gets in the order in which it comes; the
test compares both ends' counts and hashes. `serve` is what the zygote runs, one process for each host. Times are CLOCK_MONOTONIC, which
processes of one machine share.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

import rdsx
from rdmaip.zygote import receive_json, send_json

__all__ = ["serve"]

PORT = 4000
NUMBER = struct.Struct("=I")
PAYLOAD_BYTES = 200
GUARD_S = 15.0


@dataclass
class Tally:
    """One direction of a pair, at one end."""

    count: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    last_s: float = 0.0
    gap_s: float = 0.0
    gap_at_s: float = 0.0

    def add(self, message: bytes) -> None:
        self.count += 1
        self.digest.update(message)
        now_s = time.monotonic()
        if self.last_s and now_s - self.last_s > self.gap_s:
            self.gap_s, self.gap_at_s = now_s - self.last_s, now_s
        self.last_s = now_s

    def report(self) -> dict[str, object]:
        return {"count": self.count, "digest": self.digest.hexdigest(), "gap_s": self.gap_s, "gap_at_s": self.gap_at_s}


class Traffic:
    """What one host sends and receives."""

    def __init__(self, local: list[str], remote: list[str], interval_s: float) -> None:
        self.sent = {(source, target): Tally() for source in local for target in remote if (":" in source) == (":" in target)}
        self.received = {(target, source): Tally() for source, target in self.sent}
        self._interval_s = interval_s
        self._stopping = trio.Event()
        self._senders = 0
        self._stopped = trio.Event()

    async def receive(self, node: rdsx.Node, tasks: trio.Nursery) -> None:
        """Before any other host sends: a message to a port that nobody has bound is dropped."""
        for local in node.addresses:
            sock = node.socket()
            await sock.bind((local, PORT))
            tasks.start_soon(self._receive, sock, local)

    async def send(self, node: rdsx.Node, tasks: trio.Nursery) -> None:
        for source, target in self.sent:
            sock = node.socket()
            await sock.bind((source, 0))
            tasks.start_soon(self._send, sock, source, target)
            self._senders += 1

    async def _send(self, sock: rdsx.RdsSocket, source: str, target: str) -> None:
        tally = self.sent[source, target]
        next_s = trio.current_time()
        while not self._stopping.is_set():
            message = (NUMBER.pack(tally.count) + f"{source} {target}".encode()).ljust(PAYLOAD_BYTES)
            await sock.sendto(message, (target, PORT))
            tally.add(message)
            next_s = max(next_s + self._interval_s, trio.current_time())
            with trio.move_on_at(next_s):
                await self._stopping.wait()
        self._senders -= 1
        if not self._senders:
            self._stopped.set()

    async def _receive(self, sock: rdsx.RdsSocket, local: str) -> None:
        async for message, address in sock:
            self.received[str(address[0]), local].add(message)

    async def all_received(self, counts: dict[str, int]) -> None:
        """Wait for so many messages of each pair; what is still missing after the guard, the report shows."""
        with trio.move_on_after(GUARD_S):
            while any(self.received[pair].count < counts["-".join(pair)] for pair in self.received):
                await trio.sleep(0.002)

    async def stop(self) -> None:
        """No more is sent when this returns; it waits for those who wait for room."""
        self._stopping.set()
        await self._stopped.wait()

    def reset_gaps(self) -> None:
        for tally in self.received.values():
            tally.gap_s = 0.0


def serve(channel: socket.socket, local: list[str], remote: list[str], interval_s: float, settings: dict[str, Any]) -> None:
    trio.run(run, channel, local, remote, interval_s, rdsx.NodeConfig(**settings))


async def run(channel: socket.socket, local: list[str], remote: list[str], interval_s: float, config: rdsx.NodeConfig) -> None:
    channel.setblocking(False)
    traffic = Traffic(local, remote, interval_s)
    async with rdsx.open_node(local, config=config) as node, trio.open_nursery() as tasks:
        await traffic.receive(node, tasks)
        send_json(channel, {"state": "open"})
        while True:
            await trio.lowlevel.wait_readable(channel)
            message = receive_json(channel)
            if message is None:
                tasks.cancel_scope.cancel()
                return
            await obey(channel, message, traffic, node, tasks)


async def obey(channel: socket.socket, message: dict[str, Any], traffic: Traffic, node: rdsx.Node, tasks: trio.Nursery) -> None:
    match message["do"]:
        case "start":
            await traffic.send(node, tasks)
        case "stop":  # sending; what was sent is still under way
            await traffic.stop()
        case "reset gaps":
            traffic.reset_gaps()
        case "reset connections":
            for peer in {peer for _, peer in traffic.sent}:
                node.reset_connection(peer)
        case "await":
            await traffic.all_received(message["counts"])
    send_json(
        channel,
        {
            "state": message["do"],
            "sent": {"-".join(pair): tally.report() for pair, tally in traffic.sent.items()},
            "received": {"-".join(pair): tally.report() for pair, tally in traffic.received.items()},
            "drops": dict(node.statistics().drops),
            "connections": [asdict(connection) for connection in node.statistics().connections],
            "moves_survived": node.statistics().moves_survived,
        },
    )
