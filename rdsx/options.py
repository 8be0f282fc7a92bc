"""Socket options with the kernel's numbers, checks and oddities; what they hold beyond the endpoint's own limits."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import trio
from typing_extensions import Buffer

from rdsx import constants as c
from rdsx.ancillary import unpack_sockaddr

if TYPE_CHECKING:
    from rdsx.sockets import RdsSocket

__all__ = ["SocketOptions", "get_option", "set_option", "time_limit"]

SO_TIMESTAMP = 29
SO_TIMESTAMP_NEW = 63
# Smallest values of sk_sndbuf and sk_rcvbuf, which are twice the effective sizes (SOCK_MIN_SNDBUF, SOCK_MIN_RCVBUF).
MIN_SNDBUF = 4608
MIN_RCVBUF = 2304


@dataclass(slots=True)
class SocketOptions:
    """Options that only the Python side looks at."""

    send_timeout_s: float = inf
    receive_timeout_s: float = inf
    timestamp: bool = False
    receive_errors: bool = False
    transport: int = c.RDS_TRANS_NONE


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """SO_SNDTIMEO and SO_RCVTIMEO: ETIMEDOUT, not EAGAIN, as RDS has it."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing happened within the {seconds} s that SO_SNDTIMEO or SO_RCVTIMEO allows")


def integer(value: int | Buffer, *, exact: bool = False) -> int:
    """An option's int; EINVAL if `value` is too short (or, for `exact`, of any other length) for one."""
    if isinstance(value, int):
        return value
    packed = bytes(value)
    if len(packed) < 4 or (exact and len(packed) != 4):
        raise OSError(errno.EINVAL, f"the option takes an int (4 bytes), not {len(packed)} bytes")
    return int(struct.unpack_from("i", packed)[0])


def seconds(value: int | Buffer) -> float:
    """A struct timeval; 0 means no limit."""
    packed = b"" if isinstance(value, int) else bytes(value)
    if len(packed) != 16:
        raise OSError(errno.EINVAL, "the option takes a struct timeval: struct.pack('ll', seconds, microseconds)")
    whole, micro = struct.unpack("ll", packed)
    if not 0 <= micro < 1_000_000:
        raise OSError(errno.EDOM, f"microseconds must be 0..999999, not {micro}")
    return (whole + micro / 1e6) or inf


def timeval(limit_s: float) -> bytes:
    if limit_s == inf:
        return struct.pack("ll", 0, 0)
    return struct.pack("ll", int(limit_s), round(limit_s % 1 * 1e6))


def no_option(level: int, option: int) -> OSError:
    return OSError(errno.ENOPROTOOPT, f"option {option} at level {level} is not one that an RDS socket has here")


# -- setting


def set_sndbuf(sock: RdsSocket, value: int | Buffer) -> None:
    limit = sock._node.config.max_buffer_bytes
    sock._endpoint.send_limit = max(2 * min(integer(value), limit), MIN_SNDBUF) // 2
    sock._raised_send_limit()


def set_rcvbuf(sock: RdsSocket, value: int | Buffer) -> None:
    limit = sock._node.config.max_buffer_bytes
    sock._endpoint.receive_limit = max(2 * min(integer(value), limit), MIN_RCVBUF) // 2


def set_sndtimeo(sock: RdsSocket, value: int | Buffer) -> None:
    sock.options.send_timeout_s = seconds(value)


def set_rcvtimeo(sock: RdsSocket, value: int | Buffer) -> None:
    sock.options.receive_timeout_s = seconds(value)


def set_timestamp(sock: RdsSocket, value: int | Buffer) -> None:
    sock.options.timestamp = bool(integer(value))


def set_cancel_sent_to(sock: RdsSocket, value: int | Buffer) -> None:
    if sock._host is None:
        sock._check_bound()
    if isinstance(value, int):
        raise OSError(errno.EINVAL, "RDS_CANCEL_SENT_TO takes a packed sockaddr: rdsx.ancillary.pack_sockaddr(address), or use cancel_sent_to()")
    sock.cancel_sent_to(unpack_sockaddr(bytes(value)))


def set_recverr(sock: RdsSocket, value: int | Buffer) -> None:
    sock.options.receive_errors = bool(integer(value))


def set_cong_monitor(sock: RdsSocket, value: int | Buffer) -> None:
    sock._set_monitored(bool(integer(value)))


def set_transport(sock: RdsSocket, value: int | Buffer) -> None:
    wanted = integer(value, exact=True)
    if sock._host is not None or sock.options.transport != c.RDS_TRANS_NONE:
        raise OSError(errno.EOPNOTSUPP, "the socket has its transport already; SO_RDS_TRANSPORT must come first, and before bind()")
    if not 0 <= wanted < 3:
        raise OSError(errno.EINVAL, f"SO_RDS_TRANSPORT must be 0 (IB) or 2 (TCP), not {wanted}")
    if wanted != transport_of(sock):
        raise OSError(errno.ENOPROTOOPT, f"this node's transport is not number {wanted}; open_node chooses it")
    sock.options.transport = wanted


def no_memory_registration(sock: RdsSocket, value: int | Buffer) -> None:
    sock._check_bound()
    raise OSError(errno.EOPNOTSUPP, "memory registration needs the verbs transport; this node's transport has none")


SETTERS: dict[tuple[int, int], Callable[[RdsSocket, int | Buffer], None]] = {
    (socket.SOL_SOCKET, socket.SO_SNDBUF): set_sndbuf,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): set_rcvbuf,
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO): set_sndtimeo,
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO): set_rcvtimeo,
    (socket.SOL_SOCKET, SO_TIMESTAMP): set_timestamp,
    (socket.SOL_SOCKET, SO_TIMESTAMP_NEW): set_timestamp,
    (c.SOL_RDS, SO_TIMESTAMP): set_timestamp,
    (c.SOL_RDS, SO_TIMESTAMP_NEW): set_timestamp,
    (c.SOL_RDS, c.RDS_CANCEL_SENT_TO): set_cancel_sent_to,
    (c.SOL_RDS, c.RDS_RECVERR): set_recverr,
    (c.SOL_RDS, c.RDS_CONG_MONITOR): set_cong_monitor,
    (c.SOL_RDS, c.SO_RDS_TRANSPORT): set_transport,
    (c.SOL_RDS, c.RDS_GET_MR): no_memory_registration,
    (c.SOL_RDS, c.RDS_GET_MR_FOR_DEST): no_memory_registration,
    (c.SOL_RDS, c.RDS_FREE_MR): no_memory_registration,
}


def set_option(sock: RdsSocket, level: int, option: int, value: int | Buffer) -> None:
    """See RdsSocket.setsockopt()."""
    setter = SETTERS.get((level, option))
    if setter is None:
        raise no_option(level, option)
    setter(sock, value)


# -- getting


def transport_of(sock: RdsSocket) -> int:
    return c.RDS_TRANS_TCP if sock._node.transport_name != "loop" else c.RDS_TRANS_LOOP


def get_transport(sock: RdsSocket) -> int:
    return sock.options.transport if sock._host is None else transport_of(sock)


GETTERS: dict[tuple[int, int], Callable[[RdsSocket], int | bytes]] = {
    (socket.SOL_SOCKET, socket.SO_SNDBUF): lambda sock: 2 * sock._endpoint.send_limit,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): lambda sock: 2 * sock._endpoint.receive_limit,
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO): lambda sock: timeval(sock.options.send_timeout_s),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO): lambda sock: timeval(sock.options.receive_timeout_s),
    (socket.SOL_SOCKET, SO_TIMESTAMP): lambda sock: int(sock.options.timestamp),
    (socket.SOL_SOCKET, socket.SO_TYPE): lambda sock: int(socket.SOCK_SEQPACKET),
    (socket.SOL_SOCKET, socket.SO_DOMAIN): lambda sock: c.AF_RDS,
    (socket.SOL_SOCKET, socket.SO_PROTOCOL): lambda sock: 0,
    (c.SOL_RDS, c.RDS_RECVERR): lambda sock: int(sock.options.receive_errors),
    (c.SOL_RDS, c.SO_RDS_TRANSPORT): get_transport,
}


def get_option(sock: RdsSocket, level: int, option: int, buflen: int) -> int | bytes:
    """See RdsSocket.getsockopt()."""
    getter = GETTERS.get((level, option))
    if getter is None:
        raise no_option(level, option)
    value = getter(sock)
    if isinstance(value, int) and buflen:
        if buflen < 4:
            raise OSError(errno.EINVAL, f"the option is an int: buflen must be at least 4, not {buflen}")
        return struct.pack("i", value)
    return value[:buflen] if isinstance(value, bytes) and buflen else value
