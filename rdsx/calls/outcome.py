"""How a call can end, and what its caller may conclude from it. A table: each ending says whether the handler ran."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rdsx.calls.wire import Code

__all__ = ["Ending", "Executed", "Outcome"]


class Executed(Enum):
    """Whether the handler ran. NO and YES are facts for all time."""

    NO = "no"
    """It never ran and never will."""
    YES = "yes"
    """It ran: to its end, or as far as the ending says."""
    MAYBE = "maybe"
    """It ran, or not; nobody can say."""


class Ending(Enum):
    """How a call ended."""

    REPLIED = "replied"
    NO_HANDLER = "no handler"
    TOO_LONG = "request too long"
    BAD_REQUEST = "bad request"
    PEER_CLOSING = "peer is closing"
    HANDLER_FAILED = "handler failed"
    CANCELLED_BEFORE_START = "cancelled before the handler began"
    CANCELLED_WHILE_RUNNING = "cancelled while the handler ran"
    INTERRUPTED = "interrupted by a crash of the peer"
    NEVER_SENT = "given up before it was sent"
    UNREACHABLE = "could not be sent"
    NO_COMMON_VERSION = "no common version of the protocol"
    ABANDONED = "abandoned"
    PEER_RESTARTED = "peer restarted"
    PEER_FORGOT = "peer has ended the session"
    STORE_ROLLED_BACK = "store of the caller is older than what the peer has seen"
    CLOSED = "courier closed"


EXECUTED = {
    Ending.REPLIED: Executed.YES,
    Ending.NO_HANDLER: Executed.NO,
    Ending.TOO_LONG: Executed.NO,
    Ending.BAD_REQUEST: Executed.NO,
    Ending.PEER_CLOSING: Executed.NO,
    Ending.HANDLER_FAILED: Executed.YES,
    Ending.CANCELLED_BEFORE_START: Executed.NO,
    Ending.CANCELLED_WHILE_RUNNING: Executed.YES,
    Ending.INTERRUPTED: Executed.YES,
    Ending.NEVER_SENT: Executed.NO,
    Ending.UNREACHABLE: Executed.NO,
    Ending.NO_COMMON_VERSION: Executed.NO,
    Ending.ABANDONED: Executed.MAYBE,
    Ending.PEER_RESTARTED: Executed.MAYBE,
    Ending.PEER_FORGOT: Executed.MAYBE,
    Ending.STORE_ROLLED_BACK: Executed.MAYBE,
    Ending.CLOSED: Executed.MAYBE,
}

BY_CODE = {
    Code.OK: Ending.REPLIED,
    Code.NO_HANDLER: Ending.NO_HANDLER,
    Code.TOO_LONG: Ending.TOO_LONG,
    Code.HANDLER_FAILED: Ending.HANDLER_FAILED,
    Code.CANCELLED_BEFORE_START: Ending.CANCELLED_BEFORE_START,
    Code.CANCELLED_WHILE_RUNNING: Ending.CANCELLED_WHILE_RUNNING,
    Code.INTERRUPTED: Ending.INTERRUPTED,
    Code.CLOSING: Ending.PEER_CLOSING,
    Code.BAD_REQUEST: Ending.BAD_REQUEST,
}
ENDINGS = {int(code): ending for code, ending in BY_CODE.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a call. `status` and `payload` are the handler's if `ending` is REPLIED; `text` explains the others."""

    ending: Ending
    status: int = 0
    payload: bytes = b""
    text: str = ""

    @property
    def executed(self) -> Executed:
        return EXECUTED[self.ending]
