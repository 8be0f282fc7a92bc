"""What Prometheus is told of a courier: every number of its statistics, under names and labels that stay."""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from callskit import PORT, A, B, Duo, duo
from rdsx.calls import IncomingCall
from rdsx.calls.metrics import COUNTED_BY_PEER, OF_COURIER, OF_PEER, exported
from rdsx.calls.statistics import CourierStatistics, PeerStatistics
from rdsx.testing import run

T = 0x21
THERE, HERE = f"{B}:{PORT}", f"{A}:{PORT}"
Samples = dict[tuple[str, str, str], float]


def samples(registry: CollectorRegistry) -> Samples:
    """Values by (name, courier, what the other label says)."""
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            found[sample.name, labels.pop("courier"), "".join(labels.values())] = sample.value
    return found


async def with_a_result_held(pair: Duo) -> None:
    """A handler that runs, a result that is held, and a refused call."""

    async def handle(call: IncomingCall) -> bytes:
        if call.payload:
            await trio.sleep(5.0)
        return b"result"

    pair.there.register(T, handle)
    pair.here.start_call(pair.peer, T, b"long")
    pair.here.start_call(pair.peer, T + 1)
    await pair.here.call(pair.peer, T)


def test_every_number_of_the_statistics() -> None:
    async def main() -> None:
        async with duo(release_delay_s=60.0, grace_s=0.0) as pair:
            registry = CollectorRegistry()
            with exported(pair.there, registry), exported(pair.here, registry):
                await with_a_result_held(pair)
                found = samples(registry)
                for courier, text in ((pair.there, THERE), (pair.here, HERE)):
                    statistics = courier.statistics()
                    for field, (name, _) in OF_COURIER.items():
                        assert found[f"rdsx_calls_{name}", text, ""] == getattr(statistics, field)
                    for event, count in statistics.counters.items():
                        assert found["rdsx_calls_events_total", text, event] == count
                    (peer,) = statistics.peers
                    for field, (name, _) in OF_PEER.items():
                        assert found[f"rdsx_calls_{name}", text, peer.peer] == getattr(peer, field)
                    for field, (name, _) in COUNTED_BY_PEER.items():
                        assert found[f"rdsx_calls_{name}_total", text, peer.peer] == getattr(peer, field)
            assert found["rdsx_calls_running_handlers", THERE, ""] == 1
            assert found["rdsx_calls_peer_held_bytes", THERE, HERE] == len(b"result")
            assert found["rdsx_calls_peer_refused_total", THERE, HERE] == 1
            assert samples(registry) == {}

    run(main)


def test_no_field_is_forgotten() -> None:
    named = {"life", "counters", "peers", *OF_COURIER}
    assert set(CourierStatistics.__slots__) == named
    assert {"peer", "sessions", "waiting", "running", *OF_PEER, *COUNTED_BY_PEER} == set(PeerStatistics.__slots__)


def test_a_scrape_in_another_thread() -> None:
    """It asks the courier's event loop; after the end of that it gets nothing, and does not hang."""

    async def main() -> CollectorRegistry:
        registry = CollectorRegistry()
        async with duo(release_delay_s=60.0, grace_s=0.0) as pair:
            await with_a_result_held(pair)
            manager = exported(pair.there, registry)
            manager.__enter__()  # and it is never left, as by a program that forgets
            found = await trio.to_thread.run_sync(samples, registry)
            assert found["rdsx_calls_holders", THERE, ""] == 3
        return registry

    assert samples(trio.run(main)) == {}
