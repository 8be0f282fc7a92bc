"""What stands around the engines, as they see it: the socket, whoever waits, whoever runs handlers, and a store. Protocols only."""

from __future__ import annotations

from typing import Protocol

from rdsx.calls.holder import Holder, IncomingSession
from rdsx.calls.outgoing import Address, Call, Peer, Session
from rdsx.calls.wire import Message

__all__ = ["CalleeJournal", "CalleeOutside", "CallerJournal", "Outside"]


class Outside(Protocol):
    """Around a `Caller`."""

    def send(self, address: Address, message: Message) -> bool:
        """Hand a message to the socket. False: it takes none for this peer now, and `writable` will be called. OSError: it never will."""

    def forget_sent(self, address: Address) -> None:
        """Drop what the socket still has for a peer that does not answer."""

    def call_ended(self, call: Call) -> None:
        """`call.outcome` is there. Called once for each call."""


class CallerJournal(Protocol):
    """What a caller with a store writes down. A message sent afterwards leaves when this is on disk."""

    def save_outgoing(self, peer: Peer, session: Session) -> None: ...
    def drop_outgoing(self, peer: Peer) -> None: ...
    def save_call(self, call: Call) -> None: ...
    def drop_call(self, call: Call) -> None: ...


class CalleeOutside(Protocol):
    """Around a `Callee`."""

    def send(self, address: Address, message: Message) -> bool:
        """As `Outside.send`."""

    def caller_gone(self, holder: Holder) -> None:
        """Nobody will want the result of this handler, which runs."""

    def stop(self, holder: Holder) -> None:
        """Its caller asks to cancel this handler, which runs."""


class CalleeJournal(Protocol):
    """What a callee with a store writes down. A message sent afterwards leaves, and a handler begins, when this is on disk."""

    def save_session(self, session: IncomingSession) -> None: ...
    def drop_session(self, session: IncomingSession, *, evicted: bool) -> None: ...
    def forget_evicted(self, numbers: list[int]) -> None: ...
    def save_holder(self, holder: Holder) -> None: ...
    def drop_holder(self, holder: Holder) -> None: ...
    def forget_holder(self, session: int, seq: int) -> None: ...
