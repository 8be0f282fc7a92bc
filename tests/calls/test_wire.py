"""The wire of calls: the vectors, round trips, and bytes that are no message."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx.calls.wire import HEADER_BYTES, MAX_RANGES, BadCall, Code, Kind, Limits, Message, Resume, emit, parse_untrusted

CALLEE, CALLER = 0x1122334455667788, 0xA1A2A3A4A5A6A7A8

VECTORS = {
    "OPEN": (
        Message(Kind.OPEN, seq=7, limits=Limits(CALLER, (1, 1), 1024, 1048576)),
        """524301010000000000000000000000000000000000000000 0000000000000007 0000000000000000 00000000 00000018
           a1a2a3a4a5a6a7a8 01 01 0400 00000000 00100000 00000000""",
    ),
    "OPEN_ACK": (
        Message(Kind.OPEN_ACK, CALLEE, 1, 7, credit=1024, limits=Limits(CALLER, (1, 0), 1024, 1048576, 3600)),
        """5243010200000400 1122334455667788 00000001 00000000 0000000000000007 0000000000000000 00000000 00000018
           a1a2a3a4a5a6a7a8 01 00 0400 00000000 00100000 00000e10""",
    ),
    "CALL": (
        Message(Kind.CALL, CALLEE, 1, 1, 1, 502, payload=b"hello"),
        "5243010300000000 1122334455667788 00000001 000001f6 0000000000000001 0000000000000001 00000000 00000005 68656c6c6f",
    ),
    "STATUS": (
        Message(Kind.STATUS, CALLEE, 1, 1, 1, 502, -17, 1024, payload=b"ok"),
        "5243010400000400 1122334455667788 00000001 000001f6 0000000000000001 0000000000000001 ffffffef 00000002 6f6b",
    ),
    "RELEASE": (
        Message(Kind.RELEASE, CALLEE, 1, 0, 2),
        "5243010500000000 1122334455667788 00000001 00000000 0000000000000000 0000000000000002 00000000 00000000",
    ),
    "CALL with a range": (
        Message(Kind.CALL, CALLEE, 1, 9, 4, 502, ranges=((5, 9),)),
        """5243010300010000 1122334455667788 00000001 000001f6 0000000000000009 0000000000000004 00000000 00000000
           0018 0000 0001 0010 0000000000000005 0000000000000009""",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_bit_for_bit(name: str) -> None:
    message, text = VECTORS[name]
    assert emit(message).hex() == "".join(text.split())
    assert parse_untrusted(bytes.fromhex(text)) == message


u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
ranges = st.lists(st.integers(1, 2**64 - 1), max_size=2 * MAX_RANGES, unique=True).map(
    lambda numbers: tuple(zip(*[iter(sorted(numbers))] * 2, strict=False))
)
limits = st.builds(
    Limits, st.integers(1, 2**64 - 1), st.integers(0, 255).map(lambda low: (low, 255)), st.integers(1, 65535), u32, st.just(0), u32
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(Kind))
    message = Message(kind, draw(u64), draw(u32), draw(st.integers(1, 2**64 - 1)), draw(u64), draw(u32))
    message.status = draw(st.integers(-(2**31), 2**31 - 1))
    message.credit = draw(u16)
    message.code = draw(st.sampled_from(Code))
    message.never_confirmed, message.durable = draw(st.booleans()), draw(st.booleans())
    message.ranges = draw(ranges)
    message.resume = draw(st.none() | st.builds(Resume, st.binary(min_size=16, max_size=16), u32, u64))
    message.text = draw(st.text(max_size=60))
    if kind in (Kind.OPEN, Kind.OPEN_ACK):
        message.limits = draw(limits)
    elif kind in (Kind.CALL, Kind.STATUS):
        message.payload = draw(st.binary(max_size=100))
    return message


@given(messages())
def test_what_is_emitted_is_parsed(message: Message) -> None:
    assert parse_untrusted(emit(message)) == message


def parses(data: bytes) -> bool:
    """Whether it is a message; fails on any exception but BadCall."""
    try:
        again = parse_untrusted(data)
    except BadCall:
        return False
    assert again.kind in Kind
    return True


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_bad_call(data: bytes) -> None:
    parses(data)
    parses(bytes.fromhex("52430103") + data)


@given(messages(), st.randoms(use_true_random=False))
def test_damaged_messages_are_messages_or_bad_calls(message: Message, pick: random.Random) -> None:
    data = bytearray(emit(message))
    for _ in range(pick.randint(1, 4)):
        data[pick.randrange(len(data))] = pick.randrange(256)
    parses(bytes(data))
    cut = pick.randrange(len(data))
    assert not parses(emit(message)[:cut])
    assert not parses(emit(message) + b"x")


CALL = bytes.fromhex("".join(VECTORS["CALL"][1].split()))
RANGED = bytes.fromhex("".join(VECTORS["CALL with a range"][1].split()))
OPEN = bytes.fromhex("".join(VECTORS["OPEN"][1].split()))


def patched(data: bytes, at: int, new: str) -> bytes:
    piece = bytes.fromhex(new)
    return data[:at] + piece + data[at + len(piece) :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (CALL[: HEADER_BYTES - 1], "47 bytes"),
        (patched(CALL, 0, "5244"), "0x5244"),
        (patched(CALL, 2, "02"), "version 2"),
        (patched(CALL, 3, "0d"), "kind 13"),
        (patched(CALL, 24, "0000000000000000"), "number 0"),
        (patched(CALL, 44, "00000006"), "payload of 6"),
        (patched(CALL, 3, "05"), "RELEASE with a payload of 5"),
        (patched(patched(CALL, 3, "04"), 4, "09"), "code 9"),
        (patched(CALL, 4, "0001"), "extensions"),
        (patched(RANGED, HEADER_BYTES, "001c"), "extensions of 28 bytes"),
        (patched(RANGED, HEADER_BYTES, "0002"), "extensions of 2 bytes"),
        (patched(RANGED, HEADER_BYTES + 6, "0014"), "ends behind"),
        (patched(RANGED, HEADER_BYTES + 6, "000c"), "released ranges of 12 bytes"),
        (patched(RANGED, HEADER_BYTES + 8, "000000000000000a"), r"\[10, 9\)"),
        (patched(OPEN, 40, "0000000000000017")[:-1], "23 bytes are no limits"),
        (patched(OPEN, 48, "0000000000000000"), "life 0"),
        (patched(OPEN, 56, "0201"), "versions 2 to 1"),
        (patched(OPEN, 58, "0000"), "window of 0"),
    ],
)
def test_a_bad_call_names_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(BadCall, match=words):
        parse_untrusted(data)


def test_unknown_extensions_are_ignored_unless_they_must_be_understood() -> None:
    optional = patched(RANGED, HEADER_BYTES + 4, "7fff")
    assert parse_untrusted(optional).ranges == ()
    assert parse_untrusted(optional).refused == 0
    required = patched(RANGED, HEADER_BYTES + 4, "8001")
    assert parse_untrusted(required).refused == 0x8001  # a CALL is answered with BAD_REQUEST
    with pytest.raises(BadCall, match="0x8001 must be understood"):
        parse_untrusted(patched(required, 3, "05"))


def test_a_text_is_cut_at_a_character() -> None:
    text = parse_untrusted(emit(Message(Kind.STATUS, seq=1, text="ü" * 200))).text
    assert text == "ü" * 128
    assert parse_untrusted(emit(Message(Kind.STATUS, seq=1, text="\ud800"))).text == "?"
