"""The rdsx hello: how two rdsx nodes recognise each other without a kernel peer noticing anything.

Every RDS sender begins a connection with its congestion map, and kernels do not look at a map's extension headers. An rdsx node
puts this there, on the first map of each connection only:

    'R' version:1 features:1 reserved:1 generation:4 zero:8          (16 bytes, big-endian)

'R' (0x52) is above 15, so whoever does read the field as extension headers stops at its first byte. A peer whose first header
carries it acknowledges delivery in h_ack, wants the same, and tells a restart by a new generation. Feature 1: it carries out
operations by message (`wire.operation`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Hello", "pack_hello", "parse_hello_untrusted"]

MAGIC = 0x52
VERSION = 1
TAKES_OPERATIONS = 0x01


@dataclass(frozen=True, slots=True)
class Hello:
    """What an rdsx peer says of itself: its generation, a number drawn once in its life, and what it can do."""

    generation: int
    takes_operations: bool


def pack_hello(generation: int) -> bytes:
    """The 16 bytes of extension headers of the first map."""
    return struct.pack(">BBBxI8x", MAGIC, VERSION, TAKES_OPERATIONS, generation)


def parse_hello_untrusted(extensions: bytes) -> Hello | None:
    """The hello in the extension headers of a connection's first map, or None: the peer is a kernel."""
    magic, version, features, generation = struct.unpack_from(">BBBxI", extensions)
    if magic != MAGIC or version < VERSION or not generation:
        return None
    return Hello(generation, bool(features & TAKES_OPERATIONS))
