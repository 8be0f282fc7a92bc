"""What the programs of `verbs_cm.py` and `verbs_kernel_cm.py` share: a node's connection manager, and messages through pyverbs' slow calls.

They run in a guest. A program is a list of cases; each prints one JSON line with its outcome, and a test outside of the guest looks at
that.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from pyverbs.mr import MR
from pyverbs.wr import SGE, RecvWR, SendWR

from rdsx.transports.verbs.cm import ConnectionManager, Offer
from rdsx.transports.verbs.device import QueuePair, QueueSizes, keep_over_fork
from rdsx.wire.cm_data import CmData

__all__ = ["Mailbox", "Peer", "fails", "kernel_objects", "open_peer", "run_cases"]

GUARD_S = 60.0
FRAME_BYTES = 48 + 4096
SLOTS = 16
SIZES = QueueSizes(send_wr=SLOTS, recv_wr=SLOTS, inline_bytes=48)
LOCAL_WRITE = 1
SIGNALED, SOLICITED = 2, 4  # a kernel takes no notice of a message that is not solicited


@contextlib.contextmanager
def fails(*numbers: int, naming: str = "") -> Iterator[None]:
    """The block raises OSError with one of these errnos, and its text names this."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value
    assert naming in str(caught.value)


class Mailbox:
    """Receives that are posted as a queue pair gets ready, and sends one at a time. A `cm.Receiver`."""

    def __init__(self) -> None:
        self.pair: QueuePair | None = None
        self.memory: Any = None

    def offer(self, pair: QueuePair) -> Offer:
        self.pair = pair
        self.memory = keep_over_fork(MR(pair.device.pd, (SLOTS + 1) * FRAME_BYTES, LOCAL_WRITE))
        return Offer()

    def post(self, peer: CmData) -> None:
        for slot in range(SLOTS):
            self._post(slot)

    def close(self) -> None:
        if self.memory is not None:
            self.memory.close()

    async def send(self, data: bytes) -> None:
        assert self.pair is not None
        self.memory.write(data, len(data), SLOTS * FRAME_BYTES)
        entry = SGE(self.memory.buf + SLOTS * FRAME_BYTES, len(data), self.memory.lkey)
        self.pair.qp.post_send(SendWR(wr_id=1, num_sge=1, sg=[entry], send_flags=SIGNALED | SOLICITED))
        await self._completion(self.pair.qp_queues[0])

    async def receive(self) -> bytes:
        assert self.pair is not None
        completion = await self._completion(self.pair.qp_queues[1])
        slot = int(completion.wr_id)
        data: bytes = self.memory.read(int(completion.byte_len), slot * FRAME_BYTES)
        self._post(slot)
        return data

    def _post(self, slot: int) -> None:
        assert self.pair is not None
        entry = SGE(self.memory.buf + slot * FRAME_BYTES, FRAME_BYTES, self.memory.lkey)
        self.pair.qp.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[entry]))

    async def _completion(self, queue: Any) -> Any:
        while True:
            count, found = queue.poll(1)
            if count:
                if found[0].status != 0:
                    raise OSError(f"completion with status {found[0].status}")
                return found[0]
            await trio.sleep(0.001)


class Peer:
    """A connection manager that notes what it refused and what happened to ports."""

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.port_events: list[tuple[int, int]] = []
        self.manager = ConnectionManager(
            SIZES,
            refused=lambda reason, text: self.refusals.append(reason),
            port_changed=lambda kind, port: self.port_events.append((kind, port)),
        )


@contextlib.asynccontextmanager
async def open_peer() -> AsyncIterator[Peer]:
    peer = Peer()
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.manager.run)
        yield peer
        nursery.cancel_scope.cancel()


def kernel_objects() -> dict[str, int]:
    """How many verbs objects the kernel has, of each kind, and how many files this process has open."""
    done = subprocess.run(["rdma", "-j", "resource"], capture_output=True, text=True, check=True)
    (device,) = json.loads(done.stdout)
    return {name: device[name] for name in ("pd", "cq", "qp", "cm_id", "mr")} | {"files": len(os.listdir("/proc/self/fd"))}


Case = Callable[[], Awaitable[None]]


def run_cases(cases: list[Case], names: list[str]) -> None:
    """Run them one after another, each in a trio of its own; all, or those with these names."""
    for case in cases:
        name = getattr(case, "__name__", "?")
        if names and name not in names:
            continue
        began_s = time.monotonic()
        try:
            trio.run(guarded, case)
            text = ""
        except BaseException:
            text = traceback.format_exc()
        print(json.dumps({"case": name, "failure": text, "seconds": round(time.monotonic() - began_s, 2)}), flush=True)


async def guarded(case: Case) -> None:
    with trio.fail_after(GUARD_S):
        await case()
