"""An RDMA device that is open, and queue pairs on it. Owns the pyverbs objects of both; the rings get numbers.

pyverbs raises errors of its own; they leave here as OSError with the errno. Nothing is kept of an object that was closed, and nothing is
closed in a forked child, where closing would destroy the parent's objects. Invariant: a device outlives its queue pairs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import trio

from rdsx import _bridge

__all__ = [
    "IBV_ACCESS_LOCAL_WRITE",
    "DeviceLimits",
    "DeviceMemory",
    "OpenDevice",
    "Owned",
    "QueuePair",
    "QueueSizes",
    "keep_over_fork",
    "translated",
]

# From infiniband/verbs.h. pyverbs has them too, in a module whose name and shape differ between its versions.
IBV_QPT_RC = 2
IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR = 1, 2, 3, 6
IBV_QP_STATE, IBV_QP_ACCESS_FLAGS, IBV_QP_MIN_RNR_TIMER = 1 << 0, 1 << 3, 1 << 15
IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_REMOTE_ATOMIC = 1, 2, 4, 8
IBV_ACCESS_ALL = 0b1111
IBV_EVENT_COMM_EST, IBV_EVENT_DEVICE_FATAL = 4, 8

MIN_RNR_TIMER = 10  # 0.32 ms, as rds_rdma; the CM's own 0 means 655 ms for each time that our receive ring runs dry
MAX_DEPTH = 255  # the CM's fields for the depths have 8 bits

LOCKED_MEMORY = "; raise the limit of locked memory: 'ulimit -l', see 'rdsx doctor'"

PortHandler = Callable[[int, int], None]


class Keeper:
    """Who must survive a fork unharmed. The one module-level thing here, because fork() asks no node."""

    def __init__(self) -> None:
        self.wrappers: weakref.WeakSet[Any] = weakref.WeakSet()
        os.register_at_fork(after_in_child=self._leak)

    def _leak(self) -> None:
        """A reference that nobody gives back: in the child pyverbs' destructors, which would destroy the parent's objects, never run."""
        for wrapper in list(self.wrappers):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(wrapper))


KEEPER = Keeper()


def keep_over_fork(wrapper: Any) -> Any:
    """Mark an object of pyverbs as one that a forked child must not close; returns it."""
    KEEPER.wrappers.add(wrapper)
    return wrapper


class Owned:
    """What holds objects of pyverbs. `is_ours` is False in a child that was forked later: there it must not be touched, nor closed."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_ours(self) -> bool:
        return self._pid == os.getpid()


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of pyverbs as OSError, with the remedy where there is one."""
    from pyverbs.pyverbs_error import PyverbsError

    try:
        yield
    except PyverbsError as error:
        number = getattr(error, "error_code", -1)
        if number <= 0:  # pyverbs has none
            number = errno.EIO
        remedy = LOCKED_MEMORY if number == errno.ENOMEM else ""
        raise OSError(number, f"{what}: {os.strerror(number)}{remedy}") from error


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of the bridge, with the same remedies."""
    try:
        yield
    except _bridge.Unsupported as error:
        raise OSError(errno.EOPNOTSUPP, f"{what}: {error}") from error
    except OSError as error:
        number = error.errno or errno.EIO
        raise OSError(number, f"{what}: {os.strerror(number)}{LOCKED_MEMORY if number == errno.ENOMEM else ''}") from error


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What a device can do; counts are work requests, entries or operations in flight."""

    max_qp_wr: int
    max_sge: int
    max_cqe: int
    responder_resources: int
    initiator_depth: int
    atomics: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSizes:
    """How large the queues of a connection are to be, in work requests. `inline_bytes`: 0, or what a device may give less of."""

    send_wr: int
    recv_wr: int
    send_sge: int = 2
    recv_sge: int = 2
    inline_bytes: int = 0

    def within(self, limits: DeviceLimits) -> QueueSizes:
        """No more than the device has, and powers of two again. A completion queue has one entry more than its work queue."""
        most = min(limits.max_qp_wr, limits.max_cqe - 1)
        power = 1 << (most.bit_length() - 1)
        return replace(self, send_wr=min(self.send_wr, power), recv_wr=min(self.recv_wr, power))


@dataclass(frozen=True, slots=True)
class PairAddress:
    """Both ends of a queue pair on the fabric."""

    local_gid: str = "::"
    peer_gid: str = "::"
    service_level: int = 0


class OpenDevice(Owned):
    """A device, its protection domain, and who is told of its events. Raises OSError if it cannot be opened."""

    def __init__(self, name: str) -> None:
        from pyverbs.device import Context
        from pyverbs.pd import PD

        super().__init__()
        self.name = name
        with translated(f"RDMA device {name} cannot be opened"):
            self.context = keep_over_fork(Context(name=name))
            try:
                self.pd = keep_over_fork(PD(self.context))
                self._pointer, self._async_fd = _bridge.context_pointer(self.context)
                self._pd_pointer = _bridge.pd_pointer(self.pd, self._pointer)
                os.set_blocking(self._async_fd, False)
                self.limits = query_limits(self.context)
            except BaseException:
                self.context.close()
                raise
        self._queue_pairs: dict[int, QueuePair] = {}
        self._memories: dict[DeviceMemory, None] = {}
        self.is_removed = False
        self._is_closed = False

    async def watch(self, port_changed: PortHandler) -> None:
        """Take the device's events until cancelled, or until it has been removed and closed. `port_changed(type, port)` is told what
        concerns no queue pair."""
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(self._async_fd)
                while (event := _bridge.take_async_event(self._pointer)) is not None:
                    self._happened(*event, port_changed)
                    if self._is_closed:
                        return

    def _happened(self, kind: int, qp: int, port: int, port_changed: PortHandler) -> None:
        if kind in _bridge.QP_EVENTS:
            pair = self._queue_pairs.get(qp)
            if pair is not None:
                pair.event(kind)
            return
        port_changed(kind, port)
        if kind == IBV_EVENT_DEVICE_FATAL:
            self.remove()

    def remove(self) -> None:
        """The device goes, or has failed for good: let go of it as soon as its last queue pair has. If it comes back it is another one."""
        self.is_removed = True
        if not self.in_use:
            self.close()

    def queue_pair(self, sizes: QueueSizes) -> QueuePair:
        """A new one in state RESET, no larger than the device can have it. OSError if it gives none."""
        granted = sizes.within(self.limits)
        with translated(f"RDMA device {self.name} gives no queue pair for {granted}"):
            try:
                pair = QueuePair(self, granted)
            except Exception as error:
                # No query tells how much a device takes inline; those that take nothing may say so like this.
                if getattr(error, "error_code", 0) != errno.EINVAL or not granted.inline_bytes:
                    raise
                pair = QueuePair(self, replace(granted, inline_bytes=0))
        self._queue_pairs[pair.pointer] = pair
        return pair

    def register(self, address: int, length: int, *, writable: bool, for_peers: bool) -> DeviceMemory:
        """Pin memory for operations of ours, or of peers. May take long, and lets other threads run. OSError if the device will not."""
        start = address % mmap.PAGESIZE
        access = self._access(writable=writable, for_peers=for_peers)
        with explained(f"{length} bytes cannot be registered with RDMA device {self.name}"):
            return DeviceMemory(self, start, _bridge.register_memory(self._pd_pointer, address, length, start, access))

    def register_dmabuf(self, fd: int, offset: int, length: int) -> DeviceMemory:
        """The same for a dma-buf, for peers."""
        start = offset % mmap.PAGESIZE
        access = self._access(writable=True, for_peers=True)
        with explained(f"dma-buf {fd} cannot be registered with RDMA device {self.name}"):
            return DeviceMemory(self, start, _bridge.register_dmabuf(self._pd_pointer, fd, offset, length, start, access))

    def _access(self, *, writable: bool, for_peers: bool) -> int:
        access = IBV_ACCESS_LOCAL_WRITE if writable else 0
        if for_peers:
            access |= IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | (IBV_ACCESS_REMOTE_ATOMIC if self.limits.atomics else 0)
        return access

    def remember(self, memory: DeviceMemory) -> None:
        self._memories[memory] = None

    def forget_memory(self, memory: DeviceMemory) -> None:
        self._memories.pop(memory, None)

    @property
    def in_use(self) -> bool:
        """Whether a queue pair is open on it."""
        return bool(self._queue_pairs)

    def forget(self, pair: QueuePair) -> None:
        self._queue_pairs.pop(pair.pointer, None)
        if self.is_removed and not self.in_use:
            self.close()

    def close(self) -> None:
        """Close it and what is left on it. Twice is harmless."""
        if self._is_closed or not self.is_ours:
            return
        self._is_closed = True
        for pair in list(self._queue_pairs.values()):
            pair.close()
        for memory in list(self._memories):
            memory.close()
        trio.lowlevel.notify_closing(self._async_fd)
        with translated(f"RDMA device {self.name} cannot be closed"):
            self.pd.close()
            self.context.close()


class DeviceMemory(Owned):
    """Memory that a device can reach; see `rdsx.memory.Registration`. Whoever made it keeps the memory where it is until close()."""

    def __init__(self, device: OpenDevice, start: int, registered: tuple[int, int, int]) -> None:
        super().__init__()
        self._device = device
        self.start = start
        self._pointer, self.lkey, self.rkey = registered
        device.remember(self)

    def close(self) -> None:
        """No device reaches it from now on. Twice is harmless."""
        if not self._pointer or not self.is_ours:
            return
        pointer, self._pointer = self._pointer, 0
        self._device.forget_memory(self)
        _bridge.deregister_memory(pointer)


def query_limits(context: Any) -> DeviceLimits:
    attributes = context.query_device()
    return DeviceLimits(
        max_qp_wr=attributes.max_qp_wr,
        max_sge=attributes.max_sge,
        max_cqe=attributes.max_cqe,
        responder_resources=min(attributes.max_qp_rd_atom, MAX_DEPTH),
        initiator_depth=min(attributes.max_qp_init_rd_atom, MAX_DEPTH),
        atomics=int(attributes.atomic_caps) != 0,
    )


class QueuePair(Owned):
    """A queue pair with its two completion queues on one completion channel. Made by `OpenDevice.queue_pair()`.

    The numbers are what the rings work with, valid until close(): `pointer`, `send_cq`, `recv_cq` and `comp_channel` are addresses of C
    structures, `comp_fd` is readable when there may be completions. `inline_bytes` is what the device granted.
    """

    def __init__(self, device: OpenDevice, sizes: QueueSizes) -> None:
        from pyverbs.cq import CQ, CompChannel
        from pyverbs.qp import QP, QPCap, QPInitAttr

        super().__init__()
        self.device = device
        self.sizes = sizes
        self.established_early: Callable[[], None] | None = None
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            channel = keep_over_fork(CompChannel(device.context))
            undo.callback(channel.close)
            self.comp_channel, self.comp_fd = _bridge.comp_channel_pointer(channel)
            os.set_blocking(self.comp_fd, False)
            # One more for the flush of a work request that was posted as the queue went into its error state.
            queues = [keep_over_fork(CQ(device.context, size + 1, None, channel, 0)) for size in (sizes.send_wr, sizes.recv_wr)]
            for queue in queues:
                undo.callback(queue.close)
            self.qp_queues = queues
            self.send_cq, self.recv_cq = (_bridge.cq_pointer(queue, self.comp_channel) for queue in queues)
            capacity = QPCap(sizes.send_wr, sizes.recv_wr, sizes.send_sge, sizes.recv_sge, sizes.inline_bytes)
            attributes = QPInitAttr(qp_type=IBV_QPT_RC, scq=queues[0], rcq=queues[1], cap=capacity, sq_sig_all=0)
            self.qp = keep_over_fork(QP(device.pd, attributes))
            undo.callback(self.qp.close)
            self.pointer = _bridge.qp_pointer(self.qp, self.send_cq, self.recv_cq)
            self._closing = undo.pop_all()
        self.address = PairAddress()
        self.inline_bytes = int(attributes.max_inline_data)
        self.number = int(self.qp.qp_num)
        self.is_closed = False

    def to_init(self, cmid: Any) -> None:
        """Receives can be posted from now on. `cmid`: the pyverbs CMID, bound to this device."""
        self._modify(cmid, IBV_QPS_INIT)

    def to_ready(self, cmid: Any) -> None:
        """Through RTR to RTS: both directions work from now on. The CM must know the other end."""
        self._modify(cmid, IBV_QPS_RTR)
        self._modify(cmid, IBV_QPS_RTS)

    def to_error(self) -> None:
        """Everything that is posted completes, with the status "flushed"."""
        from pyverbs.qp import QPAttr

        with translated("the queue pair cannot be stopped"):
            self.qp.modify(QPAttr(qp_state=IBV_QPS_ERR), IBV_QP_STATE)

    def event(self, kind: int) -> None:
        """The device says something of it. That a message has come before the CM knew of the connection is the CM's to know; errors show
        in the completions, too."""
        if kind == IBV_EVENT_COMM_EST and self.established_early is not None:
            self.established_early()

    def close(self) -> None:
        """Stop it, and free it with its completion queues and channel. The rings must have acknowledged the events they took. Twice is
        harmless."""
        if self.is_closed or not self.is_ours:
            return
        self.is_closed = True
        trio.lowlevel.notify_closing(self.comp_fd)
        try:
            with translated("the queue pair cannot be closed"), self._closing:
                self.to_error()
        finally:
            self.device.forget(self)

    def _modify(self, cmid: Any, state: int) -> None:
        with translated(f"the queue pair does not reach state {state}"):
            attributes, mask = cmid.init_qp_attr(state)
            if state == IBV_QPS_INIT:
                attributes.qp_access_flags = IBV_ACCESS_ALL
                mask |= IBV_QP_ACCESS_FLAGS
            elif state == IBV_QPS_RTR:
                attributes.min_rnr_timer = MIN_RNR_TIMER
                mask |= IBV_QP_MIN_RNR_TIMER
                self.address = self._address_of(attributes)
            self.qp.modify(attributes, mask)

    def _address_of(self, attributes: Any) -> PairAddress:
        """Where the CM has found the other end. Within one InfiniBand subnet packets carry no GIDs, and the CM tells none."""
        route = attributes.ah_attr
        if not route.is_global:
            return PairAddress(service_level=int(route.sl))
        local = self.device.context.query_gid(route.port_num, route.sgid_index)
        return PairAddress(parse_gid(local), parse_gid(route.dgid), int(route.sl))


def parse_gid(gid: Any) -> str:
    """As ipaddress writes it; pyverbs prints all its zeros."""
    return str(ipaddress.IPv6Address(str(gid)))
