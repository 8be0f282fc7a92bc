"""Extension headers: read as the kernel reads them, for any 16 bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx import _fast, _reference

# (the field, what is found in it)
VECTORS: list[tuple[str, list[tuple[int, str]]]] = [
    ("", []),
    ("050008", [(5, "0008")]),
    ("05000806deadbeef0800", [(5, "0008"), (6, "deadbeef"), (8, "00")]),  # V5
    ("031234567800000abc", [(3, "1234567800000abc")]),  # V6
    ("0200000001", [(2, "00000001")]),
    ("0100000003", [(1, "00000003")]),
    ("040000100001000000", [(4, "0000100001000000")]),
    ("0500010800", [(5, "0001"), (8, "00")]),
    ("07050001", [(7, ""), (5, "0001")]),  # unknown: no data, so what was meant as its data is read as types
    ("0900050001", [(9, "")]),  # ... and a zero in it ends the run
    ("10050001", []),  # 16 and above end the run
    ("52050001", []),
    ("ff", []),
    ("050001050001050001050001050001" + "08", [(5, "0001")] * 5),  # the last one's data would pass byte 16
    ("050001050001050001050001050001" + "09", [(5, "0001")] * 5 + [(9, "")]),  # filled to the last byte, no terminator
    ("0f" * 16, [(15, "")] * 16),
    ("030000000000000000" + "03000000000000", [(3, "00" * 8)]),
]


@pytest.mark.parametrize(("field", "found"), VECTORS)
@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
def test_vectors(module: Any, field: str, found: list[tuple[int, str]]) -> None:
    packed = bytes.fromhex(field).ljust(16, b"\0")
    assert module.unpack_extensions(packed) == [(kind, bytes.fromhex(data)) for kind, data in found]


@given(st.binary(min_size=16, max_size=16) | st.lists(st.integers(0, 17), min_size=16, max_size=16).map(bytes))
def test_any_field_like_the_twin(field: bytes) -> None:
    found = _fast.unpack_extensions(field)
    assert found == _reference.unpack_extensions(field)
    assert sum(1 + len(data) for _, data in found) <= 16
    assert field.startswith(b"".join(bytes([kind]) + data for kind, data in found))


@pytest.mark.parametrize("size", [0, 15, 17])
@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
def test_the_field_has_16_bytes(module: Any, size: int) -> None:
    with pytest.raises(ValueError):
        module.unpack_extensions(bytes(size))
