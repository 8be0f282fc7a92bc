"""The courier: one RDS socket on which calls go out and come in. Here the engines, the clock, the socket, the store and tasks meet.

The engines decide; the courier hands them datagrams and the time, and does what they ask. With a store a message leaves, and a handler
begins, when everything that was decided before it is on disk. Invariants: only `_receive` reads the socket; handlers run under the
courier's nursery; no task outlives the `open_courier` block.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from math import inf
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import trio

from rdsx.addresses import SockAddr, parse_sockaddr, resolve_sockaddr
from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.committer import Commit, Committer
from rdsx.calls.config import CallConfig
from rdsx.calls.errors import PeerForgotError, PeerRestartedError
from rdsx.calls.handlers import Durability, Handler, IncomingCall, Registration, Reply, Running, reply_of
from rdsx.calls.holder import Holder, Terms
from rdsx.calls.monitor import Monitor
from rdsx.calls.outcome import Ending, Outcome
from rdsx.calls.outgoing import Call
from rdsx.calls.pending import OnCancel, PendingCall, check_on_cancel
from rdsx.calls.records import Rows, restore_callee, restore_caller
from rdsx.calls.statistics import CourierStatistics, statistics_of
from rdsx.calls.wire import EXTENSION_ROOM_BYTES, HEADER_BYTES, BadCall, Code, Kind, Message, emit, parse_untrusted
from rdsx.errors import CongestedError, NotBoundError

if TYPE_CHECKING:
    from rdsx import RdsSocket
    from rdsx.calls.store import SqliteStore

__all__ = ["STATISTICS", "Courier", "open_courier"]

log = logging.getLogger("rdsx.calls")

STATISTICS = 0xFFFFFFFF
"""The type of a call that answers with the courier's statistics as JSON."""
BATCH = 256
WARN_INTERVAL_S = 60.0  # between two lines about the same thing that peers can provoke
TO_CALLEE = {Kind.OPEN, Kind.CALL, Kind.RELEASE, Kind.CANCEL, Kind.CLOSE, Kind.GONE}
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
        courier = Courier(sock, config, store, life, chance)
    except BaseException:
        if store is not None:
            store.close()
        raise
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                await courier._open(nursery, rows)
                yield courier
                await courier._close()
            except BaseException as error:
                raised = error
            courier._give_up()
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

    def __init__(self, sock: RdsSocket, config: CallConfig, store: SqliteStore | None, life: int, chance: random.Random) -> None:
        self._sock = sock
        self._store = store
        self.address: SockAddr = sock.getsockname()
        self.config = replace(config, max_payload_bytes=min(config.max_payload_bytes, set_buffers(sock, config.buffer_bytes)))
        self.caller = Caller(life, self.config, self, uniform=chance.random, draw_nonce=lambda: chance.randrange(1, 2**64))
        self.callee = Callee(life, self.config, self)
        self._committer = None if store is None else Committer(store, self._commit_done)
        self._handlers: dict[int, Registration] = {}
        self._counters: Counter[str] = Counter()
        self._monitor = Monitor(self.callee)
        self._warned_s: dict[str, float] = {}
        self._awaiting_room: set[SockAddr] = set()
        self._room = trio.lowlevel.ParkingLot()  # for calls that would exceed a peer's queue
        self._progress = trio.lowlevel.ParkingLot()  # for closing
        self._recovered: list[PendingCall] = []
        self._timer = trio.CancelScope()
        self._timer_s = inf
        self._handler_nursery: trio.Nursery | None = None
        self._closing = False
        self._closed = False
        if self.config.serve_statistics:
            self.register(STATISTICS, self._answer_statistics)

    def __repr__(self) -> str:
        return f"<rdsx.calls.Courier at {self.address}, {'closed' if self._closed else f'life {self.life:#x}'}>"

    @property
    def life(self) -> int:
        """The number by which peers tell this run of the courier from others; with a store: this store's."""
        return self.callee.life

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

        Raises ValueError for arguments that do not go together.
        """
        durability = durability or ("volatile" if self._store is None else "journal")
        is_async = inspect.iscoroutinefunction(function)
        self._check_terms(msg_type, order, concurrency, durability, is_async)
        limit = self.config.max_payload_bytes if max_payload is None else max_payload
        terms = Terms(limit, order, lane, concurrency, journal=durability == "journal")
        self._handlers[msg_type] = Registration(function, terms, is_async, cancellable, on_caller_gone, durability)
        self.callee.terms[msg_type] = terms

    def handler(self, msg_type: int, **terms: Any) -> Callable[[F], F]:
        """`register` as a decorator."""

        def decorate(function: F) -> F:
            self.register(msg_type, function, **terms)
            return function

        return decorate

    def unregister(self, msg_type: int) -> None:
        """Refuse calls of this type from now on. Those that have come already are still handled."""
        self.callee.terms.pop(msg_type, None)

    def _check_terms(self, msg_type: int, order: str, concurrency: int, durability: str, is_async: bool) -> None:
        if not 0 <= msg_type <= STATISTICS:
            raise ValueError(f"msg_type is a number of 32 bits, not {msg_type!r}")
        if order not in ("none", "start", "serial"):
            raise ValueError(f"order is 'none', 'start' or 'serial', not {order!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency is at least 1, not {concurrency}")
        allowed = ("volatile",) if self._store is None else ("journal", "transaction")
        if durability not in allowed:
            raise ValueError(f"durability is {' or '.join(allowed)} {'with' if self._store else 'without'} a store, not {durability!r}")
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
            durable: the call survives a restart of this courier, which needs a store: see `recovered_calls`.
            resend_if_unknown: make a new call when the peer has restarted or forgotten and nobody knows whether the handler ran: at least
                once instead of exactly once, for handlers that may run twice.

        Raises `CallError`: any end but a reply; `trio.ClosedResourceError`: the courier is closed; socket.gaierror: unknown host.
        """
        check_on_cancel(on_cancel)
        address = await self._resolve(peer)
        while True:
            await self._wait_for_queue(address, len(payload))
            pending = self._start(address, msg_type, payload, durable)
            try:
                return await pending.wait(on_cancel=on_cancel)
            except (PeerRestartedError, PeerForgotError):
                if not resend_if_unknown:
                    raise

    def start_call(self, peer: SockAddr, msg_type: int, payload: bytes = b"", *, durable: bool = False) -> PendingCall:
        """Start a call and return at once. `trio.WouldBlock` if the peer's queue is full; the host must be numeric."""
        address = self._numeric(peer)
        if not self.caller.has_room(self.caller.peer(address), len(payload)):
            raise trio.WouldBlock
        return self._start(address, msg_type, payload, durable)

    def recovered_calls(self) -> list[PendingCall]:
        """The durable calls of an earlier run of this courier that had no outcome. They are under way again; wait for them."""
        return list(self._recovered)

    def statistics(self) -> CourierStatistics:
        """A snapshot; its cost grows with the number of holders."""
        return statistics_of(self.caller, self.callee, self._counters, trio.current_time())

    # -- what pending calls ask for

    def _start(self, address: SockAddr, msg_type: int, payload: bytes, durable: bool) -> PendingCall:
        self._check_open()
        if not isinstance(payload, bytes):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        if not 0 <= msg_type <= STATISTICS:
            raise ValueError(f"msg_type is a number of 32 bits, not {msg_type!r}")
        if len(payload) > self.config.max_payload_bytes:
            raise ValueError(f"a request of {len(payload)} bytes; this courier sends at most {self.config.max_payload_bytes}")
        if durable and self._store is None:
            raise ValueError("durable=True needs a courier with a store: open_courier(..., store=SqliteStore(path))")
        now_s = trio.current_time()
        call = self.caller.start(self.caller.peer(address), msg_type, payload, now_s, durable=durable)
        pending = PendingCall(self, call)
        self._attend(now_s)
        return pending

    def _cancel(self, call: Call) -> None:
        now_s = trio.current_time()
        self.caller.cancel(call, now_s)
        self._attend(now_s)

    def _abandon(self, call: Call) -> None:
        now_s = trio.current_time()
        self.caller.abandon(call, now_s)
        self._attend(now_s)

    async def _wait_for_queue(self, address: SockAddr, payload_bytes: int) -> None:
        peer = self.caller.peer(address)
        while not self.caller.has_room(peer, payload_bytes):
            self._check_open()
            await self._room.park()

    async def _resolve(self, peer: SockAddr) -> SockAddr:
        if is_known(peer, self.caller):
            return peer
        host, port = await resolve_sockaddr(peer)
        return host.sockaddr(port)

    def _numeric(self, peer: SockAddr) -> SockAddr:
        if is_known(peer, self.caller):
            return peer
        host, port = parse_sockaddr(peer)
        return host.sockaddr(port)

    def _check_open(self) -> None:
        if self._closing or self._closed:
            raise trio.ClosedResourceError("this courier was closed: its open_courier block has ended")

    # -- what the engines ask for

    def send(self, address: SockAddr, message: Message) -> bool:
        """See `caller.Outside`."""
        if address in self._awaiting_room:
            return False
        data = emit(message)
        if self._committer is not None and self._committer.is_behind:
            self._committer.staged.append((address, data))
            return True
        return self._transmit(address, data)

    def _transmit(self, address: SockAddr, data: bytes) -> bool:
        if self._closed:
            return True  # nobody is told anything any more
        try:
            self._sock.sendto_nowait(data, address)
        except (trio.WouldBlock, CongestedError):
            self._awaiting_room.add(address)
            assert self._nursery is not None
            self._nursery.start_soon(self._wait_for_room, address, name=f"rdsx.calls room for {address}")
            return False
        return True

    async def _wait_for_room(self, address: SockAddr) -> None:
        try:
            await self._sock.wait_writable(address)
        except OSError as error:
            self._warn("room", f"{address}: {error}")
        finally:
            self._awaiting_room.discard(address)
        now_s = trio.current_time()
        self.caller.writable(address, now_s)
        self.callee.writable(address, now_s)
        self._attend(now_s)

    def forget_sent(self, address: SockAddr) -> None:
        self._sock.cancel_sent_to(address)

    def call_ended(self, call: Call) -> None:
        if call.owner is not None:
            call.owner._note_ended()
        if self._room:
            self._room.unpark_all()

    def caller_gone(self, holder: Holder) -> None:
        running = holder.owner
        if isinstance(running, Running):
            running.call._note_gone()
            if running.registration.on_caller_gone == "cancel":
                running.scope.cancel()

    def stop(self, holder: Holder) -> None:
        running = holder.owner
        if isinstance(running, Running) and running.registration.cancellable:
            running.scope.cancel()

    # -- tasks

    async def _open(self, nursery: trio.Nursery, rows: Rows) -> None:
        self._nursery = nursery
        now_s = trio.current_time()
        if self._committer is not None:
            self.caller.store_id = self._committer.store.identity
            self.caller.journal = self.callee.journal = self._committer.journal
            restore_callee(self.callee, rows, now_s)
            self._recovered = [PendingCall(self, call) for call in restore_caller(self.caller, rows, self.config, now_s)]
            nursery.start_soon(self._committer.run, name=f"rdsx.calls store of {self.address}")
        self._handler_nursery = await nursery.start(self._hold_handlers)
        nursery.start_soon(self._receive, name=f"rdsx.calls receiver of {self.address}")
        nursery.start_soon(self._run_timers, name=f"rdsx.calls timers of {self.address}")
        nursery.start_soon(self._watch, name=f"rdsx.calls monitor of {self.address}")

    async def _hold_handlers(self, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        async with trio.open_nursery() as handlers:
            task_status.started(handlers)
            await trio.sleep_forever()

    async def _receive(self) -> None:
        sock, caller, callee, committer = self._sock, self.caller, self.callee, self._committer
        while True:
            batch = await sock.recvmmsg(BATCH)
            if committer is not None:
                await committer.wait_for_room()
            now_s = trio.current_time()
            for data, address in batch:
                try:
                    message = parse_untrusted(data)
                except BadCall as error:
                    self._counters["bad_messages"] += 1
                    self._warn("bad message", f"{address}: {error}")
                    continue
                if message.kind not in TO_CALLEE:
                    caller.handle(address, message, now_s)
                    continue
                callee.handle(address, message, now_s)
                if message.limits is not None:
                    caller.hint_restarted(address, message.limits.life, now_s)
            self._attend(now_s)

    async def _run_timers(self) -> None:
        while True:
            self._timer_s = self._next_s()
            with trio.CancelScope(deadline=self._timer_s) as self._timer:
                await trio.sleep_forever()
            now_s = trio.current_time()
            self.caller.tick(now_s)
            self.callee.tick(now_s)
            self._attend(now_s)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(self.config.monitor_interval_s)
            for text in self._monitor.check(trio.current_time()):
                log.warning("courier at %s: %s", self.address, text)
            if self.callee.counters["mismatches"]:
                self._warn("mismatch", f"{self.callee.counters['mismatches']} copies differed from the first: a caller has reused a number")

    def _next_s(self) -> float:
        return min(self.caller.next_s(), self.callee.next_s())

    def _attend(self, now_s: float) -> None:
        """After the engines had a turn: begin handlers, set the timer, have things written."""
        while self.callee.ready and (holder := self.callee.poll_start()) is not None:
            registration = self._handlers[holder.msg_type]
            if self._committer is not None:
                self._committer.starts.append((holder, registration))
                if registration.durability == "transaction":
                    self.callee.begun(holder)  # they run in this order
            else:
                self._begin(holder, registration, now_s)
        if self._next_s() < self._timer_s:
            self._timer_s = self._timer.deadline = self._next_s()
        if self._committer is not None:
            self._committer.kick()
        if self._closing:
            self._progress.unpark_all()

    # -- handlers at work

    def _begin(self, holder: Holder, registration: Registration, now_s: float) -> None:
        call = IncomingCall(holder)
        holder.payload = b""
        if not registration.is_async:
            self.callee.begun(holder)
            self._finish(holder, *run_plain(registration.function, call))
            return
        holder.owner = Running(call, registration, now_s)
        assert self._handler_nursery is not None
        self._handler_nursery.start_soon(self._run_handler, holder, name=f"rdsx.calls handler of type {holder.msg_type:#x}")

    async def _run_handler(self, holder: Holder) -> None:
        running: Running = holder.owner
        code, reply, text = Code.CANCELLED_WHILE_RUNNING, Reply(), ""
        if running.registration.terms.order != "none":
            self.callee.begun(holder)
            self._attend(trio.current_time())
        try:
            with running.scope:
                result: Any = running.registration.function(running.call)
                reply, code = reply_of(await result), Code.OK
        except Exception as error:
            code, text = Code.HANDLER_FAILED, describe(error, holder)
        finally:  # also when the courier ends: the record comes before the scope is left
            holder.owner = None
            self._finish(holder, code, reply, text)
        self._attend(trio.current_time())

    def _finish(self, holder: Holder, code: Code, reply: Reply, text: str) -> None:
        self.callee.finish(holder, code, trio.current_time(), status=reply.status, reply=reply.payload, text=text)

    def _commit_done(self, done: Commit) -> None:
        """What was decided is on disk: now it may be seen."""
        if self._closed:
            return
        now_s = trio.current_time()
        for address, data in done.staged:
            if address in self._awaiting_room or not self._transmit_staged(address, data):
                self.caller.lost(address, now_s)
                self.callee.lost(address, now_s)
        for holder, registration in done.starts:
            self._begin(holder, registration, now_s)
        for holder, code, reply, text in done.results:
            self._finish(holder, code, reply, text)
        self._attend(now_s)

    def _transmit_staged(self, address: SockAddr, data: bytes) -> bool:
        try:
            return self._transmit(address, data)
        except OSError as error:
            self._warn("send", f"{address}: {error}")
            return True

    def _answer_statistics(self, call: IncomingCall) -> Reply:
        return Reply(0, json.dumps(self.statistics().as_json()).encode())

    # -- the end

    async def _close(self) -> None:
        """In order, and bounded."""
        self._closing = True
        now_s = trio.current_time()
        self.callee.close()
        self.caller.close(now_s)
        self._room.unpark_all()
        with trio.move_on_after(self.config.grace_s):
            while self.callee.running or self.callee.ready or any(self.caller.live_calls()):
                await self._progress.park()
        assert self._handler_nursery is not None
        self._handler_nursery.cancel_scope.cancel()
        with trio.move_on_after(self.config.close_s):
            while self.callee.running:
                await self._progress.park()
        now_s = trio.current_time()
        self.callee.refuse_waiting(now_s)
        self.caller.part(now_s)
        self._attend(now_s)
        with trio.move_on_after(self.config.close_s):
            while not self.caller.is_parted():
                await self._progress.park()
        if self._committer is not None:
            await self._committer.drain()
        with trio.move_on_after(self.config.close_s):
            await self._sock.flush()

    def _give_up(self) -> None:
        """From now on nothing is sent, and nobody waits."""
        self._closing = self._closed = True
        for peer in self.caller.peers.values():
            for call in (*peer.queue, *(peer.session.live.values() if peer.session is not None else ())):
                call.outcome = Outcome(Ending.CLOSED if call.seq else Ending.NEVER_SENT, text="this courier was closed")
                self.call_ended(call)
        self._room.unpark_all()

    def _warn(self, subject: str, text: str) -> None:
        """A line in the log, unless there was one about the same a moment ago: strangers must not fill it."""
        now_s = trio.current_time()
        if now_s - self._warned_s.get(subject, -inf) >= WARN_INTERVAL_S:
            self._warned_s[subject] = now_s
            log.warning("courier at %s: %s: %s", self.address, subject, text)


def is_known(peer: object, caller: Caller) -> bool:
    """Whether it is the address of a peer, as it stands."""
    return isinstance(peer, tuple) and peer in caller.peers


def set_buffers(sock: RdsSocket, buffer_bytes: int) -> int:
    """Ask for large buffers; returns the longest payload that one datagram of this socket then has room for."""
    for option in (SO_SNDBUF, SO_RCVBUF):
        sock.setsockopt(SOL_SOCKET, option, buffer_bytes)
    size = sock.getsockopt(SOL_SOCKET, SO_SNDBUF)
    assert isinstance(size, int)
    longest = size // 2 - HEADER_BYTES - EXTENSION_ROOM_BYTES  # the kernel's habit: it tells twice what it gives
    if longest < 1:
        raise ValueError(f"SO_SNDBUF of {size // 2} bytes is too small for calls: raise NodeConfig.max_buffer_bytes")
    return longest


def run_plain(function: Handler, call: IncomingCall) -> tuple[Code, Reply, str]:
    """The result of a handler that is no coroutine function."""
    try:
        return Code.OK, reply_of(function(call)), ""
    except Exception as error:
        return Code.HANDLER_FAILED, Reply(), describe(error, call._holder)


def describe(error: Exception, holder: Holder) -> str:
    log.warning("handler of type %#x for %s raised", holder.msg_type, holder.session.record.address, exc_info=error)
    return f"{type(error).__name__}: {error}"
