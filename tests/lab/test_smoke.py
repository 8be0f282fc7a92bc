"""rdsx against a live kernel: the first things that must work, with the smaller and with the larger address."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from lab.driver import Driver, open_rdsx
from lab.guest import Guest, GuestProcess
from lab.lab import LARGER, SMALLER, Lab
from lab.traffic import digests

pytestmark = [pytest.mark.lab, pytest.mark.slow]

RDSX_PORT, KERNEL_PORT, KERNEL_SENDER_PORT = 4000, 4000, 4001
BOTH_SIDES = pytest.mark.parametrize("address", [pytest.param(SMALLER, id="smaller"), pytest.param(LARGER, id="larger")])
MIXED = {"count": 200, "low": 0, "high": 65536}
LINGER_S = 0.3  # time for a message that should not come


@BOTH_SIDES
@pytest.mark.parametrize("first", ["rdsx", "kernel"])
async def test_single_messages(lab: Lab, fresh_guest: Guest, address: str, first: str) -> None:
    async with open_rdsx(lab, address) as node:
        await node.do("bind", port=RDSX_PORT)
        steps = [to_kernel, to_rdsx]
        for step in steps if first == "rdsx" else reversed(steps):
            await step(node, fresh_guest, seed=1, count=1, low=64, high=64)
        assert_one_clean_link(await node.do("statistics"))


@BOTH_SIDES
async def test_mixed_sizes(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_rdsx(lab, address) as node:
        await node.do("bind", port=RDSX_PORT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: to_kernel(node, fresh_guest, seed=2, **MIXED))
            nursery.start_soon(lambda: to_rdsx(node, fresh_guest, seed=3, **MIXED))
        # Both may begin at once: then the kernel, waiting for its own connect, closes ours unheard, and we dial again.
        assert_one_clean_link(await node.do("statistics"), may_be_refused=True)


@BOTH_SIDES
@pytest.mark.parametrize("first", ["rdsx", "kernel"])
async def test_pings(lab: Lab, fresh_guest: Guest, address: str, first: str) -> None:
    async with open_rdsx(lab, address) as node:
        for side in ("rdsx", "kernel") if first == "rdsx" else ("kernel", "rdsx"):
            if side == "rdsx":
                assert (await node.do("ping", host=fresh_guest.address, count=5))["answers"] == 5
            else:
                answer = await fresh_guest.check(fresh_guest.rds_command(f"ping {fresh_guest.address} {address} --count 5 --timeout 10"))
                assert json.loads(answer)["answers"] == 5
        assert_one_clean_link(await node.do("statistics"))


@BOTH_SIDES
async def test_connection_reset_by_rdsx_while_it_sends(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_rdsx(lab, address) as node:
        await node.do("bind", port=RDSX_PORT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_often, node, fresh_guest)
            await to_kernel(node, fresh_guest, seed=4, interval_s=0.005, **MIXED)
            nursery.cancel_scope.cancel()
        assert (await node.do("statistics"))["connections"][0]["reconnects"] > 0


@BOTH_SIDES
async def test_connection_reset_by_rdsx_while_it_receives(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_rdsx(lab, address) as node:
        await node.do("bind", port=RDSX_PORT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_often, node, fresh_guest)
            await to_rdsx(node, fresh_guest, seed=5, interval_s=0.005, **MIXED)
            nursery.cancel_scope.cancel()
        assert (await node.do("statistics"))["connections"][0]["reconnects"] > 0


@BOTH_SIDES
async def test_connection_reset_by_rdsx_before_it_has_read(lab: Lab, fresh_guest: Guest, address: str) -> None:
    async with open_rdsx(lab, address) as node, trio.open_nursery() as nursery:
        await node.do("bind", port=RDSX_PORT)
        await to_rdsx(node, fresh_guest, seed=6, count=1, low=64, high=64)
        nursery.start_soon(lambda: node.do("stall_and_reset", host=fresh_guest.address, stall_s=3.0))
        await node.wait_log("stalled")
        await to_rdsx(node, fresh_guest, seed=7, count=50, low=1000, high=1000, patience_s=6.0)


@BOTH_SIDES
async def test_rdsx_restarts(lab: Lab, fresh_guest: Guest, address: str) -> None:
    for life in range(3):
        async with open_rdsx(lab, address) as node:
            await node.do("bind", port=RDSX_PORT)
            for step in (to_kernel, to_rdsx) if life % 2 else (to_rdsx, to_kernel):
                await step(node, fresh_guest, seed=10 + life, count=20, low=0, high=4096)
            if life == 0:
                await node.kill()


async def to_kernel(node: Driver, guest: Guest, *, seed: int, count: int, low: int, high: int, interval_s: float = 0.0) -> None:
    """Messages from rdsx to the kernel, and that all of them came, once and in order."""
    receive = guest.rds_command(f"recv {guest.address}:{KERNEL_PORT} --count {count} --timeout 20 --linger {LINGER_S}")
    async with guest.start_process(receive) as receiver:
        await receiver.wait_output("ready")
        traffic = {"seed": seed, "count": count, "low": low, "high": high, "interval_s": interval_s}
        sent = await node.do("send", port=RDSX_PORT, host=guest.address, to=KERNEL_PORT, **traffic)
        got = await last_line(receiver)
    assert_same(got["digests"], digests(seed, count, low, high), (sent, got["error"], node))
    assert got["senders"] == {f"{node.address}:{RDSX_PORT}": count}
    assert sent["flushed"], sent


async def to_rdsx(
    node: Driver, guest: Guest, *, seed: int, count: int, low: int, high: int, interval_s: float = 0.0, patience_s: float = 30.0
) -> None:
    """The same from the kernel to rdsx."""
    got: dict[str, Any] = {}

    async def receive() -> None:
        got.update(await node.do("recv", port=RDSX_PORT, count=count, timeout_s=patience_s, linger_s=LINGER_S))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        send = f"send {guest.address}:{KERNEL_SENDER_PORT} {node.address}:{RDSX_PORT} --seed {seed} --count {count} --sizes {low}-{high}"
        async with guest.start_process(guest.rds_command(f"{send} --interval {interval_s} --timeout 20")) as sender:
            sent = await last_line(sender)
    assert_same(got["digests"], digests(seed, count, low, high), (sent, node))
    assert got["senders"] == {f"{guest.address}:{KERNEL_SENDER_PORT}": count}
    assert (sent["error"], sent["drained"]) == (None, True)


async def reset_often(node: Driver, guest: Guest) -> None:
    """Break the connection a few times a second, as long as there is one."""
    while True:
        await trio.sleep(0.15)
        await node.do("reset", host=guest.address)


async def last_line(process: GuestProcess) -> dict[str, Any]:
    """The result that guest_rds.py prints."""
    status, output = await process.wait(60)
    assert status == 0, output
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def assert_same(found: list[str], expected: list[str], context: tuple[Any, ...]) -> None:
    """The same messages in the same order; otherwise say which are lost, twice, foreign or out of order."""
    if found == expected:
        return
    numbers = [expected.index(digest) if digest in expected else "foreign" for digest in found]
    lost = [number for number, digest in enumerate(expected) if digest not in found]
    twice = sorted({str(number) for number in numbers if numbers.count(number) > 1})
    *facts, node = context
    raise AssertionError(
        f"of {len(expected)} messages came {len(found)}: lost {lost}, twice {twice}, "
        f"order {'kept' if numbers == sorted(numbers, key=str) else numbers}; {facts}\n{node.log()}"
    )


def assert_one_clean_link(statistics: dict[str, Any], *, may_be_refused: bool = False) -> None:
    """Nothing went wrong unseen: one connection to a kernel, one link that carried anything, nothing resent, nothing dropped."""
    (connection,) = statistics["connections"]
    found = {name: connection[name] for name in ("state", "kind", "links", "retransmitted_messages")}
    assert found == {"state": "up", "kind": "kernel", "links": 1, "retransmitted_messages": 0}
    assert set(statistics["drops"]) <= ({"closed_by_peer", "reset_by_peer"} if may_be_refused else set())
