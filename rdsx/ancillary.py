"""Control messages of sendmsg() and recvmsg(), and option structures, as typed values: nobody has to pack a struct by hand.

Each class is one structure of the kernel's include/uapi/linux/rds.h; those for RDMA live in `rdma_structs` and are named here too.
`value.control()` is what sendmsg() takes, `parse()` turns what recvmsg() returned into values, `value.pack()` is for setsockopt().
Nothing here touches a socket.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rdsx import constants as c
from rdsx.rdma_structs import (
    Atomic,
    CompareSwap,
    Control,
    ControlTriple,
    FetchAdd,
    FreeMrArgs,
    GetMrArgs,
    GetMrForDestArgs,
    IoVec,
    MaskedCompareSwap,
    MaskedFetchAdd,
    RdmaArgs,
    RdmaDest,
    RdmaStatus,
    Structure,
    pack_sockaddr,
    pack_vectors,
    unpack_sockaddr,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CompareSwap",
    "CongUpdate",
    "FetchAdd",
    "FreeMrArgs",
    "GetMrArgs",
    "GetMrForDestArgs",
    "IoVec",
    "MaskedCompareSwap",
    "MaskedFetchAdd",
    "OtherControl",
    "RdmaArgs",
    "RdmaDest",
    "RdmaStatus",
    "RxPathLatency",
    "RxTrace",
    "Timestamp",
    "ZcopyCompletion",
    "ZcopyCookie",
    "pack_sockaddr",
    "pack_vectors",
    "parse",
    "unpack_sockaddr",
]

SO_TIMESTAMP = 29
SO_TIMESTAMP_NEW = 63
MAX_LOCAL_VECTORS = 1024  # UIO_MAXIOV
MAX_RX_TRACES = 3
MAX_ZCOPY_COOKIES = 8


@dataclass(frozen=True, slots=True)
class CongUpdate(Control):
    """RDS_CMSG_CONG_UPDATE: ports (modulo 64, at any peer) that may be free again. Received alone, without a datagram."""

    layout: ClassVar[struct.Struct] = struct.Struct("=Q")
    kind: ClassVar[int] = c.RDS_CMSG_CONG_UPDATE
    mask: int

    def may_be_free(self, port: int) -> bool:
        """Whether it is worth trying a port that was congested. Only a hint: 1,024 ports of every peer share each bit."""
        return bool(self.mask >> (port & 63) & 1)


@dataclass(frozen=True, slots=True)
class RxTrace(Structure):
    """rds_rx_trace_so, for setsockopt SO_RDS_MSG_RXPATH_LATENCY: up to three positions, each 0 (header to start of datagram),
    1 (reassembly) or 2 (queued to delivered)."""

    layout: ClassVar[struct.Struct] = struct.Struct("=B3s")
    positions: tuple[int, ...]

    def _values(self) -> tuple[Any, ...]:
        if len(self.positions) > MAX_RX_TRACES or not set(self.positions) <= {0, 1, 2}:
            raise OverflowError(f"{self!r}: at most {MAX_RX_TRACES} positions, each 0, 1 or 2")
        return len(self.positions), bytes(self.positions)

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(tuple(values[1][: values[0]]))


@dataclass(frozen=True, slots=True)
class RxPathLatency(Control):
    """RDS_CMSG_RXPATH_LATENCY (rds_cmsg_rx_trace): (position, nanoseconds) pairs of the datagram it comes with."""

    layout: ClassVar[struct.Struct] = struct.Struct("=B3B4x3Q")
    kind: ClassVar[int] = c.RDS_CMSG_RXPATH_LATENCY
    traces: tuple[tuple[int, int], ...]

    def _values(self) -> tuple[Any, ...]:
        if len(self.traces) > MAX_RX_TRACES:
            raise OverflowError(f"{self!r}: at most {MAX_RX_TRACES} traces")
        padded = self.traces + ((0, 0),) * (MAX_RX_TRACES - len(self.traces))
        return len(self.traces), *(position for position, _ in padded), *(nanoseconds for _, nanoseconds in padded)

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(tuple(zip(values[1:4], values[4:], strict=True))[: values[0]])


@dataclass(frozen=True, slots=True)
class ZcopyCookie(Control):
    """RDS_CMSG_ZCOPY_COOKIE: names a zerocopy send (MSG_ZEROCOPY) in its completion."""

    layout: ClassVar[struct.Struct] = struct.Struct("=I")
    kind: ClassVar[int] = c.RDS_CMSG_ZCOPY_COOKIE
    cookie: int


@dataclass(frozen=True, slots=True)
class ZcopyCompletion(Control):
    """RDS_CMSG_ZCOPY_COMPLETION (rds_zcopy_cookies): zerocopy sends whose memory is the caller's again, up to eight."""

    layout: ClassVar[struct.Struct] = struct.Struct("=I8I")
    kind: ClassVar[int] = c.RDS_CMSG_ZCOPY_COMPLETION
    cookies: tuple[int, ...]

    def _values(self) -> tuple[Any, ...]:
        if len(self.cookies) > MAX_ZCOPY_COOKIES:
            raise OverflowError(f"{self!r}: at most {MAX_ZCOPY_COOKIES} cookies")
        return len(self.cookies), *self.cookies, *(0,) * (MAX_ZCOPY_COOKIES - len(self.cookies))

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(values[1 : 1 + min(values[0], MAX_ZCOPY_COOKIES)])


@dataclass(frozen=True, slots=True)
class Timestamp(Control):
    """SO_TIMESTAMP, and SO_TIMESTAMP_NEW which looks the same on 64-bit machines: when a datagram arrived, wall clock."""

    layout: ClassVar[struct.Struct] = struct.Struct("=qq")
    kind: ClassVar[int] = SO_TIMESTAMP
    seconds: int
    microseconds: int

    @property
    def time_s(self) -> float:
        return self.seconds + self.microseconds / 1e6

    @classmethod
    def at(cls, time_s: float) -> Self:
        return cls(int(time_s), int(time_s % 1 * 1e6))

    def control(self) -> ControlTriple:
        """As `Control.control`, but at level SOL_SOCKET."""
        return socket.SOL_SOCKET, self.kind, self.pack()


@dataclass(frozen=True, slots=True)
class OtherControl:
    """A control message that is none of the above, or was cut short (MSG_CTRUNC)."""

    level: int
    kind: int
    data: bytes


# -- both ways


RECEIVED: dict[tuple[int, int], type[Control]] = {
    (c.SOL_RDS, c.RDS_CMSG_RDMA_DEST): RdmaDest,
    (c.SOL_RDS, c.RDS_CMSG_RDMA_STATUS): RdmaStatus,
    (c.SOL_RDS, c.RDS_CMSG_CONG_UPDATE): CongUpdate,
    (c.SOL_RDS, c.RDS_CMSG_RXPATH_LATENCY): RxPathLatency,
    (c.SOL_RDS, c.RDS_CMSG_ZCOPY_COMPLETION): ZcopyCompletion,
    (socket.SOL_SOCKET, SO_TIMESTAMP): Timestamp,
    (socket.SOL_SOCKET, SO_TIMESTAMP_NEW): Timestamp,
}


def parse(ancdata: Iterable[tuple[int, int, Buffer]]) -> list[Control | OtherControl]:
    """The control messages of recvmsg() as typed values, in their order; `OtherControl` for what is unknown or cut short."""
    found: list[Control | OtherControl] = []
    for level, kind, data in ancdata:
        structure = RECEIVED.get((level, kind))
        if structure is None or not is_whole(level, kind, data):
            found.append(OtherControl(level, kind, bytes(data)))
        else:
            found.append(structure.unpack(data))
    return found


def is_whole(level: int, kind: int, data: Buffer) -> bool:
    """False for a known structure that was cut short."""
    structure = RECEIVED.get((level, kind))
    return structure is None or memoryview(data).nbytes >= structure.layout.size


def fit(control: list[ControlTriple], ancbufsize: int) -> tuple[list[ControlTriple], int]:
    """The control messages that fit `ancbufsize` bytes, and MSG_CTRUNC if any did not."""
    for index, (_, _, data) in enumerate(control):
        ancbufsize -= socket.CMSG_SPACE(len(data))
        if ancbufsize < 0:
            return control[:index], socket.MSG_CTRUNC
    return control, 0


# What may be sent. ZCOPY_COOKIE and the two that carry a cookie to the peer are one group, operations the other.
OPERATIONS: dict[int, type[Control]] = {kind.kind: kind for kind in (RdmaArgs, FetchAdd, CompareSwap, MaskedFetchAdd, MaskedCompareSwap)}
COOKIES: dict[int, type[Control]] = {kind.kind: kind for kind in (RdmaDest, GetMrArgs, ZcopyCookie)}


def sent_cookie(ancdata: Iterable[tuple[int, int, Buffer]]) -> int:
    """The cookie in RDS_CMSG_RDMA_DEST, if that is all there is; 0 without control messages. Otherwise as check_send()."""
    controls = [(kind, data) for level, kind, data in ancdata if level == c.SOL_RDS]
    if [kind for kind, _ in controls] == [c.RDS_CMSG_RDMA_DEST] and (cookie := RdmaDest.unpack(controls[0][1]).cookie):
        return cookie
    check_send((c.SOL_RDS, kind, data) for kind, data in controls)
    return 0


def check_send(ancdata: Iterable[tuple[int, int, Buffer]]) -> None:
    """Refuse what only the kernel takes as control messages, with its errnos in its order: sizes, kinds and combinations, contents,
    and only then EOPNOTSUPP. Levels other than SOL_RDS are ignored, as the kernel does.
    """
    controls = [(kind, bytes(data)) for level, kind, data in ancdata if level == c.SOL_RDS]
    if not controls:
        return
    args = [RdmaArgs.unpack(data) for kind, data in controls if kind == c.RDS_CMSG_RDMA_ARGS]
    remote_bytes = sum(one.remote.length for one in args)
    if remote_bytes > c.RDS_MAX_MSG_SIZE:
        raise OSError(errno.EMSGSIZE, f"RDMA of {remote_bytes} bytes: one message's operations move at most {c.RDS_MAX_MSG_SIZE}")
    check_kinds(controls)
    check_contents(controls)
    remedy = "use rdma_read(), rdma_write(), compare_and_swap() or fetch_and_add()"
    raise OSError(errno.EOPNOTSUPP, f"control message {controls[0][0]}: only transport='kernel' follows addresses in memory; {remedy}")


def check_kinds(controls: list[tuple[int, bytes]]) -> None:
    """Unknown kinds, numbers of local vectors, and combinations."""
    for kind, data in controls:
        if kind not in OPERATIONS and kind not in COOKIES:
            raise OSError(errno.EINVAL, f"control message {kind} is not one that RDS takes on send; see rdsx.ancillary for those that are")
        if kind == c.RDS_CMSG_RDMA_ARGS:
            count = RdmaArgs.unpack(data).local_count
            if not count:
                raise OSError(errno.EINVAL, "RDS_CMSG_RDMA_ARGS with local_count 0: an RDMA operation needs local memory")
            if count > MAX_LOCAL_VECTORS:
                raise OSError(errno.EMSGSIZE, f"RDS_CMSG_RDMA_ARGS with local_count {count}: at most {MAX_LOCAL_VECTORS}")
    kinds = {kind for kind, _ in controls}
    if not kinds.isdisjoint(OPERATIONS) and not kinds.isdisjoint(COOKIES):
        raise OSError(errno.EINVAL, f"control messages {sorted(kinds)}: either a cookie or operations, not both; send two messages")


def check_contents(controls: list[tuple[int, bytes]]) -> None:
    """Each structure, in the order given. The one cookie that may be sent has gone another way: sent_cookie()."""
    seen: set[str] = set()
    for kind, data in controls:
        structure = (OPERATIONS.get(kind) or COOKIES[kind]).unpack(data)
        group = "cookie" if kind in COOKIES else "atomic operation" if isinstance(structure, Atomic) else "RDMA operation"
        if group in seen:
            raise OSError(errno.EINVAL, f"control message {kind}: a message carries at most one {group}; send two messages")
        seen.add(group)
        if isinstance(structure, ZcopyCookie):
            raise OSError(errno.EINVAL, f"{structure}: MSG_ZEROCOPY is not there and not needed: bytes are sent uncopied anyway")
        if isinstance(structure, RdmaDest):
            raise OSError(errno.EINVAL, f"{structure} names no memory that this socket has registered with get_mr()")
        if isinstance(structure, GetMrArgs):
            raise OSError(errno.EOPNOTSUPP, f"{structure}: only transport='kernel' follows addresses in memory; use get_mr()")
        if isinstance(structure, Atomic) and structure.local_address % 8:
            raise OSError(errno.EFAULT, f"{structure}: local_address must be a multiple of 8")
