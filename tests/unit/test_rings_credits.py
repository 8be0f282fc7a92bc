"""Flow control by credits: the arithmetic against its twin, and two ends that must never overrun each other, nor wait for each other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ringskit = pytest.importorskip("ringskit", reason="rdsx was built without the headers of rdma-core")

from fastkit import received  # noqa: E402
from rdsx import _reference  # noqa: E402
from rdsx._rings import Credits  # noqa: E402
from ringskit import (  # noqa: E402
    ACK_REQUIRED,
    BROKEN,
    CONG_BITMAP,
    SOLICITED,
    RingSide,
    ack_frame,
    alone,
    frames_of,
    map_frames,
    pair,
    settle,
    show_all,
    use_credits,
)

VERBS = ["sendable", "advertise", "spend", "posted", "heard", "received", "is_update_due", "grant_all"]
WITH_NUMBER = {"spend", "posted", "heard"}


STEPS = st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 255)), max_size=60)


@given(st.integers(4, 100), st.integers(0, 60000), st.integers(0, 600), STEPS)
def test_like_the_twin(slots: int, available: int, owed: int, steps: list[tuple[str, int]]) -> None:
    fast, slow = Credits(slots, available, owed), _reference.Credits(slots, available, owed)
    assert fast.threshold == slow.threshold
    for verb, number in steps:
        arguments = [number] if verb in WITH_NUMBER else []
        outcomes: list[Any] = [getattr(credits, verb)(*arguments) for credits in (fast, slow)]
        assert outcomes[0] == outcomes[1], verb
        assert (fast.available, fast.unadvertised, fast.granted, fast.owed) == (slow.available, slow.unadvertised, slow.granted, slow.owed)
        assert min(fast.available, fast.unadvertised, fast.granted) >= 0
        assert fast.sendable() <= fast.available <= 65535


def test_the_twin_has_the_same_members() -> None:
    assert {name for name in dir(Credits) if name[0] != "_"} == {name for name in dir(_reference.Credits(8)) if name[0] != "_"}


def flowing(**changes: Any) -> tuple[RingSide, RingSide]:
    a, b = pair(**changes)
    use_credits(a, b)
    settle(a, b)
    return a, b


def opened(available: int, **changes: Any) -> RingSide:
    """Alone, with a peer that has granted so much, and has sent its map; ours is sent."""
    side = alone(**changes)
    side.rings.use_credits(available)
    side.kick()
    side.outgoing()
    side.inject(*map_frames())
    side.take_in()
    side.nic.show_sends()
    side.take_in()
    return side


@pytest.mark.parametrize("slots", [4, 8, 64])
def test_nobody_is_overrun(slots: int) -> None:
    """W11: no frame ever finds that there is no receive for it, however few there are."""
    a, b = flowing(send_slots=64, receive_slots=slots)
    ends = a.endpoint(4000), b.endpoint(4000)
    for number in range(30):
        ends[0].submit(b"a%d" % number * 300, ("10.0.0.2", 4000))
        ends[1].submit(b"b%d" % number * 300, ("10.0.0.1", 4000))
    ends[0].submit(bytes(60000), ("10.0.0.2", 4000))
    ends[1].submit(bytes(60000), ("10.0.0.1", 4000))
    settle(a, b)
    assert received(ends[1]) == [b"a%d" % number * 300 for number in range(30)] + [bytes(60000)]
    assert received(ends[0]) == [b"b%d" % number * 300 for number in range(30)] + [bytes(60000)]
    assert a.nic.starved == b.nic.starved == 0
    assert (a.counter("ib_tx_throttle") > 0) == (slots < 64)
    assert a.counter("ib_tx_credit_updates") > 0
    assert not a.rings.broken
    assert not b.rings.broken


def test_the_last_credit_goes_with_a_grant_only() -> None:
    """W12."""
    side = opened(6, receive_slots=64)
    endpoint = side.endpoint(4000)
    for _ in range(10):
        endpoint.submit(b"x", ("10.0.0.2", 4001))
    side.kick()
    sent = side.outgoing()
    assert len(sent) == 3  # two for the map, and one is kept
    assert [frame[25] for frame, _ in sent] == [0, 0, 0]
    assert (side.rings.blocked, side.rings.starved) == (True, True)
    for sequence in range(20):
        side.inject(*frames_of(sequence + 1, dport=9))
    side.take_in()
    side.kick()
    ((frame, _),) = side.outgoing()
    assert frame[25] == 22  # the peer's map took two receives
    assert side.rings.credits.available == 0
    side.kick()
    assert side.outgoing() == []
    side.inject(ack_frame(0, credit=7))
    side.take_in()
    side.kick()
    assert len(side.outgoing()) == 6
    assert not side.rings.blocked


def test_what_is_posted_again_is_granted_by_a_frame_of_its_own() -> None:
    side = opened(6, receive_slots=64)
    for sequence in range(14):
        side.inject(*frames_of(sequence + 1, dport=9))
    side.take_in()
    side.kick()
    ((frame, _),) = side.outgoing()
    assert frame == ack_frame(14, credit=16)


def test_a_grant_rides_on_the_first_frame_of_a_batch() -> None:
    side = opened(60, receive_slots=16)
    endpoint = side.endpoint(4000)
    for sequence in range(3):
        side.inject(*frames_of(sequence + 1, dport=9))
    side.take_in()
    endpoint.submit(bytes(9000), ("10.0.0.2", 4001))
    side.kick()
    sent = side.outgoing()
    assert [frame[25] for frame, _ in sent] == [5, 0, 0]
    twin = _reference.fragments(1, 3, 4000, 4001, bytes(9000), ACK_REQUIRED)
    assert [frame for frame, _ in sent][1:] == twin[1:]
    assert sent[0][0] == _reference.fragments(1, 3, 4000, 4001, bytes(9000), ACK_REQUIRED, credit=5)[0]


@pytest.mark.parametrize(
    ("frames", "detail"),
    [([*frames_of(1, b"x", dport=9)] * 63, "without a credit"), ([ack_frame(0, 255)] * 8, "credits granted to us")],
    ids=["overrun", "overflow"],
)
def test_what_breaks_a_link(frames: list[bytes], detail: str) -> None:
    side = opened(65000, receive_slots=64)
    for frame in frames:
        side.inject(frame)
        if side.take_in() == [BROKEN]:
            break
    assert side.rings.reason == "credit_overrun"
    assert detail in side.rings.detail


def test_without_credits_h_credit_is_not_looked_at() -> None:
    side = alone()
    side.inject(*map_frames(), *[ack_frame(0, 255)] * 50)
    assert BROKEN not in side.take_in()
    side.kick()
    assert [frame[25] for frame, _ in side.outgoing()] == [0, 0]


def test_a_peer_that_never_grants_stops_only_what_goes_to_it() -> None:
    side = opened(4)
    endpoint = side.endpoint(4000, send_limit=10)
    codes = [endpoint.submit(b"x" * 5, ("10.0.0.2", 4001)) for _ in range(4)]
    assert codes == [0, 0, 2, 2]  # the third finds the queue full
    side.kick()
    show_all(side)
    side.take_in()
    assert side.rings.starved
    assert side.path.send_queue == 1
    assert side.rings.transmit() == 0


def offering(*, credit: int, **changes: Any) -> RingSide:
    """Alone, with a peer that announced nothing, and whose map, behind ours, grants so much."""
    side = alone(**changes)
    assert side.rings.offer_credits() == side.nic.posted_receives
    side.kick()
    assert len(side.outgoing()) == 2
    first, second = map_frames()
    side.inject(_reference.fragments(0, 0, 0, 0, bytes(8192), CONG_BITMAP, credit=credit)[0] if credit else first, second)
    side.take_in()
    return side


def test_a_kernel_that_counts_says_so_with_its_first_frame() -> None:
    """It posts its receives, and so can grant them, only after it has announced that there are none."""
    side = offering(credit=255)
    credits = side.rings.credits
    assert (credits.available, credits.owed) == (253, 0)  # our map took two
    assert credits.granted == side.rings.receive_ring.size - 2  # of what we announced, its map took two
    endpoint = side.endpoint(4000, send_limit=1 << 20)
    assert endpoint.submit(bytes(255 * 4096), ("10.0.0.2", 4001)) == 0
    for _ in range(5):
        side.kick()
        sent = side.outgoing()
        show_all(side)
        side.take_in()
    assert sent == []
    assert side.rings.starved
    assert credits.available == 1


def test_a_debt_is_paid_by_the_next_grants() -> None:
    side = offering(credit=1)
    assert (side.rings.credits.available, side.rings.credits.owed) == (0, 1)
    side.inject(ack_frame(0, 4))
    side.take_in()
    assert (side.rings.credits.available, side.rings.credits.owed) == (3, 0)


def test_a_kernel_that_does_not_count_is_granted_nothing() -> None:
    """It would add up what it never uses."""
    side = offering(credit=0)
    assert side.rings.credits is None
    side.endpoint(4000).submit(b"x", ("10.0.0.2", 4001))
    for sequence in range(40):
        side.inject(*frames_of(sequence + 1, dport=9))
    side.take_in()
    side.inject(ack_frame(0, 9))  # too late
    side.take_in()
    side.kick()
    assert [frame[25] for frame, _ in side.outgoing()] == [0]
    assert side.rings.credits is None


def test_where_credits_end_in_a_message_the_peer_is_woken() -> None:
    """A kernel hears of nothing else, and would grant nothing more."""
    side = opened(9, receive_slots=64)
    side.endpoint(4000).submit(bytes(20 * 4096), ("10.0.0.2", 4001))
    side.inject(*frames_of(1, dport=9))
    side.take_in()
    side.kick()
    sent = side.outgoing()
    assert [bool(flags & SOLICITED) for _, flags in sent] == [False] * 5 + [True]  # one is kept
    side.inject(ack_frame(0, 200))
    side.take_in()
    side.kick()
    sent = side.outgoing()
    assert [bool(flags & SOLICITED) for _, flags in sent] == [False] * 13 + [True]
