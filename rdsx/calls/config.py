"""A courier's settings. The numbers are bounds and patience: no promise of calls depends on one of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rdsx.calls.wire import EXTENSION_ROOM_BYTES, HEADER_BYTES

__all__ = ["CallConfig"]

MAX_DATAGRAM_BYTES = 1 << 20  # RDS_MAX_MSG_SIZE
U16, U32 = 2**16 - 1, 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CallConfig:
    """Settings of one courier; times in seconds, sizes in bytes. Raises ValueError naming the field for a value out of range."""

    window: int = 1024
    """How far call numbers of one session may be ahead of the oldest one whose result its caller lacks (RIFL: 512)."""

    resend_s: float = 1.0
    """A call without an answer is sent again after this, then after twice as long, and so on, each 20 % more or less,"""

    resend_max_s: float = 15.0
    """... up to this. RDS resends by itself; these copies are for messages that a restart or an unbound port swallowed."""

    working_resend_s: float = 30.0
    """Patience after the peer has said that the handler is at work."""

    release_delay_s: float = 0.05
    """How long the release of results waits for a call to ride on."""

    query_after_s: float = 30.0
    """A callee asks a caller that has not released a result for this long; then after twice as long, and so on."""

    lease_s: int = 3600
    """A session whose caller has said nothing for this long ends (LogCabin's hour)."""

    half_open_s: float = 60.0
    """How long a session waits for its first call."""

    busy_min_s: float = 0.02
    """How long a caller that is refused for lack of room is told to wait: at first, and what it doubles up to."""

    busy_max_s: float = 1.0

    grace_s: float = 5.0
    """How long closing waits for running handlers and for results."""

    close_s: float = 1.0
    """How long closing waits for peers to answer goodbye."""

    settle_s: float = 1.0
    """How long a cancelled `call(on_cancel="settle")` waits for the truth."""

    max_half_open_per_peer: int = 4
    max_half_open: int = 4096
    max_sessions: int = 4096
    """Sessions with other callers. Beyond it an OPEN is not answered."""

    max_holders: int = 65536
    """Numbers of all sessions that are held. Beyond it new calls are BUSY."""

    max_session_reply_bytes: int = 4 << 20
    """Replies held for one session. Beyond it its new calls are BUSY."""

    max_reply_bytes: int = 64 << 20
    """... for all sessions."""

    max_running: int = 1000
    """Handlers that run at once. As many calls more may wait for their turn; beyond that new calls are BUSY."""

    max_session_running: int = 256
    """... for one session."""

    max_queued_calls: int = 1024
    """Own calls to one peer that have not been sent. Beyond it `call()` waits."""

    max_request_bytes: int = 16 << 20
    """Own requests to one peer that are kept until they are answered. Beyond it `call()` waits."""

    max_payload_bytes: int = MAX_DATAGRAM_BYTES - HEADER_BYTES - EXTENSION_ROOM_BYTES
    """Longest request taken and longest reply sent."""

    buffer_bytes: int = 4 << 20
    """SO_SNDBUF and SO_RCVBUF that the courier asks for; the node's `max_buffer_bytes` limits both."""

    monitor_interval_s: float = 5.0
    """How often the courier looks at its tables, and warns in the log."""

    handler_warn_s: float = 30.0
    """A handler that runs for longer is named in the log."""

    serve_statistics: bool = True
    """Whether peers may ask for statistics, as `rdsx calls top` does."""

    seed: int | None = None
    """Seed of life, nonces and jitter, for tests; None takes the system's entropy."""

    def __post_init__(self) -> None:
        upper = {"window": U16, "lease_s": U32, "max_payload_bytes": MAX_DATAGRAM_BYTES - HEADER_BYTES - EXTENSION_ROOM_BYTES}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "seed" or isinstance(field.default, bool):
                continue
            if isinstance(field.default, int):
                high = upper.get(name, 2**62)
                if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
                    raise ValueError(f"CallConfig.{name} must be an int in 1..{high}, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"CallConfig.{name} is a time in seconds, at least 0, not {value!r}")
