"""Moves of addresses that a test tells a node of, in the place of what the system would."""

from __future__ import annotations

from math import inf

import trio

from rdsx.moves import Change

__all__ = ["Script"]


class Script:
    """See `rdsx.moves.Changes`: what the test has told so far, and at last the error with which it ended, if it did."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Change | OSError](inf)
        self.closed = False

    def tell(self, change: Change) -> None:
        self._send.send_nowait(change)

    def fail(self, error: OSError) -> None:
        self._send.send_nowait(error)

    def __aiter__(self) -> Script:
        return self

    async def __anext__(self) -> Change:
        told = await self._receive.receive()
        if isinstance(told, OSError):
            raise told
        return told

    def close(self) -> None:
        self.closed = True
