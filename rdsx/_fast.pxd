"""The map of `_fast`: every C-level type of the hot path, with what each field means."""

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from rdsx._operation cimport Operation

cdef enum:
    HEADER_BYTES = 48               # one RDS header on every transport
    EXTENSION_BYTES = 16            # its tail: the extension headers
    FRAGMENT_BYTES = 4096           # payload bytes of a fragment (RDS_FRAG_SIZE)
    MAX_MESSAGE_BYTES = 1048576     # RDS_MAX_MSG_SIZE: nobody sends more
    MAP_BYTES = 8192                # a congestion map: one bit a port
    COUNTERS = 47                   # len(COUNTER_NAMES)
    SCRATCH_BYTES = 262144          # one read at most
    STAGING_BYTES = 131072          # headers and small payloads of one write at most

# Header flags (h_flags).
cdef enum:
    FLAG_CONG_BITMAP = 0x01
    FLAG_ACK_REQUIRED = 0x02
    FLAG_RETRANSMITTED = 0x04

# Ports that no socket can hold.
cdef enum:
    PING_PORT = 0
    PROBE_PORT = 1

# The extension header type, above all of the kernel's, of operations by message (wire/operation.py).
cdef enum:
    EXTENSION_OPERATION = 0x4F

# Path.ack_due: what we owe a peer that acknowledges at our level.
cdef enum:
    ACK_NONE = 0
    ACK_LATER = 1
    ACK_NOW = 2

# Counters, in the order of COUNTER_NAMES.
cdef enum:
    C_CONN_RESET
    C_RECV_DROP_BAD_CHECKSUM
    C_RECV_DROP_OLD_SEQ
    C_RECV_DROP_NO_SOCK
    C_RECV_DELIVERED
    C_RECV_QUEUED
    C_RECV_ACK_REQUIRED
    C_RECV_PING
    C_SEND_QUEUE_EMPTY
    C_SEND_QUEUE_FULL
    C_SEND_ACK_REQUIRED
    C_SEND_QUEUED
    C_SEND_PONG
    C_CONG_UPDATE_QUEUED
    C_CONG_UPDATE_RECEIVED
    C_CONG_SEND_ERROR
    C_CONG_SEND_BLOCKED
    C_RECV_BYTES_ADDED_TO_SOCK
    C_RECV_BYTES_FREED_FROMSOCK
    C_SEND_ACK_ONLY
    C_RECV_ACK_ONLY
    C_SEND_RETRANSMITTED
    C_SEND_CANCELED
    C_SEND_FLUSHED
    C_RECV_DROP_TOO_LONG
    C_RECV_DROP_BAD_MAP
    C_RECV_DROP_PING
    C_RECV_DROP_BAD_FRAME
    C_RECV_PAUSED
    C_STREAM_WRITES
    C_STREAM_READS
    C_STREAM_BYTES_WRITTEN
    C_STREAM_BYTES_READ
    C_RECV_UNKNOWN_EXTENSION
    C_IB_TX_RING_FULL
    C_IB_TX_THROTTLE
    C_IB_TX_CREDIT_UPDATES
    C_IB_RX_RING_EMPTY
    C_IB_RX_CREDIT_UPDATES
    C_IB_ACK_SEND_DELAYED
    C_IB_ACK_SEND_PIGGYBACKED
    C_VERBS_DOORBELLS
    C_VERBS_FRAMES_SENT
    C_VERBS_FRAMES_RECEIVED
    C_SEND_RDMA
    C_SEND_RDMA_ANSWERED
    C_RECV_DROP_REFUSED

# -- 1. header ------------------------------------------------------------------------------------------------------------

cdef struct Header:
    uint64_t sequence               # h_sequence; 0 in maps and pure acks
    uint64_t ack                    # h_ack: highest sequence received
    uint32_t length                 # h_len: payload bytes of the whole message
    uint16_t sport                  # h_sport
    uint16_t dport                  # h_dport
    uint8_t flags                   # h_flags
    uint8_t credit                  # h_credit
    uint16_t checksum               # h_csum; 0 = not checksummed
    const unsigned char* extensions # h_exthdr, inside the parsed buffer

cdef uint16_t header_checksum(const unsigned char* header) noexcept nogil
cdef bint checksum_is_good(const unsigned char* header) noexcept nogil
cdef void load_header(const unsigned char* source, Header* header) noexcept nogil
cdef void store_header(unsigned char* target, uint64_t sequence, uint64_t ack, uint32_t length, uint16_t sport, uint16_t dport,
                       uint8_t flags, uint8_t credit, const unsigned char* extensions) noexcept nogil

# -- 2. fragments ---------------------------------------------------------------------------------------------------------

@cython.final
cdef class Reassembly:
    cdef bytes payload              # the message being put together, or None
    cdef Header header              # header of its first fragment (extensions: see below)
    cdef unsigned char first_extensions[16]
    cdef uint32_t filled            # payload bytes copied so far
    cdef uint32_t max_message_bytes

# -- 3. congestion maps ---------------------------------------------------------------------------------------------------

@cython.final
cdef class CongestionMap:
    cdef unsigned char* bits        # MAP_BYTES, or NULL while no port is congested
    cdef readonly uint64_t version  # grows with every change
    cdef bint has(self, uint16_t port) noexcept nogil
    cdef int put(self, uint16_t port, bint congested) except -1
    cdef uint64_t adopt(self, const unsigned char* received) except? 0
    cdef bint any(self) noexcept nogil

# -- 4. what a node shares ------------------------------------------------------------------------------------------------

@cython.final
cdef class Core:
    cdef uint64_t counters[COUNTERS]
    cdef readonly uint64_t queued_bytes         # payload + overhead in all receive queues
    cdef readonly uint64_t max_node_queued_bytes
    cdef readonly uint64_t max_peer_queued_bytes
    cdef readonly uint32_t max_message_bytes
    cdef readonly uint32_t max_unacked_packets  # ACK_REQUIRED policy: messages between marks
    cdef readonly uint64_t max_unacked_bytes    # ... and bytes
    cdef readonly bint answer_pings
    cdef public bint attention                  # one of the six lists below has something for the driver
    cdef list dirty                             # Paths with something new to transmit
    cdef list woken                             # Endpoints whose waiters may go on
    cdef list resumable                         # Paths that may be read again
    cdef list remapped                          # BindTables whose congestion map changed
    cdef list finished                          # Operations with an outcome
    cdef list used                              # rkeys that came with messages behind an operation on our memory
    cdef list paused                            # Paths not read because of the caps
    cdef bint full                              # the node's cap was passed, and half of it not yet reached again
    cdef object wall_clock                      # callable giving the time in seconds, for SO_TIMESTAMP
    cdef public object operate                  # callable that takes operations by message, or None; see Path.take_operation
    cdef unsigned char* staging                 # headers and small payloads of the batch being written
    cdef unsigned char* scratch                 # bytes just read
    cdef object staging_view                    # memoryviews of the two, made once
    cdef object scratch_view
    cdef void account(self, Path path, int64_t delta) noexcept
    cdef void unpause(self, Path path) noexcept
    cdef int finish(self, Operation operation, int status) except -1

# -- 5. endpoints and ports -----------------------------------------------------------------------------------------------

@cython.final
cdef class BindTable:
    cdef readonly Core core
    cdef readonly str host                      # the local address
    cdef readonly CongestionMap congestion      # which of our ports are full
    cdef readonly dict routes                   # remote host -> Path; with a type of service above 0: (remote host, it) -> Path
    cdef readonly uint32_t count                # bound ports
    cdef PyObject** pages[256]                  # [port >> 8][port & 255] -> Endpoint (borrowed), pages made on demand
    cdef Endpoint lookup(self, uint16_t port)
    cdef int changed(self) except -1

cdef struct Received:
    PyObject* payload               # owned bytes
    PyObject* path                  # owned Path it came over
    uint64_t cookie                 # RDMA_DEST cookie, 0 = none
    double stamp_s                  # wall clock at queueing
    uint16_t sport

@cython.final
cdef class Endpoint:
    cdef readonly BindTable table
    cdef readonly uint16_t port
    cdef readonly uint8_t tos                   # type of service: over which path to each peer it sends
    cdef public object owner                    # the RdsSocket in front of this endpoint
    cdef public uint32_t send_limit             # effective SO_SNDBUF
    cdef readonly uint64_t sent_bytes           # payload bytes queued and not yet acknowledged
    cdef readonly uint64_t unacknowledged       # messages queued and not yet acknowledged
    cdef public uint32_t receive_limit          # effective SO_RCVBUF
    cdef readonly uint64_t received_bytes       # payload bytes in the receive queue
    cdef readonly bint congested                # our bit in the local map is set
    cdef public bint receive_waiting            # a task waits for a message
    cdef public bint send_waiting               # a task waits for room or for acknowledgements
    cdef bint listed                            # already in core.woken
    cdef readonly bint bound
    cdef public bint stamped                    # SO_TIMESTAMP: note when each message arrives
    cdef public bint monitored                  # RDS_CONG_MONITOR
    cdef public uint64_t monitor_wanted         # ports (mod 64) that met congestion
    cdef public uint64_t monitor_pending        # ... and may be free again
    cdef readonly int code                      # why the last submit_many stopped
    cdef object last_host                       # where the last message went: the very string that the caller gave,
    cdef Path last_path                         # ... and the path that it stands for, while that is not forgotten
    cdef readonly uint64_t sent_messages        # totals, for statistics()
    cdef readonly uint64_t received_messages
    cdef Received* ring                         # receive queue: power-of-two ring
    cdef uint32_t capacity
    cdef uint32_t head
    cdef readonly uint32_t queued               # messages in it
    cdef int append(self, object payload, Path path, uint16_t sport, uint64_t cookie) except -1
    cdef int account(self, int64_t delta) except -1
    cdef int wake(self) except -1
    cdef int submit_one(self, object data, object address) except -1
    cdef int refusal(self, Py_ssize_t length, Path path, uint16_t dport) noexcept
    cpdef int submit_to(self, object data, Path path, uint16_t dport, uint64_t cookie=*) except -1
    cdef object pop(self)

# -- 6. paths: send queue, retransmit queue, duplicate test ---------------------------------------------------------------

cdef struct Sent:
    uint64_t sequence
    uint64_t end                    # offset just past it in the link's stream, once picked up
    PyObject* payload               # owned bytes; NULL = empty
    PyObject* owner                 # owned Endpoint; NULL = ping, pong or cancelled
    PyObject* extensions            # owned bytes of EXTENSION_BYTES, or NULL
    PyObject* operation             # owned Operation that goes out before it, or NULL
    uint32_t length
    uint16_t sport
    uint16_t dport
    uint8_t flags                   # header flags to send: RETRANSMITTED, ACK_REQUIRED
    uint8_t marks                   # MARK_*: our own bookkeeping

@cython.final
cdef class Path:
    cdef readonly BindTable table
    cdef readonly Core core
    cdef readonly str host                      # the remote address
    cdef readonly uint8_t tos                   # type of service of its connection
    cdef readonly uint32_t scope                # IPv6 scope id, 0 otherwise
    cdef bint is_ipv6
    cdef readonly bint local                    # loopback: deliver instead of queue
    cdef BindTable peer_table                   # ... into this table
    cdef readonly CongestionMap foreign         # which of their ports are full
    cdef public object supervisor               # who looks after this path in the driver
    cdef public bint forgotten                  # taken off the table's routes: nobody may send on it any more
    cdef Path way_back                          # loopback: the path on which the receiver sees the sender
    cdef public bint corked                     # the driver will look at this path anyway: no need to mark it dirty
    cdef bint listed                            # already in core.dirty
    cdef list addresses                         # (host, port) tuples lately given to users, by port & 15; or None
    # sending: ring of Sent; free-running indices head <= cursor <= picked <= tail
    cdef Sent* ring
    cdef uint64_t capacity
    cdef uint64_t head                          # oldest not acknowledged
    cdef uint64_t cursor                        # next to write: [head, cursor) is the retransmit queue
    cdef uint64_t picked                        # everything below may have touched a wire
    cdef uint64_t tail                          # [cursor, tail) is the send queue
    cdef public uint64_t next_sequence          # the next message's number
    cdef readonly uint64_t retransmitted        # messages sent again, total
    cdef size_t partial                         # bytes of the message at cursor that its link has already taken
    cdef public bint held                       # write no messages yet: the peer may have restarted
    cdef uint32_t unacked_packets               # counters of the ACK_REQUIRED policy
    cdef uint64_t unacked_bytes
    cdef uint32_t pongs                         # pongs in the ring
    cdef uint32_t answers                       # answers to operations by message in the ring
    # receiving
    cdef public uint64_t next_receive           # lowest acceptable sequence
    cdef readonly uint64_t queued_bytes         # our share of core.queued_bytes
    cdef readonly bint paused                   # above a cap: the link must not read
    cdef uint64_t refused                       # sequence of a message whose operation was refused: it is not delivered; 0: none
    # acknowledging
    cdef readonly bint header_acks              # a transport on which every peer acknowledges with h_ack and nobody probes: verbs
    cdef public bint peer_acks                  # h_ack counts, both ways: the peer is rdsx, or header_acks
    cdef public bint peer_is_kernel             # its numbers may begin anew without a word, and it wants every map
    cdef public int ack_due                     # ACK_NONE, ACK_LATER, ACK_NOW
    cdef uint32_t unacked_received              # messages received since our last ack
    cdef uint64_t unacked_received_bytes
    cdef uint64_t map_version_sent              # local map version last put on this link
    cdef bint map_owed                          # the link is new: a map goes first
    cdef bint map_wanted                        # it shall go once more, changed or not
    cdef bint map_told                          # the last map on this link had a port in it
    cdef uint64_t next_receive_at_map           # next_receive when it was put there
    cdef bint is_map_due(self) noexcept
    cdef object hello                           # extensions of that first map
    cdef int mark_dirty(self) except -1
    cdef int push(self, Endpoint owner, object payload, uint32_t length, uint16_t sport, uint16_t dport, object extensions,
                  uint8_t marks) except -1
    cdef int deliver_local(self, object payload, uint32_t length, uint16_t sport, uint16_t dport, uint64_t cookie) except -1
    cdef Sent* slot(self, uint64_t index) noexcept
    cdef int push_pong(self, uint16_t sport, uint16_t dport, object extensions, uint8_t marks) except -1
    cdef void annotate(self, uint64_t index, Operation operation, bytes extensions) noexcept
    cdef int disown(self, Sent* slot) except -1
    cdef void free_slot(self, Sent* slot) noexcept
    cdef int release(self, Sent* slot) except -1
    cdef int give_up(self, Sent* slot, int status) except -1
    cdef void shrink(self) noexcept
    cdef int remove(self, Endpoint owner, int dport, uint8_t marks) except -1
    cdef int retire(self, uint64_t ack) except -1
    cdef void pick(self, uint64_t index) noexcept
    cdef void wrote(self, Sent* slot) noexcept
    cdef void map_sent(self) except *
    cdef uint64_t receive_ack(self) noexcept
    cdef void acknowledged(self) noexcept
    cdef void decide_ack(self) noexcept
    cdef bint is_duplicate(self, Header* header) noexcept
    cdef int take_operation(self, Header* header, object payload, const unsigned char* inline_payload, bint is_whole) except -1
    cdef uint64_t take_extensions(self, Header* header) except? 0
    cdef int dispatch(self, Header* header, object payload, const unsigned char* inline_payload) except -1
    cdef object address(self, uint16_t port)

# -- 7. rings -------------------------------------------------------------------------------------------------------------

@cython.final
cdef class Ring:
    cdef readonly uint32_t size
    cdef uint32_t allocated                     # free-running: slots ever taken
    cdef uint32_t freed                         # free-running: slots ever given back

    cdef inline uint32_t in_use(self) noexcept:
        return self.allocated - self.freed

    cdef inline uint32_t room(self) noexcept:
        return self.size - (self.allocated - self.freed)

    cdef inline uint32_t position(self, uint32_t counter) noexcept:
        return counter & (self.size - 1)

    cdef inline uint32_t take(self, uint32_t wanted) noexcept:
        cdef uint32_t taken = min(wanted, self.room())
        self.allocated += taken
        return taken

    cdef inline bint give_back(self, uint32_t count) noexcept:
        if count > self.in_use():
            return False
        self.freed += count
        return True
