"""Runs in a guest with soft-RoCE and without the kernel's RDS: connections by the RDMA CM, both ends in this process.

    verbs_cm.py [CASE ...]

Needs 10.77.0.2, 10.77.0.3, fd77::2 and fd77::3 on the device rxe0.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from verbs_peer import Mailbox, Peer, fails, kernel_objects, open_peer, run_cases

import rdsx
from rdsx import _bridge
from rdsx.addresses import parse_host
from rdsx.transports.verbs import cm
from rdsx.transports.verbs.cm import CmConnection, ConnectRequest, Listener
from rdsx.wire.cm_data import CmData, pack_cm_data

LEFT, RIGHT = parse_host("10.77.0.2"), parse_host("10.77.0.3")
LEFT6, RIGHT6 = parse_host("fd77::2"), parse_host("fd77::3")
NOBODY = parse_host("10.77.0.99")
CYCLES = 30


class Couple:
    """Two connected ends."""

    def __init__(self, active: CmConnection, passive: CmConnection, mailboxes: tuple[Mailbox, Mailbox]) -> None:
        self.active = active
        self.passive = passive
        self.mailboxes = mailboxes

    async def talk(self) -> None:
        for sender, receiver, data in ((*self.mailboxes, b"a" * 4144), (*reversed(self.mailboxes), b"b" * 48)):
            await sender.send(data)
            assert await receiver.receive() == data

    async def end(self) -> None:
        self.active.disconnect()
        assert await self.passive.wait_ended() == "closed_by_peer"
        self.passive.disconnect()
        self.close()

    def close(self) -> None:
        for connection, mailbox in ((self.active, self.mailboxes[0]), (self.passive, self.mailboxes[1])):
            connection.close()
            mailbox.close()


async def couple(peer: Peer, listener: Listener, *, local: Any = LEFT, **settings: Any) -> Couple:
    mailboxes = Mailbox(), Mailbox()
    passive: list[CmConnection] = []

    async def accept() -> None:
        request = await listener.accept()
        assert request.remote == local
        passive.append(await request.accept(mailboxes[1], ack_seq=settings.get("ack_seq", 0) * 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        active = await peer.manager.connect(local, listener.local, mailboxes[0], **settings)
    return Couple(active, passive[0], mailboxes)


async def connects_and_talks() -> None:
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        two = await couple(peer, listener, ack_seq=7)
        assert two.active.version == two.passive.version == (3, 1)
        assert (two.active.peer_data.ack_seq, two.passive.peer_data.ack_seq) == (14, 7)
        assert (two.active.peer_data.sender, two.active.peer_data.receiver) == (RIGHT.ip, LEFT.ip)
        assert two.active.queue_pair.inline_bytes >= 48
        await two.talk()
        await two.end()


async def connects_over_ipv6() -> None:
    async with open_peer() as peer:
        two = await couple(peer, await peer.manager.listen(RIGHT6), local=LEFT6)
        assert two.passive.remote == LEFT6
        await two.talk()
        await two.end()


async def carries_the_type_of_service() -> None:
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        both = [await couple(peer, listener, tos=tos) for tos in (0, 5)]
        assert [(two.active.tos, two.passive.tos) for two in both] == [(0, 0), (5, 5)]
        for two in both:
            await two.talk()
            await two.end()


async def refuses_and_then_grants() -> None:
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        for _ in range(3):
            await expect_error(peer, errno.ECONNRESET, handle=ConnectRequest.close, listener=listener)
        two = await couple(peer, listener)
        await two.talk()
        await two.end()


async def finds_nobody_listening() -> None:
    async with open_peer() as peer:
        await expect_error(peer, errno.ECONNREFUSED)


async def finds_no_host() -> None:
    async with open_peer() as peer:
        for host in (NOBODY, parse_host("192.0.2.1")):
            with fails(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH):
                await peer.manager.connect(LEFT, host, Mailbox())


async def listens_only_where_it_can() -> None:
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        for host, number in ((RIGHT, errno.EADDRINUSE), (NOBODY, errno.EADDRNOTAVAIL), (parse_host("127.0.0.1"), errno.EADDRNOTAVAIL)):
            with fails(number, naming=host.key):
                await peer.manager.listen(host)
        listener.close()
        (await peer.manager.listen(RIGHT)).close()


async def is_cancelled_at_every_step() -> None:
    """Whoever waits can be cancelled, and nothing stays behind; the other end sees that there is no connection."""
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        warm = await couple(peer, listener)  # the device is open from here on
        await warm.end()
        before = kernel_objects()
        for delay_s in (0.0, 0.001, 0.01, 0.1, 0.5):
            with trio.move_on_after(delay_s) as scope:
                await peer.manager.connect(LEFT, RIGHT, mailbox := Mailbox())
            assert scope.cancelled_caught
            mailbox.close()
        with trio.move_on_after(0.5):
            while True:
                mailbox = Mailbox()
                request = await listener.accept()
                try:
                    connection = await request.accept(mailbox)
                except OSError:
                    pass
                else:
                    assert await connection.wait_ended() == "closed_by_peer"
                    connection.close()
                mailbox.close()
        assert kernel_objects() == before
        two = await couple(peer, listener)
        await two.talk()
        await two.end()


async def refuses_what_is_no_rds() -> None:
    """Private data of a stranger, in the name of somebody else, of an unknown version: rejected at once, and counted."""
    bad = [
        (bytes(range(32)), "bad_version"),
        (pack_cm_data(CmData(sender=LEFT.ip, receiver=RIGHT.ip, version=(3, 0))), "bad_version"),
        (pack_cm_data(CmData(sender=LEFT.ip, receiver=RIGHT.ip, version=(5, 0))), "bad_version"),
        (pack_cm_data(CmData(sender=NOBODY.ip, receiver=RIGHT.ip)), "bad_private_data"),
        (pack_cm_data(CmData(sender=LEFT.ip, receiver=LEFT.ip)), "bad_private_data"),
    ]
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        for data, reason in bad:
            await expect_error(peer, errno.ECONNRESET, data=data)
            assert peer.refusals.pop() == reason
        two = await couple(peer, listener)
        await two.talk()
        await two.end()


async def agrees_on_versions() -> None:
    answers = {(4, 1, 3): (4, 1), (4, 0, 1): (4, 0), (4, 1, 2): (4, 1), (0, 0, 0): (4, 0), (3, 1, 3): (3, 1)}
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        for (major, minor, mask), agreed in answers.items():
            data = pack_cm_data(CmData(sender=LEFT.ip, receiver=RIGHT.ip, version=(major, minor), minor_mask=mask)) if major else b""
            with proposing(data):
                two = await couple(peer, listener)
            assert (two.active.version, two.passive.version) == (agreed, agreed)
            await two.end()


async def meets_itself() -> None:
    """Both connect at once, and both grant: two connections, each of them good."""
    async with open_peer() as peer:
        listeners = [await peer.manager.listen(LEFT), await peer.manager.listen(RIGHT)]
        found: list[Couple] = []

        async def one(listener: Listener, local: Any) -> None:
            found.append(await couple(peer, listener, local=local))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, listeners[1], LEFT)
            nursery.start_soon(one, listeners[0], RIGHT)
        for two in found:
            await two.talk()
            await two.end()
        assert len(found) == 2


async def frees_everything() -> None:
    """Files and verbs objects are as many after many connections as after one."""
    before = kernel_objects()
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        counts = []
        for _ in range(CYCLES):
            two = await couple(peer, listener)
            await two.talk()
            await two.end()
            counts.append(kernel_objects())
        assert counts[0] == counts[-1], (counts[0], counts[-1])
    after = kernel_objects()
    assert [after[name] for name in ("qp", "cq", "cm_id", "mr")] == [before[name] for name in ("qp", "cq", "cm_id", "mr")], (before, after)


async def survives_a_fork() -> None:
    """A child that closes what it inherited, and drops it, leaves the parent's connection as it was."""
    async with open_peer() as peer:
        two = await couple(peer, await peer.manager.listen(RIGHT))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                two.active.close()
                two.passive.close()
                peer.manager.channel.close()
                for connection in (two.active, two.passive):
                    connection.queue_pair.qp = connection.queue_pair.qp_queues = None  # the last references, as at the end of a process
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert (await trio.to_thread.run_sync(os.waitpid, child, 0))[1] == 0
        await two.talk()
        await two.end()


async def knows_closed_and_foreign_objects() -> None:
    """What pyverbs would crash on, or what is laid out otherwise, is an exception."""
    async with open_peer() as peer:
        two = await couple(peer, await peer.manager.listen(RIGHT))
        pair = two.active.queue_pair
        for wrong in ((pair.recv_cq, pair.send_cq), (0, 0)):
            with pytest.raises(_bridge.Unsupported):
                _bridge.qp_pointer(pair.qp, *wrong)
        await two.end()
        with fails(errno.EBADF):
            _bridge.qp_pointer(pair.qp, pair.send_cq, pair.recv_cq)


async def tells_of_a_port() -> None:
    async with open_peer() as peer:
        two = await couple(peer, await peer.manager.listen(RIGHT))
        await trio.run_process(["ip", "link", "set", "eth0", "down"])
        await trio.run_process(["ip", "link", "set", "eth0", "up"])
        while {kind for kind, _ in peer.port_events} < {9, 10}:  # IBV_EVENT_PORT_ACTIVE, IBV_EVENT_PORT_ERR
            await trio.sleep(0.01)
        assert {port for _, port in peer.port_events} == {1}
        two.close()


async def nodes_lose_their_device() -> None:
    """They go on without, and let go of it: only librdmacm keeps it open. Another device is not concerned."""
    for command in (
        "ip link add d0 type veth peer name d1",
        "ip link set d0 up",
        "ip link set d1 up",
        "ip address add 10.79.0.1/24 dev d0",
        "ip address add 10.79.0.2/24 dev d0",
        "rdma link add rxe1 type rxe netdev d0",
    ):
        await trio.run_process(command.split())
    device = device_file("rxe1")
    hosts = "10.79.0.1", "10.79.0.2"
    async with rdsx.open_node(hosts[0], transport="verbs") as a, rdsx.open_node(hosts[1], transport="verbs") as b:
        with await a.bind(4000) as left, await b.bind(4000) as right, a.events() as events:
            await left.sendto(b"before", (hosts[1], 4000))
            assert await right.recv() == b"before"
            subprocess.Popen(["rdma", "link", "delete", "rxe1"])  # noqa: ASYNC220  it does not return while the device is in use
            async for event in events:
                if isinstance(event, rdsx.PeerDown):
                    break
            assert event.reason in ("device_removed", "closed_by_peer")
            while opened(device) > 1:
                await trio.sleep(0.01)
            await left.sendto(b"waits", (hosts[1], 4000))
            await trio.sleep(0.5)
            assert left.statistics().unacknowledged_messages == 1
            await left.sendto(b"to itself", (hosts[0], 4000))
            assert await left.recv() == b"to itself"
    await connects_and_talks()


async def nodes_agree_on_frames_and_credits() -> None:
    """Frames of 16 KiB where the rings of both have room for them, else of 4 KiB; credits where both count; many times each ring in all."""
    small = {"send_ring_slots": 8, "receive_ring_slots": 8}
    least = {"send_ring_slots": 16, "receive_ring_slots": 16}
    for left, right, frames in (({}, {}, 5), (least, {}, 5), (least, least, 5), (small, {}, 16), ({}, small, 16), (small, small, 16)):
        for counting in ((), (LEFT,), (LEFT, RIGHT)):
            configs = [rdsx.NodeConfig(**rings, flow_control=host in counting) for rings, host in ((left, LEFT), (right, RIGHT))]
            await talk_in_frames(configs, frames, has_credits=len(counting) == 2)


async def talk_in_frames(configs: list[rdsx.NodeConfig], frames: int, *, has_credits: bool) -> None:
    """20 messages of 64 KiB each way, each in so many frames."""
    async with (
        rdsx.open_node(LEFT.key, transport="verbs", config=configs[0]) as a,
        rdsx.open_node(RIGHT.key, transport="verbs", config=configs[1]) as b,
        trio.open_nursery() as nursery,
    ):
        with await a.bind(4000) as left, await b.bind(4000) as right:
            messages = [bytes([number]) * 65536 for number in range(20)]
            for sock, host in ((left, RIGHT), (right, LEFT)):
                nursery.start_soon(sock.sendmmsg, [(message, (host.key, 4000)) for message in messages])
            for sock in (left, right):
                assert [await sock.recv() for _ in messages] == messages
                await sock.flush()
            for node in (a, b):
                counters = node.statistics().counters
                rest = counters["verbs_frames_sent"] - frames * len(messages)
                assert 0 < rest < frames * len(messages), f"maps, acknowledgements and grants: {rest}"
                assert (counters.get("ib_rx_credit_updates", 0) > 0) == has_credits


def device_file(name: str) -> Path:
    (found,) = [path for path in Path("/sys/class/infiniband_verbs").glob("uverbs*") if (path / "ibdev").read_text().strip() == name]
    return Path("/dev/infiniband", found.name)


def opened(device: Path) -> int:
    """How many descriptors of this process are of it."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += link.readlink() == device
    return count


async def loses_its_device() -> None:
    """Last: librdmacm keeps the device open until this process ends."""
    async with open_peer() as peer:
        listener = await peer.manager.listen(RIGHT)
        two = await couple(peer, listener)
        # It neither returns nor dies while the device is in use.
        subprocess.Popen(["rdma", "link", "delete", "rxe0"])  # noqa: ASYNC220
        assert await two.active.wait_ended() == "device_removed"
        assert await two.passive.wait_ended() in ("device_removed", "closed_by_peer")
        with fails(errno.ENODEV, naming=RIGHT.key):
            await listener.accept()
        two.close()


async def expect_error(
    peer: Peer,
    number: int,
    *,
    data: bytes | None = None,
    handle: Callable[[ConnectRequest], None] | None = None,
    listener: Listener | None = None,
) -> None:
    async def answer() -> None:
        assert listener is not None
        assert handle is not None
        handle(await listener.accept())

    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        if handle is not None:
            nursery.start_soon(answer)
        with fails(number), proposing(data):
            await peer.manager.connect(LEFT, RIGHT, mailbox)
    mailbox.close()


class proposing:
    """While in the block a connector sends these bytes, whatever it was to say."""

    def __init__(self, data: bytes | None) -> None:
        self._data = data

    def __enter__(self) -> None:
        self._pack = cm.pack_cm_data
        if self._data is not None:
            cm.pack_cm_data = self._once

    def __exit__(self, *_: object) -> None:
        cm.pack_cm_data = self._pack

    def _once(self, _: CmData) -> bytes:
        cm.pack_cm_data = self._pack
        assert self._data is not None
        return self._data


CASES = [
    connects_and_talks,
    connects_over_ipv6,
    carries_the_type_of_service,
    refuses_and_then_grants,
    finds_nobody_listening,
    finds_no_host,
    listens_only_where_it_can,
    is_cancelled_at_every_step,
    refuses_what_is_no_rds,
    agrees_on_versions,
    meets_itself,
    frees_everything,
    survives_a_fork,
    knows_closed_and_foreign_objects,
    tells_of_a_port,
    nodes_agree_on_frames_and_credits,
    nodes_lose_their_device,
    loses_its_device,
]

if __name__ == "__main__":
    run_cases(CASES, sys.argv[1:])
