"""65,536 bits, one a port."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx import _fast, _reference

ports = st.sampled_from([2, 3, 7, 8, 63, 64, 65, 128, 4000, 4001, 65534, 65535]) | st.integers(2, 65535)
# Maps as received: anything, ports 0 and 1 included.
maps = st.sets(st.sampled_from([0, 1, 2, 66, 4000, 65535]) | st.integers(0, 65535), max_size=12)


def packed(full: set[int]) -> bytes:
    bits = bytearray(8192)
    for port in full:
        bits[port >> 3] |= 1 << (port & 7)
    return bytes(bits)


@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
def test_where_the_bits_are(module: Any) -> None:
    for port, at, mask in [(7, 0, 0x80), (8, 1, 0x01), (4000, 500, 0x01), (4001, 500, 0x02), (65535, 8191, 0x80)]:
        congestion = module.CongestionMap()
        congestion.set(port)
        assert bytes(congestion)[at] == mask
        assert sum(bytes(congestion)) == mask
        assert congestion.test(port)
        congestion.clear(port)
        assert bytes(congestion) == bytes(8192)


@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
@pytest.mark.parametrize("port", [0, 1])
def test_ports_0_and_1_of_ours_are_never_congested(module: Any, port: int) -> None:
    congestion = module.CongestionMap()
    with pytest.raises(ValueError):
        congestion.set(port)
    with pytest.raises(ValueError):
        congestion.clear(port)
    assert bytes(congestion) == bytes(8192)


@pytest.mark.parametrize("module", [_fast, _reference], ids=["fast", "reference"])
@pytest.mark.parametrize("size", [0, 8191, 8193])
def test_a_map_has_8192_bytes(module: Any, size: int) -> None:
    with pytest.raises(ValueError):
        module.CongestionMap().replace(bytes(size))


def test_ports_do_not_wrap() -> None:
    congestion = _fast.CongestionMap()
    for port in (-1, 65536):
        for method in (congestion.test, congestion.set, congestion.clear):
            with pytest.raises(OverflowError):
                method(port)
        with pytest.raises(OverflowError):
            congestion.freed([port])


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "clear"]), ports) | st.tuples(st.just("replace"), maps) | st.tuples(st.just("reset"), st.none()),
        max_size=12,
    ),
    st.lists(ports, max_size=5),
)
def test_like_the_twin(steps: list[tuple[str, Any]], waiting: list[int]) -> None:
    fast, slow = _fast.CongestionMap(), _reference.CongestionMap()
    for verb, argument in steps:
        version = fast.version
        if verb == "replace":
            assert fast.replace(packed(argument)) == slow.replace(packed(argument))
            assert fast.version > version
        elif verb == "reset":
            fast.reset()
            slow.reset()
            assert fast.version > version
        else:
            changed = fast.test(argument) != (verb == "set")
            getattr(fast, verb)(argument)
            getattr(slow, verb)(argument)
            assert fast.version > version or not changed
    assert bytes(fast) == bytes(slow)
    assert fast.freed(waiting) == slow.freed(waiting) == [port for port in waiting if not fast.test(port)]


@given(maps, maps)
def test_replace_says_what_became_free(before: set[int], after: set[int]) -> None:
    congestion = _fast.CongestionMap()
    assert congestion.replace(packed(before)) == 0  # nothing was congested, so nothing became free
    freed = congestion.replace(packed(after))
    assert {bit for bit in range(64) if freed >> bit & 1} == {port % 64 for port in before - after}
    assert bytes(congestion) == packed(after)


def test_replace_takes_a_copy() -> None:
    congestion = _fast.CongestionMap()
    source = bytearray(packed({4000}))
    congestion.replace(source)
    source[:] = bytes(8192)
    assert congestion.test(4000)
