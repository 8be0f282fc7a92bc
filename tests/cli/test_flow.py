"""The measuring instrument measured: whatever is done to a flow's datagrams, the checker and the comparison must say so."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsx.cli.flow import HEADER, LARGEST_GAP, MAX_DATAGRAM_BYTES, FlowChecker, FlowSender
from rdsx.cli.latency import Latencies
from rdsx.cli.payload import SourceFile, find_files
from rdsx.cli.report import Outcome, compare
from rdsx.cli.running import CliError

NOW_NS = 1_000


def cut(files: list[SourceFile], *, bulk: bool = False, seed: str = "1") -> list[bytes]:
    sender = FlowSender(enumerate(files), seed, bulk=bulk)
    datagrams = []
    while (datagram := sender.next_datagram(NOW_NS)) is not None:
        datagrams.append(datagram)
    sender.close()
    return datagrams


def outcome(files: list[SourceFile], sent: list[bytes], got: list[bytes]) -> Outcome:
    """What the demo would say if node A had sent `sent` and node B had got `got`, and B had sent nothing."""
    checker = FlowChecker(files)
    for datagram in got:
        checker.take(datagram)
    idle: dict[str, Any] = {
        "sent_flows": [(0, 0)],
        "delivered_flows": [(0, 0)],
        "sent_bytes": 0,
        "delivered_bytes": 0,
        "duplicated": 0,
        "out_of_order": 0,
        "corrupted": 0,
        "files_verified": 0,
        "files_wrong": [],
        "cuts": 0,
        "reconnects": 0,
        "retransmitted": 0,
        "first_sent_ns": 0,
        "last_delivered_ns": 1_000_000_000,
        "latencies": Latencies().buckets,
    }
    empty = sum(not datagram for datagram in sent)
    sender = idle | {"sent_flows": [(len(sent) - empty, empty)], "sent_bytes": sum(map(len, sent))}
    receiver = idle | {
        "delivered_flows": [(checker.delivered, checker.delivered_empty)],
        "delivered_bytes": sum(map(len, got)),
        "duplicated": checker.duplicated,
        "out_of_order": checker.out_of_order,
        "corrupted": checker.corrupted,
        "files_verified": checker.files_verified,
    }
    return compare(("A", "B"), (sender, receiver), (len(files), 0))


def faults(result: Outcome) -> tuple[int, int, int]:
    return result.total("lost"), result.total("duplicated"), result.total("out_of_order")


@pytest.fixture
def files(source: Path) -> list[SourceFile]:
    return find_files(source, 1 << 20)


@pytest.mark.parametrize("bulk", [False, True])
def test_an_undisturbed_flow_is_faultless(files: list[SourceFile], bulk: bool) -> None:
    sent = cut(files, bulk=bulk)
    result = outcome(files, sent, sent)
    assert result.ok
    assert faults(result) == (0, 0, 0)
    assert result.total("files_verified") == len(files)
    assert result.total("sent") == result.total("delivered") == len(sent)
    assert b"" in sent


def test_a_bulk_flow_has_a_datagram_of_the_full_length_and_none_longer(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(random.Random(1).randbytes(5 << 20))
    files = find_files(tmp_path, 8 << 20)
    sent = cut(files, bulk=True)
    assert max(map(len, sent)) == MAX_DATAGRAM_BYTES
    assert outcome(files, sent, sent).ok


def test_a_flow_without_files_still_ends(files: list[SourceFile]) -> None:
    sent = cut([])
    assert len(sent[-1]) == HEADER.size
    checker = FlowChecker(files)
    for datagram in sent:
        assert not checker.ended
        checker.take(datagram)
    assert checker.ended


def position(sent: list[bytes], *, empty: bool) -> int:
    """A place in the middle where such a datagram lies and a full one follows."""
    places = [i for i in range(len(sent) // 4, len(sent) - 2) if (not sent[i]) is empty and sent[i + 1] and sent[i - 1]]
    return places[0]


@pytest.mark.parametrize("empty", [False, True])
def test_a_lost_datagram(files: list[SourceFile], empty: bool) -> None:
    sent = cut(files)
    at = position(sent, empty=empty)
    result = outcome(files, sent, sent[:at] + sent[at + 1 :])
    assert faults(result) == (1, 0, 0)
    assert not result.ok


@pytest.mark.parametrize("empty", [False, True])
def test_a_repeated_datagram(files: list[SourceFile], empty: bool) -> None:
    sent = cut(files)
    at = position(sent, empty=empty)
    result = outcome(files, sent, [*sent[:at], sent[at], *sent[at:]])
    assert faults(result) == (0, 1, 0)
    assert result.total("delivered") == len(sent)
    assert not result.ok


@pytest.mark.parametrize("empty", [False, True])
def test_two_datagrams_in_the_wrong_order(files: list[SourceFile], empty: bool) -> None:
    sent = cut(files)
    at = position(sent, empty=empty)
    result = outcome(files, sent, [*sent[:at], sent[at + 1], sent[at], *sent[at + 2 :]])
    assert faults(result) == (0, 0, 1)
    assert not result.ok


def test_a_lost_end(files: list[SourceFile]) -> None:
    sent = cut(files)
    assert faults(outcome(files, sent, sent[:-1])) == (1, 0, 0)


def test_nothing_at_all(files: list[SourceFile]) -> None:
    sent = cut(files)
    result = outcome(files, sent, [])
    assert faults(result) == (len(sent), 0, 0)
    assert result.messages_per_s == 0


def test_a_changed_byte_fails_its_file_only(files: list[SourceFile]) -> None:
    sent = cut(files)
    at = max(range(len(sent)), key=lambda i: len(sent[i]))
    changed = bytearray(sent[at])
    changed[-1] ^= 1
    result = outcome(files, sent, [*sent[:at], bytes(changed), *sent[at + 1 :]])
    assert faults(result) == (0, 0, 0)
    assert result.total("files_verified") == len(files) - 1
    assert not result.ok


def test_a_datagram_of_another_flow_is_no_gap(files: list[SourceFile]) -> None:
    checker = FlowChecker(files)
    assert checker.take(HEADER.pack(LARGEST_GAP + 1, 0, NOW_NS, 0)) is None
    assert checker.take(b"short") is None
    assert checker.corrupted == 2
    assert checker.delivered == 0


def test_the_send_time_comes_back_once(files: list[SourceFile]) -> None:
    checker = FlowChecker(files)
    datagram = next(datagram for datagram in cut(files) if datagram)
    assert [checker.take(datagram), checker.take(datagram)] == [NOW_NS, None]


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_garbage_never_raises(datagrams: list[bytes]) -> None:
    checker = FlowChecker([])
    for datagram in datagrams:
        checker.take(datagram)
    assert checker.files_verified == 0


@given(st.data())
def test_any_loss_repetition_and_reordering_is_seen(data: st.DataObject) -> None:
    """Only the numbers matter here, so the flow is one of headers alone."""
    count = data.draw(st.integers(1, 20))
    sent = [HEADER.pack(number, 0, NOW_NS, 0) for number in range(count)]
    got = data.draw(st.lists(st.sampled_from(sent), max_size=30))
    result = outcome([], sent, got)
    assert faults(result)[:2] == (count - len(set(got)), len(got) - len(set(got)))
    firsts = list(dict.fromkeys(got))
    late = sum(any(later > earlier for later in firsts[:place]) for place, earlier in enumerate(firsts))
    assert faults(result)[2] == late
    assert result.ok == (got == sent)


def test_a_file_that_shrinks_while_it_is_sent_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(bytes(1000))
    files = find_files(tmp_path, 1 << 20)
    path.write_bytes(b"")
    with pytest.raises(CliError, match="shrinking"):
        cut(files)
