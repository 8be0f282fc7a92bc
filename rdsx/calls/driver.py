"""The driver of a courier: where the engines, the clock, the socket, the store and trio's tasks meet. Decides nothing.

The engines decide; the driver hands them datagrams and the time, and does what they ask. With a store a message leaves, and a handler
begins, when everything that was decided before it is on disk. Invariants: only `_receive` reads the socket; handlers run under the
courier's nursery; no task outlives the `open_courier` block.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import replace
from math import inf
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any

import trio

from rdsx.addresses import SockAddr, parse_sockaddr, resolve_sockaddr
from rdsx.calls.callee import Callee
from rdsx.calls.caller import CLOSE_RESEND, Caller
from rdsx.calls.committer import Commit, Committer
from rdsx.calls.config import CallConfig
from rdsx.calls.handlers import Handler, IncomingCall, Registration, Reply, Running, reply_of
from rdsx.calls.holder import Holder
from rdsx.calls.monitor import Monitor
from rdsx.calls.outcome import Ending, Outcome
from rdsx.calls.outgoing import Call
from rdsx.calls.pending import PendingCall
from rdsx.calls.records import Rows, restore_callee, restore_caller
from rdsx.calls.wire import EXTENSION_ROOM_BYTES, HEADER_BYTES, BadCall, Code, Kind, Message, emit, parse_untrusted
from rdsx.errors import CongestedError

if TYPE_CHECKING:
    from rdsx import RdsSocket
    from rdsx.calls.store import SqliteStore

__all__ = ["MAX_TYPE", "CourierDriver"]

log = logging.getLogger("rdsx.calls")

MAX_TYPE = 0xFFFFFFFF
BATCH = 256
WARN_INTERVAL_S = 60.0  # between two lines about the same thing that peers can provoke
TO_CALLEE = {Kind.OPEN, Kind.CALL, Kind.RELEASE, Kind.CANCEL, Kind.CLOSE, Kind.GONE}


class CourierDriver:
    """The inside of one `Courier`; `Outside` and `CalleeOutside` of its engines."""

    def __init__(self, sock: RdsSocket, config: CallConfig, store: SqliteStore | None, life: int, chance: random.Random) -> None:
        self.sock = sock
        self.store = store
        self.address: SockAddr = sock.getsockname()
        self.config = replace(config, max_payload_bytes=min(config.max_payload_bytes, set_buffers(sock, config.buffer_bytes)))
        self.caller = Caller(life, self.config, self, uniform=chance.random, draw_nonce=lambda: chance.randrange(1, 2**64))
        self.callee = Callee(life, self.config, self)
        self._committer = None if store is None else Committer(store, self._commit_done)
        self.handlers: dict[int, Registration] = {}
        self.counters: Counter[str] = Counter()
        self._monitor = Monitor(self.callee)
        self._warned_s: dict[str, float] = {}
        self._awaiting_room: set[SockAddr] = set()
        self._room = trio.lowlevel.ParkingLot()  # for calls that would exceed a peer's queue
        self._progress = trio.lowlevel.ParkingLot()  # for closing
        self.recovered: list[PendingCall] = []
        self._untold: dict[Call, None] = {}  # durable calls that have ended, which is not on disk yet
        self._timer = trio.CancelScope()
        self._timer_s = inf
        self._handler_nursery: trio.Nursery | None = None
        self._closing = False
        self.closed = False

    # -- what pending calls ask for

    def start(self, address: SockAddr, msg_type: int, payload: bytes, durable: bool) -> PendingCall:
        self.check_open()
        if not isinstance(payload, bytes):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        if not 0 <= msg_type <= MAX_TYPE:
            raise ValueError(f"msg_type is a number of 32 bits, not {msg_type!r}")
        if len(payload) > self.config.max_payload_bytes:
            raise ValueError(f"a request of {len(payload)} bytes; this courier sends at most {self.config.max_payload_bytes}")
        if durable and self.store is None:
            raise ValueError("durable=True needs a courier with a store: open_courier(..., store=SqliteStore(path))")
        now_s = trio.current_time()
        call = self.caller.start(self.caller.peer(address), msg_type, payload, now_s, durable=durable)
        pending = PendingCall(self, call)
        if call.outcome is not None:
            self.call_ended(call)
        self._attend(now_s)
        return pending

    def cancel(self, call: Call) -> None:
        now_s = trio.current_time()
        self.caller.cancel(call, now_s)
        self._attend(now_s)

    def abandon(self, call: Call) -> None:
        now_s = trio.current_time()
        self.caller.abandon(call, now_s)
        self._attend(now_s)

    async def wait_for_queue(self, address: SockAddr, payload_bytes: int) -> None:
        peer = self.caller.peer(address)
        while not self.caller.has_room(peer, payload_bytes):
            self.check_open()
            await self._room.park()

    async def resolve(self, peer: SockAddr) -> SockAddr:
        if is_known(peer, self.caller):
            return peer
        host, port = await resolve_sockaddr(peer)
        return host.sockaddr(port)

    def numeric(self, peer: SockAddr) -> SockAddr:
        if is_known(peer, self.caller):
            return peer
        host, port = parse_sockaddr(peer)
        return host.sockaddr(port)

    def check_open(self) -> None:
        if self._closing or self.closed:
            raise trio.ClosedResourceError("this courier was closed: its open_courier block has ended")

    # -- what the engines ask for

    def send(self, address: SockAddr, message: Message) -> bool:
        """See `outside.Outside`."""
        if address in self._awaiting_room:
            return False
        data = emit(message)
        if self._committer is not None and self._committer.is_behind:
            self._committer.staged.append((address, data))
            return True
        return self._transmit(address, data)

    def _transmit(self, address: SockAddr, data: bytes) -> bool:
        if self.closed:
            return True  # nobody is told anything any more
        try:
            self.sock.sendto_nowait(data, address)
        except (trio.WouldBlock, CongestedError):
            self._awaiting_room.add(address)
            assert self._nursery is not None
            self._nursery.start_soon(self._wait_for_room, address, name=f"rdsx.calls room for {address}")
            return False
        return True

    async def _wait_for_room(self, address: SockAddr) -> None:
        try:
            await self.sock.wait_writable(address)
        except OSError as error:
            self._warn("room", f"{address}: {error}")
        finally:
            self._awaiting_room.discard(address)
        now_s = trio.current_time()
        self.caller.writable(address, now_s)
        self.callee.writable(address, now_s)
        self._attend(now_s)

    def forget_sent(self, address: SockAddr) -> None:
        self.sock.cancel_sent_to(address)

    def call_ended(self, call: Call) -> None:
        if call.owner is not None:
            if call.number and self._committer is not None:  # a crash now would make it be under way again
                self._committer.ended.append(call)
                self._untold[call] = None
            else:
                call.owner._tell()
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

    async def open(self, nursery: trio.Nursery, rows: Rows) -> None:
        self._nursery = nursery
        now_s = trio.current_time()
        if self._committer is not None:
            self.caller.store_id = self._committer.store.identity
            self.caller.journal = self.callee.journal = self._committer.journal
            restore_callee(self.callee, rows, now_s)
            self.recovered = [PendingCall(self, call) for call in restore_caller(self.caller, rows, self.config, now_s)]
            for pending in self.recovered:
                if pending._call.outcome is not None:
                    self.call_ended(pending._call)
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
        sock, caller, callee, committer = self.sock, self.caller, self.callee, self._committer
        while True:
            batch = await sock.recvmmsg(BATCH)
            if committer is not None:
                await committer.wait_for_room()
            now_s = trio.current_time()
            for data, address in batch:
                try:
                    message = parse_untrusted(data)
                except BadCall as error:
                    self.counters["bad_messages"] += 1
                    self._warn("bad message", f"{address}: {error}")
                    continue
                if message.kind not in TO_CALLEE:
                    caller.handle(address, message, now_s)
                    continue
                callee.handle(address, message, now_s)
                if message.kind is Kind.CLOSE:
                    caller.peer_closes(address)
                elif message.limits is not None:
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
            registration = self.handlers[holder.msg_type]
            if self._committer is not None:
                self._committer.starts.append((holder, registration))
                if registration.durability == "transaction":
                    self.callee.begun(holder)  # they run in this order
            else:
                self._begin(holder, registration)
        if self._next_s() < self._timer_s:
            self._timer_s = self._timer.deadline = self._next_s()
        if self._committer is not None:
            self._committer.kick()
        if self._closing:
            self._progress.unpark_all()

    # -- handlers at work

    def _begin(self, holder: Holder, registration: Registration) -> None:
        call = IncomingCall(holder)
        holder.payload = b""
        if not registration.is_async:
            self.callee.begun(holder)
            self._finish(holder, *run_plain(registration.function, call))
            return
        holder.owner = Running(call, registration)
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
        if self.closed:
            return
        now_s = trio.current_time()
        for address, data in done.staged:
            if address in self._awaiting_room or not self._transmit_staged(address, data):
                self.caller.lost(address, now_s)
                self.callee.lost(address, now_s)
        for call in done.ended:
            self._untold.pop(call, None)
            call.owner._tell()
        for holder, registration in done.starts:
            self._begin(holder, registration)
        for holder, code, reply, text in done.results:
            self._finish(holder, code, reply, text)
            after = self.handlers[holder.msg_type].on_committed
            if after is not None and code is Code.OK:
                after(reply)
        self._attend(now_s)

    def _transmit_staged(self, address: SockAddr, data: bytes) -> bool:
        try:
            return self._transmit(address, data)
        except OSError as error:
            self._warn("send", f"{address}: {error}")
            return True

    # -- the end

    async def close(self) -> None:
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
        is_owed = bool(self.callee.sessions)  # somebody may wait for answers; else only for one to the end of its session
        self.callee.part()
        self.caller.part(now_s)
        self._attend(now_s)
        with trio.move_on_after(self.config.close_s):
            while not self.caller.is_parted():
                await self._progress.park()
        if self._committer is not None:
            await self._committer.drain()
        with trio.move_on_after(self.config.close_s if is_owed else self.config.close_s * CLOSE_RESEND):
            await self.sock.flush()  # a peer that has gone acknowledges nothing; one that has not would have asked again by then

    def give_up(self) -> None:
        """From now on nothing is sent, and nobody waits."""
        self._closing = self.closed = True
        queued = [call for peer in self.caller.peers.values() for call in peer.queue]
        for call in (*queued, *self.caller.live_calls(), *self._untold):
            call.outcome = Outcome(Ending.CLOSED if call.seq or call.number else Ending.NEVER_SENT, text="this courier was closed")
            if call.owner is not None:
                call.owner._tell()
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
