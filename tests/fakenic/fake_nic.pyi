"""The contract of `fake_nic` as Python sees it. For tests and benchmarks; see `fakenic` for when there is one."""

from typing import final

from typing_extensions import Buffer

from rdsx._rings import Nic

@final
class CompletionQueue:
    """One queue of a FakeNic."""

    def __init__(self, depth: int, fd: int) -> None: ...

@final
class FakeNic(Nic):
    """A queue pair of a made-up device, with two completion queues and a channel. `automatic`: frames are carried, and completions seen, at
    once. Frames of one queue pair stay in order; those of several are carried as the test likes."""

    fd: int
    automatic: bool
    failed: bool
    trampled: int
    doorbells: int
    starved: int
    def __init__(
        self,
        *,
        memory: int,
        memory_bytes: int,
        lkey: int = 77,
        send_depth: int = 256,
        receive_depth: int = 1024,
        max_inline_bytes: int = 0,
        automatic: bool = False,
        sink: bool = False,
    ) -> None:
        """`memory`: what is registered under `lkey`; the caller keeps it. `sink`: without a peer, frames arrive nowhere, and well.

        ValueError for depths that are no powers of two.
        """
    def register(self, address: int, length: int, key: int, *, remote: bool = False) -> None:
        """More memory under a key, its lkey; with `remote` its rkey, too. The caller keeps it."""
    def connect(self, peer: FakeNic) -> None:
        """Join two queue pairs."""
    def carry(self, limit: int = 4294967295) -> int:
        """Carry up to `limit` posted frames into receives of the peer; returns how many. Their completions are late."""
    def show_sends(self, limit: int = 4294967295) -> int:
        """Let up to `limit` late completions of sends be seen; returns how many."""
    def show_receives(self, limit: int = 4294967295) -> int:
        """Let up to `limit` late completions of receives be seen; returns how many."""
    def fail_next(self, status: int) -> None:
        """The next frame carried fails with this ibv_wc_status, and the queue pair with it."""
    def refuse_posts(self, count: int) -> None:
        """The next `count` lists of work requests are refused with EINVAL."""
    def fail(self) -> None:
        """The queue pair goes into error: everything posted is flushed, and what is posted later, too."""
    def inject(self, frame: Buffer, solicited: bool = True) -> bool:
        """A frame arrives that no Rings has made; False if no receive is posted."""
    def next_frame(self) -> tuple[bytes, int] | None:
        """The oldest frame not yet carried and the flags of its work request, or None."""
    @property
    def posted_sends(self) -> int:
        """Frames not yet carried."""
    @property
    def posted_receives(self) -> int: ...
    @property
    def late(self) -> int:
        """Completions that cannot be seen yet."""
    @property
    def overrun(self) -> bool:
        """A completion queue had no room for a completion."""
    @property
    def unacknowledged_events(self) -> int: ...
