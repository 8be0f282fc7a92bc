"""Peers that send what cannot be right, or nothing: the connection goes for a counted reason, and everybody else gets on."""

from __future__ import annotations

import random
import socket

import pytest
import trio

import rdsx
from kernelkit import (
    KERNEL,
    LARGER,
    SMALLER,
    Kernel,
    bystanders,
    drops_of,
    kernel_and_node,
    pack,
    pack_map,
    read_all,
    read_exactly,
    reset,
    resident_bytes,
    send_all,
    until,
)

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])
KIB, MIB = 1024, 1024 * 1024
TO_PEER = (KERNEL, 4001)


async def works_again(kernel: Kernel, node: rdsx.Node, sock: rdsx.RdsSocket) -> None:
    """Whatever the peer did, its next proper connection is taken, and a message goes each way."""
    if not kernel.is_smaller:
        await kernel.poke()
    link = await kernel.again()
    await link.send(b"after all")
    assert await sock.recv() == b"after all"
    await sock.sendto(b"you too", TO_PEER)
    await link.until(lambda: kernel.delivered[-1:] == [b"you too"])


BAD = {
    "one byte too long": ("bad_length", pack_map() + pack(1, length=MIB + 1)),
    "as long as can be": ("bad_length", pack_map() + pack(1, length=2**32 - 1)),
    "to nobody, too long": ("bad_length", pack_map() + pack(1, dport=4999, length=2 * MIB)),
    "first header too long": ("bad_length", pack(1, length=MIB + 1)),
    "map too long": ("bad_length", pack(0, sport=0, dport=0, flags=1, length=2**31)),
    "wrong checksum": ("bad_checksum", pack_map() + pack(1, b"x", checksum=0x1234)),
    "wrong checksum first": ("bad_checksum", pack(1, b"x", checksum=1)),
    "wrong checksum of a map": ("bad_checksum", pack_map() + pack(0, bytes(8192), sport=0, dport=0, flags=1, checksum=0xFFFF)),
    "garbage": ("bad_checksum", random.Random(1).randbytes(64 * KIB)),
    "garbage behind a map": ("bad_checksum", pack_map() + random.Random(2).randbytes(64 * KIB)),
    "another protocol": ("bad_checksum", b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: somebody else\r\nAccept: */*\r\n\r\n"),
    "all ones, whose checksum is right": ("bad_length", b"\xff" * 4096),
}


@both_orders
@pytest.mark.parametrize("kind", BAD)
async def test_bytes_that_cannot_be_right(address: str, kind: str) -> None:
    reason, wire = BAD[kind]
    async with kernel_and_node(address) as (kernel, node), bystanders(node, kernel.port):
        sock = await node.bind(4000)
        link = await kernel.raw_link()
        with drops_of(node) as drops:
            await send_all(link, wire)
            await read_all(link)
            await until(lambda: node.statistics().drops.get(reason))
        assert drops.pop(reason) == 1
        if kernel.is_smaller:
            assert drops == {}
            assert sock.statistics().queued_messages == 0
        await works_again(kernel, node, sock)


@both_orders
async def test_unknown_flags_are_no_reason(address: str) -> None:
    async with kernel_and_node(address) as (kernel, node), bystanders(node, kernel.port):
        sock = await node.bind(4000)
        link = await kernel.raw_link()
        await send_all(link, pack_map() + b"".join(pack(1 + flags, b"%d" % flags, flags=flags) for flags in range(256) if flags != 1))
        assert [await sock.recv() for _ in range(255)] == [b"%d" % flags for flags in range(256) if flags != 1]
        assert node.statistics().drops == {}


@both_orders
async def test_too_long_for_this_node_is_consumed_and_counted(address: str) -> None:
    """A.17: longer than max_message_bytes but no longer than what kernels send. Closing would make the peer send it again at once."""
    async with kernel_and_node(address, max_message_bytes=10_000) as (kernel, node), bystanders(node, kernel.port):
        sock = await node.bind(4000)
        link = await kernel.meet()
        await link.send(b"a", bytes(10_001), bytes(MIB), b"b")
        assert [await sock.recv(), await sock.recv()] == [b"a", b"b"]
        assert node.statistics().counters["recv_drop_too_long"] == 2
        assert node.statistics().drops == {}


@both_orders
async def test_peer_that_says_nothing(address: str) -> None:
    async with kernel_and_node(address, hello_timeout_s=0.05) as (kernel, node), bystanders(node, kernel.port):
        sock = await node.bind(4000)
        link = await kernel.raw_link()
        await read_all(link)
        await until(lambda: node.statistics().drops.get("peer_silent"))
        await works_again(kernel, node, sock)


@both_orders
@pytest.mark.parametrize("size", [0, 1, 24, 47, 48, 49, 48 + 8192 + 47, 48 + 8192 + 48, 48 + 8192 + 48 + 2000])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_cut_off_anywhere(address: str, how: str, size: int) -> None:
    """Half a header, half a map, half a message, and then the end: nothing of it is delivered."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.raw_link()
            await read_exactly(link, len(pack_map()))
            with drops_of(node) as drops:
                await send_all(link, (pack_map() + pack(1, bytes(5000)))[:size])
                if how == "close":
                    link.shutdown(socket.SHUT_WR)
                    await read_all(link)
                else:
                    reset(link)
                reason = "closed_by_peer" if how == "close" else "reset_by_peer"
                await until(lambda: node.statistics().drops.get(reason))
            assert drops == {reason: 1}
            assert sock.statistics().queued_messages == 0
            await works_again(kernel, node, sock)


@both_orders
async def test_long_message_slowly(address: str) -> None:
    """The longest message there is, a few bytes at a time, and never its end. It holds its own connection up, and no memory to speak of."""
    async with kernel_and_node(address, close_drain_s=0.0) as (kernel, node), bystanders(node, kernel.port) as pair:
        sock = await node.bind(4000)
        link = await kernel.raw_link()
        before = resident_bytes()
        await send_all(link, pack_map() + pack(1, length=MIB))
        for _ in range(200):
            await send_all(link, b"drip")
            await pair.go_on(1)
        assert resident_bytes() - before < 4 * MIB
        assert node.statistics().drops == {}
        assert sock.statistics().queued_messages == 0
        link.close()
        await until(lambda: node.statistics().drops.get("closed_by_peer") or node.statistics().drops.get("reset_by_peer"))
        await works_again(kernel, node, sock)


@both_orders
@pytest.mark.parametrize("what", ["pings", "probes", "maps", "hellos that change", "to nobody", "duplicates", "resends"])
async def test_flood_by_a_peer_that_does_not_read(address: str, what: str) -> None:
    """Each of these makes us answer, report or count; none may make us keep more and more."""
    async with kernel_and_node(address) as (kernel, node), bystanders(node, kernel.port) as pair:
        link = await kernel.raw_link()
        piece = {
            "pings": b"".join(pack(number, sport=2 + number % 60000, dport=0) for number in range(1, 1001)),
            "probes": b"".join(pack(number, sport=1, dport=0, extensions=b"\x05\x00\x08") for number in range(1, 1001)),
            "maps": b"".join(pack_map(4000 + number) for number in range(20)),
            "hellos that change": b"".join(
                pack(number, sport=1, dport=0, extensions=b"\x05\0\x08\x06" + number.to_bytes(4, "big")) for number in range(1, 1001)
            ),
            "to nobody": b"".join(pack(number, bytes(1000), dport=4999) for number in range(1, 201)),
            "duplicates": b"".join(pack(1, bytes(1000), dport=4999) for number in range(1, 201)),
            "resends": pack(2**40, dport=4999) + b"".join(pack(1, bytes(1000), flags=4) for number in range(1, 201)),
        }[what]
        await send_all(link, pack_map())
        before = None
        sent = 0
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                nonlocal sent
                while True:
                    await send_all(link, piece)
                    sent += 1

            nursery.start_soon(flood)
            await until(lambda: sent > 20)
            before, at = resident_bytes(), sent
            await until(lambda: sent > at + 30)
            await pair.go_on(200)
            nursery.cancel_scope.cancel()
        assert resident_bytes() - before < 4 * MIB
        stats = node.statistics()
        assert stats.drops == {}
        (connection,) = (each for each in stats.connections if each.peer == KERNEL)
        assert connection.send_queue_messages + connection.retransmit_queue_messages <= 1025
        if what in ("pings", "probes"):
            assert stats.counters["recv_drop_ping"] > 10_000
        assert stats.queued_bytes < 10_000  # at most what the bystanders have under way


async def test_flood_of_bad_connections() -> None:
    """The larger address takes our connections, speaks, and then says rubbish, for ever. It costs us little, and others nothing."""
    async with kernel_and_node(SMALLER) as (kernel, node), bystanders(node, kernel.port) as pair:
        await kernel.poke()
        rounds = 0

        async def rubbish() -> None:
            nonlocal rounds
            while True:
                link = await kernel.accept_raw()
                await send_all(link, pack_map() + b"\xfe" * 48)
                await read_all(link)
                kernel.unadopted.remove(link)
                link.close()
                rounds += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rubbish)
            await until(lambda: rounds >= 20)
            await pair.go_on(100)
            nursery.cancel_scope.cancel()
        assert node.statistics().drops["bad_checksum"] >= 20
