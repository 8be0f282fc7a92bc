"""The rdsx hello: how two rdsx nodes recognise each other without a kernel peer noticing anything.

Every RDS sender begins a connection with its congestion map, and kernels do not look at a map's extension headers. An rdsx node
puts this there, on the first map of each connection only:

    'R' version:1 reserved:2 generation:4 zero:8          (16 bytes, big-endian)

'R' (0x52) is above 15, so whoever does read the field as extension headers stops at its first byte. A peer whose first header
carries it acknowledges delivery in h_ack, wants the same, and tells a restart by a new generation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Hello", "pack_hello", "parse_hello_untrusted"]

MAGIC = 0x52
VERSION = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """What an rdsx peer says of itself: its generation, a number drawn once in its life."""

    generation: int


def pack_hello(generation: int) -> bytes:
    """The 16 bytes of extension headers of the first map."""
    return struct.pack(">BBHI8x", MAGIC, VERSION, 0, generation)


def parse_hello_untrusted(extensions: bytes) -> Hello | None:
    """The hello in the extension headers of a connection's first map, or None: the peer is a kernel."""
    magic, version, _, generation = struct.unpack_from(">BBHI", extensions)
    if magic != MAGIC or version < VERSION or not generation:
        return None
    return Hello(generation)
