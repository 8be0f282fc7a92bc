"""RdsSocket: the face of an endpoint, with the method names of `trio.socket`.

The common case of every call is one call into `_fast`; what waits, fails or is rare stands below it. Invariant: whoever waits is
parked in exactly one lot, and is woken by the event it waits for or by `close()`.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from rdsx import ancillary, options
from rdsx._fast import Endpoint, Path
from rdsx.addresses import Host, SockAddr, bad_address, parse_sockaddr, resolve_sockaddr
from rdsx.errors import CongestedError, MessageTooLongError, NotBoundError
from rdsx.statistics import SocketStatistics

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.driver import Driver

__all__ = ["RdsSocket"]

MSG_OOB = stdlib_socket.MSG_OOB
MSG_PEEK = stdlib_socket.MSG_PEEK
MSG_TRUNC = stdlib_socket.MSG_TRUNC
MSG_CTRUNC = stdlib_socket.MSG_CTRUNC
MSG_DONTWAIT = stdlib_socket.MSG_DONTWAIT
MSG_ERRQUEUE = stdlib_socket.MSG_ERRQUEUE
SOL_SOCKET = stdlib_socket.SOL_SOCKET

SENT, CONGESTED, FULL, TOO_LONG, NO_ROUTE = range(5)  # codes of Endpoint.submit

ControlMessage = tuple[int, int, bytes]


class RdsSocket:
    """A reliable datagram socket: bound to one address, sending to and receiving from any number of peers.

    Made by `Node.socket()`. Messages to one destination port arrive in order, once, for as long as both ends live; messages stay
    queued while a peer cannot be reached. Every async method is a checkpoint; one that need not wait yields to the scheduler only
    now and then (`NodeConfig.yield_interval_s`). Cancelling a send means: not queued. Cancelling a receive: nothing was taken.

    Any number of tasks may use one socket at once. After `close()` every method but `close()` and `statistics()` raises
    `trio.ClosedResourceError`, in waiting tasks too; `async for` ends.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver: Driver = driver
        self._core = driver.core
        self._pace = driver.pace
        self._endpoint: Endpoint = Endpoint(driver.config.send_buffer_bytes, driver.config.receive_buffer_bytes)
        self._endpoint.owner = self
        self._host: Host | None = None
        self._peer_address: SockAddr | None = None
        self._closed = False
        self._receivers = trio.lowlevel.ParkingLot()
        self._senders = trio.lowlevel.ParkingLot()
        self._congested_lots: Counter[trio.lowlevel.ParkingLot] = Counter()
        self.options: options.SocketOptions = options.SocketOptions()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"bound to {self.getsockname()}" if self._host else "unbound"
        return f"<rdsx.RdsSocket {state}>"

    # -- names

    async def bind(self, address: SockAddr) -> None:
        """Bind to a local address of the node, for good. Port 0 picks a free one; 1 is reserved.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL (not an address of this node), EINVAL (already bound, or not a unicast address).
        """
        if self._pace.due():
            await self._driver.pause()
        self._check_open()
        host, port = await resolve_sockaddr(address)
        self._check_open()
        if self._host is not None:
            raise bad_address(errno.EINVAL, address, f"the socket is already bound to {self.getsockname()}; rebinding is not possible")
        if not host.is_usable:
            raise bad_address(errno.EINVAL, address, "there is no wildcard bind: give one local unicast address")
        self._driver.bind(self._endpoint, host, port, address)
        self._host = host

    async def connect(self, address: SockAddr) -> None:
        """Set the default destination of `send()`. Contacts nobody, checks nothing but the address; may be repeated."""
        if self._pace.due():
            await self._driver.pause()
        self._check_open()
        host, port = await resolve_sockaddr(address)
        self._check_open()
        if host.ip.version == 4 and host.ip.is_unspecified:
            raise bad_address(errno.EDESTADDRREQ, address, "give the peer's address")
        if not host.is_usable:
            wrong_class = host.is_ipv6 and not host.ip.is_link_local  # a link-local one only lacks its scope
            raise bad_address(errno.EPROTOTYPE if wrong_class else errno.EINVAL, address, "give a unicast address, link-local with scope")
        self._peer_address = host.sockaddr(port)

    def getsockname(self) -> SockAddr:
        """The bound address; ("0.0.0.0", 0) while unbound."""
        self._check_open()
        return self._host.sockaddr(self._endpoint.port) if self._host is not None else ("0.0.0.0", 0)

    def getpeername(self) -> SockAddr:
        """The default destination. OSError ENOTCONN if there is none."""
        self._check_open()
        if self._peer_address is None:
            raise NotBoundError("the socket is not connected: call connect() first")
        return self._peer_address

    # -- sending

    async def sendto(self, data: Buffer, address: SockAddr) -> int:
        """Queue one datagram; returns its length.

        Waits while the destination port is congested, and while the socket has SO_SNDBUF bytes unacknowledged. An unreachable peer is
        no error: the message waits for it. `bytes` are kept by reference until acknowledged, other buffers are copied now.
        Cancelled: not queued.

        Raises OSError: EMSGSIZE, ENOTCONN (not bound), EINVAL (not a unicast address), EOPNOTSUPP (IPv4 to IPv6), ENETUNREACH
        (transport "loop"); TypeError and OverflowError for what is no datagram or no port; socket.gaierror for an unknown host.
        """
        if self._pace.due():
            await self._driver.pause()
        code = self._submit(data, address)
        if code != SENT:
            await self._send_slowly(data, address, code)
        elif self._core.attention:
            self._driver.attend()
        return len(data) if isinstance(data, bytes) else memoryview(data).nbytes

    def sendto_nowait(self, data: Buffer, address: SockAddr) -> int:
        """sendto() that never waits: `trio.WouldBlock` when the send queue is full, `CongestedError` when the port is congested.
        The host must be numeric."""
        code = self._submit(data, address)
        if code == NO_ROUTE:
            code = self._endpoint.submit_to(data, *self._route(numeric_sockaddr(address), address))
        self._raise_for(code, data, address)
        if self._core.attention:
            self._driver.attend()
        return len(data) if isinstance(data, bytes) else memoryview(data).nbytes

    async def send(self, data: Buffer) -> int:
        """sendto() the address given to connect()."""
        return await self.sendto(data, self._destination())

    def send_nowait(self, data: Buffer) -> int:
        return self.sendto_nowait(data, self._destination())

    async def sendmmsg(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        """Queue many datagrams in order; returns how many.

        Waits as sendto() does until all are queued. When cancelled, or when a message is wrong, after some were queued, it returns their
        number instead of raising, as sendmmsg(2) does: the rest was not queued, and calling again with the rest raises. Cancelled
        before the first: nothing was queued.
        """
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
        """sendmmsg() that never waits: queues what it can; raises as sendto_nowait() does if that is nothing."""
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
        """Queue the concatenation of `buffers` as one datagram; see sendto().

        `flags`: MSG_DONTWAIT (BlockingIOError instead of waiting); any other is EOPNOTSUPP. `ancdata`: control messages as the helpers in
        `rdsx.ancillary` make them; RDMA ones need the verbs transport (EOPNOTSUPP on others), unknown ones are EINVAL.
        """
        self._check_open()
        if flags & ~MSG_DONTWAIT:
            raise OSError(errno.EOPNOTSUPP, f"flags {flags:#x}: RDS sends take only MSG_DONTWAIT")
        destination = self._destination() if address is None else address
        data = b"".join(buffers)
        self._check_bound()
        ancillary.check_send(ancdata)
        if flags & MSG_DONTWAIT:
            if self._pace.due():
                await self._driver.pause()
            try:
                return self.sendto_nowait(data, destination)
            except trio.WouldBlock:
                raise BlockingIOError(errno.EAGAIN, "the send queue is full") from None
        return await self.sendto(data, destination)

    async def wait_writable(self, address: SockAddr | None = None) -> None:
        """Wait until a message to `address` (default: the connected one) would be queued without waiting.

        It is a hint: another task may take the room first. An unreachable peer is writable while there is room.
        """
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
        """Wait until every message sent (to `address`) is acknowledged: by delivery to the socket at an rdsx peer, by its TCP at a kernel.

        Waits for ever for a peer that never comes: use a cancel scope. Cancelled: nothing changes.
        """
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
        """Forget the unacknowledged messages to exactly this address (RDS_CANCEL_SENT_TO); returns how many.

        A message that is half written is finished, but not resent. Messages already delivered stay delivered.
        """
        self._check_bound()
        host, port = numeric_sockaddr(address)
        assert self._host is not None
        path = self._driver.tables[self._host.key].routes.get(host.key)
        cancelled = 0 if path is None else self._endpoint.cancel(path, port)
        self._driver.attend()
        return cancelled

    # -- receiving

    async def recvfrom(self, bufsize: int | None = None, flags: int = 0) -> tuple[bytes, SockAddr]:
        """The next datagram and its sender. The bytes are the caller's.

        Waits for one. `bufsize`: at most so many bytes, the rest of the datagram is lost, as in the kernel; default: all of it. `flags`:
        MSG_PEEK leaves it queued, MSG_DONTWAIT raises BlockingIOError instead of waiting. Cancelled: nothing was taken.
        """
        if self._pace.due():
            await self._driver.pause()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        if flags:
            data, _, _, address = await self._recvmsg(bufsize, 0, flags, notifications=False)
            return data, address or ()
        while (taken := self._endpoint.take()) is None:
            await self._wait_receivable()
        if self._core.attention:
            self._driver.attend()
        return taken if bufsize is None or len(taken[0]) <= bufsize else (taken[0][:bufsize], taken[1])

    def recvfrom_nowait(self, bufsize: int | None = None) -> tuple[bytes, SockAddr]:
        """recvfrom() that raises `trio.WouldBlock` instead of waiting."""
        self._check_open()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        taken = self._endpoint.take()
        if taken is None:
            raise trio.WouldBlock
        if self._core.attention:
            self._driver.attend()
        return taken if bufsize is None or len(taken[0]) <= bufsize else (taken[0][:bufsize], taken[1])

    async def recv(self, bufsize: int | None = None, flags: int = 0) -> bytes:
        """recvfrom() without the address."""
        return (await self.recvfrom(bufsize, flags))[0]

    def recv_nowait(self, bufsize: int | None = None) -> bytes:
        return self.recvfrom_nowait(bufsize)[0]

    async def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, SockAddr]:
        """recvfrom() into a writable buffer (at most `nbytes` if given); returns (bytes stored, address)."""
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise TypeError(f"the buffer must be writable, such as a bytearray, not {type(buffer).__name__}")
        check_size("nbytes", nbytes)
        room = len(view) if not nbytes else min(nbytes, len(view))
        data, address = await self.recvfrom(room, flags)
        view[: len(data)] = data
        return len(data), address

    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """recvfrom_into() without the address."""
        return (await self.recvfrom_into(buffer, nbytes, flags))[0]

    async def recvmmsg(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        """Wait for a datagram, then take all that are there, up to `limit`. Cancelled: nothing was taken."""
        if self._pace.due():
            await self._driver.pause()
        check_size("limit", limit, at_least=1)
        while not (taken := self._endpoint.take_many(limit)):
            await self._wait_receivable()
        if self._core.attention:
            self._driver.attend()
        return taken

    def recvmmsg_nowait(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        """recvmmsg() that raises `trio.WouldBlock` instead of waiting."""
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
        """(data, ancdata, msg_flags, address) of the next datagram or notification.

        A notification (congestion, with RDS_CONG_MONITOR on) comes alone, before datagrams: no data, address None. `ancbufsize`: room for
        control messages in bytes (socket.CMSG_SPACE); what does not fit is lost and MSG_CTRUNC is set. `flags`: MSG_PEEK, MSG_DONTWAIT,
        MSG_TRUNC changes nothing: a datagram longer than `bufsize` is cut, and msg_flags has MSG_TRUNC, with or without it.
        """
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
            await self._wait_receivable(notifications=notifications)
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

    def __aiter__(self) -> Self:
        """`async for data, address in sock`: datagrams until the socket is closed."""
        return self

    async def __anext__(self) -> tuple[bytes, SockAddr]:
        try:
            return await self.recvfrom()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None

    # -- options and state

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """Set a socket option: SOL_SOCKET's SO_SNDBUF, SO_RCVBUF, SO_SNDTIMEO, SO_RCVTIMEO, SO_TIMESTAMP, or one of SOL_RDS under its
        kernel name. `value`: an int, or the packed structure that the kernel takes. OSError as the kernel: ENOPROTOOPT, EINVAL, ENOTCONN.
        """
        self._check_open()
        options.set_option(self, level, option, value)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """An option's value: an int, or packed bytes when `buflen` is given. SO_SNDBUF and SO_RCVBUF give twice the effective size."""
        self._check_open()
        return options.get_option(self, level, option, buflen)

    def statistics(self) -> SocketStatistics:
        """A snapshot of this socket's accounts."""
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
        """Unbind, drop what was not received, cancel what was not acknowledged (`flush()` first to keep it). Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._endpoint.close()
        self._endpoint.owner = None
        self._receivers.unpark_all()
        self._senders.unpark_all()
        for lot in self._congested_lots:
            lot.unpark_all()
        self._driver.forget_socket(self)
        self._driver.attend()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # -- helpers

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this RDS socket was closed")

    def _check_bound(self) -> None:
        self._check_open()
        if self._host is None:
            raise NotBoundError("the socket is not bound: bind() it before sending")

    def _destination(self) -> SockAddr:
        if self._peer_address is None:
            self._check_open()
            raise NotBoundError("the socket is not connected: give an address, or connect() first")
        return self._peer_address

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
        return self._driver.route(self._host.key, host, address), port

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

    async def _send_slowly(self, data: Buffer, address: SockAddr, code: int) -> None:
        """A message that was not simply queued: make a route, or wait for what it needs.

        The path is looked up again after each wait: the driver forgets peers that never spoke and that nobody waits for.
        """
        parsed: tuple[Host, int] | None = None
        while code != SENT:
            if code == CONGESTED:
                self._core.count("cong_send_blocked")
                parsed = parsed or await resolve_sockaddr(address)
                await self._park_congested(*self._route(parsed, address))
            elif code == FULL:
                with options.time_limit(self.options.send_timeout_s):
                    while self._endpoint.sent_bytes >= self._endpoint.send_limit and not self._closed:
                        await self._park_sender()
            elif code == NO_ROUTE:
                parsed = await resolve_sockaddr(address)
            else:
                self._raise_for(code, data, address)
            self._check_open()
            code = self._submit(data, address) if parsed is None else self._endpoint.submit_to(data, *self._route(parsed, address))
        if self._core.attention:
            self._driver.attend()

    async def _park_sender(self) -> None:
        self._endpoint.send_waiting = True
        try:
            await self._senders.park()
        finally:
            self._endpoint.send_waiting = len(self._senders) > 0

    async def _park_congested(self, path: Path, port: int) -> None:
        """Park until the port at the other end may be free, or this socket is closed."""
        lot = self._driver.congestion_lot(path, port)
        self._congested_lots[lot] += 1
        try:
            await lot.park()
        finally:
            self._congested_lots[lot] -= 1
            if not self._congested_lots[lot]:
                del self._congested_lots[lot]

    async def _wait_receivable(self, *, notifications: bool = False) -> None:
        """Park until there is a message to receive, or (if asked for) a notification."""
        endpoint = self._endpoint
        with options.time_limit(self.options.receive_timeout_s):
            while not (endpoint.queued or (notifications and endpoint.monitor_pending)):
                self._check_open()
                endpoint.receive_waiting = True
                try:
                    await self._receivers.park()
                finally:
                    endpoint.receive_waiting = len(self._receivers) > 0

    def _wake(self) -> None:
        """The endpoint's state changed: let waiters look again."""
        if self._endpoint.queued or self._endpoint.monitor_pending:
            self._receivers.unpark_all()
        self._senders.unpark_all()

    def _congestion_freed(self, freed: int) -> None:
        """Ports (mod 64) that may be free again, somewhere."""
        endpoint = self._endpoint
        endpoint.monitor_pending |= endpoint.monitor_wanted & freed
        endpoint.monitor_wanted &= ~freed & (2**64 - 1)
        if endpoint.monitor_pending:
            self._receivers.unpark_all()

    def _set_monitored(self, on: bool) -> None:
        self._endpoint.monitored = on
        if on:
            self._driver.monitors[self] = None
        else:
            self._driver.monitors.pop(self, None)
            self._endpoint.monitor_wanted = self._endpoint.monitor_pending = 0

    def _raised_send_limit(self) -> None:
        self._senders.unpark_all()


def numeric_sockaddr(address: SockAddr) -> tuple[Host, int]:
    """parse_sockaddr() for calls that never wait, and so look no names up."""
    try:
        return parse_sockaddr(address)
    except ValueError as error:
        raise ValueError(f"{error}; give a numeric address: only calls that may wait look names up") from None


def check_size(name: str, value: int, at_least: int = 0) -> None:
    """Before anything is taken off a queue: a message must not be lost to a wrong argument."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {value}")
