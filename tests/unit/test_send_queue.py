"""Path and StreamWriter against the SendQueue model: two nodes, a stream between them that may break after any byte, and every
way in which a message leaves the queue."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastkit import (
    ACK_REQUIRED,
    CONG_BITMAP,
    FIRST_HEADER,
    FULL,
    MAP_FRAME_BYTES,
    RETRANSMITTED,
    SENT,
    Side,
    frame,
    map_frame,
    pair,
    pump,
    received,
)
from rdsx._fast import Endpoint
from rdsx._reference import Frame, SendQueue, is_duplicate, parse_stream, unpack_header
from rdsx._stream import StreamWriter

PORTS = (4000, 4001)
NOBODY = 4009  # no socket is bound there
SEND_LIMIT = 60000
LARGE_BYTES = 4096  # payloads above this are acted on as soon as their header is there


class End:
    """One node of the state machine: the real thing, the model of its send queue, and what the test knows about its link."""

    def __init__(self, host: str, peer: str, *, acks: bool) -> None:
        self.side = Side(host, peer)
        self.model = SendQueue()
        self.side.path.peer_acks = self.model.peer_acks = acks
        self.ports = {port: self.side.endpoint(port, SEND_LIMIT) for port in PORTS}
        self.next_receive = 0
        self.arrived: set[int] = set()  # sequences of the peer that were taken in
        self.expected: dict[int, list[tuple[bytes, int]]] = defaultdict(list)  # port -> (payload, sport) not yet taken
        self.pushed: set[int] = set()
        self.excused: set[int] = set()  # cancelled, or lost with a peer that restarted
        self.touched: set[int] = set()  # sequences that writers of earlier links gave out
        self.polled: set[int] = set()  # ... and this link's writer
        self.new_link()

    def new_link(self) -> None:
        self.wire = b""  # written by us, not yet read by the peer
        self.unframed = b""  # written by us, not yet a whole frame
        self.carried = b""  # read by us, not yet a whole frame
        self.early = False  # the frame at the beginning of `carried` was acted on already
        self.control_left = 0  # bytes of a half-written map or ack
        self.delivered_bytes = 0  # of what we wrote
        self.last_sequence = 0
        self.touched |= self.polled
        self.polled = set()

    def receive_ack(self) -> int:
        return max(self.next_receive - 1, 0)


def is_control(header: bytes) -> bool:
    fields = unpack_header(header)
    return fields.sequence == 0 and (fields.flags == CONG_BITMAP or fields.length == 0)


class Link(RuleBasedStateMachine):
    """Ends 0 and 1. With `acks` both are rdsx: h_ack retires. Without, the peer's TCP does, by stream offset."""

    @initialize(acks=st.booleans())
    def begin(self, acks: bool) -> None:
        self.acks = acks
        self.ends = [End("10.0.0.1", "10.0.0.2", acks=acks), End("10.0.0.2", "10.0.0.1", acks=acks)]
        self.exchange_maps()

    def exchange_maps(self) -> None:
        for which in (0, 1):
            self.write(which, 1, MAP_FRAME_BYTES)
            self.read(which, MAP_FRAME_BYTES)

    which = st.integers(0, 1)
    # How much of what is there goes through: so many bytes, or (below 0) all but so many.
    counts = st.sampled_from([0, 1, 47, 48, 49, 96, 1 << 20, 1 << 20]) | st.integers(-150, 300) | st.integers(-5000, 30000)

    # -- what may happen

    @rule(
        which=which,
        port=st.sampled_from(PORTS),
        dport=st.sampled_from([*PORTS, 0, NOBODY]),
        size=st.sampled_from([0, 1, 100, 4095, 4096, 4097, 9000, 30000]),
        count=st.integers(1, 4),
    )
    def push(self, which: int, port: int, dport: int, size: int, count: int) -> None:
        end = self.ends[which]
        for _ in range(count):
            payload = (b"%d of %d " % (end.model.next_sequence, which) * (size // 5 + 1))[:size]
            code = end.ports[port].submit(payload, (end.side.peer, dport))
            if end.model.sent_bytes(end.ports[port]) >= SEND_LIMIT:
                assert code == FULL
                continue
            assert code == SENT
            end.pushed.add(end.model.next_sequence)
            end.model.push(end.ports[port], port, dport, payload, limit=SEND_LIMIT)

    @rule(which=which, max_bytes=st.sampled_from([1, 100, 5000, 65536]), count=counts)
    def write(self, which: int, max_bytes: int, count: int) -> None:
        end = self.ends[which]
        polled = end.side.writer.poll(max_bytes)
        batch = b"".join(bytes(piece) for piece in polled) if polled else b""
        before = end.control_left
        if batch and not before and not end.model.partial and is_control(batch):
            before = 48 + unpack_header(batch).length
        assert batch[before:] == end.model.poll(max_bytes, before, end.receive_ack())
        end.polled |= {message.sequence for message in end.model.messages[end.model.cursor : end.model.picked]}
        written = batch[:count]
        if polled:
            end.side.writer.written(len(written))
        control = min(before, len(written))
        end.control_left = before - control
        end.model.written_control(control)
        end.model.written(len(written) - control)
        end.wire += written
        self.check_wire(end, written)

    def check_wire(self, end: End, written: bytes) -> None:
        """Rule R0, and the flag on exactly what may have been on a wire before."""
        frames, end.unframed = parse_stream(end.unframed + written)
        for header, _ in frames:
            assert self.acks or (header.ack == 0 and not header.flags & ACK_REQUIRED)
            assert header.flags == CONG_BITMAP or not header.flags & CONG_BITMAP
            if header.sequence:
                assert header.sequence > end.last_sequence
                end.last_sequence = header.sequence
                assert bool(header.flags & RETRANSMITTED) == (header.sequence in end.touched)

    @rule(which=which, count=counts)
    def read(self, which: int, count: int) -> None:
        """What end `which` wrote arrives at the other one."""
        source, end = self.ends[which], self.ends[1 - which]
        data, source.wire = source.wire[:count], source.wire[count:]
        source.delivered_bytes += len(data)
        end.side.read(data, lambda code: self.heard_hello(end) if code == FIRST_HEADER else None)
        frames, rest = parse_stream(end.carried + data)
        for arrived in frames:
            self.take_in(end, arrived, early=end.early)
            end.early = False
        end.carried = rest
        if len(rest) >= 48 and not end.early:
            header = unpack_header(rest)
            if header.length > LARGE_BYTES:
                if self.acks:
                    end.model.retire(header.ack)
                if header.flags != CONG_BITMAP and (self.is_old(end, Frame(header, b"")) or header.dport == NOBODY):
                    self.take_in(end, Frame(header, b""), early=False)
                    end.early = True
        assert end.side.path.next_receive == end.next_receive

    def heard_hello(self, end: End) -> None:
        if end.side.path.held:
            end.side.path.resume(end.side.reader.ack)
            end.model.resume(end.side.reader.ack)

    def is_old(self, end: End, arrived: Frame) -> bool:
        return is_duplicate(arrived.header.sequence, arrived.header.flags, end.next_receive, peer_acks=self.acks)

    def take_in(self, end: End, arrived: Frame, *, early: bool) -> None:
        header, payload = arrived
        if self.acks:
            end.model.retire(header.ack)
        if early or header.sequence == 0 or self.is_old(end, arrived):
            return
        end.next_receive = header.sequence + 1
        assert header.sequence not in end.arrived  # nothing is taken in twice
        end.arrived.add(header.sequence)
        if header.dport == 0:
            end.pushed.add(end.model.next_sequence)
            end.model.push(None, 0, header.sport)
        elif header.dport != NOBODY:
            end.expected[header.dport].append((payload, header.sport))

    @precondition(lambda self: not self.acks)
    @rule(which=which, index=st.integers(0, 12), delta=st.integers(-1, 1))
    def retire_written(self, which: int, index: int, delta: int) -> None:
        """The peer's TCP has acknowledged what its process has read, or about as far as the end of some message."""
        end = self.ends[which]
        ends = [message.end for message in end.model.messages[: end.model.cursor]]
        acked = min(end.delivered_bytes, ends[index] + delta if index < len(ends) else end.delivered_bytes)
        assert end.side.path.retire_written(acked) == end.model.retire_written(acked)

    @rule(which=which)
    def ack_timer(self, which: int) -> None:
        path = self.ends[which].side.path
        assert self.acks or not path.ack_due
        if path.ack_due:
            path.ack_due = 2

    @rule(which=which, port=st.sampled_from(PORTS), dport=st.sampled_from([None, 4000, 0]))
    def cancel(self, which: int, port: int, dport: int | None) -> None:
        end = self.ends[which]
        endpoint = end.ports[port]
        self.excuse(end, endpoint, dport)
        assert endpoint.cancel(end.side.path, -1 if dport is None else dport) == end.model.cancel(endpoint, dport)

    @rule(which=which, port=st.sampled_from(PORTS))
    def close(self, which: int, port: int) -> None:
        end = self.ends[which]
        endpoint = end.ports[port]
        self.excuse(end, endpoint, None)
        end.model.cancel(endpoint)
        end.expected[port].clear()
        endpoint.close()
        assert endpoint.unacknowledged == endpoint.sent_bytes == endpoint.received_bytes == 0
        end.ports[port] = end.side.endpoint(port, SEND_LIMIT)

    def excuse(self, end: End, endpoint: Endpoint, dport: int | None) -> None:
        end.excused |= {message.sequence for message in end.model.messages if message.owner == endpoint and dport in (None, message.dport)}

    @rule(maps=st.booleans())
    def reconnect(self, maps: bool) -> None:
        """The link breaks, and all bytes on the way are lost. `maps`: the new one's first frames get through at once."""
        self.break_link()
        if maps:
            self.exchange_maps()

    def break_link(self) -> None:
        for end in self.ends:
            end.side.path.reset()
            end.model.reset()
            end.side.link()
            end.new_link()
            end.side.path.held = end.model.held = self.acks

    @rule(which=which)
    def restart(self, which: int) -> None:
        """End `which` starts its life anew; the other end gives up what the former life may have seen."""
        self.break_link()
        end, old = self.ends[1 - which], self.ends[which]
        end.excused |= end.pushed & {message.sequence for message in end.model.messages[: end.model.picked]}
        assert end.side.path.flush() == end.model.flush()
        end.next_receive = 0
        end.arrived = set()
        self.ends[which] = End(old.side.table.host, old.side.peer, acks=self.acks)

    @rule(which=which, full=st.booleans())
    def change_map(self, which: int, full: bool) -> None:
        congestion = self.ends[which].side.table.congestion
        (congestion.set if full else congestion.clear)(60000)

    @rule(which=which, port=st.sampled_from(PORTS))
    def take(self, which: int, port: int) -> None:
        end = self.ends[which]
        taken = [(data, address[1]) for data, address in end.ports[port].take_many(1000)]
        assert taken == end.expected[port]
        end.expected[port].clear()

    # -- what always holds

    @invariant()
    def accounts(self) -> None:
        for end in getattr(self, "ends", ()):
            path, model = end.side.path, end.model
            assert path.send_queue == len(model.messages) - model.cursor
            assert path.retransmit_queue == model.cursor
            assert path.has_pending == bool(model.messages)
            assert path.next_sequence == model.next_sequence
            for port, endpoint in end.ports.items():
                assert endpoint.sent_bytes == model.sent_bytes(endpoint)
                assert endpoint.unacknowledged == model.pending(endpoint) == path.pending_to(endpoint)
                assert path.pending_to(endpoint, 4000) == model.pending(endpoint, 4000)
                assert endpoint.queued == len(end.expected[port])

    def teardown(self) -> None:
        """Let everything run out: now all that nobody cancelled must have arrived."""
        if not hasattr(self, "ends"):
            return
        for _ in range(40):
            for which in (0, 1):
                self.ack_timer(which)
                self.write(which, 65536, 1 << 20)
                self.read(which, 1 << 20)
                if not self.acks:
                    self.retire_written(which, 1 << 20, 0)
        for end, other in (self.ends, self.ends[::-1]):
            assert end.side.writer.idle
            assert not end.side.path.has_pending
            assert end.pushed - end.excused <= other.arrived <= end.pushed
            assert all(endpoint.sent_bytes == endpoint.unacknowledged == 0 for endpoint in end.ports.values())
            for port in PORTS:
                self.take(end is self.ends[1], port)


TestLink = Link.TestCase
TestLink.settings = settings(max_examples=250, stateful_step_count=50)


# -- one thing at a time


def opened(**limits: Any) -> tuple[Side, Endpoint]:
    """A side whose map is out, and a socket of it."""
    side = Side("10.0.0.1", "10.0.0.2", **limits)
    assert len(side.write()) == MAP_FRAME_BYTES
    return side, side.endpoint(4000)


def sequences(wire: bytes) -> list[tuple[int, int]]:
    """(sequence, flags) of each frame."""
    frames, rest = parse_stream(wire)
    assert rest == b""
    return [(header.sequence, header.flags) for header, _ in frames]


THERE = ("10.0.0.2", 4001)


def test_a_partial_write_goes_on_where_it_stopped_after_any_byte() -> None:
    for size in (0, 1, 100, 4096, 4097):
        for count in {0, 1, 24, 47, 48, 49, 48 + size // 2, 47 + size}:
            side, endpoint = opened()
            for data in (bytes(size), b"next"):
                endpoint.submit(data, THERE)
            wire = side.write(count)
            side.path.next_sequence = 9  # nothing that happens meanwhile changes a header on the wire
            assert wire + side.write_all() == frame(1, bytes(size)) + frame(2, b"next")


def test_an_ack_that_changes_does_not_change_a_half_written_header() -> None:
    side, endpoint = opened()
    side.acks()
    endpoint.submit(b"x", THERE)
    wire = side.write(12)
    side.read(map_frame() + frame(5, b"", dport=4000))
    wire += side.write_all()
    assert [(header.sequence, header.ack) for header, _ in parse_stream(wire)[0]] == [(1, 0)]


def test_the_map_goes_first_and_only_between_messages() -> None:
    side, endpoint = opened()
    endpoint.submit(b"one", THERE)
    endpoint.submit(b"two", THERE)
    wire = side.write(50)
    side.table.congestion.set(4000)
    side.table.congestion.set(4001)
    assert side.path.map_due
    wire += side.write_all()
    assert wire == frame(1, b"one") + frame(2, b"two") + map_frame(4000, 4001)
    assert not side.path.map_due
    side.path.reset()
    side.link(b"R")
    assert side.write_all() == map_frame(4000, 4001, extensions=b"R") + frame(1, b"one", flags=4) + frame(2, b"two", flags=4)


def test_what_was_polled_may_have_touched_the_wire() -> None:
    side, endpoint = opened()
    for _ in range(3):
        endpoint.submit(b"x" * 100, THERE)
    side.write(0, max_bytes=150)  # picks two, none goes out
    side.path.reset()
    side.link()
    assert sequences(side.write_all()[MAP_FRAME_BYTES:]) == [(1, 4), (2, 4), (3, 0)]
    assert side.path.retransmitted == side.counter("send_retransmitted") == 2


def test_polling_again_counts_nothing_twice() -> None:
    side, endpoint = opened()
    endpoint.submit(b"x" * 100, THERE)
    side.write()
    side.path.reset()
    side.link()
    for count in (0, 1, 0, 8000, 0, 300, 20):
        side.write(count)
    side.write_all()
    assert side.path.retransmitted == side.counter("send_retransmitted") == 1


@pytest.mark.parametrize("count", [1, 47, 48, 100])
def test_a_message_cancelled_while_half_written_is_finished_and_never_resent(count: int) -> None:
    side, endpoint = opened()
    for _ in range(3):
        endpoint.submit(b"x" * 100, THERE)
    wire = side.write(count)
    assert endpoint.cancel(side.path) == 3
    assert (endpoint.sent_bytes, endpoint.unacknowledged, side.path.send_queue) == (0, 0, 1)
    assert wire + side.write_all() == frame(1, b"x" * 100)
    side.path.reset()
    side.link()
    assert side.path.next_sequence == 4  # its number is not used again
    assert not side.path.has_pending


def test_flush_finishes_the_half_written_message_and_drops_the_rest() -> None:
    side, endpoint = opened()
    for _ in range(5):
        endpoint.submit(b"x" * 100, THERE)
    wire = side.write(148 + 60, max_bytes=300)  # three are picked, one is written, one half
    side.path.next_receive = 50
    assert side.path.flush() == 2
    assert (side.path.next_receive, endpoint.unacknowledged, side.path.has_pending) == (0, 2, True)
    assert sequences(wire + side.write_all()) == [(1, 0), (2, 0), (4, 0), (5, 0)]
    assert side.counter("send_flushed") == 2
    side.path.reset()
    side.link()
    assert sequences(side.write_all()[MAP_FRAME_BYTES:]) == [(4, 4), (5, 4)]


def test_resume_drops_what_the_peer_has() -> None:
    side, endpoint = opened()
    side.acks()
    for _ in range(4):
        endpoint.submit(b"x", THERE)
    side.write(max_bytes=120)  # picks three
    side.path.reset()
    side.link()
    side.path.held = True
    assert len(side.write_all()) == MAP_FRAME_BYTES
    side.path.resume(2)
    assert [sequence for sequence, _ in sequences(side.write_all())] == [3, 4]
    assert endpoint.unacknowledged == 2


def test_resume_cannot_drop_what_was_never_sent() -> None:
    side, endpoint = opened()
    side.acks()
    endpoint.submit(b"x", THERE)
    side.path.resume(1 << 63)
    assert [sequence for sequence, _ in sequences(side.write_all())] == [1]


def test_a_hostile_ack_retires_only_what_was_written() -> None:
    side, endpoint = opened()
    side.acks()
    for _ in range(3):
        endpoint.submit(b"x" * 100, THERE)
    side.write(148 + 50)
    side.read(map_frame() + frame(0, ack=(1 << 64) - 1, sport=0, dport=0))
    assert (side.path.retransmit_queue, side.path.send_queue, endpoint.unacknowledged) == (0, 2, 2)
    assert side.path.retire_written((1 << 64) - 1) == 0


def test_ack_required_policy() -> None:
    """Numbers 1, 10, 19 ... are marked; 9, 18, 27 ... after a reset; retransmissions always."""
    side = Side("10.0.0.1", "10.0.0.2")
    side.acks()
    endpoint = side.endpoint(4000)
    for _ in range(20):
        endpoint.submit(b"", THERE)
    assert [s for s, flags in sequences(side.write_all()[MAP_FRAME_BYTES:]) if flags & ACK_REQUIRED] == [1, 10, 19]
    side.path.reset()
    side.link()
    for _ in range(20):
        endpoint.submit(b"", THERE)
    again = sequences(side.write_all()[MAP_FRAME_BYTES:])
    assert again[:20] == [(s, ACK_REQUIRED | RETRANSMITTED) for s in range(1, 21)]
    assert [s - 20 for s, flags in again[20:] if flags & ACK_REQUIRED] == [9, 18]


def test_a_half_full_socket_asks_for_acks() -> None:
    side = Side("10.0.0.1", "10.0.0.2")
    side.acks()
    endpoint = side.endpoint(4000, send_limit=1000)
    for _ in range(4):
        endpoint.submit(bytes(200), THERE)
    assert [flags for _, flags in sequences(side.write_all()[MAP_FRAME_BYTES:])] == [2, 0, 2, 2]


def test_a_kernel_that_takes_the_place_of_an_rdsx_peer_sees_no_marks_and_no_acks() -> None:
    side, endpoint = opened()
    side.acks()
    side.read(map_frame() + frame(5, dport=4000))
    endpoint.submit(b"one", THERE)
    side.write()
    endpoint.send_limit = 4
    endpoint.submit(b"two", THERE)  # marked: the socket is half full
    side.path.reset()
    side.path.peer_acks = False
    side.link()
    assert side.write_all()[MAP_FRAME_BYTES:] == frame(1, b"one", flags=4) + frame(2, b"two")


def test_ack_frames() -> None:
    a, b = pair()
    a.acks()
    b.acks()
    sender, receiver = a.endpoint(4000), b.endpoint(4001)
    a.read(b.write_all())
    b.read(a.write_all())
    sender.submit(b"one", THERE)  # marked: the first one is
    b.read(a.write_all())
    assert b.path.ack_due == 2
    assert b.core.take_dirty() == [b.path]
    assert b.write_all() == frame(0, ack=1, sport=0, dport=0)
    assert (b.path.ack_due, b.counter("send_ack_only")) == (0, 1)
    sender.submit(b"two", THERE)
    b.read(a.write_all())
    assert b.path.ack_due == 1  # later: no frame for it alone, but it rides on the next message
    assert b.write_all() == b""
    receiver.submit(b"three", ("10.0.0.1", 4000))
    a.read(b.write_all())
    assert sender.unacknowledged == 0
    assert received(sender) == [b"three"]


def test_h_ack_never_underflows() -> None:
    side, endpoint = opened()
    side.acks()
    assert side.path.next_receive == 0
    endpoint.submit(b"x", THERE)
    side.path.ack_due = 2
    side.table.congestion.set(4000)
    wire = side.write_all()
    side.path.ack_due = 2
    wire += side.write_all()
    side.path.next_receive = 0
    side.path.reset()
    side.link()
    assert all(header.ack == 0 for header, _ in parse_stream(wire + side.write_all())[0])
    # nor at the other end of the numbers
    side.read(map_frame() + frame((1 << 64) - 1, dport=4000))
    assert side.path.next_receive == 0


def test_retire_written_goes_by_the_links_own_offsets() -> None:
    side, endpoint = opened()
    for _ in range(3):
        endpoint.submit(bytes(100), THERE)
    side.write()
    base = MAP_FRAME_BYTES
    assert side.path.retire_written(base + 147) == 0
    assert side.path.retire_written(base + 148) == 1
    side.path.reset()
    side.link()
    assert side.path.retire_written(1 << 40) == 0  # nothing is written on the new link
    side.write()
    assert side.path.retire_written(base + 2 * 148) == 2


@pytest.mark.parametrize("count", [0, 1, 47, 48, 49, 5000])
@pytest.mark.parametrize("size", [100, 9000])
def test_a_message_written_in_two_parts_ends_where_it_ends(count: int, size: int) -> None:
    side, endpoint = opened()
    endpoint.submit(bytes(size), THERE)
    end = MAP_FRAME_BYTES + 48 + size
    side.write(count)
    side.write_all()
    assert side.writer.position == end
    assert side.path.retire_written(end - 1) == 0
    assert side.path.retire_written(end) == 1


def test_controls_are_sequenced_and_belong_to_nobody() -> None:
    side, endpoint = opened()
    assert side.path.push_control(0, 1, b"\x05\0\x01", once=True)
    assert not side.path.push_control(0, 1, b"\x05\0\x01", once=True)
    endpoint.submit(b"x", THERE)
    assert side.path.push_control(0, 1, b"")
    endpoint.close()
    probe = frame(1, sport=0, dport=1, extensions=b"\x05\0\x01")
    assert side.write_all() == probe + frame(3, sport=0, dport=1)
    assert not side.path.push_control(0, 1, b"", once=True)
    side.path.retire_written(1 << 40)
    assert side.path.push_control(0, 1, b"", once=True)
    with pytest.raises(ValueError):
        side.path.push_control(0, 1, bytes(17))


def test_dirty_paths_are_listed_once_and_not_when_corked() -> None:
    side, endpoint = opened()
    side.core.take_dirty()
    endpoint.submit(b"", THERE)
    endpoint.submit(b"", THERE)
    assert side.core.take_dirty() == [side.path]
    side.path.corked = True
    endpoint.submit(b"", THERE)
    assert side.core.take_dirty() == []


def test_waiting_senders_are_woken() -> None:
    side, endpoint = opened()
    endpoint.send_waiting = True
    endpoint.submit(b"x", THERE)
    side.write()
    assert side.core.take_woken() == []
    side.path.retire_written(1 << 40)
    assert side.core.take_woken() == [endpoint]
    assert side.counter("send_queue_empty") == 1


def test_many_messages_and_large_batches() -> None:
    a, b = pair()
    sender, receiver = a.endpoint(4000, send_limit=1 << 30), b.endpoint(4001, receive_limit=1 << 30)
    payloads = [bytes([i % 256]) * (i * 37 % 6000) for i in range(3000)]
    for payload in payloads:
        assert sender.submit(payload, THERE) == SENT
    pump(a, b)
    assert received(receiver) == payloads
    a.path.retire_written(1 << 60)
    assert sender.sent_bytes == 0
    assert sender.submit(b"after the ring shrank", THERE) == SENT
    pump(a, b)
    assert received(receiver) == [b"after the ring shrank"]


def test_max_bytes_bounds_a_batch_to_one_message_more() -> None:
    side, endpoint = opened()
    for _ in range(300):
        endpoint.submit(bytes(4097), THERE)
        endpoint.submit(bytes(10), THERE)
    for max_bytes in (1, 1000, 100000, 131072, 1 << 30):
        polled = side.writer.poll(max_bytes)
        assert polled is not None
        assert sum(len(bytes(piece)) for piece in polled) < max_bytes + 4145
        assert len(polled) < 70
        side.writer.written(0)


def test_large_messages_are_written_some_at_once() -> None:
    side, endpoint = opened()
    for _ in range(6):
        endpoint.submit(bytes(65536), THERE)
    for messages in (4, 2):
        polled = side.writer.poll()
        assert polled is not None
        assert sum(map(len, polled)) == messages * (48 + 65536)
        side.writer.written(messages * (48 + 65536))


def test_written_refuses_more_than_was_polled() -> None:
    side, endpoint = opened()
    with pytest.raises(ValueError):
        side.writer.written(1)
    endpoint.submit(b"x", THERE)
    side.write(0)
    with pytest.raises(ValueError):
        side.writer.written(50)
    with pytest.raises(ValueError):
        StreamWriter(Side("10.0.0.1", "10.0.0.2").path).written(1 << 40)


def test_clear_leaves_nothing() -> None:
    side, endpoint = opened()
    for _ in range(3):
        endpoint.submit(b"x" * 100, THERE)
    side.write(200)
    side.path.clear()
    assert (endpoint.sent_bytes, endpoint.unacknowledged, side.path.has_pending) == (0, 0, False)
    assert side.writer.poll() is None
    assert side.writer.idle


def test_references_come_out_even() -> None:
    """Payloads, endpoints and extensions are let go on every way out of the ring."""
    payload = b"kept by reference" * 10
    before = sys.getrefcount(payload)
    side, endpoint = opened()
    owned = sys.getrefcount(endpoint)
    for way in ("retire", "cancel", "flush", "half", "clear"):
        for _ in range(20):
            assert endpoint.submit(payload, THERE) == SENT
        assert sys.getrefcount(payload) == before + 20
        if way == "cancel":
            endpoint.cancel(side.path)
        elif way == "half":
            side.write(100, max_bytes=500)
            endpoint.cancel(side.path)
            side.write_all()
        else:
            side.write_all()
        if way == "flush":
            side.path.reset()
            side.link()
            side.path.flush()
        elif way == "clear":
            side.path.clear()
        else:
            side.path.retire_written(1 << 60)
        assert sys.getrefcount(payload) == before
        assert sys.getrefcount(endpoint) == owned
