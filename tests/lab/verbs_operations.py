"""Runs in a guest: one end of one-sided operations, over `transport="verbs"` or over the kernel's own RDS.

    verbs_operations.py REQUESTS TRANSPORT LOCAL REMOTE asks|owns|adds|counts

The end that owns memory sends its cookie and looks at the memory whenever a message says what should be in it; the one that asks writes,
reads and provokes refusals, and prints what it found as JSON. The owner prints what it saw. Both then wait for "stop" in the file REQUESTS.
Each refusal costs the connection, and a kernel makes no other while its programs have memory registered: so all is freed before.

The one that adds does many atomics at once, and prints "flowing" when a quarter of them has an outcome; the one that counts has the number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import trio
from verbs_traffic import next_requests

import rdsx
from rdsx import ancillary
from rdsx.addresses import SockAddr

PORT = 4000
GUARD_S = 100.0
SIZE = 262144
ADDITIONS, AT_ONCE = 1600, 8
PIECES = [(0, 1), (1, 4095), (4095, 4097), (100, 65536), (SIZE - 1, 1), (0, SIZE)]
LABEL = struct.Struct(">II32s")


async def main() -> None:
    requests, transport, local, remote, part = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
    with trio.fail_after(GUARD_S):
        async with rdsx.open_node(local, transport=transport) as node:  # type: ignore[arg-type]
            with await node.bind(PORT) as sock:
                print("ready", flush=True)
                words = next_requests(Path(requests))
                await anext(words)  # "go"
                found = await PARTS[part](sock, (remote, PORT))
                print(json.dumps(found), flush=True)
                await sock.flush()
                await anext(words)  # "stop"


async def own(sock: rdsx.RdsSocket, peer: SockAddr) -> dict[str, Any]:
    """Memory for all operations, and some that may be used once. A message says what a write should have left there."""
    memory, once = bytearray(random.Random(1).randbytes(SIZE)), bytearray(4096)
    cookies: list[int] = []
    for buffer, use_once in ((memory, False), (once, True)):
        cookies.append(await sock.get_mr(buffer, peer, use_once=use_once))
        await sock.sendmsg([b"memory"], [ancillary.RdmaDest(cookies[-1]).control()], 0, peer)
    seen = []
    async for data, _ in sock:
        if data == b"end":
            break
        if data == b"free":
            sock.free_mr(cookies[0])
            await sock.sendto(b"freed", peer)
        elif len(data) == LABEL.size:
            offset, size, digest = LABEL.unpack(data)
            seen.append([offset, size, hashlib.sha256(memory[offset : offset + size]).digest() == digest])
            await sock.sendto(b"seen", peer)
        else:
            seen.append(data.decode())
    return {"seen": seen, "once": once[:8].rstrip(b"\0").decode()}


async def ask(sock: rdsx.RdsSocket, peer: SockAddr) -> dict[str, Any]:
    cookies = [await cookie_of(sock) for _ in range(2)]
    memory, once = cookies
    outcomes, same = [], []
    for offset, size in PIECES:
        data = random.Random(offset + size).randbytes(size)
        label = LABEL.pack(offset, size, hashlib.sha256(data).digest())
        write = await sock.rdma_write(data, memory, peer, offset=offset, message=label)
        assert await sock.recv() == b"seen"
        back = bytearray(size)
        read = await sock.rdma_read(back, memory, peer, offset=offset, message=b"read", fence=True)
        outcomes += [(await write.wait()).name, (await read.wait()).name]
        same.append(back == data)
    first = await sock.rdma_write(b"first", once, peer, message=b"once")
    outcomes.append((await first.wait()).name)
    await sock.sendto(b"free", peer)
    assert await sock.recv() == b"freed"
    refused = []
    for cookie in (memory, memory ^ 0xFF00, once):
        operation = await sock.rdma_write(b"refused", cookie, peer, message=b"never")
        refused.append((await operation.wait()).name)
        await sock.sendto(b"next", peer)
        await sock.flush()
    await sock.sendto(b"end", peer)
    return {"outcomes": outcomes, "same": same, "refused": refused}


async def add(sock: rdsx.RdsSocket, peer: SockAddr) -> dict[str, Any]:
    cookie = await cookie_of(sock)
    outcomes: Counter[str] = Counter()
    found = []

    async def some() -> None:
        for _ in range(ADDITIONS // AT_ONCE):
            operation = await sock.fetch_and_add(1, cookie, peer)
            outcomes[(await operation.wait()).name] += 1
            if operation.outcome is rdsx.RdmaOutcome.SUCCESS:
                found.append(operation.old_value)
            if outcomes.total() == ADDITIONS // 4:
                print("flowing", flush=True)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)
    await sock.sendto(b"end", peer)
    await sock.flush()
    return {"outcomes": outcomes, "unique": len(set(found)) == len(found), "drops": sock._stack.statistics().drops}


async def count(sock: rdsx.RdsSocket, peer: SockAddr) -> dict[str, Any]:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    cookie = await sock.get_mr(memory, peer)
    await sock.sendmsg([b"memory"], [ancillary.RdmaDest(cookie).control()], 0, peer)
    while await sock.recv() != b"end":
        pass
    return {"number": struct.unpack_from("=Q", memory)[0]}


PARTS = {"asks": ask, "owns": own, "adds": add, "counts": count}


async def cookie_of(sock: rdsx.RdsSocket) -> int:
    data, ancdata, _, _ = await sock.recvmsg(None, 100)
    (found,) = ancillary.parse(ancdata)
    assert data == b"memory"
    assert isinstance(found, ancillary.RdmaDest)
    return found.cookie


if __name__ == "__main__":
    trio.run(main)
