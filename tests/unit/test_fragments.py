"""Messages as checksummed fragments of at most 4096 payload bytes, and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx import _fast, _reference
from rdsx.errors import WireError

LIMIT = 20000
sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 8191, 8192, 8193, LIMIT]) | st.integers(0, LIMIT)
messages = st.fixed_dictionaries(
    {
        "sequence": st.integers(0, (1 << 64) - 1),
        "ack": st.integers(0, (1 << 64) - 1),
        "sport": st.integers(0, 65535),
        "dport": st.integers(0, 65535),
        "payload": sizes.map(lambda size: (bytes(range(251)) * (size // 251 + 1))[:size]),
        "flags": st.integers(0, 255),
        "credit": st.integers(0, 255),
        "extensions": st.binary(max_size=16),
    }
)


def both_feed(fast: _fast.Reassembly, slow: _reference.Reassembly, fragment: bytes) -> Any:
    """One fragment for both: the same message, nothing, or the same WireError."""
    outcome: list[Any] = []
    for reassembly in (fast, slow):
        try:
            outcome.append(reassembly.feed(fragment))
        except WireError as error:
            outcome.append(error.reason)
    assert outcome[0] == outcome[1]
    assert fast.pending_bytes == slow.pending_bytes <= LIMIT
    return outcome[0]


@given(messages)
def test_there_and_back(message: dict[str, Any]) -> None:
    pieces = _fast.fragments(**message)
    assert pieces == _reference.fragments(**message)
    assert len(pieces) == max(1, -(-len(message["payload"]) // 4096))
    fast, slow = _fast.Reassembly(LIMIT), _reference.Reassembly(LIMIT)
    for _ in range(2):  # one message after another
        for piece in pieces[:-1]:
            assert _fast.verify_checksum(piece[:48])
            assert both_feed(fast, slow, piece) is None
        assert both_feed(fast, slow, pieces[-1]) == (
            message["sequence"],
            message["sport"],
            message["dport"],
            message["flags"],
            message["extensions"].ljust(16, b"\0"),
            message["payload"],
        )
        assert fast.pending_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["", "flip", "cut", "longer", "empty"])), max_size=20))
def test_fragments_out_of_order_like_the_twin(feed: list[tuple[int, int, str]]) -> None:
    pool = [_fast.fragments(7 + i, 0, 2 + i // 2, 3, bytes([i]) * (i * 4500)) for i in range(4)]
    fast, slow = _fast.Reassembly(LIMIT), _reference.Reassembly(LIMIT)
    for message, index, damage in feed:
        piece = bytearray(pool[message][index % len(pool[message])])
        if damage == "flip":
            piece[19] ^= 0x10
        elif damage == "cut":
            del piece[-1:]
        elif damage == "longer":
            piece += b"x"
        elif damage == "empty":
            piece.clear()
        both_feed(fast, slow, bytes(piece))


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_any_bytes_give_messages_or_wire_errors(feed: list[bytes]) -> None:
    fast, slow = _fast.Reassembly(100), _reference.Reassembly(100)
    for fragment in feed:
        both_feed(fast, slow, fragment)


def reason_of(reassembly: _fast.Reassembly, fragment: bytes) -> str:
    with pytest.raises(WireError) as caught:
        reassembly.feed(fragment)
    assert reassembly.pending_bytes == 0
    return caught.value.reason


def test_errors_forget_the_unfinished_message() -> None:
    first, second, third = _fast.fragments(1, 0, 2, 3, bytes(9000))
    other = _fast.fragments(2, 0, 2, 3, bytes(9000))[1]
    reassembly = _fast.Reassembly(10000)
    for reason, bad in [
        ("short_fragment", b""),
        ("short_fragment", bytes(47)),
        ("bad_checksum", b"\xff" + second[1:]),
        ("bad_fragment", other),
        ("bad_fragment", second[:-1]),
        ("bad_fragment", second + b"x"),
        ("bad_fragment", third),
    ]:
        assert reassembly.feed(first) is None
        assert reassembly.pending_bytes == 4096
        assert reason_of(reassembly, bad) == reason
        whole = [reassembly.feed(piece) for piece in (first, second, third)][-1]
        assert whole is not None
        assert len(whole[5]) == 9000


def test_length_is_refused_before_anything_is_allocated() -> None:
    reassembly = _fast.Reassembly(10000)
    assert reason_of(reassembly, _fast.pack_header(1, 0, 10001, 2, 3, checksum=True) + bytes(4096)) == "bad_length"
    assert reason_of(reassembly, _fast.pack_header(1, 0, 0xFFFFFFFF, 2, 3) + bytes(4096)) == "bad_length"
    assert reason_of(reassembly, _fast.pack_header(1, 0, 0, 2, 3) + b"x") == "bad_fragment"


def test_the_kernels_first_message() -> None:
    """F.3: #1, "hello" from 4000 to 4001."""
    (fragment,) = _fast.fragments(1, 0, 4000, 4001, b"hello", 2)
    assert fragment.hex() == "0000000000000001" + "0" * 16 + "000000050fa00fa1020000000000deb8" + "0" * 32 + b"hello".hex()
    assert _fast.Reassembly(5).feed(bytearray(fragment)) == (1, 4000, 4001, 2, bytes(16), b"hello")
