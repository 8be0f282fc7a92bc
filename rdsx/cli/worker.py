"""One of the two node processes of `rdsx demo`. Owns a node, its sockets and their flows; talks to its parent in JSON lines on
stdin and stdout.

Invariant: it never outlives its parent: when standard input ends, so does the process. Each socket has a sender and a receiver task, so
that a full receiver never stops a sender that the other side is waiting for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import Any

import trio

import rdsx
from rdsx.cli.flow import MAX_DATAGRAM_BYTES, FlowChecker, FlowSender
from rdsx.cli.latency import Latencies
from rdsx.cli.payload import SourceFile
from rdsx.cli.running import CliError, run

__all__ = ["FIRST_PORT", "main"]

FIRST_PORT = 4000  # RDS port of a node's first socket
BATCH_MESSAGES = 32
BATCH_BYTES = 256 << 10
BUFFER_BYTES = MAX_DATAGRAM_BYTES  # a socket sends nothing longer than its buffer
PROGRESS_INTERVAL_S = 0.1


class Worker:
    """Runs the flows of one node as the parent's `job` says."""

    def __init__(self, job: dict[str, Any], node: rdsx.Node) -> None:
        self._node = node
        self._remote: str = job["remote"]
        self._cuts = deque[tuple[int, int]](job["cuts"])  # (its number, bytes to send before)
        self._files = [SourceFile(**fields) for fields in job["files"]]
        sockets: int = len(job["flows"])
        self._senders = [
            [
                FlowSender([(index, self._files[index]) for index in files], f"{job['seed']}/{i}/{j}", bulk=i == j)
                for j, files in enumerate(row)
            ]
            for i, row in enumerate(job["flows"])
        ]
        self._checkers = [[FlowChecker(self._files) for _ in range(sockets)] for _ in range(sockets)]  # [local][remote]
        self._ended = trio.Event()
        self._latencies = Latencies()
        self._cuts_made = 0
        self._cutting = trio.Lock()
        self._sent = self._sent_bytes = self._delivered = self._delivered_bytes = 0
        self._first_sent_ns = self._last_delivered_ns = 0

    async def run(self, sockets: list[rdsx.RdsSocket], commands: trio.MemoryReceiveChannel[str]) -> None:
        """Send and receive everything, then report and wait for the parent to say `stop`."""
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._report_progress)
            tasks.start_soon(self._announce_end, sockets)
            for index, sock in enumerate(sockets):
                tasks.start_soon(self._receive, sock, self._checkers[index])
            async for command in commands:
                if command == "report":
                    _emit("result", **self._result())
                elif command == "stop":
                    break
            tasks.cancel_scope.cancel()

    async def _announce_end(self, sockets: list[rdsx.RdsSocket]) -> None:
        self._first_sent_ns = time.monotonic_ns()
        async with trio.open_nursery() as senders:
            for index, sock in enumerate(sockets):
                senders.start_soon(self._send, sock, self._senders[index])
        await self._ended.wait()
        _emit("done")

    async def _send(self, sock: rdsx.RdsSocket, flows: list[FlowSender]) -> None:
        addresses = [(self._remote, FIRST_PORT + index) for index in range(len(flows))]
        turn = deque(zip(flows, addresses, strict=True))
        while turn:
            batch: list[tuple[bytes, tuple[str, int]]] = []
            batch_bytes = 0
            now_ns = time.monotonic_ns()
            while turn and len(batch) < BATCH_MESSAGES and batch_bytes < BATCH_BYTES:
                flow, address = turn[0]
                datagram = flow.next_datagram(now_ns)
                if datagram is None:
                    turn.popleft()
                    flow.close()
                    continue
                turn.rotate(-1)
                batch.append((datagram, address))
                batch_bytes += len(datagram)
            while batch:
                queued = await sock.sendmmsg(batch)
                self._sent += queued
                self._sent_bytes += sum(len(datagram) for datagram, _ in batch[:queued])
                del batch[:queued]
            async with self._cutting:
                if self._cuts and self._sent_bytes >= self._cuts[0][1]:
                    await self._cut(self._cuts.popleft()[0])
        await sock.flush()

    async def _receive(self, sock: rdsx.RdsSocket, checkers: list[FlowChecker]) -> None:
        running = sum(not checker.ended for checker in checkers)
        while True:
            batch = await sock.recvmmsg(BATCH_MESSAGES)
            now_ns = time.monotonic_ns()
            for datagram, address in batch:
                index = address[1] - FIRST_PORT
                if address[0] != self._remote or not 0 <= index < len(checkers):
                    raise CliError(f"a datagram came from {address}, which is not part of the demo")
                checker = checkers[index]
                ended = checker.ended
                sent_ns = checker.take(datagram)
                if sent_ns is not None:
                    self._latencies.add(now_ns - sent_ns)
                self._delivered_bytes += len(datagram)
                running -= checker.ended and not ended
            self._delivered += len(batch)
            self._last_delivered_ns = now_ns
            if not running and all(checker.ended for row in self._checkers for checker in row):
                self._ended.set()

    async def _cut(self, number: int) -> None:
        """Tear the connection down for the `number`th time, from 0, counting both nodes: it must have come back as often before."""
        with self._node.events() as events:
            while self._links() <= number or not self._node.reset_connection(self._remote):
                await events.receive()  # PeerUp is among them
        self._cuts_made += 1

    def _links(self) -> int:
        """TCP connections so far on which the peer has spoken."""
        return sum(connection.links or 0 for connection in self._node.statistics().connections)

    async def _report_progress(self) -> None:
        while True:
            await trio.sleep(PROGRESS_INTERVAL_S)
            _emit(
                "progress",
                sent=self._sent,
                sent_bytes=self._sent_bytes,
                delivered=self._delivered,
                delivered_bytes=self._delivered_bytes,
                reconnects=self._reconnects(),
            )

    def _reconnects(self) -> int:
        return sum(connection.reconnects or 0 for connection in self._node.statistics().connections)

    def _result(self) -> dict[str, object]:
        statistics = self._node.statistics()
        checkers = [checker for row in self._checkers for checker in row]
        return {
            # One entry for each flow, in the order [sending socket][receiving socket] on both sides, to be compared.
            "sent_flows": [(flow.sent, flow.sent_empty) for row in self._senders for flow in row],
            "delivered_flows": [
                (checker.delivered, checker.delivered_empty) for column in zip(*self._checkers, strict=True) for checker in column
            ],
            "sent_bytes": self._sent_bytes,
            "delivered_bytes": self._delivered_bytes,
            "duplicated": sum(checker.duplicated for checker in checkers),
            "out_of_order": sum(checker.out_of_order for checker in checkers),
            "corrupted": sum(checker.corrupted for checker in checkers),
            "files_verified": sum(checker.files_verified for checker in checkers),
            "files_wrong": [path for checker in checkers for path in checker.files_wrong][:20],
            "cuts": self._cuts_made,
            "reconnects": self._reconnects(),
            "retransmitted": statistics.counters.get("send_retransmitted", 0),
            "first_sent_ns": self._first_sent_ns,
            "last_delivered_ns": self._last_delivered_ns,
            "latencies": self._latencies.buckets,
        }


def main() -> None:
    """The process: a job on the first line of standard input, then commands; events on standard output."""
    try:
        run(_serve)
    except CliError as error:
        _emit("error", text=error.message)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


async def _serve() -> None:
    commands_in, commands = trio.open_memory_channel[str](10)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(_read_commands, commands_in)
        job = json.loads(await commands.receive())
        config = rdsx.NodeConfig(
            port=job["port"],
            send_buffer_bytes=BUFFER_BYTES,
            receive_buffer_bytes=BUFFER_BYTES,
            max_message_bytes=MAX_DATAGRAM_BYTES,
        )
        async with rdsx.open_node(job["local"], config=config) as node:
            worker = Worker(job, node)
            sockets = [await node.bind(FIRST_PORT + index) for index in range(len(job["flows"]))]
            _emit("ready")
            if await commands.receive() == "go":
                await worker.run(sockets, commands)
            for sock in sockets:
                sock.close()
        tasks.cancel_scope.cancel()


async def _read_commands(commands: trio.MemorySendChannel[str]) -> None:
    pending = b""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        async for chunk in stdin:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                await commands.send(line.decode())
    # The parent has gone, perhaps killed. Nobody wants the rest, and a node's orderly end could wait for a peer that has gone too.
    os._exit(1)


def _emit(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
