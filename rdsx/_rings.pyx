"""The data plane of verbs: messages of one `Path` as frames in the send ring of a queue pair, completions of its receive ring as
messages.

Knows devices only as six functions and four addresses (`Nic`), so a test puts a fake one there. Knows no sockets, tasks or clocks, and
nothing of who made the queue pair: the link that owns a `Rings` waits for the completion channel. A frame is a header and up to 4 KiB of
payload, side by side in one slot of registered memory; between rdsx nodes up to 16 KiB, or several messages one behind the other. Payloads
are copied into slots and out of them, so of a user's memory only that of one-sided operations is ever in a device's hands, under a lease.
Invariants: frames complete in the order in which they were posted; a slot is written only while no posted work request names it; what a
peer sends can break the link, and nothing else.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset, strerror

from rdsx._fast cimport *
from rdsx._operation cimport *


cdef extern from "<infiniband/verbs.h>" nogil:
    cdef struct ibv_context_ops:
        pass
    cdef struct ibv_context:
        ibv_context_ops ops
    cdef struct ibv_cq:
        ibv_context* context
    cdef struct ibv_qp:
        ibv_context* context
        ibv_cq* send_cq
        ibv_cq* recv_cq

cdef extern from *:
    """
    /* What a provider put into the context, behind types that do not name a device's structures. */
    static void rdsx_load_ops(const struct ibv_context *context, void *table) {
        struct { void *post_send, *post_recv, *poll_cq, *req_notify_cq; } *ops = table;
        memcpy(&ops->post_send, &context->ops.post_send, sizeof(void *));
        memcpy(&ops->post_recv, &context->ops.post_recv, sizeof(void *));
        memcpy(&ops->poll_cq, &context->ops.poll_cq, sizeof(void *));
        memcpy(&ops->req_notify_cq, &context->ops.req_notify_cq, sizeof(void *));
    }
    """
    void load_ops "rdsx_load_ops"(const ibv_context* context, void* table) noexcept nogil

cdef extern from *:
    """
    /* memcpy() of the C library. A compiler that knows that it is 4096 bytes at most copies with a string instruction instead, which is
       slow to start: 64-byte messages pay for it. */
    static inline void rdsx_copy(void *target, const void *source, size_t bytes) {
        __asm__("" : "+r"(bytes));
        memcpy(target, source, bytes);
    }
    """
    void copy "rdsx_copy"(void* target, const void* source, size_t bytes) noexcept nogil


# Codes of Rings.poll: why it stopped.
cdef enum:
    EMPTY = 0
    HELLO = 1
    TAKEN = 2
    NEW_MAP = 3
    BROKEN = 4

cdef enum:
    MIN_SLOTS = 4                   # of a ring
    MAX_SLOTS = 32768               # largest power of two in the 16 bits that credits are counted in

cpdef enum:
    PACKED_SLOTS = 4                # side by side, hold one packed frame
    MIN_PACKED_SLOTS = PACKED_SLOTS * MIN_SLOTS

cdef enum:
    SIGNAL_EVERY = 16               # the kernel signals every 17th frame (net.rds.ib.max_unsignaled_wr)
    CREDIT_UPDATE = 16              # the kernel sends a frame for so many unadvertised receives
    MAX_GRANT = 255                 # h_credit has 8 bits
    MAX_CREDITS = 65535             # the kernel counts them in 16 bits
    PACKED_FRAME_BYTES = PACKED_SLOTS * FRAGMENT_BYTES  # whole packets, whatever the path MTU
    PACKED_ALIGNMENT = 8            # of each header in a packed frame


# == 1. the device ========================================================================================================
# Six functions and four addresses. Invariant: whatever owns them outlives every Rings that holds the Nic.

cdef class Nic:
    pass


def verbs_nic(uintptr_t qp, uintptr_t send_cq, uintptr_t recv_cq, uintptr_t channel, uintptr_t get_cq_event, uintptr_t ack_cq_events):
    cdef ibv_qp* pair = <ibv_qp*>qp
    cdef Nic nic = Nic()
    if not (qp and send_cq and recv_cq and channel and get_cq_event and ack_cq_events):
        raise ValueError("verbs_nic() takes the addresses of objects that exist, not 0")
    if send_cq == recv_cq:
        raise ValueError("rings need two completion queues, one for each direction")
    if <uintptr_t>pair.send_cq != send_cq or <uintptr_t>pair.recv_cq != recv_cq:
        raise ValueError("the queue pair does not complete into these completion queues")
    load_ops(pair.context, &nic.ops)
    nic.ops.get_cq_event = <int (*)(void*, void**, void**) noexcept nogil>get_cq_event
    nic.ops.ack_cq_events = <void (*)(void*, unsigned int) noexcept nogil>ack_cq_events
    nic.qp, nic.send_cq, nic.recv_cq, nic.channel = <void*>qp, <void*>send_cq, <void*>recv_cq, <void*>channel
    return nic


# == 2. credits ===========================================================================================================
# One credit, one posted receive, one frame. Invariants: nobody sends a frame without a credit, but for the map that goes before a kernel
# has granted any; the last one goes only with a grant, so two ends can never wait for each other.

cdef class Credits:
    def __cinit__(self, uint32_t receive_slots, uint32_t available=0, uint32_t owed=0):
        self.available = available
        self.owed = owed
        # At least 2: an update takes a receive itself, and two ends that answered each with another would never stop.
        self.threshold = max(2, min(<uint32_t>CREDIT_UPDATE, receive_slots // 4))

    cpdef uint32_t sendable(self) noexcept:
        if self.available == 0:
            return 0
        return self.available if self.unadvertised else self.available - 1

    cpdef uint8_t advertise(self) noexcept:
        cdef uint8_t grant = <uint8_t>min(self.unadvertised, <uint32_t>MAX_GRANT)
        self.unadvertised -= grant
        self.granted += grant
        return grant

    cpdef bint spend(self, uint32_t frames) noexcept:
        if frames > self.available:
            return False
        self.available -= frames
        return True

    cpdef void posted(self, uint32_t receives) noexcept:
        self.unadvertised += receives

    cpdef bint heard(self, uint8_t credit) noexcept:
        cdef uint32_t paid = min(self.owed, <uint32_t>credit)
        if self.available + credit - paid > MAX_CREDITS:
            return False
        self.owed -= paid
        self.available += credit - paid
        return True

    cpdef bint received(self) noexcept:
        if self.granted == 0:
            return False
        self.granted -= 1
        return True

    cpdef bint is_update_due(self) noexcept:
        return self.unadvertised >= self.threshold

    def grant_all(self):
        """The connection's private data says how many receives are posted, and so grants them."""
        self.granted += self.unadvertised
        self.unadvertised = 0
        return self.granted


# == 3. rings =============================================================================================================
# Slots are used in order, and complete in order. Invariants: [freed, allocated) of send_ring is posted and not known to be completed, and
# of receive_ring posted and not completed; one signalled frame retires all before it; path.partial is HEADER_BYTES plus the payload
# bytes of the message at the cursor that are already in slots, or 0.

def ring_bytes(uint32_t send_slots, uint32_t receive_slots):
    return (<uint64_t>send_slots + receive_slots) * SLOT_BYTES


cdef class Rings:
    def __cinit__(self, Path path not None, Nic nic not None, *, uintptr_t memory, uint64_t memory_bytes, uint32_t lkey,
                  uint32_t send_slots=256, uint32_t receive_slots=1024, uint32_t max_inline_bytes=0, bint packed=False):
        cdef uint32_t slots, fragments, joined = PACKED_SLOTS if packed else 1, least = MIN_PACKED_SLOTS if packed else MIN_SLOTS
        for slots in (send_slots, receive_slots):
            if not least <= slots <= MAX_SLOTS:
                raise ValueError(f"a ring has {least} to {MAX_SLOTS} slots, not {slots}")
        if nic.ops.post_send == NULL:
            raise ValueError("this Nic stands for no device: take one from verbs_nic()")
        if not memory or memory_bytes < ring_bytes(send_slots, receive_slots):
            raise ValueError(f"the rings need {ring_bytes(send_slots, receive_slots)} bytes of registered memory, "
                             f"not {memory_bytes} at {memory:#x}")
        self.path = path
        self.nic = nic
        self.send_ring = Ring(send_slots // joined)
        self.receive_ring = Ring(receive_slots // joined)
        self.packed = packed
        self.slot_bytes = joined * SLOT_BYTES
        self.max_fragment_bytes = joined * FRAGMENT_BYTES
        self.fragment_bytes = PACKED_FRAME_BYTES - HEADER_BYTES if packed else FRAGMENT_BYTES
        self.poll_batch = POLL_BATCH // joined
        self.receive_memory = <unsigned char*>memory
        self.send_memory = self.receive_memory + <size_t>receive_slots * SLOT_BYTES
        self.max_inline_bytes = max_inline_bytes
        self.signal_every = max(1, min(<uint32_t>SIGNAL_EVERY, self.send_ring.size // 4))
        # Woken only at the end of a message, we must not run out of slots in the middle of it.
        fragments = (path.core.max_message_bytes + self.fragment_bytes - 1) // self.fragment_bytes
        self.solicited_only = self.receive_ring.size >= 2 * fragments
        self.operations = []
        self.send_slots = <SendSlot*>PyMem_Calloc(self.send_ring.size, sizeof(SendSlot))
        self.receive_slots = <ReceiveSlot*>PyMem_Calloc(self.receive_ring.size, sizeof(ReceiveSlot))
        if self.send_slots == NULL or self.receive_slots == NULL:
            raise MemoryError()
        link_sends(self.send_slots, self.send_ring.size, self.send_memory, self.slot_bytes, lkey)
        link_receives(self.receive_slots, self.receive_ring.size, self.receive_memory, self.slot_bytes,
                      HEADER_BYTES + self.max_fragment_bytes, lkey)

    def __dealloc__(self):
        PyMem_Free(self.send_slots)
        PyMem_Free(self.receive_slots)

    @property
    def in_flight(self):
        return self.send_ring.in_use()

    @property
    def idle(self):
        cdef Path path = self.path
        return (self.map_bits is None and path.partial == 0 and (path.cursor == path.tail or path.held) and not path.is_map_due()
                and path.ack_due != ACK_NOW)

    # -- before the first frame

    def post_receives(self):
        """Give the device every free receive slot, in one list."""
        cdef uint32_t count = self.receive_ring.room(), first = self.receive_ring.allocated
        cdef ReceiveSlot* last
        cdef ReceiveSlot* next
        cdef ibv_recv_wr* bad = NULL
        cdef int code
        if count == 0 or self.broken:
            return 0
        last = &self.receive_slots[self.receive_ring.position(first + count - 1)]
        next = &self.receive_slots[self.receive_ring.position(first + count)]
        last.wr.next = NULL
        code = self.nic.ops.post_recv(self.nic.qp, &self.receive_slots[self.receive_ring.position(first)].wr, &bad)
        last.wr.next = &next.wr
        if code:
            self.break_off("post_failed", f"ibv_post_recv: {strerror(abs(code)).decode()}")
            return 0
        self.receive_ring.take(count)
        if self.credits is not None:
            self.credits.posted(count)
        return count

    def offer_credits(self):
        """What is posted is announced to the peer, in receives of 4 KiB; returns how many. Use_credits(), or a grant in the peer's first
        frame, says that it counts."""
        self.offered = True
        self.solicited_only = False     # a sender in the middle of a message may wait for our credits
        return self.receive_ring.in_use() * (PACKED_SLOTS if self.packed else 1)

    def use_credits(self, uint32_t available):
        """Both ends count credits on this connection. `available`: what the peer announced. What is posted is granted to it."""
        if available == 0:
            raise ValueError(f"a peer that counts credits grants 1 to {MAX_CREDITS} at first, not 0")
        self.offer_credits()
        if self.packed:
            available = max(1, available // PACKED_SLOTS)
        self.count_credits(min(available, <uint32_t>MAX_CREDITS), 0)

    cdef int count_credits(self, uint32_t available, uint32_t owed) except -1:
        self.credits = Credits(self.receive_ring.size, available, owed)
        self.credits.posted(self.receive_ring.in_use())
        self.credits.grant_all()
        return 0

    # -- sending

    def transmit(self):
        """Post what the path has to send, as far as there is room; returns how many work requests. One doorbell."""
        cdef Path path = self.path
        if self.broken:
            return 0
        self.allowed = 0xFFFFFFFF if self.credits is None else self.credits.sendable()
        while self.has_frames():
            if self.map_bits is not None or (path.partial == 0 and path.is_map_due()):
                if not self.has_room():
                    break
                self.build_map()
            elif not self.append_message() and not (self.has_room() and self.build_message()):
                break
        if self.frames:
            if path.ack_due:
                path.core.counters[C_IB_ACK_SEND_PIGGYBACKED] += 1
                path.acknowledged()
        elif path.ack_due == ACK_NOW or (self.credits is not None and self.credits.is_update_due()):
            if self.acking:
                path.core.counters[C_IB_ACK_SEND_DELAYED] += 1
            elif self.has_room():
                self.build_ack()
        self.note_blocked()
        return self.ring_doorbell()

    def flush(self):
        """Post an acknowledgement, which is always signalled, behind what is not known to have arrived: once in_flight is 0, it has."""
        self.allowed = 0xFFFFFFFF if self.credits is None else self.credits.sendable()
        if not self.broken and not self.acking and self.send_ring.in_use() and self.has_room():
            self.build_ack()
            self.ring_doorbell()

    cdef bint has_room(self) noexcept:
        """Whether one more frame can be posted now."""
        return self.send_ring.room() > 0 and self.frames < self.allowed

    cdef bint has_frames(self) noexcept:
        """Whether a map or a message is to be sent."""
        cdef Path path = self.path
        return self.map_bits is not None or path.is_map_due() or (path.cursor != path.tail and not path.held)

    cdef void note_blocked(self) noexcept:
        cdef bint was_blocked = self.blocked
        self.blocked = self.has_frames() or (self.path.ack_due == ACK_NOW and not self.acking)
        self.starved = self.blocked and self.frames >= self.allowed
        if self.blocked and not was_blocked:
            self.path.core.counters[C_IB_TX_THROTTLE if self.starved else C_IB_TX_RING_FULL] += 1

    cdef uint8_t grant(self) noexcept:
        """h_credit of the next frame: the first of a batch grants what is to be granted."""
        if self.credits is None or self.frames:
            return 0
        self.path.core.counters[C_IB_TX_CREDIT_UPDATES] += self.credits.unadvertised > 0
        return self.credits.advertise()

    cdef uint32_t next_fragment(self, uint32_t remaining) noexcept:
        """Payload bytes of a message that go in its next frame: all that remain if a slot has room for them, or so many as agreed."""
        return remaining if remaining <= self.max_fragment_bytes else self.fragment_bytes

    cdef unsigned char* next_frame(self) noexcept:
        return self.send_memory + <size_t>self.send_ring.position(self.send_ring.allocated) * self.slot_bytes

    cdef int build_map(self) except -1:
        """Our map, as it is when its first frame is built; it may take several batches."""
        cdef Path path = self.path
        cdef unsigned char* frame
        cdef uint32_t size
        if self.map_bits is None:
            self.map_bits = bytes(path.table.congestion)
            self.map_extensions = path.hello if path.map_owed else None
            self.map_at = 0
            path.map_sent()
        while self.has_room():
            frame = self.next_frame()
            store_header(frame, 0, self.acked, MAP_BYTES, 0, 0, FLAG_CONG_BITMAP, self.grant(),
                         NULL if self.map_extensions is None else <unsigned char*>PyBytes_AS_STRING(self.map_extensions))
            store_checksum(frame)
            size = self.next_fragment(<uint32_t>MAP_BYTES - self.map_at)
            memcpy(frame + HEADER_BYTES, PyBytes_AS_STRING(self.map_bits) + self.map_at, size)
            self.map_at += size
            self.build(HEADER_BYTES + size, IBV_SEND_SOLICITED if self.map_at == MAP_BYTES else 0)
            if self.map_at == MAP_BYTES:
                self.map_bits = None
                break
        return 0

    cdef bint build_message(self) except -1:
        """The message at the cursor, or what can be sent of it now; False if that is nothing."""
        cdef Path path = self.path
        cdef Sent* slot = path.slot(path.cursor)
        cdef uint32_t offset = <uint32_t>path.partial - HEADER_BYTES if path.partial else 0
        cdef uint32_t size
        cdef uint8_t credit
        cdef unsigned int flags = 0
        cdef unsigned char* frame
        cdef unsigned char* template = NULL
        if slot.operation != NULL:
            if not path.partial:
                if self.send_ring.room() < 2:
                    return False
                self.build_operation(<Operation>slot.operation)
            flags = IBV_SEND_FENCE if (<Operation>slot.operation).fence else 0
        path.pick(path.cursor)
        while self.has_room():
            frame = self.next_frame()
            size = self.next_fragment(slot.length - offset)
            credit = self.grant()
            if template != NULL:
                memcpy(frame, template, HEADER_BYTES)
            else:
                self.store_message_header(frame, slot, credit)
                if credit == 0:
                    template = frame
            if size:
                copy(frame + HEADER_BYTES, PyBytes_AS_STRING(<object>slot.payload) + offset, size)
            offset += size
            # Where credits end in the middle of a message, a kernel has to wake up all the same, to give more.
            self.build(HEADER_BYTES + size, flags | (IBV_SEND_SOLICITED if offset == slot.length or self.frames + 1 == self.allowed else 0))
            if offset == slot.length:
                if self.packed:
                    self.open_bytes = HEADER_BYTES + size
                path.wrote(slot)
                break
            path.partial = HEADER_BYTES + offset
        return True

    cdef bint append_message(self) noexcept:
        """The message at the cursor as a part of the frame built last, if that is a packed one and has room for all of it; else False."""
        cdef Path path = self.path
        cdef Sent* slot = path.slot(path.cursor)
        cdef SendSlot* last
        cdef unsigned char* frame
        cdef uint32_t at = packed_at(self.open_bytes)
        if self.open_bytes == 0 or slot.operation != NULL or at + HEADER_BYTES + slot.length > PACKED_FRAME_BYTES:
            return False
        path.pick(path.cursor)
        last = &self.send_slots[self.send_ring.position(self.send_ring.allocated - 1)]
        frame = <unsigned char*><uintptr_t>last.sge.addr
        memset(frame + self.open_bytes, 0, at - self.open_bytes)
        self.store_message_header(frame + at, slot, 0)
        if slot.length:
            copy(frame + at + HEADER_BYTES, PyBytes_AS_STRING(<object>slot.payload), slot.length)
        last.sge.length = self.open_bytes = at + HEADER_BYTES + slot.length
        if self.open_bytes > self.max_inline_bytes:
            last.wr.send_flags &= ~<unsigned int>IBV_SEND_INLINE
        path.wrote(slot)
        return True

    cdef void store_message_header(self, unsigned char* frame, Sent* slot, uint8_t credit) noexcept:
        store_header(frame, slot.sequence, self.acked, slot.length, slot.sport, slot.dport, slot.flags, credit,
                     NULL if slot.extensions == NULL else <unsigned char*>PyBytes_AS_STRING(<object>slot.extensions))
        store_checksum(frame)

    cdef int build_operation(self, Operation operation) except -1:
        """What is to be done before a message. It is signalled: somebody waits for its outcome."""
        cdef SendSlot* slot
        cdef bint swaps = operation.kind == OPERATION_COMPARE_AND_SWAP
        self.operations.append((self.send_ring.allocated, operation))
        operation.posted = True
        slot = self.take_slot(IBV_SEND_SIGNALED)
        slot.wr.sg_list = <ibv_sge*>operation.segments
        slot.wr.num_sge = operation.count
        if operation.kind == OPERATION_READ or operation.kind == OPERATION_WRITE:
            slot.wr.opcode = IBV_WR_RDMA_READ if operation.kind == OPERATION_READ else IBV_WR_RDMA_WRITE
            slot.wr.wr.rdma.remote_addr = operation.remote_address
            slot.wr.wr.rdma.rkey = operation.rkey
        else:
            slot.wr.opcode = IBV_WR_ATOMIC_CMP_AND_SWP if swaps else IBV_WR_ATOMIC_FETCH_AND_ADD
            slot.wr.wr.atomic.remote_addr = operation.remote_address
            slot.wr.wr.atomic.rkey = operation.rkey
            slot.wr.wr.atomic.compare_add = operation.compare_add
            slot.wr.wr.atomic.swap = operation.swap
        return 0

    cdef void build_ack(self) noexcept:
        """Nothing but h_ack and h_credit. Signalled, because the next one waits for this one's completion."""
        cdef unsigned char* frame = self.next_frame()
        store_header(frame, 0, self.acked, 0, 0, 0, 0, self.grant(), NULL)
        store_checksum(frame)
        self.ack_slot = self.send_ring.allocated
        self.acking = True
        self.path.acknowledged()
        self.path.core.counters[C_SEND_ACK_ONLY] += 1
        self.build(HEADER_BYTES, IBV_SEND_SOLICITED | IBV_SEND_SIGNALED)

    cdef void build(self, uint32_t frame_bytes, unsigned int flags) noexcept:
        """Make the work request of the frame in the next slot."""
        cdef SendSlot* slot
        if frame_bytes <= self.max_inline_bytes:
            flags |= IBV_SEND_INLINE
        slot = self.take_slot(flags)
        slot.sge.length = frame_bytes
        slot.wr.sg_list = &slot.sge
        slot.wr.num_sge = 1
        slot.wr.opcode = IBV_WR_SEND
        self.frames += 1

    cdef SendSlot* take_slot(self, unsigned int flags) noexcept:
        """The next slot, for a work request with these flags; signalled when it is time."""
        cdef SendSlot* slot = &self.send_slots[self.send_ring.position(self.send_ring.allocated)]
        slot.wr.wr_id = self.send_ring.allocated
        self.send_ring.take(1)
        self.built += 1
        self.open_bytes = 0
        self.unsignalled += 1
        if self.unsignalled >= self.signal_every:   # a quarter of the ring at most, so a full ring always has one
            flags |= IBV_SEND_SIGNALED
        if flags & IBV_SEND_SIGNALED:
            self.unsignalled = 0
        slot.wr.send_flags = flags
        return slot

    cdef int ring_doorbell(self) except -1:
        """Post everything built as one list; returns how many work requests."""
        cdef uint32_t count = self.built, after = self.send_ring.allocated
        cdef SendSlot* last
        cdef ibv_send_wr* bad = NULL
        cdef int code
        if count == 0:
            return 0
        last = &self.send_slots[self.send_ring.position(after - 1)]
        last.wr.next = NULL
        code = self.nic.ops.post_send(self.nic.qp, &self.send_slots[self.send_ring.position(after - count)].wr, &bad)
        last.wr.next = &self.send_slots[self.send_ring.position(after)].wr
        if self.credits is not None:
            self.credits.spend(self.frames)
        self.path.core.counters[C_VERBS_DOORBELLS] += 1
        self.path.core.counters[C_VERBS_FRAMES_SENT] += self.frames
        self.built = self.frames = self.open_bytes = 0
        if code:
            self.break_off("post_failed", f"ibv_post_send: {strerror(abs(code)).decode()}")
        return count

    # -- completions

    def poll(self):
        """Take in up to one batch of completions of each direction; the code says why it stopped."""
        cdef int count, code = EMPTY
        if self.broken:
            return BROKEN
        if not self.unread:
            count = self.nic.ops.poll_cq(self.nic.recv_cq, self.poll_batch, self.found)
            if count < 0 or count > self.poll_batch:
                return self.break_off("completion_error", f"ibv_poll_cq of the receive queue: {count}")
            self.at = 0
            self.unread = <uint32_t>count
            if count == 0:
                code = TAKEN if self.reap() else EMPTY
                return BROKEN if self.broken else code
        while self.unread and code == EMPTY:
            code = self.take_in(&self.found[self.at])
            if code == BROKEN or code == HELLO:
                return code
            self.at += 1
            self.unread -= 1
        if self.unread:
            return code
        if self.receive_ring.in_use() == 0:
            self.path.core.counters[C_IB_RX_RING_EMPTY] += 1
        if self.receive_ring.room() >= self.receive_ring.size // 4:
            self.post_receives()
        self.reap()
        self.path.decide_ack()
        return BROKEN if self.broken else code or TAKEN

    def arm(self):
        """Ask for an event at the next completion. Poll once more before waiting: one may have come before."""
        cdef int code = self.nic.ops.req_notify_cq(self.nic.recv_cq, self.solicited_only)
        code = code or self.nic.ops.req_notify_cq(self.nic.send_cq, 0)
        if code:
            self.break_off("completion_error", f"ibv_req_notify_cq: {strerror(abs(code)).decode()}")

    def take_events(self):
        """Take all events off the completion channel, which does not block, and acknowledge them; returns how many."""
        cdef void* cq = NULL
        cdef void* context = NULL
        cdef unsigned int sends = 0, receives = 0
        while self.nic.ops.get_cq_event(self.nic.channel, &cq, &context) == 0:
            sends += cq == self.nic.send_cq
            receives += cq == self.nic.recv_cq
        if errno != EAGAIN and errno != EINTR:
            self.break_off("completion_error", f"ibv_get_cq_event: {strerror(errno).decode()}")
        if sends:
            self.nic.ops.ack_cq_events(self.nic.send_cq, sends)
        if receives:
            self.nic.ops.ack_cq_events(self.nic.recv_cq, receives)
        return sends + receives

    cdef uint32_t reap(self) except? 0:
        """Take completions of sends; returns how many slots they freed."""
        cdef ibv_wc found[POLL_BATCH]
        cdef uint32_t total = 0, freed
        cdef int count = POLL_BATCH, i
        while count == POLL_BATCH:
            count = self.nic.ops.poll_cq(self.nic.send_cq, POLL_BATCH, found)
            if count < 0 or count > POLL_BATCH:
                self.break_off("completion_error", f"ibv_poll_cq of the send queue: {count}")
                return total
            for i in range(count):
                if found[i].status != IBV_WC_SUCCESS:
                    self.fail_operation(<uint32_t>found[i].wr_id, found[i].status)
                    self.break_off_with("send", found[i].status, found[i].vendor_err)
                    return total
                freed = <uint32_t>found[i].wr_id + 1 - self.send_ring.freed
                if freed == 0 or not self.send_ring.give_back(freed):
                    self.break_off("completion_error", f"completion of frame {found[i].wr_id}, which is not in flight")
                    return total
                total += freed
                if self.operations:
                    self.finish_operations()
        if self.acking and <uint32_t>(self.send_ring.freed - self.ack_slot - 1) < self.send_ring.size:
            self.acking = False
        return total

    # -- operations

    cdef int finish_operations(self) except -1:
        """Those whose slots are free again are done."""
        cdef uint32_t counter
        while self.operations:
            counter, operation = self.operations[0]
            if <uint32_t>(self.send_ring.freed - counter - 1) >= self.send_ring.size:
                break
            del self.operations[0]
            self.path.core.finish(operation, STATUS_SUCCESS)
        return 0

    cdef int fail_operation(self, uint32_t counter, ibv_wc_status status) except -1:
        """A send failed. If it was an operation, and not merely flushed behind another failure, this is its outcome."""
        if not self.operations or self.operations[0][0] != counter or status == IBV_WC_WR_FLUSH_ERR:
            return 0
        _, operation = self.operations.pop(0)
        if status == IBV_WC_REM_ACCESS_ERR or status == IBV_WC_REM_INV_REQ_ERR or status == IBV_WC_REM_OP_ERR:
            self.path.core.finish(operation, STATUS_REMOTE_ERROR)
        else:
            self.path.core.finish(operation, STATUS_OTHER_ERROR)
        return 0

    def abandon(self):
        """The queue pair is gone, so no device touches any memory now: what had no outcome is dropped."""
        self.break_off("flushed", "the queue pair is gone")
        while self.operations:
            _, operation = self.operations.pop(0)
            self.path.core.finish(operation, STATUS_DROPPED)

    # -- receiving

    cdef int take_in(self, ibv_wc* completion) except -1:
        """One completed receive: a frame."""
        cdef Path path = self.path
        cdef Header header
        cdef uint32_t slot = self.receive_ring.position(self.receive_ring.freed), size = completion.byte_len
        cdef const unsigned char* frame = self.receive_memory + <size_t>slot * self.slot_bytes
        cdef uint32_t at = 0
        cdef int code
        if completion.status != IBV_WC_SUCCESS:
            if completion.status == IBV_WC_WR_FLUSH_ERR:
                self.reap()         # what the queue pair failed for may have been a send
            return self.break_off_with("receive", completion.status, completion.vendor_err)
        if completion.wr_id != slot or not self.receive_ring.in_use():
            return self.break_off("completion_error", f"completion of receive {completion.wr_id}, expected {slot}")
        if size < HEADER_BYTES or size > HEADER_BYTES + self.max_fragment_bytes:
            path.core.counters[C_RECV_DROP_BAD_FRAME] += 1
            return self.break_off("short_fragment", f"a frame of {size} bytes cannot hold a header")
        if self.read_header(frame, &header) == BROKEN:
            return BROKEN
        if not self.heard:
            self.heard = True
            self.extensions = PyBytes_FromStringAndSize(<const char*>header.extensions, EXTENSION_BYTES)
            self.ack = header.ack
            if header.credit and self.offered and self.credits is None:
                # It counts, though it announced nothing: rds_rdma posts its receives after that. What we have sent has taken some of them.
                self.count_credits(0, self.send_ring.allocated)
            return HELLO
        self.receive_ring.give_back(1)
        path.core.counters[C_VERBS_FRAMES_RECEIVED] += 1
        if self.credits is not None:
            if not self.credits.received():
                return self.break_off("credit_overrun", f"message {header.sequence} came without a credit")
            if header.credit:
                path.core.counters[C_IB_RX_CREDIT_UPDATES] += 1
                if not self.credits.heard(header.credit):
                    return self.break_off("credit_overrun", f"{self.credits.available} + {header.credit} credits granted to us")
        if path.head != path.cursor and header.ack >= path.slot(path.head).sequence:
            path.retire(header.ack)
        if header.sport == 0 and header.dport == 0 and size == HEADER_BYTES:
            path.core.counters[C_RECV_ACK_ONLY] += 1
            return EMPTY
        code = self.take_fragment(&header, frame + HEADER_BYTES, size - HEADER_BYTES)
        while code == EMPTY:
            at = packed_at(at + HEADER_BYTES + self.fragment)
            if at >= size:
                break
            if at + HEADER_BYTES > size:
                return self.bad_fragment(f"{size - at} bytes behind the last message of a packed frame")
            if self.read_header(frame + at, &header) == BROKEN:
                return BROKEN
            if header.flags == FLAG_CONG_BITMAP:
                return self.bad_fragment("a map in a packed frame")
            code = self.take_fragment(&header, frame + at + HEADER_BYTES, size - at - HEADER_BYTES)
        return code

    cdef int read_header(self, const unsigned char* frame, Header* header) except -1:
        if not checksum_is_good(frame):
            self.path.core.counters[C_RECV_DROP_BAD_CHECKSUM] += 1
            return self.break_off("bad_checksum", f"header checksum {frame[30] << 8 | frame[31]:#06x}")
        load_header(frame, header)
        return EMPTY

    cdef int take_fragment(self, Header* header, const unsigned char* data, uint32_t size) except -1:
        """A message, or a part of one, and not an acknowledgement alone. `size`: bytes that are left in the frame; only in a packed one
        there may be more than `fragment`, which is what belongs to the message."""
        if not self.remaining:
            if self.begin(header) == BROKEN:
                return BROKEN
            self.remaining = header.length
        elif (header.sequence != self.header.sequence or header.length != self.header.length
              or header.sport != self.header.sport or header.dport != self.header.dport):
            return self.bad_fragment(f"a fragment of message {header.sequence} inside message {self.header.sequence}")
        self.fragment = self.next_fragment(self.remaining)
        if size < self.fragment or (size > self.fragment and (not self.packed or header.flags == FLAG_CONG_BITMAP)):
            return self.bad_fragment(f"a fragment of {size} bytes, with {self.remaining} of message {header.sequence} to come")
        if self.payload is not None and self.fragment:
            copy(PyBytes_AS_STRING(self.payload) + header.length - self.remaining, data, self.fragment)
        self.remaining -= self.fragment
        return EMPTY if self.remaining else self.take_message()

    cdef int begin(self, Header* header) except -1:
        """The first fragment of a message: get memory for all of it, unless nobody will get it."""
        cdef Path path = self.path
        cdef uint32_t limit = max(<uint32_t>MAX_MESSAGE_BYTES, path.core.max_message_bytes)
        cdef bint is_wanted
        if header.length > limit:
            path.core.counters[C_RECV_DROP_BAD_FRAME] += 1
            return self.break_off("bad_length", f"h_len {header.length} in message {header.sequence}")
        self.header = header[0]
        memcpy(self.first_extensions, header.extensions, EXTENSION_BYTES)
        self.header.extensions = self.first_extensions
        if header.flags == FLAG_CONG_BITMAP:
            is_wanted = header.length == MAP_BYTES
        else:
            is_wanted = header.length <= path.core.max_message_bytes and not path.is_duplicate(header) and (
                header.dport <= PROBE_PORT or path.table.lookup(header.dport) is not None)
        self.payload = PyBytes_FromStringAndSize(NULL, header.length) if is_wanted else None
        return EMPTY

    cdef int take_message(self) except -1:
        """The message is complete."""
        cdef Path path = self.path
        cdef object whole = self.payload
        self.payload = None
        if self.header.flags == FLAG_CONG_BITMAP:
            if whole is None:
                path.core.counters[C_RECV_DROP_BAD_MAP] += 1
                return EMPTY
            path.core.counters[C_CONG_UPDATE_RECEIVED] += 1
            self.freed = path.foreign.adopt(<const unsigned char*>PyBytes_AS_STRING(whole))
            return NEW_MAP
        self.acked = self.header.sequence
        if whole is None:
            return self.take_unwanted()
        if path.dispatch(&self.header, whole, NULL):
            path.core.counters[C_RECV_DROP_PING] += 1   # a probe: there is one path over verbs, and nothing to tell about it
        return EMPTY

    cdef int take_unwanted(self) except -1:
        """A message whose payload nobody gets: keep the sequence and the counters right, and acknowledge it."""
        cdef Path path = self.path
        path.unacked_received += 1
        if self.header.flags & FLAG_ACK_REQUIRED:
            path.core.counters[C_RECV_ACK_REQUIRED] += 1
            path.ack_due = ACK_NOW
        if path.is_duplicate(&self.header):
            path.core.counters[C_RECV_DROP_OLD_SEQ] += 1
            path.ack_due = ACK_NOW
            return EMPTY
        path.next_receive = self.header.sequence + 1
        if self.header.length > path.core.max_message_bytes:
            path.core.counters[C_RECV_DROP_TOO_LONG] += 1
        else:
            path.core.counters[C_RECV_DROP_NO_SOCK] += 1
        return EMPTY

    # -- the end

    cdef int bad_fragment(self, str detail) except -1:
        self.path.core.counters[C_RECV_DROP_BAD_FRAME] += 1
        return self.break_off("bad_fragment", detail)

    cdef int break_off_with(self, str what, ibv_wc_status status, uint32_t vendor_err) except -1:
        """A work request failed; so will all that follow it."""
        cdef str reason = COMPLETION_REASONS.get(<int>status, "completion_error")
        return self.break_off(reason, f"{what} completed with status {<int>status}, vendor error {vendor_err:#x}")

    cdef int break_off(self, str reason, str detail) except -1:
        """The queue pair is of no use any more; the first reason counts. Nothing of a message is kept."""
        if not self.broken:
            self.broken = True
            self.reason = reason
            self.detail = f"{reason}: {detail}"
            self.payload = None
            self.remaining = 0
            self.unread = 0
        return BROKEN


# Why a work request failed (ibv_wc_status), as it is counted.
cdef dict COMPLETION_REASONS = {
    <int>IBV_WC_WR_FLUSH_ERR: "flushed",
    <int>IBV_WC_RETRY_EXC_ERR: "peer_silent",
    <int>IBV_WC_RNR_RETRY_EXC_ERR: "peer_not_ready",
    <int>IBV_WC_REM_INV_REQ_ERR: "remote_error",
    <int>IBV_WC_REM_ACCESS_ERR: "remote_error",
    <int>IBV_WC_REM_OP_ERR: "remote_error",
}


cdef inline uint32_t packed_at(uint32_t end) noexcept nogil:
    """Where the next header of a packed frame is, behind a message that ends here."""
    return (end + PACKED_ALIGNMENT - 1) & ~<uint32_t>(PACKED_ALIGNMENT - 1)


cdef inline void store_checksum(unsigned char* frame) noexcept nogil:
    cdef uint16_t checksum = header_checksum(frame)
    frame[30] = <unsigned char>(checksum >> 8)
    frame[31] = <unsigned char>checksum


cdef void link_sends(SendSlot* slots, uint32_t count, unsigned char* memory, uint32_t stride, uint32_t lkey) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        slots[i].sge.addr = <uint64_t>(memory + <size_t>i * stride)
        slots[i].sge.lkey = lkey
        slots[i].wr.next = &slots[(i + 1) % count].wr


cdef void link_receives(ReceiveSlot* slots, uint32_t count, unsigned char* memory, uint32_t stride, uint32_t frame_bytes,
                        uint32_t lkey) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        slots[i].sge.addr = <uint64_t>(memory + <size_t>i * stride)
        slots[i].sge.length = frame_bytes
        slots[i].sge.lkey = lkey
        slots[i].wr.wr_id = i
        slots[i].wr.sg_list = &slots[i].sge
        slots[i].wr.num_sge = 1
        slots[i].wr.next = &slots[(i + 1) % count].wr
