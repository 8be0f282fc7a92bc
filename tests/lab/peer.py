"""An rdsx node in a process of its own, inside the lab's namespace, told what to do by JSON lines. `driver.py` is the other end.

A request is `{"id": 1, "do": "send", ...}`, its answer `{"id": 1, "result": ...}` or `{"id": 1, "error": "..."}`. Requests run side by
side. The node closes in order when the input ends.

usage: peer.py ADDRESS [NODE_CONFIG_AS_JSON]
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import trio
from traffic import digest, messages

import rdsx

BATCH = 64


class Peer:
    """The node, its sockets by port, and one method per verb."""

    def __init__(self, node: rdsx.Node) -> None:
        self.node = node
        self.sockets: dict[int, rdsx.RdsSocket] = {}
        self.events: list[str] = []

    async def bind(self, port: int, receive_buffer: int = 0, send_buffer: int = 0) -> int:
        sock = await self.node.bind(port)
        sock.setsockopt(*rdsx_socket_option("SO_SNDBUF"), send_buffer or 4 << 20)
        sock.setsockopt(*rdsx_socket_option("SO_RCVBUF"), receive_buffer or 4 << 20)
        bound: int = sock.getsockname()[1]
        self.sockets[bound] = sock
        return bound

    async def close(self, port: int) -> None:
        self.sockets.pop(port).close()

    async def send(
        self, port: int, host: str, to: int, *, seed: int = 0, count: int = 1, low: int = 64, high: int = 64, skip: int = 0,
        interval_s: float = 0.0, timeout_s: float = 30.0,
    ) -> dict[str, Any]:  # fmt: skip
        """Queue messages, in batches unless an interval is asked for, and wait until the peer has them."""
        sock, sent, began_s = self.sockets[port], 0, time.monotonic()
        flushed = False
        with trio.move_on_after(timeout_s):
            batch: list[Any] = []
            for message in itertools.islice(messages(seed, count, low, high), skip, None):
                batch.append((message, (host, to)))
                if len(batch) >= BATCH or interval_s:
                    sent += await sock.sendmmsg(batch)
                    batch = []
                    if interval_s:
                        await trio.sleep(interval_s)
            if batch:
                sent += await sock.sendmmsg(batch)
            await sock.flush((host, to))
            flushed = True
        return {"sent": sent, "flushed": flushed, "flushed_s": round(time.monotonic() - began_s, 3)}

    async def recv(self, port: int, *, count: int = 1, timeout_s: float = 30.0, linger_s: float = 0.0) -> dict[str, Any]:
        """Receive, then wait `linger_s` for what should not come."""
        sock = self.sockets[port]
        found: list[str] = []
        senders: Counter[str] = Counter()

        async def take(until: float) -> None:
            while len(found) < until:
                for data, address in await sock.recvmmsg():
                    found.append(digest(data))
                    senders["{}:{}".format(*address[:2])] += 1

        with trio.move_on_after(timeout_s):
            await take(count)
        if linger_s:
            with trio.move_on_after(linger_s):
                await take(float("inf"))
        return {"received": len(found), "digests": found, "senders": dict(senders)}

    async def ping(self, host: str, *, count: int = 1, interval_s: float = 0.0, timeout_s: float = 20.0) -> dict[str, Any]:
        times_us: list[int] = []
        with await self.node.bind() as sock, trio.move_on_after(timeout_s):
            for _ in range(count):
                began_s = time.monotonic()
                await sock.sendto(b"", (host, 0))
                data, address = await sock.recvfrom()
                assert (data, *address[:2]) == (b"", host, 0), (data[:20], address)
                times_us.append(round((time.monotonic() - began_s) * 1e6))
                await trio.sleep(interval_s)
        return {"answers": len(times_us), "times_us": times_us}

    async def receive(self, port: int) -> None:
        """From now on take what comes, and say so: a `received` event for each batch."""
        while True:
            taken = await self.sockets[port].recvmmsg(BATCH)
            say(event="received", port=port, messages=[[digest(data), "{}:{}".format(*address[:2])] for data, address in taken])

    async def queue(
        self, port: int, host: str, to: int, *, seed: int, count: int, low: int, high: int, interval_s: float = 0.0
    ) -> dict[str, Any]:
        """Queue what the node takes without waiting; says how many, and why no more."""
        sent, error = 0, None
        for message in messages(seed, count, low, high):
            try:
                self.sockets[port].sendto_nowait(message, (host, to))
            except trio.WouldBlock:
                error = "EAGAIN"
                break
            except rdsx.CongestedError:
                error = "ENOBUFS"
                break
            sent += 1
            if interval_s:
                await trio.sleep(interval_s)
        return {"sent": sent, "error": error}

    async def cancel(self, port: int, host: str, to: int) -> int:
        return self.sockets[port].cancel_sent_to((host, to))

    async def account(self, port: int) -> dict[str, int]:
        """What was sent from a port, and how much of it is not acknowledged."""
        statistics = self.sockets[port].statistics()
        return {"sent": statistics.sent_messages, "unacknowledged": statistics.unacknowledged_messages}

    async def reset(self, host: str) -> bool:
        return self.node.reset_connection(host)

    async def stall_and_reset(self, host: str, stall_s: float) -> bool:
        """Be busy and not read, so that what the peer sends waits in the system's buffer; then reset at once."""
        print("stalled", file=sys.stderr, flush=True)
        time.sleep(stall_s)  # noqa: ASYNC251  to stop every task is the point
        return self.node.reset_connection(host)

    async def statistics(self) -> dict[str, Any]:
        return asdict(self.node.statistics()) | {"events": self.events}

    async def watch(self) -> None:
        """Note what happens to peers, for statistics()."""
        with self.node.events() as events:
            async for event in events:
                self.events.append(repr(event))


def rdsx_socket_option(name: str) -> tuple[int, int]:
    import socket

    return socket.SOL_SOCKET, getattr(socket, name)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
    address, *settings = sys.argv[1:]
    config = rdsx.NodeConfig(**json.loads(settings[0])) if settings else None
    buffer = b""
    async with rdsx.open_node(address, config=config) as node, trio.open_nursery() as nursery:
        peer = Peer(node)
        nursery.start_soon(peer.watch)
        say(id=0, result=rdsx.__file__)
        async with trio.lowlevel.FdStream(os.dup(0)) as requests:
            async for piece in requests:
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    nursery.start_soon(answer, peer, json.loads(line))
        nursery.cancel_scope.cancel()


async def answer(peer: Peer, request: dict[str, Any]) -> None:
    number, verb = request.pop("id"), request.pop("do")
    try:
        say(id=number, result=await getattr(peer, verb)(**request))
    except Exception as error:  # whatever it is, the test shall see it
        say(id=number, error=f"{type(error).__name__}: {error}")


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    trio.run(main)
