"""Packed frames: several messages in one, between two rdsx nodes that agreed on it. docs/verbs-rings.md."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

ringskit = pytest.importorskip("ringskit", reason="rdsx was built without the headers of rdma-core")

from fastkit import ACK_REQUIRED, SENT, received  # noqa: E402
from rdsx._fast import pack_header, unpack_header  # noqa: E402
from rdsx.wire.cm_data import PACKED_FRAGMENT_BYTES  # noqa: E402
from ringskit import (  # noqa: E402
    BROKEN,
    EMPTY,
    INLINE,
    MIB,
    RingSide,
    alone,
    frames_of,
    map_frames,
    operation,
    pair,
    relink,
    settle,
    unchecked,
    use_credits,
)

FRAME_BYTES = 16384
FRAGMENT_BYTES = FRAME_BYTES - 48
LARGEST = 16384  # payload of a message's last frame
PEER = ("10.0.0.2", 4001)


opened = partial(ringskit.opened, packed=True)


def aligned(size: int) -> int:
    return -(-size // 8) * 8


def join_messages(*messages: bytes) -> bytes:
    """Whole messages, each with its header, as one frame."""
    return b"".join(message.ljust(aligned(len(message)), b"\0") for message in messages[:-1]) + messages[-1]


def split_frames(frames: list[bytes]) -> list[list[tuple[int, bytes]]]:
    """Of each frame, the (sequence, payload) of each message or part of one. Checks that what is between them is zero."""
    found = []
    came: dict[int, int] = {}
    for frame in frames:
        parts = []
        at = 0
        while at < len(frame):
            sequence, _, length, *_ = unpack_header(frame[at : at + 48])
            remaining = length - came.get(sequence, 0)
            size = remaining if remaining <= LARGEST else FRAGMENT_BYTES
            came[sequence] = came.get(sequence, 0) + size
            end = at + 48 + size
            parts.append((sequence, frame[at + 48 : end]))
            at = aligned(end)
            assert not any(frame[end:at])
        found.append(parts)
    return found


def sent(side: RingSide, *messages: bytes) -> list[bytes]:
    """The frames that these messages, queued at once, go out in."""
    endpoint = side.endpoint(4000, send_limit=4 * MIB)
    for message in messages:
        assert endpoint.submit(message, PEER) == SENT
    side.kick()
    return [frame for frame, _ in side.outgoing()]


def test_both_ends_mean_the_same_frames() -> None:
    """What is agreed on as a connection is made is what the rings do."""
    assert opened().rings.fragment_bytes == PACKED_FRAGMENT_BYTES == FRAGMENT_BYTES


@pytest.mark.parametrize("small", ["send_slots", "receive_slots"])
def test_rings_that_are_too_small_for_packed_frames(small: str) -> None:
    with pytest.raises(ValueError, match="a ring has 16 to 32768 slots, not 8"):
        alone(packed=True, **{small: 2})


def test_three_messages_on_the_wire() -> None:
    """Byte for byte: each header at a multiple of 8, zeros between, one doorbell, one work request."""
    side = opened()
    before = side.nic.doorbells
    (frame,) = sent(side, b"first", b"", b"third")
    one, two, three = frames_of(1, b"first", flags=ACK_REQUIRED)[0], frames_of(2)[0], frames_of(3, b"third")[0]
    assert frame == one + bytes(3) + two + three
    assert side.nic.doorbells == before + 1


def test_what_fits_to_the_byte_and_what_does_not() -> None:
    rest = FRAME_BYTES - 48 - 8 - 48
    assert [len(frame) for frame in sent(opened(), bytes(8), bytes(rest))] == [FRAME_BYTES]
    assert [len(frame) for frame in sent(opened(), bytes(8), bytes(rest + 1))] == [56, 48 + rest + 1]


def test_as_many_as_fit() -> None:
    frames = sent(opened(), *(b"%08d" % number for number in range(700)))
    parts = split_frames(frames)
    assert [len(frame) for frame in parts] == [292, 292, 116]
    assert [part for frame in parts for part in frame] == [(number + 1, b"%08d" % number) for number in range(700)]


def test_a_long_message_and_what_is_behind_it() -> None:
    """Every fragment but the last fills its frame; small messages go with the last one, a long one does not."""
    long = bytes(range(250)) * 160
    messages = [b"before", long, b"behind", long]
    parts = split_frames(sent(opened(), *messages))
    assert [[len(part) for _, part in frame] for frame in parts] == [[6], [16336], [16336], [7328, 6], [16336], [16336], [7328]]
    a, b = pair(packed=True)
    receiver, endpoint = b.endpoint(4001), a.endpoint(4000)
    for message in messages:
        endpoint.submit(message, PEER)
    settle(a, b)
    assert received(receiver) == messages


def test_a_message_of_16_kib_is_one_frame() -> None:
    """The slot has room for it, though it is longer than a packed frame; what is left of a long message is treated alike."""
    assert [len(frame) for frame in sent(opened(), bytes(LARGEST))] == [48 + LARGEST]
    assert [len(frame) for frame in sent(opened(), bytes(LARGEST + 1))] == [FRAME_BYTES, 48 + 49]
    assert [len(frame) for frame in sent(opened(), bytes(FRAGMENT_BYTES + LARGEST))] == [FRAME_BYTES, 48 + LARGEST]
    a, b = pair(packed=True)
    receiver, endpoint = b.endpoint(4001), a.endpoint(4000)
    messages = [bytes(LARGEST), b"x", bytes(FRAGMENT_BYTES + LARGEST), b"y", bytes(LARGEST)]
    for message in messages:
        endpoint.submit(message, PEER)
    settle(a, b)
    assert received(receiver) == messages


def test_three_messages_of_4_kib_are_one_frame() -> None:
    """The fourth would go beyond its 16,384 bytes; for frames of kernels 4,096 bytes are one, and 4,097 two."""
    assert [len(frame) for frame in sent(opened(), *[bytes(4096)] * 4)] == [3 * (48 + 4096), 48 + 4096]
    assert [len(frame) for frame in sent(opened(), bytes(4097))] == [48 + 4097]
    assert [len(frame) for frame in sent(ringskit.opened(), bytes(4096))] == [48 + 4096]
    assert [len(frame) for frame in sent(ringskit.opened(), bytes(4097))] == [48 + 4096, 48 + 1]


def test_a_frame_that_grows_goes_inline_no_more() -> None:
    side = opened(inline=60)
    endpoint = side.endpoint(4000)
    endpoint.submit(b"a", PEER)
    side.kick()
    endpoint.submit(b"b", PEER)
    endpoint.submit(b"c", PEER)
    side.kick()
    assert [bool(flags & INLINE) for _, flags in side.outgoing()] == [True, False]


def test_an_operation_goes_before_its_message_and_behind_the_last_one() -> None:
    a, b = pair(packed=True)
    receiver = b.endpoint(4001)
    settle(a, b)
    endpoint = a.endpoint(4000)
    add = operation("fetch_and_add", a, b, compare_add=1)
    endpoint.submit(b"before", PEER)
    assert endpoint.submit_operation(b"with it", a.path, 4001, add) == SENT
    endpoint.submit(b"behind", PEER)
    a.kick()
    assert a.rings.in_flight == 1 + 1 + 1 + 1  # a map, what goes before, the operation, and what goes with it and behind
    settle(a, b)
    assert received(receiver) == [b"before", b"with it", b"behind"]
    assert add.status == 0


@pytest.mark.parametrize(
    ("announced", "credits"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (1024, 256), (4 * 65535 + 3, 65535), (2**32 - 1, 65535)]
)
def test_a_quarter_of_what_is_announced_counts(announced: int, credits: int) -> None:
    """It is in receives of 4 KiB, and so is what we announce."""
    side = alone(packed=True)
    assert side.rings.offer_credits() == 4 * side.nic.posted_receives
    side.rings.use_credits(announced)
    assert side.rings.credits.available == credits


def test_a_frame_takes_one_credit() -> None:
    a, b = pair(packed=True)
    use_credits(a, b)
    b.endpoint(4001)
    settle(a, b)
    before = a.rings.credits.available
    endpoint = a.endpoint(4000)
    for _ in range(50):
        endpoint.submit(b"x", PEER)
    a.kick()
    assert a.rings.credits.available == before - 1


def test_full_rings_pack_what_waits() -> None:
    """What gathers while there is no room goes together when there is."""
    a, b = pair(packed=True, send_slots=4)
    receiver = b.endpoint(4001)
    settle(a, b)
    endpoint = a.endpoint(4000)
    expected = [b"%d" % number for number in range(1000)]
    for message in expected:
        endpoint.submit(message, PEER)
        a.kick()
    assert a.rings.blocked
    before = b.counter("verbs_frames_received")
    settle(a, b)
    assert received(receiver) == expected
    assert b.counter("verbs_frames_received") - before < 20


def test_what_comes_again_is_packed_and_comes_once() -> None:
    a, b = pair(packed=True)
    receiver = b.endpoint(4001)
    settle(a, b)
    endpoint = a.endpoint(4000)
    for number in range(10):
        endpoint.submit(b"%d" % number, PEER)
    a.kick()
    a.nic.carry()
    b.nic.show_receives()
    b.run()
    relink(a, b)
    endpoint.submit(b"10", PEER)
    settle(a, b)
    assert received(receiver) == [b"%d" % number for number in range(11)]
    assert b.counter("recv_drop_old_seq") == 10


def test_messages_that_nobody_gets_in_the_middle_of_a_frame() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    messages = [frames_of(1, b"one")[0], frames_of(2, b"nobody", dport=9)[0], frames_of(1, b"again")[0], frames_of(3, b"three")[0]]
    side.inject(join_messages(*messages))
    side.take_in()
    assert received(endpoint) == [b"one", b"three"]
    assert (side.counter("recv_drop_no_sock"), side.counter("recv_drop_old_seq")) == (1, 1)


def test_padding_at_the_end_of_a_frame_is_no_message() -> None:
    side = opened()
    endpoint = side.endpoint(4001)
    side.inject(frames_of(1, b"fine")[0].ljust(56, b"\0"))
    side.take_in()
    assert received(endpoint) == [b"fine"]
    assert not side.rings.broken


GOOD = frames_of(1, b"good")[0]
WRONG = {
    "a few bytes behind": (GOOD.ljust(56, b"\0") + bytes(20), "bad_fragment"),
    "half a header behind": (join_messages(GOOD, GOOD)[: 56 + 47], "bad_fragment"),
    "a second payload that is cut off": (join_messages(GOOD, frames_of(2, b"cut off")[0])[:-1], "bad_fragment"),
    "a map behind": (join_messages(GOOD, map_frames()[0][:1048]), "bad_fragment"),
    "something behind a map": (map_frames(fragment_bytes=FRAGMENT_BYTES)[0] + GOOD[:48], "bad_fragment"),
    "the beginning of a message of 9,000 bytes behind": (join_messages(GOOD, frames_of(2, bytes(100), length=9000)[0]), "bad_fragment"),
    "the beginning of a long message behind": (join_messages(GOOD, frames_of(2, bytes(100), length=30000)[0]), "bad_fragment"),
    "another checksum behind": (join_messages(GOOD, GOOD[:30] + b"\1\1" + GOOD[32:]), "bad_checksum"),
    "a second message of 4 GiB": (join_messages(GOOD, frames_of(2, b"x", length=0xFFFFFFFF)[0]), "bad_length"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_a_link(name: str) -> None:
    frame, reason = WRONG[name]
    side = opened()
    endpoint = side.endpoint(4001)
    side.inject(frame, *frames_of(9, b"behind"))
    assert side.take_in()[-1] == BROKEN
    assert side.rings.reason == reason
    assert b"behind" not in received(endpoint)


def test_packed_frames_that_nobody_agreed_on() -> None:
    """A peer that packs without being asked breaks its link; one that does not pack is understood."""
    side = alone()
    side.inject(*map_frames(), join_messages(GOOD, frames_of(2)[0]))
    assert side.take_in()[-1] == BROKEN
    assert side.rings.reason == "bad_fragment"


def test_acknowledgements_alone_are_as_ever() -> None:
    side = opened()
    side.inject(pack_header(0, 0, 0, 0, 0, 0, 0, checksum=True))
    assert BROKEN not in side.take_in()
    assert side.counter("recv_ack_only") == 1


sizes = st.lists(st.integers(0, 200) | st.integers(3900, 4200) | st.integers(16200, 16500) | st.integers(0, 60000), max_size=40)


@given(sizes)
def test_any_messages(sizes: list[int]) -> None:
    """No frame is longer than a slot, and no two neighbours would have fitted into one."""
    side = opened(send_slots=1024)
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    frames = sent(side, *messages)
    assert all(len(frame) <= 48 + LARGEST for frame in frames)
    parts = split_frames(frames)
    whole = dict.fromkeys(range(1, len(messages) + 1), b"")
    for sequence, part in (part for frame in parts for part in frame):
        whole[sequence] += part
    assert list(whole.values()) == messages
    for frame, following in zip(frames, parts[1:], strict=False):
        sequence, part = following[0]
        assert len(part) < len(messages[sequence - 1]) or aligned(len(frame)) + 48 + len(part) > FRAME_BYTES


@given(st.lists(st.lists(st.binary(max_size=100) | unchecked, min_size=1, max_size=4), max_size=6))
def test_no_bytes_do_more_than_break_the_link(frames: list[list[bytes]]) -> None:
    side = opened()
    for pieces in frames:
        side.inject(join_messages(*pieces))
    codes = side.take_in()
    assert BROKEN not in codes[:-1]
    assert side.rings.poll() == (BROKEN if side.rings.broken else EMPTY)
    assert side.is_clean()
