"""The failure table: what a lost, repeated or late message of each kind does, and a crash at each moment. One test per row.

Two engines back to back, every datagram in the test's hands. Where the connection is what fails, couriers on the virtual network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio

from callskit import MSG_TYPE, A, B, Duo, Pair, duo
from rdsx.calls import IncomingCall
from rdsx.calls.wire import Kind
from rdsx.testing import run


def done(pair: Pair) -> None:
    """Let the handler run to its end, and everything arrive."""
    pair.finish(pair.begin())
    pair.run()


def test_open() -> None:
    pair = Pair()
    call = pair.call()
    lost = pair.lose(Kind.OPEN)
    pair.pass_time(1.0)  # lost: it is sent again
    pair.step(Kind.OPEN, copies=2)  # repeated: the same answer
    assert pair.take(Kind.OPEN_ACK) == pair.take(Kind.OPEN_ACK)
    pair.late(lost)
    assert len(pair.callee.sessions) == 1
    pair.run()
    done(pair)
    assert pair.end_of(call) == ("REPLIED", "yes")


def test_open_of_a_dead_life() -> None:
    pair = Pair()
    pair.call()
    old = pair.lose(Kind.OPEN)
    pair.new_caller(12)
    pair.open()
    pair.late(old)  # late: a session that nobody confirms
    assert [session.confirmed for session in pair.callee.sessions.values()] == [True, False]
    pair.run()  # the newcomer disowns it
    assert len(pair.callee.sessions) == 1
    pair.late(old)
    pair.wire.clear()
    pair.pass_time(60.0)  # or it ages out
    assert len(pair.callee.sessions) == 1
    assert pair.callee.counters["sessions_evicted"] == 1


def test_open_ack() -> None:
    pair = Pair()
    call = pair.call()
    pair.step(Kind.OPEN)
    ack = pair.lose(Kind.OPEN_ACK)
    pair.pass_time(1.0)  # lost: OPEN again
    pair.step(Kind.OPEN)
    pair.step(Kind.OPEN_ACK, copies=2)  # repeated: ignored
    pair.late(ack)
    assert pair.sent(Kind.GONE) == 0
    pair.run()
    done(pair)
    pair.new_caller(12).peer(("10.0.0.2", 1))
    pair.late(ack)  # an old nonce
    assert pair.sent(Kind.GONE) == 1
    assert pair.end_of(call) == ("REPLIED", "yes")


def test_first_call() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    lost = pair.lose(Kind.CALL)
    pair.pass_time(1.0)  # lost: sent again by the timer
    pair.step(Kind.CALL)
    pair.late(lost)  # repeated: it runs once, and the caller is told to be patient
    assert pair.sent(Kind.WORKING) == 1
    holder = pair.begin()
    assert not pair.can_begin()
    pair.finish(holder)
    pair.late(lost)  # repeated: the stored status
    assert pair.sent(Kind.STATUS) == 2
    pair.run()
    assert pair.end_of(call) == ("REPLIED", "yes")
    pair.pass_time(0.06)
    pair.run()
    pair.late(lost)  # late: below the floor
    assert pair.callee.counters["stale"] == 1
    assert not pair.can_begin()


def test_first_call_of_a_retired_session() -> None:
    pair = Pair()
    pair.open()
    pair.call()
    old = pair.lose(Kind.CALL)
    pair.new_caller(12)
    pair.open()
    pair.late(old)
    pair.step(Kind.RESET)  # refused, and the new life does not care
    assert not pair.can_begin()
    assert pair.finished() is not None


def test_later_copy_of_a_call() -> None:
    pair = Pair()
    pair.open()
    first = pair.call()
    old = pair.lose(Kind.CALL)
    for _ in range(3):
        assert pair.finished().ending.name == "REPLIED"
    pair.pass_time(1.0)
    copy = pair.lose(Kind.CALL)  # lost: as the first
    pair.pass_time(2.0)
    pair.run()
    done(pair)
    assert pair.end_of(first) == ("REPLIED", "yes")
    pair.pass_time(0.06)
    pair.run()
    (session,) = pair.callee.sessions.values()
    assert session.floor == 6
    for data in (old, copy):  # an older floor: floors are maxima
        pair.late(data)
        assert session.floor == 6
    assert not pair.can_begin()


def test_status() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    pair.run()
    pair.finish(pair.begin())
    pair.lose(Kind.STATUS)
    pair.pass_time(1.0)  # lost: the call comes again, and the stored status answers
    pair.step(Kind.CALL)
    status = pair.step(Kind.STATUS, copies=2)  # repeated: ignored
    assert pair.end_of(call) == ("REPLIED", "yes")
    assert pair.caller.counters["late_answers"] == 1
    unwanted = pair.call()
    pair.run()
    pair.caller.abandon(unwanted, pair.now_s)
    done(pair)  # late, after it was abandoned: ignored
    assert pair.end_of(unwanted) == ("ABANDONED", "maybe")
    pair.new_caller(12).peer(("10.0.0.2", 1))
    pair.late(status)  # late, after the caller restarted: disowned
    assert pair.take(Kind.GONE)


def test_working_and_busy() -> None:
    pair = Pair(max_running=1)
    pair.open()
    calls = [pair.call(b"%d" % number) for number in range(3)]
    pair.run()
    assert pair.sent(Kind.BUSY) == 1  # two may be there: one that runs, one that waits
    pair.pass_time(1.0)
    pair.lose(Kind.CALL)
    pair.run()
    busy = next(message for message in pair.log if message.kind is Kind.BUSY)
    for _ in range(2):
        done(pair)
    pair.pass_time(2.0)  # lost: the timer goes on
    pair.run()
    done(pair)
    assert [pair.end_of(call) for call in calls] == [("REPLIED", "yes")] * 3
    pair.caller.handle(("10.0.0.2", 1), busy, pair.now_s)  # late: the call is over
    assert pair.finished().ending.name == "REPLIED"


def test_release() -> None:
    pair = Pair()
    pair.finished()
    pair.pass_time(0.06)
    old = pair.lose(Kind.RELEASE)
    pair.pass_time(2.0)  # lost: again
    pair.step(Kind.RELEASE, copies=2)
    assert pair.callee.holders == 0
    pair.run()
    assert pair.finished().ending.name == "REPLIED"
    (session,) = pair.callee.sessions.values()
    floor = session.floor
    pair.late(old)  # an older floor has no effect
    assert (session.floor, pair.callee.holders) == (floor, 1)


def test_released() -> None:
    pair = Pair()
    pair.finished()
    pair.pass_time(0.06)
    pair.step(Kind.RELEASE)
    released = pair.lose(Kind.RELEASED)
    pair.pass_time(2.0)  # lost: RELEASE again
    pair.step(Kind.RELEASE)
    pair.step(Kind.RELEASED, copies=2)
    pair.late(released)
    pair.log.clear()
    pair.pass_time(100.0)
    assert pair.sent(Kind.RELEASE) == 0


def test_cancel() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    late = pair.lose(Kind.CALL)
    pair.caller.cancel(call, pair.now_s)
    pair.lose(Kind.CANCEL)
    pair.pass_time(1.0)  # lost: again
    cancel = pair.step(Kind.CANCEL, copies=2)  # repeated: the same status; before the call it names: VOID
    pair.late(late)
    pair.run()
    assert pair.end_of(call) == ("CANCELLED_BEFORE_START", "no")
    assert not pair.can_begin()
    pair.pass_time(0.06)
    pair.run()
    pair.late(cancel)  # late: below the floor
    assert not pair.wire
    pair.late(late)
    assert not pair.can_begin()


def test_close() -> None:
    pair = Pair()
    pair.open()
    pair.caller.close(pair.now_s)
    pair.caller.part(pair.now_s)
    pair.lose(Kind.CLOSE)
    pair.pass_time(0.3)  # lost: again
    close = pair.step(Kind.CLOSE, copies=2)  # repeated: RESET
    assert pair.sent(Kind.CLOSED) == pair.sent(Kind.RESET) == 1
    pair.run()
    assert pair.caller.is_parted()
    assert not pair.callee.sessions
    pair.late(close)
    pair.run()
    assert not pair.callee.sessions


def test_reset() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    old = pair.lose(Kind.CALL)
    pair.new_callee(101)
    pair.late(old)
    pair.lose(Kind.RESET)
    pair.pass_time(1.0)  # lost: the next message provokes another
    pair.step(Kind.CALL)
    pair.step(Kind.RESET, copies=2)  # repeated: of a session that is not current any more
    assert pair.end_of(call) == ("PEER_RESTARTED", "maybe")
    assert pair.finished().ending.name == "REPLIED"


def test_gone() -> None:
    pair = Pair()
    pair.open()
    pair.finished()
    (status,) = [message for message in pair.log if message.kind is Kind.STATUS]
    pair.new_caller(12)
    pair.caller.handle(("10.0.0.2", 1), status, pair.now_s)
    pair.lose(Kind.GONE)
    assert len(pair.callee.sessions) == 1  # lost: QUERY asks
    for _ in range(3):
        pair.pass_time(30.1)
    pair.step(Kind.QUERY)
    pair.step(Kind.GONE, copies=2)
    assert not pair.callee.sessions


def test_query() -> None:
    pair = Pair(release_delay_s=1000.0)
    pair.finished()
    pair.pass_time(31.0)
    pair.pass_time(31.0)
    pair.lose(Kind.QUERY)
    pair.pass_time(61.0)  # lost: repeated
    query = pair.step(Kind.QUERY)
    pair.run()
    assert pair.callee.holders == 0
    pair.late(query)  # late: answered
    assert pair.take(Kind.RELEASE)


# -- crash of the caller


def test_caller_crashes_while_queued() -> None:
    pair = Pair()
    pair.call()
    pair.wire.clear()
    pair.new_caller(12)
    pair.run()
    assert not pair.callee.sessions


def test_caller_crashes_before_the_call_arrives() -> None:
    pair = Pair()
    pair.open()
    pair.call(b"of the dead")
    late = pair.lose(Kind.CALL)
    pair.new_caller(12)
    pair.late(late)  # it runs if it comes before the successor's first call
    assert pair.begin().payload == b"of the dead"
    assert pair.finished().ending.name == "REPLIED"
    pair.late(late)  # never after
    assert not pair.can_begin()


def test_caller_crashes_while_running() -> None:
    pair = Pair()
    pair.open()
    pair.call()
    pair.run()
    running = pair.begin()
    pair.new_caller(12)
    call = pair.call()
    pair.run()
    assert pair.gone == [running]
    pair.finish(running)  # discarded
    assert pair.callee.holders == 1
    done(pair)
    assert pair.end_of(call) == ("REPLIED", "yes")


def test_caller_crashes_after_the_status_was_sent() -> None:
    pair = Pair()
    pair.open()
    pair.call()
    pair.run()
    pair.finish(pair.begin())
    pair.new_caller(12)
    pair.run()  # the status is disowned
    assert not pair.callee.sessions


def test_caller_crashes_after_delivery() -> None:
    pair = Pair()
    pair.finished()
    pair.new_caller(12)
    pair.call()
    pair.run()
    assert pair.callee.holders == 1  # of the new session


# -- crash of the callee, without a store


def crashed(pair: Pair) -> str:
    """The callee crashes; what its caller learns of a call under way."""
    pair.wire.clear()
    pair.new_callee(101)
    pair.pass_time(1.0)
    pair.run()
    return pair.log[-1].kind.name


def test_callee_crashes_with_the_call_unseen() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    assert crashed(pair) == "RESET"
    assert pair.end_of(call) == ("PEER_RESTARTED", "maybe")


def test_callee_crashes_before_the_handler_begins() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    pair.run()
    crashed(pair)
    assert pair.end_of(call) == ("PEER_RESTARTED", "maybe")


def test_callee_crashes_inside_the_handler() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    pair.run()
    pair.begin()
    crashed(pair)
    assert pair.end_of(call) == ("PEER_RESTARTED", "maybe")
    assert not pair.can_begin()


def test_callee_crashes_with_the_status_unsent() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    pair.run()
    pair.finish(pair.begin())
    crashed(pair)
    assert pair.end_of(call) == ("PEER_RESTARTED", "maybe")


def test_callee_crashes_after_release() -> None:
    pair = Pair()
    pair.open()
    pair.wire.clear()
    pair.new_callee(101)
    call = pair.call()
    pair.run()
    assert pair.end_of(call) == ("PEER_RESTARTED", "maybe")  # it was sent to the dead: only the next one knows better
    assert pair.finished().ending.name == "REPLIED"


def test_both_crash() -> None:
    pair = Pair()
    pair.open()
    pair.call()
    late = pair.lose(Kind.CALL)
    pair.new_caller(12)
    pair.new_callee(101)
    pair.late(late)
    pair.run()
    assert not pair.can_begin()
    assert not pair.callee.sessions


def test_partition() -> None:
    pair = Pair()
    pair.open()
    call = pair.call()
    for _ in range(300):  # twenty minutes and more, and nobody gives up
        pair.wire.clear()
        pair.pass_time(5.0)
    assert call.outcome is None
    assert 60 < call.copies < 150  # 15 s apart, in the end
    assert pair.forgotten > 60  # each copy replaces the one before it in the socket
    pair.pass_time(20.0)
    pair.run()
    done(pair)
    assert pair.end_of(call) == ("REPLIED", "yes")


def test_lease() -> None:
    pair = Pair(lease_s=100)
    pair.open()
    call = pair.call()
    pair.run()
    running = pair.begin()
    for _ in range(10):  # a live call keeps the session
        pair.pass_time(24.0)
        pair.run()
    assert pair.callee.sessions
    pair.finish(running)
    pair.run()
    pair.pass_time(0.06)
    pair.run()
    pair.pass_time(101.0)  # silence ends it
    assert not pair.callee.sessions
    assert pair.callee.counters["sessions_expired"] == 1
    assert pair.end_of(call) == ("REPLIED", "yes")
    assert pair.finished().ending.name == "REPLIED"  # the caller knows how long it was silent, and opens another one
    lost = pair.call()
    for _ in range(5):  # so long nothing gets through that the session ends
        pair.pass_time(24.0)
        pair.wire.clear()
    pair.pass_time(20.0)
    pair.run()
    assert pair.end_of(lost) == ("PEER_FORGOT", "maybe")
    assert pair.finished().ending.name == "REPLIED"


# -- the address is elsewhere


def calls_notice_nothing(trouble: Callable[[Duo, float], Awaitable[None]]) -> None:
    """Calls in both directions while there is trouble for so many seconds, again and again: each runs once and is answered, in the
    session that was there before, over new connections."""

    async def main() -> None:
        async with duo() as pair:
            runs: Counter[bytes] = Counter()
            over = trio.Event()

            async def handle(call: IncomingCall) -> bytes:
                runs[call.payload] += 1
                await trio.sleep(0.5)
                return call.payload[::-1]

            for courier in (pair.here, pair.there):
                courier.register(MSG_TYPE, handle)

            async def calls(name: str) -> None:
                number = 0
                while not over.is_set():
                    number += 1
                    courier, peer = (pair.here, pair.there) if number % 2 else (pair.there, pair.here)
                    text = f"{name} {number}".encode()
                    assert await courier.call(peer.address, MSG_TYPE, text) == (0, text[::-1])

            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(calls, f"{number}")
                for seconds in (0.1, 1.0, 5.0, 40.0):
                    await trio.sleep(1.0)
                    connections = set(pair.network.streams)
                    await trouble(pair, seconds)
                    await trio.sleep(20.0)  # the longest pause between two dials
                    assert len(set(pair.network.streams) - connections) == len(connections) == 2  # both ends are new
                over.set()
            assert len(runs) > 100
            assert set(runs.values()) == {1}
            for courier in (pair.here, pair.there):
                counters = Counter(courier.statistics().counters)
                assert counters["sessions_confirmed"] == 1
                assert counters["unknown_outcomes"] == counters["resets_sent"] == counters["sessions_gone"] == 0

    run(main)


@pytest.mark.parametrize(("mover", "other"), [(A, B), (B, A)])
def test_address_moves(mover: str, other: str) -> None:
    """To another port of its host: the host has lost its end of the connection, the peer believes in it still; the listener stays."""

    async def move(pair: Duo, seconds: float) -> None:
        pair.network.partition(A, B)
        assert pair.network.half_open(mover, other)
        await trio.sleep(seconds)
        pair.network.heal(A, B)

    calls_notice_nothing(move)


def test_another_host_takes_the_address() -> None:
    """What message holders were proposed for can be provoked so: a host without couriers has the address for a while, and sends resets."""

    async def take(pair: Duo, seconds: float) -> None:
        listeners = {key: listener for key, listener in pair.network.listeners.items() if key[0] == B}
        for key in listeners:
            del pair.network.listeners[key]
        assert pair.network.cut(A, B)
        await trio.sleep(seconds)
        pair.network.listeners.update(listeners)

    calls_notice_nothing(take)
