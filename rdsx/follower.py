"""Keeps a node's connections with its addresses as they move between ports, and with those of its peers.

One for each node: it hears what changes, from the network that the node is on, and asks of each link concerned whether it survives.
Invariant: a link is dropped only if it stands still, or if its transport cannot move; a network that tells nothing changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

from rdsx.engine.survival import LOOK_AGAIN_S, Trial, Verdict
from rdsx.moves import AddressChange, Change, Changes, NeighbourChange
from rdsx.transports.signal import Signal

if TYPE_CHECKING:
    from rdsx.driver import Driver
    from rdsx.supervisor import Supervisor
    from rdsx.transports.base import Link

__all__ = ["Follower"]

log = logging.getLogger("rdsx.node")


class Observation:
    """A link under trial, and when to look at it next."""

    def __init__(self, link: Link, reason: str, moved: bool) -> None:
        self.link = link
        self.reason = reason
        self.moved = moved
        self.at_s = 0.0
        self.trial = Trial()


class Follower:
    """Owns `changes`, and closes it at the end of run()."""

    def __init__(self, driver: Driver, changes: Changes) -> None:
        self._driver = driver
        self._changes = changes
        self._ports: dict[str, tuple[str, ...]] = {}  # where each of our addresses was reached last
        self._silent: dict[tuple[str, str], bytes] = {}  # hardware addresses of peers that do not answer at present, by port
        self._observed: dict[Supervisor, Observation] = {}  # the next to look at first
        self._signal = Signal()

    async def run(self) -> None:
        """Until cancelled. What the system cannot tell any more is not followed; the node works on."""
        with contextlib.closing(self._changes):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._look_again)
                    async for change in self._changes:
                        self._follow(change)
            except* (OSError, ValueError) as group:
                log.warning("moves of addresses are no longer followed: %s", group.exceptions[0])

    # -- what has changed

    def _follow(self, change: Change) -> None:
        if isinstance(change, AddressChange):
            self._follow_address(change)
        else:
            self._follow_neighbour(change)

    def _follow_address(self, change: AddressChange) -> None:
        """One of ours. That it is nowhere is no reason for anything: who waits, waits until it is back."""
        if change.ip not in self._driver.hosts:
            return
        left = set(self._ports.get(change.ip, change.before)) - set(change.after)
        self._ports[change.ip] = change.after or change.before
        if not change.after:
            return
        log.info("%s is on %s now, was on %s", change.ip, ", ".join(change.after), ", ".join(change.before) or "no usable port")
        self._driver.address_arrived(change.ip, moved=bool(left))
        for supervisor in self._driver.supervisors_of(local=change.ip):
            self._judge(supervisor, "address_moved", moved=bool(left))

    def _follow_neighbour(self, change: NeighbourChange) -> None:
        """Maybe a peer. That it falls silent is no reason for anything, either."""
        peers = list(self._driver.supervisors_of(peer=change.ip))
        if not peers:
            return
        key = change.ip, change.port
        if change.after is None:
            if change.before is not None:
                self._silent[key] = change.before
                if len(self._silent) > self._driver.config.max_peers:  # of peers that were forgotten meanwhile, for instance
                    del self._silent[next(iter(self._silent))]
            return
        silent = self._silent.pop(key, None)
        before = change.before or silent
        for supervisor in peers:
            self._judge(supervisor, "peer_moved", moved=before is not None and before != change.after)

    def _judge(self, supervisor: Supervisor, reason: str, *, moved: bool) -> None:
        """`moved`: somewhere else, and not only back where it was."""
        supervisor.hurry(reason, moved=moved)
        link = supervisor.link
        if link is None:
            return
        if not supervisor.survives_moves:
            if moved:
                supervisor.drop(reason)
            return
        # What got through before this change says nothing of the way after it, so a trial that goes on begins anew.
        observed = self._observed.pop(supervisor, None)
        moved = moved or (observed is not None and observed.link is link and observed.moved)
        self._look(supervisor, Observation(link, reason, moved))

    # -- links under trial

    async def _look_again(self) -> None:
        while True:
            if not self._observed:
                await self._signal.wait()
                continue
            supervisor, observation = next(iter(self._observed.items()))
            await trio.sleep_until(observation.at_s)
            if self._observed.get(supervisor) is observation:
                del self._observed[supervisor]
                self._look(supervisor, observation)

    def _look(self, supervisor: Supervisor, observation: Observation) -> None:
        progress = supervisor.progress() if supervisor.link is observation.link else None
        if progress is None:
            return
        verdict = observation.trial.look(progress)
        if verdict is Verdict.WAIT:
            observation.at_s = trio.current_time() + LOOK_AGAIN_S
            self._observed[supervisor] = observation
            self._signal.set()
        elif verdict is Verdict.DROP:
            supervisor.drop(observation.reason)
        elif observation.moved:
            self._driver.moves_survived += 1
