"""The exceptions of calls. Each says what is known: `executed` is NO, YES or MAYBE."""

from __future__ import annotations

from rdsx.calls.outcome import Ending, Executed, Outcome

__all__ = [
    "BadRequestError",
    "CallAbandonedError",
    "CallCancelledError",
    "CallError",
    "CallInterruptedError",
    "CallNotSentError",
    "HandlerFailedError",
    "NoHandlerError",
    "PeerClosingError",
    "PeerForgotError",
    "PeerRestartedError",
    "RequestTooLongError",
    "StoreError",
    "StoreRolledBackError",
    "error_of",
]


class CallError(Exception):
    """A call that ended without a reply. `outcome` has all that is known; `executed` says whether the handler ran."""

    def __init__(self, text: str, outcome: Outcome) -> None:
        super().__init__(text)
        self.outcome = outcome

    @property
    def executed(self) -> Executed:
        return self.outcome.executed


class NoHandlerError(CallError):
    """The peer has no handler for this type. NO."""


class RequestTooLongError(CallError):
    """The peer, or its handler, takes no request of this length. NO."""


class BadRequestError(CallError):
    """The peer does not understand a part of the request that it must understand. NO."""


class PeerClosingError(CallError):
    """The peer's courier is closing. NO."""


class CallNotSentError(CallError):
    """The call was never sent: it was given up before, this courier is closing, the address cannot be reached by this socket, or the
    peer speaks no version that we speak. NO."""


class HandlerFailedError(CallError):
    """The handler raised; the text is its exception. YES."""


class CallCancelledError(CallError):
    """`PendingCall.cancel` took effect: before the handler began (NO) or while it ran (YES)."""


class CallInterruptedError(CallError):
    """The peer crashed while the handler ran, and its store says so. YES: it began, and does not begin again."""


class CallAbandonedError(CallError):
    """`PendingCall.abandon` was called, or this courier closed before the result came. MAYBE."""


class PeerRestartedError(CallError):
    """The peer is another process now, and nobody knows what its predecessor did. MAYBE: it does not begin in future."""


class PeerForgotError(CallError):
    """The peer has ended the session, because it heard nothing of us for its lease. MAYBE: it does not begin in future."""


class StoreRolledBackError(CallError):
    """This courier's store is older than what the peer has seen: a backup was restored. Start with a new store. MAYBE."""


class StoreError(Exception):
    """A store that cannot be used: in use, damaged, of another courier, or of another format. The text says which, and what to do."""


ERRORS: dict[Ending, type[CallError]] = {
    Ending.NO_HANDLER: NoHandlerError,
    Ending.TOO_LONG: RequestTooLongError,
    Ending.BAD_REQUEST: BadRequestError,
    Ending.PEER_CLOSING: PeerClosingError,
    Ending.HANDLER_FAILED: HandlerFailedError,
    Ending.CANCELLED_BEFORE_START: CallCancelledError,
    Ending.CANCELLED_WHILE_RUNNING: CallCancelledError,
    Ending.INTERRUPTED: CallInterruptedError,
    Ending.NEVER_SENT: CallNotSentError,
    Ending.UNREACHABLE: CallNotSentError,
    Ending.NO_COMMON_VERSION: CallNotSentError,
    Ending.ABANDONED: CallAbandonedError,
    Ending.CLOSED: CallAbandonedError,
    Ending.PEER_RESTARTED: PeerRestartedError,
    Ending.PEER_FORGOT: PeerForgotError,
    Ending.STORE_ROLLED_BACK: StoreRolledBackError,
}


def error_of(outcome: Outcome, peer: object, msg_type: int) -> CallError:
    """The exception for an outcome that is no reply."""
    text = f": {outcome.text}" if outcome.text else ""
    said = f"call of type {msg_type:#x} to {peer}: {outcome.ending.value}{text} (executed: {outcome.executed.value})"
    return ERRORS[outcome.ending](said, outcome)
