"""Structures of the kernel's include/uapi/linux/rds.h that have to do with RDMA, and what all such structures share.

Native byte order, 64-bit layout. `pack()` gives a structure's bytes (what setsockopt() takes), `unpack()` reads them, and those
that travel with a message have `control()`, the (level, type, data) triple that sendmsg() takes. Memory addresses are plain
integers and never followed here. Import these names from `rdsx.ancillary`.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from rdsx import constants as c
from rdsx.addresses import SockAddr, parse_host, parse_sockaddr

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Atomic",
    "CompareSwap",
    "Control",
    "ControlTriple",
    "FetchAdd",
    "FreeMrArgs",
    "GetMrArgs",
    "GetMrForDestArgs",
    "IoVec",
    "MaskedCompareSwap",
    "MaskedFetchAdd",
    "RdmaArgs",
    "RdmaDest",
    "RdmaStatus",
    "Structure",
    "pack_sockaddr",
    "pack_vectors",
    "unpack_sockaddr",
]

ControlTriple = tuple[int, int, bytes]


class Structure:
    """A kernel structure of fixed layout."""

    __slots__ = ()
    layout: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        """The structure's bytes. OverflowError if a number does not fit its field."""
        try:
            return self.layout.pack(*self._values())
        except struct.error as error:
            raise OverflowError(f"{self!r}: {error}; a value must fit the kernel's field") from None

    @classmethod
    def unpack(cls, data: Buffer) -> Self:
        """Read the structure from the beginning of `data`. OSError EINVAL if that is too short."""
        view = memoryview(data)
        if view.nbytes < cls.layout.size:
            raise OSError(errno.EINVAL, f"{cls.__name__} has {cls.layout.size} bytes, not {view.nbytes}")
        return cls._from_values(*cls.layout.unpack_from(view))

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, one.name) for one in fields(cast(Any, self)))

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(*values)


class Control(Structure):
    """A structure that travels as a control message."""

    __slots__ = ()
    kind: ClassVar[int]

    def control(self) -> ControlTriple:
        """The (level, type, data) triple for sendmsg()."""
        return c.SOL_RDS, self.kind, self.pack()


# -- addresses


def pack_sockaddr(address: SockAddr) -> bytes:
    """A struct sockaddr_in or sockaddr_in6, for RDS_CANCEL_SENT_TO."""
    host, port = parse_sockaddr(address)
    if host.is_ipv6:
        packed = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + host.ip.packed
        return packed + struct.pack("=I", host.scope)
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + host.ip.packed + bytes(8)


def unpack_sockaddr(packed: bytes) -> SockAddr:
    """The address in a struct sockaddr, read by its length alone, as the kernel does. EINVAL if shorter than 16 bytes."""
    if len(packed) < 16:
        raise OSError(errno.EINVAL, f"a sockaddr_in has 16 bytes, a sockaddr_in6 28, not {len(packed)}")
    (port,) = struct.unpack_from(">H", packed, 2)
    if len(packed) < 28:
        return socket.inet_ntop(socket.AF_INET, packed[4:8]), port
    (scope,) = struct.unpack_from("=I", packed, 24)
    return parse_host(socket.inet_ntop(socket.AF_INET6, packed[8:24]), scope).sockaddr(port)


# -- memory and RDMA


@dataclass(frozen=True, slots=True)
class IoVec(Structure):
    """rds_iovec: `length` bytes at `address`."""

    layout: ClassVar[struct.Struct] = struct.Struct("=QQ")
    address: int
    length: int


def pack_vectors(vectors: Iterable[IoVec]) -> bytes:
    """An array of rds_iovec: what `RdmaArgs.local_address` points to."""
    return b"".join(vector.pack() for vector in vectors)


@dataclass(frozen=True, slots=True)
class RdmaDest(Control):
    """RDS_CMSG_RDMA_DEST: the cookie of registered memory, sent to the peer that may use it, and received there."""

    layout: ClassVar[struct.Struct] = struct.Struct("=Q")
    kind: ClassVar[int] = c.RDS_CMSG_RDMA_DEST
    cookie: int

    @property
    def rkey(self) -> int:
        return self.cookie & 0xFFFFFFFF

    @property
    def offset(self) -> int:
        """Where the registered range starts inside its first page."""
        return self.cookie >> 32


@dataclass(frozen=True, slots=True)
class GetMrArgs(Control):
    """rds_get_mr_args: memory to register. For setsockopt RDS_GET_MR, and as the control message RDS_CMSG_RDMA_MAP."""

    layout: ClassVar[struct.Struct] = struct.Struct("=QQQQ")
    kind: ClassVar[int] = c.RDS_CMSG_RDMA_MAP
    vector: IoVec
    cookie_address: int = 0
    flags: int = 0

    def _values(self) -> tuple[Any, ...]:
        return self.vector.address, self.vector.length, self.cookie_address, self.flags

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(IoVec(*values[:2]), *values[2:])


@dataclass(frozen=True, slots=True)
class GetMrForDestArgs(Structure):
    """rds_get_mr_for_dest_args, for setsockopt RDS_GET_MR_FOR_DEST. The kernel ignores the destination."""

    layout: ClassVar[struct.Struct] = struct.Struct("=128sQQQQ")
    destination: SockAddr
    vector: IoVec
    cookie_address: int = 0
    flags: int = 0

    def _values(self) -> tuple[Any, ...]:
        return pack_sockaddr(self.destination), self.vector.address, self.vector.length, self.cookie_address, self.flags

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        storage: bytes = values[0]
        is_ipv6 = struct.unpack_from("=H", storage)[0] == socket.AF_INET6
        return cls(unpack_sockaddr(storage[: 28 if is_ipv6 else 16]), IoVec(*values[1:3]), *values[3:])


@dataclass(frozen=True, slots=True)
class FreeMrArgs(Structure):
    """rds_free_mr_args, for setsockopt RDS_FREE_MR. Cookie 0 flushes all unused registrations."""

    layout: ClassVar[struct.Struct] = struct.Struct("=QQ")
    cookie: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class RdmaArgs(Control):
    """rds_rdma_args: read from or (flag RDS_RDMA_READWRITE) write to the peer's memory `remote`, whose `address` is relative to the
    start of the registered range. `local_address` is that of an array of `local_count` rds_iovec; see pack_vectors()."""

    layout: ClassVar[struct.Struct] = struct.Struct("=QQQQQQQ")
    kind: ClassVar[int] = c.RDS_CMSG_RDMA_ARGS
    cookie: int
    remote: IoVec
    local_address: int
    local_count: int
    flags: int = 0
    user_token: int = 0

    def _values(self) -> tuple[Any, ...]:
        remote = self.remote
        return self.cookie, remote.address, remote.length, self.local_address, self.local_count, self.flags, self.user_token

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(values[0], IoVec(*values[1:3]), *values[3:])


@dataclass(frozen=True, slots=True)
class Atomic(Control):
    """rds_atomic_args: an operation on 8 bytes of the peer's memory, whose old value goes to `local_address` (8-byte aligned).
    The operation's own fields follow `remote_address`."""

    layout: ClassVar[struct.Struct] = struct.Struct("=QQQ4QQQ")
    operands: ClassVar[tuple[str, ...]]
    cookie: int
    local_address: int
    remote_address: int
    flags: int = field(default=0, kw_only=True)
    user_token: int = field(default=0, kw_only=True)

    def _values(self) -> tuple[Any, ...]:
        own = [getattr(self, name) for name in self.operands]
        return self.cookie, self.local_address, self.remote_address, *own, *[0] * (4 - len(own)), self.flags, self.user_token

    @classmethod
    def _from_values(cls, *values: Any) -> Self:
        return cls(*values[: 3 + len(cls.operands)], flags=values[7], user_token=values[8])


@dataclass(frozen=True, slots=True)
class FetchAdd(Atomic):
    """RDS_CMSG_ATOMIC_FADD."""

    kind: ClassVar[int] = c.RDS_CMSG_ATOMIC_FADD
    operands: ClassVar[tuple[str, ...]] = ("add",)
    add: int


@dataclass(frozen=True, slots=True)
class CompareSwap(Atomic):
    """RDS_CMSG_ATOMIC_CSWP."""

    kind: ClassVar[int] = c.RDS_CMSG_ATOMIC_CSWP
    operands: ClassVar[tuple[str, ...]] = ("compare", "swap")
    compare: int
    swap: int


@dataclass(frozen=True, slots=True)
class MaskedFetchAdd(Atomic):
    """RDS_CMSG_MASKED_ATOMIC_FADD: carries stop at the bits set in `nocarry_mask`."""

    kind: ClassVar[int] = c.RDS_CMSG_MASKED_ATOMIC_FADD
    operands: ClassVar[tuple[str, ...]] = ("add", "nocarry_mask")
    add: int
    nocarry_mask: int


@dataclass(frozen=True, slots=True)
class MaskedCompareSwap(Atomic):
    """RDS_CMSG_MASKED_ATOMIC_CSWP: only the bits of `compare_mask` are compared, only those of `swap_mask` replaced."""

    kind: ClassVar[int] = c.RDS_CMSG_MASKED_ATOMIC_CSWP
    operands: ClassVar[tuple[str, ...]] = ("compare", "swap", "compare_mask", "swap_mask")
    compare: int
    swap: int
    compare_mask: int
    swap_mask: int


@dataclass(frozen=True, slots=True)
class RdmaStatus(Control):
    """RDS_CMSG_RDMA_STATUS (rds_rdma_notify): an operation with this token has finished. Received alone, without a datagram."""

    layout: ClassVar[struct.Struct] = struct.Struct("=Qi4x")
    kind: ClassVar[int] = c.RDS_CMSG_RDMA_STATUS
    user_token: int
    status: int
