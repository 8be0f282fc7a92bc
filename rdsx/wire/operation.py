"""One-sided operations by message: how rdsx nodes read and write each other's memory where no device does it.

An operation is a numbered message right before the one that it belongs to, from and to the same ports; its answer is a numbered message
with both ports 0. What is asked is in the extension headers, which are full:

    'O' kind:1 status:1 zero:1 token:4 rkey:4 offset:4       (16 bytes, big-endian)

'O' (0x4F) is above 15, so whoever reads the field as extension headers stops at its first byte. The token is the asker's, and comes back
in the answer. Only a peer whose hello says that it takes operations is sent any.

| kind | payload of the request | payload of the answer |
|---|---|---|
| 1 read | length:4 | the bytes |
| 2 write | the bytes | none |
| 3 masked compare-and-swap | compare:8 swap:8 compare_mask:8 swap_mask:8 | old:8 |
| 4 masked fetch-and-add | add:8 nocarry_mask:8 | old:8 |

An answer has 0x80 added to its kind, and the status of struct rds_rdma_notify; it has no payload unless that is 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rdsx.errors import WireError

__all__ = ["COMPARE_AND_SWAP", "FETCH_AND_ADD", "READ", "WRITE", "Answer", "Request", "parse_operation_untrusted"]

READ, WRITE, COMPARE_AND_SWAP, FETCH_AND_ADD = 1, 2, 3, 4
ANSWERED = 0x80
MAGIC = 0x4F
LAYOUT = struct.Struct(">BBBxIII")
OPERANDS = {READ: struct.Struct(">I"), COMPARE_AND_SWAP: struct.Struct(">QQQQ"), FETCH_AND_ADD: struct.Struct(">QQ")}


@dataclass(frozen=True, slots=True)
class Request:
    """An operation on the receiver's memory. `offset` counts as a cookie's does: from the start of the page that the memory begins in.

    `operands`: READ: how many bytes. Masked compare-and-swap: compare, swap, and the masks of each. Masked fetch-and-add: what to add,
    and the mask of bits that carry nothing. `data`: the bytes to write; None from a peer whose bytes were too many to keep.
    """

    kind: int
    token: int
    rkey: int
    offset: int
    operands: tuple[int, ...] = ()
    data: bytes | None = b""

    def pack(self) -> tuple[bytes, bytes]:
        """(extension headers, payload) of the message."""
        extensions = LAYOUT.pack(MAGIC, self.kind, 0, self.token, self.rkey, self.offset)
        return extensions, (self.data or b"") if self.kind == WRITE else OPERANDS[self.kind].pack(*self.operands)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: a status as in struct rds_rdma_notify, and the bytes read or the old value (8 bytes, big-endian)."""

    kind: int
    token: int
    status: int
    data: bytes = b""

    def pack(self) -> tuple[bytes, bytes]:
        """(extension headers, payload) of the message."""
        return LAYOUT.pack(MAGIC, self.kind | ANSWERED, self.status, self.token, 0, 0), self.data


def parse_operation_untrusted(extensions: bytes, payload: bytes | None) -> Request | Answer:
    """What such a message says. `payload` None: it was too long to keep. WireError if it makes no sense."""
    magic, kind, status, token, rkey, offset = LAYOUT.unpack(extensions)
    if magic != MAGIC:
        raise WireError("bad_operation", f"extension headers {extensions.hex()} are no operation")
    if kind & ANSWERED:
        return Answer(kind & ~ANSWERED, token, status, b"" if payload is None else payload)
    if kind == WRITE:
        return Request(kind, token, rkey, offset, data=payload)
    layout = OPERANDS.get(kind)
    if layout is None or payload is None or len(payload) != layout.size:
        raise WireError("bad_operation", f"an operation of kind {kind} with {'too many' if payload is None else len(payload)} bytes")
    return Request(kind, token, rkey, offset, layout.unpack(payload))
