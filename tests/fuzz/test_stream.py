"""Any bytes, in any split, give messages or a counted drop: never an exception out of a link, never a message that nobody sent.

The node, its connection and its link are the real ones; only the streams are in memory. `fuzz_stream.py` is the longer run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernelkit import pack, pack_map

sys.path.insert(0, str(Path(__file__).parent))
from streamkit import OTHER_PORT, PORT, REASONS, Model, feed, split

sequences = st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1))
ports = st.sampled_from([PORT, PORT, PORT, OTHER_PORT, 0, 1, 2, 4999, 65535])
lengths = st.one_of(st.integers(0, 200), st.sampled_from([4095, 4096, 4097, 8192, 19_999, 20_000, 20_001, 60_000]))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Mostly proper messages; some lie about their length or their checksum."""
    kind = draw(st.sampled_from(["message"] * 6 + ["map", "map", "probe", "ping", "odd"]))
    if kind == "map":
        return pack_map(*draw(st.lists(st.integers(2, 65535), max_size=3)))
    if kind == "probe":
        extensions = draw(st.one_of(st.just(b"\x05\0\x08"), st.binary(max_size=16)))
        sport, dport = draw(st.sampled_from([(1, 0), (0, 1)]))
        return pack(draw(sequences), sport=sport, dport=dport, extensions=extensions)
    if kind == "ping":
        return pack(draw(sequences), sport=draw(ports), dport=0)
    size = draw(lengths)
    payload = draw(st.binary(min_size=1, max_size=4)) * (size // 4 + 1)
    flags = draw(st.one_of(st.sampled_from([0, 0, 0, 4]), st.integers(0, 255)))
    if kind == "message":
        return pack(draw(sequences), payload[:size], sport=draw(ports), dport=draw(ports), flags=flags)
    return pack(
        draw(sequences),
        payload[:size],
        sport=draw(ports),
        dport=draw(ports),
        flags=flags,
        extensions=draw(st.binary(max_size=16)),
        length=draw(st.one_of(st.integers(0, 5000), st.integers(0, 2**32 - 1))),
        checksum=draw(st.one_of(st.just(0), st.integers(0, 65535))),
        ack=draw(st.integers(0, 2**64 - 1)),
    )


def without_hello(wire: bytes) -> bytes:
    """The same with a first header that does not say it is rdsx's."""
    return wire[:32] + b"\0" + wire[33:] if len(wire) > 32 and wire[32] == 0x52 else wire


streams = st.one_of(
    st.lists(frames(), max_size=12).map(b"".join),
    st.lists(frames(), max_size=12).map(lambda each: pack_map() + b"".join(each)),
    st.tuples(st.lists(frames(), min_size=1, max_size=6).map(b"".join), st.integers(0, 2**16), st.binary(min_size=1, max_size=3)).map(
        lambda drawn: drawn[0][: drawn[1] % len(drawn[0])] + drawn[2] + drawn[0][drawn[1] % len(drawn[0]) + len(drawn[2]) :]
    ),
    st.binary(max_size=400),
)
splits = st.one_of(
    st.sampled_from([1, 47, 4144]),  # pieces of one size
    st.lists(st.integers(1, 100), max_size=300),
    st.lists(st.sampled_from([47, 48, 49, 4096, 4143, 4144, 4145, 65536]), max_size=20),
    st.just([]),
)
connections = st.lists(st.tuples(streams.map(without_hello), splits), min_size=1, max_size=3)


@settings(max_examples=400)
@given(connections)
@example([(pack_map() + pack(1, b"x" * 20_001) + pack(2, b"y"), [])])
@example([(pack_map() + pack(2**64 - 1, b"last") + pack(0, b"first", flags=4), [])])
def test_bytes_give_what_the_model_says(drawn: list[tuple[bytes, int | list[int]]]) -> None:
    """A kernel's stream: messages and reasons are exactly those of the plain model, whatever the split."""
    outcomes = feed([list(split(wire, sizes)) for wire, sizes in drawn])
    model = Model()
    for (wire, _), outcome in zip(drawn, outcomes, strict=True):
        messages, reason = model.take(wire)
        assert outcome.messages == messages
        assert outcome.reason == reason


@settings(max_examples=400)
@given(st.lists(st.tuples(st.one_of(streams, streams.map(lambda wire: hello_map() + wire)), splits), min_size=1, max_size=3))
def test_peers_of_both_kinds_end_for_a_named_reason(drawn: list[tuple[bytes, int | list[int]]]) -> None:
    """rdsx peers too, whose acks and generations are believed: no exception, one counted reason for each connection."""
    for outcome in feed([list(split(wire, sizes)) for wire, sizes in drawn]):
        assert outcome.reason in REASONS


def hello_map() -> bytes:
    return pack(0, bytes(8192), sport=0, dport=0, flags=1, extensions=b"R\x01\0\0\0\0\0\x07")
