"""One-sided operations of one node: registers memory, starts operations, tells their outcome, and carries out those of peers.

Who carries an operation out depends on the path: a device (verbs), nobody but ourselves (loopback), or the peer's own `OneSided`, asked by
message (streams between rdsx nodes). Invariants: an operation has one outcome, and its local memory is leased and registered until
then; on a lost connection all that are under way are dropped.
"""

from __future__ import annotations

import errno
from itertools import count
from typing import TYPE_CHECKING, Any

from rdsx._fast import Path
from rdsx._operation import Operation
from rdsx.addresses import SockAddr
from rdsx.errors import UnsupportedError, WireError
from rdsx.lot import Lot
from rdsx.memory import ALL_BITS, ATOMIC, PAGE_BYTES, DmaBuf, Lease, Region, Regions, Registration
from rdsx.operations import RdmaOperation, RdmaOutcome
from rdsx.wire.operation import COMPARE_AND_SWAP, FETCH_AND_ADD, READ, WRITE, Answer, Request, parse_operation_untrusted

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.driver import Driver
    from rdsx.engine_socket import EngineSocket

__all__ = ["OneSided", "Task"]

KINDS = {"read": READ, "write": WRITE, "compare_and_swap": COMPARE_AND_SWAP, "fetch_and_add": FETCH_AND_ADD}
MAX_PENDING = 16  # operations by message to one peer: devices, too, carry out about as many at a time


class Keys:
    """The registration of memory that only this process touches: a number, and nothing behind it."""

    lkey = 0

    def __init__(self, rkey: int, start: int) -> None:
        self.rkey = rkey
        self.start = start

    def close(self) -> None: ...


class Task:
    """One operation on its way: what was asked for, the local memory that it works on, and the handle that its caller has.

    `operands`: of an atomic, as `wire.operation.Request` has them.
    """

    def __init__(
        self, sock: EngineSocket, handle: RdmaOperation, lease: Lease, offset: int, operands: tuple[int, ...] = (), *, fence: bool = False
    ) -> None:
        self.sock = sock
        self.handle = handle
        self.kind = KINDS[handle.kind]
        self.lease = lease
        self.rkey = handle.cookie & 0xFFFFFFFF
        self.remote = (handle.cookie >> 32) + offset  # as Registration.start counts
        self.operands = operands
        self.fence = fence
        self.token = 0  # by which the peer's answer finds it
        self.path: Path | None = None  # on which it was asked for
        self.operation: Operation | None = None  # what the hot path knows of it
        self.registration: Registration | None = None  # of the local memory, for this operation alone

    @property
    def masked(self) -> bool:
        """Whether it is an atomic on some bits only."""
        return self.operands[2:] not in ((), (ALL_BITS, ALL_BITS)) or (self.kind == FETCH_AND_ADD and self.operands[1] != 0)

    def request(self) -> Request:
        """It, as a message."""
        operands = (self.lease.length,) if self.kind == READ else self.operands
        return Request(self.kind, self.token, self.rkey, self.remote, operands, bytes(self.lease.view) if self.kind == WRITE else b"")

    def prepare(self, address: int, lkey: int) -> Operation:
        """It, for the hot path, with its local memory as its device knows it. ValueError for what no device could do."""
        compare_add, swap = (*self.operands, 0, 0)[:2]
        self.operation = Operation(
            self.handle.kind,
            [(address, self.lease.length, lkey)],
            remote_address=self.remote,
            rkey=self.rkey,
            lease=self.lease,
            compare_add=compare_add,
            swap=swap if self.kind == COMPARE_AND_SWAP else 0,
            fence=self.fence,
        )
        self.operation.owner = self
        return self.operation

    def take(self, answer: Answer) -> int:
        """What the peer, or we ourselves, did: put what was read in its place; returns the outcome."""
        if answer.status != RdmaOutcome.SUCCESS:
            return answer.status if answer.status == RdmaOutcome.REMOTE_ERROR else RdmaOutcome.OTHER_ERROR
        if len(answer.data) != (0 if self.kind == WRITE else self.lease.length):
            return RdmaOutcome.OTHER_ERROR
        if self.kind == READ:
            self.lease.view[:] = answer.data
        elif self.kind != WRITE:
            self.lease.view[:] = ATOMIC.pack(int.from_bytes(answer.data, "big"))
        return RdmaOutcome.SUCCESS

    def conclude(self, status: int) -> None:
        """Tell its caller, and let the memory go."""
        try:
            self._deregister()
        finally:  # whatever a device says to that
            self.handle._conclude(status, self.lease)

    def let_go(self) -> None:
        """It was not queued: let the memory go."""
        self._deregister()
        self.lease.release()

    def _deregister(self) -> None:
        if self.registration is not None:
            self.registration.close()
            self.registration = None


class OneSided:
    """See above. Part of a `Driver`; that of a transport with devices overrides what registers memory."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.regions = Regions(driver.config.idle_registration_bytes)
        self._pending: dict[Path, dict[int, Task]] = {}  # asked for by message, and not answered
        self._room = Lot()
        self._tokens = count(1)
        driver.core.operate = self._take_in

    # -- memory for peers

    async def get_mr(self, sock: EngineSocket, buffer: Buffer | DmaBuf, destination: SockAddr | None, *, use_once: bool) -> int:
        """See RdsSocket.get_mr()."""
        place = await self._place(sock, destination)
        sock._check_bound()
        lease = self._lease(buffer)
        try:
            if not 0 < lease.length < 2**32:
                raise OSError(errno.EINVAL, f"memory of {lease.length} bytes: 1 to 2**32 - 1 can be registered at once")
            region = self.regions.reuse(lease, place=place, owner=sock, use_once=use_once)
            if region is not None:
                lease.release()
                return region.cookie
            region = Region(lease, await self._register(place, lease, buffer), place=place, owner=sock, use_once=use_once)
        except BaseException:
            lease.release()
            raise
        self.regions.add(region)
        if sock._closed:
            self.regions.free(region, invalidate=True)
            sock._check_open()
        return region.cookie

    def free_mr(self, sock: EngineSocket, cookie: int, *, invalidate: bool) -> None:
        """See RdsSocket.free_mr()."""
        self.regions.free(self.regions.find(sock, cookie), invalidate=invalidate)

    async def _place(self, sock: EngineSocket, destination: SockAddr | None) -> Any:
        """Who is to reach memory that is registered for this destination: nobody but this process."""
        return None

    def _lease(self, buffer: Buffer | DmaBuf) -> Lease:
        return Lease.for_peers(buffer)

    async def _register(self, place: Any, lease: Lease, buffer: Buffer | DmaBuf) -> Registration:
        """Make memory known there, under a key that peers can use."""
        while True:
            rkey = self._driver.draw(2**32)
            if rkey and rkey not in self.regions:
                return Keys(rkey, lease.address % PAGE_BYTES)

    # -- operations of ours

    async def carry_out(self, task: Task, message: Buffer, address: SockAddr) -> None:
        """Give the operation, and the message behind it, to whoever carries it out. Waits as sendto() does, and for the peer to be there.
        Raised or cancelled: nothing was queued."""
        try:
            while True:
                path, port = await task.sock._path_to(address)
                if not path.local:
                    await self._wait_heard(path)
                if len(self._pending.get(path, ())) >= MAX_PENDING:
                    await self._room.park()
                    task.sock._check_open()
                    continue
                code = self._submit(task, message, path, port)
                self._driver.attend()
                if not code:
                    return
                await task.sock._wait_after(code, message, path, port, address)
        except BaseException:
            task.let_go()
            raise

    async def _wait_heard(self, path: Path) -> None:
        """Until there is a link on which the peer has spoken, so that it is known what it can do. UnsupportedError if it takes none."""
        supervisor = path.supervisor
        connection = supervisor.connection
        with self._driver.awaiting(path):
            while not connection.heard or supervisor.link is None:
                supervisor.kick()
                await self._driver.heard.park()
                if path.forgotten:
                    raise OSError(errno.ENOTCONN, f"the node was closed before {path.host} could be reached")
        if not path.header_acks and not connection.takes_operations:
            what = "a Linux kernel" if connection.kind == "kernel" else "an rdsx node of an earlier version"
            remedy = f"takes no RDMA operations over {self._driver.transport_name!r}: use 'verbs', or send messages"
            raise UnsupportedError(f"{path.host} is {what}, which {remedy}")

    def _submit(self, task: Task, message: Buffer, path: Path, port: int) -> int:
        """Start it, or a code of Endpoint.submit() that says why not now."""
        if path.local:
            return self._do_here(task, message, path, port)
        if path.header_acks:
            return task.sock._endpoint.submit_operation(message, path, port, task.prepare(*self._local(task, path)))
        task.token = next(self._tokens) & 0xFFFFFFFF
        code = task.sock._endpoint.submit_operation(message, path, port, task.prepare(task.lease.address, 0), task.request().pack())
        if not code:
            task.path = path
            self._pending.setdefault(path, {})[task.token] = task
        return code

    def _do_here(self, task: Task, message: Buffer, path: Path, port: int) -> int:
        """Loopback: at once, if the message behind it can be sent."""
        task.prepare(task.lease.address, 0)
        endpoint = task.sock._endpoint
        code = endpoint.check(memoryview(message).nbytes, path, port)
        if not code:
            status = task.take(self.regions.execute(task.request()))
            if status == RdmaOutcome.SUCCESS:
                self.regions.used(task.rkey)
                endpoint.submit_to(message, path, port)
            self._driver.core.count("send_rdma")
            task.conclude(status)
        return code

    def _local(self, task: Task, path: Path) -> tuple[int, int]:
        """(address, lkey) of the operation's local memory for the device of this path."""
        raise NotImplementedError(f"transport {self._driver.transport_name!r} has no devices")

    # -- what the hot path noted

    def attend(self) -> None:
        """Free what peers are done with, and tell whom an outcome concerns."""
        core = self._driver.core
        for rkey in core.take_used():
            self.regions.used(rkey)
        for operation in core.take_finished():
            self._conclude(operation.owner, operation.status)

    def _take_in(self, path: Path, extensions: bytes, payload: bytes | None) -> bool:
        """See Core.operate. What no peer has any reason to send is ignored."""
        if path.supervisor is None or path.header_acks or not path.supervisor.connection.takes_operations:
            return False
        found = parse_operation_untrusted(extensions, payload)
        if isinstance(found, Answer):
            task = self._pending.get(path, {}).get(found.token)
            if task is not None and task.operation is not None:
                self._driver.core.conclude(task.operation, task.take(found))
            return True
        answer = self.regions.execute(found)
        headers, data = answer.pack()
        if not path.push_answer(data, headers):
            raise WireError("operation_overrun", "more operations asked for than answers were acknowledged")
        return answer.status == RdmaOutcome.SUCCESS

    def _conclude(self, task: Task, status: int) -> None:
        if task.path is not None:
            self._pending[task.path].pop(task.token, None)
            if not self._pending[task.path]:
                del self._pending[task.path]
            self._room.unpark_all()
        task.conclude(status)

    # -- endings

    def link_ended(self, path: Path) -> None:
        """What was asked for on it may have been done or not: nobody will know."""
        self._give_up([*self._pending.get(path, {}).values()], RdmaOutcome.DROPPED)

    def forget_socket(self, sock: EngineSocket) -> None:
        """It was closed: with it goes what it had registered and asked for."""
        self._give_up([task for tasks in self._pending.values() for task in tasks.values() if task.sock is sock], RdmaOutcome.CANCELED)
        self.regions.free_if(lambda region: region.owner is sock)

    def close(self) -> None:
        """The node closes."""
        self._give_up([task for tasks in self._pending.values() for task in tasks.values()], RdmaOutcome.CANCELED)
        self.regions.free_if(lambda region: True)

    def _give_up(self, tasks: list[Task], status: int) -> None:
        for task in tasks:
            if task.operation is not None:
                self._driver.core.conclude(task.operation, status)
        self.attend()
