"""Two ends of the data plane of verbs on a made-up device, for tests of `_rings`: every frame and every completion under control."""

from __future__ import annotations

import ctypes
import select
from typing import Any

import pytest
from hypothesis import strategies as st

from fastkit import ACK_REQUIRED, CONG_BITMAP, HELLO, MIB, Side
from rdsx._fast import Path, pack_header
from rdsx._operation import Operation

rings = pytest.importorskip("rdsx._rings", reason="rdsx was built without the headers of rdma-core")
fakenic = pytest.importorskip("fakenic", exc_type=ImportError)

LKEY = 77
SHARED_KEY = 78  # of memory for operations, local and remote
SHARED_BYTES = 8192
SLOT_BYTES = 4160
FRAGMENT_BYTES = 4096

# Codes of Rings.poll.
EMPTY, FIRST_HEADER, TAKEN, NEW_MAP, BROKEN = range(5)
# Codes of Path.ack_due.
ACK_NONE, ACK_LATER, ACK_NOW = range(3)
# Flags of send work requests.
SIGNALED, SOLICITED, INLINE = 2, 4, 8
# ibv_wc_status.
FLUSHED, REMOTE_ACCESS, RETRIES, RNR_RETRIES, GENERAL = 5, 10, 12, 13, 21


class RingSide(Side):
    """One node with a path over a queue pair of a FakeNic."""

    def __init__(self, host: str, peer: str, *, send_slots: int = 64, receive_slots: int = 64, inline: int = 0, **changes: Any) -> None:
        self.sizes = send_slots, receive_slots, inline
        self.automatic = changes.pop("automatic", False)
        self.packed = changes.pop("packed", False)
        self.awake = False
        self.shared = ctypes.create_string_buffer(SHARED_BYTES)
        self.shared_address = ctypes.addressof(self.shared)
        super().__init__(host, peer, **changes)

    def link(self, hello: bytes = HELLO) -> None:
        """A new queue pair. The path must be new, or reset."""
        if not self.path.header_acks:
            self.path = self.table.routes[self.peer] = Path(self.table, self.peer, self.foreign, header_acks=True)
        send_slots, receive_slots, inline = self.sizes
        if self.packed:
            send_slots, receive_slots = send_slots * rings.PACKED_SLOTS, receive_slots * rings.PACKED_SLOTS
        size = rings.ring_bytes(send_slots, receive_slots)
        self.memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(self.memory)
        self.nic = fakenic.FakeNic(
            memory=address,
            memory_bytes=size,
            lkey=LKEY,
            send_depth=send_slots,
            receive_depth=receive_slots,
            max_inline_bytes=inline,
            automatic=self.automatic,
        )
        self.nic.register(self.shared_address, SHARED_BYTES, SHARED_KEY, remote=True)
        self.rings = rings.Rings(
            self.path,
            self.nic,
            memory=address,
            memory_bytes=size,
            lkey=LKEY,
            send_slots=send_slots,
            receive_slots=receive_slots,
            max_inline_bytes=inline,
            packed=self.packed,
        )
        self.rings.post_receives()
        self.path.open(hello)
        self.codes: list[int] = []
        self.awake = True

    # -- as a link does it

    def kick(self) -> None:
        self.path.core.take_dirty()
        self.rings.transmit()

    def tick(self) -> None:
        """The node's timer of acknowledgements."""
        if self.path.ack_due == ACK_LATER:
            self.path.ack_due = ACK_NOW
            self.kick()

    def has_event(self) -> bool:
        return bool(select.select([self.nic.fd], [], [], 0)[0])

    def run(self) -> None:
        """A turn of the link's task: nothing unless an event woke it, else everything until it would wait again. First the driver's."""
        if self.core.take_dirty() + self.core.take_remapped():
            self.rings.transmit()
        if not self.awake and not self.has_event():
            return
        self.rings.take_events()
        self.awake = armed = False
        self.rings.transmit()
        while True:
            code = self.rings.poll()
            if code == BROKEN or (code == EMPTY and armed):
                return
            if code == EMPTY:
                self.rings.arm()
                armed = True
            else:
                self.codes.append(code)
                self.rings.transmit()

    def take_in(self) -> list[int]:
        """Everything that has completed, whether or not an event told; the codes but EMPTY."""
        codes = []
        while code := self.rings.poll():
            codes.append(code)
            if code == BROKEN:
                break
        return codes

    # -- the device

    def outgoing(self) -> list[tuple[bytes, int]]:
        """The frames that are posted, each with its flags, carried to the peer one by one."""
        found = []
        while (frame := self.nic.next_frame()) is not None:
            found.append(frame)
            assert self.nic.carry(1) == 1
        return found

    def inject(self, *frames: bytes) -> None:
        for one in frames:
            assert self.nic.inject(one)
        self.nic.show_receives()

    def is_clean(self) -> bool:
        """The device has seen no breach of its rules."""
        return not self.nic.trampled and not self.nic.overrun


def join(a: RingSide, b: RingSide) -> None:
    a.nic.connect(b.nic)


def pair(**changes: Any) -> tuple[RingSide, RingSide]:
    a, b = RingSide("10.0.0.1", "10.0.0.2", **changes), RingSide("10.0.0.2", "10.0.0.1", **changes)
    join(a, b)
    return a, b


def use_credits(a: RingSide, b: RingSide) -> None:
    """As if both had announced what they have posted."""
    announced = a.rings.offer_credits(), b.rings.offer_credits()
    a.rings.use_credits(announced[1])
    b.rings.use_credits(announced[0])


def relink(a: RingSide, b: RingSide) -> None:
    """The connection is lost, and another one made."""
    for side in (a, b):
        side.nic.fail()
        side.rings.abandon()
        side.path.reset()
        side.link()
    join(a, b)


def show_all(*sides: RingSide) -> None:
    for side in sides:
        side.nic.show_sends()
        side.nic.show_receives()


def settle(*sides: RingSide, ticks: bool = True) -> None:
    """Carry and take in until nothing moves, woken by events only."""
    for _ in range(10000):
        for side in sides:
            side.run()
        moved = sum(side.nic.carry() for side in sides) + sum(side.nic.late for side in sides)
        show_all(*sides)
        if not moved and not any(side.has_event() for side in sides):
            before = [side.nic.posted_sends for side in sides]
            if ticks:
                for side in sides:
                    side.tick()
            if [side.nic.posted_sends for side in sides] == before:
                return
    raise AssertionError("the two ends never come to rest")


def operation(kind: str, here: RingSide, there: RingSide, **changes: Any) -> Operation:
    """On the first 8 bytes of the memory that both share, unless said otherwise."""
    settings: dict[str, Any] = {
        "segments": [(here.shared_address, 8, SHARED_KEY)],
        "remote_address": there.shared_address,
        "rkey": SHARED_KEY,
    }
    settings |= changes
    return Operation(kind, settings.pop("segments"), **settings)


def alone(**changes: Any) -> RingSide:
    """A side whose peer is the test: what it sends is carried into the void, what it receives is injected."""
    side = RingSide("10.0.0.1", "10.0.0.2", **changes)
    other = RingSide("10.0.0.2", "10.0.0.1", send_slots=4, receive_slots=4096)
    side.nic.connect(other.nic)
    side.void = other  # type: ignore[attr-defined]  # kept alive
    return side


def opened(**changes: Any) -> RingSide:
    """Alone, with its own map sent and the peer's taken in."""
    side = alone(**changes)
    side.kick()
    side.outgoing()
    side.inject(*map_frames(fragment_bytes=side.rings.fragment_bytes))
    assert side.take_in() == [FIRST_HEADER, NEW_MAP]
    side.nic.show_sends()
    return side


def frames_of(
    sequence: int,
    payload: bytes = b"",
    *,
    sport: int = 4000,
    dport: int = 4001,
    flags: int = 0,
    ack: int = 0,
    credit: int = 0,
    extensions: bytes = b"",
    length: int | None = None,
    fragment_bytes: int = FRAGMENT_BYTES,
) -> list[bytes]:
    """A message as fragments; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    header = pack_header(sequence, ack, size, sport, dport, flags, credit, extensions, checksum=True)
    return [header + payload[at : at + fragment_bytes] for at in range(0, max(len(payload), 1), fragment_bytes)]


def map_frames(*ports: int, extensions: bytes = b"", fragment_bytes: int = FRAGMENT_BYTES) -> list[bytes]:
    bits = bytearray(8192)
    for port in ports:
        bits[port >> 3] |= 1 << (port & 7)
    return frames_of(0, bytes(bits), sport=0, dport=0, flags=CONG_BITMAP, extensions=extensions, fragment_bytes=fragment_bytes)


# Frames, or what comes to lie in one, whose checksum says that there is none.
unchecked = st.binary(min_size=48, max_size=60).map(lambda data: data[:30] + b"\0\0" + data[32:])


def ack_frame(ack: int, credit: int = 0) -> bytes:
    return pack_header(0, ack, 0, 0, 0, 0, credit, checksum=True)


__all__ = [name for name in globals() if name[0] != "_"] + ["ACK_REQUIRED", "MIB"]
