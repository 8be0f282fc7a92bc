"""Changes of where addresses are, as they happen, for any program and without a privilege: `watch()`.

Works whoever moves the address: our agent, keepalived, Pacemaker, a hand on `ip address`. Invariant: the messages of one move come out
as one change. The first of them starts a wait of 10 ms, and what is then different is told.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from rdsx.moves import Change
from rdsx.netlink.picture import Picture
from rdsx.netlink.rtnetlink import Dump, Message
from rdsx.netlink.sockets import Commands, Groups, Monitor, Overrun

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Watch", "watch"]

DEBOUNCE_S = 0.010  # an added IPv6 address is reported up to 2.5 ms after a removal that came later
GROUPS = Groups.LINK | Groups.NEIGHBOUR | Groups.IPV4_ADDRESS | Groups.IPV6_ADDRESS


class Watch:
    """An asynchronous iterator of `AddressChange` and `NeighbourChange`. Close it when done, or use it in `with`.

    It is about the network namespace in which the thread is when it is made. Changes wait for whoever is slow, in 1 MiB of the
    kernel's memory; after more than that the tables are read anew, and what is different is told. Cancelled: none is lost.

    Raises OSError where the system has no netlink.
    """

    def __init__(self) -> None:
        self._monitor = Monitor(GROUPS)  # first, so that no change is missed between the dumps and it
        self._picture = Picture()
        self._ready: deque[Change] = deque()
        self._pending = False  # something may have changed, and its time has not come
        try:
            self._commands = Commands()
            try:
                self._picture.replace(self._dump())
                self._picture.changes()
            except BaseException:
                self._commands.close()
                raise
        except BaseException:
            self._monitor.close()
            raise

    def ports(self, ip: str) -> tuple[str, ...]:
        """The ports, in order, through which a local address can be reached now; none if it is not here."""
        return self._picture.ports(ip)

    def close(self) -> None:
        """Whoever waits for a change gets trio.ClosedResourceError. Twice is harmless."""
        self._monitor.close()
        self._commands.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._ready:
            await self._gather()
        return self._ready.popleft()

    async def _gather(self) -> None:
        """Wait for something to tell, and for the rest of it."""
        if not self._pending:
            await self._receive()
        if self._pending:
            await trio.sleep(DEBOUNCE_S)
            self._receive_nowait()
            self._pending = False
            self._ready += self._picture.changes()

    async def _receive(self) -> None:
        try:
            self._pending = self._picture.apply(await self._monitor.receive())
        except Overrun:
            self._resynchronise()

    def _receive_nowait(self) -> None:
        try:
            self._picture.apply(self._monitor.receive_nowait())
        except Overrun:
            self._resynchronise()

    def _resynchronise(self) -> None:
        self._picture.replace(self._dump())
        self._pending = True

    def _dump(self) -> list[Message]:
        return [message for what in (Dump.LINKS, Dump.ADDRESSES, Dump.NEIGHBOURS) for message in self._commands.dump(what)]


def watch() -> Watch:
    """Where addresses are, and what changes:

        with rdsx.rdmaip.watch() as changes:
            async for change in changes:
                ...

    See `Watch`. Needs no privilege.
    """
    return Watch()
