"""The journal and the way back from its rows: what a crash at an awkward moment leaves. Engines back to back, and a dict for a disk."""

from __future__ import annotations

from typing import Any

from callskit import HERE, MSG_TYPE, THERE, Pair
from rdsx.calls.callee import Callee
from rdsx.calls.outgoing import Call
from rdsx.calls.records import CallRow, Journal, OutgoingRow, Row, Rows, SessionRow, restore_callee, restore_caller
from rdsx.calls.wire import Kind


def durable_pair(**settings: Any) -> tuple[Pair, Journal]:
    """A pair whose caller has a journal."""
    pair, journal = Pair(**settings), Journal()
    pair.caller.journal = journal
    return pair, journal


def durable_call(pair: Pair, payload: bytes) -> Call:
    return pair.caller.start(pair.caller.peer(THERE), MSG_TYPE, payload, pair.now_s, durable=True)


def of_kind(journal: Journal, kind: type[Row]) -> list[Row | None]:
    return [row for (table, _), row in journal.changes.items() if table is kind]


def test_a_call_that_is_taken_back_has_no_number_on_disk_either() -> None:
    """Else the next life would take it for a call of the next session, and it would run there once more."""
    pair, journal = durable_pair(half_open_s=5.0)
    durable_call(pair, b"one")
    pair.step(Kind.OPEN)
    pair.step(Kind.OPEN_ACK)
    assert CallRow(1, THERE, 1, MSG_TYPE, b"one") in of_kind(journal, CallRow)
    assert of_kind(journal, OutgoingRow)[0] is not None
    late = pair.lose(Kind.CALL)
    pair.wire.clear()
    pair.now_s += 5.0
    pair.callee.tick(pair.now_s)  # no call has come: the session is evicted
    pair.late(late)
    pair.step(Kind.RESET)
    assert of_kind(journal, CallRow) == [CallRow(1, THERE, 0, MSG_TYPE, b"one")]
    assert of_kind(journal, OutgoingRow) == [None]


def test_a_call_that_the_socket_refuses_has_no_number_on_disk_either() -> None:
    pair, journal = durable_pair()
    pair.open()
    pair.refusing = True
    call = durable_call(pair, b"one")
    assert of_kind(journal, CallRow) == [CallRow(1, THERE, 0, MSG_TYPE, b"one")]
    pair.caller.abandon(call, pair.now_s)
    assert of_kind(journal, CallRow) == [None]


def test_a_caller_that_closes_waits_until_its_releases_are_known() -> None:
    pair, _ = durable_pair()
    pair.finished()
    assert pair.callee.holders == 1
    pair.caller.close(pair.now_s)
    pair.caller.part(pair.now_s)
    pair.lose(Kind.RELEASE)
    assert not pair.caller.is_parted()
    pair.pass_time(0.06)  # lost: again
    pair.step(Kind.RELEASE)
    assert not pair.caller.is_parted()
    pair.step(Kind.RELEASED)
    assert pair.caller.is_parted()
    assert (pair.callee.holders, len(pair.callee.sessions)) == (0, 1)


def test_a_caller_that_closes_while_it_resumes_tells_its_releases_first() -> None:
    """The life before this one was killed between a result and its release."""
    pair, journal = durable_pair()
    pair.finished()
    outgoing = [row for row in of_kind(journal, OutgoingRow) if isinstance(row, OutgoingRow)]
    pair.new_caller(11).journal = Journal()
    assert restore_caller(pair.caller, Rows(outgoing=outgoing), pair.config, pair.now_s) == []
    pair.caller.close(pair.now_s)
    pair.caller.part(pair.now_s)
    assert not pair.caller.is_parted()
    pair.run()
    assert (pair.callee.holders, pair.caller.is_parted()) == (1, False)
    pair.pass_time(0.06)
    pair.run()
    assert (pair.callee.holders, pair.caller.is_parted()) == (0, True)


def test_released_ranges_are_numbers_that_were_seen() -> None:
    """Of a store's session the highest number that was seen decides whether a caller's store is an old copy."""
    rows = Rows(sessions=[SessionRow(1, HERE, 11, 5, 1, floor=3, released=0b10110)])
    callee = Callee(100, Pair().config, Pair().callee._outside)
    restore_callee(callee, rows, 0.0)
    assert callee.sessions[1].highest_seen() == 7
