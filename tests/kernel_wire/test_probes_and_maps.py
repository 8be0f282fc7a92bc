"""Pings, probes and congestion maps between a kernel and a node (spec A.8, A.9, A.17), both address orders."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

import rdsx
from kernelkit import (
    HEADER_BYTES,
    KERNEL,
    LARGER,
    RETRANSMITTED,
    SMALLER,
    kernel_and_node,
    next_event,
    pack,
    pack_map,
    read_exactly,
    reset,
    send_all,
    until,
)

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])
TO_KERNEL = (KERNEL, 4001)


@both_orders
async def test_ping_both_ways(address: str) -> None:
    """T11: `rds-ping` from the kernel, and a message to port 0 from us, each answered with an empty message from port 0."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            for port in (4001, 2, 65535):
                kernel.push(sport=port, dport=0)
            await link.pump()
            await link.until(lambda: len(kernel.answers) == 3)
            assert kernel.answers == [4001, 2, 65535]
            await sock.sendto(b"", (KERNEL, 0))
            await link.until(lambda: link.frames[-1].dport == 0)
            assert await sock.recvfrom() == (b"", (KERNEL, 0))


@both_orders
async def test_ping_from_port_0_is_ignored(address: str) -> None:
    async with kernel_and_node(address) as (kernel, _):
        link = await kernel.meet()
        kernel.push(sport=0, dport=0)
        kernel.push(sport=4001, dport=0)
        await link.pump()
        await link.until(lambda: kernel.answers)
        assert kernel.answers == [4001]
        assert [frame.dport for frame in link.frames if not frame.is_map and not frame.is_probe_pong] == [4001]


@both_orders
async def test_no_answer_to_a_port_that_is_full(address: str) -> None:
    """Spec core 3.4: the pong to a congested port is silently not sent, and nothing later instead."""
    async with kernel_and_node(address) as (kernel, _):
        kernel.congested.add(4001)
        link = await kernel.meet()
        kernel.push(sport=4001, dport=0)
        kernel.push(sport=4002, dport=0)
        await link.pump()
        await link.until(lambda: kernel.answers)
        assert kernel.answers == [4002]


@both_orders
async def test_resent_probe_is_answered_like_any(address: str) -> None:
    """A.9: a kernel keeps and resends its ping like any message. Here its first connection was lost before we had it."""
    async with kernel_and_node(address) as (kernel, _):
        kernel.probe(flags=RETRANSMITTED)
        link = await kernel.meet()
        await link.until(lambda: link.probe_pongs == 2)
        assert kernel.npaths == 1


@both_orders
async def test_lost_probe(address: str) -> None:
    """T10, R2: the connection dies when our TCP has acknowledged the kernel's ping, and before RDS there has seen our answer. It never
    asks again, but it hears P(1) unasked on the next connection."""
    async with kernel_and_node(address, reconnect_max_delay_s=0.005) as (kernel, _):
        ping = kernel.probe()
        kernel.queue.clear()
        for number in range(3):
            lost = await kernel.raw_link(poked=number > 0)
            await send_all(lost, pack_map() + ping.pack())
            await read_exactly(lost, len(pack_map()) + 2 * HEADER_BYTES)
            reset(lost)
        link = await kernel.again()
        await link.until(lambda: kernel.npaths)
        assert kernel.npaths == 1
        assert len(kernel.queue) == 0


@both_orders
async def test_every_probe_is_answered_on_every_connection(address: str) -> None:
    async with kernel_and_node(address) as (kernel, _):
        kernel.npaths = 1
        link = await kernel.meet()
        for count in range(1, 6):
            kernel.probe()
            await link.pump()
            await link.until(lambda: link.probe_pongs == 1 + count)  # noqa: B023  used within the loop
        link.drop()
        link = await kernel.again()
        await link.until(lambda: link.probe_pongs == 1)
        kernel.probe()
        await link.pump()
        await link.until(lambda: link.probe_pongs == 2)


@both_orders
async def test_probe_without_headers_and_with_strange_ones(address: str) -> None:
    """A.9, A.18: kernels before multipath send none; unknown ones are skipped; a pong needs no ping."""
    async with kernel_and_node(address) as (kernel, node):
        kernel.npaths = 1
        link = await kernel.meet()
        for extensions in (b"", b"\x05\x00\x00", b"\x08\x01\x05\x00\x01", b"\x10" + bytes(range(15)), b"\xff" * 16, b"\x06\0\0\0\0"):
            kernel.push(sport=1, dport=0, extensions=extensions)
            kernel.push(sport=0, dport=1, extensions=extensions)
        await link.pump()
        await link.until(lambda: link.probe_pongs == 7)
        assert node.statistics().connections[0].generation is None


@both_orders
async def test_pings_turned_off(address: str) -> None:
    """ping_enable off: pings and probes alike go unanswered, as a kernel does it; P(1) still announces one path."""
    async with kernel_and_node(address, ping_enable=False) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            kernel.probe()
            kernel.push(sport=4001, dport=0)
            await link.pump()
            await link.send(b"x")
            assert await sock.recv() == b"x"
            await sock.sendto(b"y", TO_KERNEL)
            await link.until(lambda: kernel.delivered)
            assert link.probe_pongs == 1
            assert kernel.answers == []


@both_orders
async def test_kernel_with_pings_turned_off(address: str) -> None:
    """T25: it neither asks nor answers; traffic flows all the same."""
    async with kernel_and_node(address) as (kernel, node):
        kernel.ping_outstanding = True
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.send(b"x")
            assert await sock.recv() == b"x"
            await sock.sendto(b"y", TO_KERNEL)
            await link.until(lambda: kernel.delivered)


# -- congestion


@both_orders
async def test_the_kernels_map_blocks_and_unblocks(address: str) -> None:
    """T15: its application stops reading."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock, node.events() as events:
            link = await kernel.meet()
            kernel.congested.add(4001)
            await link.send_map()
            for _ in range(2):
                await next_event(events, rdsx.CongestionChanged)
            with pytest.raises(rdsx.CongestedError) as caught:
                sock.sendto_nowait(b"now", TO_KERNEL)
            assert caught.value.errno == errno.ENOBUFS
            await sock.sendto(b"another port", (KERNEL, 4002))
            await link.until(lambda: kernel.delivered == [b"another port"])
            sent = trio.Event()

            async def send() -> None:
                await sock.sendto(b"later", TO_KERNEL)
                sent.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                kernel.congested.add(5000)
                await link.send_map()
                await next_event(events, rdsx.CongestionChanged)
                assert not sent.is_set()
                kernel.congested.discard(4001)
                await link.send_map()
                await sent.wait()
            await link.until(lambda: kernel.delivered == [b"another port", b"later"])


@both_orders
async def test_the_first_map_of_a_connection_counts(address: str) -> None:
    """A port that was full when the connection broke is free in the next one's map, without any other update."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock, node.events() as events:
            kernel.congested.add(4001)
            link = await kernel.meet()
            await next_event(events, rdsx.CongestionChanged)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sock.sendto, b"later", TO_KERNEL)
                await trio.testing.wait_all_tasks_blocked()
                kernel.congested.clear()
                link.drop()
                link = await kernel.again()
                await link.until(lambda: kernel.delivered == [b"later"])


@both_orders
async def test_our_map_goes_out_when_it_changes(address: str) -> None:
    """T16: our application stops reading; the map says so between messages, and again when it reads on."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            sock.setsockopt(1, 8, 8192)  # SOL_SOCKET, SO_RCVBUF
            link = await kernel.meet()
            assert not kernel.is_port_full(4000)
            await link.send(*[b"x" * 2000] * 4)
            await until(lambda: sock.statistics().queued_messages == 4)
            assert not sock.statistics().congested
            await link.send(b"x" * 2000)
            await link.until(lambda: kernel.is_port_full(4000))
            assert bytes(kernel.peer_congested) == pack_map(4000)[48:]
            for _ in range(3):
                await sock.recv()
            await link.until(lambda: not kernel.is_port_full(4000))
            assert kernel.peer_congested == bytes(8192)
            # and first thing on the next connection
            await link.send(*[b"x" * 2000] * 5)
            await link.until(lambda: kernel.is_port_full(4000))
            link.drop()
            kernel.peer_congested = bytes(8192)
            link = await kernel.again()
            await link.frame()
            assert kernel.is_port_full(4000)
            sock.close()
            await link.until(lambda: not kernel.is_port_full(4000))


@both_orders
async def test_map_that_changes_under_load_stands_between_messages(address: str) -> None:
    """A.4: a map is never inside a message. The checks of every frame would see it."""
    async with kernel_and_node(address, send_buffer_bytes=4194304) as (kernel, node):
        with await node.bind(4000) as sock:
            sock.setsockopt(1, 8, 8192)
            link = await kernel.meet()
            texts = [bytes([number]) * 300_000 for number in range(12)]
            await sock.sendmmsg([(text, TO_KERNEL) for text in texts])
            for text in texts:
                await link.send(*[b"x" * 3000] * 4)
                await until(lambda: sock.statistics().queued_messages == 4)
                for _ in range(4):
                    await sock.recv()
                await link.until(lambda: len(kernel.delivered) > texts.index(text))  # noqa: B023  used within the loop
            await link.until(lambda: sum(frame.is_map for frame in link.frames) > 1)
            assert kernel.delivered == texts


# -- malformed, as A.17 has it


@both_orders
async def test_map_of_the_wrong_length_is_ignored(address: str) -> None:
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            for size in (0, 1, 8191, 8193, 65536):
                await link.write(pack(0, b"\xff" * size, sport=0, dport=0, flags=1))
            await link.send(b"x")
            assert await sock.recv() == b"x"
            await sock.sendto(b"y", TO_KERNEL)
            await link.until(lambda: kernel.delivered == [b"y"])
            assert node.statistics().counters["recv_drop_bad_map"] == 5


@both_orders
async def test_map_flag_with_another_is_an_ordinary_message(address: str) -> None:
    """0x05 is no map. It goes to port 0, from port 0, and is ignored."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.write(pack(kernel.next_tx, b"\xff" * 8192, sport=0, dport=0, flags=5))
            kernel.next_tx += 1
            await link.send(b"x")
            assert await sock.recv() == b"x"
            await sock.sendto(b"y", TO_KERNEL)
            await link.until(lambda: kernel.delivered == [b"y"])


@both_orders
@pytest.mark.parametrize("flags", [0xFA, 0x02, 0x08, 0x10, 0x20, 0x80])
async def test_unknown_flags_are_ignored(address: str, flags: int) -> None:
    """A.5: a data message with h_flags 0xfa is delivered. ACK_REQUIRED is not honoured on TCP."""
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            message = kernel.push(b"x", flags=flags)
            await link.pump()
            assert await sock.recv() == b"x"
            assert message.flags == flags
            await sock.sendto(b"y", TO_KERNEL)
            await link.until(lambda: kernel.delivered == [b"y"])


async def test_numbers_as_the_duplicate_test_takes_them() -> None:
    """A.6: gaps, backward jumps without the flag, an unflagged duplicate; only low and flagged is dropped."""
    async with kernel_and_node(LARGER) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            again = RETRANSMITTED
            sent = [(10, 0), (10, 0), (20, 0), (15, again), (21, again), (5, 0), (5, again), (6, again), (1, 0)]
            for number, (sequence, flags) in enumerate(sent):
                await link.write(pack(sequence, b"%d" % number, flags=flags))
            got = [await sock.recv() for _ in range(7)]
            assert got == [b"0", b"1", b"2", b"4", b"5", b"7", b"8"]
            assert node.statistics().counters["recv_drop_old_seq"] == 2


@both_orders
async def test_message_to_a_port_nobody_has(address: str) -> None:
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.send(b"lost", b"l" * 100_000, dport=4999)
            await link.send(b"x")
            assert await sock.recv() == b"x"
            assert node.statistics().counters["recv_drop_no_sock"] == 2


async def test_one_byte_per_read() -> None:
    """T8: a TCP segment may end anywhere."""
    async with kernel_and_node(LARGER) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            for text in (b"", b"x", b"y" * 300):
                for byte in kernel.push(text).pack():
                    await link.write(bytes([byte]))
                    await trio.testing.wait_all_tasks_blocked()
                assert await sock.recv() == text


async def test_every_link_hears_the_path_count_even_if_others_wait_behind_it() -> None:
    """A kernel that has used several paths with whoever had our address before dials them all, and each one again that is closed, until
    it hears on one of them how many we use."""
    async with kernel_and_node(LARGER, supersede_drain_s=0.02) as (kernel, _):
        links = [await kernel.dial_raw() for _ in range(4)]
        for link in links:
            await send_all(link, pack_map())
        for link in links:
            await read_exactly(link, HEADER_BYTES + 8192)  # the node's map
            pong = await read_exactly(link, HEADER_BYTES)
            assert pong[20:24] == b"\0\0\0\1"  # from port 0 to port 1
            assert pong[32:36] == b"\5\0\1\0"
