"""Memory of ours that peers may read and write, and what they do to it.

A `Lease` keeps a buffer where it is; a `Region` is leased memory with a cookie, by which peers name it. Invariant: a region that has been
freed is reached by nobody, unless its owner allowed it to stay registered, and then its lease is held.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Protocol, Self

from rdsx._operation import address_of
from rdsx.constants import RDS_MAX_MSG_SIZE
from rdsx.operations import RdmaOutcome
from rdsx.wire.operation import COMPARE_AND_SWAP, READ, WRITE, Answer, Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ALL_BITS", "ATOMIC", "PAGE_BYTES", "DmaBuf", "Lease", "Region", "Regions", "Registration"]

PAGE_BYTES = mmap.PAGESIZE
ALL_BITS = 2**64 - 1  # a mask that leaves nothing out

NOWHERE = count(1)
ATOMIC = struct.Struct("=Q")  # what an atomic works on, in memory
ON_THE_WIRE = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class DmaBuf:
    """Memory behind the file descriptor of a dma-buf, such as that of a GPU; or behind any other that can be mapped, such as a memfd.

    `fd` stays the caller's, and may be closed when the memory is registered. `length` bytes from `offset` on.
    """

    fd: int
    length: int
    offset: int = 0

    def map(self) -> memoryview:
        """The memory in this process, which keeps it mapped. OSError or ValueError if the descriptor cannot be mapped."""
        return memoryview(mmap.mmap(self.fd, self.offset + self.length))[self.offset :]


class Lease:
    """A buffer that stays where it is until release(): its owner can neither resize nor close it. Its bytes are not copied."""

    __slots__ = ("address", "length", "view")

    def __init__(self, buffer: Buffer, *, writable: bool) -> None:
        view = memoryview(buffer)
        if writable and view.readonly:
            raise TypeError(f"the memory is written to: give a writable buffer, such as a bytearray, not {type(buffer).__name__}")
        if not view.c_contiguous:
            raise TypeError("the memory must be contiguous: copy the slice, or give the whole buffer")
        self.view = view.cast("B") if view.nbytes else view
        self.length = self.view.nbytes
        self.address = address_of(self.view)

    @classmethod
    def for_peers(cls, buffer: Buffer | DmaBuf) -> Self:
        """Memory that peers are to reach: a writable buffer, or what is behind a descriptor. TypeError, OSError or ValueError."""
        return cls(buffer.map() if isinstance(buffer, DmaBuf) else buffer, writable=True)

    @classmethod
    def unmapped(cls, length: int) -> Self:
        """Memory that is nowhere in this process, and at a place of its own."""
        lease = cls(b"", writable=False)
        lease.length, lease.address = length, -next(NOWHERE)
        return lease

    @property
    def number(self) -> int:
        """What an atomic has put there: 8 bytes, as a number in this machine's byte order."""
        return int(ATOMIC.unpack(self.view)[0])

    def release(self) -> None:
        """Twice is harmless."""
        self.view.release()


class Registration(Protocol):
    """Memory as somebody who carries out operations knows it."""

    lkey: int
    rkey: int
    start: int  # the number of its first byte for peers: where it lies in its first page, or in its dma-buf

    def close(self) -> None:
        """The keys are worth nothing from now on. Twice is harmless."""


class Region:
    """Leased memory under a cookie. `place`: the device that can reach it, or None. `owner`: None once it only stays registered."""

    __slots__ = ("lease", "owner", "place", "registration", "use_once")

    def __init__(self, lease: Lease, registration: Registration, *, place: Hashable, owner: object, use_once: bool) -> None:
        self.lease = lease
        self.registration = registration
        self.place = place
        self.owner: object | None = owner
        self.use_once = use_once

    @property
    def cookie(self) -> int:
        return self.registration.rkey | self.registration.start << 32

    def covers(self, address: int, length: int) -> bool:
        return 0 < self.lease.address <= address and address + length <= self.lease.address + self.lease.length


class Regions:
    """What is registered, by rkey. At most `idle_bytes` stay registered although they were freed, for whoever registers them again."""

    def __init__(self, idle_bytes: int) -> None:
        self._idle_bytes = idle_bytes
        self._regions: dict[int, Region] = {}
        self._idle: dict[int, Region] = {}  # those without owner, longest so first

    def __len__(self) -> int:
        return len(self._regions)

    def __contains__(self, rkey: int) -> bool:
        return rkey in self._regions

    def add(self, region: Region) -> None:
        self._regions[region.registration.rkey] = region

    def reuse(self, lease: Lease, *, place: Hashable, owner: object, use_once: bool) -> Region | None:
        """The same memory, if it is still registered from before."""
        for rkey, region in self._idle.items():
            if region.place == place and (region.lease.address, region.lease.length) == (lease.address, lease.length):
                del self._idle[rkey]
                region.owner, region.use_once = owner, use_once
                return region
        return None

    def find(self, owner: object, cookie: int) -> Region:
        """The owner's region of that cookie. OSError EINVAL, as the kernel, for any other number."""
        region = self._regions.get(cookie & 0xFFFFFFFF)
        if region is None or region.owner is not owner or region.cookie != cookie:
            raise OSError(errno.EINVAL, f"cookie {cookie:#x} names no memory that this socket has registered with get_mr()")
        return region

    def covering(self, lease: Lease, place: Hashable) -> Region | None:
        """One there that has all of this memory already."""
        for region in self._regions.values():
            if region.place == place and region.covers(lease.address, lease.length):
                return region
        return None

    def free(self, region: Region, *, invalidate: bool) -> None:
        """It is its owner's no more. It can be reached for some time yet, unless it is invalidated."""
        rkey = region.registration.rkey
        if invalidate or region.lease.length > self._idle_bytes:
            self._regions.pop(rkey, None)
            self._idle.pop(rkey, None)
            region.registration.close()
            region.lease.release()
            return
        region.owner = None
        self._idle[rkey] = region
        while sum(one.lease.length for one in self._idle.values()) > self._idle_bytes:
            self.free(next(iter(self._idle.values())), invalidate=True)

    def free_if(self, chosen: Callable[[Region], bool]) -> None:
        """Free and invalidate these."""
        for region in list(self._regions.values()):
            if chosen(region):
                self.free(region, invalidate=True)

    def used(self, rkey: int) -> None:
        """A peer is done with it: memory that may be used once is free."""
        region = self._regions.get(rkey)
        if region is not None and region.use_once:
            self.free(region, invalidate=True)

    # -- what peers do to it, where no device does

    def execute(self, request: Request) -> Answer:
        """Carry out a peer's operation."""
        region = self._regions.get(request.rkey)
        size = len(request.data or b"") if request.kind == WRITE else request.operands[0] if request.kind == READ else ATOMIC.size
        if request.data is None or not 0 < size <= RDS_MAX_MSG_SIZE:
            return Answer(request.kind, request.token, RdmaOutcome.OTHER_ERROR)
        start = request.offset - region.registration.start if region is not None else 0
        if region is None or start < 0 or start + size > region.lease.length:
            return Answer(request.kind, request.token, RdmaOutcome.REMOTE_ERROR)
        view = region.lease.view[start : start + size]
        if request.kind == READ:
            return Answer(request.kind, request.token, RdmaOutcome.SUCCESS, bytes(view))
        if request.kind == WRITE:
            view[:] = request.data
            return Answer(request.kind, request.token, RdmaOutcome.SUCCESS)
        if (region.lease.address + start) % ATOMIC.size:
            return Answer(request.kind, request.token, RdmaOutcome.REMOTE_ERROR)
        (old,) = ATOMIC.unpack(view)
        change = swapped if request.kind == COMPARE_AND_SWAP else added
        view[:] = ATOMIC.pack(change(old, *request.operands))
        return Answer(request.kind, request.token, RdmaOutcome.SUCCESS, ON_THE_WIRE.pack(old))


def swapped(old: int, compare: int, swap: int, compare_mask: int, swap_mask: int) -> int:
    """Masked compare-and-swap: only the bits of `compare_mask` are compared, only those of `swap_mask` replaced."""
    return (old & ~swap_mask) | (swap & swap_mask) if (old ^ compare) & compare_mask == 0 else old


def added(old: int, add: int, nocarry_mask: int) -> int:
    """Masked fetch-and-add: bits set in `nocarry_mask` are the topmost of their numbers, and carry nothing to the next."""
    return ((old & ~nocarry_mask) + (add & ~nocarry_mask) ^ (old ^ add) & nocarry_mask) & ALL_BITS
