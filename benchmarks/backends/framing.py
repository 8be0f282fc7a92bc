"""Messages on a byte stream: a 4-byte length before each. What a programmer writes by hand when there is no library for it."""

from __future__ import annotations

import struct

__all__ = ["READ_BYTES", "FrameParser", "frame"]

PREFIX = struct.Struct("!I")
READ_BYTES = 256 << 10


def frame(payload: bytes) -> bytes:
    return PREFIX.pack(len(payload)) + payload


class FrameParser:
    """Bytes as they come in, whole messages out; holds what is not a whole message yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that are complete with these bytes."""
        buffer = self._buffer
        buffer += chunk
        messages = []
        at, end = 0, len(buffer)
        unpack = PREFIX.unpack_from
        with memoryview(buffer) as view:
            while end - at >= PREFIX.size:
                (length,) = unpack(buffer, at)
                begin = at + PREFIX.size
                if end - begin < length:
                    break
                at = begin + length
                messages.append(bytes(view[begin:at]))
        del buffer[:at]
        return messages
