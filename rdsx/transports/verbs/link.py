"""A link over a queue pair: one task that polls completions, another that lets a scheduler tick's messages gather.

The way of a message out: `kick()` posts at once what the path holds, and until the writer task has had its turn, or while the rings
have no room, further messages only gather (the path is *corked*). The way in: poll, report, until the completion queues are empty; ask
for an event, poll once more, and only then wait. Invariants: a path is corked exactly while a task is sure to look at it again; nobody
waits without having found the queues empty after asking for an event.
"""

from __future__ import annotations

from math import inf
from typing import Any, Protocol

import trio

from rdsx._rings import Rings
from rdsx.transports.base import LinkOwner
from rdsx.transports.signal import Signal

__all__ = ["Connected", "VerbsLink"]

TURN_BATCHES = 4  # let other tasks run after so many batches of completions: 128 frames, of 73 small messages at most

# What Rings.poll() stops for, and what Path.ack_due says.
EMPTY, HELLO, TAKEN, NEW_MAP, BROKEN = range(5)
ACK_LATER, ACK_NOW = 1, 2


class Connected(Protocol):
    """One established connection, as the control plane hands it over. `device`: where its queue pair is, and memory is registered."""

    @property
    def device(self) -> Any: ...

    async def wait_ended(self) -> str:
        """Until the connection manager says that the connection is over; returns why, a name to be counted."""

    def disconnect(self) -> None:
        """Tell the peer, and let everything posted be flushed. Twice is harmless; so is a connection that is over."""

    def close(self) -> None:
        """Free the queue pair and all that its rings use. Nobody waits for its completion channel any more."""


class VerbsLink:
    """See `transports.base.Link`. Owns the connection and closes it.

    `rings`: those of the connection's queue pair, with receives posted. `fd`: that of its completion channel, which does not block.
    `hello_timeout_s`: how long a peer may stay without a word at first, or without a credit for us later.
    """

    def __init__(self, connection: Connected, rings: Rings, fd: int, owner: LinkOwner, *, hello_timeout_s: float) -> None:
        self._connection = connection
        self._rings = rings
        self._fd = fd
        self._path = rings.path
        self._owner = owner
        self._patience_s = hello_timeout_s
        self._write_signal = Signal()
        self._read_signal = Signal()
        self._scope = trio.CancelScope()
        self._silence = trio.CancelScope()  # ends a link whose peer keeps us waiting
        self._silent = False  # nothing more is to be sent
        self._finishing = False
        self._reason = ""  # why it ends; the first reason counts
        self.detail = ""  # what exactly was wrong

    @property
    def device(self) -> Any:
        """The one that carries out operations on it."""
        return self._connection.device

    async def run(self) -> str:
        """Carry messages until the link ends; see Link.run()."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._write_loop)
                self.kick()
                with self._scope:
                    await self._read_loop()
                nursery.cancel_scope.cancel()
            self._take_the_rest()
        finally:
            self._silent = True
            self._path.corked = True
            self._connection.disconnect()
            self._connection.close()
            self._rings.abandon()
        return self._reason

    def kick(self) -> None:
        self._path.corked = True
        if not self._rings.blocked:
            self._transmit()
        self._write_signal.set()

    def poll(self) -> None:
        # An event that was asked for still comes with the next completion, whoever takes it: the reader task then finds the queues empty.
        if self._silent or self._path.paused:
            return
        if not self._rings.blocked:
            self._transmit()
        self._poll_rings()

    def resume(self) -> None:
        self._read_signal.set()

    def tick(self) -> bool:
        if self._path.ack_due == ACK_LATER:
            self._path.ack_due = ACK_NOW
            self.kick()
        return False

    def progress(self) -> None:
        """A queue pair belongs to a port: it does not survive."""
        return None

    def supersede(self, drain_s: float) -> None:
        # Nothing to drain: what the peer holds unacknowledged comes again on the newer link.
        self._end("superseded")

    def finish(self, drain_s: float) -> None:
        self._reason = self._reason or "closing"
        self._finishing = True
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + drain_s)
        self.kick()

    def drop(self, reason: str, drain_s: float) -> None:
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._silent = True
        self._scope.cancel()

    async def _watch(self) -> None:
        self._end(await self._connection.wait_ended())

    # -- sending

    async def _write_loop(self) -> None:
        while True:
            await self._write_signal.wait()
            self._transmit()
            self._path.corked = self._rings.blocked

    def _transmit(self) -> None:
        rings = self._rings
        if self._silent:
            return
        rings.transmit()
        if self._finishing:
            if rings.idle and rings.in_flight == 0:
                self._end("closing")
            else:
                rings.flush()
        if rings.broken:
            self._broken()
        elif rings.heard:
            self._silence.deadline = min(self._silence.deadline, trio.current_time() + self._patience_s) if rings.starved else inf

    def _broken(self) -> None:
        self.detail = self._rings.detail or ""
        self._end(self._rings.reason or "")

    # -- receiving

    async def _read_loop(self) -> None:
        self._silence.deadline = trio.current_time() + self._patience_s
        with self._silence:
            await self._poll_to_the_end()
        if self._rings.heard:
            self._end("no_credits")
        else:
            self._end("peer_silent")

    async def _poll_to_the_end(self) -> None:
        rings = self._rings
        armed = False
        batches = 0
        while not self._silent:
            while self._path.paused:
                await self._read_signal.wait()
            if self._poll_rings() != EMPTY:
                batches += 1
                if batches == TURN_BATCHES:
                    batches = 0
                    await trio.lowlevel.checkpoint()
            elif not armed:
                rings.arm()
                armed = True
            else:
                await trio.lowlevel.wait_readable(self._fd)
                rings.take_events()
                armed = False
                batches = 0

    def _poll_rings(self) -> int:
        """Take one batch of completions, if there is one; what Rings.poll() said."""
        code = self._rings.poll()
        if code == BROKEN:
            self._broken()
        elif code != EMPTY:
            self._take_in(code)
        return code

    def _take_in(self, code: int) -> None:
        """Report what poll() stopped for, and send what has become possible or due."""
        owner, path, rings = self._owner, self._path, self._rings
        if code == HELLO:
            self._silence.deadline = inf
            owner.heard_hello(rings.extensions, rings.ack)
            return
        if code == NEW_MAP:
            owner.heard_map(rings.freed)
        if path.ack_due == ACK_LATER:
            owner.owes_acks()
        owner.attend()
        was_blocked = rings.blocked
        self._transmit()
        if was_blocked and not rings.blocked:
            path.corked = False

    def _take_the_rest(self) -> None:
        """The connection is over: take in what had arrived before; the peer does not send it again to a new process of ours."""
        while not self._path.paused and (code := self._rings.poll()) not in (EMPTY, BROKEN):
            self._take_in(code)
