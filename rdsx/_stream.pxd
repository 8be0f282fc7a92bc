"""The map of `_stream`: the two ends of one byte stream."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from rdsx._fast cimport Header, Path, Sent


@cython.final
cdef class StreamWriter:
    cdef Path path
    cdef readonly uint64_t position             # bytes written to this link
    cdef bytes control                          # map or pure ack being written, or None
    cdef size_t control_at
    cdef unsigned char header[48]               # header of the half-written message: as far as it was sent it must not change
    cdef uint64_t ack                           # h_ack of the batch being written
    cdef uint32_t store(self, Sent* slot, unsigned char* target) noexcept
    cdef int start_map(self) except -1
    cdef int start_ack(self) except -1


@cython.final
cdef class StreamReader:
    cdef Path path
    cdef readonly uint64_t position             # bytes received on this link
    cdef readonly bint heard                    # the first header was seen
    cdef readonly bytes extensions              # of the header that made parse() stop
    cdef readonly uint64_t ack                  # its h_ack
    cdef readonly uint16_t sport                # its ports
    cdef readonly uint16_t dport
    cdef unsigned char carry[4144]              # a frame that the last read cut off (at most header + FRAGMENT_BYTES)
    cdef size_t carried
    cdef object payload                         # a large payload being received in place, or None
    cdef size_t filled
    cdef Header header                          # its header
    cdef unsigned char header_extensions[16]
    cdef uint64_t skip                          # payload bytes to ignore
    cdef size_t at                              # parse window in core.scratch
    cdef size_t end
    cdef bint in_place                          # the last buffers() began with the payload's rest
    cdef readonly uint64_t freed                # ports (mod 64) that the last map set free
    cdef int note(self, Header* header) except -1
    cdef bint is_unwanted(self, Header* header) except -1
    cdef int take_ack(self, Header* header) except -1
    cdef int take_dropped(self, Header* header) except -1
    cdef int take_frame(self, Header* header, const unsigned char* payload, object whole) except -1
    cdef int begin_large(self, Header* header) except -1
