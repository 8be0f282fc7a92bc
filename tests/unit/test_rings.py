"""The rings of a queue pair, on a made-up device: what goes out, what is made of what comes in, what a peer or a device can break."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ringskit = pytest.importorskip("ringskit", reason="rdsx was built without the headers of rdma-core")

from fastkit import CONGESTED, HELLO, MIB, RETRANSMITTED, SENT, received  # noqa: E402
from rdsx import _reference  # noqa: E402
from rdsx._fast import checksum  # noqa: E402
from rdsx._rings import Nic, Rings, ring_bytes, verbs_nic  # noqa: E402
from rdsx.errors import WireError  # noqa: E402
from ringskit import (  # noqa: E402
    ACK_LATER,
    ACK_NONE,
    ACK_NOW,
    ACK_REQUIRED,
    BROKEN,
    EMPTY,
    FIRST_HEADER,
    FLUSHED,
    FRAGMENT_BYTES,
    GENERAL,
    INLINE,
    LKEY,
    NEW_MAP,
    REMOTE_ACCESS,
    RETRIES,
    RNR_RETRIES,
    SIGNALED,
    SLOT_BYTES,
    SOLICITED,
    TAKEN,
    RingSide,
    ack_frame,
    alone,
    frames_of,
    map_frames,
    opened,
    pair,
    relink,
    settle,
    show_all,
    unchecked,
)

SIZES = [0, 1, 47, 48, 4095, 4096, 4097, 65536, MIB]


def wire(side: RingSide) -> list[bytes]:
    """What is sent now."""
    side.kick()
    return [frame for frame, _ in side.outgoing()]


# -- what goes out


def test_the_first_frames_on_the_wire() -> None:
    """B.13 and F.3, byte for byte: the map in two fragments, "hello", an acknowledgement of everything up to 3."""
    side = alone()
    side.path.open(b"")
    first = wire(side)
    header = "0" * 32 + "0000200000000000" + "01" + "0" * 10 + "deff" + "0" * 32
    assert [frame.hex() for frame in first] == [header + "00" * FRAGMENT_BYTES] * 2
    endpoint = side.endpoint(4000)
    endpoint.submit(b"hello", ("10.0.0.2", 4001))
    (hello,) = wire(side)
    assert hello.hex() == "0000000000000001" + "0" * 16 + "000000050fa00fa1" + "02" + "0" * 10 + "deb8" + "0" * 32 + "68656c6c6f"
    side.inject(*map_frames(), *frames_of(3, b"x", dport=9, flags=ACK_REQUIRED))
    side.take_in()
    (ack,) = wire(side)
    assert ack.hex() == "0" * 16 + "0000000000000003" + "0" * 28 + "fffc" + "0" * 32


@pytest.mark.parametrize("size", SIZES)
def test_fragments_are_those_of_the_twin(size: int) -> None:
    side = opened(send_slots=512)
    side.endpoint(4000).submit(bytes(range(256)) * (size // 256) + b"x" * (size % 256), ("10.0.0.2", 4001))
    side.kick()
    sent = side.outgoing()
    payload = b"".join(frame[48:] for frame, _ in sent)
    assert [frame for frame, _ in sent] == _reference.fragments(1, 0, 4000, 4001, payload, ACK_REQUIRED)
    assert len(payload) == size
    assert [bool(flags & SOLICITED) for _, flags in sent] == [False] * (len(sent) - 1) + [True]
    assert side.nic.doorbells == 2  # one for the map


def test_one_frame_in_sixteen_is_signalled() -> None:
    side = opened(send_slots=64)
    endpoint = side.endpoint(4000)
    for _ in range(62):
        endpoint.submit(b"x", ("10.0.0.2", 4001))
    side.kick()
    signalled = [index for index, (_, flags) in enumerate(side.outgoing(), 3) if flags & SIGNALED]
    assert signalled == [16, 32, 48, 64]  # two frames of the map went before
    assert side.rings.in_flight == 64
    for left in (48, 32, 16, 0):
        side.nic.show_sends(1)
        assert side.rings.poll() == TAKEN
        assert side.rings.in_flight == left


@pytest.mark.parametrize("slots", [4, 8, 32])
def test_a_full_ring_always_has_a_signalled_frame(slots: int) -> None:
    """Or else nobody would ever hear that there is room again."""
    side = opened(send_slots=slots)
    endpoint = side.endpoint(4000)
    for _ in range(40):
        endpoint.submit(b"x", ("10.0.0.2", 4001))
    seen = 2
    while side.path.send_queue:
        side.kick()
        seen += len(side.outgoing())
        assert side.rings.in_flight < slots or side.nic.late
        side.nic.show_sends()
        side.take_in()
    assert seen == 42
    assert side.counter("ib_tx_ring_full") >= 1


def test_a_lone_message_wakes_nobody_for_its_completion() -> None:
    a, b = pair()
    settle(a, b)
    a.endpoint(4000).submit(b"x", ("10.0.0.2", 4001))
    a.kick()
    assert a.nic.carry() == 1
    show_all(a, b)
    assert not a.has_event()
    assert b.has_event()


def test_small_frames_go_inline() -> None:
    side = opened(inline=64)
    endpoint = side.endpoint(4000)
    for size in (0, 16, 17):
        endpoint.submit(bytes(size), ("10.0.0.2", 4001))
    side.kick()
    assert [bool(flags & INLINE) for _, flags in side.outgoing()] == [True, True, False]


def test_a_message_longer_than_the_ring() -> None:
    a, b = pair(send_slots=8, receive_slots=16)
    receiver = b.endpoint(4001)
    data = bytes(range(256)) * 2048
    a.endpoint(4000).submit(data, ("10.0.0.2", 4001))
    a.endpoint(4002).submit(b"behind", ("10.0.0.2", 4001))
    settle(a, b)
    assert received(receiver) == [data, b"behind"]
    assert a.path.retransmit_queue == 0
    assert a.is_clean()
    assert b.is_clean()


def test_a_cancelled_message_under_way_goes_to_its_end() -> None:
    a, b = pair(send_slots=4, receive_slots=16)
    receiver, sender = b.endpoint(4001), a.endpoint(4000)
    settle(a, b)
    sender.submit(bytes(40000), ("10.0.0.2", 4001))
    sender.submit(b"gone", ("10.0.0.2", 4001))
    a.kick()
    assert a.rings.blocked
    assert sender.cancel(a.path) == 2
    a.endpoint(4002).submit(b"next", ("10.0.0.2", 4001))
    settle(a, b)
    assert received(receiver) == [bytes(40000), b"next"]


def test_maps_go_first_and_between_messages() -> None:
    a, b = pair(send_slots=8)
    small = a.endpoint(5000, receive_limit=10)
    sender = b.endpoint(4000)
    settle(a, b)
    a.endpoint(4001).submit(bytes(50000), ("10.0.0.2", 4000))
    a.kick()
    assert a.rings.blocked
    sender.submit(b"more than ten bytes", ("10.0.0.1", 5000))
    settle(a, b)
    assert small.congested
    assert sender.submit(b"x", ("10.0.0.1", 5000)) == CONGESTED
    received(small)
    settle(a, b)
    assert sender.submit(b"x", ("10.0.0.1", 5000)) == SENT
    assert [len(data) for data in received(sender)] == [50000]


def test_a_map_is_one_state_though_its_fragments_go_apart() -> None:
    """Ports change between its two fragments: the peer gets the map of before, and then that of after."""
    side = opened(send_slots=4)
    side.path.peer_is_kernel = True  # which wants every map
    side.take_in()
    endpoint, table = side.endpoint(4000), side.table.congestion
    for _ in range(3):
        endpoint.submit(b"x", ("10.0.0.2", 4001))
    side.kick()
    table.set(9)
    table.set(60000)
    maps = []
    for number in range(4):
        maps += [frame[48:] for frame in wire(side) if frame[24] == 1]
        if number == 0:
            assert len(maps) == 1
            table.clear(9)
            table.clear(60000)
        side.nic.show_sends()
        side.take_in()
    assert [bits.count(0) for bits in maps] == [4095, 4095, 4096, 4096]


def test_the_hello_is_in_the_first_map_only() -> None:
    side = alone()
    side.path.peer_is_kernel = True  # which wants every map
    assert [frame[32:48] for frame in wire(side)] == [HELLO.ljust(16, b"\0")] * 2
    side.table.congestion.set(9)
    assert [frame[32:48] for frame in wire(side)] == [bytes(16)] * 2


# -- acknowledgements


def test_a_kernel_is_asked_as_a_kernel_asks() -> None:
    """I11: the first of a path and every ninth; and the last one of the queue, which it would otherwise never acknowledge."""
    side = opened()
    endpoint = side.endpoint(4000)
    side.path.peer_is_kernel = True
    for _ in range(20):
        endpoint.submit(b"x", ("10.0.0.2", 4001))
    asking = [number for number, frame in enumerate(wire(side), 1) if frame[24] & ACK_REQUIRED]
    assert asking == [1, 10, 19, 20]
    side.inject(ack_frame(20))
    side.take_in()
    assert side.path.retransmit_queue == 0
    assert side.counter("recv_ack_only") == 1


def test_acknowledgements_ride_on_messages() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    side.inject(*frames_of(1, b"x", flags=ACK_REQUIRED))
    side.take_in()
    endpoint.submit(b"y", ("10.0.0.2", 4000))
    (frame,) = wire(side)
    assert int.from_bytes(frame[8:16]) == 1
    assert side.path.ack_due == ACK_NONE
    assert side.counter("ib_ack_send_piggybacked") == 1
    assert side.counter("send_ack_only") == 0


def test_one_acknowledgement_at_a_time() -> None:
    side = opened()
    side.endpoint(4001)
    for sequence in (1, 2, 3):
        side.inject(*frames_of(sequence, b"x", flags=ACK_REQUIRED))
        side.take_in()
        side.kick()
    ((ack, flags),) = side.outgoing()
    assert ack == ack_frame(1)
    assert flags & SIGNALED
    assert side.rings.acking
    side.nic.show_sends()
    assert side.rings.poll() == TAKEN
    assert not side.rings.acking
    assert wire(side) == [ack_frame(3)]
    assert side.counter("ib_ack_send_delayed") == 2


def test_what_did_not_ask_is_acknowledged_later() -> None:
    side = opened()
    side.endpoint(4001)
    side.inject(*frames_of(1, b"x"))
    side.take_in()
    assert side.path.ack_due == ACK_LATER
    assert wire(side) == []
    side.tick()
    assert [frame for frame, _ in side.outgoing()] == [ack_frame(1)]


def test_many_are_acknowledged_at_once() -> None:
    side = opened(receive_slots=512)
    side.endpoint(4001)
    side.inject(*(frame for sequence in range(256) for frame in frames_of(sequence + 1)))
    side.take_in()
    assert side.path.ack_due == ACK_NOW


def test_acknowledgements_begin_anew_with_each_link() -> None:
    """A peer that has restarted counts from 1: what its former life was told must not retire its messages."""
    a, b = pair()
    receiver, sender = b.endpoint(4001), a.endpoint(4000)
    for _ in range(5):
        sender.submit(b"x", ("10.0.0.2", 4001))
    settle(a, b)
    assert receiver.queued == 5
    relink(a, b)
    b.kick()
    assert [int.from_bytes(frame[8:16]) for frame, _ in b.outgoing()] == [0, 0]


def test_a_fragment_acknowledges_too() -> None:
    side = opened()
    side.endpoint(4000).submit(b"x", ("10.0.0.2", 4001))
    wire(side)
    side.inject(frames_of(1, bytes(9000), ack=1)[0])
    side.take_in()
    assert side.path.retransmit_queue == 0


def test_an_acknowledgement_of_what_was_never_sent_retires_only_what_was() -> None:
    side = opened(send_slots=4)
    endpoint = side.endpoint(4000)
    endpoint.submit(b"x", ("10.0.0.2", 4001))
    endpoint.submit(bytes(40000), ("10.0.0.2", 4001))
    side.kick()
    side.outgoing()
    side.inject(ack_frame(1 << 63))
    side.take_in()
    assert endpoint.unacknowledged == 1
    while side.rings.blocked:
        side.nic.show_sends()
        side.take_in()
        side.kick()
        side.outgoing()
    side.inject(ack_frame(2))
    side.take_in()
    assert endpoint.unacknowledged == 0


def test_flush_ends_with_nothing_in_flight() -> None:
    a, b = pair()
    settle(a, b)
    b.endpoint(4001)
    a.endpoint(4000).submit(b"x", ("10.0.0.2", 4001))
    a.kick()
    a.rings.flush()
    settle(a, b)
    assert a.rings.in_flight == 0
    a.rings.flush()
    assert a.nic.posted_sends == 0


# -- what comes in


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int) -> None:
    a, b = pair(send_slots=16, receive_slots=32)
    ends = a.endpoint(4000, send_limit=2 * MIB), b.endpoint(4001, send_limit=2 * MIB)
    data = (b"%d," % size * (size // 2 + 1))[:size]
    assert ends[0].submit(data, ("10.0.0.2", 4001)) == SENT
    assert ends[1].submit(data[::-1], ("10.0.0.1", 4000)) == SENT
    settle(a, b)
    assert received(ends[1]) == [data]
    assert received(ends[0]) == [data[::-1]]
    assert not a.path.has_pending
    assert not b.path.has_pending


def test_an_acknowledgement_between_fragments_is_no_part_of_the_message() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    one, two, three = frames_of(1, bytes(9000))
    side.inject(one, ack_frame(0), two, ack_frame(0), three)
    side.take_in()
    assert received(endpoint) == [bytes(9000)]


def test_no_checksum_is_as_good_as_a_right_one() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    (frame,) = frames_of(1, b"fine")
    side.inject(frame[:30] + b"\0\0" + frame[32:])
    side.take_in()
    assert received(endpoint) == [b"fine"]


def changed(frame: bytes, offset: int, value: bytes) -> bytes:
    """A frame with other bytes in its header, and the right checksum for them."""
    header = bytearray(frame[:48])
    header[offset : offset + len(value)] = value
    header[30:32] = checksum(bytes(header)).to_bytes(2)
    return bytes(header) + frame[48:]


FIRST, SECOND, THIRD = frames_of(1, bytes(9000))
WRONG: list[tuple[str, list[bytes], str, str]] = [
    ("empty", [b""], "short_fragment", "recv_drop_bad_frame"),
    ("half a header", [FIRST[:47]], "short_fragment", "recv_drop_bad_frame"),
    ("checksum", [FIRST[:30] + b"\1\1" + FIRST[32:]], "bad_checksum", "recv_drop_bad_checksum"),
    ("a bit of the header", [FIRST[:8] + b"\1" + FIRST[9:]], "bad_checksum", "recv_drop_bad_checksum"),
    ("1 MiB and 1", frames_of(1, bytes(4096), length=MIB + 1), "bad_length", "recv_drop_bad_frame"),
    ("4 GiB", frames_of(1, bytes(4096), length=0xFFFFFFFF), "bad_length", "recv_drop_bad_frame"),
    ("a map of 4 GiB", frames_of(0, bytes(4096), sport=0, dport=0, flags=1, length=0xFFFFFFFF), "bad_length", "recv_drop_bad_frame"),
    ("short first fragment", [FIRST[:100]], "bad_fragment", "recv_drop_bad_frame"),
    ("short second fragment", [FIRST, SECOND[:-1]], "bad_fragment", "recv_drop_bad_frame"),
    ("short last fragment", [FIRST, SECOND, THIRD[:-1]], "bad_fragment", "recv_drop_bad_frame"),
    ("long last fragment", [FIRST, SECOND, THIRD + b"x"], "bad_fragment", "recv_drop_bad_frame"),
    ("payload where there is none", frames_of(1, b"x", length=0), "bad_fragment", "recv_drop_bad_frame"),
    ("no payload where there is some", [FIRST, SECOND[:48]], "bad_fragment", "recv_drop_bad_frame"),
    ("another sequence", [FIRST, changed(SECOND, 7, b"\2")], "bad_fragment", "recv_drop_bad_frame"),
    ("another length", [FIRST, changed(SECOND, 19, b"\7")], "bad_fragment", "recv_drop_bad_frame"),
    ("another sport", [FIRST, changed(SECOND, 20, b"\7")], "bad_fragment", "recv_drop_bad_frame"),
    ("another dport", [FIRST, changed(SECOND, 22, b"\7")], "bad_fragment", "recv_drop_bad_frame"),
    ("a message inside a message", [FIRST, *frames_of(2, b"x")], "bad_fragment", "recv_drop_bad_frame"),
    ("a map inside a message", [FIRST, *map_frames()], "bad_fragment", "recv_drop_bad_frame"),
    ("another message inside one that nobody gets", [frames_of(1, bytes(9000), dport=9)[0], SECOND], "bad_fragment", "recv_drop_bad_frame"),
]


@pytest.mark.parametrize(("frames", "reason", "counter"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_breaks_a_link(frames: list[bytes], reason: str, counter: str) -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    side.inject(*frames, *frames_of(9, b"behind"))
    assert side.take_in()[-1] == BROKEN
    assert side.rings.broken
    assert side.rings.reason == reason
    assert side.rings.detail.startswith(reason)
    assert side.counter(counter) == 1
    assert received(endpoint) == []
    assert side.rings.poll() == BROKEN
    side.endpoint(4000).submit(b"x", ("10.0.0.2", 4001))
    assert side.rings.transmit() == side.rings.post_receives() == 0
    # the next link works
    side.path.reset()
    side.link()
    side.inject(*map_frames(), *frames_of(9, b"fine"))
    side.take_in()
    assert received(endpoint) == [b"fine"]


def test_what_is_dropped_and_acknowledged() -> None:
    side = opened(max_message_bytes=8000)
    endpoint = side.endpoint(4001)
    side.path.next_receive = 5
    side.inject(
        *frames_of(4, b"again", flags=RETRANSMITTED),
        *frames_of(4, bytes(5000), flags=RETRANSMITTED),
        *frames_of(5, b"x", dport=9),
        *frames_of(6, bytes(5000), dport=9),
        *frames_of(7, bytes(8001)),
        *frames_of(8, b"fine", extensions=b"\x09\0"),
        *frames_of(0, bytes(100), sport=0, dport=0, flags=1),
        *frames_of(0, bytes(5000), sport=0, dport=0, flags=1),
        *frames_of(9, sport=1, dport=0, extensions=b"\5\0\10"),
    )
    side.take_in()
    assert received(endpoint) == [b"fine"]
    counters = {name: side.counter(name) for name in side.core.statistics() if name.startswith("recv_drop") and side.counter(name)}
    expected = {"recv_drop_old_seq": 2, "recv_drop_no_sock": 2, "recv_drop_too_long": 1, "recv_drop_bad_map": 2, "recv_drop_ping": 1}
    assert counters == expected
    assert side.counter("recv_unknown_extension") == 1
    assert wire(side) == [ack_frame(9)]


def test_a_duplicate_is_acknowledged_with_its_own_number() -> None:
    side = opened()
    side.endpoint(4001)
    side.path.next_receive = 1000
    side.inject(*frames_of(4, b"again", flags=RETRANSMITTED))
    side.take_in()
    assert wire(side) == [ack_frame(4)]


def test_a_kernel_may_begin_anew_and_rdsx_not() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    side.path.next_receive = 1000
    side.inject(*frames_of(4, b"a"))
    side.take_in()
    assert received(endpoint) == []
    side.path.peer_is_kernel = True
    side.inject(*frames_of(5, b"b"))
    side.take_in()
    assert received(endpoint) == [b"b"]
    assert side.path.next_receive == 6


def test_a_ping_is_answered() -> None:
    side = opened()
    side.inject(*frames_of(1, sport=5001, dport=0))
    side.take_in()
    (pong,) = wire(side)
    assert pong == _reference.fragments(1, 1, 0, 5001, b"", ACK_REQUIRED)[0]


def test_the_first_header_is_shown_before_it_is_acted_on() -> None:
    side = alone()
    extensions = bytes(range(0x50, 0x60))
    side.inject(*map_frames(9, extensions=extensions))
    assert side.rings.poll() == FIRST_HEADER
    assert side.rings.extensions == extensions
    assert not side.path.foreign.test(9)
    assert [side.rings.poll() for _ in range(2)] == [NEW_MAP, EMPTY]
    assert side.path.foreign.test(9)


messages = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 4095, 4096, 4097, 8192, 9000]), st.integers(0, 8), st.integers(-60, 60)), max_size=6
)


@given(messages)
def test_any_frames_like_the_twin(pieces: list[tuple[int, int, int, int]]) -> None:
    """Fragments dropped from the front, and cut short: the verdict on each is that of the twin."""
    frames = []
    for sequence, size, skip, cut in pieces:
        parts = frames_of(sequence, bytes(size))[skip % 3 :]
        frames += [part[: len(part) + cut] if cut < -50 else part for part in parts]
    twin = _reference.Reassembly(MIB)
    expected: list[bytes] = []
    reason = None
    for frame in frames:
        try:
            whole = twin.feed(frame)
        except WireError as error:
            reason = error.reason
            break
        if whole is not None:
            expected.append(whole[-1])
    side = opened()
    endpoint = side.endpoint(4001, receive_limit=MIB)
    side.path.peer_is_kernel = True  # so that no message is a duplicate
    for frame in frames:
        side.inject(frame)
        side.take_in()
        if side.rings.broken:
            break
    assert side.rings.reason == reason
    assert received(endpoint) == expected


@given(st.lists(st.binary(max_size=200) | unchecked, max_size=8))
def test_no_bytes_do_more_than_break_the_link(frames: list[bytes]) -> None:
    side = opened()
    for frame in frames:
        side.inject(frame)
    codes = side.take_in()
    assert BROKEN not in codes[:-1]
    assert side.rings.broken == (BROKEN in codes)
    if side.rings.broken:
        assert side.rings.reason in ("short_fragment", "bad_checksum", "bad_length", "bad_fragment")


def test_a_promise_of_payload_costs_at_most_one_message() -> None:
    sides = [opened() for _ in range(4)]
    endpoints = [side.endpoint(4001) for side in sides]
    gc.collect()
    tracemalloc.start()
    try:
        for side in sides:
            first = frames_of(1, bytes(FRAGMENT_BYTES), length=MIB)
            for _ in range(255):
                side.inject(*first)
                side.take_in()
        held, _ = tracemalloc.get_traced_memory()
        assert 4 * MIB <= held < 4 * (MIB + 20000)
        for side in sides:
            side.inject(b"")
            side.take_in()
        after, _ = tracemalloc.get_traced_memory()
        assert after < 100000
        assert [received(endpoint) for endpoint in endpoints] == [[]] * 4
    finally:
        tracemalloc.stop()


# -- the device


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (FLUSHED, "flushed"),
        (RETRIES, "peer_silent"),
        (RNR_RETRIES, "peer_not_ready"),
        (REMOTE_ACCESS, "remote_error"),
        (GENERAL, "completion_error"),
    ],
)
def test_a_send_fails(status: int, reason: str) -> None:
    side = opened()
    endpoint = side.endpoint(4000)
    side.nic.fail_next(status)
    endpoint.submit(b"x", ("10.0.0.2", 4001))
    side.kick()
    side.nic.carry()
    show_all(side)
    assert side.take_in() == [BROKEN]
    assert side.rings.reason == reason
    assert f"status {status}" in side.rings.detail
    assert endpoint.unacknowledged == 1


def test_a_receive_is_flushed_behind_what_came_before() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    side.inject(*frames_of(1, b"last"))
    side.nic.fail()
    show_all(side)
    assert side.take_in() == [BROKEN]
    assert side.rings.reason == "flushed"
    assert received(endpoint) == [b"last"]


def test_posts_are_refused() -> None:
    side = opened()
    side.nic.refuse_posts(1)
    side.endpoint(4000).submit(b"x", ("10.0.0.2", 4001))
    side.kick()
    assert (side.rings.broken, side.rings.reason) == (True, "post_failed")
    other = opened(receive_slots=4)
    other.nic.refuse_posts(1)
    other.inject(*frames_of(1, dport=9))
    assert other.take_in() == [BROKEN]
    assert "ibv_post_recv" in other.rings.detail


def test_no_receive_is_posted() -> None:
    """Receiver not ready: the frames wait, and nothing is lost."""
    a, b = pair(receive_slots=4)
    receiver, sender = b.endpoint(4001), a.endpoint(4000)
    settle(a, b)
    for number in range(20):
        sender.submit(b"%d" % number, ("10.0.0.2", 4001))
    a.kick()
    assert a.nic.carry() <= 4
    assert a.nic.starved
    settle(a, b)
    assert received(receiver) == [b"%d" % number for number in range(20)]
    assert b.counter("ib_rx_ring_empty") >= 1


def test_receives_are_posted_again_in_lists() -> None:
    side = opened(receive_slots=64)
    before = side.nic.posted_receives
    assert before == 62
    for sequence in range(13):
        side.inject(*frames_of(sequence, dport=9))
    side.take_in()
    assert side.nic.posted_receives == 49
    side.inject(*frames_of(14, dport=9))
    side.take_in()
    assert side.nic.posted_receives == 64


def test_only_solicited_completions_wake_a_large_ring() -> None:
    small, large = alone(receive_slots=256), alone(receive_slots=512)
    assert not small.rings.solicited_only
    assert large.rings.solicited_only
    for side in (small, large):
        side.rings.arm()
        assert side.nic.inject(map_frames()[0], solicited=False)
        side.nic.show_receives()
    assert small.has_event()
    assert not large.has_event()
    assert large.nic.inject(map_frames()[1])
    large.nic.show_receives()
    assert large.has_event()
    assert large.rings.take_events() == 1
    assert large.nic.unacknowledged_events == 0
    assert not large.has_event()


def test_events_are_given_once_for_each_arming() -> None:
    side = opened()
    side.rings.arm()
    side.inject(*frames_of(1, dport=9), *frames_of(2, dport=9))
    assert side.rings.take_events() == 1
    side.inject(*frames_of(3, dport=9))
    assert side.rings.take_events() == 0


# -- links


def test_resends_go_first_flagged_and_nothing_arrives_twice() -> None:
    a, b = pair()
    receiver, sender = b.endpoint(4001), a.endpoint(4000)
    settle(a, b)
    for number in range(4):
        sender.submit(b"%d" % number, ("10.0.0.2", 4001))
    a.kick()
    a.nic.carry(2)
    show_all(a, b)
    b.run()
    relink(a, b)
    sender.submit(b"4", ("10.0.0.2", 4001))
    a.kick()
    assert [frame[24] for frame, _ in a.outgoing()] == [1, 1, 6, 6, 6, 6, 0]
    settle(a, b)
    assert received(receiver) == [b"0", b"1", b"2", b"3", b"4"]
    assert b.counter("recv_drop_old_seq") == 2
    assert a.path.retransmitted == 4
    assert sender.unacknowledged == 0


def test_half_a_message_comes_again_whole() -> None:
    a, b = pair(send_slots=8)
    receiver = b.endpoint(4001)
    settle(a, b)
    a.endpoint(4000).submit(bytes(100000), ("10.0.0.2", 4001))
    a.kick()
    a.nic.carry(3)
    show_all(a, b)
    b.run()
    relink(a, b)
    settle(a, b)
    assert received(receiver) == [bytes(100000)]


# -- making rings


def test_what_rings_are_made_of() -> None:
    side = alone()
    good: dict[str, Any] = {"memory": 4096, "memory_bytes": ring_bytes(4, 8), "lkey": LKEY, "send_slots": 4, "receive_slots": 8}
    assert ring_bytes(4, 8) == 12 * SLOT_BYTES
    with pytest.raises(ValueError, match="stands for no device"):
        Rings(side.path, Nic(), **good)
    for name, value, text in (
        ("send_slots", 2, "4 to 32768 slots, not 2"),
        ("receive_slots", 65536, "not 65536"),
        ("send_slots", 6, "power of two"),
        ("memory_bytes", ring_bytes(4, 8) - 1, f"need {ring_bytes(4, 8)} bytes"),
        ("memory", 0, "registered memory"),
    ):
        changes = good | {name: value}
        if name != "memory_bytes":
            changes["memory_bytes"] = ring_bytes(changes["send_slots"], changes["receive_slots"])
        with pytest.raises(ValueError, match=text):
            Rings(side.path, side.nic, **changes)
    with pytest.raises(ValueError, match="grants 1 to 65535 at first, not 0"):
        side.rings.use_credits(0)


def test_a_device_is_not_at_address_0() -> None:
    for index in range(6):
        addresses = [4096] * 6
        addresses[index] = 0
        with pytest.raises(ValueError, match="not 0"):
            verbs_nic(*addresses)
    with pytest.raises(ValueError, match="two completion queues"):
        verbs_nic(4096, 8192, 8192, 4096, 4096, 4096)
