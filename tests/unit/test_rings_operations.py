"""One-sided operations in the rings: done before their message, once, with exactly one outcome, their memory kept until then."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

ringskit = pytest.importorskip("ringskit", reason="rdsx was built without the headers of rdma-core")

from fastkit import MIB, SENT, Side, received  # noqa: E402
from rdsx._fast import Endpoint  # noqa: E402
from rdsx._operation import Operation  # noqa: E402
from ringskit import (  # noqa: E402
    BROKEN,
    FLUSHED,
    GENERAL,
    REMOTE_ACCESS,
    RETRIES,
    SHARED_BYTES,
    SHARED_KEY,
    SIGNALED,
    SOLICITED,
    RingSide,
    operation,
    pair,
    relink,
    settle,
    show_all,
    use_credits,
)

SUCCESS, REMOTE_ERROR, CANCELLED, DROPPED, OTHER_ERROR = range(5)
FENCE = 1


def opened(**changes: Any) -> tuple[RingSide, RingSide, Endpoint, Endpoint]:
    a, b = pair(**changes)
    settle(a, b)
    return a, b, a.endpoint(4000), b.endpoint(4001)


def submit(a: RingSide, sender: Endpoint, one: Operation, data: bytes = b"x") -> None:
    assert sender.submit_operation(data, a.path, 4001, one) == SENT


def outcomes(side: RingSide) -> list[int]:
    return [one.status for one in side.core.take_finished()]


def number(side: RingSide, offset: int = 0) -> int:
    return int.from_bytes(side.shared[offset : offset + 8], "little")


def put(side: RingSide, value: int, offset: int = 0) -> None:
    side.shared[offset : offset + 8] = value.to_bytes(8, "little")


def test_a_write_is_there_before_its_message() -> None:
    a, b, sender, receiver = opened()
    a.shared[:8] = b"written!"
    submit(a, sender, operation("write", a, b, remote_address=b.shared_address + 100), b"look")
    a.kick()
    assert a.nic.carry(1) == 1
    show_all(a, b)
    b.run()
    assert received(receiver) == []
    assert b.shared[100:108] == b"written!"
    settle(a, b)
    assert received(receiver) == [b"look"]
    assert outcomes(a) == [SUCCESS]
    assert sender.unacknowledged == 0


def test_a_read_is_done_before_the_message_is_sent() -> None:
    a, b, sender, receiver = opened()
    b.shared[:4000] = bytes(range(250)) * 16
    one = operation("read", a, b, segments=[(a.shared_address + 4000, 1000, SHARED_KEY), (a.shared_address, 3000, SHARED_KEY)], fence=True)
    submit(a, sender, one)
    a.kick()
    work = []
    while (frame := a.nic.next_frame()) is not None:
        work.append(frame[1])
        a.nic.carry(1)
    assert work == [SIGNALED, SOLICITED | FENCE]
    settle(a, b)
    assert a.shared[4000:5000] + a.shared[:3000] == bytes(range(250)) * 16
    assert outcomes(a) == [SUCCESS]
    assert received(receiver) == [b"x"]


@pytest.mark.parametrize(
    ("kind", "before", "compare_add", "swap", "after"),
    [
        ("compare_and_swap", 5, 5, 9, 9),
        ("compare_and_swap", 6, 5, 9, 6),
        ("fetch_and_add", 5, 7, 0, 12),
        ("fetch_and_add", 2**64 - 1, 2, 0, 1),
    ],
)
def test_atomics(kind: str, before: int, compare_add: int, swap: int, after: int) -> None:
    a, b, sender, _ = opened()
    put(b, before)
    submit(a, sender, operation(kind, a, b, compare_add=compare_add, swap=swap), b"")
    settle(a, b)
    assert (number(a), number(b)) == (before, after)
    assert outcomes(a) == [SUCCESS]


def test_the_message_says_which_key_was_used() -> None:
    a, b, sender, _ = opened()
    submit(a, sender, operation("write", a, b))
    a.kick()
    a.nic.carry(1)
    frame, _ = a.nic.next_frame()
    assert frame[32:48] == b"\2" + SHARED_KEY.to_bytes(4) + bytes(11)


def test_order_among_messages() -> None:
    """Messages before it are not held up by an operation, and those behind it do not pass it."""
    a, b, sender, receiver = opened(send_slots=8)
    for index in range(6):
        a.shared[index] = index + 1
        one = operation("write", a, b, segments=[(a.shared_address + index, 1, SHARED_KEY)], remote_address=b.shared_address)
        submit(a, sender, one, b"%d" % index * 5000)
        sender.submit(b"plain", ("10.0.0.2", 4001))
    settle(a, b)
    assert received(receiver) == [data for index in range(6) for data in (b"%d" % index * 5000, b"plain")]
    assert outcomes(a) == [SUCCESS] * 6
    assert b.shared[0] == b"\6"
    assert a.is_clean()


@pytest.mark.parametrize("free", [1, 2])
def test_an_operation_needs_a_slot_beside_its_message(free: int) -> None:
    a, b, sender, receiver = opened(send_slots=4)
    a.take_in()
    assert a.rings.in_flight == 0
    for _ in range(4 - free):
        sender.submit(b"plain", ("10.0.0.2", 4001))
    one = operation("write", a, b)
    submit(a, sender, one, b"behind")
    a.kick()
    assert a.rings.in_flight == (4 if free == 2 else 3)
    assert a.rings.blocked == (free == 1)
    settle(a, b)
    assert received(receiver) == [b"plain"] * (4 - free) + [b"behind"]
    assert outcomes(a) == [SUCCESS]


def test_operations_take_no_credits() -> None:
    a, b = pair(receive_slots=8)
    use_credits(a, b)
    settle(a, b)
    sender, receiver = a.endpoint(4000), b.endpoint(4001)
    for _ in range(20):
        submit(a, sender, operation("fetch_and_add", a, b, compare_add=1))
    settle(a, b)
    assert number(b) == 20
    assert outcomes(a) == [SUCCESS] * 20
    assert len(received(receiver)) == 20
    assert a.rings.credits is not None
    assert a.rings.credits.available + b.rings.credits.unadvertised == b.nic.posted_receives  # type: ignore[union-attr]


# -- outcomes


@pytest.mark.parametrize(
    "changes",
    [{"rkey": 1}, {"remote_address": 8}, {"segments": "long"}],
    ids=["no such key", "outside", "beyond the end"],
)
def test_a_remote_error(changes: dict[str, Any]) -> None:
    """I21: the connection is lost, later traffic goes on, and the operation is not repeated; nor is its message."""
    a, b, sender, receiver = opened()
    if changes.get("segments") == "long":
        changes = {"segments": [(a.shared_address, SHARED_BYTES, SHARED_KEY)], "remote_address": b.shared_address + 8}
    submit(a, sender, operation("write", a, b, **changes), b"never")
    sender.submit(b"later", ("10.0.0.2", 4001))
    a.kick()
    a.nic.carry()
    show_all(a)
    assert a.take_in()[-1] == BROKEN
    assert a.rings.reason == "remote_error"
    assert outcomes(a) == [REMOTE_ERROR]
    relink(a, b)
    settle(a, b)
    assert received(receiver) == [b"later"]
    assert outcomes(a) == []
    assert sender.unacknowledged == 0


@pytest.mark.parametrize(
    ("status", "outcome"), [(REMOTE_ACCESS, REMOTE_ERROR), (RETRIES, OTHER_ERROR), (GENERAL, OTHER_ERROR), (FLUSHED, DROPPED)]
)
def test_what_failures_come_to(status: int, outcome: int) -> None:
    a, b, sender, _ = opened()
    a.nic.fail_next(status)
    submit(a, sender, operation("write", a, b))
    a.kick()
    a.nic.carry()
    show_all(a)
    a.take_in()
    a.rings.abandon()
    assert outcomes(a) == [outcome]


def test_what_is_behind_a_failure_is_dropped_once_the_queue_pair_is_gone() -> None:
    a, b, sender, receiver = opened()
    leases = [Lease() for _ in range(3)]
    watched = [weakref.ref(lease) for lease in leases]
    operations = [operation("fetch_and_add", a, b, compare_add=1, lease=lease) for lease in leases]
    del leases
    for one in operations:
        submit(a, sender, one)
    a.kick()
    a.nic.carry(2)  # the first, and its message
    a.nic.fail_next(FLUSHED)
    a.nic.carry()
    show_all(a, b)
    a.take_in()
    gc.collect()
    assert [one.status for one in operations] == [SUCCESS, -1, -1]
    assert [lease() is None for lease in watched] == [True, False, False]  # a device may still be at them
    relink(a, b)
    gc.collect()
    assert [one.status for one in operations] == [SUCCESS, DROPPED, DROPPED]
    assert [lease() is None for lease in watched] == [True] * 3
    settle(a, b)
    assert received(receiver) == []  # the first message was carried, but not taken in before its link was lost
    assert number(b) == 1


class Lease:
    """Something that can be watched."""


def test_what_was_not_posted_goes_out_on_the_next_link() -> None:
    a, b, sender, receiver = opened(send_slots=4)
    sender.submit(bytes(60000), ("10.0.0.2", 4001))
    one = operation("write", a, b)
    submit(a, sender, one)
    a.kick()
    relink(a, b)
    assert one.status == -1
    settle(a, b)
    assert [len(data) for data in received(receiver)] == [60000, 1]
    assert outcomes(a) == [SUCCESS]


@pytest.mark.parametrize("posted", [False, True])
def test_cancelling(posted: bool) -> None:
    """What no device has yet is never done; what one has is done, and its message delivered, for all we know."""
    a, b, sender, _ = opened()
    one = operation("fetch_and_add", a, b, compare_add=1, lease=Lease())
    submit(a, sender, one)
    if posted:
        a.kick()
    assert sender.cancel(a.path) == 1
    assert (one.status, one.lease is None) == ((-1, False) if posted else (CANCELLED, True))
    settle(a, b)
    assert outcomes(a) == [SUCCESS if posted else CANCELLED]
    assert number(b) == posted


def test_closing_and_restarting() -> None:
    a, b, sender, _ = opened()
    a.path.held = True
    submit(a, sender, operation("write", a, b))
    sender.close()
    other = a.endpoint(4005)
    submit(a, other, operation("write", a, b))
    a.path.clear()
    assert outcomes(a) == [CANCELLED, CANCELLED]
    c, d, sender, _ = opened()
    submit(c, sender, operation("write", c, d))
    c.kick()
    assert c.path.flush() == 1  # the peer is another process
    assert outcomes(c) == []
    settle(c, d)
    assert outcomes(c) == [SUCCESS]


# -- what is refused


def test_no_such_operation() -> None:
    good: dict[str, Any] = {"remote_address": 0, "rkey": 1}
    for kind, segments, changes, text in (
        ("steal", [(0, 1, 1)], {}, "one of read, write"),
        ("read", [], {}, "1 to 1048576 bytes, not 0"),
        ("read", [(0, MIB, 1), (0, 1, 1)], {}, "not 1048577"),
        ("read", [(0, 1, 1)] * 9, {}, "at most 8 pieces"),
        ("fetch_and_add", [(0, 4, 1)], {}, "8 bytes"),
        ("fetch_and_add", [(0, 4, 1), (4, 4, 1)], {}, "8 bytes"),
        ("fetch_and_add", [(4, 8, 1)], {}, "aligned"),
        ("compare_and_swap", [(0, 8, 1)], {"remote_address": 4}, "aligned"),
    ):
        with pytest.raises(ValueError, match=text):
            Operation(kind, segments, **(good | changes))
    for wrong in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            Operation("read", [(0, 8, 1)], remote_address=0, rkey=wrong)


def test_only_once_and_only_over_verbs() -> None:
    a, b, sender, _ = opened()
    one = operation("write", a, b)
    submit(a, sender, one)
    with pytest.raises(ValueError, match="once"):
        sender.submit_operation(b"x", a.path, 4001, one)
    stream = Side("10.0.0.1", "10.0.0.2")
    endpoint = stream.endpoint(4000)
    with pytest.raises(ValueError, match="over verbs"):
        endpoint.submit_operation(b"x", stream.path, 4001, operation("write", a, b))


def test_a_message_that_is_not_queued_leaves_its_operation_alone() -> None:
    a, b, _, _ = opened()
    endpoint = a.endpoint(4005, send_limit=10)
    one = operation("write", a, b)
    assert endpoint.submit_operation(bytes(11), a.path, 4001, one) != SENT
    assert not one.submitted
    submit(a, endpoint, one)
    settle(a, b)
    assert outcomes(a) == [SUCCESS]
