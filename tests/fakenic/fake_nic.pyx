"""A made-up RDMA device, for tests and benchmarks of the rings: a queue pair, its completion queues and their channel, in memory.

It is no RDMA: two `FakeNic`s joined by `connect()` copy frames from one's memory to the other's. It holds its user to the rules of a
device: depths, keys and bounds of registered memory, no slot rewritten before its completion, events only when asked for. Unless it is
`automatic`, frames are carried and completions become visible only when the test says so, so that everything can be late, and each queue
pair at its own pace. Nothing here is random.
"""

import os

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.errno cimport EAGAIN, EINVAL, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy

from rdsx._rings cimport *


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags)
    int EFD_CLOEXEC
    int EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void* target, size_t count)
    ssize_t write(int fd, const void* source, size_t count)

# What a completion queue was asked to report.
cdef enum:
    NOT_ARMED = 0
    ARMED = 1
    ARMED_SOLICITED = 2

cdef enum:
    FRAME_BYTES = 16432             # the longest that Rings sends: 48 bytes of header, 16 KiB of payload
    MAX_REGIONS = 8
    MAX_SEGMENTS = 8


cdef struct Completion:
    ibv_wc wc
    bint solicited

cdef struct Posted:
    uint64_t wr_id
    uint64_t address
    uint32_t length
    unsigned int flags
    ibv_wr_opcode opcode
    ibv_sge segments[MAX_SEGMENTS]      # of an operation
    int count
    uint64_t remote_address
    uint32_t rkey
    uint64_t compare_add
    uint64_t swap
    unsigned char frame[FRAME_BYTES]    # what an inline send took along; for others, what was carried


cdef struct Region:
    uint64_t start
    uint64_t end
    uint32_t key
    bint remote                         # a peer may read, write and change it


# == completion queues ====================================================================================================
# A ring of completions: [head, visible) can be polled, [visible, tail) is late. Invariant: an event is given once for each arming.

@cython.final
cdef class CompletionQueue:
    cdef void* sender                   # the FakeNic whose sends complete here, borrowed; NULL: receives do
    cdef Completion* entries
    cdef uint32_t depth
    cdef uint32_t head
    cdef uint32_t visible
    cdef uint32_t tail
    cdef int armed
    cdef uint32_t events                # given and not yet taken off the channel
    cdef uint32_t unacknowledged        # taken off, and not yet acknowledged
    cdef int fd
    cdef bint overrun

    def __cinit__(self, uint32_t depth, int fd):
        self.entries = <Completion*>PyMem_Calloc(depth, sizeof(Completion))
        if self.entries == NULL:
            raise MemoryError()
        self.depth = depth
        self.fd = fd

    def __dealloc__(self):
        PyMem_Free(self.entries)

    cdef void push(self, uint64_t wr_id, ibv_wc_status status, ibv_wc_opcode opcode, uint32_t byte_len, bint solicited) noexcept:
        cdef Completion* entry = &self.entries[self.tail % self.depth]
        if self.tail - self.head == self.depth:
            self.overrun = True
            return
        entry.wc.wr_id = wr_id
        entry.wc.status = status
        entry.wc.opcode = opcode
        entry.wc.byte_len = byte_len
        entry.solicited = solicited or status != IBV_WC_SUCCESS
        self.tail += 1

    cdef uint32_t show(self, uint32_t limit) noexcept:
        """Let up to `limit` late completions be seen; returns how many."""
        cdef uint32_t count = min(limit, self.tail - self.visible)
        cdef uint64_t one = 1
        cdef uint32_t i
        for i in range(count):
            if self.armed == ARMED or (self.armed == ARMED_SOLICITED and self.entries[self.visible % self.depth].solicited):
                self.armed = NOT_ARMED
                self.events += 1
                write(self.fd, &one, sizeof(one))
            self.visible += 1
        return count

    cdef int poll(self, int limit, ibv_wc* found) noexcept:
        cdef int count = 0
        while count < limit and self.head != self.visible:
            found[count] = self.entries[self.head % self.depth].wc
            if self.sender != NULL:
                (<FakeNic>self.sender).retire(found[count].wr_id)
            self.head += 1
            count += 1
        return count


# == the device ===========================================================================================================
# Sends: [retired, carried) is at the peer and its completion not yet polled, [carried, posted) waits. Depths are powers of two.

@cython.final
cdef class FakeNic(Nic):
    cdef FakeNic peer
    cdef CompletionQueue sends_done
    cdef CompletionQueue receives_done
    cdef Posted* sends
    cdef uint32_t send_depth
    cdef uint32_t retired
    cdef uint32_t carried
    cdef uint32_t posted
    cdef Posted* receives
    cdef uint32_t receive_depth
    cdef uint32_t used
    cdef uint32_t offered
    cdef Region regions[MAX_REGIONS]
    cdef int region_count
    cdef uint32_t max_inline_bytes
    cdef int failure                    # status with which the next carried send fails; 0: none
    cdef int refusals                   # so many posts are still refused
    cdef readonly int fd                # of the completion channel, non-blocking
    cdef bint is_open
    cdef readonly bint automatic
    cdef bint is_sink                   # frames arrive nowhere, and well
    cdef readonly bint failed           # the queue pair is in error: everything is flushed
    cdef readonly uint32_t trampled     # frames rewritten before their completion
    cdef readonly uint32_t doorbells    # lists of sends posted
    cdef readonly uint32_t starved      # frames that found no receive posted

    def __cinit__(self, *, uintptr_t memory, uint64_t memory_bytes, uint32_t lkey=77, uint32_t send_depth=256,
                  uint32_t receive_depth=1024, uint32_t max_inline_bytes=0, bint automatic=False, bint sink=False):
        if send_depth & (send_depth - 1) or receive_depth & (receive_depth - 1) or not send_depth or not receive_depth:
            raise ValueError(f"depths are powers of two, not {send_depth} and {receive_depth}")
        if max_inline_bytes > FRAME_BYTES:
            raise ValueError(f"at most {FRAME_BYTES} bytes inline, not {max_inline_bytes}")
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.is_open = True
        self.sends_done = CompletionQueue(2 * send_depth, self.fd)
        self.receives_done = CompletionQueue(receive_depth, self.fd)
        self.sends_done.sender = <void*>self
        self.sends = <Posted*>PyMem_Calloc(send_depth, sizeof(Posted))
        self.receives = <Posted*>PyMem_Calloc(receive_depth, sizeof(Posted))
        if self.sends == NULL or self.receives == NULL:
            raise MemoryError()
        self.send_depth, self.receive_depth = send_depth, receive_depth
        self.register(memory, memory_bytes, lkey)
        self.max_inline_bytes = max_inline_bytes
        self.automatic = automatic
        self.is_sink = sink
        self.ops.post_send = post_send
        self.ops.post_recv = post_recv
        self.ops.poll_cq = poll_cq
        self.ops.req_notify_cq = req_notify_cq
        self.ops.get_cq_event = get_cq_event
        self.ops.ack_cq_events = ack_cq_events
        self.qp = self.channel = <void*>self
        self.send_cq, self.recv_cq = <void*>self.sends_done, <void*>self.receives_done

    def __dealloc__(self):
        PyMem_Free(self.sends)
        PyMem_Free(self.receives)
        if self.is_open:
            close(self.fd)

    def connect(self, FakeNic peer not None):
        """Join two queue pairs."""
        self.peer, peer.peer = peer, self

    def register(self, uintptr_t address, uint64_t length, uint32_t key, *, bint remote=False):
        """More memory under a key, its lkey; with `remote` its rkey, too."""
        if self.region_count == MAX_REGIONS:
            raise ValueError(f"at most {MAX_REGIONS} regions")
        self.regions[self.region_count] = Region(address, address + length, key, remote)
        self.region_count += 1

    # -- what the test does

    def carry(self, uint32_t limit=0xFFFFFFFF):
        """Carry up to `limit` posted frames into receives of the peer; returns how many. Their completions are late."""
        cdef uint32_t count = 0
        while count < limit and self.carry_one():
            count += 1
        return count

    def show_sends(self, uint32_t limit=0xFFFFFFFF):
        """Let up to `limit` late completions of sends be seen."""
        return self.sends_done.show(limit)

    def show_receives(self, uint32_t limit=0xFFFFFFFF):
        """Let up to `limit` late completions of receives be seen."""
        return self.receives_done.show(limit)

    def fail_next(self, int status):
        """The next frame carried fails with this ibv_wc_status."""
        self.failure = status

    def refuse_posts(self, int count):
        """The next `count` lists of work requests are refused with EINVAL."""
        self.refusals = count

    def fail(self):
        """The queue pair goes into error: everything posted is flushed, what is posted later, too."""
        self.failed = True
        while self.carried != self.posted:
            self.sends_done.push(self.sends[self.carried & (self.send_depth - 1)].wr_id, IBV_WC_WR_FLUSH_ERR, IBV_WC_SEND, 0, True)
            self.carried += 1
        while self.used != self.offered:
            self.receives_done.push(self.receives[self.used & (self.receive_depth - 1)].wr_id, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, True)
            self.used += 1
        self.settle()

    def inject(self, const unsigned char[::1] frame not None, bint solicited=True):
        """A frame arrives that no Rings has made; False if no receive is posted."""
        cdef const unsigned char* start = b""
        if frame.shape[0]:
            start = &frame[0]
        if not self.accept(start, <uint32_t>frame.shape[0], solicited):
            return False
        self.settle()
        return True

    @property
    def posted_sends(self):
        return self.posted - self.carried

    @property
    def posted_receives(self):
        return self.offered - self.used

    @property
    def late(self):
        """Completions that cannot be seen yet."""
        return self.sends_done.tail - self.sends_done.visible + self.receives_done.tail - self.receives_done.visible

    @property
    def overrun(self):
        """A completion queue had no room."""
        return self.sends_done.overrun or self.receives_done.overrun

    @property
    def unacknowledged_events(self):
        return self.sends_done.unacknowledged + self.receives_done.unacknowledged

    def next_frame(self):
        """The oldest frame not yet carried, as (bytes, flags of the work request); None if there is none."""
        cdef Posted* send = &self.sends[self.carried & (self.send_depth - 1)]
        if self.carried == self.posted:
            return None
        return frame_of(send)[:send.length], send.flags

    # -- carrying

    cdef bint accept(self, const unsigned char* frame, uint32_t length, bint solicited) noexcept:
        """Put a frame into the oldest posted receive."""
        cdef Posted* receive = &self.receives[self.used & (self.receive_depth - 1)]
        if self.failed or self.used == self.offered:
            return False
        memcpy(<void*>receive.address, frame, min(length, receive.length))
        self.receives_done.push(receive.wr_id, IBV_WC_SUCCESS if length <= receive.length else IBV_WC_LOC_LEN_ERR, IBV_WC_RECV, length,
                                solicited)
        self.used += 1
        return True

    cdef bint carry_one(self) noexcept:
        """Carry the oldest posted frame; False if there is none, or no receive for it."""
        cdef Posted* send = &self.sends[self.carried & (self.send_depth - 1)]
        cdef const unsigned char* frame
        if self.failed or self.carried == self.posted:
            return False
        if self.failure:
            self.complete_failed(<ibv_wc_status>self.failure)
            return False
        frame = frame_of(send)
        if self.is_sink:
            pass
        elif self.peer is None or self.peer.failed:
            self.complete_failed(IBV_WC_RETRY_EXC_ERR)
            return False
        elif send.opcode != IBV_WR_SEND:
            if not self.peer.allows(send.rkey, send.remote_address, send.length):
                self.complete_failed(IBV_WC_REM_ACCESS_ERR)
                return False
            self.operate(send)
        elif not self.peer.accept(frame, send.length, send.flags & IBV_SEND_SOLICITED):
            self.starved += 1
            return False
        if send.opcode == IBV_WR_SEND and not send.flags & IBV_SEND_INLINE:
            memcpy(send.frame, frame, send.length)
        self.carried += 1
        if send.flags & IBV_SEND_SIGNALED:
            self.sends_done.push(send.wr_id, IBV_WC_SUCCESS, IBV_WC_SEND, 0, False)
        if self.peer is not None:
            self.peer.settle()
        return True

    cdef void complete_failed(self, ibv_wc_status status) noexcept:
        self.failure = 0
        self.sends_done.push(self.sends[self.carried & (self.send_depth - 1)].wr_id, status, IBV_WC_SEND, 0, True)
        self.carried += 1
        self.fail()

    cdef void settle(self) noexcept:
        """An automatic device shows completions at once."""
        if self.automatic:
            self.sends_done.show(0xFFFFFFFF)
            self.receives_done.show(0xFFFFFFFF)

    cdef void run(self) noexcept:
        """An automatic device carries at once."""
        if self.automatic:
            while self.carry_one():
                pass
        self.settle()

    cdef void retire(self, uint64_t wr_id) noexcept:
        """The completion of `wr_id` is polled: its frame and all before it may be rewritten, and must not have been."""
        cdef Posted* send
        cdef bint is_last = False, is_kept
        while self.retired != self.carried and not is_last:
            send = &self.sends[self.retired & (self.send_depth - 1)]
            is_kept = send.opcode == IBV_WR_SEND and not send.flags & IBV_SEND_INLINE
            if not self.failed and is_kept and memcmp(send.frame, <void*>send.address, send.length):
                self.trampled += 1
            is_last = send.wr_id == wr_id
            self.retired += 1

    cdef int take_send(self, ibv_send_wr* wr) noexcept:
        cdef Posted* send = &self.sends[self.posted & (self.send_depth - 1)]
        cdef ibv_sge* sge = wr.sg_list
        if self.posted - self.retired == self.send_depth:
            return ENOMEM
        send.opcode = wr.opcode
        if wr.opcode != IBV_WR_SEND:
            return self.take_operation(wr, send)
        if wr.num_sge != 1 or sge.length > FRAME_BYTES:
            return EINVAL
        if wr.send_flags & IBV_SEND_INLINE:
            if sge.length > self.max_inline_bytes:
                return EINVAL
            memcpy(send.frame, <void*>sge.addr, sge.length)
        elif not self.is_registered(sge):
            return EINVAL               # a device says so only in the completion; a test shall hear it at once
        send.wr_id, send.address, send.length, send.flags = wr.wr_id, sge.addr, sge.length, wr.send_flags
        self.posted += 1
        return 0

    cdef int take_operation(self, ibv_send_wr* wr, Posted* send) noexcept:
        cdef int i
        if wr.num_sge < 1 or wr.num_sge > MAX_SEGMENTS:
            return EINVAL
        send.wr_id, send.flags, send.length, send.count = wr.wr_id, wr.send_flags, 0, wr.num_sge
        for i in range(wr.num_sge):
            if not self.is_registered(&wr.sg_list[i]):
                return EINVAL
            send.segments[i] = wr.sg_list[i]
            send.length += wr.sg_list[i].length
        if wr.opcode == IBV_WR_RDMA_READ or wr.opcode == IBV_WR_RDMA_WRITE:
            send.remote_address, send.rkey = wr.wr.rdma.remote_addr, wr.wr.rdma.rkey
        else:
            send.remote_address, send.rkey = wr.wr.atomic.remote_addr, wr.wr.atomic.rkey
            send.compare_add, send.swap = wr.wr.atomic.compare_add, wr.wr.atomic.swap
        self.posted += 1
        return 0

    cdef void operate(self, Posted* send) noexcept:
        """Carry out a one-sided operation on the peer's memory."""
        cdef unsigned char* there = <unsigned char*>send.remote_address
        cdef uint64_t old
        cdef int i
        if send.opcode == IBV_WR_RDMA_READ or send.opcode == IBV_WR_RDMA_WRITE:
            for i in range(send.count):
                if send.opcode == IBV_WR_RDMA_READ:
                    memcpy(<void*>send.segments[i].addr, there, send.segments[i].length)
                else:
                    memcpy(there, <void*>send.segments[i].addr, send.segments[i].length)
                there += send.segments[i].length
            return
        memcpy(&old, there, sizeof(old))
        memcpy(<void*>send.segments[0].addr, &old, sizeof(old))
        if send.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD:
            old += send.compare_add
        elif old == send.compare_add:
            old = send.swap
        memcpy(there, &old, sizeof(old))

    cdef bint allows(self, uint32_t rkey, uint64_t address, uint64_t length) noexcept:
        """Whether a peer may reach this memory."""
        cdef int i
        for i in range(self.region_count):
            if self.regions[i].remote and self.regions[i].key == rkey and within(&self.regions[i], address, length):
                return True
        return False

    cdef int take_receive(self, ibv_recv_wr* wr) noexcept:
        cdef Posted* receive = &self.receives[self.offered & (self.receive_depth - 1)]
        if self.offered - self.used == self.receive_depth:
            return ENOMEM
        if wr.num_sge != 1 or not self.is_registered(wr.sg_list):
            return EINVAL
        receive.wr_id, receive.address, receive.length = wr.wr_id, wr.sg_list.addr, wr.sg_list.length
        self.offered += 1
        return 0

    cdef bint is_registered(self, ibv_sge* sge) noexcept:
        cdef int i
        for i in range(self.region_count):
            if self.regions[i].key == sge.lkey and within(&self.regions[i], sge.addr, sge.length):
                return True
        return False


cdef bint within(Region* region, uint64_t address, uint64_t length) noexcept:
    return address >= region.start and length <= region.end - region.start and address - region.start <= region.end - region.start - length


cdef const unsigned char* frame_of(Posted* send) noexcept:
    if send.flags & IBV_SEND_INLINE:
        return send.frame
    return <const unsigned char*>send.address


# == the functions of the table ===========================================================================================

cdef int post_send(void* qp, ibv_send_wr* first, ibv_send_wr** bad) noexcept with gil:
    cdef FakeNic nic = <FakeNic>qp
    cdef int code = 0
    if nic.refusals:
        nic.refusals -= 1
        bad[0] = first
        return EINVAL
    nic.doorbells += 1
    while first != NULL and not code:
        code = nic.take_send(first)
        if code:
            bad[0] = first
        first = first.next
    if nic.failed:
        nic.fail()
    nic.run()
    return code


cdef int post_recv(void* qp, ibv_recv_wr* first, ibv_recv_wr** bad) noexcept with gil:
    cdef FakeNic nic = <FakeNic>qp
    cdef int code = 0
    if nic.refusals:
        nic.refusals -= 1
        bad[0] = first
        return EINVAL
    while first != NULL and not code:
        code = nic.take_receive(first)
        if code:
            bad[0] = first
        first = first.next
    if nic.failed:
        nic.fail()
    if nic.peer is not None:
        nic.peer.run()
    return code


cdef int poll_cq(void* cq, int limit, ibv_wc* found) noexcept with gil:
    return (<CompletionQueue>cq).poll(limit, found)


cdef int req_notify_cq(void* cq, int solicited_only) noexcept with gil:
    (<CompletionQueue>cq).armed = ARMED_SOLICITED if solicited_only else ARMED
    return 0


cdef int get_cq_event(void* channel, void** cq, void** context) noexcept with gil:
    global errno
    cdef FakeNic nic = <FakeNic>channel
    cdef CompletionQueue queue
    cdef uint64_t count
    for queue in (nic.sends_done, nic.receives_done):
        if queue.events:
            queue.events -= 1
            queue.unacknowledged += 1
            cq[0] = <void*>queue
            context[0] = NULL
            return 0
    read(nic.fd, &count, sizeof(count))
    errno = EAGAIN
    return -1


cdef void ack_cq_events(void* cq, unsigned int count) noexcept with gil:
    (<CompletionQueue>cq).unacknowledged -= count
