"""A port by itself: layers, holds and their doubling, the shared instant; and when actions are repeated and reports believed."""

from __future__ import annotations

from math import inf

import pytest

from rdmaipkit import config_of
from rdsx.rdmaip.echoes import ECHO_S, Echoes
from rdsx.rdmaip.events import Layer, PortDown, PortUp, Settled
from rdsx.rdmaip.facts import HardwareFact, LinkFact, LinkType, PathFact
from rdsx.rdmaip.port import DOWNS_KEPT, MEMORY_S, Port
from rdsx.rdmaip.retries import FREE, LAST_S, Retries

UP = LinkFact("p0", index=2, admin=True, carrier=True, mac=b"\x02" * 6)
CUT = LinkFact("p0", index=2, admin=True, carrier=False, mac=b"\x02" * 6)


def port_at(now_s: float, **settings: object) -> Port:
    port = Port("p0", config_of(2, 1, **settings), now_s)
    port.begin(now_s)
    return port


def test_every_layer_must_be_set() -> None:
    port = port_at(0.0)
    port.handle_link(UP, 0.0)
    assert [type(event) for event in port.update(0.0, 0.0, None)] == [PortUp, Settled]
    for layer in Layer:
        port.set_layer(layer, False, 1.0)
        (event,) = port.update(1.0, 0.0, None)
        assert isinstance(event, PortDown)
        assert event.layer is layer
        assert (port.usable, port.settled) == (False, False)
        port.set_layer(layer, True, 1.0)
        port.update(1.0, 0.0, None)
        assert (port.usable, port.settled) == (True, False)


def test_layers_that_nobody_looks_at_count_as_set() -> None:
    port = port_at(0.0)
    port.handle_link(UP, 0.0)
    port.handle_hardware(HardwareFact("p0", None), 0.0)
    port.handle_path(PathFact("p0", None), 0.0)
    assert port.clear_layer() is None


def test_the_hold_doubles_and_is_forgotten() -> None:
    port = port_at(0.0, hold_max_s=100)
    port.handle_link(UP, 0.0)
    port.update(0.0, 0.0, None)
    holds = []
    for number in range(DOWNS_KEPT + 5):
        port.handle_link(CUT, number + 1.0)
        port.update(number + 1.0, 0.0, None)
        holds.append(port.hold_s(number + 1.0))
    assert holds[:6] == [10, 10, 10, 10, 10, 10]  # it never came up in between: one failure
    port = port_at(0.0, hold_max_s=100)
    holds = []
    for number in range(DOWNS_KEPT + 5):
        for link in (UP, CUT):
            port.handle_link(link, number + 1.0)
            port.update(number + 1.0, 0.0, None)
        holds.append(port.hold_s(number + 1.0))
    assert holds[:6] == [10, 20, 40, 80, 100, 100]
    assert len(port.downs) == DOWNS_KEPT
    assert port.hold_s(DOWNS_KEPT + 5 + MEMORY_S) == 10


@pytest.mark.parametrize(
    ("settings", "has_rdma", "link_type", "hold_s"),
    [
        ({}, False, LinkType.ETHERNET, 10),
        ({}, True, LinkType.ETHERNET, 20),
        ({}, True, LinkType.INFINIBAND, 10),
        ({"failback_hold_s": 3}, True, LinkType.ETHERNET, 3),
        ({"failback_hold_s": 900}, False, LinkType.ETHERNET, 900),  # hold_max_s bounds the doubling, not the first
        ({"failback_hold_s": 0}, False, LinkType.ETHERNET, 0),
    ],
)
def test_the_first_hold(settings: dict[str, object], has_rdma: bool, link_type: LinkType, hold_s: float) -> None:
    port = port_at(0.0, **settings)
    port.link_type = link_type
    port.handle_hardware(HardwareFact("p0", True if has_rdma else None), 0.0)
    assert port.hold_s(0.0) == hold_s


@pytest.mark.parametrize(
    ("offset_s", "wall_offset_s", "instant_s"), [(0, 0.0, 120), (5, 0.0, 65), (0, 1_000_000_000.0, 80), (0, None, inf)]
)
def test_the_shared_instant(offset_s: float, wall_offset_s: float | None, instant_s: float) -> None:
    port = port_at(0.0, failback_sync_s=60, failback_sync_offset_s=offset_s)
    port.handle_link(UP, 51.0)  # proven at 61
    port.update(51.0, 0.0, wall_offset_s)
    assert port.deadline_s() == instant_s
    assert not port.settled


def test_without_a_hold_the_shared_instant_is_waited_for_all_the_same() -> None:
    port = port_at(0.0, failback_sync_s=60, failback_hold_s=0)
    port.handle_link(UP, 0.0)
    port.update(0.0, 0.0, 0.0)
    assert port.settled  # at the start nobody waits
    for link in (CUT, UP):
        port.handle_link(link, 51.0)
        port.update(51.0, 0.0, 0.0)
    assert not port.settled
    assert port.deadline_s() == 60


def test_what_was_refused_waits_longer_and_longer() -> None:
    retries = Retries()
    now_s, waits = 0.0, []
    for _ in range(8):
        waits.append(retries.refused(("x",), now_s))
        assert not retries.allows(("x",), now_s)
        assert retries.next_s(now_s) == now_s + waits[-1]
        now_s += waits[-1]
        assert retries.allows(("x",), now_s)
    assert waits == [1, 2, 4, 8, 16, 32, LAST_S, LAST_S]
    assert retries.waiting() == [("x",)]
    retries.succeeded(("x",), now_s)
    assert retries.waiting() == []
    assert retries.refused(("x",), now_s) == 1


def test_what_has_to_be_done_again_and_again_is_slowed_down() -> None:
    retries = Retries()
    done = 0
    for tenth in range(100):
        if retries.allows(("x",), tenth / 10):
            retries.succeeded(("x",), tenth / 10)
            done += 1
    assert FREE <= done <= FREE + 10


def test_reports_that_contradict_us_are_not_believed_for_a_while() -> None:
    echoes, which = Echoes(), ("10.9.0.1", "p0", 24)
    assert echoes.believes(which, True, 0.0)
    echoes.did(which, True, 1.0)
    assert not echoes.believes(which, False, 1.5)
    assert echoes.believes(which, True, 1.5)
    assert not echoes.believes(which, False, 1.9)  # it may be the report of what we did before
    assert echoes.believes(which, False, 1.0 + ECHO_S)


def test_what_is_not_reported_back_is_noticed() -> None:
    echoes = Echoes()
    echoes.did(("10.9.0.1", "p0", 24), True, 1.0)
    echoes.did(("10.9.0.2", "p0", 24), False, 1.2)
    assert echoes.believes(("10.9.0.1", "p0", 24), True, 1.3)
    assert echoes.next_s() == 1.2 + ECHO_S
    assert echoes.overdue(2.2)
    echoes.read_back()
    assert echoes.next_s() == inf
