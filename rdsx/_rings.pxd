"""The map of `_rings`: a device seen through six functions, credits, and the two rings of one queue pair."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from rdsx._fast cimport Header, Path, Ring, Sent
from rdsx._operation cimport Operation

cdef extern from "<infiniband/verbs.h>" nogil:
    # Structures and constants of the verbs interface; their layout is frozen. No function: nothing here needs libibverbs to load.
    cdef enum ibv_wc_status:
        IBV_WC_SUCCESS
        IBV_WC_LOC_LEN_ERR
        IBV_WC_LOC_QP_OP_ERR
        IBV_WC_LOC_PROT_ERR
        IBV_WC_WR_FLUSH_ERR
        IBV_WC_REM_INV_REQ_ERR
        IBV_WC_REM_ACCESS_ERR
        IBV_WC_REM_OP_ERR
        IBV_WC_RETRY_EXC_ERR
        IBV_WC_RNR_RETRY_EXC_ERR
    cdef enum ibv_wr_opcode:
        IBV_WR_RDMA_WRITE
        IBV_WR_SEND
        IBV_WR_RDMA_READ
        IBV_WR_ATOMIC_CMP_AND_SWP
        IBV_WR_ATOMIC_FETCH_AND_ADD
    cdef enum ibv_wc_opcode:
        IBV_WC_SEND
        IBV_WC_RECV
    cdef enum ibv_send_flags:
        IBV_SEND_FENCE
        IBV_SEND_SIGNALED
        IBV_SEND_SOLICITED
        IBV_SEND_INLINE
    cdef struct ibv_sge:
        uint64_t addr
        uint32_t length
        uint32_t lkey
    cdef struct rdma_target "void*":            # the unions of ibv_send_wr have no names: only their fields are ever used
        uint64_t remote_addr
        uint32_t rkey
    cdef struct atomic_target "void*":
        uint64_t remote_addr
        uint64_t compare_add
        uint64_t swap
        uint32_t rkey
    cdef struct send_target "void*":
        rdma_target rdma
        atomic_target atomic
    cdef struct ibv_send_wr:
        uint64_t wr_id
        ibv_send_wr* next
        ibv_sge* sg_list
        int num_sge
        ibv_wr_opcode opcode
        unsigned int send_flags
        send_target wr
    cdef struct ibv_recv_wr:
        uint64_t wr_id
        ibv_recv_wr* next
        ibv_sge* sg_list
        int num_sge
    cdef struct ibv_wc:
        uint64_t wr_id
        ibv_wc_status status
        ibv_wc_opcode opcode
        uint32_t vendor_err
        uint32_t byte_len

cdef enum:
    SLOT_BYTES = 4160               # of registered memory for each slot of a ring: a frame, rounded up to whole cache lines
    POLL_BATCH = 32                 # completions taken from a queue at once, at most

# -- 1. the device --------------------------------------------------------------------------------------------------------

cdef struct NicOps:
    # As their namesakes of libibverbs.
    int (*post_send)(void* qp, ibv_send_wr* first, ibv_send_wr** bad) noexcept nogil
    int (*post_recv)(void* qp, ibv_recv_wr* first, ibv_recv_wr** bad) noexcept nogil
    int (*poll_cq)(void* cq, int limit, ibv_wc* found) noexcept nogil
    int (*req_notify_cq)(void* cq, int solicited_only) noexcept nogil
    int (*get_cq_event)(void* channel, void** cq, void** context) noexcept nogil
    void (*ack_cq_events)(void* cq, unsigned int count) noexcept nogil

cdef class Nic:
    cdef NicOps ops
    cdef void* qp
    cdef void* send_cq
    cdef void* recv_cq
    cdef void* channel

# -- 2. credits -----------------------------------------------------------------------------------------------------------

@cython.final
cdef class Credits:
    cdef readonly uint32_t available            # frames that we may still send
    cdef readonly uint32_t unadvertised         # receives posted and not yet granted to the peer
    cdef readonly uint32_t granted              # frames that the peer may still send
    cdef readonly uint32_t owed                 # frames sent before anything was granted: what is granted next pays for them
    cdef readonly uint32_t threshold            # so many unadvertised receives are worth a frame of their own
    cpdef uint32_t sendable(self) noexcept
    cpdef uint8_t advertise(self) noexcept
    cpdef bint spend(self, uint32_t frames) noexcept
    cpdef void posted(self, uint32_t receives) noexcept
    cpdef bint heard(self, uint8_t credit) noexcept
    cpdef bint received(self) noexcept
    cpdef bint is_update_due(self) noexcept

# -- 3. rings -------------------------------------------------------------------------------------------------------------

cdef struct SendSlot:
    ibv_send_wr wr                  # linked to the next slot's for ever; a list is cut at its end while it is posted
    ibv_sge sge

cdef struct ReceiveSlot:
    ibv_recv_wr wr                  # likewise
    ibv_sge sge

@cython.final
cdef class Rings:
    cdef readonly Path path
    cdef readonly Nic nic
    cdef readonly Ring send_ring                # slots of frames posted and not known to be completed
    cdef readonly Ring receive_ring             # slots posted and not completed
    cdef readonly Credits credits               # None: no flow control on this connection
    cdef readonly bint offered                  # what is posted was announced to the peer, whether or not it counts
    cdef SendSlot* send_slots
    cdef ReceiveSlot* receive_slots
    cdef unsigned char* receive_memory          # slot_bytes for each slot; the caller's, registered
    cdef unsigned char* send_memory
    cdef uint32_t max_inline_bytes              # frames up to this are copied into the work request
    cdef readonly bint solicited_only           # the receive queue wakes us for solicited completions only
    cdef bint packed                            # both ends send packed frames; then PACKED_SLOTS of the caller's slots are one
    cdef uint32_t slot_bytes                    # of memory for each slot
    cdef readonly uint32_t fragment_bytes       # payload of each frame of a message but the last: both ends have the same
    cdef uint32_t max_fragment_bytes            # ... and of the last one at most
    cdef int poll_batch                         # completions taken from the receive queue at once: as many bytes with slots of any size
    cdef uint32_t signal_every                  # one frame in so many is signalled
    # sending
    cdef uint32_t unsignalled                   # frames since the last signalled one
    cdef uint32_t built                         # work requests made and not yet posted
    cdef uint32_t frames                        # ... of them frames, which take a receive of the peer each
    cdef uint32_t allowed                       # frames that credits allow in this batch
    cdef uint32_t open_bytes                    # of the packed frame that was built last, and may take more messages; else 0
    cdef list operations                        # posted: (counter of send_ring, Operation), oldest first
    cdef bytes map_bits                         # the map being sent, or None
    cdef bytes map_extensions                   # ... and its extension headers, or None
    cdef uint32_t map_at                        # bytes of it already in slots
    cdef readonly bint acking                   # the one ack-only frame is in flight ...
    cdef uint32_t ack_slot                      # ... with this counter of send_ring
    cdef readonly bint blocked                  # what is to be sent waits for a slot or for credits
    cdef readonly bint starved                  # ... for credits
    # receiving
    cdef uint64_t acked                         # h_ack: the last message taken in on this link, 0 at first
    cdef ibv_wc found[POLL_BATCH]               # completions polled; those from `at` on, `unread` of them, are not yet taken in
    cdef uint32_t at
    cdef uint32_t unread
    cdef readonly bint heard                    # the first header was seen
    cdef readonly bytes extensions              # of the header that poll() stopped for
    cdef readonly uint64_t ack                  # its h_ack
    cdef readonly uint64_t freed                # ports (mod 64) that the last map set free
    cdef Header header                          # first header of the message being put together
    cdef unsigned char first_extensions[16]
    cdef object payload                         # the message being put together; None: nobody gets it
    cdef uint32_t fragment                      # payload bytes of the frame that belonged to the message last taken in
    cdef uint32_t remaining                     # bytes of it still to come; 0: none is being put together
    # the end
    cdef readonly bint broken                   # the queue pair is of no use any more
    cdef readonly str reason                    # why, as it is counted
    cdef readonly str detail
    cdef int count_credits(self, uint32_t available, uint32_t owed) except -1
    cdef bint has_room(self) noexcept
    cdef bint has_frames(self) noexcept
    cdef void note_blocked(self) noexcept
    cdef uint8_t grant(self) noexcept
    cdef uint32_t next_fragment(self, uint32_t remaining) noexcept
    cdef unsigned char* next_frame(self) noexcept
    cdef int build_map(self) except -1
    cdef bint build_message(self) except -1
    cdef bint append_message(self) noexcept
    cdef void store_message_header(self, unsigned char* frame, Sent* slot, uint8_t credit) noexcept
    cdef int build_operation(self, Operation operation) except -1
    cdef void build_ack(self) noexcept
    cdef void build(self, uint32_t frame_bytes, unsigned int flags) noexcept
    cdef SendSlot* take_slot(self, unsigned int flags) noexcept
    cdef int ring_doorbell(self) except -1
    cdef uint32_t reap(self) except? 0
    cdef int finish_operations(self) except -1
    cdef int fail_operation(self, uint32_t counter, ibv_wc_status status) except -1
    cdef int take_in(self, ibv_wc* completion) except -1
    cdef int read_header(self, const unsigned char* frame, Header* header) except -1
    cdef int take_fragment(self, Header* header, const unsigned char* data, uint32_t size) except -1
    cdef int begin(self, Header* header) except -1
    cdef int take_message(self) except -1
    cdef int take_unwanted(self) except -1
    cdef int bad_fragment(self, str detail) except -1
    cdef int break_off_with(self, str what, ibv_wc_status status, uint32_t vendor_err) except -1
    cdef int break_off(self, str reason, str detail) except -1
