"""The multipath probe: an empty message between ports 0 and 1 whose extension headers say how many paths its sender has.

Wire (extension headers, big-endian): `05 paths:2`, then optionally `06 generation:4`, then whatever newer kernels add. Extensions
that a peer may not know go last, because a kernel reads the data of an unknown one as further types.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rdsx._fast import unpack_extensions

__all__ = ["Probe", "pack_probe", "parse_probe_untrusted"]

NPATHS = 5
GEN_NUM = 6


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe announced; None for what it did not carry."""

    paths: int | None
    generation: int | None


def pack_probe(*, paths: int, generation: int | None = None) -> bytes:
    """The 16 bytes of extension headers of a probe of ours."""
    packed = struct.pack(">BH", NPATHS, paths)
    if generation is not None:
        packed += struct.pack(">BI", GEN_NUM, generation)
    return packed.ljust(16, b"\0")


def parse_probe_untrusted(extensions: bytes) -> Probe:
    """Read a peer's probe; any 16 bytes are a probe of some kind. A generation of 0 means none."""
    paths = generation = None
    for kind, data in unpack_extensions(extensions):
        if kind == NPATHS:
            (paths,) = struct.unpack(">H", data)
        elif kind == GEN_NUM:
            generation = struct.unpack(">I", data)[0] or None
    return Probe(paths, generation)
