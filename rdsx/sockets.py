"""RdsSocket: what every RDS socket can do, with the method names of `trio.socket`. The two kinds are `engine_socket.EngineSocket`, on
our own protocol engine, and `kernel.socket.KernelSocket`, on AF_RDS."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio

from rdsx._operation import address_of
from rdsx.addresses import Host, SockAddr, bad_address, parse_sockaddr, resolve_sockaddr
from rdsx.errors import NotBoundError
from rdsx.memory import ALL_BITS, ATOMIC, DmaBuf, Lease
from rdsx.operations import RdmaOperation
from rdsx.statistics import SocketStatistics

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.stack import Stack

__all__ = ["ControlMessage", "RdsSocket", "check_size", "check_tos", "numeric_sockaddr"]

ControlMessage = tuple[int, int, bytes]


class RdsSocket(ABC):
    """A reliable datagram socket: bound to one address, sending to and receiving from any number of peers.

    Made by `Node.socket()`. Messages to one destination port arrive in order, once, for as long as both ends live; messages stay
    queued while a peer cannot be reached. Every async method is a checkpoint; one that need not wait yields to the scheduler only
    now and then (`NodeConfig.yield_interval_s`). Cancelling a send means: not queued. Cancelling a receive: nothing was taken.

    Any number of tasks may use one socket at once. After `close()` every method but `close()` and `statistics()` raises
    `trio.ClosedResourceError`, in waiting tasks too; `async for` ends.
    """

    __slots__ = ("__weakref__", "_closed", "_host", "_pace", "_peer_address", "_port", "_stack")

    def __init__(self, stack: Stack[Any]) -> None:
        self._stack = stack
        self._pace = stack.pace
        self._host: Host | None = None
        self._port = 0
        self._peer_address: SockAddr | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"bound to {self.getsockname()}" if self._host else "unbound"
        return f"<rdsx.RdsSocket {state}>"

    # -- names

    async def bind(self, address: SockAddr) -> None:
        """Bind to a local address of the node, for good. Port 0 picks a free one; 1 is reserved.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL (not an address of this node), EINVAL (already bound, or not a unicast address).
        """
        if self._pace.due():
            await self._stack.pause()
        self._check_open()
        host, port = await resolve_sockaddr(address)
        self._check_open()
        if self._host is not None:
            raise bad_address(errno.EINVAL, address, f"the socket is already bound to {self.getsockname()}; rebinding is not possible")
        if not host.is_usable:
            raise bad_address(errno.EINVAL, address, "there is no wildcard bind: give one local unicast address")
        if host.key not in self._stack.hosts:
            remedy = f"this node speaks for {', '.join(self._stack.hosts)}; open it with that address too"
            raise bad_address(errno.EADDRNOTAVAIL, address, remedy)
        if port == 1:
            raise bad_address(errno.EINVAL, address, "port 1 belongs to the multipath probe; ports for sockets are 2..65535")
        self._port = self._bind(host, port, address)
        self._host = host

    @abstractmethod
    def _bind(self, host: Host, port: int, address: SockAddr) -> int:
        """Bind to one of the node's hosts; returns the port, which is another one if `port` is 0."""

    async def connect(self, address: SockAddr) -> None:
        """Set the default destination of `send()`. Contacts nobody, checks nothing but the address; may be repeated."""
        if self._pace.due():
            await self._stack.pause()
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
        return self._host.sockaddr(self._port) if self._host is not None else ("0.0.0.0", 0)

    def getpeername(self) -> SockAddr:
        """The default destination. OSError ENOTCONN if there is none."""
        self._check_open()
        if self._peer_address is None:
            raise NotBoundError("the socket is not connected: call connect() first")
        return self._peer_address

    # -- sending

    @abstractmethod
    async def sendto(self, data: Buffer, address: SockAddr) -> int:
        """Queue one datagram; returns its length.

        Waits while the destination port is congested, and while the socket has SO_SNDBUF bytes unacknowledged. An unreachable peer is
        no error: the message waits for it. `bytes` are kept by reference until acknowledged, other buffers are copied now.
        Cancelled: not queued.

        Raises OSError: EMSGSIZE, ENOTCONN (not bound), EINVAL (not a unicast address), EOPNOTSUPP (IPv4 to IPv6), ENETUNREACH
        (transport "loop"); TypeError and OverflowError for what is no datagram or no port; socket.gaierror for an unknown host.
        """

    @abstractmethod
    def sendto_nowait(self, data: Buffer, address: SockAddr) -> int:
        """sendto() that never waits: `trio.WouldBlock` when the send queue is full, `CongestedError` when the port is congested.
        The host must be numeric."""

    async def send(self, data: Buffer) -> int:
        """sendto() the address given to connect()."""
        return await self.sendto(data, self._destination())

    def send_nowait(self, data: Buffer) -> int:
        return self.sendto_nowait(data, self._destination())

    @abstractmethod
    async def sendmmsg(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        """Queue many datagrams in order; returns how many.

        Waits as sendto() does until all are queued. When cancelled, or when a message is wrong, after some were queued, it returns their
        number instead of raising, as sendmmsg(2) does: the rest was not queued, and calling again with the rest raises. Cancelled
        before the first: nothing was queued.
        """

    @abstractmethod
    def sendmmsg_nowait(self, messages: Iterable[tuple[Buffer, SockAddr]]) -> int:
        """sendmmsg() that never waits: queues what it can; raises as sendto_nowait() does if that is nothing."""

    @abstractmethod
    async def sendmsg(
        self, buffers: Iterable[Buffer], ancdata: Iterable[tuple[int, int, Buffer]] = (), flags: int = 0, address: SockAddr | None = None
    ) -> int:
        """Queue the concatenation of `buffers` as one datagram; see sendto().

        `flags`: MSG_DONTWAIT (BlockingIOError instead of waiting), and MSG_ZEROCOPY on the kernel's stack; any other is EOPNOTSUPP.
        `ancdata`: control messages as the helpers in `rdsx.ancillary` make them; RDMA ones need a transport with RDMA (EOPNOTSUPP on
        others), unknown ones are EINVAL.
        """

    @abstractmethod
    async def wait_writable(self, address: SockAddr | None = None) -> None:
        """Wait until a message to `address` (default: the connected one) would be queued without waiting.

        It is a hint: another task may take the room first. An unreachable peer is writable while there is room. On the kernel's stack
        it is a weaker one: a port counts as congested only from a refused send to the next congestion map, whoever sent that.
        """

    @abstractmethod
    async def flush(self, address: SockAddr | None = None) -> None:
        """Wait until every message sent (to `address`) is acknowledged: by delivery to the socket at an rdsx peer, by its TCP at a kernel.

        Waits for ever for a peer that never comes: use a cancel scope. Cancelled: nothing changes.
        """

    @abstractmethod
    def cancel_sent_to(self, address: SockAddr) -> int:
        """Forget the unacknowledged messages to exactly this address (RDS_CANCEL_SENT_TO); returns how many.

        A message that is half written is finished, but not resent. Messages already delivered stay delivered. On the kernel's stack the
        number is that of the messages listed just before: some may have been acknowledged in between.
        """

    # -- receiving

    @abstractmethod
    async def recvfrom(self, bufsize: int | None = None, flags: int = 0) -> tuple[bytes, SockAddr]:
        """The next datagram and its sender. The bytes are the caller's.

        Waits for one. `bufsize`: at most so many bytes, the rest of the datagram is lost, as in the kernel; default: all of it. `flags`:
        MSG_PEEK leaves it queued, MSG_DONTWAIT raises BlockingIOError instead of waiting. Cancelled: nothing was taken.
        """

    @abstractmethod
    def recvfrom_nowait(self, bufsize: int | None = None) -> tuple[bytes, SockAddr]:
        """recvfrom() that raises `trio.WouldBlock` instead of waiting."""

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

    @abstractmethod
    async def recvmmsg(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        """Wait for a datagram, then take all that are there, up to `limit`. Cancelled: nothing was taken."""

    @abstractmethod
    def recvmmsg_nowait(self, limit: int = 1024) -> list[tuple[bytes, SockAddr]]:
        """recvmmsg() that raises `trio.WouldBlock` instead of waiting."""

    @abstractmethod
    async def recvmsg(
        self, bufsize: int | None = None, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[ControlMessage], int, SockAddr | None]:
        """(data, ancdata, msg_flags, address) of the next datagram or notification.

        A notification (congestion, with RDS_CONG_MONITOR on; RDMA; zerocopy) comes alone, before datagrams: no data, address None. The
        other receive calls leave it for this one. `ancbufsize`: room for control messages in bytes (socket.CMSG_SPACE); what does not
        fit is lost and MSG_CTRUNC is set. `flags`: MSG_PEEK, MSG_DONTWAIT. MSG_TRUNC changes nothing: a datagram longer than `bufsize`
        is cut, and msg_flags has MSG_TRUNC, with or without it.
        """

    # -- memory and RDMA operations

    @abstractmethod
    async def get_mr(self, buffer: Buffer | DmaBuf, destination: SockAddr | None = None, *, use_once: bool = False) -> int:
        """Register memory for peers to read and write; returns its cookie, a 64-bit number for them (RDS_GET_MR).

        Send the cookie to whom you trust with the memory, in a message's data or beside it (`rdsx.ancillary.RdmaDest(cookie).control()`,
        which arrives as such in `recvmsg()`). `buffer`: any writable contiguous buffer, such as a bytearray, an mmap or a NumPy array,
        of 1 to 2**32 - 1 bytes; it cannot be resized or closed while it is registered. Or a `rdsx.DmaBuf`. `destination`: waits for the
        connection to that peer, and registers the memory where it ends; needed on the kernel's stack, and where an address is
        on several devices. `use_once`: the first message that comes behind an operation on the memory frees it (RDS_RDMA_USE_ONCE).
        Cancelled: nothing is registered. Closing the socket frees all that it has registered.

        Raises OSError: ENOTCONN (not bound), EINVAL (no bytes, or too many), ENODEV (no device has our address), ENOMEM (more than may be
        locked), EOPNOTSUPP (a kernel without rds_rdma, or a device that takes no dma-buf); TypeError for a buffer that is read-only or
        not contiguous.
        """

    @abstractmethod
    def free_mr(self, cookie: int, *, invalidate: bool = True) -> None:
        """Take memory back from peers (RDS_FREE_MR). An operation that comes later is a remote error for its asker, and over verbs costs
        the connection. `invalidate` False: it may stay registered, under the same cookie, for whoever registers it again
        (`NodeConfig.idle_registration_bytes`), and its buffer stays as it is so long. OSError EINVAL: not a cookie of this socket."""

    async def rdma_write(
        self, source: Buffer, cookie: int, address: SockAddr, *, offset: int = 0, message: Buffer = b"", fence: bool = False
    ) -> RdmaOperation:
        """Write all of `source` into a peer's memory, `offset` bytes from the start of what `cookie` names, then send `message` there.

        Returns when both are queued; `await operation.wait()` tells the outcome. The write is done before the message is delivered. Until
        the outcome, the memory of `source` is read where it is, and must not change. Waits as `sendto()` does, and until the peer has
        been reached once. Cancelled: nothing was queued. An operation is never repeated: if the connection is lost meanwhile, it and its
        message are dropped (`RdmaOutcome.DROPPED`).

        Raises as `sendto()`, and: ValueError (no bytes, or more than 1 MiB), OSError EOPNOTSUPP (the peer is a kernel over TCP).
        """
        return await self._operate("write", Lease(source, writable=False), cookie, address, offset, message, fence=fence)

    async def rdma_read(
        self, target: Buffer, cookie: int, address: SockAddr, *, offset: int = 0, message: Buffer = b"", fence: bool = False
    ) -> RdmaOperation:
        """Fill `target` from a peer's memory, then send `message` there; see `rdma_write()`. TypeError for a buffer that is read-only.

        `target` has the bytes once the outcome is SUCCESS. `fence`: the message waits for the read to be done; otherwise it may overtake
        it, and a peer that is told so may change the memory too early.
        """
        return await self._operate("read", Lease(target, writable=True), cookie, address, offset, message, fence=fence)

    async def compare_and_swap(
        self,
        compare: int,
        swap: int,
        cookie: int,
        address: SockAddr,
        *,
        offset: int = 0,
        message: Buffer = b"",
        compare_mask: int = ALL_BITS,
        swap_mask: int = ALL_BITS,
    ) -> RdmaOperation:
        """If 8 bytes of a peer's memory, a number in its byte order, are `compare`, make them `swap`; see `rdma_write()`.

        `operation.old_value` is what was found, swapped or not. With masks only the bits of `compare_mask` are compared, and those of
        `swap_mask` replaced. The 8 bytes must be aligned (ValueError, or a remote error). No device can do masked ones through today's
        verbs: EOPNOTSUPP there; a kernel's device may.
        """
        operands = tuple(check_operand(one) for one in (compare, swap, compare_mask, swap_mask))
        return await self._operate("compare_and_swap", Lease(aligned(), writable=True), cookie, address, offset, message, operands)

    async def fetch_and_add(
        self, add: int, cookie: int, address: SockAddr, *, offset: int = 0, message: Buffer = b"", nocarry_mask: int = 0
    ) -> RdmaOperation:
        """Add to 8 bytes of a peer's memory, modulo 2**64; see `compare_and_swap()`. Bits set in `nocarry_mask` are the topmost ones of
        numbers of their own, and carry nothing to the next."""
        operands = tuple(check_operand(one) for one in (add, nocarry_mask))
        return await self._operate("fetch_and_add", Lease(aligned(), writable=True), cookie, address, offset, message, operands)

    async def _operate(
        self,
        kind: str,
        lease: Lease,
        cookie: int,
        address: SockAddr,
        offset: int,
        message: Buffer,
        operands: tuple[int, ...] = (),
        *,
        fence: bool = False,
    ) -> RdmaOperation:
        self._check_bound()
        if not 0 <= cookie < 2**64 or not 0 <= offset < 2**32:
            raise ValueError(f"cookie {cookie!r} with offset {offset!r}: a cookie is what a peer's get_mr() gave, an offset below 2**32")
        handle = RdmaOperation(kind, address, cookie, lease.length)
        await self._start(handle, lease, offset, message, operands, fence=fence)
        return handle

    @abstractmethod
    async def _start(
        self, handle: RdmaOperation, lease: Lease, offset: int, message: Buffer, operands: tuple[int, ...], *, fence: bool
    ) -> None:
        """Queue an operation and its message; conclude the handle later, once."""

    def __aiter__(self) -> Self:
        """`async for data, address in sock`: datagrams until the socket is closed."""
        return self

    async def __anext__(self) -> tuple[bytes, SockAddr]:
        try:
            return await self.recvfrom()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None

    # -- options and state

    @abstractmethod
    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """Set a socket option: SOL_SOCKET's SO_SNDBUF, SO_RCVBUF, SO_SNDTIMEO, SO_RCVTIMEO, SO_TIMESTAMP, or one of SOL_RDS under its
        kernel name. `value`: an int, or the packed structure that the kernel takes. OSError as the kernel: ENOPROTOOPT, EINVAL, ENOTCONN.
        """

    @abstractmethod
    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """An option's value: an int, or packed bytes when `buflen` is given. SO_SNDBUF and SO_RCVBUF give twice the effective size."""

    @abstractmethod
    def set_tos(self, tos: int) -> None:
        """Choose the type of service, 0..255, once and before the first send (SIOCRDSSETTOS). TCP maps every value to 0; over RDMA each has
        a connection of its own.

        Raises OSError: ENOTTY (not bound yet, or loopback, which has none), EINVAL (set before, or something was sent).
        """

    @abstractmethod
    def get_tos(self) -> int:
        """The type of service as the transport has mapped it (SIOCRDSGETTOS)."""

    @abstractmethod
    def statistics(self) -> SocketStatistics:
        """A snapshot of this socket's accounts."""

    @abstractmethod
    def close(self) -> None:
        """Unbind, drop what was not received, cancel what was not acknowledged (`flush()` first to keep it). Twice is harmless."""

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


def numeric_sockaddr(address: SockAddr) -> tuple[Host, int]:
    """parse_sockaddr() for calls that never wait, and so look no names up."""
    try:
        return parse_sockaddr(address)
    except ValueError as error:
        raise ValueError(f"{error}; give a numeric address: only calls that may wait look names up") from None


def aligned() -> memoryview:
    """Memory for the old value of an atomic, as devices want it."""
    spare = bytearray(2 * ATOMIC.size)
    at = -address_of(memoryview(spare)) % ATOMIC.size
    return memoryview(spare)[at : at + ATOMIC.size]


def check_operand(value: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"an atomic works on ints, not {value!r}")
    if not 0 <= value <= ALL_BITS:
        raise ValueError(f"an atomic works on numbers of 64 bits, 0 to 2**64 - 1, not {value}")
    return value


def check_size(name: str, value: int, at_least: int = 0) -> None:
    """Before anything is taken off a queue: a message must not be lost to a wrong argument."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {value}")


def check_tos(tos: int) -> None:
    if not 0 <= tos <= 255:
        raise ValueError(f"a type of service is an int in 0..255, not {tos!r}")
