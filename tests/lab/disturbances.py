"""What the matrix does to a bench while messages flow."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

import trio

from .bench import Bench, EndName

__all__ = ["Cable", "Disturbance", "Loss", "ResetByKernel", "ResetByRdsx", "Restart"]


class Disturbance:
    """None at all. `strikes`: how often it comes in the course of a flow."""

    strikes = 0

    def around(self, bench: Bench) -> AbstractAsyncContextManager[None]:
        """For what lasts."""
        return nullcontext()

    async def strike(self, bench: Bench) -> None:
        """For what happens once and again. The connection is up before and after."""


class ResetByRdsx(Disturbance):
    """rdsx drops the connection."""

    strikes = 2

    async def strike(self, bench: Bench) -> None:
        links = await wait_up(bench)
        assert await bench.reset()
        await wait_up(bench, links + 1)


class ResetByKernel(Disturbance):
    """The TCP connection is killed at the kernel's side: `ss -K`."""

    strikes = 2

    async def strike(self, bench: Bench) -> None:
        links = await wait_up(bench)
        await bench.kill_tcp()
        await wait_up(bench, links + 1)


class Cable(Disturbance):
    """The cable is out for a while. Longer than some retransmission timeouts; TCP's connection outlives it."""

    strikes = 1

    def __init__(self, outage_s: float = 2.0) -> None:
        self.outage_s = outage_s

    async def strike(self, bench: Bench) -> None:
        bench.guest.pull_cable()
        await trio.sleep(self.outage_s)
        bench.guest.plug_cable()


class Loss(Disturbance):
    """The guest's packets come late, out of order, or not at all."""

    def around(self, bench: Bench) -> AbstractAsyncContextManager[None]:
        return bench.guest.netem("delay 10ms 3ms loss 2%")


class Restart(Disturbance):
    """One end is killed and started again. What it held is lost."""

    def __init__(self, end: EndName) -> None:
        self.end = end

    async def down(self, bench: Bench) -> None:
        await bench.end(self.end).now.kill()

    async def up(self, bench: Bench) -> None:
        """The next life. It has bound its port before anybody can reach it: messages to a port that nobody has bound are dropped."""
        end = bench.end(self.end)
        bench.guest.pull_cable()
        if self.end == "kernel":
            await bench.guest.reboot()
        await end.start()
        await end.bind()
        bench.guest.plug_cable()


async def wait_up(bench: Bench, links: int = 1) -> int:
    """Wait until the connection is up and is at least the `links`-th; which one it is."""
    while True:
        connection = await bench.connection()
        if connection["state"] == "up" and connection["links"] >= links:
            return int(connection["links"])
        await trio.sleep(0.02)
