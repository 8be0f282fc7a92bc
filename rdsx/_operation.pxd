"""The map of `_operation`: one RDMA read, write or atomic, from submission to its outcome."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    MAX_SEGMENTS = 8                # the kernel's limit for the pieces of local memory of one operation

# Operation.kind
cdef enum:
    OPERATION_READ = 0
    OPERATION_WRITE = 1
    OPERATION_COMPARE_AND_SWAP = 2
    OPERATION_FETCH_AND_ADD = 3

# Operation.status: as struct rds_rdma_notify has it, and -1 before.
cdef enum:
    STATUS_PENDING = -1
    STATUS_SUCCESS = 0
    STATUS_REMOTE_ERROR = 1
    STATUS_CANCELLED = 2
    STATUS_DROPPED = 3
    STATUS_OTHER_ERROR = 4

cdef struct Segment:                # laid out as struct ibv_sge
    uint64_t address
    uint32_t length
    uint32_t lkey

@cython.final
cdef class Operation:
    cdef readonly int kind
    cdef readonly uint64_t remote_address
    cdef readonly uint32_t rkey
    cdef readonly uint64_t compare_add          # what to compare with, or to add
    cdef readonly uint64_t swap
    cdef readonly bint fence                    # its message does not overtake it
    cdef Segment segments[MAX_SEGMENTS]
    cdef int count
    cdef readonly object lease                  # keeps the local memory where it is, until the outcome
    cdef public object owner                    # whoever waits for the outcome
    cdef readonly bint submitted
    cdef readonly int status
    cdef bint posted                            # a device has it: only a completion, or the end of the queue pair, decides
    cdef bytes extensions                       # of its message: the rkey
    cdef int finish(self, int status, list finished) except -1
