"""Handlers: how they are registered, what they are given, and what their results mean. Runs nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import trio

from rdsx.addresses import SockAddr
from rdsx.calls.holder import Holder, Terms

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Durability", "Handler", "IncomingCall", "Registration", "Reply", "reply_of"]

INT32 = range(-(2**31), 2**31)


class Reply(NamedTuple):
    """A result: a number of the handler's own, and bytes."""

    status: int = 0
    payload: bytes = b""


Result = Reply | int | bytes | None
Durability = Literal["volatile", "journal", "transaction"]
Handler = Callable[["IncomingCall"], "Awaitable[Result] | Result"]


class IncomingCall:
    """A call, as its handler sees it. `payload` is the handler's to keep."""

    __slots__ = ("_gone", "_holder", "payload", "transaction")

    def __init__(self, holder: Holder, transaction: sqlite3.Connection | None = None) -> None:
        self._holder = holder
        self._gone: trio.Event | None = None
        self.payload = holder.payload
        self.transaction = transaction
        """With durability="transaction": the connection whose open transaction also records the result. Never commit it."""

    @property
    def peer(self) -> SockAddr:
        return self._holder.session.record.address

    @property
    def caller_life(self) -> int:
        """The number by which runs of the caller are told apart."""
        return self._holder.session.caller_life

    @property
    def session(self) -> int:
        return self._holder.session.number

    @property
    def seq(self) -> int:
        """The call's number in its session."""
        return self._holder.seq

    @property
    def msg_type(self) -> int:
        return self._holder.msg_type

    @property
    def copies(self) -> int:
        """How often it has arrived so far."""
        return self._holder.copies

    @property
    def key(self) -> tuple[SockAddr, int, int, int]:
        """(peer, caller_life, session, seq): the same in each copy, and in no other call."""
        return self.peer, self.caller_life, self.session, self.seq

    @property
    def caller_gone(self) -> trio.Event:
        """Set when nobody will want the result: the caller has restarted, closed, or been silent for the lease."""
        if self._gone is None:
            self._gone = trio.Event()
            if self._holder.session.retired:
                self._gone.set()
        return self._gone

    def _note_gone(self) -> None:
        if self._gone is not None:
            self._gone.set()


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler and its terms."""

    function: Handler
    terms: Terms
    is_async: bool
    cancellable: bool
    on_caller_gone: Literal["finish", "cancel"]
    durability: Durability
    on_committed: Callable[[Reply], None] | None = None


class Running:
    """A handler at work: the `owner` of its holder."""

    __slots__ = ("call", "registration", "scope")

    def __init__(self, call: IncomingCall, registration: Registration) -> None:
        self.call = call
        self.registration = registration
        self.scope = trio.CancelScope()


def reply_of(result: Any) -> Reply:
    """What a handler returned, as a `Reply`. TypeError or ValueError for what is no result."""
    if result is None:
        return Reply()
    if isinstance(result, bytes):
        return Reply(0, result)
    if isinstance(result, Reply):
        status, payload = result
    elif isinstance(result, int):
        status, payload = int(result), b""
    else:
        raise TypeError(f"a handler returns int, bytes, Reply or None, not {type(result).__name__}")
    if not isinstance(payload, bytes):
        raise TypeError(f"the payload of a Reply is bytes, not {type(payload).__name__}")
    if status not in INT32:
        raise ValueError(f"a status is a signed number of 32 bits, not {status}")
    return Reply(status, payload)
