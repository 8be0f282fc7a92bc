"""Identifiers of the RDMA CM, and the channel that their events come through. Owns pyverbs' CMID, CMEvent and CMEventChannel objects.

An event is copied and given back in one step: an identifier with an event that was not given back cannot be closed without blocking the
process for ever. Invariant: an identifier is in the channel's registry from its making to its close, and closed before the channel.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from rdsx import _bridge
from rdsx.transports.signal import Signal
from rdsx.transports.verbs.device import Owned, keep_over_fork, translated

__all__ = ["CmEvent", "EventChannel", "Identifier"]

RDMA_PS_TCP = 0x0106  # rdma/rdma_cma.h
EVENTS_AT_ONCE = 64  # then others get their turn


@dataclass(frozen=True, slots=True)
class CmEvent:
    """What the CM says of an identifier. `kind` as in rdma_cma.h, without its prefix; `status` is a negative errno or the CM's own code."""

    kind: str
    status: int
    private_data: bytes
    responder_resources: int
    initiator_depth: int


class Identifier(Owned):
    """One rdma_cm_id. Made by an `EventChannel`; `pointer` is what `_bridge` takes, valid until close()."""

    def __init__(self, channel: EventChannel, cmid: Any) -> None:
        super().__init__()
        self.cmid = keep_over_fork(cmid)
        self.pointer = _bridge.cm_id_pointer(cmid, channel.pointer)
        self.is_closed = False
        self.requested: Callable[[Identifier, CmEvent], None] | None = None  # of a listener: takes requests,
        self.happened: Callable[[CmEvent], None] | None = None  # and everything else; without it, next_event() gives it
        self._channel = channel
        self._events: deque[CmEvent] = deque()
        self._signal = Signal()

    async def next_event(self) -> CmEvent:
        """Wait for the next event. One task at a time. Cancelled: the event stays for the next call."""
        while not self._events:
            await self._signal.wait()
        return self._events.popleft()

    def put(self, event: CmEvent) -> None:
        if self.happened is not None:
            self.happened(event)
            return
        self._events.append(event)
        self._signal.set()

    def close(self) -> None:
        """Free it; the CM refuses or disconnects what it stood for. Twice is harmless."""
        if self.is_closed or not self.is_ours:
            return
        self.is_closed = True
        self._channel.forget(self)
        with translated("a connection identifier cannot be closed"):
            self.cmid.close()


class EventChannel(Owned):
    """The events of the RDMA CM for one node. OSError if this machine's cannot be used; run() must run while identifiers are in use."""

    def __init__(self) -> None:
        from pyverbs.cmid import CMEventChannel

        super().__init__()
        with translated("the RDMA connection manager (/dev/infiniband/rdma_cm) cannot be used"):
            self._channel = keep_over_fork(CMEventChannel())
        self.pointer, self._fd = _bridge.event_channel_pointer(self._channel)
        os.set_blocking(self._fd, False)
        self._identifiers: dict[int, Identifier] = {}
        self._is_closed = False

    def identifier(self) -> Identifier:
        """A new one, bound to nothing."""
        from pyverbs.cmid import CMID

        if self._is_closed:
            raise OSError(errno.EBADF, "the event channel of the RDMA connection manager is closed")
        with translated("no connection identifier can be made"):
            cmid = CMID(creator=self._channel, port_space=RDMA_PS_TCP)
        return self._register(cmid)

    def forget(self, identifier: Identifier) -> None:
        self._identifiers.pop(identifier.pointer, None)

    async def run(self) -> None:
        """Hand out events until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            for _ in range(EVENTS_AT_ONCE):
                event = self._take()
                if event is None:
                    break
                self._dispatch(event)

    def close(self) -> None:
        """Close every identifier, then the channel. Twice is harmless."""
        if self._is_closed or not self.is_ours:
            return
        self._is_closed = True
        for identifier in list(self._identifiers.values()):
            identifier.close()
        trio.lowlevel.notify_closing(self._fd)
        with translated("the event channel of the RDMA connection manager cannot be closed"):
            self._channel.close()

    # -- helpers

    def _register(self, cmid: Any) -> Identifier:
        identifier = Identifier(self, cmid)
        self._identifiers[identifier.pointer] = identifier
        return identifier

    def _take(self) -> Any:
        """The next event, or None. A readable descriptor promises nothing: librdmacm keeps some events to itself."""
        from pyverbs.cmid import CMEvent
        from pyverbs.pyverbs_error import PyverbsRDMAError

        try:
            return CMEvent(self._channel)
        except PyverbsRDMAError as error:
            if error.error_code in (errno.EAGAIN, errno.EINTR):
                return None
            raise OSError(error.error_code, f"the RDMA connection manager gives no events: {os.strerror(error.error_code)}") from error

    def _dispatch(self, wrapper: Any) -> None:
        from pyverbs.cmid import CMID

        try:
            kind, pointer, listener_pointer, status, data, resources, depth = _bridge.read_cm_event(wrapper)
            event = CmEvent(kind, status, data, resources, depth)
            listener = self._identifiers.get(listener_pointer)
            child: Identifier | None = None
            if kind == "CONNECT_REQUEST" and listener is not None:
                # Its identifier comes with the event, and would be lost with it.
                child = self._register(CMID(creator=wrapper, listen_id=listener.cmid))
        finally:
            wrapper.close()
        if child is not None:
            assert listener is not None
            assert listener.requested is not None
            listener.requested(child, event)
        elif (found := self._identifiers.get(pointer)) is not None:
            found.put(event)
