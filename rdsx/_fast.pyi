"""The contract of `_fast` as Python sees it. Integers are unsigned and of the width of their wire field unless said otherwise."""

from collections.abc import Callable, Iterable
from typing import Any, final

from typing_extensions import Buffer

from rdsx._operation import Operation
from rdsx.errors import WireError as WireError

COUNTER_NAMES: tuple[str, ...]

def pack_header(
    sequence: int,
    ack: int,
    length: int,
    sport: int,
    dport: int,
    flags: int = 0,
    credit: int = 0,
    extensions: Buffer = b"",
    *,
    checksum: bool = False,
) -> bytes:
    """The 48 header bytes; `extensions` (at most 16 bytes) is zero-padded; `checksum` fills h_csum in."""

def unpack_header(source: Buffer) -> tuple[int, int, int, int, int, int, int, int, bytes]:
    """(sequence, ack, length, sport, dport, flags, credit, checksum, extensions) of the first 48 bytes; WireError if shorter."""

def checksum(header: Buffer) -> int:
    """Internet checksum of exactly 48 header bytes, h_csum taken as 0."""

def verify_checksum(header: Buffer) -> bool:
    """Whether h_csum of exactly 48 header bytes is right, or 0 (not checksummed)."""

def unpack_extensions(field: Buffer) -> list[tuple[int, bytes]]:
    """(type, data) pairs of a 16-byte extension field, read as the kernel reads it."""

def fragments(
    sequence: int, ack: int, sport: int, dport: int, payload: Buffer, flags: int = 0, credit: int = 0, extensions: Buffer = b""
) -> list[bytes]:
    """A message as checksummed fragments: a header and up to 4096 payload bytes each; an empty message is one bare header."""

@final
class Reassembly:
    """Puts the fragments of one message after another together. Copies; holds at most one message."""

    def __init__(self, max_message_bytes: int) -> None: ...
    @property
    def pending_bytes(self) -> int:
        """Payload bytes of the unfinished message received so far."""
    def feed(self, fragment: Buffer) -> tuple[int, int, int, int, bytes, bytes] | None:
        """Take one fragment; (sequence, sport, dport, flags, extensions, payload) when it completes a message.

        Raises WireError for a fragment that cannot follow, and forgets the unfinished message.
        """

@final
class CongestionMap:
    """65,536 bits, one a port; set = congested."""

    version: int
    def test(self, port: int) -> bool: ...
    def set(self, port: int) -> None:
        """Mark a port of ours. ValueError for ports 0 and 1, which must never be congested."""
    def clear(self, port: int) -> None: ...
    def replace(self, received: Buffer) -> int:
        """Take over a received map of 8192 bytes; returns the ports that became free, folded modulo 64, as a mask."""
    def reset(self) -> None:
        """Nothing is congested."""
    def freed(self, waiting: Iterable[int]) -> list[int]:
        """The ports of `waiting` that are not congested now."""
    def __bytes__(self) -> bytes: ...

@final
class Core:
    """What one node's sockets and paths share: counters, limits, scratch memory, and the lists of what needs attention."""

    attention: bool
    queued_bytes: int
    max_message_bytes: int
    max_peer_queued_bytes: int
    max_node_queued_bytes: int
    max_unacked_packets: int
    max_unacked_bytes: int
    answer_pings: bool
    operate: Callable[[Path, bytes, bytes | None], bool] | None
    """Carries out an operation by message, or takes in the answer to one: (path, extension headers, payload, None if that was too long to
    keep). False: the next message is not delivered. WireError: the stream cannot be trusted any more."""
    def __init__(
        self,
        *,
        max_message_bytes: int,
        max_peer_queued_bytes: int,
        max_node_queued_bytes: int,
        max_unacked_packets: int,
        max_unacked_bytes: int,
        answer_pings: bool,
        wall_clock: Callable[[], float] | None = None,
    ) -> None: ...
    def take_dirty(self) -> list[Path]:
        """Paths with something new to transmit."""
    def take_woken(self) -> list[Endpoint]:
        """Endpoints whose waiting tasks may go on."""
    def take_resumable(self) -> list[Path]:
        """Paths that were paused at a cap and may be read again."""
    def take_finished(self) -> list[Operation]:
        """Operations that have an outcome since the last call."""
    def conclude(self, operation: Operation, status: int) -> None:
        """An operation by message has this outcome, unless it has one already."""
    def take_used(self) -> list[int]:
        """The rkeys that came with messages behind an operation on memory of ours."""
    def take_remapped(self) -> list[BindTable]:
        """Bind tables whose congestion map changed."""
    def count(self, name: str, by: int = 1) -> None:
        """Add to the counter of that name."""
    def statistics(self) -> dict[str, int]: ...

@final
class BindTable:
    """The ports of one local address, its congestion map, and the paths from it."""

    core: Core
    host: str
    congestion: CongestionMap
    routes: dict[str | tuple[str, int], Path]
    count: int
    def __init__(self, core: Core, host: str) -> None: ...
    def find(self, port: int) -> Endpoint | None: ...
    def free_port(self, start: int) -> int | None:
        """The first free port from `start` upwards with wrap-around, skipping 0 and 1; None when all are taken."""
    def bind(self, endpoint: Endpoint, port: int) -> None:
        """Give a free port to an unbound endpoint. Does not keep the endpoint alive."""
    def due_maps(self) -> list[Path]:
        """The paths whose peer is owed our congestion map."""

@final
class Endpoint:
    """A socket's accounts and receive queue. Limits and sums are payload bytes."""

    table: BindTable
    port: int
    tos: int
    owner: Any
    send_limit: int
    sent_bytes: int
    unacknowledged: int
    receive_limit: int
    received_bytes: int
    congested: bool
    receive_waiting: bool
    send_waiting: bool
    bound: bool
    stamped: bool
    monitored: bool
    monitor_wanted: int
    monitor_pending: int
    code: int
    sent_messages: int
    received_messages: int
    queued: int
    def __init__(self, send_limit: int, receive_limit: int) -> None: ...
    def take(self) -> tuple[bytes, tuple[Any, ...]] | None:
        """The oldest message as (data, address), or None. The caller owns the bytes."""
    def take_many(self, limit: int) -> list[tuple[bytes, tuple[Any, ...]]]: ...
    def peek(self) -> tuple[bytes, tuple[Any, ...], int, float] | None:
        """(data, address, RDMA cookie, wall clock of arrival) of the oldest message, left on the queue; or None."""
    def listing(self) -> list[tuple[int, tuple[Any, ...]]]:
        """(length, address of the sender) of each message in the receive queue, oldest first."""
    def set_tos(self, tos: int) -> None:
        """Send over paths of this type of service, 0 to 255, from now on; `BindTable.routes` has those above 0 under (host, tos)."""
    def submit(self, data: Buffer, address: tuple[Any, ...]) -> int:
        """Queue one message. 0 sent, 1 congested, 2 queue full, 3 too long, 4 no route (the driver must make one).

        `bytes` are kept by reference, anything else is copied. TypeError for data that is no buffer, OverflowError for a bad port.
        """
    def submit_to(self, data: Buffer, path: Path, dport: int, cookie: int = 0) -> int:
        """submit() to a path that is known. `cookie`: that of registered memory, which the receiver gets with the message; 0: none."""
    def check(self, length: int, path: Path, dport: int) -> int:
        """What submit_to() would return for a message of this length."""
    def submit_operation(
        self, data: Buffer, path: Path, dport: int, operation: Operation, request: tuple[bytes, bytes] | None = None
    ) -> int:
        """submit_to() with an operation that goes out right before the message, which carries its rkey. `request`: (extension headers,
        payload) of the message that asks for it; over verbs None, where a device carries it out. ValueError for one instead of the other,
        over loopback, or if the operation was submitted before. Core.take_finished() tells that it has its outcome."""
    def submit_many(self, messages: list[tuple[Buffer, tuple[Any, ...]]], start: int = 0) -> int:
        """Queue messages from index `start`; returns the index of the first not queued, and leaves its code in `code`."""
    def cancel(self, path: Path, dport: int = -1) -> int:
        """Take our unacknowledged messages to `dport` (-1: any) off a path; returns how many."""
    def clear_congestion(self) -> None: ...
    def close(self) -> None:
        """Unbind, drop the receive queue, cancel what was sent. Twice is harmless."""

@final
class Path:
    """What we owe one peer and what it owes us: send and retransmit queue, duplicate test, its congestion map."""

    table: BindTable
    core: Core
    host: str
    tos: int
    scope: int
    local: bool
    foreign: CongestionMap
    supervisor: Any
    forgotten: bool
    corked: bool
    next_sequence: int
    retransmitted: int
    next_receive: int
    queued_bytes: int
    paused: bool
    header_acks: bool
    peer_acks: bool
    peer_is_kernel: bool
    held: bool
    ack_due: int
    def __init__(
        self,
        table: BindTable,
        host: str,
        foreign: CongestionMap,
        *,
        first_sequence: int = 1,
        peer_table: BindTable | None = None,
        is_ipv6: bool = False,
        scope: int = 0,
        header_acks: bool = False,
        tos: int = 0,
    ) -> None: ...
    @property
    def send_queue(self) -> int:
        """Messages not yet fully written."""
    @property
    def retransmit_queue(self) -> int:
        """Messages written and not acknowledged."""
    @property
    def has_pending(self) -> bool: ...
    @property
    def retired(self) -> int:
        """Messages acknowledged so far, total."""
    @property
    def map_due(self) -> bool:
        """The peer is owed our congestion map."""
    def push_answer(self, payload: bytes, extensions: Buffer) -> bool:
        """Queue the answer to an operation by message; False if too many of them are unacknowledged."""
    def drop_operations(self) -> None:
        """Whoever is at the other end now takes no operations: drop those that wait, with their messages."""
    def push_control(self, sport: int, dport: int, extensions: Buffer, *, once: bool = False) -> bool:
        """Queue an empty message of no socket; False when too many are unacknowledged. `once`: not while another such one is."""
    def owe_map(self) -> None:
        """Send our map once more, although it has not changed."""
    def open(self, hello: Buffer) -> None:
        """A new link: its first frame is our map with `hello` in the extension headers."""
    def reset(self) -> None:
        """The link is gone: what was picked up and is not acknowledged goes again, first and flagged."""
    def retire_written(self, acked_bytes: int) -> int:
        """Forget messages that end at or before this offset of the link's stream; returns how many."""
    def resume(self, ack: int) -> None:
        """The peer is the one we know and has everything up to `ack`: write messages again, from the next one."""
    def flush(self) -> int:
        """The peer restarted: drop what its former life may have seen, expect any sequence; returns how many messages went."""
    def clear(self) -> None:
        """Drop everything, for good."""
    def pending_to(self, owner: Endpoint, dport: int = -1) -> int:
        """Unacknowledged messages of `owner` to `dport` (-1: any) on this path."""
    def listing(self) -> list[tuple[int, int, int, int, bool]]:
        """(sequence, length, sport, dport, written) of each unacknowledged message, oldest first."""

@final
class Ring:
    """Slot arithmetic of a send or receive ring; the size is a power of two."""

    size: int
    def __init__(self, size: int) -> None: ...
    @property
    def used(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def low(self) -> bool:
        """At most a quarter is in use."""
    @property
    def oldest(self) -> int:
        """Slot of the oldest entry in use."""
    def allocate(self, wanted: int) -> tuple[int, int]:
        """Take up to `wanted` slots in a row (modulo size): (first slot, how many)."""
    def unallocate(self, count: int) -> None:
        """Give the newest slots back."""
    def release(self, count: int) -> None:
        """The oldest slots completed. ValueError for more than are in use."""
