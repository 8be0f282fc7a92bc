"""Netlink sockets: one that listens to what changes, under trio, and one that asks and is answered at once.

Neither needs a privilege to look; to change something takes CAP_NET_ADMIN. A socket belongs to the network namespace in which the thread
was when it was made. Invariant: after `Overrun` nothing that was sent before it is returned, so a dump that follows is newer than
all that `receive()` has returned.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from enum import IntFlag
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from rdsx.netlink import rtnetlink
from rdsx.netlink.rtnetlink import Done, Dump, Message, Refusal

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Commands", "Groups", "Monitor", "Overrun"]

RECEIVE_BUFFER_BYTES = 1048576  # some 1,000 changes; more only with CAP_NET_ADMIN than net.core.rmem_max
DATAGRAM_BYTES = 65536  # the kernel's dumps come in pieces of 32 KiB at most
MAX_DATAGRAMS = 256  # taken in one go, so that a storm of changes does not keep other tasks waiting
ANSWER_S = 1.0
MAX_DUMPS = 10  # of a table that changes each time while it is read

# Numbers of include/uapi/linux/netlink.h.
NETLINK_ROUTE = 0
SOL_NETLINK, NETLINK_EXT_ACK = 270, 11
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
SEQUENCE_AT = 8


class Groups(IntFlag):
    """What a monitor can listen to: bit n-1 for group n of `enum rtnetlink_groups`."""

    LINK = 1 << 0
    NEIGHBOUR = 1 << 2
    IPV4_ADDRESS = 1 << 4
    IPV4_ROUTE = 1 << 6
    IPV4_RULE = 1 << 7
    IPV6_ADDRESS = 1 << 8
    IPV6_ROUTE = 1 << 10
    IPV6_RULE = 1 << 18


class Overrun(Exception):
    """Changes came faster than they were read, and some are lost: read the tables anew."""


class NetlinkSocket:
    """What both have in common: opening, closing, `with`."""

    def __init__(self, groups: int) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        try:
            self._sock.bind((0, groups))
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Twice is harmless."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class Monitor(NetlinkSocket):
    """Hears what changes, from when it is made. OSError if the system has no netlink."""

    def __init__(self, groups: Groups, *, receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES) -> None:
        super().__init__(groups)
        self._sock.setblocking(False)
        for option in (socket.SO_RCVBUF, SO_RCVBUFFORCE):  # the second goes beyond the system's limit, for those who may
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, option, receive_buffer_bytes)
            except PermissionError:
                continue

    def close(self) -> None:
        """Whoever waits in receive() gets ClosedResourceError. Twice is harmless."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
        super().close()

    async def receive(self) -> list[Message]:
        """Wait for changes; returns those that are there, the oldest first. Cancelled: none is lost.

        Raises Overrun, BadNetlink, trio.ClosedResourceError.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (messages := self.receive_nowait()):
            await trio.lowlevel.wait_readable(self._sock)
        return messages

    def receive_nowait(self) -> list[Message]:
        """What is there now, maybe nothing. Raises Overrun and BadNetlink."""
        messages: list[Message] = []
        for _ in range(MAX_DATAGRAMS):
            try:
                data = self._sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._discard()
                    raise Overrun from None
                if self._sock.fileno() < 0:
                    raise trio.ClosedResourceError("this monitor was closed") from None
                raise
            messages += rtnetlink.parse(data)
        return messages

    def _discard(self) -> None:
        while True:
            try:
                self._sock.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise


class Commands(NetlinkSocket):
    """Asks the kernel and waits for the answer, which takes some 20 µs: not worth a task of its own."""

    def __init__(self) -> None:
        super().__init__(0)
        self._sequence = 0
        self._sock.settimeout(ANSWER_S)
        self._sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)

    def execute(self, request: bytes) -> None:
        """Have a request of `rtnetlink` done. OSError with the kernel's errno, and its words where it has some, if it refuses."""
        sequence = self._send(request)
        while True:
            for message in rtnetlink.parse(self._sock.recv(DATAGRAM_BYTES)):
                if isinstance(message, Refusal) and message.sequence == sequence:
                    raise_refusal(message)
                    return

    def dump(self, what: Dump, family: int = 0, *, index: int = 0) -> list[Message]:
        """A whole table, as it was at one moment; family AF_INET or AF_INET6, 0 for both. OSError if that cannot be had.

        `index`: only the neighbours on this interface.
        """
        for _ in range(MAX_DUMPS):
            messages = self._dump(rtnetlink.dump(what, family, index=index))
            if messages is not None:
                return messages
        raise OSError(errno.EBUSY, f"the kernel's {what.name.lower()} change faster than they can be read ({MAX_DUMPS} attempts)")

    def _dump(self, request: bytes) -> list[Message] | None:
        """None if the table changed meanwhile."""
        sequence = self._send(request)
        messages: list[Message] = []
        interrupted = False
        while True:
            for message in rtnetlink.parse(self._sock.recv(DATAGRAM_BYTES)):
                if isinstance(message, Refusal) and message.sequence == sequence:
                    raise_refusal(message)
                elif isinstance(message, Done):
                    interrupted = interrupted or message.interrupted
                    if message.sequence == sequence:
                        return None if interrupted else messages
                else:
                    messages.append(message)

    def _send(self, request: bytes) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        self._sock.send(request[:SEQUENCE_AT] + struct.pack("=I", self._sequence) + request[SEQUENCE_AT + 4 :])
        return self._sequence


def raise_refusal(answer: Refusal) -> None:
    if answer.error:
        words = f": {answer.text}" if answer.text else ""
        raise OSError(answer.error, os.strerror(answer.error) + words)
