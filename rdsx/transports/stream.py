"""A link over a byte stream: one reader and one writer task between a `ByteStream` and a `Path`.

The way of a message out: `kick()` writes a lone message at once and is done with it. When messages come closer together, it writes what
the path holds, and until the writer task has had its turn further ones only gather (the path is *corked*), so that many of one
scheduler tick leave in one system call. The way in: read, parse, report, until the stream is empty. Invariant: a path is corked
exactly while the writer task is sure to look at it again.
"""

from __future__ import annotations

import errno
from math import inf

import trio

from rdsx._fast import Path
from rdsx._stream import StreamReader, StreamWriter
from rdsx.errors import WireError
from rdsx.moves import Progress
from rdsx.transports.base import ByteStream, LinkOwner
from rdsx.transports.signal import Signal

__all__ = ["StreamLink"]

LONE_S = 20e-6  # a message that comes so long after the last lone one is not one of many: it need not be held for company
SHORT_READ_BYTES = 4096  # a read of less has emptied the stream: to ask again at once would cost more than it mostly gives
READ_TURN_BYTES = 131072  # let other tasks run after reading this much: receivers find it in the cache, and their queues stay short
REPORT_BYTES = 1024  # ... where each probe, map and hello counts as so much more: those cost Python, and a flood of them much of it

# What StreamReader.parse() stops for, and what Path.ack_due says.
HELLO, PROBE, NEW_MAP = 1, 2, 3
ACK_LATER, ACK_NOW = 1, 2

REASONS = {
    errno.ECONNRESET: "reset_by_peer",
    errno.EPIPE: "reset_by_peer",
    errno.ETIMEDOUT: "peer_silent",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ECONNREFUSED: "refused",
    errno.EADDRNOTAVAIL: "address_absent",
    errno.ENODEV: "address_absent",  # from the RDMA CM: no device has it
}


def reason_of(error: OSError) -> str:
    """The name under which a broken stream is counted."""
    return REASONS.get(error.errno or 0, "stream_error")


class StreamLink:
    """See `transports.base.Link`. Owns the stream and closes it."""

    def __init__(self, stream: ByteStream, path: Path, owner: LinkOwner, *, hello_timeout_s: float) -> None:
        self._stream = stream
        self._path = path
        self._owner = owner
        self._hello_timeout_s = hello_timeout_s
        self._reader = StreamReader(path)
        self._writer = StreamWriter(path)
        self._write_signal = Signal()
        self._read_signal = Signal()
        self._scope = trio.CancelScope()
        self._silence = trio.CancelScope()  # ends a link whose peer does not speak; called off with the first header
        self._empty = False  # the stream, when it was last read
        self._turn = 0  # bytes taken in since others could run
        self._ended = ""  # why there is nothing more to read
        self._full = False  # the stream took less than it was offered
        self._silent = False  # nothing more is to be written
        self._superseded = False  # ... once a kernel has been answered
        self._finish_wanted = False
        self._wrote_at_s = -inf  # when kick() last wrote a lone message
        self._reason = ""  # why it ends; the first reason counts
        self.detail = ""  # what exactly was wrong with the peer's bytes

    async def run(self) -> str:
        """Carry messages until the link ends; see Link.run()."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_loop)
                self.kick()
                with self._scope:
                    ended = await self._read_loop()
                    self._reason = self._reason or ended
                nursery.cancel_scope.cancel()
        finally:
            self._silent = True
            self._path.corked = True
            try:
                self._collect_stream_acks()
            finally:
                self._stream.close()
        return self._reason

    def kick(self) -> None:
        if self._full:  # the writer task goes on when there is room
            return
        if self._path.send_queue > 1:
            self._transmit()
        elif (now_s := trio.current_time()) - self._wrote_at_s >= LONE_S and self._transmit():
            self._wrote_at_s = now_s
            self._path.corked = False
            return
        self._path.corked = True
        self._write_signal.set()

    def poll(self) -> None:
        if not self._full and not self._transmit():
            self._path.corked = True
            self._write_signal.set()
        if not self._path.paused:
            self._read()

    def resume(self) -> None:
        self._read_signal.set()

    def tick(self) -> bool:
        path = self._path
        if not path.peer_acks:
            self._collect_stream_acks()
            return path.retransmit_queue > 0
        if path.ack_due == ACK_LATER:
            path.ack_due = ACK_NOW
            self.kick()
        return False

    def progress(self) -> Progress | None:
        return self._stream.progress()

    def supersede(self, drain_s: float) -> None:
        # A kernel that has used several paths with whoever had our address before dials them all, and each closed one again. It stops when
        # it hears how many we use, so even a link that another waits behind says that first.
        self._superseded = True
        self._silent = self._reader.heard
        self._reason = self._reason or "superseded"
        self._end_within(drain_s)
        self._read_signal.set()

    def finish(self, drain_s: float) -> None:
        self._finish_wanted = True
        self._reason = self._reason or "closing"
        self._end_within(drain_s)
        self._write_signal.set()
        self._read_signal.set()

    def drop(self, reason: str, drain_s: float) -> None:
        self._reason = self._reason or reason
        if self._path.peer_acks or not self._reader.heard:
            self._silent = True
            self._stream.abort()
            self._scope.cancel()
        else:
            # This peer has forgotten what its TCP has had acknowledged: a reset would lose what we have not yet read.
            self.supersede(drain_s)
            self._half_close()

    def _end_within(self, seconds: float) -> None:
        """Read for at most so long from now; an earlier end stands."""
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + seconds)

    # -- writing

    async def _write_loop(self) -> None:
        while not self._silent:
            if self._full:
                try:
                    await self._stream.wait_writable()
                except OSError as error:
                    self._broken(error)
                    return
                self._full = False
            else:
                await self._write_signal.wait()
            self._transmit()
            self._path.corked = self._full
            if self._finish_wanted and not self._full:
                self._silent = True
                self._half_close()

    def _half_close(self) -> None:
        try:
            self._stream.shutdown_write()
        except OSError as error:
            self._broken(error)

    def _transmit(self) -> bool:
        """Write until nothing is left or the stream is full; False if it is full."""
        writer = self._writer
        while not self._silent and not self._full:
            buffers = writer.poll()
            if buffers is None:
                break
            try:
                count = self._stream.send(buffers)
            except BlockingIOError:
                writer.written(0)
                self._full = True
            except OSError as error:
                self._broken(error)
            else:
                writer.written(count)
        if not self._path.peer_acks and self._path.retransmit_queue:
            self._owner.owes_acks()
        return not self._full

    def _broken(self, error: OSError) -> None:
        """The stream cannot be written. What the peer sent before may still be there: the reader goes on to the end of it."""
        self._silent = True
        self._reason = self._reason or reason_of(error)
        self._end_within(self._hello_timeout_s)

    # -- reading

    async def _read_loop(self) -> str:
        """Read to the end; returns why it ended."""
        self._silence.deadline = trio.current_time() + self._hello_timeout_s
        with self._silence:
            return await self._read_to_the_end()
        self._stream.abort()
        return "peer_silent"

    async def _read_to_the_end(self) -> str:
        while True:
            if self._empty:
                try:
                    await self._stream.wait_readable()
                except OSError as error:
                    return self._ended or reason_of(error)
                self._turn = 0
            if self._path.paused:
                if not await self._wait_unpaused():
                    return "closing"
                self._turn = 0
            self._read()
            if self._ended:
                return self._ended
            if self._turn > READ_TURN_BYTES:
                await trio.lowlevel.checkpoint()
                self._turn = 0

    def _read(self) -> None:
        """Read once, and take in what came."""
        if self._ended:
            return
        try:
            count = self._stream.receive_into(self._reader.buffers())
        except BlockingIOError:
            self._empty = True
            return
        except OSError as error:
            self._ended = reason_of(error)
            return
        if count == 0:
            self._ended = "closed_by_peer"
            return
        self._empty = count < SHORT_READ_BYTES
        self._reader.received(count)
        try:
            self._turn += count + self._take_in() * REPORT_BYTES
        except WireError as error:
            self.detail = str(error)
            self._ended = error.reason
            self._owner.attend()
            self._stream.abort()
            return
        if self._silence.deadline < inf and self._reader.heard:
            self._silence.deadline = inf
        self._owner.attend()

    def _take_in(self) -> int:
        """Parse all that was read, stopping for what only the owner can decide; returns how often it stopped."""
        reader, owner, path = self._reader, self._owner, self._path
        stops = 0
        while code := reader.parse():
            stops += 1
            if code == HELLO:
                owner.heard_hello(reader.extensions, reader.ack)
                if self._superseded and not self._silent:
                    if not path.peer_acks:
                        self.kick()
                    self._silent = True
            elif code == PROBE:
                owner.heard_probe(reader.extensions, reader.sport)
            else:
                owner.heard_map(reader.freed)
        if path.ack_due == ACK_LATER:
            owner.owes_acks()
        return stops

    async def _wait_unpaused(self) -> bool:
        """Until the path may be read on; False when the link is to finish instead: then nobody will read what is queued.

        A newer link is no licence to read this one past the cap. A peer that acknowledges nothing itself may have counted on what its
        TCP has had acknowledged, so towards it the time to drain does not run while we are the ones who are slow.
        """
        left_s: float | None = None
        while self._path.paused and not self._finish_wanted:
            if not self._path.peer_acks and self._scope.deadline < inf:
                left_s = self._scope.deadline - trio.current_time()
                self._scope.deadline = inf
            await self._read_signal.wait()
        if left_s is not None:
            self._end_within(left_s)
        return not self._path.paused

    def _collect_stream_acks(self) -> None:
        """Towards a peer that does not acknowledge at our level: retire what its TCP has acknowledged, but nothing (rule R1) on a
        link on which it has not spoken, and nothing once the stream is broken, when the count means nothing."""
        if self._path.peer_acks or not self._reader.heard:
            return
        try:
            waiting = self._stream.unacknowledged()
        except OSError:
            return
        self._path.retire_written(max(0, self._writer.position - waiting))  # our FIN counts as a byte that waits, too
        self._owner.attend()
