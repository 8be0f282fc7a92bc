"""Socket options with the kernel's numbers, checks and oddities; what they hold beyond the endpoint's own limits.

There are no TOS ioctls: a connection here has no type of service. Departures from the kernel stand where they are made.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import trio

from rdsx import constants as c
from rdsx.ancillary import SO_TIMESTAMP, SO_TIMESTAMP_NEW, FreeMrArgs, GetMrArgs, GetMrForDestArgs, unpack_sockaddr

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.engine_socket import EngineSocket

__all__ = ["SocketOptions", "get_option", "set_option", "time_limit", "within"]

SO_ZEROCOPY = 60
SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW = 66, 67
RDS_INFO_FIRST, RDS_INFO_LAST = 10000, 10017
# Smallest values of sk_sndbuf and sk_rcvbuf, which are twice the effective sizes (SOCK_MIN_SNDBUF, SOCK_MIN_RCVBUF).
MIN_SNDBUF = 4608
MIN_RCVBUF = 2304


@dataclass(slots=True)
class SocketOptions:
    """Options that only the Python side looks at."""

    send_timeout_s: float = inf
    receive_timeout_s: float = inf
    timestamp: int = 0  # SO_TIMESTAMP or SO_TIMESTAMP_NEW: the control message to give; 0 for none
    reuse_address: bool = False
    receive_errors: bool = False
    transport: int = c.RDS_TRANS_NONE


NO_LIMIT = contextlib.nullcontext()


def time_limit(seconds: float) -> contextlib.AbstractContextManager[None]:
    """SO_SNDTIMEO and SO_RCVTIMEO: ETIMEDOUT, not EAGAIN, as RDS has it."""
    return NO_LIMIT if seconds == inf else limited(seconds)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(errno.ETIMEDOUT, f"nothing happened within the {seconds} s that SO_SNDTIMEO or SO_RCVTIMEO allows")


async def within(seconds: float, waiting: Awaitable[None]) -> None:
    """Wait for so long at most; see time_limit()."""
    with limited(seconds):
        await waiting


def integer(value: int | Buffer, *, exact: bool = False, wrong_length: int = errno.EINVAL) -> int:
    """An option's int; `wrong_length` if `value` is too short (or, for `exact`, of any other length) for one."""
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise OverflowError(f"the option takes a C int, {value} is none: it must be -2147483648..2147483647")
        return value
    packed = octets(value)
    if len(packed) < 4 or (exact and len(packed) != 4):
        raise OSError(wrong_length, f"the option takes an int, or 4 bytes as struct.pack('i', …) makes them, not {len(packed)} bytes")
    return int(struct.unpack_from("i", packed)[0])


def octets(value: int | Buffer) -> bytes:
    """An option's structure; an int is four bytes, as for the kernel. TypeError for anything else."""
    if isinstance(value, int):
        return struct.pack("i", integer(value))
    try:
        return bytes(memoryview(value))
    except TypeError:
        raise TypeError(f"an option's value is an int or a bytes-like object, not {value!r}") from None


def seconds(value: int | Buffer) -> float:
    """A struct timeval; 0 means no limit, negative means not to wait at all."""
    packed = octets(value)
    if len(packed) < 16:
        raise OSError(errno.EINVAL, f"the option takes struct.pack('ll', seconds, microseconds), 16 bytes, not {len(packed)}")
    whole, micro = struct.unpack_from("ll", packed)
    if not 0 <= micro < 1_000_000:
        raise OSError(errno.EDOM, f"microseconds must be 0..999999, not {micro}: put whole seconds into the first field")
    if whole < 0:
        return 0.0
    return (whole + micro / 1e6) or inf


def timeval(limit_s: float) -> bytes:
    if limit_s == inf:
        return struct.pack("ll", 0, 0)
    return struct.pack("ll", int(limit_s), round(limit_s % 1 * 1e6))


def no_option(level: int, option: int) -> OSError:
    reason = "is not one that an RDS socket has here; rdsx.options lists those that it has"
    if level == c.SOL_RDS and option == c.SO_RDS_MSG_RXPATH_LATENCY:
        reason = "(SO_RDS_MSG_RXPATH_LATENCY) traces the kernel's receive path, which is not used here; SO_TIMESTAMP gives arrival times"
    elif level == c.SOL_RDS and RDS_INFO_FIRST <= option <= RDS_INFO_LAST:
        reason = "(RDS_INFO) is the kernel's; node.statistics() tells the same here"
    elif (level, option) == (socket.SOL_SOCKET, SO_ZEROCOPY):
        reason = "(SO_ZEROCOPY) is not needed here: bytes objects are always sent without a copy"
    return OSError(errno.ENOPROTOOPT, f"option {option} at level {level} {reason}")


# -- setting


def unsigned(value: int | Buffer) -> int:
    """A buffer size: the kernel takes a negative one for a very large one."""
    return integer(value) & 0xFFFFFFFF


def set_sndbuf(sock: EngineSocket, value: int | Buffer) -> None:
    limit = sock._driver.config.max_buffer_bytes
    sock._endpoint.send_limit = max(2 * min(unsigned(value), limit), MIN_SNDBUF) // 2
    sock._raised_send_limit()


def set_rcvbuf(sock: EngineSocket, value: int | Buffer) -> None:
    limit = sock._driver.config.max_buffer_bytes
    sock._endpoint.receive_limit = max(2 * min(unsigned(value), limit), MIN_RCVBUF) // 2


def set_sndtimeo(sock: EngineSocket, value: int | Buffer) -> None:
    sock.options.send_timeout_s = seconds(value)


def set_rcvtimeo(sock: EngineSocket, value: int | Buffer) -> None:
    sock.options.receive_timeout_s = seconds(value)


def set_timestamp(sock: EngineSocket, value: int | Buffer) -> None:
    sock.options.timestamp = SO_TIMESTAMP if integer(value) else 0
    sock._endpoint.stamped = bool(sock.options.timestamp)


def set_timestamp_new(sock: EngineSocket, value: int | Buffer) -> None:
    sock.options.timestamp = SO_TIMESTAMP_NEW if integer(value) else 0
    sock._endpoint.stamped = bool(sock.options.timestamp)


def set_rds_timestamp(sock: EngineSocket, value: int | Buffer) -> None:
    set_timestamp(sock, integer(value, exact=True, wrong_length=errno.EFAULT))


def set_rds_timestamp_new(sock: EngineSocket, value: int | Buffer) -> None:
    set_timestamp_new(sock, integer(value, exact=True, wrong_length=errno.EFAULT))


def set_reuse_address(sock: EngineSocket, value: int | Buffer) -> None:
    """Taken, and without effect, as in the kernel: an RDS port has one socket."""
    sock.options.reuse_address = bool(integer(value))


def set_cancel_sent_to(sock: EngineSocket, value: int | Buffer) -> None:
    sock._check_bound()
    packed = octets(value)
    if len(packed) < 16:
        raise OSError(
            errno.EINVAL,
            f"RDS_CANCEL_SENT_TO takes rdsx.ancillary.pack_sockaddr(address), not {len(packed)} bytes; or use cancel_sent_to()",
        )
    sock.cancel_sent_to(unpack_sockaddr(packed))


def set_recverr(sock: EngineSocket, value: int | Buffer) -> None:
    sock.options.receive_errors = bool(integer(value))


def set_cong_monitor(sock: EngineSocket, value: int | Buffer) -> None:
    """Not so here: the kernel, when told to stop, also clears the congestion bit of the socket's own port, however full it is."""
    sock._set_monitored(bool(integer(value)))


def set_transport(sock: EngineSocket, value: int | Buffer) -> None:
    if sock._host is not None or sock.options.transport != c.RDS_TRANS_NONE:
        raise OSError(errno.EOPNOTSUPP, "the socket has its transport already; SO_RDS_TRANSPORT must come first, and before bind()")
    wanted = integer(value, exact=True)
    if not 0 <= wanted < 3:
        raise OSError(errno.EINVAL, f"SO_RDS_TRANSPORT must be 0 (IB) or 2 (TCP), not {wanted}")
    if wanted != transport_of(sock):
        raise OSError(errno.ENOPROTOOPT, f"this node's transport is not number {wanted}; open_node chooses it")
    sock.options.transport = wanted


def set_get_mr(sock: EngineSocket, value: int | Buffer) -> None:
    refuse_registration(sock, octets(value), GetMrArgs.layout.size, "rdsx.ancillary.GetMrArgs")


def set_get_mr_for_dest(sock: EngineSocket, value: int | Buffer) -> None:
    refuse_registration(sock, octets(value), GetMrForDestArgs.layout.size, "rdsx.ancillary.GetMrForDestArgs")


def refuse_registration(sock: EngineSocket, packed: bytes, size: int, structure: str) -> None:
    if len(packed) != size:
        raise OSError(errno.EINVAL, f"the option takes {structure}(…).pack(), exactly {size} bytes, not {len(packed)}")
    sock._check_bound()
    raise OSError(errno.EOPNOTSUPP, f"option of {structure}: only transport='kernel' follows addresses in memory; use get_mr()")


def set_free_mr(sock: EngineSocket, value: int | Buffer) -> None:
    packed = octets(value)
    if len(packed) != FreeMrArgs.layout.size:
        raise OSError(errno.EINVAL, f"the option takes rdsx.ancillary.FreeMrArgs(…).pack(), exactly 16 bytes, not {len(packed)}")
    args = FreeMrArgs.unpack(packed)
    sock.free_mr(args.cookie, invalidate=bool(args.flags & c.RDS_RDMA_INVALIDATE))


SETTERS: dict[tuple[int, int], Callable[[EngineSocket, int | Buffer], None]] = {
    (socket.SOL_SOCKET, socket.SO_SNDBUF): set_sndbuf,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): set_rcvbuf,
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO): set_sndtimeo,
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO): set_rcvtimeo,
    (socket.SOL_SOCKET, SO_SNDTIMEO_NEW): set_sndtimeo,
    (socket.SOL_SOCKET, SO_RCVTIMEO_NEW): set_rcvtimeo,
    (socket.SOL_SOCKET, SO_TIMESTAMP): set_timestamp,
    (socket.SOL_SOCKET, SO_TIMESTAMP_NEW): set_timestamp_new,
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): set_reuse_address,
    (c.SOL_RDS, SO_TIMESTAMP): set_rds_timestamp,
    (c.SOL_RDS, SO_TIMESTAMP_NEW): set_rds_timestamp_new,
    (c.SOL_RDS, c.RDS_CANCEL_SENT_TO): set_cancel_sent_to,
    (c.SOL_RDS, c.RDS_RECVERR): set_recverr,
    (c.SOL_RDS, c.RDS_CONG_MONITOR): set_cong_monitor,
    (c.SOL_RDS, c.SO_RDS_TRANSPORT): set_transport,
    (c.SOL_RDS, c.RDS_GET_MR): set_get_mr,
    (c.SOL_RDS, c.RDS_GET_MR_FOR_DEST): set_get_mr_for_dest,
    (c.SOL_RDS, c.RDS_FREE_MR): set_free_mr,
}


def set_option(sock: EngineSocket, level: int, option: int, value: int | Buffer) -> None:
    """See RdsSocket.setsockopt()."""
    setter = SETTERS.get((level, option))
    if setter is None:
        raise no_option(level, option)
    setter(sock, value)


# -- getting


def transport_of(sock: EngineSocket) -> int:
    return {"loop": c.RDS_TRANS_LOOP, "verbs": c.RDS_TRANS_IB}.get(sock._driver.transport_name, c.RDS_TRANS_TCP)


def get_transport(sock: EngineSocket) -> int:
    return sock.options.transport if sock._host is None else transport_of(sock)


GETTERS: dict[tuple[int, int], Callable[[EngineSocket], int | bytes]] = {
    (socket.SOL_SOCKET, socket.SO_SNDBUF): lambda sock: 2 * sock._endpoint.send_limit,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): lambda sock: 2 * sock._endpoint.receive_limit,
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO): lambda sock: timeval(sock.options.send_timeout_s),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO): lambda sock: timeval(sock.options.receive_timeout_s),
    (socket.SOL_SOCKET, SO_SNDTIMEO_NEW): lambda sock: timeval(sock.options.send_timeout_s),
    (socket.SOL_SOCKET, SO_RCVTIMEO_NEW): lambda sock: timeval(sock.options.receive_timeout_s),
    (socket.SOL_SOCKET, SO_TIMESTAMP): lambda sock: int(sock.options.timestamp == SO_TIMESTAMP),
    (socket.SOL_SOCKET, SO_TIMESTAMP_NEW): lambda sock: int(sock.options.timestamp == SO_TIMESTAMP_NEW),
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): lambda sock: int(sock.options.reuse_address),
    (socket.SOL_SOCKET, socket.SO_ERROR): lambda sock: 0,
    (socket.SOL_SOCKET, socket.SO_TYPE): lambda sock: int(socket.SOCK_SEQPACKET),
    (socket.SOL_SOCKET, socket.SO_DOMAIN): lambda sock: c.AF_RDS,
    (socket.SOL_SOCKET, socket.SO_PROTOCOL): lambda sock: 0,
    (c.SOL_RDS, c.RDS_RECVERR): lambda sock: int(sock.options.receive_errors),
    (c.SOL_RDS, c.SO_RDS_TRANSPORT): get_transport,
}


def get_option(sock: EngineSocket, level: int, option: int, buflen: int) -> int | bytes:
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
