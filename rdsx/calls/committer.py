"""The committer: one task that has a store write what was decided, all of it since the last time in one transaction.

What must not be seen before it is on disk waits here: messages, handlers that are to begin, ends of durable calls. Invariant: what `done`
is called with was decided before the transaction began that has just ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from rdsx.addresses import SockAddr
from rdsx.calls.handlers import Registration, Reply
from rdsx.calls.holder import Holder
from rdsx.calls.outgoing import Call
from rdsx.calls.records import Journal
from rdsx.calls.wire import Code

if TYPE_CHECKING:
    from rdsx.calls.store import SqliteStore

__all__ = ["Commit", "Committer"]

MAX_STAGED = 4096  # messages; with more the courier stops reading, and RDS stops the peers


@dataclass
class Commit:
    """What one transaction lets go. `results` are those of handlers that ran within it; `ended` are own durable calls."""

    staged: list[tuple[SockAddr, bytes]] = field(default_factory=list)
    starts: list[tuple[Holder, Registration]] = field(default_factory=list)
    results: list[tuple[Holder, Code, Reply, str]] = field(default_factory=list)
    ended: list[Call] = field(default_factory=list)


class Committer:
    """Between a courier and its store."""

    def __init__(self, store: SqliteStore, done: Callable[[Commit], None]) -> None:
        self.store = store
        self.journal = Journal()
        self.staged: list[tuple[SockAddr, bytes]] = []
        self.starts: list[tuple[Holder, Registration]] = []
        self.ended: list[Call] = []
        self._done = done
        self._writing = False
        self._wanted = trio.Event()
        self._room = trio.lowlevel.ParkingLot()

    @property
    def is_behind(self) -> bool:
        """Whether something was decided that is not on disk yet."""
        return self._writing or bool(self.journal.changes) or bool(self.staged)

    def kick(self) -> None:
        """Something may have been decided."""
        if self.journal.changes or self.staged or self.starts:
            self._wanted.set()

    async def wait_for_room(self) -> None:
        """Until not too many messages wait for the disk."""
        while len(self.staged) > MAX_STAGED:
            await self._room.park()

    async def drain(self) -> None:
        """Until everything is on disk."""
        while self.is_behind or self.starts:
            self.kick()
            await self._room.park()

    async def run(self) -> None:
        """The task. A store that cannot be written ends the courier with its exception: nothing unwritten is ever promised."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self.journal.changes or self.staged or self.starts:
                await self._write()
            self._room.unpark_all()

    async def _write(self) -> None:
        self._writing = True
        commit = Commit(self.staged, [start for start in self.starts if start[1].durability != "transaction"], ended=self.ended)
        inside = [start for start in self.starts if start[1].durability == "transaction"]
        changes, self.staged, self.starts, self.ended = self.journal.take(), [], [], []
        try:
            if changes or inside:  # run_sync() cannot be cancelled half way: the thread has the connection
                commit.results = await trio.to_thread.run_sync(self.store.write, changes, self.journal.next_session, inside)
        finally:
            self._writing = False
            self._room.unpark_all()
        self._done(commit)
