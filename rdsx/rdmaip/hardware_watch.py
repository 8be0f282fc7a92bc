"""Follows the states of the RDMA ports under interfaces, and reports what changed.

An asynchronous event of a device is only a hint: the states of all its ports are then read anew. Where events cannot be had (no verbs in
this build, no right to open the device) the states are polled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from rdsx.rdmaip.facts import Fact, HardwareFact
from rdsx.rdmaip.hardware import RdmaPort, find_rdma_ports, hardware_facts

__all__ = ["watch_hardware"]

log = logging.getLogger("rdsx.rdmaip")

POLL_S = 1.0
SEARCH_S = 60.0  # how often devices are looked for that have come, or gone


async def watch_hardware(interfaces: Iterable[str], report: Callable[[list[Fact]], None]) -> None:
    """Report the hardware states of these interfaces now and whenever one changes, until cancelled. Devices may come and go."""
    interfaces = tuple(interfaces)
    ports: dict[str, RdmaPort] = {}
    while True:
        former, ports = ports, find_rdma_ports(interfaces)
        if former.keys() - ports.keys():
            report([HardwareFact(name, None) for name in former.keys() - ports.keys()])
        async with trio.open_nursery() as tasks:
            tasks.start_soon(HardwareWatch(ports, report).run)
            while True:
                await trio.sleep(SEARCH_S)
                if find_rdma_ports(interfaces) != ports:
                    break
            tasks.cancel_scope.cancel()


class HardwareWatch:
    """The last states reported."""

    def __init__(self, ports: dict[str, RdmaPort], report: Callable[[list[Fact]], None]) -> None:
        self._ports = ports
        self._report = report
        self._reported: list[HardwareFact] = []

    async def run(self) -> None:
        """Until cancelled; at once where there is nothing to watch."""
        if not self._ports:
            return
        async with trio.open_nursery() as tasks:
            for device in {port.device for port in self._ports.values()}:
                tasks.start_soon(self.follow_events, device)
            while True:
                self.look()
                await trio.sleep(POLL_S)

    def look(self) -> None:
        """Read all states; report those that are news."""
        facts = hardware_facts(self._ports)
        news: list[Fact] = [fact for fact in facts if fact not in self._reported]
        self._reported = facts
        if news:
            self._report(news)

    async def follow_events(self, device: str) -> None:
        """Look at every event of a device; returns at once where its events cannot be had."""
        try:
            from rdsx.transports.verbs.device import OpenDevice

            opened = OpenDevice(device)
        except (ImportError, OSError) as error:
            log.info("events of %s cannot be had (%s): its ports are looked at every %g s", device, error, POLL_S)
            return
        try:
            await opened.watch(lambda kind, port: self.look())
        finally:
            opened.close()
