"""Runs in a guest with rds_rdma on soft-RoCE: what only the kernel's stack can do, through rdsx, with results as JSON lines.

    kernel_rdma.py 10.77.0.2
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import trio

import rdsx
from rdsx import ancillary

SIZE = 5000
TOKEN = 42
GUARD_S = 60


def address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


async def main(host: str) -> None:
    with trio.fail_after(GUARD_S):
        async with rdsx.open_node(host, transport="kernel") as node:
            left, right = await node.bind(4000), await node.bind(4001)
            for sock in (left, right):
                sock.set_tos(7)
            say(transport=left.getsockopt(rdsx.SOL_RDS, rdsx.SO_RDS_TRANSPORT), tos=left.get_tos())
            await write_into_the_peer(left, right)
            say(connections=[[one.local, one.peer, one.tos] for one in node.info().ib_connections])


async def write_into_the_peer(left: rdsx.RdsSocket, right: rdsx.RdsSocket) -> None:
    target, source, cookie = bytearray(SIZE), bytearray(b"rdma!" * (SIZE // 5)), ctypes.c_uint64()
    where = ancillary.GetMrArgs(ancillary.IoVec(address(target), SIZE), ctypes.addressof(cookie), rdsx.RDS_RDMA_READWRITE)
    await right.sendmsg([b"write here"], [where.control()], 0, left.getsockname())
    data, ancdata, _, _ = await left.recvmsg(None, 100)
    (destination,) = ancillary.parse(ancdata)
    assert isinstance(destination, ancillary.RdmaDest)
    say(got=data.decode(), cookie_is_mine=destination.cookie == cookie.value)

    vectors = ctypes.create_string_buffer(ancillary.pack_vectors([ancillary.IoVec(address(source), SIZE)]))
    write = ancillary.RdmaArgs(
        destination.cookie,
        ancillary.IoVec(0, SIZE),
        ctypes.addressof(vectors),
        1,
        rdsx.RDS_RDMA_READWRITE | rdsx.RDS_RDMA_NOTIFY_ME,
        TOKEN,
    )
    for call in ("recvmsg", "recvfrom"):
        target[:] = bytes(SIZE)
        await left.sendmsg([b"written"], [write.control()], 0, right.getsockname())
        data, _ = await right.recvfrom()
        say(got=data.decode(), written=target == source)
        if call == "recvfrom":  # a call that takes datagrams only leaves the notification for recvmsg()
            await right.sendto(b"behind it", left.getsockname())
            say(got=(await left.recv()).decode())
        data, ancdata, _, sender = await left.recvmsg(None, 100)
        (status,) = ancillary.parse(ancdata)
        assert isinstance(status, ancillary.RdmaStatus)
        say(alone=(data, sender) == (b"", None), token=status.user_token, status=status.status)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
