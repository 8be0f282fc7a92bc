"""The 48 header bytes: the vectors of the wire format, checksums, and the plain-Python twin."""

from __future__ import annotations

import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx import _fast, _reference
from rdsx.errors import WireError


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


PROBE_7_0 = unhex("05000806deadbeef0800000000000000")

# name -> (arguments of pack_header, the bytes)
VECTORS: dict[str, tuple[dict[str, Any], bytes]] = {
    "V1 data": (
        {"sequence": 1, "ack": 0, "length": 5, "sport": 4000, "dport": 4001, "flags": 2, "checksum": True},
        unhex("00000000000000010000000000000000 000000050fa00fa1020000000000deb8 00000000000000000000000000000000"),
    ),
    "V2 map on TCP": (
        {"sequence": 0, "ack": 0, "length": 8192, "sport": 0, "dport": 0, "flags": 1},
        unhex("00000000000000000000000000000000 00002000000000000100000000000000 00000000000000000000000000000000"),
    ),
    "V3 map on IB": (
        {"sequence": 0, "ack": 0x0102030405060708, "length": 8192, "sport": 0, "dport": 0, "flags": 1, "checksum": True},
        unhex("00000000000000000102030405060708 0000200000000000010000000000ceeb 00000000000000000000000000000000"),
    ),
    "V4 probe ping": (
        {"sequence": 1, "ack": 0, "length": 0, "sport": 1, "dport": 0, "extensions": unhex("050008")},
        unhex("00000000000000010000000000000000 00000000000100000000000000000000 05000800000000000000000000000000"),
    ),
    "V5 probe pong": (
        {"sequence": 7, "ack": 0, "length": 0, "sport": 0, "dport": 1, "extensions": PROBE_7_0},
        unhex("00000000000000070000000000000000 00000000000000010000000000000000 05000806deadbeef0800000000000000"),
    ),
    "V6 carry": (
        {
            "sequence": 0xFFFFFFFFFFFFFFFE,
            "ack": 0x00000001FFFFFFFF,
            "length": 1048576,
            "sport": 65535,
            "dport": 2,
            "flags": 6,
            "credit": 255,
            "extensions": unhex("031234567800000abc"),
            "checksum": True,
        },
        unhex("fffffffffffffffe00000001ffffffff 00100000ffff000206ff000000008d7b 031234567800000abc00000000000000"),
    ),
    "V7 ack only": (
        {"sequence": 0, "ack": 42, "length": 0, "sport": 0, "dport": 0, "checksum": True},
        unhex("0000000000000000000000000000002a 0000000000000000000000000000ffd5 00000000000000000000000000000000"),
    ),
    "V8 all zero": (
        {"sequence": 0, "ack": 0, "length": 0, "sport": 0, "dport": 0, "checksum": True},
        unhex("00000000000000000000000000000000 0000000000000000000000000000ffff 00000000000000000000000000000000"),
    ),
    "V9 rds-ping": (
        {"sequence": 3, "ack": 0, "length": 0, "sport": 4000, "dport": 0},
        unhex("00000000000000030000000000000000 000000000fa000000000000000000000 00000000000000000000000000000000"),
    ),
    "F.1 probe pong": (
        {"sequence": 1, "ack": 0, "length": 0, "sport": 0, "dport": 1, "extensions": unhex("050001")},
        unhex("00000000000000010000000000000000 00000000000000010000000000000000 05000100000000000000000000000000"),
    ),
    "F.1 datagram": (
        {"sequence": 2, "ack": 0, "length": 5, "sport": 4000, "dport": 4001},
        unhex("00000000000000020000000000000000 000000050fa00fa10000000000000000 00000000000000000000000000000000"),
    ),
    "F.1 datagram again": (
        {"sequence": 2, "ack": 0, "length": 5, "sport": 4000, "dport": 4001, "flags": 4},
        unhex("00000000000000020000000000000000 000000050fa00fa10400000000000000 00000000000000000000000000000000"),
    ),
    "F.3 ack only": (
        {"sequence": 0, "ack": 3, "length": 0, "sport": 0, "dport": 0, "checksum": True},
        unhex("00000000000000000000000000000003 0000000000000000000000000000fffc 00000000000000000000000000000000"),
    ),
    "F.3 map fragment": (
        {"sequence": 0, "ack": 0, "length": 8192, "sport": 0, "dport": 0, "flags": 1, "checksum": True},
        unhex("00000000000000000000000000000000 0000200000000000010000000000deff 00000000000000000000000000000000"),
    ),
}
CHECKSUMMED = [name for name, (fields, _) in VECTORS.items() if fields.get("checksum")]

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
headers = st.fixed_dictionaries(
    {
        "sequence": u64,
        "ack": u64,
        "length": u32,
        "sport": u16,
        "dport": u16,
        "flags": u8,
        "credit": u8,
        "extensions": st.binary(max_size=16),
        "checksum": st.booleans(),
    }
)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
def test_vectors(module: Any, name: str) -> None:
    fields, packed = VECTORS[name]
    assert module.pack_header(**fields) == packed
    sequence, ack, length, sport, dport, flags, credit, checksum, extensions = module.unpack_header(packed)
    assert (sequence, ack, length, sport, dport) == tuple(fields[key] for key in ("sequence", "ack", "length", "sport", "dport"))
    assert (flags, credit) == (fields.get("flags", 0), fields.get("credit", 0))
    assert extensions == fields.get("extensions", b"").ljust(16, b"\0")
    assert checksum == (module.checksum(packed) if fields.get("checksum") else 0)
    assert module.verify_checksum(packed)


@pytest.mark.parametrize(("name", "expected"), [("V4 probe ping", 0xF2FD), ("V5 probe pong", 0x4D54), ("V2 map on TCP", 0xDEFF)])
def test_checksums_of_vectors_that_carry_none(name: str, expected: int) -> None:
    assert _fast.checksum(VECTORS[name][1]) == _reference.checksum(VECTORS[name][1]) == expected


@pytest.mark.parametrize("name", CHECKSUMMED)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    packed = VECTORS[name][1]
    for bit in range(384):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not _fast.verify_checksum(flipped), bit
        assert not _reference.verify_checksum(bytes(flipped)), bit


def test_checksum_zero_is_not_checked() -> None:
    unchecked = bytearray(VECTORS["V1 data"][1])
    unchecked[30:32] = b"\0\0"
    assert _fast.verify_checksum(unchecked)
    # a header whose right checksum happens to be 0 is simply unchecked
    zero = bytearray(48)
    zero[0:2] = b"\xff\xff"
    assert _fast.checksum(zero) == 0
    zero[40] = 1
    assert _fast.verify_checksum(zero)


@given(headers)
def test_pack_and_unpack_like_the_twin(fields: dict[str, Any]) -> None:
    packed = _fast.pack_header(**fields)
    assert packed == _reference.pack_header(**fields)
    assert _fast.unpack_header(packed) == _reference.unpack_header(packed)
    assert packed[26:30] == bytes(4)
    assert _fast.verify_checksum(packed)


@given(st.binary(min_size=48, max_size=48))
def test_any_header_like_the_twin(source: bytes) -> None:
    assert _fast.unpack_header(source) == _reference.unpack_header(source)
    assert _fast.checksum(source) == _reference.checksum(source)
    assert _fast.verify_checksum(source) == _reference.verify_checksum(source)
    checked = source[:30] + _fast.checksum(source).to_bytes(2, "big") + source[32:]
    assert _fast.verify_checksum(checked)


@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
def test_lengths_are_checked_at_the_door(module: Any) -> None:
    for size in (0, 1, 47):
        with pytest.raises(WireError) as caught:
            module.unpack_header(bytes(size))
        assert caught.value.reason == "short_header"
    assert module.unpack_header(bytes(48) + b"payload")[8] == bytes(16)
    for size in (0, 47, 49):
        with pytest.raises(ValueError):
            module.checksum(bytes(size))
        with pytest.raises(ValueError):
            module.verify_checksum(bytes(size))
    with pytest.raises(ValueError):
        module.pack_header(1, 0, 0, 1, 2, extensions=bytes(17))


@pytest.mark.parametrize(
    ("field", "value"),
    [("sequence", 1 << 64), ("ack", -1), ("length", 1 << 32), ("sport", 65536), ("dport", -1), ("flags", 256), ("credit", 256)],
)
def test_fields_do_not_wrap(field: str, value: int) -> None:
    fields: dict[str, Any] = {"sequence": 1, "ack": 0, "length": 0, "sport": 2, "dport": 3} | {field: value}
    with pytest.raises(OverflowError):
        _fast.pack_header(**fields)


def test_any_contiguous_buffer_of_bytes_is_read() -> None:
    packed = VECTORS["V6 carry"][1]
    for source in (bytearray(packed), memoryview(packed), array.array("B", packed)):
        assert _fast.unpack_header(source) == _fast.unpack_header(packed)
    with pytest.raises((ValueError, BufferError)):
        _fast.unpack_header(memoryview(packed * 2)[::2])
    with pytest.raises(TypeError):
        _fast.unpack_header(None)  # type: ignore[arg-type]
