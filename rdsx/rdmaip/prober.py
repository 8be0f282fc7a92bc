"""Whether the wire behind a port still leads somewhere: counts which probes of a group's ports were answered. No I/O.

Owns the count of misses for each port; others send the probes and hear the answers. A carrier says only that the other end of the cable is
alive. Invariant: a port is never declared dead while no other port of its group gets answers, because then it is the targets that are dead.
"""

from __future__ import annotations

from collections.abc import Iterable

from rdsx.rdmaip.facts import PathFact

__all__ = ["Prober"]


class Prober:
    """Probes of one group's ports. Call `tick` each interval, and `answered` for each answer."""

    def __init__(self, ports: Iterable[str], misses: int) -> None:
        """`misses`: a port is dead after so many intervals in a row without any answer from any target."""
        self._limit = misses
        self._misses: dict[str, int] = dict.fromkeys(ports, 0)
        self._heard: set[str] = set()
        self._asked: set[str] = set()
        self._dead: set[str] = set()

    def answered(self, port: str) -> None:
        """A target answered a probe through this port."""
        self._heard.add(port)

    def tick(self, connected: Iterable[str]) -> list[PathFact]:
        """An interval is over, and probes are about to be sent on the `connected` ports, which have a link; returns what is news."""
        for port in self._asked:
            self._misses[port] = 0 if port in self._heard else min(self._misses[port] + 1, self._limit)
        self._asked = set(connected) & self._misses.keys()
        for port in self._misses.keys() - self._asked:
            self._misses[port] = 0  # what was silent without a link is not held against it when the link is back
        alive = {port for port in self._asked if self._misses[port] < self._limit and port not in self._dead} | self._heard
        self._heard = set()
        news = []
        for port, count in self._misses.items():
            if port in self._dead and port in alive:
                self._dead.discard(port)
                news.append(PathFact(port, True))
            elif port not in self._dead and count >= self._limit and alive:
                self._dead.add(port)
                news.append(PathFact(port, False))
        return news
