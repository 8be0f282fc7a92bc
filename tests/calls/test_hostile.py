"""Well-formed messages that make no sense, from a peer that means harm or is broken: no exception, bounded tables, others undisturbed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callskit import HERE, MSG_TYPE, THERE, Pair
from rdsx.calls.wire import Code, Kind, Limits, Message, Resume, emit, parse_untrusted

FORWARD = [Kind.OPEN, Kind.CALL, Kind.RELEASE, Kind.CANCEL, Kind.CLOSE, Kind.GONE]
BACKWARD = [Kind.OPEN_ACK, Kind.STATUS, Kind.RELEASED, Kind.WORKING, Kind.CLOSED, Kind.BUSY, Kind.RESET, Kind.QUERY]

lives = st.sampled_from([0, 11, 100, 2**64 - 1])
seqs = st.sampled_from([1, 2, 3, 5, 8, 1030, 2**63, 2**64 - 1])
floors = st.sampled_from([0, 1, 2, 4, 9, 1030, 2**64 - 1])
ranges = st.lists(st.integers(1, 2000) | seqs, max_size=12, unique=True).map(
    lambda numbers: tuple(zip(*[iter(sorted(numbers))] * 2, strict=False))
)


@st.composite
def messages(draw: st.DrawFn, kinds: list[Kind]) -> bytes:
    kind = draw(st.sampled_from(kinds))
    message = Message(kind, draw(lives), draw(st.sampled_from([0, 1, 2, 2**32 - 1])), draw(seqs), draw(floors))
    message.msg_type = draw(st.sampled_from([MSG_TYPE, 0, 2**32 - 1]))
    message.status, message.credit = draw(st.sampled_from([0, -1, 1000, 2**31 - 1, -(2**31)])), draw(st.sampled_from([0, 1, 65535]))
    message.code = draw(st.sampled_from(Code))
    message.never_confirmed = draw(st.booleans())
    message.ranges = draw(ranges)
    if kind in (Kind.OPEN, Kind.OPEN_ACK):
        message.limits = Limits(draw(lives.filter(bool)), (draw(st.sampled_from([0, 1])), 255), draw(st.sampled_from([1, 65535])), 10)
        message.resume = draw(st.none() | st.builds(Resume, st.just(bytes(16)), st.sampled_from([0, 1, 2]), seqs))
    elif kind in (Kind.CALL, Kind.STATUS):
        message.payload = draw(st.sampled_from([b"", b"x", bytes(2000)]))
    return emit(message)


def sums(pair: Pair) -> None:
    callee = pair.callee
    held = [holder for session in callee.sessions.values() for holder in session.holders.values()]
    assert len(held) == callee.holders <= 200
    assert sum(len(holder.reply) for holder in held) == callee.reply_bytes
    assert len(callee.sessions) - callee.confirmed <= 4
    for session in callee.sessions.values():
        assert session.released.bit_length() <= callee.config.window
        assert all(seq >= session.floor for seq in session.holders)


@given(st.lists(st.tuples(messages(FORWARD), st.integers(0, 3)), max_size=30))
def test_a_callee_takes_anything(sent: list[tuple[bytes, int]]) -> None:
    pair = Pair(max_holders=200)
    pair.register(MSG_TYPE, order="start")
    pair.open()
    running: list[Any] = []
    for data, then in sent:
        pair.callee.handle(HERE, parse_untrusted(data), pair.now_s)
        if then == 1 and (holder := pair.callee.poll_start()) is not None:
            pair.callee.begun(holder)
            running.append(holder)
        if then == 2 and running:
            pair.finish(running.pop())
        if then == 3:
            pair.pass_time(31.0)
        sums(pair)


@given(st.lists(messages(BACKWARD), max_size=30))
def test_a_caller_takes_anything(sent: list[bytes]) -> None:
    pair = Pair()
    pair.open()
    calls = [pair.call() for _ in range(5)]
    for data in sent:
        pair.caller.handle(THERE, parse_untrusted(data), pair.now_s)
        pair.pass_time(0.7)
        peer = pair.caller.peer(THERE)
        unanswered = [*peer.queue, *(peer.session.live.values() if peer.session is not None else ())]
        assert {id(call) for call in calls if call.outcome is None} == {id(call) for call in unanswered}
        assert peer.request_bytes == sum(len(call.payload) for call in unanswered)
    assert pair.sent(Kind.GONE) <= len(sent)


@given(st.lists(messages(FORWARD + BACKWARD), max_size=30))
def test_a_stranger_disturbs_nobody(sent: list[bytes]) -> None:
    """Messages from an address that has no session, in the names of those who have one."""
    pair = Pair(max_holders=200)
    pair.open()
    call = pair.call()
    for data in sent:
        message = parse_untrusted(data)
        if message.kind in FORWARD:
            pair.callee.handle(("10.9.9.9", 1), message, pair.now_s)
        else:
            pair.caller.handle(("10.9.9.9", 1), message, pair.now_s)
    for to_callee, data in list(pair.wire):
        if to_callee and data[3] == Kind.CALL:
            pair.late(data)
    pair.finish(pair.begin())
    statuses = [data for to_callee, data in pair.wire if not to_callee and data[3] == Kind.STATUS]
    pair.late(statuses[-1])
    assert pair.end_of(call) == ("REPLIED", "yes")


@pytest.mark.parametrize("order", ["none", "serial"])
def test_calls_that_are_given_up_while_they_wait_leave_nothing(order: str) -> None:
    """One handler never ends, and its call is given up, so that the window moves on; so is each of the calls that wait behind it."""
    pair = Pair(window=16)
    pair.register(MSG_TYPE, order=order, concurrency=1)
    pair.open()
    stuck = pair.call()
    pair.run()
    pair.callee.begun(pair.begin())
    pair.caller.abandon(stuck, pair.now_s)
    for _ in range(2000):
        call = pair.call()
        pair.run()
        pair.caller.abandon(call, pair.now_s)
        pair.pass_time(0.06)
        pair.run()
    (session,) = pair.callee.sessions.values()
    assert session.floor > 2000
    assert pair.callee.holders == 0
    assert len(pair.callee._slots._queues[MSG_TYPE]) < 200
    assert sum(len(lane.waiting) for lane in session.lanes.values()) < 200
    assert pair.callee.ready == 0
