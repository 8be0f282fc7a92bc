"""An agent in Prometheus' words. Owns the names and meanings of the metrics, and the HTTP server that gives them away.

What is now is read from the agent when it is asked for; what happens is counted from its events. Needs prometheus-client (the extra
`metrics`), which is imported here only, and only by whoever wants metrics.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import prometheus_client
import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from rdsx.rdmaip.control import Controlled
from rdsx.rdmaip.events import Conflict, Event, HoldExtended, Moved, Parked
from rdsx.rdmaip.status import Status

__all__ = ["StatusCollector", "count_events", "open_metrics"]

PREFIX = "rdsx_rdmaip"
OUTAGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class StatusCollector(Collector):
    """What is now. Prometheus asks from a thread of its own; the agent is looked at in trio's."""

    def __init__(self, controlled: Controlled, token: trio.lowlevel.TrioToken) -> None:
        self._controlled = controlled
        self._token = token

    def collect(self) -> Iterator[Metric]:
        """Nothing once the agent's run has ended."""
        with contextlib.suppress(trio.RunFinishedError, trio.Cancelled):
            yield from status_metrics(trio.from_thread.run_sync(self._controlled.status, trio_token=self._token))


def status_metrics(status: Status) -> Iterator[Metric]:
    """A status as metrics."""
    layer = GaugeMetricFamily(f"{PREFIX}_port_layer", "Whether a layer of a port is set", labels=["port", "layer"])
    usable = GaugeMetricFamily(f"{PREFIX}_port_usable", "Whether a port can carry traffic", labels=["port"])
    settled = GaugeMetricFamily(f"{PREFIX}_port_settled", "Whether a port gets its own addresses back", labels=["port"])
    downs = CounterMetricFamily(f"{PREFIX}_port_downs", "Times that a port became unusable", labels=["port"])
    for port in status.ports:
        for name, value in port.layers.items():
            layer.add_metric([port.name, name], value.set)
        usable.add_metric([port.name], port.usable)
        settled.add_metric([port.name], port.settled)
        downs.add_metric([port.name], port.total_downs)
    place = GaugeMetricFamily(f"{PREFIX}_address", "1 for the port and state of each address", labels=["ip", "home", "port", "state"])
    parked = GaugeMetricFamily(f"{PREFIX}_parked_addresses", "Addresses without a usable port")
    for address in status.addresses:
        place.add_metric([address.ip, address.home, ",".join(address.ports), address.state], 1)
    parked.add_metric([], sum(address.state in ("parked", "absent") for address in status.addresses))
    crippled = GaugeMetricFamily(f"{PREFIX}_crippled", "1 while a permission is missing")
    crippled.add_metric([], status.crippled is not None)
    actions = CounterMetricFamily(f"{PREFIX}_actions", "What was asked of the kernel", labels=["action", "result"])
    for result, counts in (("done", status.done_actions), ("refused", status.refused_actions)):
        for name, count in counts.items():
            actions.add_metric([name, result], count)
    yield from (layer, usable, settled, downs, place, parked, crippled, actions)


class EventCounters:
    """What has happened."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._moves = prometheus_client.Counter(f"{PREFIX}_moves", "Addresses moved", ["reason"], registry=registry)
        self._parked = prometheus_client.Counter(f"{PREFIX}_parkings", "Addresses that lost their last usable port", registry=registry)
        self._conflicts = prometheus_client.Counter(f"{PREFIX}_conflicts", "Addresses that others use or remove", registry=registry)
        self._holds = prometheus_client.Counter(f"{PREFIX}_holds_extended", "Holds made longer by flapping", registry=registry)
        self._outages = prometheus_client.Histogram(
            f"{PREFIX}_outage_seconds",
            "From the failure of a port, as the kernel reported it, to the end of an address's move",
            buckets=OUTAGE_BUCKETS_S,
            registry=registry,
        )

    def count(self, event: Event) -> None:
        match event:
            case Moved():
                self._moves.labels(event.reason.value).inc()
                if event.outage_s:
                    self._outages.observe(event.outage_s)
            case Parked():
                self._parked.inc()
            case Conflict():
                self._conflicts.inc()
            case HoldExtended():
                self._holds.inc()


async def count_events(controlled: Controlled, counters: EventCounters) -> None:
    """Until the agent ends."""
    with controlled.subscribe(10_000) as events:
        async for event in events:
            counters.count(event)


@contextlib.asynccontextmanager
async def open_metrics(controlled: Controlled, host: str, port: int) -> AsyncIterator[int]:
    """Serve metrics at `http://host:port/metrics` during the block; gives the port, which for 0 is any free one.

    Raises OSError if that address and port cannot be had.
    """
    registry = CollectorRegistry()
    counters = EventCounters(registry)
    registry.register(StatusCollector(controlled, trio.lowlevel.current_trio_token()))
    server, thread = prometheus_client.start_http_server(port, host, registry)
    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(count_events, controlled, counters)
            yield server.server_port
            tasks.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            # In a thread: a request that waits for us in trio must be answered meanwhile.
            await trio.to_thread.run_sync(server.shutdown)
            server.server_close()
            await trio.to_thread.run_sync(thread.join)
