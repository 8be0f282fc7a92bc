"""What neighbours say, made use of: answers to the probes of groups, and claims to addresses of ours.

Owns the tasks around a `Listener` and the schedule of probes. Invariant: however much strangers send, one address has at most one conflict
reported each second, and nothing is kept for an address that is not of the configuration.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable

import trio

from rdsx.rdmaip.config import Config, Group, Probe
from rdsx.rdmaip.facts import Fact, NeighbourConflict
from rdsx.rdmaip.kernel_state import KernelState
from rdsx.rdmaip.listener import Heard, Listener
from rdsx.rdmaip.prober import Prober

__all__ = ["Neighbourhood"]

CONFLICT_S = 1.0


class Neighbourhood:
    """Listens and asks, until `run` is cancelled; `report` is given what was learnt. Owns neither `state` nor `listener`."""

    def __init__(self, config: Config, state: KernelState, listener: Listener, report: Callable[[list[Fact]], None]) -> None:
        self._config = config
        self._state = state
        self._listener = listener
        self._report = report
        self._managed = {address.ip for address in config.addresses}
        self._probers = {group.name: Prober(group.ports, group.probe.misses) for group in config.groups if group.probe is not None}
        self._targets = {
            port: (self._probers[group.name], frozenset(group.probe.targets))
            for group in config.groups
            if group.probe is not None
            for port in group.ports
        }
        self._conflict_at_s: dict[str, float] = {}

    async def run(self) -> None:
        async with trio.open_nursery() as tasks:
            for sock in self._listener.sockets:
                tasks.start_soon(self._hear, sock)
            for group in self._config.groups:
                if group.probe is not None:
                    tasks.start_soon(self._probe, group, group.probe)

    async def _hear(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            self._take()

    def _take(self) -> None:
        for heard in self._listener.take():
            self._consider(heard)

    def _consider(self, heard: Heard) -> None:
        port = self._state.port_of(heard.interface)
        if port is None:
            return
        if heard.answer and port in self._targets and heard.ip in self._targets[port][1]:
            self._targets[port][0].answered(port)
        if heard.ip in self._managed and heard.link not in self._state.link_addresses:
            now_s = trio.current_time()
            if now_s - self._conflict_at_s.get(heard.ip, float("-inf")) >= CONFLICT_S:
                self._conflict_at_s[heard.ip] = now_s
                self._report([NeighbourConflict(heard.ip, heard.link)])

    async def _probe(self, group: Group, probe: Probe) -> None:
        prober = self._probers[group.name]
        targets = [ipaddress.ip_address(text) for text in probe.targets]
        interval_s = probe.interval_ms / 1000
        next_s = trio.current_time()
        while True:
            self._take()  # an answer that came while others had their turn is no miss
            connected = [port for port in group.ports if (link := self._state.link(port)) is not None and link.is_up and link.has_carrier]
            facts = prober.tick(connected)
            if facts:
                self._report(list(facts))
            for port in connected:
                for target in targets:
                    self._ask(port, target)
            next_s += interval_s
            if next_s <= trio.current_time():
                next_s = trio.current_time() + interval_s  # after a pause of ours every probe still has an interval to be answered in
            await trio.sleep_until(next_s)

    def _ask(self, port: str, target: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        """One probe. One that cannot be sent is one that is not answered."""
        link = self._state.link(port)
        if link is not None:
            with contextlib.suppress(OSError, ValueError):
                self._listener.ask(target, link.index, link.hardware, link.broadcast)
