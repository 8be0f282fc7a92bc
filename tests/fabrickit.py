"""A made-up fabric: what `VerbsNetwork` is to a node, with requests and replies on virtual time and queue pairs of made-up devices.

Everything above it is real: engine, driver, supervisors, links and rings.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

import rdsx
import rdsx.node

rings = pytest.importorskip("rdsx._rings", reason="rdsx was built without the headers of rdma-core")
fakenic = pytest.importorskip("fakenic", exc_type=ImportError)
verbs = pytest.importorskip("rdsx.verbs")

from rdsx.transports.verbs.link import VerbsLink  # noqa: E402
from rdsx.wire.cm_data import CmData  # noqa: E402
from rdsx.wire.info import IbConnectionInfo  # noqa: E402

LKEY = 77
SLOTS = 64


class QueuePair:
    """One end of a connection: device, rings and their memory; see `transports.verbs.network.VerbsConnection`."""

    def __init__(self, path: Any, *, flow_control: bool = False) -> None:
        size = rings.ring_bytes(SLOTS, SLOTS)
        self._memory = ctypes.create_string_buffer(size)
        place = {"memory": ctypes.addressof(self._memory), "memory_bytes": size, "lkey": LKEY}
        self.nic = fakenic.FakeNic(**place, send_depth=SLOTS, receive_depth=SLOTS, automatic=True)
        self.rings = rings.Rings(path, self.nic, **place, send_slots=SLOTS, receive_slots=SLOTS)
        self.rings.post_receives()
        self.announced = self.rings.offer_credits() if flow_control else 0
        self.peer: QueuePair | None = None
        self.is_closed = False
        self._ended = trio.Event()
        self._reason = ""

    def join(self, peer: QueuePair) -> None:
        self.nic.connect(peer.nic)
        self.peer, peer.peer = peer, self
        if self.announced and peer.announced:
            self.rings.use_credits(peer.announced)
            peer.rings.use_credits(self.announced)

    def end(self, reason: str) -> None:
        """The connection manager says that it is over."""
        self._reason = self._reason or reason
        self._ended.set()

    async def wait_ended(self) -> str:
        await self._ended.wait()
        return self._reason

    def disconnect(self) -> None:
        self.nic.fail()
        if self.peer is not None:
            self.peer.end("closed_by_peer")

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            trio.lowlevel.notify_closing(self.nic.fd)

    def info(self) -> IbConnectionInfo:
        path = self.rings.path
        return IbConnectionInfo(path.table.host, path.host, "fe80::1", "fe80::2", SLOTS, SLOTS, 1, 0, 0, path.tos, 0, 0)

    def link(self, owner: Any, config: rdsx.NodeConfig) -> VerbsLink:
        return VerbsLink(self, self.rings, self.nic.fd, owner, hello_timeout_s=config.hello_timeout_s)


@dataclass
class Request:
    """See `transports.verbs.cm.ConnectRequest`."""

    remote: Any
    pair: QueuePair
    data: CmData
    answered: trio.Event = field(default_factory=trio.Event)
    confirmed: trio.Event = field(default_factory=trio.Event)
    granted: bool = False
    abandoned: bool = False

    def close(self) -> None:
        self.answered.set()


class Listener:
    """See `transports.base.Listener`."""

    def __init__(self, fabric: Fabric, key: str) -> None:
        self._fabric = fabric
        self._key = key
        self.requests: deque[Request] = deque()
        self.arrived = trio.Event()

    async def accept(self) -> tuple[Request, Any]:
        while not self.requests:
            self.arrived = trio.Event()
            await self.arrived.wait()
        request = self.requests.popleft()
        return request, request.remote

    def close(self) -> None:
        self._fabric.listeners.pop(self._key, None)


class Fabric:
    """`latency_s`: of each message of a handshake. `refusals`, `connections` count what became of requests."""

    def __init__(self, latency_s: float = 0.001) -> None:
        self.latency_s = latency_s
        self.listeners: dict[str, Listener] = {}
        self.refusals = 0
        self.pairs: list[QueuePair] = []

    @property
    def connections(self) -> int:
        """Made so far."""
        return len(self.pairs)

    def cut(self, reason: str = "unreachable") -> None:
        """Every connection is over, for both ends."""
        for pair in self.pairs:
            for end in (pair, pair.peer):
                assert end is not None
                end.nic.fail()
                end.end(reason)


class FabricNetwork:
    """See `transports.verbs.network.VerbsNetwork`; of one node."""

    name = "verbs"

    def __init__(self, fabric: Fabric, config: rdsx.NodeConfig) -> None:
        self._fabric = fabric
        self._flow_control = config.flow_control
        self.refused: Any = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def listen(self, local: Any, port: int) -> Listener:
        listener = self._fabric.listeners[local.key] = Listener(self._fabric, local.key)
        return listener

    async def connect(self, local: Any, remote: Any, path: Any) -> QueuePair:
        await trio.sleep(self._fabric.latency_s)
        listener = self._fabric.listeners.get(remote.key)
        if listener is None:
            raise OSError(errno.ECONNREFUSED, "nobody listens")
        data = CmData(sender=local.ip, receiver=remote.ip, tos=path.tos)
        request = Request(local, QueuePair(path, flow_control=self._flow_control), data)
        try:
            listener.requests.append(request)
            listener.arrived.set()
            await request.answered.wait()
            await trio.sleep(self._fabric.latency_s)
            if not request.granted:
                self._fabric.refusals += 1
                raise OSError(errno.ECONNRESET, "rejected")
        except BaseException:
            request.abandoned = True
            request.confirmed.set()
            request.pair.close()
            raise
        request.confirmed.set()
        self._fabric.pairs.append(request.pair)
        return request.pair

    async def accept(self, request: Request, path: Any) -> QueuePair:
        pair = QueuePair(path, flow_control=self._flow_control)
        pair.join(request.pair)
        request.granted = True
        request.answered.set()
        try:
            await request.confirmed.wait()
            if request.abandoned:
                raise OSError(errno.ECONNRESET, "it has given up")
        except BaseException:
            pair.close()
            raise
        return pair


@contextlib.asynccontextmanager
async def fabric_node(fabric: Fabric, host: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[rdsx.Node]:
    """A node on the fabric."""
    config = rdsx.NodeConfig(**{"seed": sum(host.encode()), "close_drain_s": 1.0, **settings})
    with monkeypatch.context() as patch:
        patch.setattr(rdsx.node, "make_stack", lambda hosts, _, config: verbs.VerbsDriver(hosts, FabricNetwork(fabric, config), config))
        manager = rdsx.open_node(host, transport="verbs", config=config)
        node = await manager.__aenter__()
    try:
        yield node
    except BaseException as error:
        if not await manager.__aexit__(type(error), error, error.__traceback__):
            raise
    else:
        await manager.__aexit__(None, None, None)
