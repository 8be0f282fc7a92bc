"""Who connects, what goes over the wire first: the step lists of spec A.19, both address orders, and the traps around them."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing

from kernelkit import (
    KERNEL,
    LARGER,
    RETRANSMITTED,
    SMALLER,
    drops_of,
    is_readable,
    kernel_and_node,
    pack_map,
    read_all,
    read_exactly,
    reset,
    until,
)

both_orders = pytest.mark.parametrize("address", [SMALLER, LARGER])
both_kernels = pytest.mark.parametrize("generation", [None, 0xDEADBEEF], ids=["6.1", "7.x"])
TO_KERNEL = (KERNEL, 4001)


@both_kernels
async def test_node_smaller_connects_first(generation: int | None) -> None:
    """(i-a): map, resends, P(1) from us; map, its probe, its queue from the kernel; P(1) in answer; data freely."""
    async with kernel_and_node(SMALLER, generation=generation) as (kernel, node):
        with await node.bind(4000) as sock:
            for text in (b"a", b"b"):
                await sock.sendto(text, TO_KERNEL)
            kernel.push(b"from the queue")
            link = await kernel.accept()
            await link.until(lambda: link.probe_pongs == 2)
            assert [(frame.flags, frame.sequence) for frame in link.frames[:4]] == [(1, 0), (0, 1), (0, 2), (0, 3)]
            assert [frame.is_probe_pong for frame in link.frames] == [False, False, False, True, True]
            assert kernel.delivered == [b"a", b"b"]
            assert kernel.npaths == 1
            assert kernel.peer_generation == (None if generation is None else node.generation)
            assert await sock.recvfrom() == (b"from the queue", TO_KERNEL)
            await sock.sendto(b"c", TO_KERNEL)
            await link.until(lambda: len(kernel.delivered) == 3)
            await link.send(b"d")
            assert await sock.recv() == b"d"
            (connection,) = node.statistics().connections
            assert (connection.kind, connection.state, connection.links) == ("kernel", "up", 1)


@both_kernels
async def test_node_larger_connects_first(generation: int | None) -> None:
    """(i-b): our connect is a poke that carries nothing; the kernel refuses it with FIN and RST and dials."""
    async with kernel_and_node(LARGER, generation=generation) as (kernel, node):
        with await node.bind(4000) as sock:
            await sock.sendto(b"a", TO_KERNEL)
            await kernel.take_poke()
            link = await kernel.dial()
            await link.until(lambda: link.probe_pongs > 0 and kernel.delivered)
            assert kernel.delivered == [b"a"]
            await link.send(b"b")
            assert await sock.recv() == b"b"
            assert node.statistics().drops == {}


async def test_poke_is_repeated_until_the_kernel_dials() -> None:
    """(i-b): no connection arrives, because the kernel's path was not down. Poke again; never write on a poke."""
    async with kernel_and_node(LARGER) as (kernel, node):
        with await node.bind(4000) as sock:
            await sock.sendto(b"a", TO_KERNEL)
            for _ in range(5):
                await kernel.take_poke()
            link = await kernel.dial()
            await link.until(lambda: kernel.delivered == [b"a"])


async def test_poke_refused_at_once_is_no_error() -> None:
    """(i-b): the kernel's FIN and RST may come before anything of ours; both mean the same."""
    async with kernel_and_node(LARGER) as (kernel, node):
        with await node.bind(4000) as sock:
            await sock.sendto(b"a", TO_KERNEL)
            poke = await kernel.accept_raw()
            reset(poke)
            link = await kernel.dial()
            await link.until(lambda: kernel.delivered == [b"a"])
            assert node.statistics().drops == {}


@both_kernels
async def test_kernel_smaller_connects_first(generation: int | None) -> None:
    """(ii-a): as (i-b) from step 3: map, the kernel's queue; our map and P(1)."""
    async with kernel_and_node(LARGER, generation=generation) as (kernel, node):
        with await node.bind(4000) as sock:
            if generation is None:
                kernel.probe()
            kernel.push(b"data")
            link = await kernel.dial()
            await link.until(lambda: link.probe_pongs == 2)
            assert [frame.is_probe_pong for frame in link.frames] == [False, True, True]
            assert await sock.recvfrom() == (b"data", TO_KERNEL)
            assert kernel.npaths == 1


@both_kernels
async def test_kernel_larger_connects_first(generation: int | None) -> None:
    """(ii-b): its connect is a poke. We close it with nothing written and dial."""
    async with kernel_and_node(SMALLER, generation=generation) as (kernel, node):
        with await node.bind(4000) as sock:
            kernel.push(b"data")
            await kernel.poke()
            link = await kernel.accept()
            await link.until(lambda: link.probe_pongs == 2)
            assert await sock.recvfrom() == (b"data", TO_KERNEL)
            assert node.statistics().drops == {}


async def test_rejected_right_after_the_poke_is_retried() -> None:
    """(ii-b): the kernel needs a moment between its FIN and being DOWN; what we write meanwhile is not taken for delivered."""
    async with kernel_and_node(SMALLER) as (kernel, node):
        with await node.bind(4000) as sock:
            await kernel.poke()
            for up in (False, True, False, True):
                rejected = await kernel.accept_raw()
                if up:  # rejected later: the node's connect has returned, and its map is written
                    await read_exactly(rejected, 8240)
                rejected.shutdown(socket.SHUT_WR)
                reset(rejected)
            await sock.sendto(b"a", TO_KERNEL)
            link = await kernel.accept()
            await link.until(lambda: kernel.delivered == [b"a"])


async def test_both_at_once_node_smaller() -> None:
    """(iii): the kernel's path is not down while its own connect is out: ours is refused once, its own was a poke, ours is taken."""
    async with kernel_and_node(SMALLER) as (kernel, node):
        with await node.bind(4000) as sock:
            await sock.sendto(b"a", TO_KERNEL)
            own = await kernel.dial_raw()
            ours = await kernel.accept_raw()
            await read_exactly(ours, 8240)  # the node was up as soon as TCP was
            reset(ours)
            own.shutdown(socket.SHUT_WR)
            assert await read_all(own) == b""
            link = await kernel.accept()
            await link.until(lambda: link.probe_pongs == 2)
            assert [(frame.flags, frame.is_probe_pong) for frame in link.frames[:3]] == [(1, False), (0, False), (0, True)]
            assert kernel.delivered == [b"a"]


async def test_both_at_once_node_larger() -> None:
    """(iii): our poke and the kernel's connection cross."""
    async with kernel_and_node(LARGER) as (kernel, node):
        with await node.bind(4000) as sock:
            await sock.sendto(b"a", TO_KERNEL)
            poke = await kernel.accept_raw()
            link = await kernel.dial()
            reset(poke)
            await link.until(lambda: kernel.delivered == [b"a"])
            assert kernel.duplicates == 0


@both_orders
async def test_a_hundred_rounds_of_both_at_once(address: str) -> None:
    """T6 without the delay: whatever the order of events, both directions arrive exactly once and in order."""
    rounds = 100
    async with kernel_and_node(address, reconnect_max_delay_s=0.002) as (kernel, node):
        with await node.bind(4000) as sock:
            for number in range(rounds):
                await sock.sendto(b"%d" % number, TO_KERNEL)
                kernel.push(b"%d" % number)
                crossing = await kernel.dial_raw() if not kernel.is_smaller else None
                link = await kernel.again()
                if crossing is not None:
                    reset(crossing)
                await link.until(lambda: len(kernel.delivered) > number)  # noqa: B023  used within the loop
                assert await sock.recv() == b"%d" % number
                link.drop()
            assert kernel.delivered == [b"%d" % number for number in range(rounds)]


@both_orders
async def test_kernel_that_knows_the_path_count_does_not_ask(address: str) -> None:
    """(i-a) step 3 without a probe: nothing of ours depends on it."""
    async with kernel_and_node(address) as (kernel, node):
        kernel.npaths = 1
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.send(b"x")
            assert await sock.recv() == b"x"
            assert link.probe_pongs == 1


async def test_kernel_that_announces_eight_paths_gets_one_connection() -> None:
    """A.9: we say NPATHS=1, so a kernel never opens more, and neither do we."""
    async with kernel_and_node(SMALLER) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.until(lambda: link.probe_pongs == 2)
            assert kernel.npaths == 1
            for number in range(100):
                await sock.sendto(b"%d" % number, TO_KERNEL)
            await link.until(lambda: len(kernel.delivered) == 100)
            await trio.testing.wait_all_tasks_blocked()
            assert kernel.listener is not None
            assert not is_readable(kernel.listener)
            (connection,) = node.statistics().connections
            assert connection.links == 1


async def test_node_takes_the_kernels_queue_that_waited_for_it() -> None:
    """T5, "one poke only": the kernel poked before we listened. It waits until our side has something to say."""
    async with kernel_and_node(SMALLER) as (kernel, node):
        with await node.bind(4000) as sock:
            kernel.push(b"old")
            await sock.sendto(b"first", TO_KERNEL)
            link = await kernel.accept()
            await link.until(lambda: kernel.delivered)
            assert await sock.recv() == b"old"


async def test_second_connection_while_the_kernel_holds_the_first() -> None:
    """T14: the kernel thinks the old connection is up and refuses the new ones. Nothing written on those is taken for delivered."""
    async with kernel_and_node(SMALLER, reconnect_max_delay_s=0.01) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            await link.until(lambda: link.probe_pongs == 2)
            assert node.reset_connection(KERNEL)
            await sock.sendto(b"a", TO_KERNEL)
            for _ in range(4):
                refused = await kernel.accept_raw()
                await read_exactly(refused, 8240)
                reset(refused)
            await link.serve()
            link.close()
            link = await kernel.accept()
            await link.until(lambda: kernel.delivered)
            assert kernel.delivered == [b"a"]


async def test_a_dead_connection_that_no_reset_tells_of() -> None:
    """A peer that accepts, says nothing and answers nothing (a parked socket of 7.x, a dead host): given up after hello_timeout_s."""
    async with kernel_and_node(SMALLER, hello_timeout_s=0.05) as (kernel, node):
        with await node.bind(4000) as sock:
            await sock.sendto(b"a", TO_KERNEL)
            with drops_of(node) as drops:
                silent = await kernel.accept_raw()
                with pytest.raises(ConnectionResetError):
                    while await silent.recv(65536):
                        pass
                await until(lambda: node.statistics().drops)
            assert drops == {"peer_silent": 1}
            link = await kernel.accept()
            await link.until(lambda: kernel.delivered == [b"a"])


async def test_newer_connection_waits_until_the_older_is_drained() -> None:
    """A.15, T12: unflagged originals still in the old socket come first, their flagged copies on the new one are dropped."""
    async with kernel_and_node(LARGER) as (kernel, node):
        with await node.bind(4000) as sock:
            old = await kernel.meet()
            texts = [b"%d" % number for number in range(300)]
            # One scheduler tick: the old connection holds messages nobody has read when the new one with their copies is there.
            plain = as_plain(old.sock)
            for text in texts[:200]:
                plain.sendall(kernel.push(text * 20).pack())
            plain.sendall(kernel.push(b"cut off" * 1000).pack()[:3000])
            plain.close()
            new = socket.create_connection((LARGER, kernel.port), source_address=(KERNEL, 0))
            for message in kernel.queue:
                message.flags = RETRANSMITTED
            for text in texts[200:]:
                kernel.push(text * 20)
            new.sendall(pack_map() + b"".join(message.pack() for message in kernel.queue))
            old.sock.close()
            got = [await sock.recv() for _ in range(301)]
            assert got == [text * 20 for text in texts[:200]] + [b"cut off" * 1000] + [text * 20 for text in texts[200:]]
            stats = node.statistics()
            assert stats.counters["recv_drop_old_seq"] == 200
            assert stats.connections[0].links == 2
            new.close()
            with pytest.raises(trio.WouldBlock):
                sock.recv_nowait()


def as_plain(sock: trio.socket.SocketType) -> socket.socket:
    """A blocking twin of the socket, for what must happen without letting the node run."""
    plain = socket.socket(fileno=os.dup(sock.fileno()))
    plain.setblocking(True)
    return plain


async def test_older_connection_that_never_ends_is_left_in_the_end() -> None:
    """A.15: the old connection is dead and nobody says so. It is read for supersede_drain_s, then the new one gets its turn."""
    async with kernel_and_node(LARGER, supersede_drain_s=0.02) as (kernel, node):
        with await node.bind(4000) as sock:
            old = await kernel.meet()
            with drops_of(node) as drops:
                new = await kernel.dial()
                await new.send(b"new")
                assert await sock.recv() == b"new"
            assert drops == {"superseded": 1}
            await old.serve()
            await sock.sendto(b"back", TO_KERNEL)
            await new.until(lambda: kernel.delivered == [b"back"])


async def test_node_closes_promptly_when_the_kernel_closes() -> None:
    """A.15: a lingering peer stalls a 7.x kernel, which waits for our FIN; so EOF is answered at once."""
    for address in (SMALLER, LARGER):
        async with kernel_and_node(address, generation=9) as (kernel, node):
            link = await kernel.meet()
            with await node.bind(4000) as sock, drops_of(node) as drops:
                await link.send(b"last words")
                link.sock.shutdown(socket.SHUT_WR)
                await link.serve()
                assert await sock.recv() == b"last words"
            assert drops == {"closed_by_peer": 1}


async def test_leaving_half_closes_reads_to_the_end_and_loses_nothing() -> None:
    """A.15, T24: the node's orderly close. What the kernel's TCP has had acknowledged reaches the node before it goes."""
    async with kernel_and_node(LARGER, close_drain_s=5.0) as (kernel, node):
        link = await kernel.meet()
        sock = await node.bind(4000)
        await sock.sendto(b"kept", TO_KERNEL)

        async def kernels_side() -> None:
            await link.serve()  # up to the node's FIN
            await link.send(b"late")
            link.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernels_side)
            await node._stack.drain()
        assert kernel.delivered == [b"kept"]
        assert await sock.recv() == b"late"
        await until(lambda: node.statistics().connections[0].state == "down")
