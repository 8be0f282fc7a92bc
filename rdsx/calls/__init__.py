"""Exactly-once calls over RDS sockets: `open_courier`. docs/calls.md says what is promised, and what the bytes are."""

from __future__ import annotations

from rdsx.calls.config import CallConfig
from rdsx.calls.courier import STATISTICS, Courier, open_courier
from rdsx.calls.errors import (
    BadRequestError,
    CallAbandonedError,
    CallCancelledError,
    CallError,
    CallInterruptedError,
    CallNotSentError,
    HandlerFailedError,
    NoHandlerError,
    PeerClosingError,
    PeerForgotError,
    PeerRestartedError,
    RequestTooLongError,
    StoreError,
    StoreRolledBackError,
)
from rdsx.calls.handlers import IncomingCall, Reply
from rdsx.calls.outcome import Ending, Executed, Outcome
from rdsx.calls.pending import PendingCall
from rdsx.calls.statistics import CourierStatistics, PeerStatistics
from rdsx.calls.store import SqliteStore

__all__ = [
    "STATISTICS",
    "BadRequestError",
    "CallAbandonedError",
    "CallCancelledError",
    "CallConfig",
    "CallError",
    "CallInterruptedError",
    "CallNotSentError",
    "Courier",
    "CourierStatistics",
    "Ending",
    "Executed",
    "HandlerFailedError",
    "IncomingCall",
    "NoHandlerError",
    "Outcome",
    "PeerClosingError",
    "PeerForgotError",
    "PeerRestartedError",
    "PeerStatistics",
    "PendingCall",
    "Reply",
    "RequestTooLongError",
    "SqliteStore",
    "StoreError",
    "StoreRolledBackError",
    "open_courier",
]
