"""What a transport is, on one page.

The engine knows messages, a link knows bytes. A `Link` carries one `Path` over one connection of some transport: it asks the path
what to write and gives it what it read, and it reports to a `LinkOwner` what only policy can decide. A byte-stream transport does
not write a link of its own: it makes `ByteStream`s through a `Network`, and `transports.stream.StreamLink` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rdsx.addresses import Host
from rdsx.moves import Progress

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ByteStream", "Carrier", "Link", "LinkOwner", "Listener", "Network"]


class ByteStream(Protocol):
    """One connected byte stream, non-blocking. Every method may raise OSError once the stream is broken."""

    def send(self, buffers: Sequence[Buffer]) -> int:
        """Bytes taken, at least 1; BlockingIOError when none can be."""

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        """Bytes read into the buffers, in order; 0 at the end of the stream; BlockingIOError when none are there."""

    async def wait_readable(self) -> None:
        """Until receive_into() would not block."""

    async def wait_writable(self) -> None:
        """Until send() would not block."""

    def unacknowledged(self) -> int:
        """Bytes sent that the peer's end of the stream has not yet acknowledged (SIOCOUTQ on TCP)."""

    def progress(self) -> Progress | None:
        """How it fares; None if the system does not say, or the stream is broken."""

    def shutdown_write(self) -> None:
        """Half-close: the peer reads to the end, we go on reading."""

    def close(self) -> None:
        """Close now. Unread bytes turn this into a reset. Twice is harmless."""

    def abort(self) -> None:
        """Reset the connection: the peer sees an error, not an end. Twice is harmless."""


class Listener(Protocol):
    async def accept(self) -> tuple[ByteStream, Host]:
        """The next incoming stream and who dialled it. OSError for trouble that may pass (the caller tries again)."""

    def close(self) -> None: ...


class Network(Protocol):
    """Makes byte streams between node addresses. `name` is what statistics and errors call the transport."""

    name: str

    async def listen(self, local: Host, port: int) -> Listener:
        """Listen on exactly this address. OSError with the remedy in its text when that cannot be."""

    async def connect(self, local: Host, remote: Host, port: int) -> ByteStream:
        """Dial, with our address bound explicitly: it is our identity. OSError when the peer cannot be reached now."""


class Carrier(Protocol):
    """What a supervisor keeps until it becomes a link: a connection that is made, or one that a peer has asked for. Only the supervisor's
    own transport looks into it."""

    def close(self) -> None:
        """Let go of it, and let the peer know. Twice is harmless."""


class LinkOwner(Protocol):
    """Who decides for a link. All calls are synchronous and come from the link's own tasks."""

    def heard_hello(self, extensions: bytes, ack: int) -> None:
        """The first header was seen; the frames behind it are taken in after this returns."""

    def heard_probe(self, extensions: bytes, sport: int) -> None:
        """A probe was taken in; what follows it is taken in after this returns."""

    def heard_map(self, freed: int) -> None:
        """The peer's congestion map changed; `freed`: mask of ports (mod 64) that became free."""

    def attend(self) -> None:
        """A batch was taken in or acknowledged: look at what the hot path noted."""

    def owes_acks(self) -> None:
        """Something waits for an acknowledgement, given or to be given: call the link's tick() soon."""


class Link(Protocol):
    """One connection carrying one path, from established to gone. `detail` says after run() what was wrong with the peer's bytes."""

    detail: str

    async def run(self) -> str:
        """Carry messages until the link ends; returns the reason, a name to be counted. Never raises for the peer's doing."""

    def kick(self) -> None:
        """There is something to transmit: send what can be sent now, and let the rest of this scheduler tick gather behind it."""

    def poll(self) -> None:
        """Somebody has nothing else to do: send what gathers, and take in what has arrived, without waiting."""

    def resume(self) -> None:
        """The path is no longer paused: read on."""

    def tick(self) -> bool:
        """Give delayed acknowledgements and collect the stream's; False when nothing waits for one any more."""

    def progress(self) -> Progress | None:
        """How the stream under it fares; None if that cannot be told, or says nothing of whether the link survives a move of an address."""

    def supersede(self, drain_s: float) -> None:
        """The peer has made a newer link: write nothing more, read this one to its end or for at most `drain_s`, then end."""

    def finish(self, drain_s: float) -> None:
        """Orderly end: half-close, read to the end or for at most `drain_s`, then end."""

    def drop(self, reason: str, drain_s: float) -> None:
        """End for this reason, with a reset at once; but towards a peer whose TCP's acknowledgements count, half-close and read what
        is there first, to the end or for at most `drain_s`."""
