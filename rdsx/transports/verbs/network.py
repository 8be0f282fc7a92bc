"""RDS over InfiniBand and RoCE: listeners, and connections with their rings.

Where `TcpNetwork` hands over byte streams, this hands over connections whose receives are posted; a `VerbsLink` carries messages on them.
Invariant: the memory of the rings is registered before the connection can receive, and let go of after its queue pair.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
from collections.abc import Iterable
from functools import partial

import trio

from rdsx import _bridge
from rdsx._fast import Path
from rdsx._rings import MIN_PACKED_SLOTS, Rings, ring_bytes, verbs_nic
from rdsx.addresses import Host
from rdsx.config import NodeConfig
from rdsx.moves import Changes
from rdsx.transports.base import LinkOwner
from rdsx.transports.local import watch_addresses
from rdsx.transports.verbs.cm import CmConnection, ConnectionManager, ConnectRequest, Listener, Offer, Refused
from rdsx.transports.verbs.device import IBV_ACCESS_LOCAL_WRITE, OpenDevice, QueuePair, QueueSizes, keep_over_fork, translated
from rdsx.transports.verbs.link import VerbsLink
from rdsx.wire.cm_data import PACKED_FRAGMENT_BYTES, CmData
from rdsx.wire.info import IbConnectionInfo

__all__ = ["VerbsConnection", "VerbsListener", "VerbsNetwork"]

log = logging.getLogger("rdsx.node")

HEADER_BYTES = 48  # sent inline where the device can: it then need not fetch it


class RingMemory:
    """The memory of one connection's rings, and the rings as soon as it is known what the peer can do. A `cm.Receiver`."""

    def __init__(self, path: Path, *, flow_control: bool) -> None:
        self.rings: Rings | None = None
        self._path = path
        self._flow_control = flow_control
        self._closing = contextlib.ExitStack()

    def offer(self, pair: QueuePair) -> Offer:
        """Register the memory."""
        from pyverbs.mr import MR

        size = ring_bytes(pair.sizes.send_wr, pair.sizes.recv_wr)
        memory = mmap.mmap(-1, size)
        self._closing.callback(memory.close)
        view = (ctypes.c_char * size).from_buffer(memory)
        address = ctypes.addressof(view)
        with translated(f"{size} bytes cannot be registered with RDMA device {pair.device.name}"):
            region = keep_over_fork(MR(pair.device.pd, size, IBV_ACCESS_LOCAL_WRITE, address))
        del view
        self._closing.callback(region.close)
        self._make_rings = partial(
            Rings,
            self._path,
            verbs_nic(pair.pointer, pair.send_cq, pair.recv_cq, pair.comp_channel, *_bridge.cq_event_functions()),
            memory=address,
            memory_bytes=size,
            lkey=region.lkey,
            send_slots=pair.sizes.send_wr,
            receive_slots=pair.sizes.recv_wr,
            max_inline_bytes=pair.inline_bytes,
        )
        self._can_pack = min(pair.sizes.send_wr, pair.sizes.recv_wr) >= MIN_PACKED_SLOTS
        credit = pair.sizes.recv_wr if self._flow_control else 0
        return Offer(fragment_bytes=PACKED_FRAGMENT_BYTES if self._can_pack else 0, credit=credit)

    def post(self, peer: CmData) -> None:
        """Make the rings as both ends can have them, and post their receives."""
        self.rings = self._make_rings(packed=self._can_pack and peer.fragment_bytes == PACKED_FRAGMENT_BYTES)
        self.rings.post_receives()
        if self._flow_control:
            self.rings.offer_credits()
            if peer.credit:
                self.rings.use_credits(peer.credit)

    def close(self) -> None:
        """The queue pair must be closed. Twice is harmless."""
        with translated("the memory of rings cannot be given back"):
            self._closing.close()


class VerbsConnection:
    """See `transports.verbs.link.Connected`. Owns the CM's connection and the rings' memory."""

    def __init__(self, connection: CmConnection, memory: RingMemory) -> None:
        assert memory.rings is not None
        self._connection = connection
        self._memory = memory
        self._rings = memory.rings

    async def wait_ended(self) -> str:
        return await self._connection.wait_ended()

    def disconnect(self) -> None:
        self._connection.disconnect()

    def close(self) -> None:
        try:
            self._connection.close()
        finally:
            self._memory.close()

    @property
    def device(self) -> OpenDevice:
        return self._connection.queue_pair.device

    def info(self) -> IbConnectionInfo:
        """What RDS_INFO says of a connection of the kernel's. Of memory registrations and caches there is nothing to say."""
        path, pair = self._rings.path, self._connection.queue_pair
        return IbConnectionInfo(
            local=path.table.host,
            peer=path.host,
            local_gid=pair.address.local_gid,
            peer_gid=pair.address.peer_gid,
            max_send_wr=pair.sizes.send_wr,
            max_recv_wr=pair.sizes.recv_wr,
            max_send_sge=pair.sizes.send_sge,
            rdma_mr_max=0,
            rdma_mr_size=0,
            tos=path.tos,
            service_level=pair.address.service_level,
            cache_allocs=0,
        )

    def link(self, owner: LinkOwner, config: NodeConfig) -> VerbsLink:
        """The link over it, which owns it from now on."""
        descriptor = self._connection.queue_pair.comp_fd
        return VerbsLink(self, self._rings, descriptor, owner, hello_timeout_s=config.hello_timeout_s)


class VerbsListener:
    """See `transports.base.Listener`; what it gives is to be accepted with `VerbsNetwork.accept()`, or closed."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def accept(self) -> tuple[ConnectRequest, Host]:
        request = await self._listener.accept()
        return request, request.remote

    @property
    def device(self) -> OpenDevice:
        return self._listener.device

    def reopen(self) -> None:
        """See `transports.verbs.cm.Listener`."""
        self._listener.reopen()

    def close(self) -> None:
        self._listener.close()


class VerbsNetwork:
    """Connections of a node over RDMA. run() must run while the other methods are in use, and ends last.

    `refused(reason, text)` is told of requests that were rejected here; whoever has this network may put in what counts them.
    """

    name = "verbs"

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self.refused: Refused = self._log_refused
        self._manager: ConnectionManager | None = None
        self._listeners: dict[str, VerbsListener] = {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle events until cancelled; then wait for the links to let go, and close everything."""
        sizes = QueueSizes(send_wr=self._config.send_ring_slots, recv_wr=self._config.receive_ring_slots, inline_bytes=HEADER_BYTES)
        self._manager = ConnectionManager(sizes, refused=self._tell_refused, port_changed=self._port_changed)
        await self._manager.run(task_status)

    async def listen(self, local: Host, port: int) -> VerbsListener:
        """Take requests. `port` is of TCP: RDS over RDMA has ports of its own, the same everywhere."""
        listener = self._listeners[local.key] = VerbsListener(await self.manager.listen(local))
        return listener

    def device(self, local: Host) -> OpenDevice:
        """The device that has an address of ours. OSError ENODEV if none has."""
        return self._listeners[local.key].device

    def watch(self, hosts: Iterable[Host]) -> Changes | None:
        """See `moves.Watched`."""
        return watch_addresses(hosts)

    def address_moved(self, local: str) -> None:
        """An address of ours is on another port, and what listens is bound to a device."""
        self._listeners[local].reopen()

    async def connect(self, local: Host, remote: Host, path: Path) -> VerbsConnection:
        """Ask for a connection that carries `path`, of its type of service. OSError, WireError and cancellation as
        `ConnectionManager.connect()`."""
        memory = RingMemory(path, flow_control=self._config.flow_control)
        try:
            return VerbsConnection(await self.manager.connect(local, remote, memory, tos=path.tos), memory)
        except BaseException:
            memory.close()
            raise

    async def accept(self, request: ConnectRequest, path: Path) -> VerbsConnection:
        """Grant a request, for `path`. OSError and cancellation as `ConnectRequest.accept()`."""
        memory = RingMemory(path, flow_control=self._config.flow_control)
        try:
            return VerbsConnection(await request.accept(memory), memory)
        except BaseException:
            memory.close()
            raise

    @property
    def manager(self) -> ConnectionManager:
        assert self._manager is not None
        return self._manager

    def _tell_refused(self, reason: str, text: str) -> None:
        self.refused(reason, text)

    @staticmethod
    def _log_refused(reason: str, text: str) -> None:
        log.warning("%s: %s", reason, text)

    def _port_changed(self, kind: int, port: int) -> None:
        log.info("RDMA device: event %d on port %d", kind, port)
