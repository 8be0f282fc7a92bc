"""The control channel of a guest: lines over a virtio serial port, whose host end is one half of a socket pair.

Requests go down (`run 7`, `kill 7 TERM`, `off`), reports come up (`ready 0`, `done 7 0`). Output does not travel here, it is written to the
folder that host and guest share. The end of the stream is the end of qemu. Belongs to no trio run: a guest outlives a test.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import trio

__all__ = ["Control", "GuestDiedError", "Result"]


class GuestDiedError(Exception):
    """The guest is gone: stopped, killed, or its kernel has panicked. The text ends with what its console said."""


class Result(NamedTuple):
    """How a command ended: its exit status (124: ran past its timeout and was ended), and what it wrote to stdout and stderr."""

    status: int
    output: str


class Control:
    """The host's end. `guest_end` is for qemu to inherit; drop it with started() once it has."""

    def __init__(self) -> None:
        self._socket, self.guest_end = socket.socketpair()
        self._socket.setblocking(False)
        self._buffer = b""
        self._statuses: dict[int, int] = {}
        self._ready: int | None = None
        self._reading = False
        self._readers = trio.lowlevel.ParkingLot()
        self.is_dead = False

    def started(self) -> None:
        self.guest_end.close()

    def close(self) -> None:
        self.is_dead = True
        self._socket.close()
        self.guest_end.close()

    def send(self, line: str) -> None:
        """Ask for something. The few bytes always fit; a guest that is gone is noticed by who waits for its answer."""
        try:
            self._socket.send(line.encode() + b"\n")
        except OSError:
            self.is_dead = True

    async def wait_ready(self) -> int:
        """The exit status of the guest's own set-up."""
        while self._ready is None:
            await self._more()
        return self._ready

    async def wait_done(self, number: int) -> int:
        """The exit status of a command. Any number of tasks may wait, each for its own."""
        while number not in self._statuses:
            await self._more()
        return self._statuses[number]

    async def wait_dead(self) -> None:
        try:
            while True:
                await self._more()
        except GuestDiedError:
            pass

    def status_of(self, number: int) -> int | None:
        """The exit status, if it was reported and read already."""
        if not self.is_dead and not self._reading:
            self._take()
        return self._statuses.get(number)

    async def _more(self) -> None:
        """Wait until something was read: by this task, or by the one that reads already."""
        if self.is_dead:
            raise GuestDiedError("the guest is gone")
        if self._reading:
            await self._readers.park()
            return
        self._reading = True
        try:
            await trio.lowlevel.wait_readable(self._socket)
            self._take()
        except trio.ClosedResourceError:
            self.is_dead = True
        finally:
            self._reading = False
            self._readers.unpark_all()

    def _take(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.is_dead = True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            match line.split():
                case [b"ready", status]:
                    self._ready = int(status)
                case [b"done", number, status]:
                    self._statuses[int(number)] = int(status)


def escape(path: str | os.PathLike[str]) -> str:
    """A path inside one of qemu's comma-separated options."""
    return str(path).replace(",", ",,")
