"""A managed address: where the kernel has it, where it came to rest, and what is still to be announced. Decides nothing.

A *copy* is one entry in the kernel: a port and a prefix length. An address normally has one; while it moves it has two. Copies that
somebody else put on ports where the address may not be are *strays*: they are reported and left alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

from rdsx.rdmaip.actions import Action
from rdsx.rdmaip.config import ManagedAddress
from rdsx.rdmaip.events import Reason

__all__ = ["Address", "Copy", "Key"]

Key = tuple[str, int]
"""Port and prefix length."""

PUT_BACK_WITHIN_S = 60.0
PUT_BACK_DELAYS_S = (0.0, 1.0, 2.0, 4.0, 8.0)  # after the first, second … removal within that time; then we give way


@dataclass(slots=True)
class Copy:
    """One entry in the kernel."""

    since_s: float
    mark: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """The move under way: where to, why, and since when the address has been out of reach (None: it is not)."""

    port: str
    reason: Reason
    unreachable_s: float | None


class Address:
    """The picture of one address."""

    def __init__(self, managed: ManagedAddress) -> None:
        self.managed = managed
        self.copies: dict[Key, Copy] = {}
        self.strays: dict[Key, Copy] = {}
        self.rule_port: str | None = None
        self.pin: str | None = None
        self.asked = False  # an operator wants it at its pin or home now
        self.place: str | None = None  # where it came to rest last
        self.moved_s = -inf  # when that was
        self.lost: tuple[Reason, float] | None = None  # why and since when it has been nowhere
        self.goal: Goal | None = None
        self.parked_s: float | None = None  # since when it has had no usable port
        self.announce_s: list[float] = []  # when it is to be announced, the next first
        self.announced = False  # since it came to `place`
        self.removals_s: deque[float] = deque(maxlen=len(PUT_BACK_DELAYS_S) + 1)  # by somebody else
        self.put_back_s = -inf  # not before
        self.hands_off = ""  # why it is not managed for now
        self.step: Action | None = None  # the next one of its move
        self.is_urgent = False  # whether that comes before others

    @property
    def ip(self) -> str:
        return self.managed.ip

    @property
    def home(self) -> str:
        """Where it should be when all is well: its home, or where an operator pinned it."""
        return self.pin or self.managed.home

    def sound_ports(self) -> tuple[str, ...]:
        """Ports that have it in working order, the one that has it longest first."""
        sound = sorted((copy.since_s, port) for (port, _), copy in self.copies.items() if not copy.failed)
        return tuple(dict.fromkeys(port for _, port in sound))

    def has_on(self, port: str) -> bool:
        return any(each == port for each, _ in self.copies)

    def prefix_on(self, port: str) -> int:
        """The prefix length that it should have on a port: a guest has that of a single host."""
        return self.managed.prefix if port == self.managed.home else self.managed.host_prefix

    def wanted(self, port: str, our_mark: int) -> Key | None:
        """The copy on `port` that is as it should be. At home, what somebody else put there is left as it is."""
        for (each, prefix), copy in self.copies.items():
            right = prefix == self.prefix_on(port) or (port == self.managed.home and copy.mark != our_mark)
            if each == port and right and not copy.failed:
                return each, prefix
        return None

    def note_removal(self, now_s: float) -> bool:
        """Somebody else took it away. Returns False if that has happened too often to put it back."""
        self.removals_s.append(now_s)
        recent = sum(1 for at_s in self.removals_s if at_s > now_s - PUT_BACK_WITHIN_S)
        if recent > len(PUT_BACK_DELAYS_S):
            return False
        self.put_back_s = now_s + PUT_BACK_DELAYS_S[recent - 1]
        return True

    def forgive(self) -> None:
        """An operator says that it is to be managed, whatever happened."""
        self.hands_off = ""
        self.removals_s.clear()
        self.put_back_s = -inf

    def announce_at(self, instants_s: list[float]) -> None:
        """Replaces what was still to be announced."""
        self.announce_s = instants_s

    def announce_once(self, now_s: float) -> None:
        self.announce_s = [now_s, *(at_s for at_s in self.announce_s if at_s > now_s)]
