"""The contract of `_rings` as Python sees it. Absent where rdsx was built without the headers of rdma-core."""

from typing import final

from rdsx._fast import Path, Ring

class Nic:
    """A device as the rings see it: six functions, a queue pair, its two completion queues and their channel. Made by verbs_nic()."""

def verbs_nic(qp: int, send_cq: int, recv_cq: int, channel: int, get_cq_event: int, ack_cq_events: int) -> Nic:
    """A real device, given the addresses of an ibv_qp, its two ibv_cq (not the same one), their ibv_comp_channel, which must not block,
    and libibverbs' ibv_get_cq_event and ibv_ack_cq_events.

    The caller keeps all of them until no Rings with this Nic is used any more. ValueError for addresses that do not belong together;
    others than what they are said to be crash.
    """

PACKED_SLOTS: int
"""So many slots of a ring make one where frames are packed."""
MIN_PACKED_SLOTS: int
"""So many a ring must have for that."""

def ring_bytes(send_slots: int, receive_slots: int) -> int:
    """How much registered memory rings of these sizes need: 4,160 bytes a slot."""

@final
class Credits:
    """Flow control in both directions: one credit is one posted receive, which one frame uses up."""

    available: int
    unadvertised: int
    granted: int
    owed: int
    threshold: int
    def __init__(self, receive_slots: int, available: int = 0, owed: int = 0) -> None:
        """`owed`: frames sent before the peer granted any, which took receives of its."""
    def sendable(self) -> int:
        """Frames that may be sent now. The last credit counts only if there is something to grant with it."""
    def advertise(self) -> int:
        """What the next frame grants, at most 255; it is granted by this call."""
    def spend(self, frames: int) -> bool:
        """So many frames are sent; False, and nothing happens, if there are not so many credits."""
    def posted(self, receives: int) -> None:
        """So many receives more are posted."""
    def heard(self, credit: int) -> bool:
        """The peer grants more; False, and nothing happens, if that makes more than anybody can count."""
    def received(self) -> bool:
        """A frame came; False if the peer had no credit for it."""
    def is_update_due(self) -> bool:
        """There is enough to grant for a frame of its own."""
    def grant_all(self) -> int:
        """The connection's private data grants what is posted; returns how much the peer has then."""

@final
class Rings:
    """Both rings of one queue pair, for one link's life."""

    path: Path
    nic: Nic
    send_ring: Ring
    receive_ring: Ring
    credits: Credits | None
    offered: bool
    solicited_only: bool
    fragment_bytes: int
    acking: bool
    blocked: bool
    starved: bool
    heard: bool
    extensions: bytes
    ack: int
    freed: int
    broken: bool
    reason: str | None
    detail: str | None
    def __init__(
        self,
        path: Path,
        nic: Nic,
        *,
        memory: int,
        memory_bytes: int,
        lkey: int,
        send_slots: int = 256,
        receive_slots: int = 1024,
        max_inline_bytes: int = 0,
        packed: bool = False,
    ) -> None:
        """`memory`: address of at least ring_bytes() bytes, registered for local writing under `lkey`; the caller keeps them until the
        queue pair is gone. The numbers of slots are powers of two, 4 to 32,768, and at most what the queue pair was made with;
        `max_inline_bytes` likewise. `packed`: both ends said that they take packed frames, of 16,384 bytes, header included, with as many
        whole messages as fit, one behind the other; each takes four slots, so there are at least 16. ValueError for anything else.
        """
    @property
    def in_flight(self) -> int:
        """Frames posted and not known to have arrived. Up to 15 of them may have: one frame in 16 is signalled."""
    @property
    def idle(self) -> bool:
        """Nothing is to be sent, or nothing may be before the peer has spoken."""
    def post_receives(self) -> int:
        """Post every free receive slot in one list; returns how many. Once before the connection is made: poll() does it from then on."""
    def offer_credits(self) -> int:
        """What is posted is announced to the peer as the connection is made; returns how many receives of 4 KiB that are. Credits are
        counted if it announces some, too: use_credits(); or if its first frame grants some."""
    def use_credits(self, available: int) -> None:
        """Both ends announced credits: `available`, at least 1, is the peer's announcement, in receives of 4 KiB, so a quarter of it counts
        where frames are packed, and no more than 65,535; ours is what is posted. Before the first frame."""
    def transmit(self) -> int:
        """Post what the path has to send, as far as there are slots and credits, with one doorbell; returns how many work requests.

        Our map first if one is due, then messages, resends before new ones, each behind its operation if it has one; small ones share a
        frame where frames are packed. A pure acknowledgement if one is due and nothing else goes. Afterwards `blocked` says whether
        something is left that waits for completions, and `starved` whether for credits.
        """
    def flush(self) -> None:
        """See to it that in_flight falls to 0 once everything posted has arrived: posts an acknowledgement, which is always signalled."""
    def abandon(self) -> None:
        """The queue pair is gone: operations that were posted and have no outcome are dropped, and their leases given back."""
    def poll(self) -> int:
        """Take in up to 32 completions of each direction, and post receives again from a quarter of free slots on.

        0 there was none. 1 the first header on this link is seen, and not yet acted on: `extensions` and `ack` are its fields. 2 some
        were taken in. 3 the peer's map changed, `freed` is the mask of freed ports. 4 broken: `reason` and `detail` say why; the
        path is to be reset. Call again until it returns 0 or 4. Raises nothing for what a peer or a device does, but MemoryError.
        """
    def arm(self) -> None:
        """Ask for an event at the next completion. Poll until empty once more before waiting: one may have come before."""
    def take_events(self) -> int:
        """Take all events off the completion channel, without waiting, and acknowledge them; returns how many."""
