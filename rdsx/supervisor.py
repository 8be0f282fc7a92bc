"""One connection's task: it makes links, one after another, and carries out what the engine's `Connection` decides.

The task waits for a link the peer has dialled, or dials when it is time, and runs the link to its end; then again. Links never
overlap: a newer one waits until the older one is read to its end, because a peer whose TCP has acknowledged bytes may count on them.
"""

from __future__ import annotations

import logging
from collections import deque
from math import inf
from typing import TYPE_CHECKING, cast

import trio

from rdsx.addresses import Host
from rdsx.engine.connection import Connection
from rdsx.engine.states import State
from rdsx.errors import WireError
from rdsx.moves import Progress
from rdsx.transports.base import ByteStream, Carrier, Link
from rdsx.transports.signal import Signal
from rdsx.transports.stream import StreamLink, reason_of

if TYPE_CHECKING:
    from rdsx.driver import Driver

__all__ = ["Supervisor"]

log = logging.getLogger("rdsx.connection")

DIAL_PATIENCE_S = 0.2  # TCP asks again after 1 s, 3 s, 7 s
MAX_OFFERED = 8  # links a peer has made and given up while we still read an older one


class Supervisor:
    """Drives one `Connection`. Also the `LinkOwner` of its current link.

    This one makes links of byte streams. A transport that has none overrides what says so.
    """

    header_acks = False  # whether every peer acknowledges in headers, kernels too
    survives_moves = True  # whether a link may outlive a move of one of its addresses to another port

    def __init__(self, driver: Driver, connection: Connection, local: Host, remote: Host) -> None:
        self.connection = connection
        self.link: Link | None = None
        self._driver = driver
        self._local = local
        self.remote = remote
        self._signal = Signal()
        self._offered: deque[Carrier] = deque()  # what the listener gave
        self._dialling: trio.CancelScope | None = None
        self._dialled_at_s = -inf
        self._dial_reason = ""  # why a dial that was cancelled was
        self._failure_logged = False
        self._finishing = False
        self._link_ended = trio.Event()

    # -- the task

    async def run(self) -> None:
        """Until cancelled or finished, or until the peer turns out to be nobody."""
        try:
            while not self._finishing:
                carrier = await self._next_carrier()
                if carrier is None:
                    self._driver.forget(self)
                    return
                await self._carry(carrier)
        finally:
            for offered in self._offered:
                offered.close()

    async def _next_carrier(self) -> Carrier | None:
        """What the next link is made of; None when the peer has never spoken and there is no reason to dial it."""
        connection = self.connection
        while True:
            if self._offered:
                connection.accepting()
                carrier = await self._accept(self._offered.popleft())
                if carrier is not None:
                    return carrier
                continue
            at_s = connection.dial_at(awaited=self._driver.is_awaited(connection.path))
            if at_s == inf and connection.links == 0:
                return None
            if at_s > trio.current_time():
                connection.path.corked = False
                with trio.move_on_at(at_s):
                    await self._signal.wait()
                continue
            carrier = await self._dial()
            if carrier is not None:
                return carrier

    async def _dial(self) -> Carrier | None:
        """Connect; None when there is nothing to use: it failed, it was only a poke, or the peer's own link came first."""
        connection = self.connection
        connection.dialling()
        connection.path.corked = True
        carrier: Carrier | None = None
        reason = ""
        self._dial_reason = "connect_timeout"
        self._dialled_at_s = trio.current_time()
        with trio.move_on_after(self._driver.config.connect_timeout_s) as self._dialling:
            try:
                carrier = await self._connect()
            except OSError as error:
                reason = reason_of(error)
            except WireError as error:
                reason = error.reason
        self._dialling = None
        reason = reason or self._dial_reason
        if carrier is not None and connection.dials:
            return carrier
        now_s = trio.current_time()
        if not connection.dials and (carrier is not None or reason == "reset_by_peer"):
            # The smaller address refuses a poke with FIN and RST, which may be here before our connect has returned.
            if carrier is not None:
                carrier.close()
            connection.poked(now_s)
        else:
            connection.dial_failed(now_s, reason)
            if not self._offered:
                self._driver.count_drop(reason)
                if not self._failure_logged:
                    self._failure_logged = True
                    log.info("%s -> %s: cannot connect: %s; trying again", connection.local, connection.peer, reason)
        return None

    async def _carry(self, carrier: Carrier) -> None:
        connection, config = self.connection, self._driver.config
        connection.established()
        self._failure_logged = False
        self._link_ended = trio.Event()
        self.link = self._make_link(carrier)
        if self._offered:
            self.link.supersede(config.supersede_drain_s)
        try:
            reason = await self.link.run()
            detail = self.link.detail
        finally:
            self.link = None
            self._link_ended.set()
            self._driver.one_sided.link_ended(connection.path)
        await trio.lowlevel.checkpoint_if_cancelled()  # the node has closed meanwhile: there is nobody left to tell
        if connection.state is State.UP and not self._finishing:
            connection.dropped()
        connection.shutting()
        connection.gone(reason, trio.current_time())
        self._driver.count_drop(reason)
        log.info("%s -> %s: link ended: %s", connection.local, connection.peer, detail or reason)
        self._driver.attend()

    # -- what depends on the transport

    @staticmethod
    def dials(local: Host, remote: Host) -> bool:
        """Whether our connects make links. Over TCP those of the smaller address do; those of the larger one are pokes."""
        return local.value < remote.value

    def incoming(self, offered: Carrier) -> None:
        """The peer has dialled us: a link if it is the smaller address, else a poke."""
        if self.connection.dials:
            offered.close()
            self.poked_by_peer()
        else:
            self.offer(offered)

    async def _connect(self) -> Carrier:
        return await self._driver.network.connect(self._local, self.remote, self._driver.config.port)

    async def _accept(self, offered: Carrier) -> Carrier | None:
        """Take up what the peer offers; None if that comes to nothing."""
        return offered

    def _make_link(self, carrier: Carrier) -> Link:
        return StreamLink(cast(ByteStream, carrier), self.connection.path, self, hello_timeout_s=self._driver.config.hello_timeout_s)

    # -- what others tell us

    def kick(self) -> None:
        """The path has something to transmit."""
        if self.link is not None:
            self.link.kick()
        else:
            self.connection.path.corked = True
            self._signal.set()

    def offer(self, offered: Carrier) -> None:
        """The smaller address has dialled us: this is the link to use, once the older ones are read to their end."""
        if len(self._offered) >= MAX_OFFERED:
            self._offered.popleft().close()
            self._driver.count_drop("superseded")
        self._offered.append(offered)
        if self.link is not None:
            self.link.supersede(self._driver.config.supersede_drain_s)
        if self._dialling is not None:
            self._dialling.cancel()
        self._signal.set()

    def poked_by_peer(self) -> None:
        """The larger address has dialled us: it wants us to dial."""
        self.connection.poked_by_peer()
        if self.link is not None and self.connection.heard:
            # Either the poke crossed our link on its way, or the peer has lost it without a word. A map tells: a lost link answers with a
            # reset.
            self.connection.path.owe_map()
            self.link.kick()
        self._signal.set()

    async def finish(self, drain_s: float) -> None:
        """Close the link in order, and make no other."""
        self._finishing = True
        if self.link is not None:
            self.link.finish(drain_s)
            await self._link_ended.wait()

    def drop(self, reason: str) -> bool:
        """Drop the link for this reason; False if there is none, or it is being dropped already."""
        if self.link is None or self.connection.state is not State.UP:
            return False
        self.connection.dropped()
        self.link.drop(reason, self._driver.config.supersede_drain_s)
        return True

    def hurry(self, reason: str, *, moved: bool) -> None:
        """The peer can be reached in a new way, so dial now. `moved`: through other ports than before.

        A dial that is under way is given up if what it has sent so far went the old one; if nothing has moved, only one that has got no
        answer for long, because the peer's return can be that answer.
        """
        now_s = trio.current_time()
        self.connection.hurry(now_s)
        if self._dialling is not None and (moved or now_s - self._dialled_at_s > DIAL_PATIENCE_S):
            self._dial_reason = reason
            self._dialling.cancel()
        self._signal.set()

    def progress(self) -> Progress | None:
        """How the link fares, to judge whether it has to be dropped after a move; None: it has not.

        Towards a peer whose TCP's acknowledgements count it never has: a reset loses what we have not yet read, and the end of our stream
        would only wait behind what stands still.
        """
        if self.link is None or self.connection.kind == "kernel":
            return None
        return self.link.progress()

    # -- LinkOwner

    def heard_hello(self, extensions: bytes, ack: int) -> None:
        self.connection.heard_hello(extensions, ack)
        self._driver.heard.unpark_all()
        log.info("%s -> %s: peer is %s", self.connection.local, self.connection.peer, self.connection.kind)

    def heard_probe(self, extensions: bytes, sport: int) -> None:
        self.connection.heard_probe(extensions, sport, answer=self._driver.config.ping_enable)

    def heard_map(self, freed: int) -> None:
        self.connection.heard_map()
        self._driver.map_changed(self.connection.path.foreign, freed)

    def attend(self) -> None:
        self._driver.attend()

    def owes_acks(self) -> None:
        self._driver.owes_acks(self)
