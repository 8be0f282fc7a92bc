"""RDS over a byte stream: header, payload, header, payload, and nothing else.

Messages of one `Path` become buffers to write (`StreamWriter`), and bytes read become messages on it (`StreamReader`). Knows no
socket: the link that owns both does the system calls. Invariants: the writer regenerates whatever a partial write left from the
path's ring, so it holds no bytes of its own but one header and one map; the reader keeps at most one cut-off frame.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rdsx._fast cimport *

from rdsx._fast import pack_header
from rdsx.errors import WireError


cdef extern from "Python.h":
    enum:
        PyBUF_WRITE


# SMALL: payloads up to this are copied beside their headers when sent, and carried over when a read cuts them; larger ones are
# sent by reference and received in place.
cdef enum:
    SMALL_BYTES = 4096
    READ_AHEAD_BYTES = 4144         # behind a large payload: the next header, and a small message at most
    MAX_SEGMENTS = 64               # buffers in one gather write
    WRITE_BYTES = 262144            # ... and bytes, the last message not counted


cdef class StreamWriter:
    def __cinit__(self, Path path not None):
        self.path = path

    cdef uint32_t store(self, Sent* slot, unsigned char* target) noexcept:
        # A message may have been marked for an earlier peer that acknowledged; a kernel must never see the mark.
        cdef uint8_t flags = slot.flags if self.path.peer_acks else slot.flags & <uint8_t>~FLAG_ACK_REQUIRED
        store_header(target, slot.sequence, self.ack, slot.length, slot.sport, slot.dport, flags, 0,
                     NULL if slot.extensions == NULL else <unsigned char*>PyBytes_AS_STRING(<object>slot.extensions))
        return HEADER_BYTES

    def poll(self, size_t max_bytes=WRITE_BYTES):
        """What to write next: a list of buffers, or None. Call written() before the next poll()."""
        cdef Path path = self.path
        cdef Core core = path.core
        cdef unsigned char* staging = core.staging
        cdef list out = []
        cdef uint64_t index = path.cursor
        cdef size_t used = 0, run = 0, total = 0, at = path.partial, rest
        cdef Sent* slot
        if self.control is None and at == 0:
            if path.is_map_due():
                self.start_map()
            elif path.ack_due == ACK_NOW and (index == path.tail or path.held):
                self.start_ack()
        if self.control is not None:
            out.append(memoryview(self.control)[self.control_at:])
            total = len(self.control) - self.control_at
        self.ack = path.receive_ack() if path.peer_acks else 0
        while index != path.tail and total < max_bytes and len(out) < MAX_SEGMENTS and not path.held:
            slot = path.slot(index)
            rest = HEADER_BYTES + slot.length - at
            if used + HEADER_BYTES + (slot.length if slot.length <= SMALL_BYTES else 0) > STAGING_BYTES:
                break
            if at == 0:
                path.pick(index)
                self.store(slot, staging + used)
                used += HEADER_BYTES
            elif at < HEADER_BYTES:
                memcpy(staging + used, self.header + at, HEADER_BYTES - at)
                used += HEADER_BYTES - at
                at = HEADER_BYTES
            if at < HEADER_BYTES:
                at = HEADER_BYTES
            at -= HEADER_BYTES
            if slot.length <= SMALL_BYTES:
                if slot.length > at:
                    memcpy(staging + used, PyBytes_AS_STRING(<object>slot.payload) + at, slot.length - at)
                    used += slot.length - at
            else:
                if used > run:
                    out.append(core.staging_view[run:used])
                    run = used
                out.append(<object>slot.payload if at == 0 else memoryview(<object>slot.payload)[at:])
            total += rest
            slot.end = self.position + total
            at = 0
            index += 1
        if used > run:
            out.append(core.staging_view[run:used])
        return out if out else None

    cdef int start_map(self) except -1:
        cdef Path path = self.path
        cdef bytes header
        if path.map_owed:
            header = pack_header(0, path.receive_ack() if path.peer_acks else 0, MAP_BYTES, 0, 0, FLAG_CONG_BITMAP, 0, path.hello)
        else:
            header = pack_header(0, 0, MAP_BYTES, 0, 0, FLAG_CONG_BITMAP)
        self.control = header + bytes(path.table.congestion)
        self.control_at = 0
        path.map_sent()
        return 0

    cdef int start_ack(self) except -1:
        self.control = pack_header(0, self.path.receive_ack(), 0, 0, 0)
        self.control_at = 0
        self.path.core.counters[C_SEND_ACK_ONLY] += 1
        self.path.acknowledged()
        return 0

    def written(self, size_t count):
        """`count` bytes of the last poll() went out."""
        cdef Path path = self.path
        cdef size_t take
        cdef Sent* slot
        self.position += count
        path.core.counters[C_STREAM_WRITES] += count > 0
        path.core.counters[C_STREAM_BYTES_WRITTEN] += count
        if self.control is not None:
            take = min(count, <size_t>len(self.control) - self.control_at)
            self.control_at += take
            count -= take
            if self.control_at == <size_t>len(self.control):
                self.control = None
        while count:
            if path.cursor == path.picked:
                raise ValueError(f"{count} bytes more were written than poll() gave out")
            slot = path.slot(path.cursor)
            take = HEADER_BYTES + slot.length - path.partial
            if path.partial == 0 and path.peer_acks and path.ack_due:
                path.acknowledged()
            if count < take:
                if path.partial == 0:
                    self.store(slot, self.header)
                path.partial += count
                return
            count -= take
            path.wrote(slot)

    @property
    def idle(self):
        """Nothing is to be written, and nothing is half written."""
        cdef Path path = self.path
        return (self.control is None and path.partial == 0 and path.cursor == path.tail and not path.is_map_due()
                and path.ack_due != ACK_NOW)


# Codes of StreamReader.parse: why it stopped.
cdef enum:
    NEED_MORE = 0
    HELLO = 1
    PROBE = 2
    NEW_MAP = 3


cdef class StreamReader:
    def __cinit__(self, Path path not None):
        self.path = path

    def buffers(self):
        """Where to read into: one or two writable buffers, valid until received()."""
        cdef Core core = self.path.core
        cdef char* rest
        if self.payload is not None:
            self.in_place = True
            rest = PyBytes_AS_STRING(self.payload) + self.filled
            return [PyMemoryView_FromMemory(rest, self.header.length - self.filled, PyBUF_WRITE),
                    core.scratch_view[:READ_AHEAD_BYTES]]
        self.in_place = False
        if not self.carried:
            return [core.scratch_view]
        memcpy(core.scratch, self.carry, self.carried)
        return [core.scratch_view[self.carried:]]

    def received(self, size_t count):
        """`count` bytes were read into buffers(). Call parse() until it returns NEED_MORE."""
        cdef size_t take
        if count > (self.header.length - self.filled + READ_AHEAD_BYTES if self.in_place else SCRATCH_BYTES - self.carried):
            raise ValueError(f"{count} bytes do not fit into what buffers() gave out")
        self.position += count
        self.path.core.counters[C_STREAM_READS] += 1
        self.path.core.counters[C_STREAM_BYTES_READ] += count
        self.at = 0
        if self.in_place:
            take = min(count, self.header.length - self.filled)
            self.filled += take
            self.end = count - take
        else:
            self.end = self.carried + count
            self.carried = 0

    def feed(self, const unsigned char[::1] data not None):
        """received() for tests and tools that have bytes: takes what fits, returns how much."""
        cdef size_t taken = 0, room
        cdef object view
        for view in self.buffers():
            room = min(<size_t>len(view), <size_t>data.shape[0] - taken)
            view[:room] = data[taken:taken + room]
            taken += room
        self.received(taken)
        return taken

    def parse(self):
        """Take in messages. NEED_MORE: all that was read is used up. HELLO: the first header on this link is seen, not yet acted
        on. PROBE: a probe was taken in, and must be answered before what follows. NEW_MAP: the peer's map changed.
        WireError: the stream cannot be trusted any more."""
        cdef Path path = self.path
        cdef Core core = path.core
        cdef const unsigned char* data = core.scratch
        cdef Header header
        cdef object whole
        cdef size_t rest
        cdef int code
        while True:
            rest = self.end - self.at
            if self.payload is not None:
                if self.filled < self.header.length:
                    rest = min(rest, self.header.length - self.filled)
                    memcpy(PyBytes_AS_STRING(self.payload) + self.filled, data + self.at, rest)
                    self.filled += rest
                    self.at += rest
                    if self.filled < self.header.length:
                        break
                whole, self.payload = self.payload, None
                code = self.take_frame(&self.header, NULL, whole)
                if code:
                    return code
                continue
            if self.skip:
                rest = min(rest, self.skip)
                self.skip -= rest
                if self.skip == 0 and self.header.flags != FLAG_CONG_BITMAP:
                    self.take_dropped(&self.header)  # only now: cut off before, it comes again, and somebody may want it then
                self.at += rest
                if self.skip:
                    break
                continue
            if rest < HEADER_BYTES:
                break
            load_header(data + self.at, &header)
            if header.checksum and not checksum_is_good(data + self.at):
                core.counters[C_RECV_DROP_BAD_CHECKSUM] += 1
                raise WireError("bad_checksum", f"header checksum {header.checksum:#06x} at byte {self.position - rest}")
            if not self.heard:
                self.heard = True
                self.note(&header)
                return HELLO
            if rest - HEADER_BYTES >= header.length:
                self.at += HEADER_BYTES + header.length
                code = self.take_frame(&header, data + self.at - header.length, None)
                if code:
                    return code
                continue
            if header.length <= SMALL_BYTES:
                break
            self.at += HEADER_BYTES
            self.begin_large(&header)
        rest = self.end - self.at
        memcpy(self.carry, data + self.at, rest)
        self.carried = rest
        self.at = self.end = 0
        path.decide_ack()
        return NEED_MORE

    cdef int note(self, Header* header) except -1:
        self.extensions = PyBytes_FromStringAndSize(<const char*>header.extensions, EXTENSION_BYTES)
        self.ack = header.ack
        self.sport = header.sport
        self.dport = header.dport
        return 0

    cdef bint is_unwanted(self, Header* header) except -1:
        """Whether the payload of a message that is not a map is to be skipped, not stored. Raises for lengths nobody sends."""
        cdef Core core = self.path.core
        if header.length > MAX_MESSAGE_BYTES and header.length > core.max_message_bytes:
            core.counters[C_RECV_DROP_BAD_FRAME] += 1
            raise WireError("bad_length", f"h_len {header.length} in message {header.sequence}")
        if header.length > core.max_message_bytes:
            core.counters[C_RECV_DROP_TOO_LONG] += 1
            return True
        return False

    cdef int begin_large(self, Header* header) except -1:
        """The payload is not all there yet: receive it straight into the object that the user gets, or skip it."""
        cdef bint unwanted
        self.take_ack(header)
        self.header = header[0]
        memcpy(self.header_extensions, header.extensions, EXTENSION_BYTES)
        self.header.extensions = self.header_extensions
        if header.flags == FLAG_CONG_BITMAP:
            unwanted = header.length != MAP_BYTES
            if unwanted:
                self.path.core.counters[C_RECV_DROP_BAD_MAP] += 1
                self.is_unwanted(header)
        else:
            unwanted = self.is_unwanted(header)
            unwanted = unwanted or self.path.is_duplicate(header) or (
                header.dport > PROBE_PORT and self.path.table.lookup(header.dport) is None
                and header.extensions[0] != EXTENSION_OPERATION)
        if unwanted:
            self.skip = header.length
            return 0
        self.payload = PyBytes_FromStringAndSize(NULL, header.length)
        self.filled = 0
        return 0

    cdef int take_ack(self, Header* header) except -1:
        """Every header of a peer that acknowledges carries an ack, also that of a message whose payload nobody gets."""
        cdef Path path = self.path
        if path.peer_acks and path.head != path.cursor and header.ack >= path.slot(path.head).sequence:
            path.retire(header.ack)
        return 0

    cdef int take_dropped(self, Header* header) except -1:
        """A message whose payload nobody gets: keep the sequence and the counters right."""
        cdef Path path = self.path
        if path.is_duplicate(header):
            path.core.counters[C_RECV_DROP_OLD_SEQ] += 1
            path.unacked_received += 1
            path.ack_due = ACK_NOW if path.peer_acks else ACK_NONE
            return 0
        path.next_receive = header.sequence + 1
        path.unacked_received += 1
        if header.length <= path.core.max_message_bytes:
            path.core.counters[C_RECV_DROP_NO_SOCK] += 1
        return path.take_operation(header, None, NULL, False)

    cdef int take_frame(self, Header* header, const unsigned char* payload, object whole) except -1:
        """One whole frame: a map, a pure ack or a message."""
        cdef Path path = self.path
        self.take_ack(header)
        if header.flags == FLAG_CONG_BITMAP:
            if header.length != MAP_BYTES:
                path.core.counters[C_RECV_DROP_BAD_MAP] += 1
                return NEED_MORE
            path.core.counters[C_CONG_UPDATE_RECEIVED] += 1
            self.freed = path.foreign.adopt(payload if whole is None else <const unsigned char*>PyBytes_AS_STRING(whole))
            return NEW_MAP
        if path.peer_acks and header.sequence == 0 and header.length == 0:
            path.core.counters[C_RECV_ACK_ONLY] += 1
            return NEED_MORE
        if path.is_duplicate(header) or (whole is None and self.is_unwanted(header)):
            self.take_dropped(header)
            return NEED_MORE
        if path.dispatch(header, whole, payload):
            self.note(header)
            return PROBE
        return NEED_MORE
