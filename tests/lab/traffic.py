"""Messages that both ends can make by themselves from a seed: what is sent need not be told to who receives it.

Runs in guests too, under a bare Python: standard library only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

__all__ = ["digest", "digests", "messages"]

PERIOD_BYTES = 4093  # contents repeat, so that captures of them are small; a prime, so that nothing lost or moved goes unseen


def messages(seed: int, count: int, low: int, high: int) -> Iterator[bytes]:
    """`count` messages of `low` to `high` bytes, small ones as frequent as large ones."""
    source = random.Random(seed)
    for _ in range(count):
        size = round((low + 1) * ((high + 1) / (low + 1)) ** source.random()) - 1
        block = source.randbytes(min(size, PERIOD_BYTES))
        yield (block * (size // PERIOD_BYTES + 1))[:size]


def digest(message: bytes) -> str:
    """Length and hash, short enough to print thousands and long enough that no two differ unseen."""
    return f"{len(message)}:{hashlib.blake2b(message, digest_size=8).hexdigest()}"


def digests(seed: int, count: int, low: int, high: int) -> list[str]:
    return [digest(message) for message in messages(seed, count, low, high)]
