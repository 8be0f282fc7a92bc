"""Exactly-once calls on every stack: what a courier takes from its socket, each of them has. `tests/calls` has the promises."""

from __future__ import annotations

import subprocess

import pytest
import trio

import rdsx
from contractkit import LEFT, RIGHT, Pair, departs, eventually, every_stack, pair
from namespaces import HOSTS
from rdsx.calls import CallConfig, Courier, Executed, IncomingCall

T = 5
SIZES = ((0, 1, 100), (5000, 70_000), (1_000_000,))


def cut(stack: str, two: Pair) -> None:
    """Break the connection between the hosts, if there is one."""
    if departs(stack, "reset"):
        subprocess.run(["ip", "netns", "exec", HOSTS[LEFT], "ss", "-K", "-t", "dst", RIGHT], check=True, stdout=subprocess.DEVNULL)
    else:
        two.left.reset_connection(RIGHT)


@every_stack
async def test_both_ways_in_all_sizes_while_connections_are_cut(stack: str) -> None:
    async with pair(stack) as two:
        left, right = await two.sockets()
        async with rdsx.open_courier(left) as here, rdsx.open_courier(right) as there:
            runs = 0

            async def turn(call: IncomingCall) -> bytes:
                nonlocal runs
                runs += 1
                await trio.lowlevel.checkpoint()
                return call.payload[::-1]

            for courier in (here, there):
                courier.register(T, turn)

            async def call(courier: Courier, peer: Courier, size: int) -> None:
                payload = bytes(number % 251 for number in range(size))
                assert await courier.call(peer.address, T, payload) == (0, payload[::-1])

            async with trio.open_nursery() as nursery:
                for sizes in SIZES:
                    for size in sizes:
                        nursery.start_soon(call, here, there, size)
                        nursery.start_soon(call, there, here, size)
                    await trio.lowlevel.checkpoint()
                    cut(stack, two)
            assert runs == 2 * 6
            assert await here.call(here.address, T, b"me") == (0, b"em")  # a courier may call itself


@every_stack
async def test_more_than_sockets_hold(stack: str) -> None:
    """Requests and replies of several times the buffers: senders wait, and nothing is lost or runs twice."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        config = CallConfig(buffer_bytes=100_000)
        async with rdsx.open_courier(left, config=config) as here, rdsx.open_courier(right, config=config) as there:
            seen: list[int] = []

            async def echo(call: IncomingCall) -> bytes:
                seen.append(int(call.payload[:4]))
                return call.payload

            there.register(T, echo)

            async def call(number: int) -> None:
                payload = b"%04d" % number + bytes(40_000)
                assert await here.call(there.address, T, payload) == (0, payload)

            async with trio.open_nursery() as nursery:
                for number in range(25):
                    nursery.start_soon(call, number)
            assert sorted(seen) == list(range(25))


@every_stack
async def test_a_courier_that_restarts(stack: str) -> None:
    """Its port is unbound for a while, where every stack swallows what comes; a call of that time is for the next life."""
    async with pair(stack) as two:
        left, right = await two.sockets()
        config = CallConfig(resend_s=0.05, grace_s=0)
        async with rdsx.open_courier(left, config=config) as here:
            async with rdsx.open_courier(right, config=config) as there:
                address, begun = there.address, trio.Event()

                @there.handler(T)
                async def begin(call: IncomingCall) -> None:
                    begun.set()
                    await trio.sleep_forever()

                first = here.start_call(address, T)
                await begun.wait()
            with pytest.raises(rdsx.calls.CallCancelledError) as caught:  # the end of its courier has ended the handler
                await first.wait()
            assert caught.value.executed is Executed.YES
            await eventually(lambda: here.statistics().counters.get("resets_received"))  # that this life is over
            second = here.start_call(address, T)
            again = two.right.socket()
            await again.bind(address)
            async with rdsx.open_courier(again, config=config) as there:
                there.register(T, lambda call: b"new")
                assert await second.wait() == (0, b"new")


async def test_an_address_that_a_socket_cannot_reach() -> None:
    """On loopback only: elsewhere nobody knows that nobody is there."""
    async with pair("loop") as two:
        left, _ = await two.sockets()
        async with rdsx.open_courier(left) as here:
            for _ in range(2):
                with pytest.raises(rdsx.calls.CallNotSentError, match=r"127\.0\.0\.9") as caught:
                    await here.call(("127.0.0.9", 7000), T)
                assert caught.value.executed is Executed.NO
