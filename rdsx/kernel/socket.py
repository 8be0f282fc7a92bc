"""KernelSocket: an RdsSocket on one AF_RDS socket.

Every call is one system call that does not wait, and a wait where the kernel says it would have to. Python runs for each message here;
the kernel's own cost of a message is higher still. Invariant: a notification that a call has no use for is kept for recvmsg().
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import trio

from rdsx import constants as c
from rdsx.addresses import Host, SockAddr, bad_address, parse_sockaddr, resolve_sockaddr
from rdsx.ancillary import GetMrArgs, ZcopyCompletion, ZcopyCookie, fit, is_whole, pack_sockaddr
from rdsx.errors import CongestedError, MessageTooLongError, NotBoundError
from rdsx.kernel.af_rds import kernel_sockaddr, look_until
from rdsx.kernel.operations import NOBODYS_PORT, Cookie, KernelOperations, map_args
from rdsx.memory import DmaBuf, Lease
from rdsx.operations import RdmaOperation
from rdsx.options import SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW, integer, octets, seconds, time_limit
from rdsx.sockets import ControlMessage, RdsSocket, check_size, check_tos, numeric_sockaddr
from rdsx.statistics import SocketStatistics
from rdsx.wire.info import MessageInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.kernel.stack import KernelStack

__all__ = ["KernelSocket"]

SIOCRDSSETTOS, SIOCRDSGETTOS = 0x89E0, 0x89E1
MSG_CTRUNC, MSG_DONTWAIT, MSG_OOB, MSG_PEEK, MSG_TRUNC = (
    socket.MSG_CTRUNC,
    socket.MSG_DONTWAIT,
    socket.MSG_OOB,
    socket.MSG_PEEK,
    socket.MSG_TRUNC,
)
MSG_ERRQUEUE, MSG_ZEROCOPY = socket.MSG_ERRQUEUE, 0x4000000
REGISTER_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # a duel of connects is over within a second (kernel 6.1, soft-RoCE)
SEND_TIMEOUTS = (socket.SO_SNDTIMEO, SO_SNDTIMEO_NEW)
RECEIVE_TIMEOUTS = (socket.SO_RCVTIMEO, SO_RCVTIMEO_NEW)
TIMEVAL_BYTES = 16

# Room for all that can come with one datagram, and for sixteen RDMA notifications.
CONTROL_BYTES = 512
NOTIFICATIONS = (c.RDS_CMSG_RDMA_STATUS, c.RDS_CMSG_CONG_UPDATE, c.RDS_CMSG_ZCOPY_COMPLETION)

# 6.1 reports trouble of its TCP connection although the message is queued, and will be sent when there is another connection.
QUEUED_ALL_THE_SAME = (errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH)

Piece = bytes | memoryview
Pieces = Sequence[Piece]
Controls = Sequence[tuple[int, int, "Buffer"]]
T = TypeVar("T")


class Turns:
    """Lets any number of tasks wait for a descriptor, which trio allows to one: it waits, and when it returns all look again."""

    def __init__(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        self._wait = wait
        self._turn = trio.Lock()
        self._returns = 0
        self._scope: trio.CancelScope | None = None

    async def wait(self, sock: socket.socket) -> None:
        """Until `sock` is ready, or was since this was called. `trio.ClosedResourceError` if it is closed meanwhile."""
        seen = self._returns
        async with self._turn:
            if self._returns != seen:
                return
            if sock.fileno() < 0:
                raise trio.ClosedResourceError("this RDS socket was closed")
            with trio.CancelScope() as self._scope:
                await self._wait(sock)
            self._returns += 1

    def poke(self) -> None:
        """Something came by another way: all look again."""
        if self._scope is not None:
            self._scope.cancel()


class KernelSocket(RdsSocket):
    """Made by `KernelStack.socket()`."""

    __slots__ = (
        "_congested",
        "_kernel",
        "_lent",
        "_notifications",
        "_operations",
        "_reader",
        "_receive_timeout_s",
        "_received_messages",
        "_send_timeout_s",
        "_sent_messages",
        "_sock",
        "_writer",
    )

    def __init__(self, stack: KernelStack, sock: socket.socket) -> None:
        super().__init__(stack)
        self._kernel = stack
        self._sock = sock
        self._reader, self._writer = Turns(trio.lowlevel.wait_readable), Turns(trio.lowlevel.wait_writable)
        self._send_timeout_s = self._receive_timeout_s = float("inf")
        self._notifications: deque[ControlMessage] = deque()
        self._congested: dict[tuple[str, int], int] = {}  # destination -> maps received when a send to it was refused
        self._lent: dict[int, Pieces] = {}  # zerocopy cookie -> what the kernel may still read
        self._operations = KernelOperations(self._watch_notifications)
        self._sent_messages = self._received_messages = 0
        for option, wanted in ((socket.SO_SNDBUF, stack.config.send_buffer_bytes), (socket.SO_RCVBUF, stack.config.receive_buffer_bytes)):
            self._size_buffer(option, wanted)

    def _size_buffer(self, option: int, wanted: int) -> None:
        def effective() -> int:
            return self._sock.getsockopt(socket.SOL_SOCKET, option) // 2

        if effective() != wanted:
            self._sock.setsockopt(socket.SOL_SOCKET, option, wanted)
        if effective() < wanted:
            name, field = ("wmem_max", "send") if option == socket.SO_SNDBUF else ("rmem_max", "receive")
            self._kernel.warn_once(
                f"NodeConfig.{field}_buffer_bytes is {wanted}, the kernel gives {effective()}: sysctl -w net.core.{name}={wanted}"
            )

    # -- names

    def _bind(self, host: Host, port: int, address: SockAddr) -> int:
        remedies = {
            errno.EADDRINUSE: "the port is bound by a socket of this machine, maybe in another network namespace; port 0 picks a free one",
            errno.EADDRNOTAVAIL: "no RDS transport serves it any more: see 'ip address' and 'lsmod'",
            errno.ENOPROTOOPT: "the transport chosen with SO_RDS_TRANSPORT does not serve it",
        }
        try:
            self._sock.bind(kernel_sockaddr(host, port))
        except OSError as error:
            raise bad_address(error.errno or 0, address, remedies.get(error.errno or 0, "the kernel refuses it")) from None
        return int(self._sock.getsockname()[1])

    async def connect(self, address: SockAddr) -> None:
        await super().connect(address)
        host, port = numeric_sockaddr(self._destination())
        try:
            self._sock.connect(kernel_sockaddr(host, port))
        except OSError as error:
            self._peer_address = None
            raise bad_address(error.errno or 0, address, "the kernel refuses it") from None

    # -- sending

    async def sendto(self, data: Buffer, address: SockAddr) -> int:
        return await self._send([flat(data)], (), 0, address)

    def sendto_nowait(self, data: Buffer, address: SockAddr) -> int:
        return self._send_now([flat(data)], (), 0, numeric(address), address)

    async def sendmmsg(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        if self._pace.due():
            await self._kernel.pause()
        self._check_bound()
        done = 0
        try:
            for data, address in messages:  # RDS refuses sendmmsg(2) of more than one
                await self.sendto(data, address)
                done += 1
        except (OSError, TypeError, ValueError, OverflowError, trio.Cancelled):
            if not done:
                raise
        return done

    def sendmmsg_nowait(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        self._check_bound()
        done = 0
        try:
            for data, address in messages:
                self.sendto_nowait(data, address)
                done += 1
        except (OSError, TypeError, ValueError, OverflowError, trio.WouldBlock):
            if not done:
                raise
        return done

    async def sendmsg(
        self, buffers: Iterable[Buffer], ancdata: Iterable[tuple[int, int, Buffer]] = (), flags: int = 0, address: SockAddr | None = None
    ) -> int:
        destination = self._destination() if address is None else address
        pieces, control = [flat(buffer) for buffer in buffers], list(ancdata)
        if not flags & MSG_DONTWAIT:
            return await self._send(pieces, control, flags, destination)
        if self._pace.due():
            await self._kernel.pause()
        self._check_bound()
        try:
            return self._send_now(pieces, control, flags, await resolved(destination), destination)
        except trio.WouldBlock:
            raise BlockingIOError(errno.EAGAIN, "the send queue is full") from None

    async def _send(self, pieces: Pieces, control: Controls, flags: int, address: SockAddr) -> int:
        if self._pace.due():
            await self._kernel.pause()
        self._check_bound()
        where = await resolved(address)
        while True:
            try:
                return await self._send_when_room(pieces, control, flags, where, address)
            except CongestedError:
                await self._wait_uncongested(where)

    async def _send_when_room(self, pieces: Pieces, control: Controls, flags: int, where: tuple[Host, int], address: SockAddr) -> int:
        with time_limit(self._send_timeout_s):
            while True:
                self._check_open()
                try:
                    return self._send_now(pieces, control, flags, where, address)
                except trio.WouldBlock:
                    await self._writer.wait(self._sock)

    def _send_now(self, pieces: Pieces, control: Controls, flags: int, where: tuple[Host, int], address: SockAddr) -> int:
        """One message, in one system call or not at all. `trio.WouldBlock` for a full send queue, otherwise OSError as of sendto()."""
        self._check_bound()
        length = sum(map(len, pieces))
        if length > self._kernel.config.max_message_bytes:
            raise MessageTooLongError(f"{length} bytes; NodeConfig.max_message_bytes is {self._kernel.config.max_message_bytes}")
        try:
            try:
                self._send_once(pieces, control, flags, where)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Once more after the count was read: if that fails too, the map that frees the port is yet to come.
                self._congested[where[0].key, where[1]] = self._kernel.congestion_updates()
                self._send_once(pieces, control, flags, where)
        except OSError as error:
            if error.errno not in QUEUED_ALL_THE_SAME:
                raise self._reason(error, length, address) from None
        if self._congested:
            self._congested.pop((where[0].key, where[1]), None)
        self._sent_messages += 1
        if flags & MSG_ZEROCOPY:
            self._lent |= {ZcopyCookie.unpack(data).cookie: pieces for _, kind, data in control if kind == c.RDS_CMSG_ZCOPY_COOKIE}
        return length

    def _send_once(self, pieces: Pieces, control: Controls, flags: int, where: tuple[Host, int]) -> None:
        self._sock.sendmsg(pieces, control, flags | MSG_DONTWAIT, kernel_sockaddr(*where))

    def _reason(self, error: OSError, length: int, address: SockAddr) -> Exception:
        """What to raise for the kernel's refusal to send."""
        number = error.errno or 0
        if number == errno.EAGAIN:
            return trio.WouldBlock()
        if number == errno.ENOBUFS:
            return CongestedError(f"port {address[1]} of {address[0]} is congested; await wait_writable({address!r}), or use sendto()")
        if number == errno.EMSGSIZE:
            limit = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
            remedy = f"setsockopt(SOL_SOCKET, SO_SNDBUF, {length}) allows it, up to net.core.wmem_max"
            return MessageTooLongError(f"{length} bytes; this socket sends at most {limit}; {remedy}")
        if number == errno.ENOTCONN:
            return NotBoundError("the socket is not bound: bind() it before sending")
        return bad_address(number, address, "the kernel refuses to send this message there")

    async def wait_writable(self, address: SockAddr | None = None) -> None:
        if self._pace.due():
            await self._kernel.pause()
        address = self._destination() if address is None else address
        self._check_bound()
        await self._wait_uncongested(await resolved(address))
        await self._writer.wait(self._sock)
        self._check_open()

    async def flush(self, address: SockAddr | None = None) -> None:
        if self._pace.due():
            await self._kernel.pause()
        self._check_open()
        if address is not None:
            self._check_bound()
        where = None if address is None else await resolved(address)
        await look_until(lambda: self._closed or not self._unacknowledged(where))
        self._check_open()

    def cancel_sent_to(self, address: SockAddr) -> int:
        self._check_bound()
        where = numeric(address)
        listed = len(self._unacknowledged(where))
        self.setsockopt(c.SOL_RDS, c.RDS_CANCEL_SENT_TO, pack_sockaddr(where[0].sockaddr(where[1])))
        return listed

    def _unacknowledged(self, where: tuple[Host, int] | None = None) -> list[MessageInfo]:
        """This socket's messages (to one address) that are queued or not acknowledged."""
        if self._host is None:
            return []
        peer = None if where is None else (where[0].text, where[1])
        local = self._host.text, self._port
        return [message for message in self._kernel.unacknowledged() if message.local == local and peer in (None, message.peer)]

    # -- receiving

    async def recvfrom(self, bufsize: int | None = None, flags: int = 0) -> tuple[bytes, SockAddr]:
        if self._pace.due():
            await self._kernel.pause()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        if flags & MSG_OOB:
            self._check_open()
            return b"", ()
        return await self._receive(lambda: self._take(bufsize, flags), flags)

    def recvfrom_nowait(self, bufsize: int | None = None) -> tuple[bytes, SockAddr]:
        if bufsize is not None:
            check_size("bufsize", bufsize)
        try:
            return self._take(bufsize)
        except BlockingIOError:
            raise trio.WouldBlock from None

    async def recvmmsg(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        if self._pace.due():
            await self._kernel.pause()
        check_size("limit", limit, at_least=1)
        return await self._receive(lambda: self._take_many(limit))

    def recvmmsg_nowait(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        check_size("limit", limit, at_least=1)
        try:
            return self._take_many(limit)
        except BlockingIOError:
            raise trio.WouldBlock from None

    async def recvmsg(
        self, bufsize: int | None = None, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[ControlMessage], int, SockAddr | None]:
        if self._pace.due():
            await self._kernel.pause()
        if bufsize is not None:
            check_size("bufsize", bufsize)
        check_size("ancbufsize", ancbufsize)
        return await self._receive(lambda: self._take_any(bufsize, ancbufsize, flags), flags)

    async def _receive(self, take: Callable[[], T], flags: int = 0) -> T:
        """What `take` returns, once it does not raise BlockingIOError; with MSG_DONTWAIT or MSG_ERRQUEUE in `flags` that is raised."""
        with time_limit(self._receive_timeout_s):
            while True:
                self._check_open()
                try:
                    return take()
                except BlockingIOError:
                    if flags & (MSG_DONTWAIT | MSG_ERRQUEUE):
                        raise
                await self._reader.wait(self._sock)

    def _take_message(
        self, bufsize: int | None, ancbufsize: int, flags: int = 0
    ) -> tuple[bytes, list[ControlMessage], int, SockAddr | None]:
        """One recvmsg(2), which does not wait."""
        self._check_open()
        scratch = self._kernel.scratch
        room = scratch if bufsize is None else scratch[:bufsize]
        length, control, msg_flags, address = self._sock.recvmsg_into([room], ancbufsize, (flags | MSG_DONTWAIT) & ~MSG_TRUNC)
        if msg_flags & MSG_CTRUNC:
            control = [one for one in control if is_whole(*one)]
        control = self._operations.take(control)
        for level, kind, data in control:
            if (level, kind) == (c.SOL_RDS, c.RDS_CMSG_ZCOPY_COMPLETION):
                for cookie in ZcopyCompletion.unpack(data).cookies:
                    self._lent.pop(cookie, None)
        if address and not flags & MSG_PEEK:
            self._received_messages += 1
        return bytes(scratch[:length]), control, msg_flags, address or None

    def _take(self, bufsize: int | None, flags: int = 0) -> tuple[bytes, SockAddr]:
        """The next datagram. Notifications before it, or with it, are kept for recvmsg()."""
        while True:
            data, control, _, address = self._take_message(bufsize, CONTROL_BYTES, flags)
            self._keep_notifications(control)
            if address is not None:
                return data, address

    def _take_any(self, bufsize: int | None, ancbufsize: int, flags: int) -> tuple[bytes, list[ControlMessage], int, SockAddr | None]:
        """A notification that was kept, or what the kernel has."""
        self._check_open()
        if self._operations.pending:
            self._take_notifications()  # first, and with room for them: what does not fit is lost
        if not self._notifications:
            try:
                return self._take_message(bufsize, ancbufsize, flags)
            except BlockingIOError:
                if not self._lent:
                    raise
            # A completion for which there is too little room makes the descriptor readable for ever: it is taken with room, and kept.
            self._keep_notifications(self._take_message(0, CONTROL_BYTES, MSG_PEEK)[1])
        control, msg_flags = fit([self._notifications.popleft()], ancbufsize)
        return b"", control, msg_flags, None

    def _keep_notifications(self, control: list[ControlMessage]) -> None:
        kept = [one for one in control if one[0] == c.SOL_RDS and one[1] in NOTIFICATIONS]
        if kept:
            self._notifications.extend(kept)
            self._reader.poke()

    def _take_notifications(self) -> None:
        """Take all notifications that are there, and no datagram."""
        while True:
            try:
                _, control, _, address = self._take_message(0, CONTROL_BYTES, MSG_PEEK)
            except BlockingIOError:
                return
            if address is not None:
                return
            self._keep_notifications(control)

    def _watch_notifications(self, is_done: Callable[[], bool]) -> None:
        def look() -> bool:
            if not self._closed:
                self._take_notifications()
            return is_done()

        self._kernel.watch(look)

    def _take_many(self, limit: int) -> list[tuple[bytes, SockAddr]]:
        taken = [self._take(None)]
        with contextlib.suppress(BlockingIOError):
            while len(taken) < limit:
                taken.append(self._take(None))
        return taken

    # -- memory and operations

    async def get_mr(self, buffer: Buffer | DmaBuf, destination: SockAddr | None = None, *, use_once: bool = False) -> int:
        if self._kernel.pace.due():
            await self._kernel.pause()
        self._check_bound()
        lease, cookie = Lease.for_peers(buffer), Cookie()
        args = map_args(lease, cookie, use_once=use_once)
        try:
            if destination is None:
                self._register(args)
            else:
                host, _ = await resolved(destination)
                await self._register_for(args, host.sockaddr(NOBODYS_PORT))
        except BaseException:
            lease.release()
            raise
        self._operations.registered(cookie.value, lease)
        return cookie.value

    async def _register_for(self, args: GetMrArgs, nobody: SockAddr) -> None:
        """The device is known once there is a connection, and there is one once something is sent.

        The kernel says EINVAL while it replaces its queue pair: two ends that connect at the same time refuse each other at first.
        """
        for pause_s in REGISTER_PAUSES_S:
            try:
                await self._send([], [args.control()], 0, nobody)
                return
            except OSError as error:
                if error.errno != errno.EINVAL or not 0 < args.vector.length < 2**32:
                    raise
            await trio.sleep(pause_s)
        await self._send([], [args.control()], 0, nobody)

    def _register(self, args: GetMrArgs) -> None:
        try:
            self._sock.setsockopt(c.SOL_RDS, c.RDS_GET_MR, args.pack())
        except OSError as error:
            remedy = "give get_mr() a destination: this kernel registers memory for a connection, if it does at all"
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: RDS_GET_MR: {remedy}") from None

    def free_mr(self, cookie: int, *, invalidate: bool = True) -> None:
        self._check_open()
        args = self._operations.free_args(cookie, invalidate=invalidate)
        try:
            self.setsockopt(c.SOL_RDS, c.RDS_FREE_MR, args.pack())
        finally:
            self._operations.freed(cookie)  # also if the kernel has done so: the memory was to be used once, and was

    async def _start(
        self, handle: RdmaOperation, lease: Lease, offset: int, message: Buffer, operands: tuple[int, ...], *, fence: bool
    ) -> None:
        token, control, memory = self._operations.control(handle, lease, offset, operands, fence=fence)
        try:
            await self._send([flat(message)], control, 0, handle.address)
        except BaseException:
            lease.release()
            raise
        del memory  # the kernel has read it
        self._operations.started(token, handle, lease)

    # -- waiting

    async def _wait_uncongested(self, where: tuple[Host, int]) -> None:
        """If a send there was refused: wait for a congestion map to come, from whomever. The kernel does not say which port it frees."""
        destination = where[0].key, where[1]
        seen = self._congested.get(destination)
        if seen is not None:
            await look_until(lambda: self._closed or self._kernel.congestion_updates() != seen)
            self._congested.pop(destination, None)

    # -- options and state

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        self._check_open()
        try:
            self._sock.setsockopt(level, option, integer(value) if isinstance(value, int) else octets(value))
        except OSError as error:
            raise refused_option(error, level, option) from None
        if level == socket.SOL_SOCKET and option in SEND_TIMEOUTS:
            self._send_timeout_s = seconds(value)
        elif level == socket.SOL_SOCKET and option in RECEIVE_TIMEOUTS:
            self._receive_timeout_s = seconds(value)

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        self._check_open()
        if level == socket.SOL_SOCKET and option in SEND_TIMEOUTS + RECEIVE_TIMEOUTS:
            buflen = buflen or TIMEVAL_BYTES
        try:
            return self._sock.getsockopt(level, option, buflen) if buflen else self._sock.getsockopt(level, option)
        except OSError as error:
            raise refused_option(error, level, option) from None

    def set_tos(self, tos: int) -> None:
        check_tos(tos)
        self._check_open()
        try:
            fcntl.ioctl(self._sock, SIOCRDSSETTOS, bytes([tos]))
        except OSError as error:
            number = error.errno or 0
            reason = "set before the first message, once, on a bound socket" if number != errno.ENOTTY else "this transport has none"
            raise OSError(number, f"{os.strerror(number)}: type of service {tos}: {reason}") from None

    def get_tos(self) -> int:
        self._check_open()
        return fcntl.ioctl(self._sock, SIOCRDSGETTOS, b"\0")[0]

    def statistics(self) -> SocketStatistics:
        sent: list[MessageInfo] = []
        queued: list[MessageInfo] = []
        if self._host is not None and not self._closed:
            local = self._host.text, self._port
            sent = self._unacknowledged()
            queued = [message for message in self._kernel.received() if message.local == local]
        return SocketStatistics(
            sent_messages=self._sent_messages,
            received_messages=self._received_messages,
            unacknowledged_messages=len(sent),
            unacknowledged_bytes=sum(message.length for message in sent),
            queued_messages=len(queued),
            queued_bytes=sum(message.length for message in queued),
            congested=None,
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self._operations.close()
        self._kernel.forget_socket(self)


def flat(data: Buffer) -> Piece:
    """Something whose len() is its number of bytes."""
    if isinstance(data, bytes):
        return data
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


@lru_cache(4096)
def parsed(address: SockAddr) -> tuple[Host, int]:
    return parse_sockaddr(address)


async def resolved(address: SockAddr) -> tuple[Host, int]:
    """resolve_sockaddr(), fast for what was seen before."""
    try:
        return parsed(address)
    except (TypeError, ValueError):
        return await resolve_sockaddr(address)


def numeric(address: SockAddr) -> tuple[Host, int]:
    try:
        return parsed(address)
    except (TypeError, ValueError):
        return numeric_sockaddr(address)


def refused_option(error: OSError, level: int, option: int) -> OSError:
    number = error.errno or 0
    return OSError(number, f"{os.strerror(number)}: option {option} at level {level}: the kernel refuses the option or its value")
