"""rdsx against a live kernel: both address orders × who speaks first × traffic × disturbance, with an account of every message.

RDSX_LAB_MATRIX=brief runs each traffic undisturbed and each disturbance with the traffic that shows a loss best; =full runs everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
import trio

from lab.bench import PORT, Bench, EndName, Flow, open_bench
from lab.disturbances import Cable, Disturbance, Loss, ResetByKernel, ResetByRdsx, Restart
from lab.guest import Guest
from lab.lab import LARGER, SMALLER, Lab
from lab.readiness import BRIEF

pytestmark = [pytest.mark.lab, pytest.mark.slow]

DISTURBANCES = {
    "undisturbed": Disturbance(),
    "reset_by_rdsx": ResetByRdsx(),
    "reset_by_kernel": ResetByKernel(),
    "rdsx_killed": Restart("rdsx"),
    "guest_rebooted": Restart("kernel"),
    "cable": Cable(),
    "loss": Loss(),
}


async def single(bench: Bench, disturbance: Disturbance) -> None:
    """A message each way, what disturbs, and a message each way again."""
    before, after = both_ways(bench, 1), both_ways(bench, 3)
    for end in bench.ends:
        await end.bind()
    async with disturbance.around(bench):
        await in_turn(bench, before)
        if isinstance(disturbance, Restart):
            await disturbance.down(bench)
            await disturbance.up(bench)
        elif disturbance.strikes:
            await disturbance.strike(bench)
        await in_turn(bench, after)
    for flow, later in zip(before, after, strict=True):
        if isinstance(disturbance, Restart) and disturbance.end == flow.receiver:
            bench.account(flow.receiver, flow, life=0)
            bench.account(flow.receiver, later)
        else:
            bench.account(flow.receiver, flow, later)
    if type(disturbance) is Disturbance:
        await assert_one_clean_link(bench)


async def stream(bench: Bench, disturbance: Disturbance, **sizes: int) -> None:
    """Many messages, both ways at once."""
    flows = both_ways(bench, 1, **sizes)
    for end in bench.ends:
        # Small, so that a sender is never far ahead of who reads: a disturbance then finds messages sent, under way, and not yet sent.
        await end.bind(**({} if type(disturbance) is Disturbance else {"send_buffer": 1 << 20, "receive_buffer": 1 << 18}))
    async with disturbance.around(bench):
        sending = []
        for flow in flows:
            sending.append(bench.start_sending(flow))
            await bench.wait_received(flow, 1)
        if isinstance(disturbance, Restart):
            await restart_amid(bench, disturbance, flows)
            return
        for flow in sorted(flows, key=lambda flow: flow.sender == "kernel"):  # a kernel under emulation is the slower sender
            for strike in range(disturbance.strikes):
                await bench.wait_received(flow, flow.count * (strike + 1) // (disturbance.strikes + 1))
                await disturbance.strike(bench)
        for flow, sent in zip(flows, sending, strict=True):
            await sent.wait()
            await bench.wait_came(flow)
    for flow in flows:
        bench.account(flow.receiver, flow)
    if type(disturbance) is Disturbance:
        await assert_one_clean_link(bench)


async def restart_amid(bench: Bench, restart: Restart, flows: list[Flow]) -> None:
    """One end is killed amid its flow and the other's, and sends a new one in its next life."""
    (own,) = [flow for flow in flows if flow.sender == restart.end]
    (others,) = [flow for flow in flows if flow.receiver == restart.end]
    await bench.wait_received(others, others.count // 4)
    await restart.down(bench)
    acknowledged = await bench.acknowledged(others)
    assert acknowledged < others.count, "killed too late"
    await restart.up(bench)
    again = Flow(sender=own.sender, seed=own.seed + 10, count=max(1, own.count // 4), low=own.low, high=own.high)
    await bench.send(again)
    await bench.wait_came(others)
    await bench.wait_came(again)
    # The killed end: what its former life had not said it received is lost, as far as its TCP had acknowledged it, and nothing else.
    former = bench.end(restart.end).received(0)
    bench.compare(restart.end, others.digests[: len(former)], life=0)
    bench.compare(restart.end, others.digests[acknowledged:])
    # The other end: a beginning of what the killed one had sent, and all of the rest.
    came = len(bench.end(own.receiver).received()) - again.count
    bench.compare(own.receiver, own.digests[:came] + again.digests)


async def congestion(bench: Bench, disturbance: Disturbance) -> None:
    """Nobody reads until both senders have met a congested port and wait for it."""
    flows = both_ways(bench, 1, count=400, low=1000, high=1000)
    for end in bench.ends:
        await end.bind(reads=False, receive_buffer=16384)
    async with disturbance.around(bench):
        taken, waiting = [], []
        for flow in flows:
            count, error = await bench.queue(flow, interval_s=0.005)
            assert (0 < count < flow.count, error) == (True, "ENOBUFS"), (flow, count, error)
            taken.append(count)
            waiting.append(bench.start_sending(flow, skip=count))
        if isinstance(disturbance, Restart):
            await restart_congested(bench, disturbance, flows, taken)
            return
        if disturbance.strikes:
            await disturbance.strike(bench)
        for flow, count in zip(flows, taken, strict=True):
            assert (await bench.end(flow.sender).now.do("account", port=PORT))["sent"] == count, "sent to a congested port"
        for end in bench.ends:
            await end.read()
        for flow, sent in zip(flows, waiting, strict=True):
            await sent.wait()
            await bench.wait_came(flow)
    for flow in flows:
        bench.account(flow.receiver, flow)


async def restart_congested(bench: Bench, restart: Restart, flows: list[Flow], taken: list[int]) -> None:
    """What the killed end had queued, to read or to send, is lost; whoever waited for it goes on."""
    ((own, own_count),) = [(flow, count) for flow, count in zip(flows, taken, strict=True) if flow.sender == restart.end]
    ((others, _),) = [(flow, count) for flow, count in zip(flows, taken, strict=True) if flow.receiver == restart.end]
    await restart.down(bench)
    acknowledged = await bench.acknowledged(others)
    await restart.up(bench)
    await bench.end(own.receiver).read()
    again = Flow(sender=own.sender, seed=own.seed + 10, count=50, low=1000, high=1000)
    await bench.send(again)
    await bench.wait_came(others)
    await bench.wait_came(again)
    bench.compare(restart.end, others.digests[acknowledged:])
    bench.compare(own.receiver, own.digests[:own_count] + again.digests)


async def ping(bench: Bench, disturbance: Disturbance) -> None:
    """Pings from either end, each of them answered."""
    async with disturbance.around(bench):
        await pings_in_turn(bench)
        if isinstance(disturbance, Restart):
            await disturbance.down(bench)
            await disturbance.up(bench)
            await pings_in_turn(bench)
            return
        async with trio.open_nursery() as nursery:
            for end in bench.ends:
                nursery.start_soon(partial(pings, bench, end.name, count=30, interval_s=0.02))
            for _ in range(2 * disturbance.strikes):
                await disturbance.strike(bench)
    if type(disturbance) is Disturbance:
        await assert_one_clean_link(bench)


async def pings_in_turn(bench: Bench) -> None:
    for end in bench.ends:
        await pings(bench, end.name, count=3)


async def pings(bench: Bench, name: EndName, count: int, interval_s: float = 0.0) -> None:
    end = bench.end(name)
    answer = await end.now.do("ping", host=bench.other(end).address, count=count, interval_s=interval_s)
    assert answer["answers"] == count


async def cancel(bench: Bench, disturbance: Disturbance) -> None:
    """Messages are cancelled; those before and those after come. Where nothing can get through meanwhile, none of the cancelled does."""
    before, gone, kept = both_ways(bench, 1), both_ways(bench, 3, count=200, low=4000, high=4000), both_ways(bench, 5, count=20)
    for end in bench.ends:
        await end.bind()
    await in_turn(bench, before)
    async with disturbance.around(bench):
        if isinstance(disturbance, Restart):
            await cancel_while_killed(bench, disturbance, before, gone, kept)
            return
        unreachable = isinstance(disturbance, Cable)
        if unreachable:
            await break_off(bench)
        for flow, later in zip(gone, kept, strict=True):
            await queue_all(bench, flow)
            await cancel_all(bench, flow)
            if not unreachable and disturbance.strikes:
                await disturbance.strike(bench)
            await queue_all(bench, later)
        bench.guest.plug_cable()
        for flow in kept:
            await bench.wait_came(flow)
    for first, flow, later in zip(before, gone, kept, strict=True):
        came = len(bench.end(flow.receiver).received()) - first.count - later.count
        assert not (unreachable and came), f"{came} cancelled messages came to {flow.receiver}"
        bench.compare(flow.receiver, first.digests + flow.digests[:came] + later.digests)


async def cancel_while_killed(bench: Bench, restart: Restart, before: list[Flow], gone: list[Flow], kept: list[Flow]) -> None:
    await restart.down(bench)
    for first, flow, later in zip(before, gone, kept, strict=True):
        if flow.receiver == restart.end:
            await queue_all(bench, flow)
            await cancel_all(bench, flow)
            await queue_all(bench, later)
            await restart.up(bench)
            again = Flow(sender=restart.end, seed=9)  # a kernel with the larger address waits to be dialled
            await bench.send(again)
            await bench.wait_came(later)
            bench.account(restart.end, first, life=0)
            bench.account(restart.end, later)


async def queue_all(bench: Bench, flow: Flow) -> None:
    assert await bench.queue(flow) == (flow.count, None)


async def cancel_all(bench: Bench, flow: Flow) -> None:
    await bench.end(flow.sender).now.do("cancel", port=PORT, host=bench.end(flow.receiver).address, to=PORT)
    assert await bench.acknowledged(flow) == (await bench.end(flow.sender).now.do("account", port=PORT))["sent"]


async def break_off(bench: Bench) -> None:
    """The cable out, and nothing under way in TCP: each end knows that it cannot reach the other."""
    bench.guest.pull_cable()
    await bench.kill_tcp()
    await bench.reset()
    while (await bench.connection())["state"] == "up":
        await trio.sleep(0.02)


def both_ways(bench: Bench, seed: int, **sizes: int) -> list[Flow]:
    """A flow of who speaks first, and one of the other."""
    return [Flow(sender=end.name, seed=seed + number, **sizes) for number, end in enumerate(bench.ends)]


async def in_turn(bench: Bench, flows: list[Flow]) -> None:
    for flow in flows:
        await bench.send(flow)
        await bench.wait_came(flow)


async def assert_one_clean_link(bench: Bench) -> None:
    """Nothing went wrong unseen: one link, nothing resent. (Both may begin at once; then the kernel refuses one connection unheard.)"""
    connection = await bench.connection()
    found = {name: connection[name] for name in ("state", "kind", "links", "retransmitted_messages")}
    assert found == {"state": "up", "kind": "kernel", "links": 1, "retransmitted_messages": 0}
    drops = (await bench.rdsx.now.do("statistics"))["drops"]
    assert set(drops) <= {"closed_by_peer", "reset_by_peer"}


Traffic = Callable[[Bench, Disturbance], Coroutine[Any, Any, None]]

TRAFFICS: dict[str, Traffic] = {
    "single": single,
    "many": partial(stream, count=10_000, low=0, high=16384),
    "stream": partial(stream, count=1500, low=0, high=65536),
    "large": partial(stream, count=16, low=1 << 20, high=1 << 20),
    "congestion": congestion,
    "ping": ping,
    "cancel": cancel,
}


def cases() -> Iterator[Any]:
    for traffic, disturbance, first, address in itertools.product(TRAFFICS, DISTURBANCES, ("rdsx", "kernel"), (SMALLER, LARGER)):
        side = "smaller" if address == SMALLER else "larger"
        if (not BRIEF and traffic != "stream") or is_brief(traffic, disturbance, first, side):
            yield pytest.param(traffic, disturbance, first, address, id=f"{traffic}-{disturbance}-{first}_first-{side}")


def is_brief(traffic: str, disturbance: str, first: str, side: str) -> bool:
    if disturbance == "undisturbed" and traffic in ("single", "ping"):
        return True
    crossed = (first == "rdsx") == (side == "larger")  # two of the four: each side and each first speaker once
    if disturbance == "undisturbed":
        return crossed and traffic != "stream"
    return (traffic == "stream" and crossed) or ((traffic, disturbance) == ("cancel", "cable") and crossed)


@pytest.mark.parametrize(("traffic", "disturbance", "first", "address"), list(cases()))
async def test_matrix(lab: Lab, fresh_guest: Guest, traffic: str, disturbance: str, first: EndName, address: str) -> None:
    async with open_bench(lab, fresh_guest, address, first) as bench:
        await TRAFFICS[traffic](bench, DISTURBANCES[disturbance])
