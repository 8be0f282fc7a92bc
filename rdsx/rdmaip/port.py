"""A port: what is known of one interface, whether it can carry traffic, and for how long it must prove itself after a failure.

A port is *usable* when every layer is set, and *settled* when it has been usable without a break for its hold; only settled ports get their
own addresses back. A failure shows at once; only the way home gets longer: the hold doubles with each failure within `MEMORY_S`. Invariant:
a settled port is usable.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf

from rdsx.rdmaip.config import Config
from rdsx.rdmaip.events import Event, HoldExtended, Layer, PortDown, PortUp, Settled
from rdsx.rdmaip.facts import HardwareFact, LinkFact, LinkType, PathFact

__all__ = ["MEMORY_S", "Port"]

MEMORY_S = 600.0  # how long a failure counts
DOWNS_KEPT = 32  # more would only raise a hold that has reached its maximum
DEFAULT_HOLD_S, ROCE_HOLD_S = 10.0, 20.0  # Oracle's active_bonding_failback_ms and roce_active_bonding_failback_ms


class Port:
    """One port of a group, by name. `boot_s`: until when the policy counts as starting."""

    def __init__(self, name: str, config: Config, now_s: float) -> None:
        self.name = name
        self.config = config
        self.index = 0
        self.mac = b""
        self.tag: int | None = None
        self.link_type = LinkType.ETHERNET
        self.seen = False  # whether tag and link type were ever told
        self.has_rdma = False
        self.layers = dict.fromkeys(Layer, True)
        for layer in (Layer.PRESENT, Layer.ADMIN, Layer.CARRIER):
            self.layers[layer] = False
        self.since_s = dict.fromkeys(Layer, now_s)
        self.usable = False
        self.usable_since_s = now_s  # when `usable` changed last
        self.broken_s = now_s  # since when some layer is clear; of interest while one is
        self.down_at_s = inf  # when a lost link counts, with failover_delay_ms
        self.downs: deque[float] = deque(maxlen=DOWNS_KEPT)
        self.total_downs = 0
        self.settled = False
        self.proven_s = inf  # when the hold ends
        self.settle_at_s = inf  # ... and the instant that all hosts share has come
        self.booted = False  # whether it has ever been usable
        self.waits_for_clock = False  # whether it settles at an instant that all hosts share

    def begin(self, now_s: float) -> None:
        """It is looked at for the first time: nothing is known of what was before."""
        self.since_s = dict.fromkeys(Layer, now_s)
        self.usable_since_s = self.broken_s = now_s

    # -- facts

    def handle_link(self, fact: LinkFact, now_s: float) -> None:
        """Note what an interface is now. The caller looks at `index` and `mac` before and after."""
        if fact.present:
            self.index, self.mac, self.tag, self.link_type = fact.index, fact.mac, fact.tag, fact.link_type
            self.seen = True
        self.set_layer(Layer.PRESENT, fact.present, now_s)
        self.set_layer(Layer.ADMIN, fact.present and fact.admin, now_s)
        self.set_layer(Layer.CARRIER, fact.present and fact.carrier, now_s)

    def handle_hardware(self, fact: HardwareFact, now_s: float) -> None:
        self.has_rdma = fact.active is not None
        self.set_layer(Layer.HARDWARE, fact.active is not False, now_s)

    def handle_path(self, fact: PathFact, now_s: float) -> None:
        self.set_layer(Layer.PATH, fact.answered is not False, now_s)

    def set_layer(self, layer: Layer, value: bool, now_s: float) -> None:
        if self.layers[layer] is not value:
            if self.clear_layer() is None:
                self.broken_s = now_s
            self.layers[layer] = value
            self.since_s[layer] = now_s

    def clear_layer(self) -> Layer | None:
        """The first layer that is clear; it explains why the port cannot be used."""
        return next((layer for layer in Layer if not self.layers[layer]), None)

    # -- usable, settled

    def update(self, now_s: float, boot_s: float, wall_offset_s: float | None) -> list[Event]:
        """Draw the conclusions from facts and time; returns what has changed."""
        broken = self.clear_layer()
        events: list[Event] = []
        if broken is None:
            self.down_at_s = inf
            if not self.usable:
                events += self._come_up(now_s, boot_s)
        elif self.usable:
            delay_s = self.config.failover_delay_ms / 1000 if broken is Layer.CARRIER else 0.0
            self.down_at_s = self.broken_s + delay_s
            if now_s >= self.down_at_s:
                events.append(self._go_down(broken, now_s))
        if self.usable and not self.settled:
            self.settle_at_s = self._shared_instant_s(wall_offset_s)
            if now_s >= self.settle_at_s:
                self.settled = True
                events.append(Settled(self.name, now_s))
        return events

    def _come_up(self, now_s: float, boot_s: float) -> list[Event]:
        hold_s = self.hold_s(now_s)
        at_boot = not self.booted and now_s <= boot_s
        if at_boot:
            hold_s = boot_s - now_s
        self.waits_for_clock = bool(self.config.failback_sync_s) and not at_boot
        down_s = now_s - self.usable_since_s
        self.usable, self.usable_since_s, self.booted = True, now_s, True
        self.proven_s = now_s + hold_s
        events: list[Event] = [PortUp(self.name, now_s, down_s, hold_s)]
        recent = self.recent_downs(now_s)
        if recent > 1:
            events.append(HoldExtended(self.name, hold_s, recent, now_s))
        return events

    def _go_down(self, broken: Layer, now_s: float) -> PortDown:
        if broken is not Layer.ENABLED:  # an operator's drain says nothing about the port
            self.downs.append(now_s)
            self.total_downs += 1
        up_s = now_s - self.usable_since_s
        self.usable, self.usable_since_s, self.settled = False, now_s, False
        self.down_at_s = self.proven_s = self.settle_at_s = inf
        return PortDown(self.name, broken, now_s, up_s, self.recent_downs(now_s))

    def end_boot(self, now_s: float) -> None:
        """The boot delay has been cut short: a port that waits for its end is proven now."""
        if self.usable and not self.settled and not self.downs:
            self.proven_s = min(self.proven_s, now_s)

    def recent_downs(self, now_s: float) -> int:
        return sum(1 for down_s in self.downs if down_s > now_s - MEMORY_S)

    def hold_s(self, now_s: float) -> float:
        """How long the port must be usable before it is settled, if it comes up now."""
        first_s = self.config.failback_hold_s
        if first_s is None:
            first_s = ROCE_HOLD_S if self.has_rdma and self.link_type is LinkType.ETHERNET else DEFAULT_HOLD_S
        return max(first_s, min(first_s * 2.0 ** (max(self.recent_downs(now_s), 1) - 1), self.config.hold_max_s))

    def _shared_instant_s(self, wall_offset_s: float | None) -> float:
        """The end of the hold, or with `failback_sync_s` the first shared instant from then on; never while the wall clock is not known.

        At the start nobody waits for it: addresses go home at once, or when the boot delay is over.
        """
        if not self.waits_for_clock or not self.config.failback_sync_s:
            return self.proven_s
        if wall_offset_s is None:
            return inf
        interval_s = self.config.failback_sync_s
        shift_s = wall_offset_s - self.config.failback_sync_offset_s
        return ceil((self.proven_s + shift_s) / interval_s) * interval_s - shift_s

    def deadline_s(self) -> float:
        """When `update` has something to do without a new fact."""
        if self.clear_layer() is not None:
            return self.down_at_s if self.usable else inf
        return inf if self.settled else self.settle_at_s
