"""A courier's statistics in the terms of Prometheus. Owns the names; counts nothing itself. Needs the extra `metrics` (prometheus-client).

`prometheus_client.start_http_server(9000)`, and then `with rdsx.calls.metrics.exported(courier):` around what the courier lives for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from rdsx.calls.statistics import address_text

if TYPE_CHECKING:
    from rdsx.calls.courier import Courier

__all__ = ["CourierCollector", "exported"]

# field of CourierStatistics: (name, help); numbers of the moment
OF_COURIER = {
    "sessions": ("sessions", "Sessions of callers"),
    "holders": ("holders", "Numbers that are held for callers"),
    "held_bytes": ("held_bytes", "Bytes of replies that are held for callers"),
    "running": ("running_handlers", "Handlers that run"),
    "waiting": ("waiting_handlers", "Calls that wait for a slot"),
    "live_calls": ("live_calls", "Own calls that were sent and have no outcome"),
    "queued_calls": ("queued_calls", "Own calls that were not sent"),
}
# field of PeerStatistics: (name, help)
OF_PEER = {
    "holders": ("peer_holders", "Numbers that are held for this caller"),
    "held_bytes": ("peer_held_bytes", "Bytes of replies that are held for this caller"),
    "oldest_s": ("peer_oldest_result_seconds", "Age of the oldest result that it has not released"),
    "floor_lag": ("peer_floor_lag", "How many numbers it is ahead of the oldest one that it has not released"),
    "live_calls": ("peer_live_calls", "Own calls to this peer that were sent and have no outcome"),
    "queued_calls": ("peer_queued_calls", "Own calls to this peer that were not sent"),
    "request_bytes": ("peer_request_bytes", "Bytes of own requests to this peer that are kept until they are answered"),
}
# ... and of what only grows while the courier knows the peer
COUNTED_BY_PEER = {
    "duplicates": ("peer_duplicates", "Copies of calls that were answered from a holder"),
    "refused": ("peer_refused", "Calls of this peer that were refused"),
    "busy": ("peer_busy", "Calls of this peer that were told to come again"),
}


class CourierCollector(Collector):
    """What Prometheus asks for a courier's numbers, in any thread.

    Args:
        courier: its address, for the label `courier`.
        read: returns `CourierStatistics.as_json()`, or None when there is nothing to tell.
    """

    def __init__(self, courier: str, read: Callable[[], Mapping[str, Any] | None]) -> None:
        self._courier = courier
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing: to register a collector asks nobody for numbers."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        statistics = self._read()
        if statistics is None:
            return
        for field, (name, text) in OF_COURIER.items():
            gauge = GaugeMetricFamily(f"rdsx_calls_{name}", text, labels=["courier"])
            gauge.add_metric([self._courier], statistics[field])
            yield gauge
        for field, (name, text) in OF_PEER.items():
            yield self._of_peers(GaugeMetricFamily(f"rdsx_calls_{name}", text, labels=["courier", "peer"]), field, statistics)
        for field, (name, text) in COUNTED_BY_PEER.items():
            yield self._of_peers(CounterMetricFamily(f"rdsx_calls_{name}", text, labels=["courier", "peer"]), field, statistics)
        events = CounterMetricFamily(
            "rdsx_calls_events", "What happened to calls and sessions, by the names of counters", labels=["courier", "event"]
        )
        for event, count in sorted(statistics["counters"].items()):
            events.add_metric([self._courier, event], count)
        yield events

    def _of_peers(
        self, family: GaugeMetricFamily | CounterMetricFamily, field: str, statistics: Mapping[str, Any]
    ) -> GaugeMetricFamily | CounterMetricFamily:
        for peer in statistics["peers"]:
            family.add_metric([self._courier, peer["peer"]], peer[field])
        return family


@contextlib.contextmanager
def exported(courier: Courier, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """The courier's numbers are in the registry while in the block. Call it in the courier's trio run.

    A scrape in another thread waits until the courier's event loop has a moment; one after the end of that run gets nothing.
    """
    token = trio.lowlevel.current_trio_token()

    def read() -> Mapping[str, Any] | None:
        if trio.lowlevel.in_trio_run():
            return courier.statistics().as_json()
        try:
            return trio.from_thread.run_sync(lambda: courier.statistics().as_json(), trio_token=token)
        except trio.RunFinishedError:
            return None

    collector = CourierCollector(address_text(courier.address), read)
    registry.register(collector)
    try:
        yield
    finally:
        registry.unregister(collector)
