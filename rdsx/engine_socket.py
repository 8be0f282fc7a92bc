"""EngineSocket: an RDS socket on our own engine, the face of one `_fast.Endpoint`.

The common case of every call is one call into `_fast`; what waits, fails or is rare stands below it. Invariant: whoever waits is
parked in exactly one lot, and is woken by the event it waits for or by `close()`.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
from collections import Counter
from collections.abc import Awaitable, Iterable
from math import inf
from typing import TYPE_CHECKING

import trio

from rdsx import ancillary, options
from rdsx._fast import Endpoint, Path
from rdsx.addresses import Host, SockAddr, parse_sockaddr, resolve_sockaddr
from rdsx.errors import CongestedError, MessageTooLongError
from rdsx.lot import Lot
from rdsx.memory import DmaBuf, Lease
from rdsx.one_sided import Task
from rdsx.operations import RdmaOperation
from rdsx.sockets import ControlMessage, RdsSocket, check_size, check_tos, numeric_sockaddr
from rdsx.statistics import SocketStatistics

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.driver import Driver

__all__ = ["EngineSocket"]

MSG_OOB = stdlib_socket.MSG_OOB
MSG_PEEK = stdlib_socket.MSG_PEEK
MSG_TRUNC = stdlib_socket.MSG_TRUNC
MSG_DONTWAIT = stdlib_socket.MSG_DONTWAIT
MSG_ERRQUEUE = stdlib_socket.MSG_ERRQUEUE
SOL_SOCKET = stdlib_socket.SOL_SOCKET

SENT, CONGESTED, FULL, TOO_LONG, NO_ROUTE = range(5)  # codes of Endpoint.submit
NOT_TRIED = -100  # of Pace.submit


class Waiting:
    """Where the tasks of one socket wait: for messages, for room and acknowledgements, and for congestion to end elsewhere."""

    __slots__ = ("congested", "receivers", "senders")

    def __init__(self) -> None:
        self.receivers = Lot()
        self.senders = Lot()
        self.congested: Counter[Lot] = Counter()  # the driver's lots, and how many of our tasks are in each


class EngineSocket(RdsSocket):
    """Made by `Driver.socket()`. What only waiting needs is made when somebody waits: an idle socket takes less than 1 KiB."""

    __slots__ = ("_core", "_driver", "_endpoint", "_waiting", "options")

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self._driver: Driver = driver
        self._core = driver.core
        self._endpoint: Endpoint = Endpoint(driver.config.send_buffer_bytes, driver.config.receive_buffer_bytes)
        self._endpoint.owner = self
        self._waiting: Waiting | None = None
        self.options: options.SocketOptions = options.SocketOptions()

    def _bind(self, host: Host, port: int, address: SockAddr) -> int:
        return self._driver.bind(self._endpoint, host, port, address)

    # -- sending

    async def sendto(self, data: Buffer, address: SockAddr) -> int:
        try:
            length = self._pace.submit(self._endpoint, data, address)
        except (OverflowError, TypeError):
            parse_sockaddr(address)  # says what is wrong with the address
            raise
        if length < 0:
            code = -length
            if length == NOT_TRIED:
                if self._pace.due():
                    await self._driver.pause()
                code = self._submit(data, address)
            if code != SENT:
                await self._send_slowly(data, address, code)
            length = memoryview(data).nbytes
        if self._core.attention:
            self._driver.attend()
        return length

    def sendto_nowait(self, data: Buffer, address: SockAddr) -> int:
        code = self._submit(data, address)
        if code == NO_ROUTE:
            code = self._endpoint.submit_to(data, *self._route(numeric_sockaddr(address), address))
        self._raise_for(code, data, address)
        if self._core.attention:
            self._driver.attend()
        return len(data) if isinstance(data, bytes) else memoryview(data).nbytes

    async def sendmmsg(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        if self._pace.due():
            await self._driver.pause()
        batch = messages if isinstance(messages, list) else list(messages)
        done = 0
        try:
            while True:
                done = self._submit_many(batch, done)
                if self._core.attention:
                    self._driver.attend()
                if done == len(batch):
                    return done
                if self._endpoint.code != SENT:
                    data, address = batch[done]
                    await self._send_slowly(data, address, self._endpoint.code)
                    done += 1
        except (OSError, TypeError, ValueError, OverflowError, trio.Cancelled):
            if done:
                return done
            raise

    def sendmmsg_nowait(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        self._check_bound()
        batch = messages if isinstance(messages, list) else list(messages)
        done = 0
        try:
            while done < len(batch):
                done = self._submit_many(batch, done)
                if done < len(batch):
                    self.sendto_nowait(*batch[done])
                    done += 1
        except (OSError, TypeError, ValueError, OverflowError, trio.WouldBlock):
            if not done:
                raise
        if self._core.attention:
            self._driver.attend()
        return done

    async def sendmsg(
        self, buffers: Iterable[Buffer], ancdata: Iterable[tuple[int, int, Buffer]] = (), flags: int = 0, address: SockAddr | None = None
    ) -> int:
        self._check_open()
        if flags & ~MSG_DONTWAIT:
            raise OSError(errno.EOPNOTSUPP, f"flags {flags:#x}: RDS sends take only MSG_DONTWAIT")
        destination = self._destination() if address is None else address
        data = b"".join(buffers)
        self._check_bound()
        cookie = ancillary.sent_cookie(ancdata)
        if cookie:
            self._driver.one_sided.regions.find(self, cookie)
            return await self._send_cookie(data, destination, cookie, flags)
        if flags & MSG_DONTWAIT:
            if self._pace.due():
                await self._driver.pause()
            try:
                return self.sendto_nowait(data, destination)
            except trio.WouldBlock:
                raise BlockingIOError(errno.EAGAIN, "the send queue is full") from None
        return await self.sendto(data, destination)

    async def _send_cookie(self, data: bytes, address: SockAddr, cookie: int, flags: int) -> int:
        """sendmsg() of a message that brings the cookie of registered memory."""
        if self._pace.due():
            await self._driver.pause()
        code = self._endpoint.submit_to(data, *await self._path_to(address), cookie)
        if flags & MSG_DONTWAIT:
            try:
                self._raise_for(code, data, address)
            except trio.WouldBlock:
                raise BlockingIOError(errno.EAGAIN, "the send queue is full") from None
        elif code != SENT:
            await self._send_slowly(data, address, code, cookie)
        self._driver.attend()
        return len(data)

    async def wait_writable(self, address: SockAddr | None = None) -> None:
        if self._pace.due():
            await self._driver.pause()
        address = self._destination() if address is None else address
        self._check_bound()
        parsed = await resolve_sockaddr(address)
        while True:
            self._check_open()
            path, port = self._route(parsed, address)
            if path.foreign.test(port):
                await self._park_congested(path, port)
            elif self._endpoint.sent_bytes >= self._endpoint.send_limit:
                await self._park_sender()
            else:
                return

    async def flush(self, address: SockAddr | None = None) -> None:
        if self._pace.due():
            await self._driver.pause()
        self._check_open()
        if address is None:
            while self._endpoint.unacknowledged:
                await self._park_sender()
                self._check_open()
            return
        self._check_bound()
        path, port = self._route(await resolve_sockaddr(address), address)
        while path.pending_to(self._endpoint, port):
            await self._park_sender()
            self._check_open()

    def cancel_sent_to(self, address: SockAddr) -> int:
        self._check_bound()
        host, port = numeric_sockaddr(address)
        assert self._host is not None
        path = self._driver.known_route(self._host.key, host, self._endpoint.tos)
        cancelled = 0 if path is None else self._endpoint.cancel(path, port)
        self._driver.attend()
        return cancelled

    # -- receiving

    async def recvfrom(self, bufsize: int | None = None, flags: int = 0) -> tuple[bytes, SockAddr]:
        if bufsize is None and not flags and (taken := self._pace.take(self._endpoint)) is not None:
            if self._core.attention:
                self._driver.attend()
            return taken
        if self._pace.due():
            await self._driver.pause()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        if flags:
            data, _, _, address = await self._recvmsg(bufsize, 0, flags, notifications=False)
            return data, address or ()
        while (taken := self._endpoint.take()) is None:
            await self._receivable()
        if self._core.attention:
            self._driver.attend()
        return taken if bufsize is None or len(taken[0]) <= bufsize else (taken[0][:bufsize], taken[1])

    def recvfrom_nowait(self, bufsize: int | None = None) -> tuple[bytes, SockAddr]:
        self._check_open()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        taken = self._endpoint.take()
        if taken is None:
            raise trio.WouldBlock
        if self._core.attention:
            self._driver.attend()
        return taken if bufsize is None or len(taken[0]) <= bufsize else (taken[0][:bufsize], taken[1])

    async def recvmmsg(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        if self._pace.due():
            await self._driver.pause()
        check_size("limit", limit, at_least=1)
        while not (taken := self._endpoint.take_many(limit)):
            await self._receivable()
        if self._core.attention:
            self._driver.attend()
        return taken

    def recvmmsg_nowait(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        self._check_open()
        check_size("limit", limit, at_least=1)
        taken = self._endpoint.take_many(limit)
        if not taken:
            raise trio.WouldBlock
        if self._core.attention:
            self._driver.attend()
        return taken

    async def recvmsg(
        self, bufsize: int | None = None, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[ControlMessage], int, SockAddr | None]:
        if self._pace.due():
            await self._driver.pause()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        check_size("ancbufsize", ancbufsize)
        return await self._recvmsg(bufsize, ancbufsize, flags, notifications=True)

    async def _recvmsg(
        self, bufsize: int | None, ancbufsize: int, flags: int, *, notifications: bool
    ) -> tuple[bytes, list[ControlMessage], int, SockAddr | None]:
        self._check_open()
        if flags & MSG_OOB:
            return b"", [], 0, None
        if flags & MSG_ERRQUEUE:
            raise BlockingIOError(errno.EAGAIN, "the error queue of an RDS socket is always empty")
        endpoint = self._endpoint
        while True:
            if notifications and endpoint.monitor_pending:
                mask, endpoint.monitor_pending = endpoint.monitor_pending, 0
                control, msg_flags = ancillary.fit([ancillary.CongUpdate(mask).control()], ancbufsize)
                return b"", control, msg_flags, None
            found = endpoint.peek()
            if found is not None:
                break
            if flags & MSG_DONTWAIT:
                raise BlockingIOError(errno.EAGAIN, "no message")
            await self._receivable(notifications=notifications)
        data, address, cookie, stamp_s = found
        if not flags & MSG_PEEK:
            endpoint.take()
            self._driver.attend()
        control = []
        if cookie:
            control.append(ancillary.RdmaDest(cookie).control())
        if self.options.timestamp and stamp_s:
            control.append((SOL_SOCKET, self.options.timestamp, ancillary.Timestamp.at(stamp_s).pack()))
        control, msg_flags = ancillary.fit(control, ancbufsize)
        if bufsize is not None and len(data) > bufsize:
            data = data[:bufsize]
            msg_flags |= MSG_TRUNC
        return data, control, msg_flags, address

    # -- options and state

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        self._check_open()
        options.set_option(self, level, option, value)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        self._check_open()
        return options.get_option(self, level, option, buflen)

    def set_tos(self, tos: int) -> None:
        check_tos(tos)
        self._check_open()
        if self._host is None or self._driver.transport_name == "loop":
            raise OSError(errno.ENOTTY, "only a socket bound to an address of a transport has a type of service; loopback has none")
        if self._endpoint.sent_messages:
            raise OSError(errno.EINVAL, "the type of service must be chosen before the first message is sent")
        if self._endpoint.tos:
            raise OSError(errno.EINVAL, f"the type of service is {self._endpoint.tos} already: it is chosen once")
        if self._driver.has_tos:  # TCP maps every value to 0
            self._endpoint.set_tos(tos)

    def get_tos(self) -> int:
        self._check_open()
        return self._endpoint.tos

    def statistics(self) -> SocketStatistics:
        endpoint = self._endpoint
        return SocketStatistics(
            sent_messages=endpoint.sent_messages,
            received_messages=endpoint.received_messages,
            unacknowledged_messages=endpoint.unacknowledged,
            unacknowledged_bytes=endpoint.sent_bytes,
            queued_messages=endpoint.queued,
            queued_bytes=endpoint.received_bytes,
            congested=endpoint.congested,
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._endpoint.close()
        self._endpoint.owner = None
        if self._waiting is not None:
            for lot in (self._waiting.receivers, self._waiting.senders, *self._waiting.congested):
                lot.unpark_all()
        self._driver.forget_socket(self)
        self._driver.attend()

    # -- memory and operations

    async def get_mr(self, buffer: Buffer | DmaBuf, destination: SockAddr | None = None, *, use_once: bool = False) -> int:
        if self._pace.due():
            await self._driver.pause()
        self._check_bound()
        return await self._driver.one_sided.get_mr(self, buffer, destination, use_once=use_once)

    def free_mr(self, cookie: int, *, invalidate: bool = True) -> None:
        self._check_open()
        self._driver.one_sided.free_mr(self, cookie, invalidate=invalidate)

    async def _start(
        self, handle: RdmaOperation, lease: Lease, offset: int, message: Buffer, operands: tuple[int, ...], *, fence: bool
    ) -> None:
        if self._pace.due():
            await self._driver.pause()
        await self._driver.one_sided.carry_out(Task(self, handle, lease, offset, operands, fence=fence), message, handle.address)

    # -- helpers

    def _submit(self, data: Buffer, address: SockAddr) -> int:
        """Endpoint.submit() with errors that name what is wrong."""
        if self._host is None or self._closed:
            self._check_bound()
        try:
            return self._endpoint.submit(data, address)
        except (OverflowError, TypeError, ValueError):
            parse_sockaddr(address)  # says what is wrong with the address, if that is it
            raise

    def _submit_many(self, batch: list[tuple[Buffer, SockAddr]], start: int) -> int:
        if self._host is None or self._closed:
            self._check_bound()
        before = self._endpoint.sent_messages
        try:
            return self._endpoint.submit_many(batch, start)
        except (OverflowError, TypeError, ValueError):
            done = start + self._endpoint.sent_messages - before
            if done > start:
                return done
            if isinstance(batch[start], tuple) and len(batch[start]) == 2:
                parse_sockaddr(batch[start][1])
            raise

    def _route(self, parsed: tuple[Host, int], address: SockAddr) -> tuple[Path, int]:
        assert self._host is not None
        host, port = parsed
        return self._driver.route(self._host.key, host, address, self._endpoint.tos), port

    def _raise_for(self, code: int, data: Buffer, address: SockAddr) -> None:
        if code == SENT:
            return
        if code == CONGESTED:
            self._core.count("cong_send_error")
            if self._endpoint.monitored:
                self._endpoint.monitor_wanted |= 1 << (address[1] % 64)
            raise CongestedError(f"port {address[1]} of {address[0]} is congested; await wait_writable({address!r}), or use sendto()")
        if code == FULL:
            raise trio.WouldBlock
        length, limit = memoryview(data).nbytes, self._core.max_message_bytes
        remedy = f"setsockopt(SOL_SOCKET, SO_SNDBUF, {length}) allows it" if length <= limit else "cut it into smaller messages"
        raise MessageTooLongError(f"{length} bytes; this socket sends at most {min(limit, self._endpoint.send_limit)}; {remedy}")

    async def _path_to(self, address: SockAddr) -> tuple[Path, int]:
        """The path to a peer, and the port there."""
        parsed = await resolve_sockaddr(address)
        self._check_bound()
        return self._route(parsed, address)

    async def _wait_after(self, code: int, data: Buffer, path: Path, port: int, address: SockAddr) -> None:
        """Wait for what a message needs that was not queued: its port to be free, or room. Raises for what no waiting helps."""
        if code == CONGESTED:
            self._core.count("cong_send_blocked")
            await self._park_congested(path, port)
        elif code == FULL:
            with options.time_limit(self.options.send_timeout_s):
                while self._endpoint.sent_bytes >= self._endpoint.send_limit and not self._closed:
                    await self._park_sender()
        else:
            self._raise_for(code, data, address)
        self._check_open()

    async def _send_slowly(self, data: Buffer, address: SockAddr, code: int, cookie: int = 0) -> None:
        """A message that was not simply queued: make a route, or wait for what it needs.

        The path is looked up again after each wait: the driver forgets peers that never spoke and that nobody waits for.
        """
        parsed: tuple[Host, int] | None = None
        while code != SENT:
            parsed = parsed or await resolve_sockaddr(address)
            self._check_open()
            if code != NO_ROUTE:
                await self._wait_after(code, data, *self._route(parsed, address), address)
            code = self._endpoint.submit_to(data, *self._route(parsed, address), cookie)
        if self._core.attention:
            self._driver.attend()

    @property
    def _lots(self) -> Waiting:
        """Where to wait; made now if nobody has waited yet."""
        if self._waiting is None:
            self._waiting = Waiting()
        return self._waiting

    async def _park_sender(self) -> None:
        lot = self._lots.senders
        self._endpoint.send_waiting = True
        try:
            await lot.park()
        finally:
            self._endpoint.send_waiting = len(lot) > 0

    async def _park_congested(self, path: Path, port: int) -> None:
        """Park until the port at the other end may be free, or this socket is closed."""
        lot, lots = self._driver.congestion_lot(path, port), self._lots.congested
        lots[lot] += 1
        try:
            await lot.park()
        finally:
            lots[lot] -= 1
            if not lots[lot]:
                del lots[lot]

    def _receivable(self, *, notifications: bool = False) -> Awaitable[None]:
        """Wait until there is a message to receive, or (if asked for) a notification: to be awaited right away."""
        waiting, limit_s = self._wait_receivable(notifications), self.options.receive_timeout_s
        return waiting if limit_s == inf else options.within(limit_s, waiting)

    async def _wait_receivable(self, notifications: bool) -> None:
        endpoint, lot = self._endpoint, self._lots.receivers
        if self._driver.config.busy_poll_s and self._driver.busy_poll(endpoint):
            return
        while not (endpoint.queued or (notifications and endpoint.monitor_pending)):
            self._check_open()
            endpoint.receive_waiting = True
            try:
                await lot.park()
            finally:
                endpoint.receive_waiting = len(lot) > 0
            self._pace.yielded()

    def _wake(self) -> None:
        """The endpoint's state changed: let waiters look again."""
        if self._waiting is not None:
            if self._endpoint.queued or self._endpoint.monitor_pending:
                self._waiting.receivers.unpark_all()
            self._waiting.senders.unpark_all()

    def _congestion_freed(self, freed: int) -> None:
        """Ports (mod 64) that may be free again, somewhere."""
        endpoint = self._endpoint
        endpoint.monitor_pending |= endpoint.monitor_wanted & freed
        endpoint.monitor_wanted &= ~freed & (2**64 - 1)
        if endpoint.monitor_pending and self._waiting is not None:
            self._waiting.receivers.unpark_all()

    def _set_monitored(self, on: bool) -> None:
        self._endpoint.monitored = on
        if on:
            self._driver.monitors[self] = None
        else:
            self._driver.monitors.pop(self, None)
            self._endpoint.monitor_wanted = self._endpoint.monitor_pending = 0

    def _raised_send_limit(self) -> None:
        if self._waiting is not None:
            self._waiting.senders.unpark_all()
