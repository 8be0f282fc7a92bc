"""The CM's private data against the bytes that kernels send, and against anything at all."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx.errors import WireError
from rdsx.wire.cm_data import (
    PACKED_FRAGMENT_BYTES,
    REJECT_DATA,
    CmData,
    accepted_version,
    agreed_version,
    pack_cm_data,
    parse_cm_data_untrusted,
)

V4 = ipaddress.IPv4Address
V6 = ipaddress.IPv6Address

# What Linux 6.1 and rds_rdma exchanged over soft-RoCE.
CAPTURED = [
    (
        "0a090002 0a090001 03010003 00000000 0000000000000000 00000000 00000000",
        CmData(sender=V4("10.9.0.2"), receiver=V4("10.9.0.1")),
    ),
    (
        "0a090001 0a090002 04010003 00000000 0000000000000000 00000000 00000000",
        CmData(sender=V4("10.9.0.1"), receiver=V4("10.9.0.2"), version=(4, 1)),
    ),
    (
        "0a090001 0a090002 03010003 05000000 000000000000002a 00000000 00000000",
        CmData(sender=V4("10.9.0.1"), receiver=V4("10.9.0.2"), tos=5, ack_seq=42),
    ),
    (
        "fd000000000000000000000000000001 fd000000000000000000000000000002 03010003 00000000 0000000000000000 00000000 00000000",
        CmData(sender=V6("fd00::1"), receiver=V6("fd00::2")),
    ),
]


@pytest.mark.parametrize(("text", "data"), CAPTURED)
def test_captured_bytes(text: str, data: CmData) -> None:
    packed = bytes.fromhex(text)
    is_ipv6 = data.sender.version == 6
    assert len(packed) == (56 if is_ipv6 else 32)
    assert pack_cm_data(data) == packed
    for padding in (0, 24, 164):  # the CM shows its maximum, and kernels of 32 bits send no padding
        assert parse_cm_data_untrusted(packed + bytes(padding), is_ipv6=is_ipv6) == data
    assert parse_cm_data_untrusted(packed[:-4], is_ipv6=is_ipv6) == data


def test_fragment_sizes() -> None:
    """Oracle's kernels say 16,384 at most; what we say is none of the sizes that they know."""
    theirs = bytes.fromhex("0a090001 0a090002 04010003 00004000 0000000000000007 00000010 00000000")
    data = parse_cm_data_untrusted(theirs, is_ipv6=False)
    assert (data.version, data.fragment_bytes, data.ack_seq, data.credit) == ((4, 1), 16384, 7, 16)
    ours = pack_cm_data(CmData(sender=V4("10.9.0.1"), receiver=V4("10.9.0.2"), fragment_bytes=PACKED_FRAGMENT_BYTES))
    assert ours[14:16] == b"\x3f\xd0"


@pytest.mark.parametrize(("is_ipv6", "least"), [(False, 28), (True, 52)])
def test_too_short(is_ipv6: bool, least: int) -> None:
    for length in range(least):
        with pytest.raises(WireError, match=f"{length} bytes of private data, at least {least}") as caught:
            parse_cm_data_untrusted(bytes(length), is_ipv6=is_ipv6)
        assert caught.value.reason == "bad_private_data"
    assert parse_cm_data_untrusted(bytes(least), is_ipv6=is_ipv6).is_empty


def data_of(version: tuple[int, int], mask: int = 3) -> CmData:
    return CmData(sender=V4("10.0.0.1"), receiver=V4("10.0.0.2"), version=version, minor_mask=mask)


@pytest.mark.parametrize(
    ("proposed", "mask", "agreed"),
    [
        ((3, 1), 3, (3, 1)),
        ((3, 1), 0, (3, 1)),
        ((0, 0), 0, (4, 0)),
        ((0, 9), 3, (4, 0)),
        ((4, 1), 3, (4, 1)),
        ((4, 0), 1, (4, 0)),
        ((4, 0), 2, (4, 1)),
        ((4, 7), 0xFFFF, (4, 1)),
    ],
)
def test_agreed_versions(proposed: tuple[int, int], mask: int, agreed: tuple[int, int]) -> None:
    assert agreed_version(data_of(proposed, mask)) == agreed


@pytest.mark.parametrize(
    ("proposed", "mask"), [((3, 0), 3), ((3, 2), 3), ((5, 0), 3), ((2, 1), 3), ((4, 1), 0), ((4, 2), 4), ((255, 255), 0xFFFF)]
)
def test_refused_versions(proposed: tuple[int, int], mask: int) -> None:
    with pytest.raises(WireError) as caught:
        agreed_version(data_of(proposed, mask))
    assert caught.value.reason == "bad_version"


def test_accepted_versions() -> None:
    assert [accepted_version(data_of(version)) for version in ((3, 1), (3, 2), (4, 0), (4, 1), (0, 0))] == [
        (3, 1),
        (3, 2),
        (4, 0),
        (4, 1),
        (4, 1),
    ]
    for version in ((3, 0), (2, 9), (5, 0)):
        with pytest.raises(WireError) as caught:
            accepted_version(data_of(version))
        assert caught.value.reason == "bad_version"


# Most of random length are too short.
@given(st.binary(min_size=0, max_size=196) | st.binary(min_size=28, max_size=56), st.booleans())
def test_any_bytes(packed: bytes, is_ipv6: bool) -> None:
    """Parsed, or refused with a WireError; and what was parsed packs into the same bytes, but for what is reserved."""
    try:
        data = parse_cm_data_untrusted(packed, is_ipv6=is_ipv6)
    except WireError:
        assert len(packed) < (52 if is_ipv6 else 28)
        return
    at = 32 if is_ipv6 else 8
    cleared = packed[: at + 5] + bytes(1) + packed[at + 6 : at + 20] + bytes(4)
    assert pack_cm_data(data) == cleared
    for judge in (agreed_version, accepted_version):
        with contextlib.suppress(WireError):
            assert judge(data)[0] in (3, 4)


def test_a_refusal_can_wedge_nobody() -> None:
    """A kernel of any byte order must read a number of at most 1."""
    assert all(int.from_bytes(REJECT_DATA[:4].ljust(4, b"\0"), order, signed=True) <= 1 for order in ("little", "big"))
