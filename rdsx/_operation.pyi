"""The contract of `_operation` as Python sees it."""

from collections.abc import Iterable
from typing import Any, final

from typing_extensions import Buffer

KINDS: tuple[str, ...]

def address_of(memory: Buffer) -> int:
    """Where the bytes of a contiguous buffer are; 0 if there are none. They stay there as long as a memoryview of it exists."""

@final
class Operation:
    """One RDMA operation, to be submitted with a message, right before which it is carried out.

    `status`: -1 pending, then one of struct rds_rdma_notify's: 0 success, 1 remote error, 2 cancelled (never posted), 3 dropped (the
    connection was lost; it may or may not have been carried out, and is not repeated), 4 another error.
    """

    kind: int
    remote_address: int
    rkey: int
    compare_add: int
    swap: int
    fence: bool
    lease: Any
    owner: Any
    submitted: bool
    status: int
    def __init__(
        self,
        kind: str,
        segments: Iterable[tuple[int, int, int]],
        *,
        remote_address: int,
        rkey: int,
        lease: Any = None,
        compare_add: int = 0,
        swap: int = 0,
        fence: bool = False,
    ) -> None:
        """`kind`: one of KINDS. `segments`: (address, bytes, lkey) of registered local memory, at most 8 and 1 MiB in all; for an atomic
        one of 8 bytes, where the old value goes. `lease`: whatever keeps that memory, let go with the outcome. `fence`: the message
        does not overtake a read. ValueError for what no device could do.
        """
