"""One-sided operations: a read or write of a peer's memory, or an atomic on 8 bytes of it, that goes out right before a message.

An `Operation` knows what a device must be told and what became of it, and no device. Invariants: it has exactly one outcome, and never a
second; its lease is held until then, so memory stays where it is while a device may touch it; once posted it is never posted again.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t

KINDS = ("read", "write", "compare_and_swap", "fetch_and_add")

# Limits of our own and of the wire.
cdef enum:
    ATOMIC_BYTES = 8
    EXTENSION_RDMA = 2
    EXTENSION_BYTES = 16
    MAX_OPERATION_BYTES = 1048576   # RDS_MAX_MSG_SIZE holds for operations, too


def address_of(const unsigned char[::1] memory not None):
    return <uintptr_t>&memory[0] if memory.shape[0] else 0


cdef class Operation:
    def __cinit__(self, str kind not None, segments, *, uint64_t remote_address, uint32_t rkey, lease=None, uint64_t compare_add=0,
                  uint64_t swap=0, bint fence=False):
        cdef uint64_t address, total = 0
        cdef uint32_t length, lkey
        if kind not in KINDS:
            raise ValueError(f"an operation is one of {', '.join(KINDS)}, not {kind!r}")
        self.kind = KINDS.index(kind)
        for address, length, lkey in segments:
            if self.count == MAX_SEGMENTS:
                raise ValueError(f"an operation takes at most {MAX_SEGMENTS} pieces of local memory")
            self.segments[self.count].address = address
            self.segments[self.count].length = length
            self.segments[self.count].lkey = lkey
            self.count += 1
            total += length
        if total == 0 or total > MAX_OPERATION_BYTES:
            raise ValueError(f"an operation moves 1 to {MAX_OPERATION_BYTES} bytes, not {total}")
        if self.kind >= OPERATION_COMPARE_AND_SWAP and (total != ATOMIC_BYTES or self.count != 1 or remote_address % ATOMIC_BYTES
                                                        or self.segments[0].address % ATOMIC_BYTES):
            raise ValueError(f"an atomic takes one piece of {ATOMIC_BYTES} bytes, aligned to as many, here and there")
        self.remote_address = remote_address
        self.rkey = rkey
        self.compare_add = compare_add
        self.swap = swap
        self.fence = fence
        self.lease = lease
        self.status = STATUS_PENDING
        self.extensions = (bytes([EXTENSION_RDMA]) + rkey.to_bytes(4, "big")).ljust(EXTENSION_BYTES, b"\0")

    cdef int finish(self, int status, list finished) except -1:
        """The outcome: the first one counts, and the memory is free."""
        if self.status == STATUS_PENDING:
            self.status = status
            self.lease = None
            finished.append(self)
        return 0
