"""The contract of `_stream` as Python sees it."""

from typing import final

from typing_extensions import Buffer

from rdsx._fast import Path

@final
class StreamWriter:
    """Messages of a path as buffers for one stream. One writer for one link's life."""

    position: int
    def __init__(self, path: Path) -> None: ...
    def poll(self, max_bytes: int = 262144) -> list[Buffer] | None:
        """What to write next, or None. The buffers are valid until written(), which must follow before the path is
        touched in any other way: no await in between."""
    def written(self, count: int) -> None:
        """`count` bytes of the last poll() went out."""
    @property
    def idle(self) -> bool:
        """Nothing is to be written, and nothing is half written."""

@final
class StreamReader:
    """Bytes of one stream as messages on a path. One reader for one link's life."""

    position: int
    heard: bool
    extensions: bytes
    ack: int
    sport: int
    dport: int
    freed: int
    def __init__(self, path: Path) -> None: ...
    def buffers(self) -> list[memoryview]:
        """Where to read into: one or two writable buffers, valid until received().

        They are the node's scratch memory: no await between this and the parse() that returns 0.
        """
    def received(self, count: int) -> None:
        """`count` bytes were read. Call parse() until it returns 0."""
    def feed(self, data: Buffer) -> int:
        """Copy bytes in as a read would; returns how many were taken. Then call parse()."""
    def parse(self) -> int:
        """Take in messages: 0 all used up, 1 first header seen (not acted on), 2 probe taken in, 3 the peer's map changed.

        After 1 and 2 `extensions`, `ack`, `sport` and `dport` are those of that header; after 3 `freed` is the mask of freed ports.
        Raises WireError when the stream cannot be trusted any more.
        """
