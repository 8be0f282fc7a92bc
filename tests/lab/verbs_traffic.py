"""Runs in a guest: one end of two flows, over `transport="verbs"` or over the kernel's own RDS, with an account of what came.

    verbs_traffic.py REQUESTS TRANSPORT LOCAL REMOTE SEED THEIR_SEED COUNT LOW HIGH [--resets N] [--slow] [--credits] [--tos N]

Both ends send COUNT messages made from their seed, of LOW to HIGH bytes, and expect those of the other's. What is to be done is read from
the file REQUESTS, a word on a line: "go" does that, the second time with seeds that are AGAIN larger, and so on; "stop" ends. "ready",
"flowing" and the account, as JSON, are printed. With --resets an rdsx end drops its connection so often; with --slow it reads slowly into
a small buffer, so that its port congests; with --credits it offers to count credits; with --tos it sends with that type of service.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio
from traffic import digest, digests, messages

import rdsx

PORT = 4000
BUFFER_BYTES = 4 << 20
SMALL_BYTES = 64 << 10
REQUEST_POLL_S = 0.02  # a file over 9p makes no event
SLOW_S = 0.005
LINGER_S = 0.3  # for what should not come
AGAIN = 100


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("requests", type=Path)
    parser.add_argument("transport")
    parser.add_argument("local")
    parser.add_argument("remote")
    for name in ("seed", "their_seed", "count", "low", "high"):
        parser.add_argument(name, type=int)
    parser.add_argument("--resets", type=int, default=0)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--credits", action="store_true")
    parser.add_argument("--tos", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
    config = rdsx.NodeConfig(flow_control=options.credits)
    async with rdsx.open_node(options.local, transport=options.transport, config=config) as node:
        with await node.bind(PORT) as sock:
            # Small for small messages, so that a sender is never far ahead: a fault then finds messages sent, on the way, and queued.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES if options.high > SMALL_BYTES else SMALL_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES if options.slow else BUFFER_BYTES)
            sock.set_tos(options.tos)
            print("ready", flush=True)
            requests = next_requests(options.requests)
            while await anext(requests) == "go":
                await flow(node, sock, options)
                options.seed += AGAIN
                options.their_seed += AGAIN


async def flow(node: rdsx.Node, sock: rdsx.RdsSocket, options: argparse.Namespace) -> None:
    found: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, sock, options)
        if options.resets:
            nursery.start_soon(reset, node, found, options)
        while len(found) < options.count:
            before = len(found)
            found += await receive(sock, options.slow)
            if before < options.count // 4 <= len(found):
                print("flowing", flush=True)
    with trio.move_on_after(LINGER_S):
        while True:
            found += await receive(sock, False)
    report(node, found, options)


async def send(sock: rdsx.RdsSocket, options: argparse.Namespace) -> None:
    there = (options.remote, PORT)
    await sock.sendmmsg((message, there) for message in messages(options.seed, options.count, options.low, options.high))
    await sock.flush(there)


async def receive(sock: rdsx.RdsSocket, slow: bool) -> list[str]:
    if slow:
        await trio.sleep(SLOW_S)
    return [digest(data) for data, _ in await sock.recvmmsg(4 if slow else 1024)]


async def reset(node: rdsx.Node, found: list[str], options: argparse.Namespace) -> None:
    """Spread over what is received."""
    for number in range(options.resets):
        while len(found) < options.count * (number + 1) // (options.resets + 1):
            await trio.sleep(REQUEST_POLL_S)
        while not node.reset_connection(options.remote):
            await trio.sleep(REQUEST_POLL_S)


def report(node: rdsx.Node, found: list[str], options: argparse.Namespace) -> None:
    expected = digests(options.their_seed, options.count, options.low, options.high)
    statistics = node.statistics()
    account: dict[str, Any] = {
        "exact": found == expected,
        "received": len(found),
        "lost": len(set(expected) - set(found)),
        "twice": len(found) - len(set(found)),
        "foreign": len(set(found) - set(expected)),
        "drops": statistics.drops,
        "counters": statistics.counters,
        "ib": [asdict(one) for one in node.info().ib_connections if (one.local, one.peer) == (options.local, options.remote)],
        "connections": [asdict(connection) for connection in statistics.connections],
    }
    print(json.dumps(account), flush=True)


async def next_requests(path: Path) -> AsyncIterator[str]:
    """Each word as it is written."""
    seen = 0
    while True:
        words = words_in(path)
        for word in words[seen:]:
            yield word
        seen = len(words)
        await trio.sleep(REQUEST_POLL_S)


def words_in(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


if __name__ == "__main__":
    trio.run(main)
