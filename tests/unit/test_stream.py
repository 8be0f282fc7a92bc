"""StreamReader: any bytes in any split give messages or a WireError, the same for every split, in bounded memory."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkit import (
    CONGESTED,
    FIRST_HEADER,
    HELLO,
    MAP_FRAME_BYTES,
    MIB,
    NEED_MORE,
    NEW_MAP,
    PROBE,
    SENT,
    Side,
    chop,
    frame,
    map_frame,
    pair,
    pump,
    received,
)
from rdsx._fast import pack_header
from rdsx._reference import CongestionMap, is_duplicate, parse_stream, unpack_header, verify_checksum
from rdsx._stream import StreamReader, StreamWriter
from rdsx.errors import WireError

LIMIT = 20000  # max_message_bytes of most readers here
PORTS = (4000, 4001)

sizes = st.sampled_from([0, 1, 47, 48, 4095, 4096, 4097, 4144, 4145, 8192, 9000, LIMIT, LIMIT + 1, 30000]) | st.integers(0, 6000)
splits = st.lists(st.sampled_from([1, 2, 47, 48, 49, 4096, 4144, 8240]) | st.integers(1, 20000), max_size=30)
ports = st.sampled_from([0, 1, *PORTS, 9])
messages = st.builds(
    lambda sequence, size, sport, dport, flags, checksum, extensions, ack: frame(
        sequence,
        (b"%d!" % sequence * (size // 2 + 1))[:size],
        sport=sport,
        dport=dport,
        flags=flags,
        checksum=checksum,
        extensions=extensions,
        ack=ack,
    ),
    st.integers(0, 6) | st.just((1 << 64) - 1),
    sizes,
    ports,
    ports,
    st.sampled_from([0, 0, 0, 1, 2, 4, 4, 5, 6, 0xFA]),
    st.booleans(),
    st.sampled_from([b"", b"\x05\0\x08", b"\x03" + bytes(range(8))]),
    st.integers(0, 5),
)
maps = st.sets(st.integers(0, 65535) | ports, max_size=4).map(lambda full: map_frame(*full))
streams = st.lists(messages | maps, max_size=8).map(b"".join)


def opened(*, acks: bool = False, ports: tuple[int, ...] = PORTS, **limits: Any) -> tuple[Side, list[Any]]:
    """A side that has heard the peer's map, and its sockets."""
    side = Side("10.0.0.1", "10.0.0.2", **{"max_message_bytes": LIMIT} | limits)
    side.path.peer_acks = acks
    return side, [side.endpoint(port) for port in ports]


def take_in(side: Side, stream: bytes, split: list[int]) -> list[Any]:
    """Everything that can be seen of a stream taken in: codes with what came with them, and how it ended."""
    seen: list[Any] = []

    def note(code: int) -> None:
        reader = side.reader
        extra = bytes(side.foreign) if code == NEW_MAP else (reader.extensions, reader.ack, reader.sport, reader.dport)
        seen.append((code, reader.freed if code == NEW_MAP else None, extra))

    try:
        for piece in chop(stream, split):
            side.read(piece, note)
    except WireError as error:
        seen.append(error.reason)
    return seen


def model(stream: bytes, *, acks: bool, max_message_bytes: int = LIMIT) -> tuple[list[Any], dict[int, list[Any]], int]:
    """What a reader must make of a stream: codes, messages by port, next_receive."""
    seen: list[Any] = []
    queues: dict[int, list[Any]] = {port: [] for port in PORTS}
    foreign, next_receive = CongestionMap(), 0
    frames, rest = parse_stream(stream)
    for at, (header, payload) in enumerate(frames):
        extra = header.extensions, header.ack, header.sport, header.dport
        if at == 0:
            seen.append((FIRST_HEADER, None, extra))
        if header.flags == 1:
            if len(payload) == 8192:
                freed = foreign.replace(payload)
                seen.append((NEW_MAP, freed, bytes(foreign)))
            continue
        if acks and header.sequence == 0 and header.length == 0:
            continue
        if is_duplicate(header.sequence, header.flags, next_receive, peer_acks=acks):
            continue
        next_receive = (header.sequence + 1) % (1 << 64)
        if header.length > max_message_bytes:
            continue
        if (header.dport == 0 and header.sport == 1) or (header.dport == 1 and header.sport == 0):
            seen.append((PROBE, None, extra))
        elif header.dport in PORTS:
            queues[header.dport].append((payload, ("10.0.0.2", header.sport)))
    if not frames and len(rest) >= 48:
        first = unpack_header(rest)
        seen.append((FIRST_HEADER, None, (first.extensions, first.ack, first.sport, first.dport)))
    return seen, queues, next_receive


# -- any split


@given(streams, st.integers(0, 60000), splits, st.booleans())
def test_any_split_gives_the_same_messages(stream: bytes, cut: int, split: list[int], acks: bool) -> None:
    stream = stream[:cut]
    side, endpoints = opened(acks=acks)
    seen, queues, next_receive = model(stream, acks=acks)
    assert take_in(side, stream, split) == seen
    for endpoint in endpoints:
        assert endpoint.take_many(100) == queues[endpoint.port]
    assert side.reader.position == len(stream)
    rest = parse_stream(stream)[1]
    if len(rest) < 48 or unpack_header(rest).length <= 4096:  # else a dropped message may be counted at its header
        assert side.path.next_receive == next_receive


def test_every_split_in_two() -> None:
    stream = map_frame(4001) + b"".join(
        frame(sequence, b"%d" % sequence * size, flags=flags)
        for sequence, size, flags in [(1, 0, 0), (2, 3, 0), (2, 3, 4), (3, 4097, 0), (4, 0, 0), (5, 5000, 4)]
    )
    expected = model(stream, acks=False)[1][4001]
    for at in range(len(stream) + 1):
        if MAP_FRAME_BYTES < at < len(stream) - 120 and at % 7 and at % 4096 > 120:
            continue  # inside a payload one place is as good as another
        side, (endpoint,) = opened(ports=(4001,))
        side.read(stream[:at])
        side.read(stream[at:])
        assert endpoint.take_many(100) == expected


def test_one_byte_at_a_time() -> None:
    stream = map_frame() + frame(1, b"a" * 5000) + frame(2, b"b" * 10) + frame(3, b"c" * 4097) + frame(4)
    side, (endpoint,) = opened(ports=(4001,))
    assert side.read(stream[:47]) == []
    for at in range(47, len(stream)):
        side.read(stream[at : at + 1])
    assert [len(data) for data in received(endpoint)] == [5000, 10, 4097, 0]


def test_small_frames_fill_the_scratch_to_the_brim() -> None:
    stream = map_frame() + b"".join(frame(sequence, bytes(sequence % 4097)) for sequence in range(1, 600))
    side, (endpoint,) = opened(ports=(4001,))
    side.read(stream)
    assert [len(data) for data in received(endpoint)] == [sequence % 4097 for sequence in range(1, 600)]


# -- large payloads


def test_large_payloads_are_received_in_place() -> None:
    side, (endpoint,) = opened(ports=(4001,), max_message_bytes=MIB)
    payload = bytes(range(256)) * 4096
    side.read(map_frame() + frame(1, payload)[:5048] + b"")
    rest, ahead = side.reader.buffers()
    assert (len(rest), len(ahead)) == (MIB - 5000, 48 + 4096)
    rest[:] = payload[5000:]
    ahead[:53] = frame(2, b"hello")
    side.reader.received(len(rest) + 53)
    assert side.reader.parse() == NEED_MORE
    first, second = endpoint.take_many(2)
    assert first[0] == payload
    assert second[0] == b"hello"
    assert len(side.reader.buffers()) == 1


def test_read_ahead_may_end_in_the_middle_of_anything() -> None:
    stream = frame(1, b"a" * 9000) + frame(2, b"b" * 4096) + frame(3, b"c" * 9000)
    for ahead in range(0, 4145, 37):
        side, (endpoint,) = opened(ports=(4001,))
        side.read(map_frame() + stream[:100])
        for piece in (stream[100 : 9048 + ahead], stream[9048 + ahead :]):
            side.read(piece)
        assert received(endpoint) == [b"a" * 9000, b"b" * 4096, b"c" * 9000]


# -- lengths


@pytest.mark.parametrize("cut", [48, 49, 4145, LIMIT + 49, 1 << 21])
def test_too_long_for_us_is_consumed_and_dropped(cut: int) -> None:
    side, (endpoint,) = opened(ports=(4001,))
    stream = frame(1, bytes(LIMIT + 1)) + frame(2, bytes(MIB)) + frame(3, b"fits")
    side.read(map_frame())
    side.read(stream[:cut])
    side.read(stream[cut:])
    assert received(endpoint) == [b"fits"]
    assert side.counter("recv_drop_too_long") == 2
    assert side.counter("recv_drop_no_sock") == 0
    assert side.path.next_receive == 4


@pytest.mark.parametrize("length", [MIB + 1, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("flags", [0, 1, 4])
def test_too_long_for_everybody_ends_the_stream(length: int, flags: int) -> None:
    side, _ = opened()
    side.read(map_frame())
    with pytest.raises(WireError) as caught:
        side.read(frame(1, b"beginning", length=length, flags=flags))
    assert caught.value.reason == "bad_length"
    assert side.counter("recv_drop_bad_frame") == 1


def test_a_larger_limit_of_ours_counts() -> None:
    side, (endpoint,) = opened(ports=(4001,), max_message_bytes=2 * MIB)
    side.read(map_frame() + frame(1, bytes(2 * MIB)))
    assert [len(data) for data in received(endpoint)] == [2 * MIB]
    with pytest.raises(WireError):
        side.read(frame(2, b"", length=2 * MIB + 1))


def test_nothing_is_allocated_for_what_is_dropped() -> None:
    side, _ = opened(max_message_bytes=MIB)
    side.read(map_frame() + frame(5))
    for header in (
        frame(6, length=MIB, dport=9),  # no socket
        frame(3, length=MIB, flags=4),  # duplicate
        frame(7, length=8193, flags=1),  # no map
    ):
        side.read(header)
        assert len(side.reader.buffers()) == 1  # not in place
        length = unpack_header(header).length
        side.read(bytes(length))
    assert side.counter("recv_drop_no_sock") == side.counter("recv_drop_old_seq") == side.counter("recv_drop_bad_map") == 1
    assert side.path.next_receive == 7


# -- checksums and flags


def test_a_wrong_checksum_ends_the_stream_and_none_is_fine() -> None:
    side, (endpoint,) = opened(ports=(4001,))
    good = frame(1, b"one", checksum=True)
    side.read(map_frame() + good + frame(2, b"two"))
    assert received(endpoint) == [b"one", b"two"]
    with pytest.raises(WireError) as caught:
        side.read(frame(3, b"", checksum=True)[:47] + b"\x01")
    assert caught.value.reason == "bad_checksum"
    assert side.counter("recv_drop_bad_checksum") == 1
    assert received(endpoint) == []


def test_a_first_header_with_a_wrong_checksum_is_not_acted_on() -> None:
    side, _ = opened()
    with pytest.raises(WireError):
        side.read(b"\0" * 8 + pack_header(0, 0, 8192, 0, 0, 1, checksum=True)[8:32] + HELLO.ljust(16, b"\0"))
    assert not side.reader.heard


def test_unknown_flags_are_ignored() -> None:
    side, (endpoint,) = opened(ports=(4001,))
    side.read(map_frame() + frame(1, b"one", flags=0xFA) + frame(2, b"two", flags=0x20))
    assert received(endpoint) == [b"one", b"two"]
    side.read(frame(1, b"old", flags=0xFE))
    assert received(endpoint) == []


# -- maps


def test_a_map_has_the_flag_and_no_other() -> None:
    side, _ = opened()
    side.read(map_frame(4001))
    assert side.foreign.test(4001)
    bits = bytes(8192)
    for flags in (0x05, 0x03, 0x81):  # to port 0 from port 0: ignored
        assert side.read(frame(1, bits, sport=0, dport=0, flags=flags)) == []
    assert side.foreign.test(4001)
    assert side.counter("cong_update_received") == 1
    assert side.read(map_frame()) == [NEW_MAP]
    assert side.reader.freed == 1 << (4001 % 64)
    assert not side.foreign.test(4001)


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 8191, 8193, 16384, 65536])
def test_a_map_of_another_length_is_ignored(size: int) -> None:
    side, (endpoint,) = opened(ports=(4001,))
    side.read(map_frame(4001))
    assert side.read(frame(0, b"\xff" * size, sport=0, dport=0, flags=1) + frame(1, b"next")) == []
    assert side.counter("recv_drop_bad_map") == 1
    assert received(endpoint) == [b"next"]
    assert side.foreign.test(4001)
    assert not side.foreign.test(4000)


def test_a_map_does_not_count_as_a_message() -> None:
    side, _ = opened(acks=True)
    side.read(map_frame() + frame(7) + map_frame())
    assert (side.path.next_receive, side.path.ack_due) == (8, 1)


def test_maps_do_not_have_to_fit_our_message_limit() -> None:
    side, _ = opened(max_message_bytes=100)
    side.read(map_frame())
    assert side.read(map_frame(4001)[:100]) == []
    assert side.read(map_frame(4001)[100:]) == [NEW_MAP]
    assert side.foreign.test(4001)


# -- first header, probes, pings


def test_the_first_header_stops_the_parse() -> None:
    side, _ = opened()
    first = map_frame(4001, extensions=HELLO)
    first = first[:8] + (77).to_bytes(8, "big") + first[16:]
    assert side.read(first[:47]) == []
    assert side.reader.feed(first[47:48]) == 1
    assert side.reader.parse() == FIRST_HEADER
    reader = side.reader
    assert (reader.heard, reader.extensions, reader.ack) == (True, HELLO.ljust(16, b"\0"), 77)
    assert reader.parse() == NEED_MORE
    assert side.read(first[48:]) == [NEW_MAP]


def test_the_first_header_is_any_header_and_is_acted_on_afterwards() -> None:
    side, (endpoint,) = opened(ports=(4001,))
    side.reader.feed(frame(1, b"no map first"))
    assert side.reader.parse() == FIRST_HEADER
    assert endpoint.queued == 0
    assert side.reader.parse() == NEED_MORE
    assert received(endpoint) == [b"no map first"]


def test_a_probe_stops_the_parse_behind_itself() -> None:
    side, (endpoint,) = opened(ports=(4001,))
    side.read(map_frame())
    probes = [frame(1, sport=1, dport=0, extensions=b"\x05\0\x08"), frame(2, sport=0, dport=1, ack=9)]
    side.reader.feed(probes[0] + probes[1] + frame(3, b"behind"))
    for extensions, ack, sport, dport in [(b"\x05\0\x08", 0, 1, 0), (b"", 9, 0, 1)]:
        assert side.reader.parse() == PROBE
        reader = side.reader
        assert (reader.extensions, reader.ack, reader.sport, reader.dport) == (extensions.ljust(16, b"\0"), ack, sport, dport)
        assert endpoint.queued == 0
    assert side.reader.parse() == NEED_MORE
    assert received(endpoint) == [b"behind"]
    assert side.path.next_receive == 4
    assert side.read(frame(1, sport=1, dport=0, flags=4)) == []  # a duplicate is none


def test_pings_are_answered_from_port_0() -> None:
    side, _ = opened()
    side.write_all()
    side.read(map_frame() + frame(1, b"any payload" * 1000, dport=0) + frame(2, sport=0, dport=0) + frame(3, sport=7, dport=0))
    assert side.write_all() == frame(1, sport=0, dport=4000) + frame(2, sport=0, dport=7)
    assert (side.counter("recv_ping"), side.counter("send_pong")) == (2, 2)


def test_pings_from_a_congested_port_are_not_answered() -> None:
    side, _ = opened()
    side.write_all()
    side.read(map_frame(4000) + frame(1, dport=0))
    assert side.write_all() == b""


def test_pings_may_be_switched_off() -> None:
    side, _ = opened(answer_pings=False)
    side.write_all()
    side.read(map_frame() + frame(1, dport=0) + frame(2, sport=1, dport=0))
    assert side.write_all() == b""
    assert side.counter("recv_drop_no_sock") == 2


def test_a_flood_of_pings_is_bounded() -> None:
    side, _ = opened()
    side.read(map_frame() + b"".join(frame(sequence, dport=0) for sequence in range(1, 3001)))
    assert side.path.send_queue == 1024
    assert side.counter("recv_drop_ping") == 3000 - 1024
    side.write_all()
    side.path.retire_written(1 << 60)
    side.read(frame(3001, dport=0))
    assert side.path.send_queue == 1


def test_ping_end_to_end() -> None:
    a, b = pair()
    pinger = a.endpoint(4000)
    assert pinger.submit(b"", ("10.0.0.2", 0)) == SENT
    pump(a, b)
    assert pinger.take() == (b"", ("10.0.0.2", 0))


# -- duplicates and acks


def test_duplicates_between_kernels_are_lower_and_flagged() -> None:
    side, (endpoint,) = opened(ports=(4001,))
    side.read(map_frame())
    for sequence, flags in [(5, 0), (5, 4), (4, 4), (6, 4), (2, 0), (3, 4), (2, 4)]:
        side.read(frame(sequence, b"%d" % sequence, flags=flags))
    assert received(endpoint) == [b"5", b"6", b"2", b"3"]
    assert side.counter("recv_drop_old_seq") == 3
    assert side.path.next_receive == 4


def test_an_rdsx_peer_never_goes_back() -> None:
    side, (endpoint,) = opened(acks=True, ports=(4001,))
    side.read(map_frame())
    for sequence, flags in [(5, 0), (5, 0), (4, 4), (6, 4), (2, 0)]:
        side.read(frame(sequence, b"%d" % sequence, flags=flags))
    assert received(endpoint) == [b"5", b"6"]
    assert side.path.ack_due == 2  # whoever repeats has missed our ack


def test_acks_of_a_kernel_mean_nothing() -> None:
    side, endpoints = opened()
    endpoints[0].submit(b"x", ("10.0.0.2", 4001))
    side.write_all()
    side.read(map_frame() + frame(1, ack=99, flags=2))
    assert endpoints[0].unacknowledged == 1
    assert side.path.ack_due == 0
    # and to a kernel a frame that looks like a pure ack is a message like any other
    assert side.path.next_receive == 2
    side.read(frame(0, sport=0, dport=0))
    assert side.path.next_receive == 1


@pytest.mark.parametrize(
    "carrier",
    [
        frame(0, ack=1, sport=0, dport=0),
        frame(9, ack=1),
        frame(9, bytes(5000), ack=1),
        frame(9, bytes(5000), ack=1, dport=9),
        frame(9, bytes(LIMIT + 1), ack=1),
        frame(3, ack=1),
        frame(3, bytes(5000), ack=1, flags=4),
        frame(0, bytes(100), ack=1, sport=0, dport=0, flags=1),
        frame(0, bytes(9000), ack=1, sport=0, dport=0, flags=1),
    ],
    ids=["ack only", "small", "large", "no socket", "too long", "old", "old and large", "bad map", "bad large map"],
)
@pytest.mark.parametrize("step", [100, 1 << 20])
def test_every_frame_of_an_rdsx_peer_carries_an_ack(carrier: bytes, step: int) -> None:
    side, endpoints = opened(acks=True)
    side.read(map_frame() + frame(7))
    endpoints[0].submit(b"x", ("10.0.0.2", 4001))
    side.write_all()
    for piece in chop(carrier, [step] * 1000):
        side.read(piece)
    assert endpoints[0].unacknowledged == 0


def test_acks_are_due_after_many_messages_or_bytes_or_when_asked() -> None:
    for stream, due in [
        (frame(1), 1),
        (frame(1, flags=2), 2),
        (b"".join(frame(sequence) for sequence in range(1, 256)), 1),
        (b"".join(frame(sequence) for sequence in range(1, 257)), 2),
        (b"".join(frame(sequence, bytes(4096)) for sequence in range(1, 16)), 1),
        (b"".join(frame(sequence, bytes(4096)) for sequence in range(1, 17)), 2),
    ]:
        side, _ = opened(acks=True)
        side.read(map_frame())
        side.read(stream)
        assert side.path.ack_due == due
        assert (side.path in side.core.take_dirty()) or due == 1


# -- hostile bytes and memory

hostile_headers = st.builds(
    lambda sequence, length, sport, dport, flags, csum, extensions: (
        pack_header(sequence, 0, length, sport, dport, flags, 0, extensions)[:30] + csum.to_bytes(2, "big") + extensions.ljust(16, b"\0")
    ),
    st.integers(0, (1 << 64) - 1) | st.integers(0, 3),
    st.sampled_from([0, 1, 48, 4096, 4097, 8192, LIMIT, LIMIT + 1, MIB, MIB + 1, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1),
    ports,
    ports,
    st.integers(0, 255) | st.sampled_from([0, 1, 4]),
    st.sampled_from([0, 0, 0, 1]),
    st.binary(max_size=16),
)
hostile = st.lists(st.binary(max_size=200) | hostile_headers | streams, max_size=8).map(b"".join)


@given(hostile, splits, st.booleans())
def test_any_bytes_give_messages_or_a_wire_error(stream: bytes, split: list[int], acks: bool) -> None:
    side, endpoints = opened(acks=acks)
    for endpoint in endpoints:
        endpoint.submit(b"to be acknowledged", ("10.0.0.2", 4001))
    side.write_all()
    seen = take_in(side, stream, split)
    for endpoint in endpoints:
        taken = received(endpoint)
        assert all(len(data) <= LIMIT for data in taken)
        assert sum(map(len, taken)) <= len(stream)
    if seen and isinstance(seen[-1], str):
        assert seen[-1] in ("bad_length", "bad_checksum")
    elif len(stream) >= 48:
        assert verify_checksum(stream[:48])
    again, kept = opened(acks=acks)
    assert take_in(again, stream, [1 << 20]) == seen
    assert len(kept) == len(PORTS)
    # whatever came in, a new link works
    side.path.reset()
    side.link()
    side.path.next_receive = 0
    assert side.read(map_frame() + frame(1, b"fine")) in ([FIRST_HEADER, NEW_MAP], [FIRST_HEADER])


def test_a_promise_of_payload_costs_at_most_one_message() -> None:
    readers = [opened(max_message_bytes=MIB) for _ in range(4)]
    gc.collect()
    tracemalloc.start()
    try:
        for side, _ in readers:
            side.read(map_frame() + frame(1, length=MIB))
            side.read(bytes(MIB - 1))
        held, _ = tracemalloc.get_traced_memory()
        assert held < 4 * (MIB + 20000)
        for side, endpoints in readers:
            side.read(b"\0")
            received(endpoints[1])
        after, _ = tracemalloc.get_traced_memory()
        assert after < 100000
    finally:
        tracemalloc.stop()


def test_a_broken_link_lets_its_half_message_go() -> None:
    side, (endpoint,) = opened(ports=(4001,))
    side.read(map_frame() + frame(1, b"x" * 9000)[:5000])
    side.path.reset()
    side.link()
    side.read(map_frame() + frame(1, b"x" * 9000, flags=4))
    assert received(endpoint) == [b"x" * 9000]


def test_received_refuses_more_than_there_was_room_for() -> None:
    side, _ = opened()
    (whole,) = side.reader.buffers()
    with pytest.raises(ValueError):
        side.reader.received(len(whole) + 1)
    side.read(map_frame() + frame(1, bytes(9000))[:10])
    (rest,) = side.reader.buffers()
    assert len(rest) == len(whole) - 10
    with pytest.raises(ValueError):
        side.reader.received(len(whole))
    side.read(frame(1, bytes(9000))[10:6000])
    rest, ahead = side.reader.buffers()
    with pytest.raises(ValueError):
        side.reader.received(len(rest) + len(ahead) + 1)


def test_feed_takes_what_fits() -> None:
    side, _ = opened()
    room = sum(map(len, side.reader.buffers()))
    assert side.reader.feed(bytes(room + 100)) == room
    assert side.reader.feed(b"") == 0


def test_paths_are_needed() -> None:
    for end in (StreamReader, StreamWriter):
        with pytest.raises(TypeError):
            end(None)  # type: ignore[arg-type]


# -- end to end


@given(
    st.lists(st.tuples(st.integers(0, 1), sizes), max_size=15),
    splits,
    st.booleans(),
)
def test_two_sides_any_split(sends: list[tuple[int, int]], split: list[int], acks: bool) -> None:
    sides = pair(max_message_bytes=LIMIT)
    endpoints = [side.endpoint(4000) for side in sides]
    sent: list[list[bytes]] = [[], []]
    for side in sides:
        side.path.peer_acks = acks
    for number, (which, size) in enumerate(sends):
        data = (b"%d." % number * (size // 2 + 1))[:size]
        if endpoints[which].submit(data, (sides[which].peer, 4000)) == SENT:
            sent[which].append(data)
    pump(*sides, split)
    assert received(endpoints[1]) == sent[0]
    assert received(endpoints[0]) == sent[1]
    for side in sides:
        assert side.path.retransmitted == 0


def test_the_first_bytes_on_the_wire() -> None:
    """F.1, byte for byte: map, probe pong, "hello"."""
    side = Side("10.9.0.1", "10.9.0.5")
    side.path.open(b"")
    side.path.push_control(0, 1, b"\x05\0\x01")
    endpoint = side.endpoint(4000)
    endpoint.submit(b"hello", ("10.9.0.5", 4001))
    wire = side.write_all()
    assert wire[:48].hex() == "0" * 32 + "0000200000000000" + "01" + "0" * 46
    assert wire[48:8240] == bytes(8192)
    assert wire[8240:8288].hex() == "0000000000000001" + "0" * 16 + "0000000000000001" + "0" * 16 + "050001" + "0" * 26
    assert wire[8288:].hex() == "0000000000000002" + "0" * 16 + "000000050fa00fa1" + "0" * 48 + "68656c6c6f"
    side.path.reset()
    side.link(b"")
    assert side.write_all()[8288 + 24] == 4


def test_congestion_end_to_end() -> None:
    a, b = pair()
    sender, receiver = a.endpoint(4000), b.endpoint(4001, receive_limit=1000)
    codes = []
    for _ in range(4):
        codes.append(sender.submit(bytes(600), ("10.0.0.2", 4001)))
        pump(a, b)
    assert codes == [SENT, SENT, CONGESTED, CONGESTED]
    assert len(received(receiver)) == 2
