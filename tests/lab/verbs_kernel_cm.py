"""Runs in a guest with soft-RoCE and without the kernel's RDS, beside a guest with it: connections with rds_rdma by the RDMA CM.

    verbs_kernel_cm.py LOCAL KERNEL [CASE ...]

The other guest sends a message now and then, so that its kernel wants a connection.
"""

from __future__ import annotations

import errno
import sys

import trio
from verbs_peer import Mailbox, Peer, fails, open_peer, run_cases

from rdsx.addresses import parse_host
from rdsx.transports.verbs.cm import CmConnection

LOCAL, KERNEL = parse_host(sys.argv[1]), parse_host(sys.argv[2])
MAP_HEADER = bytes(24)[:16] + (8192).to_bytes(4, "big") + bytes(4) + b"\x01"  # seq 0, ack 0, len 8192, ports 0, CONG_BITMAP
REJECTIONS = 3


async def is_answered() -> None:
    """We ask, the kernel grants with our version and its addresses, and begins with its congestion map."""
    async with open_peer() as peer:
        connection, mailbox = await ask(peer)
        assert connection.version == (3, 1)
        data = connection.peer_data
        assert (data.sender, data.receiver, data.minor_mask, data.credit, data.tos) == (KERNEL.ip, LOCAL.ip, 3, 0, 0)
        for _ in range(2):
            frame = await mailbox.receive()
            assert (len(frame), frame[: len(MAP_HEADER)]) == (48 + 4096, MAP_HEADER)
        connection.disconnect()
        assert await connection.wait_ended() == "closed_by_peer"  # it answers with its own
        connection.close()
        mailbox.close()


async def is_asked() -> None:
    """The kernel asks, of its own accord; it is rejected a few times, and comes again until it is granted."""
    async with open_peer() as peer:
        listener = await peer.manager.listen(LOCAL)
        for _ in range(REJECTIONS):
            (await listener.accept()).close()
        request = await listener.accept()
        assert (request.remote, request.version, request.data.receiver) == (KERNEL, (3, 1), LOCAL.ip)
        mailbox = Mailbox()
        connection = await request.accept(mailbox)
        assert [len(await mailbox.receive()) for _ in range(2)] == [4144, 4144]
        # It holds a connection, so ours, which is newer, means to it that we have restarted: it drops the old one and rejects this.
        second = Mailbox()
        with fails(errno.ECONNRESET):
            await peer.manager.connect(LOCAL, KERNEL, second)
        second.close()
        assert await connection.wait_ended() == "closed_by_peer"
        connection.disconnect()
        connection.close()
        mailbox.close()
        assert peer.refusals == []


async def is_dropped_for_bad_bytes() -> None:
    """The kernel ends a connection on a frame that is no RDS header, and we hear of it."""
    async with open_peer() as peer:
        connection, mailbox = await ask(peer)
        await mailbox.send(b"\x01" * 48)  # whose checksum is wrong
        assert await connection.wait_ended() == "closed_by_peer"
        connection.disconnect()
        connection.close()
        mailbox.close()


async def ask(peer: Peer) -> tuple[CmConnection, Mailbox]:
    """A connection that we asked for; the kernel rejects us while it asks itself, and while it tears down."""
    while True:
        mailbox = Mailbox()
        try:
            return await peer.manager.connect(LOCAL, KERNEL, mailbox), mailbox
        except ConnectionResetError:
            mailbox.close()
            await trio.sleep(0.05)


if __name__ == "__main__":
    run_cases([is_answered, is_asked, is_dropped_for_bad_bytes], sys.argv[3:])
