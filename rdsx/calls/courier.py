"""The courier: one RDS socket on which calls go out and come in. The public face; `driver` is the inside."""

from __future__ import annotations

import contextlib
import inspect
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import trio

from rdsx.addresses import SockAddr
from rdsx.calls.config import CallConfig
from rdsx.calls.driver import MAX_TYPE, CourierDriver
from rdsx.calls.errors import PeerForgotError, PeerRestartedError
from rdsx.calls.handlers import Durability, Handler, IncomingCall, Registration, Reply
from rdsx.calls.holder import Terms
from rdsx.calls.pending import OnCancel, PendingCall, check_on_cancel
from rdsx.calls.records import Rows
from rdsx.calls.statistics import CourierStatistics, statistics_of
from rdsx.errors import NotBoundError

if TYPE_CHECKING:
    from rdsx import RdsSocket
    from rdsx.calls.store import SqliteStore

__all__ = ["STATISTICS", "Courier", "open_courier"]

STATISTICS = MAX_TYPE
"""The type of a call that answers with the courier's statistics as JSON."""

F = TypeVar("F", bound=Handler)


@contextlib.asynccontextmanager
async def open_courier(sock: RdsSocket, *, config: CallConfig | None = None, store: SqliteStore | None = None) -> AsyncIterator[Courier]:
    """Open a courier on a bound socket, which is the courier's from now on and closed with it.

    Args:
        sock: a bound socket of any node; nobody else may receive from it.
        config: settings.
        store: where sessions and results survive a restart; None: they do not.

    Leaving the block refuses new calls, waits at most `grace_s` for running handlers and for the results of own calls, ends the
    sessions, waits at most `close_s` for peers, and closes the socket. Leaving it by an exception or a cancellation closes at once.

    Raises:
        OSError: the socket is not bound (ENOTCONN).
        StoreError: the store is in use, damaged, or another courier's.
    """
    if sock.getsockname()[1] == 0:
        raise NotBoundError("a courier needs a bound socket: await sock.bind(address) first")
    config = config or CallConfig()
    chance = random.Random(config.seed if config.seed is not None else secrets.randbits(128))
    life, rows = chance.randrange(1, 2**64), Rows()
    if store is not None:
        life, rows = await trio.to_thread.run_sync(store.open, sock.getsockname(), life)
    try:
        driver = CourierDriver(sock, config, store, life, chance)
    except BaseException:
        if store is not None:
            store.close()
        raise
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await driver.open(nursery, rows)
                yield Courier(driver)
                await driver.close()
            except BaseException as error:
                raised = error
            driver.give_up()
            nursery.cancel_scope.cancel()
    finally:
        sock.close()
        if store is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(store.close)
    if raised is not None:
        raise raised


@final
class Courier:
    """Made by `open_courier`. All methods must be called from the same trio run."""

    def __init__(self, driver: CourierDriver) -> None:
        self._driver = driver
        if driver.config.serve_statistics:
            self.register(STATISTICS, self._answer_statistics)

    def __repr__(self) -> str:
        return f"<rdsx.calls.Courier at {self.address}, {'closed' if self._driver.closed else f'life {self.life:#x}'}>"

    @property
    def address(self) -> SockAddr:
        """Its socket's."""
        return self._driver.address

    @property
    def config(self) -> CallConfig:
        """Its settings; `max_payload_bytes` as the socket allows."""
        return self._driver.config

    @property
    def life(self) -> int:
        """The number by which peers tell this run of the courier from others; with a store: this store's."""
        return self._driver.callee.life

    # -- handlers

    def register(
        self,
        msg_type: int,
        function: Handler,
        *,
        max_payload: int | None = None,
        order: Literal["none", "start", "serial"] = "none",
        lane: str = "",
        concurrency: int = 64,
        cancellable: bool = False,
        on_caller_gone: Literal["finish", "cancel"] = "finish",
        durability: Durability | None = None,
        on_committed: Callable[[Reply], None] | None = None,
    ) -> None:
        """Answer calls of one type with `function(call)`, from now on; a handler registered before for this type is replaced.

        Args:
            msg_type: 0..0xFFFFFFFE.
            function: async, then it runs as a task of the courier; or plain, then it runs between two datagrams and must be short. Returns
                a status, bytes, a `Reply` or None. What it raises is the call's final result: `HandlerFailedError` at the caller.
            max_payload: longest request; longer ones are refused. None: the courier's limit.
            order: "start": calls of a session begin in the order in which they were made. "serial": each begins after the one before it has
                ended.
            lane: ordered handlers with one lane wait for each other.
            concurrency: how many run at once; others wait.
            cancellable: `PendingCall.cancel` of the caller cancels it.
            on_caller_gone: "cancel": it is cancelled when nobody wants the result any more.
            durability: "volatile" is the only choice without a store. With one: "journal", the default: after a crash inside the
                handler its call ends as interrupted; "transaction": a plain function that writes through `call.transaction`, in the
                store's own transaction: exactly once.
            on_committed: with "transaction": called with the reply when the transaction is on disk, in the courier's own thread.

        Raises ValueError for arguments that do not go together.
        """
        durability = durability or ("volatile" if self._driver.store is None else "journal")
        is_async = inspect.iscoroutinefunction(function)
        self._check_terms(msg_type, order, concurrency, durability, is_async)
        limit = self._driver.config.max_payload_bytes if max_payload is None else max_payload
        terms = Terms(limit, order, lane, concurrency, journal=durability == "journal")
        self._driver.handlers[msg_type] = Registration(function, terms, is_async, cancellable, on_caller_gone, durability, on_committed)
        self._driver.callee.terms[msg_type] = terms

    def handler(self, msg_type: int, **terms: Any) -> Callable[[F], F]:
        """`register` as a decorator."""

        def decorate(function: F) -> F:
            self.register(msg_type, function, **terms)
            return function

        return decorate

    def unregister(self, msg_type: int) -> None:
        """Refuse calls of this type from now on. Those that have come already are still handled."""
        self._driver.callee.terms.pop(msg_type, None)

    def _check_terms(self, msg_type: int, order: str, concurrency: int, durability: str, is_async: bool) -> None:
        if not 0 <= msg_type <= MAX_TYPE:
            raise ValueError(f"msg_type is a number of 32 bits, not {msg_type!r}")
        if order not in ("none", "start", "serial"):
            raise ValueError(f"order is 'none', 'start' or 'serial', not {order!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1, not {concurrency}")
        allowed = ("volatile",) if self._driver.store is None else ("journal", "transaction")
        if durability not in allowed:
            raise ValueError(
                f"durability is {' or '.join(allowed)} {'with' if self._driver.store else 'without'} a store, not {durability!r}"
            )
        if durability == "transaction" and is_async:
            raise ValueError(
                "a handler with durability='transaction' is a plain function: a transaction open over an await stops all others"
            )

    # -- calling

    async def call(
        self,
        peer: SockAddr,
        msg_type: int,
        payload: bytes = b"",
        *,
        on_cancel: OnCancel = "abandon",
        durable: bool = False,
        resend_if_unknown: bool = False,
    ) -> Reply:
        """Call a peer's handler, which runs once, and return its result.

        Waits for room in the peer's queue, for a session, and for the result; for ever, if the peer never answers: use a cancel scope.
        `payload` is kept by reference until the call has ended.

        Args:
            peer: the address of a courier's socket; a host name is looked up.
            on_cancel: what cancelling does to a call that was sent. "abandon": it ends as MAYBE, at once. "cancel": the peer is asked to
                cancel, nobody waits. "settle": as "cancel", and wait, at most `settle_s`, until the truth is known. "detach": nothing.
                To see what is known afterwards, use `start_call` and look at `PendingCall.outcome`.
            durable: the call survives a restart of this courier, which needs a store: see `recovered_calls`. It is on disk before it is
                sent, and its end is before it is told.
            resend_if_unknown: make a new call when the peer has restarted or forgotten and nobody knows whether the handler ran: at least
                once instead of exactly once, for handlers that may run twice.

        Raises `CallError`: any end but a reply; `trio.ClosedResourceError`: the courier is closed; socket.gaierror: unknown host.
        """
        check_on_cancel(on_cancel)
        address = await self._driver.resolve(peer)
        while True:
            await self._driver.wait_for_queue(address, len(payload))
            pending = self._driver.start(address, msg_type, payload, durable)
            try:
                return await pending.wait(on_cancel=on_cancel)
            except (PeerRestartedError, PeerForgotError):
                if not resend_if_unknown:
                    raise

    def start_call(self, peer: SockAddr, msg_type: int, payload: bytes = b"", *, durable: bool = False) -> PendingCall:
        """Start a call and return at once. `trio.WouldBlock` if the peer's queue is full; the host must be numeric."""
        address = self._driver.numeric(peer)
        if not self._driver.caller.has_room(self._driver.caller.peer(address), len(payload)):
            raise trio.WouldBlock
        return self._driver.start(address, msg_type, payload, durable)

    def recovered_calls(self) -> list[PendingCall]:
        """The durable calls of an earlier run of this courier that had no outcome. They are under way again; wait for them."""
        return list(self._driver.recovered)

    def statistics(self) -> CourierStatistics:
        """A snapshot; its cost grows with the number of holders."""
        return statistics_of(self._driver.caller, self._driver.callee, self._driver.counters, trio.current_time())

    def _answer_statistics(self, call: IncomingCall) -> Reply:
        return Reply(0, json.dumps(self.statistics().as_json()).encode())
