"""RDMA operations of one AF_RDS socket: control messages that say what to do, and notifications that tell what became of it.

The kernel pins the memory it is told of; a lease keeps its owner from freeing it meanwhile. Notifications come in with what any receive
call reads; while operations are pending and nobody receives, a task looks for them. Invariant: a lease is held until the kernel has
let go of the memory.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from itertools import count

from rdsx import constants as c
from rdsx.ancillary import (
    CompareSwap,
    FetchAdd,
    FreeMrArgs,
    GetMrArgs,
    IoVec,
    MaskedCompareSwap,
    MaskedFetchAdd,
    RdmaArgs,
    RdmaStatus,
    pack_vectors,
)
from rdsx.memory import ALL_BITS, Lease
from rdsx.operations import RdmaOperation, RdmaOutcome
from rdsx.sockets import ControlMessage

__all__ = ["NOBODYS_PORT", "Cookie", "KernelOperations", "map_args"]

FIRST_TOKEN = 2**63  # what users choose themselves, for control messages of their own, is hardly as large
NOBODYS_PORT = 1  # no socket can have it: a message there is dropped, and has brought its sender a registration


class Cookie:
    """Where the kernel writes a cookie."""

    def __init__(self) -> None:
        self._number = ctypes.c_uint64()
        self.address = ctypes.addressof(self._number)

    @property
    def value(self) -> int:
        return self._number.value


def map_args(lease: Lease, cookie: Cookie, *, use_once: bool) -> GetMrArgs:
    """What registers the memory, and where its cookie goes."""
    flags = c.RDS_RDMA_READWRITE | (c.RDS_RDMA_USE_ONCE | c.RDS_RDMA_INVALIDATE if use_once else 0)
    return GetMrArgs(IoVec(lease.address, lease.length), cookie.address, flags)


class KernelOperations:
    """Leases of registered memory, and operations without outcome. `watch(is_done)` is to look for notifications until it is so."""

    def __init__(self, watch: Callable[[Callable[[], bool]], None]) -> None:
        self._watch = watch
        self._registered: dict[int, Lease] = {}
        self._pending: dict[int, tuple[RdmaOperation, Lease]] = {}
        self._tokens = count(FIRST_TOKEN)

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    # -- memory for peers

    def registered(self, cookie: int, lease: Lease) -> None:
        self._registered[cookie] = lease

    def free_args(self, cookie: int, *, invalidate: bool) -> FreeMrArgs:
        """What frees it. OSError EINVAL for what is not registered."""
        if cookie not in self._registered:
            raise OSError(errno.EINVAL, f"cookie {cookie:#x} names no memory that this socket has registered with get_mr()")
        return FreeMrArgs(cookie, c.RDS_RDMA_INVALIDATE if invalidate else 0)

    def freed(self, cookie: int) -> None:
        self._registered.pop(cookie).release()

    # -- operations

    def control(
        self, handle: RdmaOperation, lease: Lease, offset: int, operands: tuple[int, ...], *, fence: bool
    ) -> tuple[int, list[ControlMessage], object]:
        """(token, control messages that ask for it, what must exist until they are sent)."""
        token = next(self._tokens)
        flags = c.RDS_RDMA_NOTIFY_ME | (c.RDS_RDMA_FENCE if fence else 0)
        cookie, where = handle.cookie, lease.address
        if handle.kind in ("read", "write"):
            vectors = ctypes.create_string_buffer(pack_vectors([IoVec(where, lease.length)]))
            if handle.kind == "write":
                flags |= c.RDS_RDMA_READWRITE
            args = RdmaArgs(cookie, IoVec(offset, lease.length), ctypes.addressof(vectors), 1, flags, token)
            return token, [args.control()], vectors
        if handle.kind == "compare_and_swap":
            compare, swap, *masks = operands
            if masks == [ALL_BITS, ALL_BITS]:
                return token, [CompareSwap(cookie, where, offset, compare, swap, flags=flags, user_token=token).control()], None
            return token, [MaskedCompareSwap(cookie, where, offset, *operands, flags=flags, user_token=token).control()], None
        add, nocarry_mask = operands
        if not nocarry_mask:
            return token, [FetchAdd(cookie, where, offset, add, flags=flags, user_token=token).control()], None
        return token, [MaskedFetchAdd(cookie, where, offset, *operands, flags=flags, user_token=token).control()], None

    def started(self, token: int, handle: RdmaOperation, lease: Lease) -> None:
        """The kernel has it."""
        self._pending[token] = handle, lease
        if len(self._pending) == 1:
            self._watch(lambda: not self._pending)

    def take(self, control: list[ControlMessage]) -> list[ControlMessage]:
        """Take in the notifications that are ours; returns the others."""
        return [one for one in control if not self._take(*one)]

    def _take(self, level: int, kind: int, data: bytes) -> bool:
        if (level, kind) != (c.SOL_RDS, c.RDS_CMSG_RDMA_STATUS):
            return False
        status = RdmaStatus.unpack(data)
        handle, lease = self._pending.pop(status.user_token, (None, None))
        if handle is None or lease is None:
            return False
        handle._conclude(status.status if status.status in set(RdmaOutcome) else RdmaOutcome.OTHER_ERROR, lease)
        return True

    def close(self) -> None:
        """The socket has been closed: the kernel has let go of all memory, and tells nobody any more."""
        for handle, lease in self._pending.values():
            handle._conclude(RdmaOutcome.CANCELED, lease)
        for lease in self._registered.values():
            lease.release()
        self._pending.clear()
        self._registered.clear()
