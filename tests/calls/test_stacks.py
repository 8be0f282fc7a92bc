"""Couriers on real sockets: loopback inside one node, and TCP between two that lose their connection."""

from __future__ import annotations

import pytest
import trio

import rdsx
from apikit import LEFT, RIGHT, both, duo
from rdsx.calls import IncomingCall

T = 5


@both
async def test_calls_both_ways_of_all_sizes(transport: str) -> None:
    async with duo(transport) as pair:
        left, right = await pair.sockets(7000, 7001)
        async with rdsx.open_courier(left) as here, rdsx.open_courier(right) as there:
            runs = 0

            async def turn(call: IncomingCall) -> bytes:
                nonlocal runs
                runs += 1
                await trio.lowlevel.checkpoint()
                return call.payload[::-1]

            for courier in (here, there):
                courier.register(T, turn)

            async def call(courier: rdsx.calls.Courier, peer: tuple[str, int], size: int) -> None:
                payload = bytes(number % 251 for number in range(size))
                assert await courier.call(peer, T, payload) == (0, payload[::-1])

            async with trio.open_nursery() as nursery:
                for size in (0, 1, 100, 5000, 70_000, 1_000_000):
                    for _ in range(5):
                        nursery.start_soon(call, here, (RIGHT, 7001), size)
                        nursery.start_soon(call, there, (LEFT, 7000), size)
                    if transport == "tcp":
                        await trio.lowlevel.checkpoint()
                        pair.left.reset_connection(RIGHT)
            assert runs == 60
            await here.call((LEFT, 7000), T)  # a courier may call itself
            assert runs == 61


async def test_an_address_that_this_socket_cannot_reach() -> None:
    async with duo("loop") as pair:
        left, _ = await pair.sockets(7000, 7001)
        async with rdsx.open_courier(left) as here:
            for _ in range(2):
                with pytest.raises(rdsx.calls.CallNotSentError, match=r"127\.0\.0\.9") as caught:
                    await here.call(("127.0.0.9", 7000), T)
                assert caught.value.executed is rdsx.calls.Executed.NO
