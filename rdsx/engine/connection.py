"""The policy of one connection: its state, who dials and when, what the peer announced, what a restart means.

One Connection for one (local, remote) pair, for as long as the node knows the peer. It never waits and never touches a socket: the
driver asks `dial_at()`, does what is due, and reports what happened. Invariant: `state` moves only by the table in `states.py`.

Who dials. Messages flow only on links that the smaller address has dialled. The larger address dials to *poke*: the smaller one
sees it, closes it and dials back. So a Connection either `dials` (smaller) or pokes (larger), and never both.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from rdsx.engine.events import CongestionChanged, Event, PeerDown, PeerRestarted, PeerUp
from rdsx.engine.reconnect import Backoff
from rdsx.engine.states import Move, State, moved
from rdsx.wire.hello import pack_hello, parse_hello_untrusted
from rdsx.wire.probe import pack_probe, parse_probe_untrusted

if TYPE_CHECKING:
    from rdsx._fast import Path
    from rdsx.config import NodeConfig

__all__ = ["Connection"]

PROBE_PORT = 1
PING_PORT = 0
NO_WAY = ("unreachable", "address_absent")  # why a dial fails while an address moves
OUR_PATHS = 1  # one path carries everything: a kernel that hears NPATHS=1 never opens more


class Connection:
    """Everything that outlives a link to one peer, except the messages, which are in `path`.

    `dials`: our address is the smaller one. `uniform`: randomness in [0, 1). `emit`: takes events for the application.
    """

    def __init__(
        self,
        path: Path,
        *,
        dials: bool,
        config: NodeConfig,
        generation: int,
        uniform: Callable[[], float],
        emit: Callable[[Event], None],
    ) -> None:
        self.path = path
        self.local = path.table.host
        self.peer = path.host
        self.dials = dials
        self.state = State.DOWN
        self.heard = False  # the peer has spoken on the current link
        self.kind: str | None = None  # "rdsx" or "kernel", as of the last link
        self.peer_generation: int | None = None
        self.takes_operations = False  # the peer carries out operations by message
        self.links = 0  # links that carried at least the peer's first byte
        self._generation = generation
        self._emit = emit
        self._backoff = (
            Backoff(config.reconnect_min_delay_s, config.reconnect_max_delay_s, uniform)
            if dials
            else Backoff(config.poke_min_delay_s, max(config.poke_min_delay_s, config.reconnect_max_delay_s), uniform)
        )
        self._poke_min_delay_s = config.poke_min_delay_s
        self._retry_at_s = -inf
        self._poked = False
        self._progress_at_start = self._progress()

    # -- when to dial

    def dial_at(self, *, awaited: bool) -> float:
        """The time to dial, `inf` for not at all. Whoever queues a message or reports anything asks again.

        `awaited`: somebody waits for a new congestion map. The one we have may be of a peer that has since restarted with nothing to
        say to us, so without a dial it would stay congested for ever.
        """
        if self.state is not State.DOWN:
            return inf
        wanted = awaited or self.path.has_pending or (self.dials and (self.links > 0 or self._poked))
        return self._retry_at_s if wanted else inf

    def poked_by_peer(self) -> None:
        """The larger address has dialled us: it wants us to dial."""
        self._poked = True

    def dialling(self) -> None:
        self._move(Move.DIAL)

    def dial_failed(self, now_s: float, reason: str) -> None:
        """`reason` "reset_by_peer": somebody listens and reset the connection. A kernel that has poked us does so while its own socket is
        not yet gone, and does not poke again: so we go on dialling, with backoff."""
        self._move(Move.CONNECT_FAILED)
        self._poked = self._poked and reason == "reset_by_peer"
        self._retry_at_s = now_s + self._backoff.next_delay_s(no_way=reason in NO_WAY)

    def hurry(self, now_s: float) -> None:
        """The peer can be reached in a new way: what earlier attempts met says nothing about it."""
        self._backoff.moved()
        self._retry_at_s = min(self._retry_at_s, now_s)

    def poked(self, now_s: float) -> None:
        """Our poke got through. The peer should dial now; if it does not, poke again later."""
        self._move(Move.CONNECT_FAILED)
        self._retry_at_s = now_s + self._poke_min_delay_s + self._backoff.next_delay_s()

    # -- a link comes and goes

    def accepting(self) -> None:
        """The peer's link is to be used; an own dial, if any, has been given up."""
        self._move(Move.ACCEPT)

    def established(self) -> None:
        """A link is there. We write our map with our hello, and then nothing until the peer has spoken.

        Every RDS peer begins with its map as soon as it has taken the link up, so this costs a round trip at most. It gives rule R1
        for nothing (no message can be written on a link that the peer then refuses), and a peer that has restarted in between
        never sees what was meant for its former life.
        """
        self._move(Move.CONNECTED)
        self.heard = False
        self._progress_at_start = self._progress()
        self.path.held = True
        self.path.open(pack_hello(self._generation))

    def heard_hello(self, extensions: bytes, ack: int) -> None:
        """The first header of a link came in: `extensions` and `ack` are its fields. Decides how messages are acknowledged, and lets
        them go: first everything unacknowledged, in order (rule R0), then the path count for a kernel (rule R2), then new ones."""
        self.heard = True
        self._poked = False
        self.links += 1
        hello = parse_hello_untrusted(extensions)
        before, self.kind = self.kind, "kernel" if hello is None else "rdsx"
        self.takes_operations = hello is not None and hello.takes_operations
        if not self.takes_operations and not self.path.header_acks:
            self.path.drop_operations()
        self.path.peer_acks = hello is not None or self.path.header_acks
        self.path.peer_is_kernel = hello is None
        if before is not None and before != self.kind:
            self._restarted()
        if hello is None:
            if not self.path.header_acks:
                # Unsolicited, on every link: blocked senders of a kernel that lost our last answer never wake otherwise. Not over verbs,
                # where there is one path, and a kernel that gets a probe prints a stack trace.
                self.path.push_control(PING_PORT, PROBE_PORT, pack_probe(paths=OUR_PATHS), once=True)
            self.path.resume(0)
        elif not self._heard_generation(hello.generation):
            self.path.resume(ack)
        self._emit(PeerUp(self.local, self.peer, self.kind))

    def heard_probe(self, extensions: bytes, sport: int, *, answer: bool) -> None:
        """A probe ping (sport 1) or pong (sport 0) came in. The answer to a ping is queued first, as a kernel does it."""
        probe = parse_probe_untrusted(extensions)
        if sport == PROBE_PORT and answer:
            generation = self._generation if probe.generation is not None else None
            self.path.push_control(PING_PORT, PROBE_PORT, pack_probe(paths=OUR_PATHS, generation=generation))
        if probe.generation is not None:
            self._heard_generation(probe.generation)

    def heard_map(self) -> None:
        self._emit(CongestionChanged(self.local, self.peer))

    def dropped(self) -> None:
        """The link is not to be used any more."""
        self._move(Move.DROP)

    def shutting(self) -> None:
        self._move(Move.SHUT)

    def gone(self, reason: str, now_s: float) -> None:
        """The link is gone: everything unacknowledged goes again on the next one.

        The backoff starts afresh if the link was good for something. That it came up, or that the peer spoke, is not enough: a peer that
        takes every link, says a word and closes it would be dialled without a pause.
        """
        self._move(Move.GONE)
        if self._progress() != self._progress_at_start:
            self._backoff.reset()
        self.path.reset()
        self._retry_at_s = now_s + (self._backoff.next_delay_s() if self.dials else self._poke_min_delay_s)
        if self.heard:
            self.heard = False
            self._emit(PeerDown(self.local, self.peer, reason))

    # -- helpers

    def _move(self, move: Move) -> None:
        self.state = moved(self.state, move)

    def _heard_generation(self, generation: int) -> bool:
        """Whether this generation means that the peer has restarted; if so, flush what its former life may have seen."""
        known, self.peer_generation = self.peer_generation, generation
        if known is None or known == generation:
            return False
        self._restarted()
        return True

    def _restarted(self) -> None:
        """Whoever is there now is not who was: what the former one may have seen must not reach it, and its numbers begin anew."""
        self._emit(PeerRestarted(self.local, self.peer, self.path.flush()))

    def _progress(self) -> tuple[int, int]:
        """Changes when a message was received or acknowledged."""
        return self.path.next_receive, self.path.retired
