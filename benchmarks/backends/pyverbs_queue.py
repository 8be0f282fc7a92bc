"""pyverbs' own post and poll, busy polling: what one gets from it without rings in a compiled language.

Guarantee: whole messages, in order, acknowledged by the device; what is under way when the connection breaks is lost. The payload lies in
registered memory from the beginning and stays there: nothing is copied in or out, nobody waits for anything but completions.

Work requests are made once, one send in 16 is signalled, up to 32 completions are taken at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from benchmarks.runtimes import BlockingRuntime
from benchmarks.scenarios import Job
from benchmarks.side import Side as BaseSide

__all__ = ["Side"]

DEVICE, PORT = "rxe0", 1
MOST_BYTES = 16 << 20  # of memory for each direction
MOST_SLOTS = 256
SIGNAL_EVERY = 16
POLL_BATCH = 32
PATIENCE_S = 30.0
GIDS = 16  # where to look for the one of our address
# From infiniband/verbs.h: pyverbs has these in a module whose name differs between its versions.
IBV_QPT_RC, IBV_WR_SEND, IBV_SEND_SIGNALED, IBV_ACCESS_LOCAL_WRITE, IBV_MTU_1024 = 2, 2, 2, 1, 3
MIN_RNR_TIMER, TIMEOUT, RETRIES = 10, 14, 7


class Side(BaseSide):
    runtime = BlockingRuntime()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._slots = 8
        while self._slots < MOST_SLOTS and 2 * self._slots * self.case.size <= MOST_BYTES:
            self._slots *= 2
        self._signal_every = min(SIGNAL_EVERY, self._slots // 4)
        self._host = job.hosts[0 if job.is_left else 1]
        self._sent = self._acknowledged = self._received = 0

    @contextlib.asynccontextmanager
    async def opened(self, ready: Callable[[], None]) -> AsyncIterator[None]:
        with Context(name=DEVICE) as context, PD(context) as pd:
            self._open(context, pd)
            address = (self.job.hosts[1], self.job.port)
            if self.job.is_left:
                with socket.create_connection(address, PATIENCE_S) as there:
                    self._connect(context, there)
                ready()
            else:
                with socket.create_server(address) as listener:
                    listener.settimeout(PATIENCE_S)
                    ready()
                    with listener.accept()[0] as there:
                        self._connect(context, there)
            yield

    def _open(self, context: Any, pd: Any) -> None:
        size, slots = self.case.size, self._slots
        self._memory = mmap.mmap(-1, 2 * slots * size)
        self._memory.write(self.payload * (2 * slots))
        self._region = MR(pd, 2 * slots * size, IBV_ACCESS_LOCAL_WRITE, address=address_of(self._memory))
        first, key = self._region.buf, self._region.lkey
        self._send_queue, self._receive_queue = CQ(context, slots), CQ(context, slots)
        capacity = QPCap(max_send_wr=slots, max_recv_wr=slots)
        self._pair = QP(pd, QPInitAttr(qp_type=IBV_QPT_RC, scq=self._send_queue, rcq=self._receive_queue, cap=capacity, sq_sig_all=0))
        self._receives = [RecvWR(slot, 1, [SGE(first + slot * size, size, key)]) for slot in range(slots)]
        self._sends = [
            SendWR(
                slot,
                opcode=IBV_WR_SEND,
                num_sge=1,
                sg=[SGE(first + (slots + slot) * size, size, key)],
                send_flags=IBV_SEND_SIGNALED if slot % self._signal_every == self._signal_every - 1 else 0,
            )
            for slot in range(slots)
        ]

    def _connect(self, context: Any, there: socket.socket) -> None:
        """Tell each other who we are, and wait until both can receive."""
        gid = mapped(self._host)
        index = next(index for index in range(GIDS) if str(context.query_gid(PORT, index)) == gid)
        attributes = QPAttr(port_num=PORT)
        self._pair.to_init(attributes)
        for receive in self._receives:
            self._pair.post_recv(receive)
        with there.makefile("rw") as lines:
            print(json.dumps([gid, self._pair.qp_num]), file=lines, flush=True)
            other_gid, number = json.loads(lines.readline())
            route = GlobalRoute(dgid=GID(other_gid), sgid_index=index)
            attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=PORT)
            attributes.dest_qp_num, attributes.path_mtu = number, IBV_MTU_1024
            attributes.min_rnr_timer, attributes.timeout = MIN_RNR_TIMER, TIMEOUT
            attributes.retry_cnt = attributes.rnr_retry = RETRIES
            self._pair.to_rts(attributes)
            print("ready", file=lines, flush=True)
            lines.readline()

    def _post(self) -> None:
        """Send one message, as soon as there is a slot for it."""
        while self._sent - self._acknowledged == self._slots:
            count, completions = self._send_queue.poll(POLL_BATCH)
            for completion in completions:
                check(completion)
            self._acknowledged += count * self._signal_every
        self._pair.post_send(self._sends[self._sent % self._slots])
        self._sent += 1

    def _take(self, limit: int) -> tuple[int, int]:
        """Messages that have arrived, `limit` at most, and their bytes. Waits for none."""
        count, completions = self._receive_queue.poll(min(limit, POLL_BATCH))
        total = 0
        for completion in completions:
            check(completion)
            total += completion.byte_len
            self._pair.post_recv(self._receives[completion.wr_id])
        return count, total

    async def send(self, count: int) -> None:
        for _ in range(count):
            self._post()

    async def receive(self, count: int) -> None:
        while self.messages < count:
            arrived, total = self._take(count - self.messages)
            self.messages += arrived
            self.bytes += total

    async def ping(self, count: int) -> None:
        for _ in range(count):
            asked_ns = time.perf_counter_ns()
            self._post()
            self.bytes += self._wait()
            self.round_trips_ns.append(time.perf_counter_ns() - asked_ns)
        self.messages += count

    async def echo(self, count: int) -> None:
        for _ in range(count):
            self._wait()
            self._post()

    def _wait(self) -> int:
        """The bytes of the next message."""
        arrived = 0
        while not arrived:
            arrived, total = self._take(1)
        return total


def check(completion: Any) -> None:
    if completion.status:
        raise OSError(f"a work request completed with status {completion.status}")


def mapped(host: str) -> str:
    """The GID of an IPv4 address, as pyverbs writes it."""
    digits = bytes(map(int, host.split("."))).hex()
    return f"0000:0000:0000:0000:0000:ffff:{digits[:4]}:{digits[4:]}"


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
