"""Couriers on the virtual network: calls, errors, cancellation, lanes, backpressure, endings, the log."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import rdsx
from callskit import PORT, A, B, Duo, duo, node_config
from rdsx.calls import STATISTICS, CallConfig, CallError, Executed, IncomingCall, Reply
from rdsx.calls.wire import Kind, Limits, Message, emit, parse_untrusted
from rdsx.testing import VirtualNetwork, run

T = 0x21


def on_duo(scenario: Callable[[Duo], Any], seed: int = 1, **arguments: Any) -> Any:
    """Run a scenario; nothing may be left of it but counters."""

    async def main() -> Any:
        async with duo(seed, **arguments) as pair:
            result = await scenario(pair)
            await trio.sleep(5)  # virtual: what is to be released is released
            for courier in (pair.here, pair.there):
                statistics = courier.statistics()
                assert (statistics.holders, statistics.held_bytes, statistics.live_calls, statistics.queued_calls) == (0, 0, 0, 0)
            return result

    return run(main, seed=seed)


def test_a_call_and_its_results() -> None:
    async def scenario(pair: Duo) -> None:
        results: list[Any] = [7, b"bytes", Reply(-17, b"both"), None]
        seen = []

        @pair.there.handler(T)
        async def handle(call: IncomingCall) -> Any:
            seen.append((call.peer, call.payload, call.seq, call.copies, call.msg_type, call.caller_life == pair.here.life))
            await trio.sleep(0.1)
            return results.pop(0)

        replies = [await pair.here.call(pair.peer, T, b"%d" % number) for number in range(4)]
        assert replies == [(7, b""), (0, b"bytes"), (-17, b"both"), (0, b"")]
        assert seen == [((A, PORT), b"%d" % number, number + 1, 1, T, True) for number in range(4)]

    on_duo(scenario)


def test_two_messages_a_call_and_one_release_in_the_end() -> None:
    async def scenario(pair: Duo) -> None:
        pair.there.register(T, lambda call: call.payload)
        sent = [courier._driver.sock.statistics for courier in (pair.here, pair.there)]
        await pair.here.call(pair.peer, T)
        before = [each().sent_messages for each in sent]
        for _ in range(100):
            await pair.here.call(pair.peer, T, b"x")
        assert [each().sent_messages - count for each, count in zip(sent, before, strict=True)] == [100, 100]
        await trio.sleep(1)
        assert [each().sent_messages - count for each, count in zip(sent, before, strict=True)] == [101, 101]

    on_duo(scenario)


@pytest.mark.parametrize("seed", range(8))
def test_many_calls_while_connections_are_cut(seed: int) -> None:
    async def scenario(pair: Duo) -> None:
        runs: Counter[bytes] = Counter()

        async def handle(call: IncomingCall) -> bytes:
            runs[call.payload] += 1
            await trio.sleep(0.001 * (runs.total() % 7))
            return call.payload[::-1]

        for courier in (pair.here, pair.there):
            courier.register(T, handle)

        async def calls(courier: rdsx.calls.Courier, to: tuple[str, int], name: str) -> None:
            for number in range(40):
                text = f"{name} {number}".encode()
                assert await courier.call(to, T, text) == (0, text[::-1])

        async def cut() -> None:
            while True:
                await trio.sleep(0.02)
                pair.network.cut(A, B, after_bytes=seed * 30)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            async with trio.open_nursery() as callers:
                for number in range(10):
                    callers.start_soon(calls, pair.here, pair.peer, f"a{number}")
                    callers.start_soon(calls, pair.there, (A, PORT), f"b{number}")
            nursery.cancel_scope.cancel()
        assert len(runs) == 800
        assert set(runs.values()) == {1}

    on_duo(scenario, seed)


async def raised_by(pair: Duo, msg_type: int = T, payload: bytes = b"") -> tuple[str, str, str]:
    with pytest.raises(CallError) as caught:
        await pair.here.call(pair.peer, msg_type, payload)
    return type(caught.value).__name__, caught.value.executed.value, str(caught.value)


def test_refusals_and_failures_say_what_is_known(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(pair: Duo) -> None:
        name, executed, text = await raised_by(pair)
        assert (name, executed) == ("NoHandlerError", "no")
        assert "0x21" in text
        assert "10.0.0.2" in text

        def fail(call: IncomingCall) -> Any:
            runs.append(call.seq)
            raise RuntimeError("the disk is full")

        runs: list[int] = []
        pair.there.register(T, fail, max_payload=3)
        name, executed, text = await raised_by(pair)
        assert (name, executed) == ("HandlerFailedError", "yes")
        assert "RuntimeError: the disk is full" in text
        assert len(runs) == 1
        name, executed, text = await raised_by(pair, payload=b"long")
        assert (name, executed) == ("RequestTooLongError", "no")
        assert "4 bytes" in text
        for wrong, words in (("text", "str"), (2**31, "32 bits"), (Reply(0, "text"), "bytes")):  # type: ignore[arg-type]
            pair.there.register(T, lambda call, wrong=wrong: wrong)  # type: ignore[misc]
            name, executed, text = await raised_by(pair)
            assert (name, executed) == ("HandlerFailedError", "yes")
            assert words in text
        pair.there.unregister(T)
        assert (await raised_by(pair))[:2] == ("NoHandlerError", "no")

    on_duo(scenario)
    assert "the disk is full" in caplog.text


def test_arguments_that_cannot_be_meant() -> None:
    async def scenario(pair: Duo) -> None:
        here, peer = pair.here, pair.peer
        for bad, words in (
            (lambda: here.start_call(peer, -1), "msg_type"),
            (lambda: here.start_call(peer, 2**32), "msg_type"),
            (lambda: here.start_call(peer, T, bytearray(3)), "bytearray"),
            (lambda: here.start_call(peer, T, bytes(2 << 20)), "2097152 bytes"),
            (lambda: here.start_call(peer, T, durable=True), "store"),
            (lambda: here.start_call("10.0.0.2", T), "host, port"),
            (lambda: here.start_call(["10.0.0.2", 1], T), "host, port"),
            (lambda: here.register(T, print, order="sorted"), "'sorted'"),
            (lambda: here.register(T, print, concurrency=0), "0"),
            (lambda: here.register(T, print, durability="journal"), "'journal'"),
            (lambda: here.register(-1, print), "msg_type"),
        ):
            with pytest.raises((ValueError, TypeError), match=words):
                bad()
        with pytest.raises(ValueError, match="'never'"):
            await here.call(peer, T, on_cancel="never")  # type: ignore[arg-type]

    on_duo(scenario)


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("window", 65536), ("resend_s", -1), ("lease_s", 1.5), ("max_holders", True)])
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"CallConfig.{name}.*{value!r}"):
        CallConfig(**{name: value})


def test_a_socket_that_is_not_bound() -> None:
    async def main() -> None:
        async with rdsx.open_node(A, transport=VirtualNetwork(1)) as node:
            with pytest.raises(rdsx.NotBoundError, match="bind"):
                async with rdsx.open_courier(node.socket()):
                    pass

    run(main)


# -- cancellation


def slow(pair: Duo, **terms: Any) -> list[str]:
    """A handler that takes ten seconds; what it did."""
    did: list[str] = []

    async def handle(call: IncomingCall) -> bytes:
        did.append("begun")
        try:
            await trio.sleep(10)
        except trio.Cancelled:
            did.append("cancelled")
            raise
        did.append("ended")
        return b"done"

    pair.there.register(T, handle, **terms)
    return did


@pytest.mark.parametrize(
    ("on_cancel", "cancellable", "known", "later", "took_s"),
    [
        ("abandon", False, "maybe", "maybe", 1.0),
        ("detach", False, "maybe", "yes", 1.0),
        ("cancel", True, "maybe", "yes", 1.0),
        ("cancel", False, "maybe", "yes", 1.0),
        ("settle", True, "yes", "yes", 1.0),
        ("settle", False, "maybe", "maybe", 2.0),
    ],
)
def test_what_cancelling_does(on_cancel: Any, cancellable: bool, known: str, later: str, took_s: float) -> None:
    async def scenario(pair: Duo) -> None:
        did = slow(pair, cancellable=cancellable)
        began_s = trio.current_time()
        pending = pair.here.start_call(pair.peer, T)
        assert pending.executed is Executed.NO  # there is no session yet
        with trio.move_on_after(1):
            await pending.wait(on_cancel=on_cancel)
        assert pending.executed.value == known
        assert trio.current_time() - began_s == pytest.approx(took_s, abs=0.1)
        await trio.sleep(15)
        assert pending.executed.value == later
        stopped = cancellable and on_cancel in ("cancel", "settle")
        assert did == ["begun", "cancelled" if stopped else "ended"]
        if on_cancel == "detach":
            assert await pending.wait() == (0, b"done")

    on_duo(scenario)


def test_a_call_that_was_not_sent_is_known_not_to_run() -> None:
    async def scenario(pair: Duo) -> None:
        did = slow(pair)
        pair.network.partition(A, B)
        pending = pair.here.start_call(pair.peer, T)
        with trio.move_on_after(100):
            await pending.wait(on_cancel="abandon")
        assert pending.executed is Executed.NO
        with trio.move_on_after(1):
            await pair.here.call(pair.peer, T)
        pair.network.heal(A, B)
        await trio.sleep(100)
        assert did == []

    on_duo(scenario)


def test_cancel_before_the_handler_begins() -> None:
    async def scenario(pair: Duo) -> None:
        did = slow(pair, concurrency=1)
        first, second = (pair.here.start_call(pair.peer, T) for _ in range(2))
        await trio.sleep(1)
        outcome = await second.cancel()
        assert (outcome.ending.name, outcome.executed) == ("CANCELLED_BEFORE_START", Executed.NO)
        with pytest.raises(rdsx.calls.CallCancelledError):
            await second.wait()
        assert await first.wait() == (0, b"done")
        assert did == ["begun", "ended"]

    on_duo(scenario)


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_cancelled_at_any_moment_nothing_is_left(steps: int) -> None:
    """A call is cancelled after so many turns of the scheduler; the next one works, and every table is empty in the end."""

    async def scenario(pair: Duo) -> None:
        runs = Counter[bytes]()

        async def handle(call: IncomingCall) -> int:
            runs[call.payload] += 1
            await trio.sleep(0.001)
            return 0

        pair.there.register(T, handle)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.here.call, pair.peer, T, b"cancelled")
                for _ in range(steps):
                    await trio.sleep(0.0002)
                scope.cancel()
        assert await pair.here.call(pair.peer, T, b"next") == (0, b"")
        assert runs[b"next"] == 1
        assert runs[b"cancelled"] <= 1

    on_duo(scenario, seed=steps)


# -- order, room


@pytest.mark.parametrize("order", ["start", "serial"])
def test_lanes_keep_order(order: Any) -> None:
    async def scenario(pair: Duo) -> None:
        log: list[tuple[str, bytes]] = []

        async def handle(call: IncomingCall) -> int:
            log.append(("begin", call.payload))
            await trio.sleep(0.01 * (3 - int(call.payload) % 3))
            log.append(("end", call.payload))
            return 0

        pair.there.register(T, handle, order=order)
        pending = []
        for number in range(30):
            pending.append(pair.here.start_call(pair.peer, T, b"%d" % number))
            if number % 7 == 3:
                pair.network.cut(A, B, after_bytes=number * 5)
            if number == 20:
                pending.pop().abandon()
        for each in pending:
            await each.wait()
        begun = [int(payload) for what, payload in log if what == "begin"]
        assert begun == sorted(begun)
        assert len(begun) >= 29
        if order == "serial":
            assert log == sorted(log, key=lambda entry: (int(entry[1]), entry[0] == "end"))
        else:
            assert log != sorted(log, key=lambda entry: (int(entry[1]), entry[0] == "end"))

    on_duo(scenario)


def test_a_small_window_and_a_busy_peer_slow_callers_down() -> None:
    async def scenario(pair: Duo) -> None:
        most = 0

        async def handle(call: IncomingCall) -> int:
            nonlocal most
            most = max(most, pair.there._driver.callee.running)
            await trio.sleep(0.01)
            return 0

        pair.there.register(T, handle)
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(pair.here.call, pair.peer, T, b"x")
        assert most == 2
        assert pair.there.statistics().counters["busy_running"] > 10
        assert pair.there.statistics().counters["handled_ok"] == 60

    on_duo(scenario, window=16, max_running=2)


def test_a_full_queue_makes_callers_wait() -> None:
    async def scenario(pair: Duo) -> None:
        pair.there.register(T, lambda call: 0)
        pair.network.partition(A, B)
        for _ in range(3):
            pair.here.start_call(pair.peer, T)
        with pytest.raises(trio.WouldBlock):
            pair.here.start_call(pair.peer, T)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(pair.here.call, pair.peer, T)
            await trio.sleep(1)
            assert pair.here.statistics().queued_calls == 3
            pair.network.heal(A, B)
        assert pair.there.statistics().counters["handled_ok"] == 23

    on_duo(scenario, max_queued_calls=3)


def test_large_requests_and_replies_that_fill_the_sockets() -> None:
    async def scenario(pair: Duo) -> None:
        pair.there.register(T, lambda call: call.payload[::-1])
        payload = bytes(range(256)) * 3000

        async with trio.open_nursery() as nursery:

            async def call() -> None:
                assert await pair.here.call(pair.peer, T, payload) == (0, payload[::-1])

            for _ in range(30):
                nursery.start_soon(call)

    on_duo(scenario)


def test_a_peer_that_cannot_be_reached_does_not_take_the_room_of_others() -> None:
    async def scenario(pair: Duo) -> None:
        pair.there.register(T, lambda call: 0)
        nowhere = [pair.here.start_call(("10.0.0.99", number), T, bytes(1000)) for number in range(10, 600)]
        with trio.fail_after(3):
            for _ in range(10):
                await pair.here.call(pair.peer, T, bytes(1000))
        for pending in nowhere:
            pending.abandon()
            assert pending.executed is Executed.NO

    on_duo(scenario)


# -- restarts and endings


def test_a_peer_that_restarts() -> None:
    async def main() -> None:
        network = VirtualNetwork(1)
        runs: Counter[bytes] = Counter()

        async def serve(life: int, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED) -> None:
            async def handle(call: IncomingCall) -> int:
                runs[call.payload] += 1
                await trio.sleep(5)
                return life

            with trio.CancelScope() as scope:
                async with (
                    rdsx.open_node(B, transport=network, config=node_config(10 + life)) as node,
                    rdsx.open_courier(await node.bind(PORT), config=CallConfig(seed=10 + life)) as courier,
                ):
                    courier.register(T, handle)
                    task_status.started(scope)
                    await trio.sleep_forever()

        async with (
            trio.open_nursery() as nursery,
            rdsx.open_node(A, transport=network, config=node_config(1)) as node,
            rdsx.open_courier(await node.bind(PORT), config=CallConfig(seed=1)) as courier,
        ):
            scope = await nursery.start(serve, 1)
            assert await courier.call((B, PORT), T, b"first") == (1, b"")
            lost = courier.start_call((B, PORT), T, b"lost")
            again = []
            answered = trio.Event()

            async def insist() -> None:
                again.append(await courier.call((B, PORT), T, b"again", resend_if_unknown=True))
                answered.set()

            nursery.start_soon(insist)
            await trio.sleep(1)
            network.crash(B)
            scope.cancel()
            scope = await nursery.start(serve, 2)
            with pytest.raises(rdsx.calls.PeerRestartedError) as caught:
                await lost.wait()
            assert caught.value.executed is Executed.MAYBE
            assert await courier.call((B, PORT), T, b"next") == (2, b"")
            await answered.wait()
            assert again == [(2, b"")]
            assert runs == {b"first": 1, b"lost": 1, b"again": 2, b"next": 1}
            scope.cancel()

    run(main)


def test_the_caller_goes_and_its_handlers_learn_of_it() -> None:
    async def main() -> None:
        network = VirtualNetwork(1)
        log = []

        async def patient(call: IncomingCall) -> None:
            await call.caller_gone.wait()
            log.append("gone")

        async def stopped(call: IncomingCall) -> None:
            try:
                await trio.sleep_forever()
            finally:
                log.append("stopped")

        async with (
            rdsx.open_node(B, transport=network, config=node_config(2)) as there,
            rdsx.open_courier(await there.bind(PORT), config=CallConfig(seed=2)) as courier,
        ):
            courier.register(1, patient)
            courier.register(2, stopped, on_caller_gone="cancel")
            async with (
                rdsx.open_node(A, transport=network, config=node_config(1)) as here,
                rdsx.open_courier(await here.bind(PORT), config=CallConfig(seed=1, grace_s=1)) as caller,
            ):
                pending = [caller.start_call((B, PORT), number) for number in (1, 2)]
                await trio.sleep(1)
            assert [each.executed for each in pending] == [Executed.MAYBE] * 2
            await trio.sleep(0.1)
            assert sorted(log) == ["gone", "stopped"]
            assert courier.statistics().sessions == 0

    run(main)


def test_closing_waits_for_handlers_and_refuses_the_rest() -> None:
    async def main() -> None:
        network = VirtualNetwork(1)
        async with (
            rdsx.open_node(A, transport=network, config=node_config(1)) as here,
            rdsx.open_node(B, transport=network, config=node_config(2)) as there,
            rdsx.open_courier(await here.bind(PORT), config=CallConfig(seed=1)) as caller,
        ):
            async with rdsx.open_courier(await there.bind(PORT), config=CallConfig(seed=2)) as courier:

                async def handle(call: IncomingCall) -> int:
                    await trio.sleep(int(call.payload))
                    return 1

                courier.register(T, handle)
                short, long = (caller.start_call((B, PORT), T, seconds) for seconds in (b"3", b"30"))
                await trio.sleep(1)
                closing_s = trio.current_time()
            assert trio.current_time() - closing_s < 7
            assert await short.wait() == (1, b"")
            with pytest.raises(rdsx.calls.CallCancelledError) as caught:
                await long.wait()
            assert caught.value.executed is Executed.YES
            with pytest.raises(trio.ClosedResourceError):
                courier.start_call((A, PORT), T)

    run(main)


def test_an_exception_in_the_block_leaves_as_it_is() -> None:
    async def main() -> None:
        with pytest.raises(KeyError):
            async with duo() as pair:
                slow(pair)
                pair.here.start_call(pair.peer, T)
                raise KeyError

    run(main)


# -- what is told


def test_statistics_are_served_to_peers() -> None:
    async def scenario(pair: Duo) -> None:
        pair.there.register(T, lambda call: b"held")
        await pair.here.call(pair.peer, T)
        told = json.loads((await pair.here.call(pair.peer, STATISTICS)).payload)
        assert told["life"] == pair.there.life
        (peer,) = told["peers"]
        assert peer["peer"] == f"{A}:{PORT}"
        assert told["counters"]["handled_ok"] == 1
        assert (await raised_by(Duo(pair.network, pair.there, pair.here, (A, PORT)), T))[0] == "NoHandlerError"

    on_duo(scenario)


def test_the_log_names_the_peer_whose_table_does_not_shrink(caplog: pytest.LogCaptureFixture) -> None:
    """The caller is a bare socket that opens, calls, and never says another word."""

    async def main() -> None:
        network = VirtualNetwork(1)
        async with (
            rdsx.open_node(A, transport=network, config=node_config(1)) as here,
            rdsx.open_node(B, transport=network, config=node_config(2)) as there,
            rdsx.open_courier(await there.bind(PORT), config=CallConfig(seed=2, query_after_s=1.0, max_holders=10)) as courier,
        ):
            courier.register(T, lambda call: b"held")
            with await here.bind(PORT) as sock:
                await sock.sendto(emit(Message(Kind.OPEN, seq=1, limits=Limits(5, (1, 1), 100, 1000))), (B, PORT))
                session = parse_untrusted(await sock.recv()).session
                for seq in range(1, 10):
                    await sock.sendto(emit(Message(Kind.CALL, courier.life, session, seq, 1, T)), (B, PORT))
                await trio.sleep(200)
                kinds = Counter(parse_untrusted(data).kind for data, _ in await sock.recvmmsg())
            assert kinds[Kind.STATUS] == 9
            assert 6 <= kinds[Kind.QUERY] <= 10  # less and less often
            assert courier.statistics().holders == 9  # nothing that was promised is dropped

    with caplog.at_level(logging.WARNING, "rdsx.calls"):
        run(main)
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "10.0.0.1" in text and "does not release 9 results" in text]) == 1
    assert len([text for text in said if "holders: 9 of at most 10" in text]) == 1


def test_bad_datagrams_are_counted_and_never_answered() -> None:
    async def main() -> None:
        network = VirtualNetwork(1)
        async with (
            rdsx.open_node(A, transport=network, config=node_config(1)) as here,
            rdsx.open_node(B, transport=network, config=node_config(2)) as there,
            rdsx.open_courier(await there.bind(PORT), config=CallConfig(seed=2)) as courier,
        ):
            with await here.bind(PORT) as sock:
                for bad in (b"", b"x" * 47, b"y" * 48, bytes(1000)):
                    await sock.sendto(bad, (B, PORT))
                await sock.flush()
                await trio.sleep(1)
                with pytest.raises(trio.WouldBlock):
                    sock.recv_nowait()
                assert courier.statistics().counters["bad_messages"] == 4
                assert courier.statistics().peers == ()

    run(main)


@pytest.mark.parametrize("first", ["callee", "caller"])
def test_closing_waits_for_nobody_who_has_gone(first: str) -> None:
    """Whoever closes first tells the other one: neither waits for answers that nobody can give any more."""

    async def main() -> None:
        network = VirtualNetwork(1)
        begun, closed = trio.Event(), {"caller": trio.Event(), "callee": trio.Event()}
        last = {"callee": "caller", "caller": "callee"}[first]

        async def live(name: str, host: str) -> None:
            async with rdsx.open_node(host, transport=network, config=node_config(1)) as node:
                async with rdsx.open_courier(await node.bind(PORT), config=CallConfig(seed=len(name))) as courier:
                    courier.register(T, lambda call: call.payload)
                    if name == "caller":
                        for _ in range(20):
                            await courier.call((B, PORT), T, b"x")
                        begun.set()
                    await begun.wait()
                    if name == last:
                        await closed[first].wait()
                    began_s = trio.current_time()
                assert trio.current_time() - began_s < 0.3
            closed[name].set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, "callee", B)
            nursery.start_soon(live, "caller", A)

    run(main)
