"""TCP: byte streams between node addresses, with the socket options that rds_tcp sets. No privilege, no kernel module."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import termios
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import trio

from rdsx.addresses import Host, parse_host
from rdsx.config import NodeConfig
from rdsx.moves import Changes, Progress
from rdsx.transports.local import watch_addresses

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["TcpNetwork"]

BACKLOG = 64  # as rds_tcp listens
SIOCOUTQNSD = 0x894B  # linux/sockios.h: of the bytes of SIOCOUTQ those that were not sent yet
TCP_RTO_MAX_MS = 44  # linux/tcp.h, since Linux 6.15
RTO_MAX_MS = 1000  # the least that it takes

# What TCP_INFO (struct tcp_info of linux/tcp.h) says of a stream's progress: retransmissions and zero-window probes since the peer last
# acknowledged anything; bytes that it has acknowledged (since Linux 4.1).
TCP_INFO = struct.Struct("=2x B B 116x Q")


class TcpStream:
    """See `transports.base.ByteStream`. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._broken = False

    def send(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self._sock.send(buffers[0]) if len(buffers) == 1 else self._sock.sendmsg(buffers)
        except BlockingIOError:
            raise
        except OSError:
            self._broken = True
            raise

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        try:
            return self._sock.recv_into(buffers[0]) if len(buffers) == 1 else self._sock.recvmsg_into(buffers)[0]
        except BlockingIOError:
            raise
        except OSError:
            self._broken = True
            raise

    async def wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except trio.ClosedResourceError:
            raise OSError(errno.EBADF, "the stream was closed here") from None

    async def wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._fd)
        except trio.ClosedResourceError:
            raise OSError(errno.EBADF, "the stream was closed here") from None

    def unacknowledged(self) -> int:
        """SIOCOUTQ: written and not yet acknowledged by the peer's TCP. OSError once the stream is broken: then it says nothing."""
        if self._broken:
            raise OSError(errno.ENOTCONN, "the stream is broken")
        return self._queued(termios.TIOCOUTQ)

    def _queued(self, request: int) -> int:
        count: int = struct.unpack("i", fcntl.ioctl(self._sock, request, bytes(4)))[0]
        return count

    def progress(self) -> Progress | None:
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
            outstanding_bytes = self.unacknowledged() - self._queued(SIOCOUTQNSD)
        except OSError:
            return None
        if len(info) < TCP_INFO.size:
            return None
        retransmissions, probes, acknowledged_bytes = TCP_INFO.unpack(info)
        # One probe may be on its way; its answer takes the count back to none.
        return Progress(outstanding_bytes, acknowledged_bytes, is_stalled=retransmissions > 0 or probes > 1)

    def shutdown_write(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._broken = True
            trio.lowlevel.notify_closing(self._fd)
            self._sock.close()

    def abort(self) -> None:
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()


class TcpListener:
    """See `transports.base.Listener`."""

    def __init__(self, sock: trio.socket.SocketType, network: TcpNetwork) -> None:
        self._sock = sock
        self._network = network

    async def accept(self) -> tuple[TcpStream, Host]:
        accepted, address = await self._sock.accept()
        sock = socket.socket(fileno=accepted.detach())
        try:
            self._network.tune(sock)
            peer = parse_host(address[0], address[3] if len(address) == 4 else 0)
        except BaseException:
            sock.close()
            raise
        return TcpStream(sock), peer

    def close(self) -> None:
        self._sock.close()


class TcpNetwork:
    """See `transports.base.Network`."""

    name = "tcp"

    def __init__(self, config: NodeConfig) -> None:
        self._config = config

    def tune(self, sock: socket.socket) -> None:
        """No delay, and the kernel's keepalive: a peer that is silent for about 30 s is dead. Until then TCP tries at least once a second
        where it can be told to, so that a connection goes on soon after the way is free again."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        silence_s = self._config.keepalive_idle_s + self._config.keepalive_interval_s * self._config.keepalive_probes
        for option, value in (
            ("TCP_USER_TIMEOUT", 1000 * silence_s),  # keepalive is off while something is unacknowledged
            ("TCP_KEEPIDLE", self._config.keepalive_idle_s),
            ("TCP_KEEPINTVL", self._config.keepalive_interval_s),
            ("TCP_KEEPCNT", self._config.keepalive_probes),
        ):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS)

    def watch(self, hosts: Iterable[Host]) -> Changes | None:
        """See `moves.Watched`."""
        return watch_addresses(hosts)

    async def listen(self, local: Host, port: int) -> TcpListener:
        sock = trio.socket.socket(socket.AF_INET6 if local.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if local.is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind(local.sockaddr(port))
            sock.listen(BACKLOG)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise listen_error(error, local, port) from error
            raise
        return TcpListener(sock, self)

    async def connect(self, local: Host, remote: Host, port: int) -> TcpStream:
        sock = trio.socket.socket(socket.AF_INET6 if remote.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            await sock.bind(local.sockaddr(0))
            await sock.connect(remote.sockaddr(port))
        except BaseException:
            sock.close()
            raise
        plain = socket.socket(fileno=sock.detach())
        try:
            self.tune(plain)
        except OSError:
            plain.close()
            raise
        return TcpStream(plain)


def listen_error(error: OSError, local: Host, port: int) -> OSError:
    """The same errno with the address, the port and the remedy in the text."""
    where = f"cannot listen on {local.key} port {port}/tcp"
    if error.errno == errno.EADDRINUSE:
        remedy = "the port is in use, by another rdsx node: stop that, or set NodeConfig.port on all nodes; or by the kernel's rds_tcp: "
        remedy += "unload that, or use it with transport='kernel'"
    elif error.errno == errno.EADDRNOTAVAIL:
        remedy = "the address is not one of this host's: give one that `ip address` shows"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = "not permitted: ports below 1024 need privilege; set NodeConfig.port on all nodes"
    else:
        remedy = error.strerror or str(error)
    return OSError(error.errno, f"{where}: {remedy}")
