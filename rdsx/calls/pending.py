"""PendingCall: a call that was started. Owns the waiting for its outcome; the courier's caller engine decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import trio

from rdsx.addresses import SockAddr
from rdsx.calls.errors import error_of
from rdsx.calls.handlers import Reply
from rdsx.calls.outcome import Ending, Executed, Outcome
from rdsx.calls.outgoing import Call, CallState

if TYPE_CHECKING:
    from rdsx.calls.driver import CourierDriver

__all__ = ["OnCancel", "PendingCall"]

OnCancel = Literal["abandon", "cancel", "settle", "detach"]
CHOICES = ("abandon", "cancel", "settle", "detach")


class PendingCall:
    """Made by `Courier.start_call`. Any number of tasks may wait for it, at any time, also after its end."""

    __slots__ = ("_call", "_driver", "_ended", "_told", "msg_type", "peer")

    def __init__(self, driver: CourierDriver, call: Call) -> None:
        self._driver = driver
        self._call = call
        self._ended: trio.Event | None = None
        self._told = False  # its outcome may be seen
        self.peer: SockAddr = call.peer.address
        self.msg_type = call.msg_type
        call.owner = self

    def __repr__(self) -> str:
        state = self._call.state.name.lower() if self.outcome is None else self.outcome.ending.value
        return f"<rdsx.calls.PendingCall type {self.msg_type:#x} to {self.peer}, {state}>"

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        return self._call.outcome if self._told else None

    @property
    def executed(self) -> Executed:
        """What is known by now: NO while it was not sent, then MAYBE until its outcome says more."""
        if self.outcome is not None:
            return self.outcome.executed
        return Executed.NO if self._call.state is CallState.QUEUED else Executed.MAYBE

    async def wait(self, *, on_cancel: OnCancel = "detach") -> Reply:
        """The reply; raises the `CallError` of any other outcome.

        Cancelled: as `on_cancel` says, see `Courier.call`; by default nothing happens to the call, and `wait` may be called again.
        """
        check_on_cancel(on_cancel)
        try:
            await self._wait_ended()
        except trio.Cancelled:
            if on_cancel == "abandon":
                self.abandon()
            elif on_cancel != "detach":
                self._driver.cancel(self._call)
            if on_cancel == "settle":
                await self._settle()
            raise
        return self._reply()

    async def cancel(self) -> Outcome:
        """Ask that the handler not begin, or stop if it was registered as cancellable; returns the outcome.

        It is NO if the handler had not begun; else whatever the handler's end is. Waits for the peer's answer. Cancelled: nothing
        changes, the layer goes on until it knows.
        """
        self._driver.cancel(self._call)
        await self._wait_ended()
        assert self.outcome is not None
        return self.outcome

    def abandon(self) -> None:
        """The result is unwanted. The outcome is NO if the call was not sent, else MAYBE for ever.

        It is there at once; that of a durable call when the store has it.
        """
        self._driver.abandon(self._call)

    async def _settle(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._driver.config.settle_s):
            await self._wait_ended()
        self.abandon()

    async def _wait_ended(self) -> None:
        if self._ended is None:
            self._ended = trio.Event()
            if self._told:
                self._ended.set()
        await self._ended.wait()

    def _tell(self) -> None:
        """Its outcome is there, and no crash can change it any more."""
        self._told = True
        if self._ended is not None:
            self._ended.set()

    def _reply(self) -> Reply:
        outcome = self.outcome
        assert outcome is not None
        if outcome.ending is Ending.REPLIED:
            return Reply(outcome.status, outcome.payload)
        raise error_of(outcome, self.peer, self.msg_type)


def check_on_cancel(on_cancel: str) -> None:
    if on_cancel not in CHOICES:
        raise ValueError(f"on_cancel is one of {', '.join(CHOICES)}, not {on_cancel!r}")
