"""Endpoints and bind tables: ports, receive accounting with its hysteresis, closing, and the caps that pause reading."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkit import CONGESTED, FULL, NO_ROUTE, SENT, TOO_LONG, Side, frame, make_core, map_frame, pair, pump, received
from rdsx._fast import BindTable, CongestionMap, Core, Endpoint, Path
from rdsx._reference import ReceiveQueue
from rdsx._stream import StreamReader

OVERHEAD_BYTES = 128  # what a queued message counts against the caps besides its payload


def table() -> BindTable:
    return BindTable(make_core(), "10.0.0.1")


def bound(ports: BindTable, port: int) -> Endpoint:
    endpoint = Endpoint(1000, 1000)
    ports.bind(endpoint, port)
    return endpoint


# -- ports


def test_bind_and_find() -> None:
    ports = table()
    endpoint = bound(ports, 4000)
    assert ports.find(4000) is endpoint
    assert (endpoint.port, endpoint.bound, endpoint.table, ports.count) == (4000, True, ports, 1)
    assert ports.find(4001) is None
    assert ports.find(0) is None
    for port in (0, 1, 4000):
        with pytest.raises(ValueError):
            ports.bind(Endpoint(1, 1), port)
    with pytest.raises(ValueError):  # no rebinding
        ports.bind(endpoint, 4001)
    with pytest.raises(OverflowError):
        ports.bind(Endpoint(1, 1), 65536)
    assert ports.count == 1


def test_a_closed_port_is_free_again() -> None:
    ports = table()
    endpoint = bound(ports, 4000)
    endpoint.close()
    endpoint.close()
    assert (endpoint.bound, ports.count, ports.find(4000)) == (False, 0, None)
    assert ports.find(4000) is not bound(ports, 4000)


def test_free_port_wraps_around_and_skips_0_and_1() -> None:
    ports = table()
    assert ports.free_port(4000) == 4000
    assert ports.free_port(0) == ports.free_port(1) == 2
    kept = [bound(ports, 65534), bound(ports, 65535)]
    assert ports.free_port(65534) == 2
    kept.append(bound(ports, 2))
    assert ports.free_port(65534) == 3
    assert len(kept) == ports.count


def test_every_port() -> None:
    ports = table()
    endpoints = [bound(ports, port) for port in range(2, 65536)]
    assert ports.count == 65534
    assert all(ports.free_port(start) is None for start in (0, 2, 40000, 65535))
    assert all(ports.find(endpoint.port) is endpoint for endpoint in endpoints[::97])
    endpoints[12345].close()
    assert ports.free_port(60000) == ports.free_port(0) == 12347
    del endpoints
    gc.collect()
    assert ports.count == 0


def test_an_endpoint_dropped_without_close_is_forgotten() -> None:
    """The table does not keep it alive, so it must not find what is left of it."""
    ports = table()
    endpoint = bound(ports, 4000)
    del endpoint
    assert ports.find(4000) is None
    assert ports.count == 0
    # the same when it goes as part of a cycle, together with its table
    endpoint = bound(ports, 4000)
    endpoint.owner = [endpoint, ports]
    del endpoint
    gc.collect()
    assert ports.find(4000) is None
    endpoint = bound(ports, 4000)
    endpoint.owner = [endpoint, ports]
    del endpoint, ports
    gc.collect()


# -- receiving


def test_a_peer_is_read_again_while_the_node_is_half_full_of_others() -> None:
    """The peer's cap and the node's have a hysteresis each: one must not hold what the other let go."""
    side = Side("10.0.0.1", "10.0.0.2", max_peer_queued_bytes=1000, max_node_queued_bytes=4000)
    mine, others = side.endpoint(4001), side.endpoint(4002)
    bystander = Path(side.table, "10.0.0.3", CongestionMap())
    reader = StreamReader(bystander)
    reader.feed(map_frame() + b"".join(frame(n, bytes(500), dport=4002) for n in range(1, 5)))
    while reader.parse():
        pass
    side.read(map_frame() + frame(1, bytes(1200)))
    assert side.path.paused
    assert mine.take() is not None
    assert not side.path.paused
    assert side.path in side.core.take_resumable()
    assert others.queued == 4


def test_messages_come_with_their_address() -> None:
    side = Side("10.0.0.1", "10.0.0.2", wall_clock=lambda: 12.5)
    endpoint = side.endpoint(4001)
    endpoint.stamped = True
    side.read(map_frame() + frame(1, b"one") + frame(2, b"", sport=7, extensions=b"\x03" + bytes(range(8))))
    assert endpoint.peek() == (b"one", ("10.0.0.2", 4000), 0, 12.5)
    assert endpoint.take() == (b"one", ("10.0.0.2", 4000))
    assert endpoint.peek() == (b"", ("10.0.0.2", 7), 0x04050607_00010203, 12.5)
    assert endpoint.queued == 1
    assert endpoint.take_many(5) == [(b"", ("10.0.0.2", 7))]
    assert (endpoint.take(), endpoint.peek(), endpoint.take_many(5)) == (None, None, [])
    assert endpoint.received_messages == 2


def test_ipv6_addresses_have_four_parts() -> None:
    core = make_core()
    ports = BindTable(core, "fe80::1")
    path = Path(ports, "fe80::2", CongestionMap(), is_ipv6=True, scope=3, peer_table=BindTable(core, "fe80::2"))
    ports.routes["fe80::2"] = path
    endpoint = bound(ports, 4000)
    assert endpoint.submit(b"", ("fe80::2", 0, 0, 0)) == SENT  # a ping to ourselves
    assert endpoint.take() == (b"", ("fe80::2", 0, 0, 3))


def test_waiters_are_listed_once() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = side.endpoint(4001)
    side.read(map_frame() + frame(1, b"nobody waits"))
    assert side.core.take_woken() == []
    endpoint.receive_waiting = True
    side.read(frame(2, b"a") + frame(3, b"b"))
    assert side.core.attention
    assert side.core.take_woken() == [endpoint]
    assert side.core.take_woken() == []


operations = st.lists(
    st.integers(0, 120) | st.just(0) | st.sampled_from(["take", "take", "close"]) | st.tuples(st.integers(0, 300)), max_size=40
)


@given(st.integers(0, 300), operations)
def test_accounting_like_the_twin(limit: int, steps: list[int | str | tuple[int]]) -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint, model = side.endpoint(4001, receive_limit=limit), ReceiveQueue(limit)
    side.read(map_frame())
    sequence = 0
    for step in steps:
        if isinstance(step, int):
            sequence += 1
            side.read(frame(sequence, bytes(step)))
            model.append(bytes(step))
        elif isinstance(step, tuple):  # a new limit takes effect with the next change
            endpoint.receive_limit = model.limit = step[0]
        elif step == "take":
            taken = endpoint.take()
            assert (taken and taken[0]) == model.take()
        else:
            endpoint.close()
            model.close()
            endpoint = side.endpoint(4001, receive_limit=limit)
            model.limit = limit
        assert endpoint.received_bytes == model.received_bytes
        assert endpoint.queued == len(model.messages)
        assert endpoint.congested == model.congested == side.table.congestion.test(4001)
        assert side.path.queued_bytes == side.core.queued_bytes == model.received_bytes + OVERHEAD_BYTES * len(model.messages)
    counters = side.core.statistics()
    assert counters["recv_queued"] == sequence
    assert counters["recv_bytes_added_to_sock"] - counters["recv_bytes_freed_fromsock"] == endpoint.received_bytes


def test_hysteresis() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = side.endpoint(4001, receive_limit=101)
    side.read(map_frame() + frame(1, bytes(51)) + frame(2, bytes(50)))
    assert not endpoint.congested  # at the limit is not above it
    side.read(frame(3, b""))
    assert not endpoint.congested
    assert side.core.take_remapped() == []
    side.read(frame(4, b"x"))
    assert endpoint.congested
    assert side.core.take_remapped() == [side.table]
    assert side.counter("cong_update_queued") == 1
    endpoint.take()
    assert endpoint.congested  # 51 left, half is 50
    endpoint.take()
    assert not endpoint.congested
    assert side.core.take_remapped() == [side.table]
    assert side.counter("cong_update_queued") == 2


def test_the_peer_learns_of_congestion_and_may_send_again() -> None:
    a, b = pair()
    sender, receiver = a.endpoint(4000), b.endpoint(4001, receive_limit=100)
    while sender.submit(bytes(60), ("10.0.0.2", 4001)) == SENT:
        pump(a, b)
    assert receiver.queued == 2
    assert sender.submit(b"", ("10.0.0.2", 4002)) == SENT  # other ports are not concerned
    assert len(received(receiver)) == 2
    pump(a, b)
    assert a.reader.freed == 1 << (4001 % 64)
    assert sender.submit(bytes(60), ("10.0.0.2", 4001)) == SENT


def test_the_ring_grows_and_shrinks() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = side.endpoint(4001)
    side.read(map_frame())
    sequence, expected = 0, []
    for burst in (5, 20, 3, 3000, 1):
        for _ in range(burst):
            sequence += 1
            expected.append(b"%d" % sequence)
            side.read(frame(sequence, b"%d" % sequence))
        half = len(expected) // 2
        assert [data for data, _ in endpoint.take_many(half)] == expected[:half]
        expected = expected[half:]
    assert received(endpoint) == expected
    assert side.core.queued_bytes == 0


# -- closing


def test_close_drops_and_cancels() -> None:
    a, b = pair()
    sender, other, receiver = a.endpoint(4000), a.endpoint(4002), b.endpoint(4001, receive_limit=10)
    a.read(map_frame() + frame(1, bytes(2000), dport=4000))
    for data in (b"x" * 50, b"y" * 50):
        assert sender.submit(data, ("10.0.0.2", 4001)) == SENT
    assert other.submit(b"z", ("10.0.0.2", 4001)) == SENT
    sender.owner = object()
    sender.close()
    assert (sender.sent_bytes, sender.unacknowledged, sender.received_bytes, sender.queued) == (0, 0, 0, 0)
    assert (sender.received_messages, sender.owner, a.core.queued_bytes) == (0, None, 0)
    assert a.counter("send_canceled") == 2
    assert a.counter("recv_delivered") == 0
    pump(a, b)
    assert received(receiver) == [b"z"]
    assert a.read(frame(2, b"late", dport=4000)) == []
    assert a.counter("recv_drop_no_sock") == 1


def test_close_clears_the_congestion_bit() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = side.endpoint(4001, receive_limit=10)
    side.read(map_frame() + frame(1, bytes(50)))
    assert side.table.congestion.test(4001)
    side.core.take_remapped()
    endpoint.close()
    assert not side.table.congestion.test(4001)
    assert set(side.core.take_remapped()) == {side.table}


# -- submitting


def test_why_a_message_is_not_queued() -> None:
    side = Side("10.0.0.1", "10.0.0.2", max_message_bytes=500)
    endpoint = side.endpoint(4000, send_limit=100)
    there = ("10.0.0.2", 4001)
    assert endpoint.submit(bytes(101), there) == TOO_LONG
    endpoint.send_limit = 1000
    assert endpoint.submit(bytes(501), there) == TOO_LONG
    endpoint.send_limit = 100
    for address in [("10.0.0.3", 4001), ("10.0.0.2",), ("10.0.0.2", 4001, 0, 9), ["10.0.0.2", 4001], None, ()]:
        assert endpoint.submit(b"", address) == NO_ROUTE  # type: ignore[arg-type]
    assert endpoint.submit(bytes(99), there) == SENT
    assert endpoint.submit(bytes(100), there) == SENT  # the old sum decides
    assert (endpoint.submit(b"", there), endpoint.sent_bytes) == (FULL, 199)
    side.foreign.replace(map_frame(4001)[48:])
    assert endpoint.submit(b"", there) == CONGESTED
    assert endpoint.unacknowledged == endpoint.sent_messages == 2


def test_submit_takes_any_buffer_and_nothing_else() -> None:
    a, b = pair()
    sender, receiver = a.endpoint(4000), b.endpoint(4001)
    source = bytearray(b"abcd")
    for data in (b"abcd", source, memoryview(b"a-b-c-d")[::2], memoryview(b"abcd").cast("I")):
        assert sender.submit(data, ("10.0.0.2", 4001)) == SENT
    source[:] = b"zzzz"
    for bad in ("text", 5, None, ["list"]):
        with pytest.raises(TypeError):
            sender.submit(bad, ("10.0.0.2", 4001))  # type: ignore[arg-type]
    for port in (-1, 65536):
        with pytest.raises(OverflowError):
            sender.submit(b"", ("10.0.0.2", port))
    for port in ("4001", True, 4001.0):  # not for us to judge: the slow way says what is wrong with it
        assert sender.submit(b"", ("10.0.0.2", port)) == NO_ROUTE
    assert sender.unacknowledged == sender.sent_messages == 4
    pump(a, b)
    assert received(receiver) == [b"abcd"] * 4


def test_submit_many_says_where_it_stopped() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = side.endpoint(4000, send_limit=100)
    there = ("10.0.0.2", 4001)
    assert endpoint.submit_many([]) == 0
    messages: list[Any] = [(bytes(60), there)] * 5
    assert (endpoint.submit_many(messages), endpoint.code) == (2, FULL)
    endpoint.cancel(side.path)
    assert (endpoint.submit_many(messages, 4), endpoint.code) == (5, SENT)
    assert endpoint.submit_many(messages, 9) == 9
    with pytest.raises(ValueError):
        endpoint.submit_many(messages, -1)
    for bad in [(b"",), b"", None]:
        with pytest.raises(TypeError):
            endpoint.submit_many([bad])  # type: ignore[list-item]


def test_submit_many_survives_a_list_that_shrinks() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = side.endpoint(4000)

    class Host(str):
        __slots__ = ()

        def __hash__(self) -> int:
            messages.clear()
            return hash(str(self))

    messages: list[Any] = [(b"", (Host("10.0.0.2"), 4001)) for _ in range(100)]
    assert endpoint.submit_many(messages) == 1


def test_an_unbound_endpoint_cannot_submit() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    endpoint = Endpoint(10, 10)
    with pytest.raises(ValueError):
        endpoint.submit(b"", ("10.0.0.2", 4001))
    with pytest.raises(ValueError):
        endpoint.submit_to(b"", side.path, 4001)
    with pytest.raises((ValueError, TypeError)):
        side.endpoint(4000).submit_to(b"", None, 4001)  # type: ignore[arg-type]


# -- loopback


def loop() -> tuple[Core, Endpoint, Endpoint]:
    core = make_core()
    here = BindTable(core, "10.0.0.1")
    here.routes["10.0.0.1"] = Path(here, "10.0.0.1", here.congestion, peer_table=here)
    return core, bound(here, 4000), bound(here, 4001)


def test_loopback_delivers_at_once() -> None:
    core, one, two = loop()
    assert one.submit(b"hello", ("10.0.0.1", 4001)) == SENT
    assert two.take() == (b"hello", ("10.0.0.1", 4000))
    assert (one.sent_bytes, one.unacknowledged, core.take_dirty()) == (0, 0, [])
    assert one.submit(b"lost", ("10.0.0.1", 4002)) == SENT
    assert core.statistics()["recv_drop_no_sock"] == 1
    assert one.submit(b"ping", ("10.0.0.1", 0)) == SENT
    assert one.take() == (b"", ("10.0.0.1", 0))


def test_loopback_congestion_holds_senders_back() -> None:
    _, one, two = loop()
    assert [one.submit(bytes(600), ("10.0.0.1", 4001)) for _ in range(3)] == [SENT, SENT, CONGESTED]
    assert len(received(two)) == 2
    assert one.submit(b"", ("10.0.0.1", 4001)) == SENT


# -- caps


def test_a_peer_above_its_cap_is_paused_until_half() -> None:
    side = Side("10.0.0.1", "10.0.0.2", max_peer_queued_bytes=1000)
    endpoint = side.endpoint(4001)
    side.read(map_frame())
    for sequence in range(1, 5):  # 4 * (122 + 128) = 1000: at the cap, not above it
        side.read(frame(sequence, bytes(122)))
    assert not side.path.paused
    side.read(frame(5, b""))
    assert side.path.paused
    assert side.counter("recv_paused") == 1
    side.read(frame(6, b""))  # what is already read is taken in
    assert (endpoint.queued, side.counter("recv_paused")) == (6, 1)
    endpoint.take_many(2)
    assert side.path.paused
    assert side.core.take_resumable() == []
    endpoint.take()
    assert side.path.queued_bytes == 250 + 2 * OVERHEAD_BYTES
    assert side.path.paused
    endpoint.take()
    assert not side.path.paused
    assert side.core.attention
    assert side.core.take_resumable() == [side.path]
    assert side.core.take_resumable() == []


def test_a_full_node_pauses_whoever_sends() -> None:
    core = make_core(max_node_queued_bytes=1000)
    one, two = Side("10.0.0.1", "10.0.0.2"), Side("10.0.0.1", "10.0.0.3")
    for side in (one, two):
        side.core = core
        side.table = BindTable(core, "10.0.0.1")
        side.path = Path(side.table, side.peer, side.foreign)
        side.link()
        side.read(map_frame())
    first, second = one.endpoint(4001), two.endpoint(4001)
    one.read(frame(1, bytes(500)))
    two.read(frame(1, bytes(500)))
    assert (one.path.paused, two.path.paused) == (False, True)
    one.read(frame(2))
    assert one.path.paused
    first.take_many(9)
    assert core.take_resumable() == []
    second.take()
    assert set(core.take_resumable()) == {one.path, two.path}
    assert core.queued_bytes == 0


def test_closing_resumes() -> None:
    side = Side("10.0.0.1", "10.0.0.2", max_peer_queued_bytes=1000)
    endpoint = side.endpoint(4001)
    side.read(map_frame() + frame(1, bytes(2000)))
    assert side.path.paused
    endpoint.close()
    assert side.core.take_resumable() == [side.path]
    assert side.path.queued_bytes == side.core.queued_bytes == 0
