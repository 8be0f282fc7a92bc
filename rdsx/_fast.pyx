"""The hot path: everything that happens to each message, each fragment and each header.

Nothing here knows sockets, tasks or clocks. Leaves take pointers and integers and are nogil; a few doors take or give a whole
batch and turn codes into exceptions once. The driver asks `Core` what needs attention after each batch. `_fast.pxd` is the map
of the types, `_fast.pyi` the contract that Python sees, `_reference.py` the plain-Python twin that the tests compare with.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from rdsx._operation cimport STATUS_CANCELLED, STATUS_DROPPED

from rdsx.errors import WireError


cdef extern from "Python.h":
    enum:
        PyBUF_READ
        PyBUF_WRITE


cdef extern from *:
    """
    #include <endian.h>
    #include <stdint.h>
    #include <string.h>
    static inline uint16_t rdsx_load16(const unsigned char *p) { return (uint16_t)((uint16_t)p[0] << 8 | p[1]); }
    static inline uint32_t rdsx_load32(const unsigned char *p) {
        return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    }
    static inline uint64_t rdsx_load64(const unsigned char *p) {
        return (uint64_t)rdsx_load32(p) << 32 | rdsx_load32(p + 4);
    }
    /* Whole words: compilers join the bytes of a load, but not those of a store. */
    static inline void rdsx_store16(unsigned char *p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
    static inline void rdsx_store32(unsigned char *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
    static inline void rdsx_store64(unsigned char *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
    /* The ones' complement sum of a header's 16-bit words but h_csum. It is the same in any byte order, and 65536 is 1 in it, so words of
       32 bits do as well (RFC 1071). 0 only if all are 0. */
    static inline uint16_t rdsx_sum(const unsigned char *p) {
        uint64_t sum = 0;
        uint32_t word;
        uint16_t half;
        int at;
        for (at = 0; at < 48; at += 4) {
            if (at == 28) continue;
            memcpy(&word, p + at, 4);
            sum += word;
        }
        memcpy(&half, p + 28, 2);
        sum += half;
        sum = (sum & 0xFFFFFFFF) + (sum >> 32);
        sum = (sum & 0xFFFF) + (sum >> 16);
        sum = (sum & 0xFFFF) + (sum >> 16);
        return be16toh((uint16_t)((sum & 0xFFFF) + (sum >> 16)));
    }
    """
    uint16_t header_sum "rdsx_sum"(const unsigned char* p) noexcept nogil
    uint16_t load16 "rdsx_load16"(const unsigned char* p) noexcept nogil
    uint32_t load32 "rdsx_load32"(const unsigned char* p) noexcept nogil
    uint64_t load64 "rdsx_load64"(const unsigned char* p) noexcept nogil
    void store16 "rdsx_store16"(unsigned char* p, uint16_t v) noexcept nogil
    void store32 "rdsx_store32"(unsigned char* p, uint32_t v) noexcept nogil
    void store64 "rdsx_store64"(unsigned char* p, uint64_t v) noexcept nogil


# Extension header types that the hot path itself acts on.
cdef enum:
    EXTENSION_RDMA = 2
    EXTENSION_RDMA_DEST = 3

# Limits of our own.
cdef enum:
    OVERHEAD_BYTES = 128            # what a queued message costs us besides its payload
    MAX_PONGS = 1024                # unacknowledged answers to one peer's pings and probes
    MAX_ANSWERS = 64                # ... and to its operations by message, each of which may carry a megabyte
    ACK_EVERY_MESSAGES = 256        # to a peer that acknowledges with h_ack: acknowledge at once after so many messages
    ACK_EVERY_BYTES = 65536         # ... or bytes

# The names of the counters in enum order: the kernel's own, then ours.
COUNTER_NAMES = (
    "conn_reset",
    "recv_drop_bad_checksum",
    "recv_drop_old_seq",
    "recv_drop_no_sock",
    "recv_delivered",
    "recv_queued",
    "recv_ack_required",
    "recv_ping",
    "send_queue_empty",
    "send_queue_full",
    "send_ack_required",
    "send_queued",
    "send_pong",
    "cong_update_queued",
    "cong_update_received",
    "cong_send_error",
    "cong_send_blocked",
    "recv_bytes_added_to_sock",
    "recv_bytes_freed_fromsock",
    "send_ack_only",
    "recv_ack_only",
    "send_retransmitted",
    "send_canceled",
    "send_flushed",
    "recv_drop_too_long",
    "recv_drop_bad_map",
    "recv_drop_ping",
    "recv_drop_bad_frame",
    "recv_paused",
    "stream_writes",
    "stream_reads",
    "stream_bytes_written",
    "stream_bytes_read",
    "recv_unknown_extension",
    "ib_tx_ring_full",
    "ib_tx_throttle",
    "ib_tx_credit_updates",
    "ib_rx_ring_empty",
    "ib_rx_credit_updates",
    "ib_ack_send_delayed",
    "ib_ack_send_piggybacked",
    "verbs_doorbells",
    "verbs_frames_sent",
    "verbs_frames_received",
    "send_rdma",
    "send_rdma_answered",
    "recv_drop_refused",
)


# == 1. header ============================================================================================================
# 48 bytes, big-endian, no addresses. Invariant: load and store are inverse for every field but h_padding, which is sent as zero.

cdef uint16_t header_checksum(const unsigned char* header) noexcept nogil:
    """Internet checksum (RFC 1071) of the 48 bytes with h_csum taken as 0."""
    return <uint16_t>~header_sum(header)


cdef bint checksum_is_good(const unsigned char* header) noexcept nogil:
    """h_csum is 0 ("not checksummed") or right."""
    cdef uint32_t checksum = load16(header + 30), total
    if checksum == 0:
        return True
    total = header_sum(header) + checksum
    return (total & 0xFFFF) + (total >> 16) == 0xFFFF


cdef void load_header(const unsigned char* source, Header* header) noexcept nogil:
    header.sequence = load64(source)
    header.ack = load64(source + 8)
    header.length = load32(source + 16)
    header.sport = load16(source + 20)
    header.dport = load16(source + 22)
    header.flags = source[24]
    header.credit = source[25]
    header.checksum = load16(source + 30)
    header.extensions = source + 32


cdef void store_header(unsigned char* target, uint64_t sequence, uint64_t ack, uint32_t length, uint16_t sport, uint16_t dport,
                       uint8_t flags, uint8_t credit, const unsigned char* extensions) noexcept nogil:
    store64(target, sequence)
    store64(target + 8, ack)
    store32(target + 16, length)
    store16(target + 20, sport)
    store16(target + 22, dport)
    target[24] = flags
    target[25] = credit
    memset(target + 26, 0, 6)
    if extensions == NULL:
        memset(target + 32, 0, EXTENSION_BYTES)
    else:
        memcpy(target + 32, extensions, EXTENSION_BYTES)


cdef inline int extension_bytes(uint8_t kind) noexcept nogil:
    """Data bytes behind an extension type; -1 ends the run. Unknown types below 16 have none, as the kernel reads them."""
    if kind == 0 or kind >= 16:
        return -1
    if kind == 1 or kind == 2 or kind == 6:
        return 4
    if kind == 3 or kind == 4:
        return 8
    if kind == 5:
        return 2
    if kind == 8:
        return 1
    return 0


cdef int find_extension(const unsigned char* extensions, uint8_t kind) noexcept nogil:
    """Offset of the data of the first extension of this kind, or -1."""
    cdef int at = 0, size
    while at < EXTENSION_BYTES:
        size = extension_bytes(extensions[at])
        if size < 0 or at + 1 + size > EXTENSION_BYTES:
            return -1
        if extensions[at] == kind:
            return at + 1
        at += 1 + size
    return -1


cdef bint has_unknown_extension(const unsigned char* extensions) noexcept nogil:
    """Whether the run has a type that neither we nor a kernel can make sense of, or is cut off by the end of the field."""
    cdef int at = 0, size
    while at < EXTENSION_BYTES and extensions[at] != 0:
        size = extension_bytes(extensions[at])
        if size <= 0 or at + 1 + size > EXTENSION_BYTES:
            return True
        at += 1 + size
    return False


cdef bytes extension_field(object extensions):
    """`extensions` as exactly EXTENSION_BYTES bytes."""
    cdef bytes field = bytes(extensions)
    if len(field) > EXTENSION_BYTES:
        raise ValueError(f"extension headers take at most {EXTENSION_BYTES} bytes, not {len(field)}")
    return field.ljust(EXTENSION_BYTES, b"\0")


cdef bytes cookie_field(uint64_t cookie):
    """The extension headers of a message that brings the cookie of registered memory: rkey, and offset in its first page."""
    return extension_field(bytes([EXTENSION_RDMA_DEST]) + (<uint32_t>cookie).to_bytes(4, "big") + (cookie >> 32).to_bytes(4, "big"))


def pack_header(uint64_t sequence, uint64_t ack, uint32_t length, uint16_t sport, uint16_t dport, uint8_t flags=0,
                uint8_t credit=0, extensions=b"", *, bint checksum=False):
    cdef unsigned char header[48]
    cdef bytes field = extension_field(extensions)
    store_header(header, sequence, ack, length, sport, dport, flags, credit, <const unsigned char*>PyBytes_AS_STRING(field))
    if checksum:
        store16(header + 30, header_checksum(header))
    return PyBytes_FromStringAndSize(<char*>header, HEADER_BYTES)


def unpack_header(const unsigned char[::1] source not None):
    cdef Header header
    if source.shape[0] < HEADER_BYTES:
        raise WireError("short_header", f"a header has {HEADER_BYTES} bytes, got {source.shape[0]}")
    load_header(&source[0], &header)
    return (header.sequence, header.ack, header.length, header.sport, header.dport, header.flags, header.credit,
            header.checksum, PyBytes_FromStringAndSize(<const char*>header.extensions, EXTENSION_BYTES))


def checksum(const unsigned char[::1] header not None):
    if header.shape[0] != HEADER_BYTES:
        raise ValueError(f"a header has {HEADER_BYTES} bytes, got {header.shape[0]}")
    return header_checksum(&header[0])


def verify_checksum(const unsigned char[::1] header not None):
    if header.shape[0] != HEADER_BYTES:
        raise ValueError(f"a header has {HEADER_BYTES} bytes, got {header.shape[0]}")
    return checksum_is_good(&header[0])


def unpack_extensions(const unsigned char[::1] field not None):
    cdef int at = 0, size
    cdef list found = []
    if field.shape[0] != EXTENSION_BYTES:
        raise ValueError(f"the extension headers have {EXTENSION_BYTES} bytes, got {field.shape[0]}")
    while at < EXTENSION_BYTES:
        size = extension_bytes(field[at])
        if size < 0 or at + 1 + size > EXTENSION_BYTES:
            break
        found.append((field[at], PyBytes_FromStringAndSize(<const char*>&field[0] + at + 1, size)))
        at += 1 + size
    return found


# == 2. fragments =========================================================================================================
# A datagram transport sends a message as fragments: a header each (the same but for ack, credit and checksum), then up to
# FRAGMENT_BYTES of payload. They arrive in order. Invariant: a Reassembly holds at most one message, and never more than
# max_message_bytes; a fragment that does not continue it is a WireError and leaves it empty.

def fragments(uint64_t sequence, uint64_t ack, uint16_t sport, uint16_t dport, const unsigned char[::1] payload not None,
              uint8_t flags=0, uint8_t credit=0, extensions=b""):
    cdef bytes field = extension_field(extensions)
    cdef uint32_t length = <uint32_t>payload.shape[0], offset = 0, size
    cdef list out = []
    cdef bytes fragment
    cdef unsigned char* target
    while True:
        size = min(length - offset, <uint32_t>FRAGMENT_BYTES)
        fragment = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + size)
        target = <unsigned char*>PyBytes_AS_STRING(fragment)
        store_header(target, sequence, ack, length, sport, dport, flags, credit, <const unsigned char*>PyBytes_AS_STRING(field))
        store16(target + 30, header_checksum(target))
        if size:
            memcpy(target + HEADER_BYTES, &payload[offset], size)
        out.append(fragment)
        offset += size
        if offset >= length:
            return out


cdef class Reassembly:
    def __cinit__(self, uint32_t max_message_bytes):
        self.max_message_bytes = max_message_bytes

    @property
    def pending_bytes(self):
        return 0 if self.payload is None else self.filled

    def feed(self, const unsigned char[::1] fragment not None):
        cdef Header header
        cdef uint32_t size
        cdef bytes whole
        if fragment.shape[0] < HEADER_BYTES:
            self.payload = None
            raise WireError("short_fragment", f"{fragment.shape[0]} bytes cannot hold a header")
        if not checksum_is_good(&fragment[0]):
            self.payload = None
            raise WireError("bad_checksum", "fragment header checksum")
        load_header(&fragment[0], &header)
        size = <uint32_t>(fragment.shape[0] - HEADER_BYTES)
        if self.payload is None:
            if header.length > self.max_message_bytes:
                raise WireError("bad_length", f"h_len {header.length} exceeds {self.max_message_bytes}")
            self.payload = PyBytes_FromStringAndSize(NULL, header.length)
            memcpy(self.first_extensions, header.extensions, EXTENSION_BYTES)
            self.header = header
            self.filled = 0
        elif (header.sequence != self.header.sequence or header.length != self.header.length
              or header.sport != self.header.sport or header.dport != self.header.dport):
            self.payload = None
            raise WireError("bad_fragment", f"fragment of message {header.sequence} inside message {self.header.sequence}")
        if size != min(self.header.length - self.filled, <uint32_t>FRAGMENT_BYTES):
            self.payload = None
            raise WireError("bad_fragment", f"fragment of {size} bytes at offset {self.filled} of {header.length}")
        if size:
            memcpy(PyBytes_AS_STRING(self.payload) + self.filled, &fragment[HEADER_BYTES], size)
        self.filled += size
        if self.filled < self.header.length:
            return None
        whole, self.payload = self.payload, None
        self.filled = 0
        return (self.header.sequence, self.header.sport, self.header.dport, self.header.flags,
                PyBytes_FromStringAndSize(<const char*>self.first_extensions, EXTENSION_BYTES), whole)


# == 3. congestion maps ===================================================================================================
# Port p is bit p & 7 of byte p >> 3; set = congested. Invariant: bits 0 and 1 stay clear in maps of ours, because a kernel
# that sees them drops its own pings and pongs.

cdef class CongestionMap:
    def __cinit__(self):
        self.bits = NULL

    def __dealloc__(self):
        PyMem_Free(self.bits)

    cdef bint has(self, uint16_t port) noexcept nogil:
        return self.bits != NULL and (self.bits[port >> 3] >> (port & 7)) & 1

    cdef int put(self, uint16_t port, bint congested) except -1:
        if port <= PROBE_PORT:
            raise ValueError(f"port {port} belongs to pings and probes and is never congested")
        if self.bits == NULL:
            if not congested:
                return 0
            self.bits = <unsigned char*>PyMem_Calloc(MAP_BYTES, 1)
            if self.bits == NULL:
                raise MemoryError()
        if congested:
            self.bits[port >> 3] |= <unsigned char>(1 << (port & 7))
        else:
            self.bits[port >> 3] &= <unsigned char>~(1 << (port & 7))
        self.version += 1
        return 0

    cdef uint64_t adopt(self, const unsigned char* received) except? 0:
        """Replace the whole map; returns the ports that became free, folded modulo 64, bit by bit."""
        cdef uint64_t freed = 0
        cdef uint64_t old, new
        cdef int i, j
        self.version += 1
        if self.bits == NULL:
            for i in range(0, MAP_BYTES):
                if received[i]:
                    break
            else:
                return 0
            self.bits = <unsigned char*>PyMem_Malloc(MAP_BYTES)
            if self.bits == NULL:
                raise MemoryError()
        else:
            for i in range(0, MAP_BYTES, 8):
                if memcmp(self.bits + i, received + i, 8) != 0:
                    old = new = 0
                    for j in range(8):
                        old |= <uint64_t>self.bits[i + j] << (8 * j)
                        new |= <uint64_t>received[i + j] << (8 * j)
                    freed |= old & ~new
        memcpy(self.bits, received, MAP_BYTES)
        return freed

    def test(self, uint16_t port):
        return self.has(port)

    def set(self, uint16_t port):
        self.put(port, True)

    def clear(self, uint16_t port):
        self.put(port, False)

    def replace(self, const unsigned char[::1] received not None):
        if received.shape[0] != MAP_BYTES:
            raise ValueError(f"a congestion map has {MAP_BYTES} bytes, got {received.shape[0]}")
        return self.adopt(&received[0])

    def reset(self):
        PyMem_Free(self.bits)
        self.bits = NULL
        self.version += 1

    cdef bint any(self) noexcept nogil:
        """Whether any port is congested."""
        cdef int i
        if self.bits != NULL:
            for i in range(MAP_BYTES):
                if self.bits[i]:
                    return True
        return False

    def freed(self, waiting):
        """The ports of `waiting` that are not congested now: whom to wake."""
        return [port for port in waiting if not self.has(port)]

    def __bytes__(self):
        if self.bits == NULL:
            return bytes(MAP_BYTES)
        return PyBytes_FromStringAndSize(<char*>self.bits, MAP_BYTES)


# == 4. what a node shares ================================================================================================
# One Core for one node. The hot path never calls into Python: it notes what happened on six lists and raises `attention`;
# the driver looks after each batch. Invariant: queued_bytes is the sum over all paths, and every paused path is on `paused`.

cdef class Core:
    def __cinit__(self, *, uint32_t max_message_bytes, uint64_t max_peer_queued_bytes, uint64_t max_node_queued_bytes,
                  uint32_t max_unacked_packets, uint64_t max_unacked_bytes, bint answer_pings, wall_clock=None):
        self.max_message_bytes = max_message_bytes
        self.max_peer_queued_bytes = max_peer_queued_bytes
        self.max_node_queued_bytes = max_node_queued_bytes
        self.max_unacked_packets = max_unacked_packets
        self.max_unacked_bytes = max_unacked_bytes
        self.answer_pings = answer_pings
        self.wall_clock = wall_clock
        self.dirty = []
        self.woken = []
        self.resumable = []
        self.remapped = []
        self.finished = []
        self.used = []
        self.paused = []
        self.staging = <unsigned char*>PyMem_Malloc(STAGING_BYTES)
        self.scratch = <unsigned char*>PyMem_Malloc(SCRATCH_BYTES)
        if self.staging == NULL or self.scratch == NULL:
            raise MemoryError()
        self.staging_view = PyMemoryView_FromMemory(<char*>self.staging, STAGING_BYTES, PyBUF_READ)
        self.scratch_view = PyMemoryView_FromMemory(<char*>self.scratch, SCRATCH_BYTES, PyBUF_WRITE)
        # glibc gives the top of its heap back to the system when a free() leaves more than 128 KiB there. Payloads that come and go have
        # their pages faulted in anew then: with 64 KiB each, half of a stream's time. To free a block that was mapped for itself raises
        # that limit to twice the block's size, unless the program has set it (mallopt(3), M_MMAP_THRESHOLD). A message of the largest
        # size is such a block; this is one that nobody writes to, so it takes no memory.
        PyMem_Free(PyMem_Malloc(MAX_MESSAGE_BYTES))

    def __dealloc__(self):
        PyMem_Free(self.staging)
        PyMem_Free(self.scratch)

    cdef void account(self, Path path, int64_t delta) noexcept:
        """Add to what `path` and the node hold in receive queues; pause and resume reading at the caps.

        Each cap has its own hysteresis: what was above it is read again from half of it on.
        """
        cdef Path other
        if path.local:  # our own sockets are no peer's fault
            return
        path.queued_bytes += <uint64_t>delta
        self.queued_bytes += <uint64_t>delta
        if delta > 0:
            if self.queued_bytes > self.max_node_queued_bytes:
                self.full = True
            if not path.paused and (self.full or path.queued_bytes > self.max_peer_queued_bytes):
                path.paused = True
                self.counters[C_RECV_PAUSED] += 1
                self.paused.append(path)
        elif self.full:
            if self.queued_bytes <= self.max_node_queued_bytes // 2:
                self.full = False
                for other in tuple(self.paused):
                    if other.queued_bytes <= self.max_peer_queued_bytes:
                        self.unpause(other)
        elif path.paused and path.queued_bytes <= self.max_peer_queued_bytes // 2:
            self.unpause(path)

    cdef void unpause(self, Path path) noexcept:
        path.paused = False
        self.paused.remove(path)
        self.resumable.append(path)
        self.attention = True

    cdef int finish(self, Operation operation, int status) except -1:
        """An operation has this outcome, unless it has one already."""
        operation.finish(status, self.finished)
        self.attention = True
        return 0

    def take_finished(self):
        cdef list taken = self.finished
        self.finished = []
        return taken

    def conclude(self, Operation operation not None, int status):
        self.finish(operation, status)

    def take_used(self):
        cdef list taken = self.used
        self.used = []
        return taken

    def take_dirty(self):
        cdef list taken = self.dirty
        cdef Path path
        self.dirty = []
        for path in taken:
            path.listed = False
        return taken

    def take_woken(self):
        cdef list taken = self.woken
        cdef Endpoint endpoint
        self.woken = []
        for endpoint in taken:
            endpoint.listed = False
        return taken

    def take_resumable(self):
        cdef list taken = self.resumable
        self.resumable = []
        return taken

    def take_remapped(self):
        cdef list taken = self.remapped
        self.remapped = []
        return taken

    def count(self, str name, uint64_t by=1):
        self.counters[COUNTER_NAMES.index(name)] += by

    def statistics(self):
        cdef int i
        return {COUNTER_NAMES[i]: self.counters[i] for i in range(COUNTERS)}


# == 5. endpoints and ports ===============================================================================================
# An Endpoint is a bound socket: its accounts and its receive queue. Invariants: sent_bytes and unacknowledged are the sums over
# all its messages in path rings; received_bytes is the sum over its receive queue; `congested` equals its bit in the local map.

cdef class BindTable:
    def __cinit__(self, Core core not None, str host not None):
        self.core = core
        self.host = host
        self.congestion = CongestionMap()
        self.routes = {}
        memset(self.pages, 0, sizeof(self.pages))

    def __dealloc__(self):
        cdef int i
        for i in range(256):
            PyMem_Free(self.pages[i])

    cdef Endpoint lookup(self, uint16_t port):
        cdef PyObject** page = self.pages[port >> 8]
        if page == NULL or page[port & 255] == NULL:
            return None
        return <Endpoint>page[port & 255]

    def find(self, uint16_t port):
        return self.lookup(port)

    def free_port(self, uint16_t start):
        """The first free port from `start` upwards with wrap-around, skipping 0 and 1; None when all are taken."""
        cdef uint32_t step
        cdef uint16_t port
        for step in range(65536):
            port = <uint16_t>(start + step)
            if port > PROBE_PORT and self.lookup(port) is None:
                return port
        return None

    def bind(self, Endpoint endpoint not None, uint16_t port):
        cdef PyObject** page = self.pages[port >> 8]
        if port <= PROBE_PORT or self.lookup(port) is not None or endpoint.bound:
            raise ValueError(f"port {port} cannot be bound")
        if page == NULL:
            page = <PyObject**>PyMem_Calloc(256, sizeof(PyObject*))
            if page == NULL:
                raise MemoryError()
            self.pages[port >> 8] = page
        page[port & 255] = <PyObject*>endpoint
        endpoint.table = self
        endpoint.port = port
        endpoint.bound = True
        self.count += 1

    cdef int changed(self) except -1:
        """Our congestion map changed: peers are owed a new one."""
        cdef Path path
        for path in self.routes.values():
            if not path.local and path.is_map_due():
                self.core.counters[C_CONG_UPDATE_QUEUED] += 1
        self.core.remapped.append(self)
        self.core.attention = True
        return 0

    def due_maps(self):
        """The paths whose peer is owed our map."""
        cdef Path path
        return [path for path in self.routes.values() if path.is_map_due()]


# Codes of submit: why a message was not queued.
cdef enum:
    SENT = 0
    CONGESTED = 1
    FULL = 2
    TOO_LONG = 3
    NO_ROUTE = 4


@cython.no_gc_clear                 # __dealloc__ needs the table, also when a cycle is collected
cdef class Endpoint:
    def __cinit__(self, uint32_t send_limit, uint32_t receive_limit):
        self.send_limit = send_limit
        self.receive_limit = receive_limit
        self.ring = NULL

    def __dealloc__(self):
        cdef Received* received
        if self.bound:              # dropped without close(): the table must not find what is left of it
            self.table.pages[self.port >> 8][self.port & 255] = NULL
            self.table.count -= 1
        while self.queued:
            received = &self.ring[self.head & (self.capacity - 1)]
            Py_DECREF(<object>received.payload)
            Py_DECREF(<object>received.path)
            self.head += 1
            self.queued -= 1
        PyMem_Free(self.ring)

    # -- receiving

    cdef int wake(self) except -1:
        if not self.listed:
            self.listed = True
            self.table.core.woken.append(self)
            self.table.core.attention = True
        return 0

    cdef int account(self, int64_t delta) except -1:
        """Receive accounting with the kernel's hysteresis: congested above the limit, free again below half of it."""
        cdef Core core = self.table.core
        self.received_bytes += <uint64_t>delta
        if delta > 0:
            core.counters[C_RECV_BYTES_ADDED_TO_SOCK] += <uint64_t>delta
            if not self.congested and self.received_bytes > self.receive_limit:
                self.congested = True
                self.table.congestion.put(self.port, True)
                self.table.changed()
        else:
            core.counters[C_RECV_BYTES_FREED_FROMSOCK] += <uint64_t>-delta
            if self.congested and self.received_bytes < self.receive_limit // 2:
                self.clear_congestion()
        return 0

    def clear_congestion(self):
        """Clear our bit in the local map and tell the peers."""
        if self.congested:
            self.congested = False
            self.table.congestion.put(self.port, False)
            self.table.changed()

    cdef int append(self, object payload, Path path, uint16_t sport, uint64_t cookie) except -1:
        cdef Received* grown
        cdef Received* received
        cdef uint32_t i
        if self.queued == self.capacity:
            grown = <Received*>PyMem_Malloc((self.capacity * 2 or 8) * sizeof(Received))
            if grown == NULL:
                raise MemoryError()
            for i in range(self.queued):
                grown[i] = self.ring[(self.head + i) & (self.capacity - 1)]
            PyMem_Free(self.ring)
            self.ring = grown
            self.head = 0
            self.capacity = self.capacity * 2 or 8
        received = &self.ring[(self.head + self.queued) & (self.capacity - 1)]
        Py_INCREF(payload)
        received.payload = <PyObject*>payload
        Py_INCREF(path)
        received.path = <PyObject*>path
        received.sport = sport
        received.cookie = cookie
        received.stamp_s = self.table.core.wall_clock() if self.stamped else 0.0
        self.queued += 1
        self.table.core.counters[C_RECV_QUEUED] += 1
        self.table.core.account(path, PyBytes_GET_SIZE(payload) + OVERHEAD_BYTES)
        if PyBytes_GET_SIZE(payload):
            self.account(PyBytes_GET_SIZE(payload))
        if self.receive_waiting:
            self.wake()
        return 0

    cdef object pop(self):
        """The oldest message as (payload, address), off the queue. The queue must not be empty."""
        cdef Received* received = &self.ring[self.head & (self.capacity - 1)]
        cdef object payload = <object>received.payload
        cdef Path path = <Path>received.path
        cdef object taken = (payload, path.address(received.sport))
        Py_DECREF(payload)
        Py_DECREF(path)
        self.head += 1
        self.queued -= 1
        self.received_messages += 1
        if not self.queued:
            self.head = 0
            if self.capacity > 1024:
                PyMem_Free(self.ring)
                self.ring = NULL
                self.capacity = 0
        self.table.core.counters[C_RECV_DELIVERED] += 1
        self.table.core.account(path, -<int64_t>(PyBytes_GET_SIZE(payload) + OVERHEAD_BYTES))
        if PyBytes_GET_SIZE(payload):
            self.account(-<int64_t>PyBytes_GET_SIZE(payload))
        return taken

    def take(self):
        return self.pop() if self.queued else None

    def take_many(self, Py_ssize_t limit):
        cdef list taken = []
        while self.queued and limit > 0:
            taken.append(self.pop())
            limit -= 1
        return taken

    def peek(self):
        """The oldest message and what came with it, left on the queue: (payload, address, cookie, stamp_s), or None."""
        cdef Received* received
        cdef Path path
        if not self.queued:
            return None
        received = &self.ring[self.head & (self.capacity - 1)]
        path = <Path>received.path
        return (<object>received.payload, path.address(received.sport), received.cookie, received.stamp_s)

    def listing(self):
        """The receive queue: (length, address of the sender) of each message, oldest first."""
        cdef Received* received
        cdef uint32_t index
        cdef list found = []
        for index in range(self.queued):
            received = &self.ring[(self.head + index) & (self.capacity - 1)]
            found.append((len(<bytes>received.payload), (<Path>received.path).address(received.sport)))
        return found

    # -- sending

    def set_tos(self, uint8_t tos):
        """Send over the paths of this type of service from now on."""
        self.tos = tos
        self.last_host = self.last_path = None

    cdef int submit_one(self, object data, object address) except -1:
        cdef object found, host
        if self.table is None:
            raise ValueError("submit needs a bound endpoint")
        if type(address) is not tuple or (len(<tuple>address) != 2 and (len(<tuple>address) != 4 or (<tuple>address)[3])):
            return NO_ROUTE
        host = (<tuple>address)[0]
        if self.last_path is None or host is not self.last_host or self.last_path.forgotten:
            found = self.table.routes.get((host, self.tos) if self.tos else host)
            if found is None:
                return NO_ROUTE
            self.last_host, self.last_path = host, <Path>found
        if type((<tuple>address)[1]) is not int:
            return NO_ROUTE
        return self.submit_to(data, self.last_path, (<tuple>address)[1])

    cpdef int submit_to(self, object data, Path path, uint16_t dport, uint64_t cookie=0) except -1:
        """Queue one message for `dport` at the other end of `path`, or say why not."""
        cdef object payload
        cdef Py_ssize_t length
        cdef int code
        if self.table is None or path is None:
            raise ValueError("submit needs a bound endpoint and a path")
        if PyBytes_CheckExact(data):
            payload = data
        elif isinstance(data, (str, int)):
            raise TypeError(f"a datagram is a bytes-like object, not {type(data).__name__!r}")
        else:
            payload = bytes(memoryview(data))
        length = PyBytes_GET_SIZE(payload)
        code = self.refusal(length, path, dport)
        if code != SENT:
            return code
        self.sent_messages += 1
        if path.local:
            path.deliver_local(payload, <uint32_t>length, self.port, dport, cookie)
        else:
            path.push(self, payload, <uint32_t>length, self.port, dport, cookie_field(cookie) if cookie else None, 0)
        return SENT

    cdef int refusal(self, Py_ssize_t length, Path path, uint16_t dport) noexcept:
        """Why a message of this length cannot be queued now; SENT if it can."""
        if length > self.send_limit or length > self.table.core.max_message_bytes:
            return TOO_LONG
        if path.foreign.has(dport):
            return CONGESTED
        if self.sent_bytes >= self.send_limit:
            self.table.core.counters[C_SEND_QUEUE_FULL] += 1
            return FULL
        return SENT

    def check(self, Py_ssize_t length, Path path not None, uint16_t dport):
        return self.refusal(length, path, dport)

    def submit_operation(self, data, Path path not None, uint16_t dport, Operation operation not None, request=None):
        """submit_to() with an operation that goes out right before the message."""
        cdef int code
        cdef bytes extensions, payload
        if path.local or path.header_acks != (request is None):
            raise ValueError("a path over verbs takes operations, one over a stream takes operations with a request")
        if operation.submitted:
            raise ValueError("an operation is submitted once")
        if not isinstance(data, bytes):
            data = bytes(memoryview(data))
        code = self.refusal(len(<bytes>data), path, dport)
        if code != SENT:
            return code
        if request is not None:
            extensions, payload = request
            path.push(self, payload, <uint32_t>len(payload), self.port, dport, None, 0)
            path.annotate(path.tail - 1, operation, extension_field(extensions))
        path.push(self, data, <uint32_t>len(<bytes>data), self.port, dport, None, 0)
        path.annotate(path.tail - 1, operation, operation.extensions)
        operation.submitted = True
        self.sent_messages += 1
        self.table.core.counters[C_SEND_RDMA] += 1
        return SENT

    def submit(self, data, address):
        return self.submit_one(data, address)

    def submit_many(self, list messages not None, Py_ssize_t start=0):
        cdef object message
        if start < 0:
            raise ValueError(f"start is an index, not {start}")
        self.code = SENT
        while start < len(messages):    # anew each time: a buffer of the caller's may run code that changes the list
            message = messages[start]
            if type(message) is not tuple or len(<tuple>message) != 2:
                raise TypeError(f"sendmmsg takes (data, address) tuples, not {message!r}")
            self.code = self.submit_one((<tuple>message)[0], (<tuple>message)[1])
            if self.code != SENT:
                break
            start += 1
        return start

    def cancel(self, Path path not None, int dport=-1):
        """Take our messages to `dport` (-1: any port) off `path`; returns how many."""
        cdef uint64_t before = self.unacknowledged
        path.remove(self, dport, 0)
        path.core.counters[C_SEND_CANCELED] += before - self.unacknowledged
        return before - self.unacknowledged

    def close(self):
        """Unbind, drop what was received and cancel what was sent: the kernel's close."""
        cdef Path path
        cdef object taken
        if not self.bound:
            return
        self.table.pages[self.port >> 8][self.port & 255] = NULL
        self.table.count -= 1
        self.bound = False
        while self.queued:
            self.pop()
            self.received_messages -= 1
            self.table.core.counters[C_RECV_DELIVERED] -= 1
        self.clear_congestion()
        self.last_host = self.last_path = None
        for taken in self.table.routes.values():
            path = <Path>taken
            if not self.unacknowledged:
                break
            self.cancel(path)
        self.owner = None


# == 6. paths =============================================================================================================
# What we owe one peer and what it owes us. The send queue and the retransmit queue are one ring in sequence order with a
# cursor, so a reconnect is "move the cursor back", and rule R0 (numbered messages leave in ascending order, always) holds by
# construction. Invariants: head <= cursor <= picked <= tail; sequences ascend along the ring; a slot whose owner is not NULL
# is counted in exactly that Endpoint's accounts.

# Marks of a ring slot.
cdef enum:
    MARK_PONG = 1                   # counted in path.pongs
    MARK_ANNOUNCEMENT = 2           # the unsolicited probe pong: one in the ring is enough
    MARK_CANCELLED = 4              # not to be sent again: cancelled while half written, or meant for a peer's former life
    MARK_ANSWER = 8                 # counted in path.answers

cdef class Path:
    def __cinit__(self, BindTable table not None, str host not None, CongestionMap foreign not None, *, uint64_t first_sequence=1,
                  BindTable peer_table=None, bint is_ipv6=False, uint32_t scope=0, bint header_acks=False, uint8_t tos=0):
        self.table = table
        self.tos = tos
        self.core = table.core
        self.host = host
        self.foreign = foreign
        self.next_sequence = first_sequence
        self.peer_table = peer_table
        self.local = peer_table is not None
        self.is_ipv6 = is_ipv6
        self.scope = scope
        self.header_acks = self.peer_acks = header_acks
        self.ring = NULL
        self.map_owed = True

    def __dealloc__(self):
        while self.head != self.tail:
            self.free_slot(self.slot(self.head))
            self.head += 1
        PyMem_Free(self.ring)

    cdef Sent* slot(self, uint64_t index) noexcept:
        return &self.ring[index & (self.capacity - 1)]

    cdef int mark_dirty(self) except -1:
        if not self.listed and not self.corked:
            self.listed = True
            self.core.dirty.append(self)
            self.core.attention = True
        return 0

    # -- the ring

    cdef int push(self, Endpoint owner, object payload, uint32_t length, uint16_t sport, uint16_t dport, object extensions,
                  uint8_t marks) except -1:
        """Number a message and queue it."""
        cdef Sent* grown
        cdef Sent* slot
        cdef uint64_t index, capacity
        if self.tail - self.head == self.capacity:
            capacity = self.capacity * 2 or 8
            grown = <Sent*>PyMem_Malloc(capacity * sizeof(Sent))
            if grown == NULL:
                raise MemoryError()
            index = self.head
            while index != self.tail:
                grown[index & (capacity - 1)] = self.slot(index)[0]
                index += 1
            PyMem_Free(self.ring)
            self.ring = grown
            self.capacity = capacity
        slot = self.slot(self.tail)
        slot.sequence = self.next_sequence
        slot.end = 0
        slot.length = length
        slot.sport = sport
        slot.dport = dport
        slot.flags = 0
        slot.marks = marks
        slot.payload = NULL
        slot.owner = NULL
        slot.extensions = NULL
        slot.operation = NULL
        if length:
            Py_INCREF(payload)
            slot.payload = <PyObject*>payload
        if owner is not None:
            Py_INCREF(owner)
            slot.owner = <PyObject*>owner
            owner.sent_bytes += length
            owner.unacknowledged += 1
            if self.peer_acks and owner.sent_bytes >= owner.send_limit // 2:
                slot.flags = FLAG_ACK_REQUIRED
        if extensions is not None:
            Py_INCREF(extensions)
            slot.extensions = <PyObject*>extensions
        self.next_sequence += 1
        self.tail += 1
        self.core.counters[C_SEND_QUEUED] += 1
        self.mark_dirty()
        return 0

    cdef int push_pong(self, uint16_t sport, uint16_t dport, object extensions, uint8_t marks) except -1:
        """Queue an answer that no socket pays for; 0 when a peer that asks and never acknowledges has too many already."""
        if self.pongs >= MAX_PONGS:
            self.core.counters[C_RECV_DROP_PING] += 1
            return 0
        self.pongs += 1
        self.push(None, None, 0, sport, dport, extensions, marks | MARK_PONG)
        self.core.counters[C_SEND_PONG] += 1
        return 1

    cdef void annotate(self, uint64_t index, Operation operation, bytes extensions) noexcept:
        """Give the message at `index`, just queued, its extension headers, and the operation that it goes with."""
        cdef Sent* slot = self.slot(index)
        Py_INCREF(extensions)
        slot.extensions = <PyObject*>extensions
        if operation is not None:
            Py_INCREF(operation)
            slot.operation = <PyObject*>operation

    def push_answer(self, bytes payload not None, extensions):
        """Queue the answer to an operation by message; False if the peer has been sent so many that it never acknowledged."""
        if self.answers >= MAX_ANSWERS:
            return False
        self.answers += 1
        self.push(None, payload, <uint32_t>len(payload), 0, PING_PORT, extension_field(extensions), MARK_ANSWER)
        self.core.counters[C_SEND_RDMA_ANSWERED] += 1
        return True

    def drop_operations(self):
        """Whoever is there now takes no operations: those that wait, and their messages, are dropped."""
        cdef uint64_t index = self.head
        while index != self.tail:
            if self.slot(index).operation != NULL:
                self.slot(index).marks |= MARK_CANCELLED
            index += 1
        self.remove(None, -1, MARK_CANCELLED)

    cdef int disown(self, Sent* slot) except -1:
        """Take a slot off its socket's account."""
        cdef Endpoint owner
        if slot.owner != NULL:
            owner = <Endpoint>slot.owner
            slot.owner = NULL
            owner.sent_bytes -= slot.length
            owner.unacknowledged -= 1
            if not owner.sent_bytes and slot.length:
                self.core.counters[C_SEND_QUEUE_EMPTY] += 1
            if owner.send_waiting:
                owner.wake()
            Py_DECREF(owner)
        return 0

    cdef void free_slot(self, Sent* slot) noexcept:
        if slot.marks & (MARK_PONG | MARK_ANSWER):
            if slot.marks & MARK_PONG:
                self.pongs -= 1
            else:
                self.answers -= 1
        if slot.payload != NULL:
            Py_DECREF(<object>slot.payload)
            slot.payload = NULL
        if slot.extensions != NULL:
            Py_DECREF(<object>slot.extensions)
            slot.extensions = NULL
        if slot.owner != NULL:
            Py_DECREF(<object>slot.owner)
            slot.owner = NULL
        if slot.operation != NULL:
            Py_DECREF(<object>slot.operation)
            slot.operation = NULL

    cdef int release(self, Sent* slot) except -1:
        self.disown(slot)
        self.free_slot(slot)
        return 0

    cdef int give_up(self, Sent* slot, int status) except -1:
        """The message will not be sent. What was to be done before it has this outcome, unless a device has it already."""
        if slot.operation != NULL and not (<Operation>slot.operation).posted:
            self.core.finish(<Operation>slot.operation, status)
        return 0

    cdef void shrink(self) noexcept:
        if self.head == self.tail and self.capacity > 1024:
            PyMem_Free(self.ring)
            self.ring = NULL
            self.capacity = 0

    cdef int remove(self, Endpoint owner, int dport, uint8_t marks) except -1:
        """Take messages out of the ring: those with one of `marks`, or else those of `owner` to `dport` (-1: to any). A half-written
        one loses its owner and its turn to be resent, but the rest of its bytes still goes out."""
        cdef uint64_t index = self.head, to = self.head, cursor = self.cursor, picked = self.picked
        cdef Sent* slot
        while index != self.tail:
            slot = self.slot(index)
            if slot.marks & marks or (not marks and slot.owner == <PyObject*>owner and (dport < 0 or slot.dport == dport)):
                if index == self.cursor and self.partial:
                    self.disown(slot)
                    slot.marks |= MARK_CANCELLED
                else:
                    self.give_up(slot, STATUS_DROPPED if marks else STATUS_CANCELLED)
                    self.release(slot)
                    cursor -= index < self.cursor
                    picked -= index < self.picked
                    index += 1
                    continue
            if to != index:
                self.slot(to)[0] = slot[0]
            to += 1
            index += 1
        self.cursor = cursor
        self.picked = picked
        self.tail = to
        return 0

    cdef int retire(self, uint64_t ack) except -1:
        """Forget what the peer acknowledged: every fully written message up to sequence `ack`."""
        while self.head != self.cursor and self.slot(self.head).sequence <= ack:
            self.release(self.slot(self.head))
            self.head += 1
        self.shrink()
        return 0

    cdef void pick(self, uint64_t index) noexcept:
        """The message at `index` is about to touch a wire; if for the first time, decide whether it asks for an acknowledgement."""
        cdef Sent* slot
        if index < self.picked:
            return
        self.picked = index + 1
        if not self.peer_acks:
            return
        slot = self.slot(index)
        # A kernel acknowledges by itself only what asks for it: a last message that did not ask might never be.
        if self.unacked_packets == 0 or self.unacked_bytes < slot.length or (self.peer_is_kernel and index + 1 == self.tail):
            slot.flags |= FLAG_ACK_REQUIRED
            self.unacked_packets = self.core.max_unacked_packets
            self.unacked_bytes = self.core.max_unacked_bytes
            self.core.counters[C_SEND_ACK_REQUIRED] += 1
        else:
            self.unacked_packets -= 1
            self.unacked_bytes -= slot.length

    cdef void wrote(self, Sent* slot) noexcept:
        """The whole message at the cursor went out."""
        if slot.flags & FLAG_RETRANSMITTED:
            self.retransmitted += 1
            self.core.counters[C_SEND_RETRANSMITTED] += 1
        self.partial = 0
        self.cursor += 1

    cdef void map_sent(self) except *:
        """Our map, as it is now, is on its way."""
        self.map_owed = self.map_wanted = False
        self.map_version_sent = self.table.congestion.version
        self.map_told = self.table.congestion.any()
        self.next_receive_at_map = self.next_receive

    def retire_written(self, uint64_t acked_bytes):
        """Forget what the peer's TCP acknowledged: every message that ends at or before this offset of the link's stream."""
        cdef uint64_t before = self.head
        while self.head != self.cursor and self.slot(self.head).end <= acked_bytes:
            self.release(self.slot(self.head))
            self.head += 1
        self.shrink()
        return self.head - before

    # -- doors for the engine

    @property
    def send_queue(self):
        return self.tail - self.cursor

    @property
    def retransmit_queue(self):
        return self.cursor - self.head

    @property
    def has_pending(self):
        return self.head != self.tail

    @property
    def retired(self):
        return self.head

    cdef bint is_map_due(self) noexcept:
        if self.map_owed or self.map_wanted:
            return True
        if self.map_version_sent == self.table.congestion.version:
            return False
        # An rdsx peer that has sent nothing since our last map, on which no port was full, neither fills a port nor waits for one. It is
        # told when it sends: a thousand idle peers do not get 8 KiB each whenever a port fills up.
        return not self.peer_acks or self.peer_is_kernel or self.map_told or self.next_receive != self.next_receive_at_map

    @property
    def map_due(self):
        return self.is_map_due()

    def push_control(self, uint16_t sport, uint16_t dport, extensions, *, bint once=False):
        """Queue an empty message of no socket: a ping, pong or probe. `once`: not while one queued so is still unacknowledged."""
        cdef uint64_t index = self.head
        if once:
            while index != self.tail:
                if self.slot(index).marks & MARK_ANNOUNCEMENT:
                    return False
                index += 1
        return self.push_pong(sport, dport, extension_field(extensions), MARK_ANNOUNCEMENT if once else 0) != 0

    def owe_map(self):
        """The peer is owed our map once more, although it has not changed."""
        self.map_wanted = True
        self.mark_dirty()

    def open(self, hello):
        """A new link: the first thing written on it is our map, with `hello` in its extension headers."""
        self.hello = extension_field(hello)
        self.map_owed = True
        self.ack_due = ACK_NONE
        self.mark_dirty()

    def reset(self):
        """The link is gone: everything picked up and not acknowledged goes again, oldest first, flagged."""
        cdef uint64_t index = self.head
        cdef Sent* slot
        while index != self.picked:
            slot = self.slot(index)
            slot.flags |= FLAG_RETRANSMITTED
            if self.peer_acks:
                slot.flags |= FLAG_ACK_REQUIRED
            if slot.operation != NULL:      # never twice
                slot.marks |= MARK_CANCELLED
            index += 1
        self.partial = 0
        self.remove(None, -1, MARK_CANCELLED)
        self.cursor = self.head
        self.unacked_packets = self.core.max_unacked_packets
        self.unacked_bytes = self.core.max_unacked_bytes
        self.corked = False
        self.ack_due = ACK_NONE
        self.map_owed = True
        self.held = False
        self.core.counters[C_CONN_RESET] += 1

    def resume(self, uint64_t ack):
        """The peer is the one we know and has received everything up to `ack`: go on from there."""
        while self.head != self.picked and not self.partial and self.slot(self.head).sequence <= ack:
            self.release(self.slot(self.head))
            self.head += 1
        if self.cursor < self.head:
            self.cursor = self.head
        self.held = False
        self.mark_dirty()

    def flush(self):
        """The peer restarted: what its former life may have seen must not reach the new one. Returns how many messages went."""
        cdef uint64_t index = self.head, before = self.tail - self.head
        while index != self.picked:
            self.slot(index).marks |= MARK_CANCELLED
            index += 1
        self.remove(None, -1, MARK_CANCELLED)
        self.next_receive = 0
        self.ack_due = ACK_NONE
        self.held = False
        self.mark_dirty()
        self.core.counters[C_SEND_FLUSHED] += before - (self.tail - self.head)
        return before - (self.tail - self.head)

    def clear(self):
        """Drop everything, for good: the node closes."""
        while self.head != self.tail:
            self.give_up(self.slot(self.head), STATUS_CANCELLED)
            self.release(self.slot(self.head))
            self.head += 1
        self.cursor = self.picked = self.head
        self.partial = 0
        self.shrink()
        self.supervisor = self.way_back = None
        self.forgotten = True

    def pending_to(self, Endpoint owner not None, int dport=-1):
        """How many messages of `owner` to `dport` (-1: any port) wait for acknowledgement here."""
        cdef uint64_t index = self.head
        cdef uint64_t found = 0
        while index != self.tail:
            if self.slot(index).owner == <PyObject*>owner and (dport < 0 or self.slot(index).dport == dport):
                found += 1
            index += 1
        return found

    def listing(self):
        """What waits for acknowledgement: (sequence, length, sport, dport, written) of each message, oldest first."""
        cdef uint64_t index = self.head
        cdef Sent* slot
        cdef list found = []
        while index != self.tail:
            slot = self.slot(index)
            found.append((slot.sequence, slot.length, slot.sport, slot.dport, index < self.cursor))
            index += 1
        return found

    # -- receiving

    cdef object address(self, uint16_t port):
        cdef object known
        if self.addresses is None:
            self.addresses = [None] * 16
        known = self.addresses[port & 15]
        if known is None or <long>(<tuple>known)[1] != <long>port:  # compared as C numbers
            known = (self.host, port, 0, self.scope) if self.is_ipv6 else (self.host, port)
            self.addresses[port & 15] = known
        return known

    cdef uint64_t receive_ack(self) noexcept:
        """The highest sequence received: what h_ack says."""
        return self.next_receive - 1 if self.next_receive else 0

    cdef void acknowledged(self) noexcept:
        """What was received is acknowledged by a header on its way."""
        self.ack_due = ACK_NONE
        self.unacked_received = 0
        self.unacked_received_bytes = 0

    cdef void decide_ack(self) noexcept:
        """A batch was taken in: how soon to acknowledge it, and whether there is something to transmit."""
        if self.peer_acks and self.unacked_received and self.ack_due != ACK_NOW:
            self.ack_due = ACK_LATER
            if self.unacked_received >= ACK_EVERY_MESSAGES or self.unacked_received_bytes >= ACK_EVERY_BYTES:
                self.ack_due = ACK_NOW
        if self.ack_due == ACK_NOW or self.is_map_due():
            self.mark_dirty()

    cdef bint is_duplicate(self, Header* header) noexcept:
        """The kernel's test: lower and flagged. An rdsx peer never goes back, flagged or not."""
        return header.sequence < self.next_receive and (header.flags & FLAG_RETRANSMITTED or (self.peer_acks and not self.peer_is_kernel))

    cdef int take_operation(self, Header* header, object payload, const unsigned char* inline_payload, bint is_whole) except -1:
        """An operation by message, or the answer to one. Python carries it out, here and now, which nothing else may: what follows must
        find it done, and the very next message is not delivered if it was refused. A payload that was too long to keep is None."""
        if header.extensions[0] != EXTENSION_OPERATION or self.core.operate is None:
            return 0
        if payload is None and is_whole:
            payload = PyBytes_FromStringAndSize(<const char*>inline_payload, header.length)
        if not self.core.operate(self, PyBytes_FromStringAndSize(<const char*>header.extensions, EXTENSION_BYTES), payload):
            self.refused = header.sequence + 1
        return 0

    cdef uint64_t take_extensions(self, Header* header) except? 0:
        """What comes with a message: returns the cookie of the sender's memory, and notes that memory of ours was used."""
        cdef int at = find_extension(header.extensions, EXTENSION_RDMA)
        if has_unknown_extension(header.extensions):
            self.core.counters[C_RECV_UNKNOWN_EXTENSION] += 1
        if at >= 0:
            self.core.used.append(load32(header.extensions + at))
            self.core.attention = True
        at = find_extension(header.extensions, EXTENSION_RDMA_DEST)
        return 0 if at < 0 else load32(header.extensions + at) | <uint64_t>load32(header.extensions + at + 4) << 32

    cdef int dispatch(self, Header* header, object payload, const unsigned char* inline_payload) except -1:
        """Deliver a numbered message that is not a duplicate. The payload is `payload`, or `header.length` bytes at
        `inline_payload`. Returns 1 when it is a probe that the engine must see."""
        cdef Endpoint endpoint
        cdef uint64_t cookie = 0
        self.next_receive = header.sequence + 1
        self.unacked_received += 1
        self.unacked_received_bytes += header.length
        if header.flags & FLAG_ACK_REQUIRED and self.peer_acks:
            self.core.counters[C_RECV_ACK_REQUIRED] += 1
            self.ack_due = ACK_NOW
        if header.dport == PING_PORT and self.core.answer_pings:
            if header.sport == PING_PORT:
                return self.take_operation(header, payload, inline_payload, True)
            self.core.counters[C_RECV_PING] += 1
            if header.sport == PROBE_PORT:
                return 1
            if not self.foreign.has(header.sport):
                self.push_pong(PING_PORT, header.sport, None, 0)
            return 0
        if header.dport == PROBE_PORT and header.sport == PING_PORT:
            return 1
        if header.extensions[0] != 0:
            if header.extensions[0] == EXTENSION_OPERATION:
                return self.take_operation(header, payload, inline_payload, True)
            cookie = self.take_extensions(header)
            if self.refused and header.sequence == self.refused:
                self.core.counters[C_RECV_DROP_REFUSED] += 1
                return 0
        endpoint = self.table.lookup(header.dport)
        if endpoint is None:
            self.core.counters[C_RECV_DROP_NO_SOCK] += 1
            return 0
        if payload is None:
            payload = PyBytes_FromStringAndSize(<const char*>inline_payload, header.length)
        endpoint.append(payload, self, header.sport, cookie)
        return 0

    cdef int deliver_local(self, object payload, uint32_t length, uint16_t sport, uint16_t dport, uint64_t cookie) except -1:
        """Loopback: queue at the receiver now; there is nothing to acknowledge."""
        cdef BindTable table = self.peer_table
        cdef Endpoint endpoint
        self.next_sequence += 1
        self.core.counters[C_SEND_QUEUED] += 1
        if dport == PING_PORT:
            if self.core.answer_pings:
                self.core.counters[C_RECV_PING] += 1
                endpoint = self.table.lookup(sport)
                if endpoint is not None and not self.table.congestion.has(sport):
                    endpoint.append(b"", self, PING_PORT, 0)
            return 0
        endpoint = table.lookup(dport)
        if endpoint is None:
            self.core.counters[C_RECV_DROP_NO_SOCK] += 1
            return 0
        if self.way_back is None:
            self.way_back = table.routes[self.table.host]
        self.way_back.next_receive = self.next_sequence
        endpoint.append(payload, self.way_back, sport, cookie)
        return 0


# == 7. rings =============================================================================================================
# Two free-running counters over a power-of-two ring of work-request slots. No hardware in it. Invariant:
# 0 <= allocated - freed <= size, in 32-bit arithmetic that may wrap.

cdef class Ring:
    def __cinit__(self, uint32_t size):
        if size == 0 or size & (size - 1):
            raise ValueError(f"a ring has a power of two slots, not {size}")
        self.size = size

    @property
    def used(self):
        return self.in_use()

    @property
    def free(self):
        return self.room()

    @property
    def low(self):
        """At most a quarter is in use: time to refill a receive ring."""
        return self.in_use() <= self.size // 4

    def allocate(self, uint32_t wanted):
        """Take up to `wanted` slots in a row (modulo size): (first slot, how many)."""
        cdef uint32_t first = self.position(self.allocated)
        return first, self.take(wanted)

    def unallocate(self, uint32_t count):
        """Give back the newest slots, never posted."""
        if count > self.in_use():
            raise ValueError(f"{count} slots were never taken")
        self.allocated -= count

    def release(self, uint32_t count):
        """The oldest `count` slots have completed."""
        if not self.give_back(count):
            raise ValueError(f"{count} completions for {self.in_use()} slots in use")

    @property
    def oldest(self):
        return self.position(self.freed)
