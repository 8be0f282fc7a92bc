"""A node over RDMA: the driver and the supervisors of `transport="verbs"`. Imported only where its modules were built.

Both ends dial, whoever is smaller. Who takes what is the kernel's rule: a request is granted by an end that has no connection and makes
none; otherwise it is refused, and a connection that is up is dropped, because a peer that asks has lost it. Both try again after random
times until one finds the other idle.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import trio

from rdsx import _bridge
from rdsx._fast import Path
from rdsx.addresses import Host, SockAddr
from rdsx.config import NodeConfig
from rdsx.driver import Driver
from rdsx.engine.states import State
from rdsx.errors import UnsupportedError
from rdsx.memory import DmaBuf, Lease, Registration
from rdsx.one_sided import OneSided, Task
from rdsx.supervisor import Supervisor
from rdsx.transports.base import Carrier, Link
from rdsx.transports.stream import reason_of
from rdsx.transports.verbs.network import VerbsConnection, VerbsNetwork
from rdsx.wire.info import IbConnectionInfo, Info

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from rdsx.engine_socket import EngineSocket
    from rdsx.transports.verbs.cm import ConnectRequest

__all__ = ["VerbsDriver"]

QUICK_BYTES = 1 << 20  # registered while nobody else runs: pages that have been touched take 0.1 ms for so many (soft-RoCE)


class VerbsSupervisor(Supervisor):
    """A supervisor whose links are queue pairs."""

    header_acks = True
    survives_moves = False  # a queue pair belongs to a port
    _carrier: VerbsConnection | None = None  # of the last link

    @staticmethod
    def dials(local: Host, remote: Host) -> bool:
        return True

    def incoming(self, offered: Carrier) -> None:
        """The peer asks for a connection."""
        if self.connection.state is State.DOWN and not self._offered and not self._finishing:
            self._offered.append(offered)
            self._signal.set()
            return
        offered.close()
        if self.connection.state is State.UP and self.link is not None:
            self.link.drop("superseded", 0.0)

    async def _connect(self) -> VerbsConnection:
        return await self._verbs.connect(self._local, self.remote, self.connection.path)

    async def _accept(self, offered: Carrier) -> VerbsConnection | None:
        reason = "connect_timeout"
        with trio.move_on_after(self._driver.config.connect_timeout_s):
            try:
                return await self._verbs.accept(cast("ConnectRequest", offered), self.connection.path)
            except OSError as error:
                reason = reason_of(error)
        self.connection.dial_failed(trio.current_time(), reason)
        self._driver.count_drop(reason)
        return None

    def _make_link(self, carrier: Carrier) -> Link:
        self._carrier = cast(VerbsConnection, carrier)
        return self._carrier.link(self, self._driver.config)

    def ib_info(self) -> IbConnectionInfo:
        """As the kernel lists it: zeros while there is no connection."""
        if self.link is not None and self._carrier is not None:
            return self._carrier.info()
        return IbConnectionInfo(self._local.key, self.remote.key, "::", "::", 0, 0, 0, 0, 0, self.connection.path.tos, 0, 0)

    @property
    def _verbs(self) -> VerbsNetwork:
        return cast(VerbsNetwork, self._driver.network)


class VerbsOneSided(OneSided):
    """Operations that devices carry out: memory is registered with the device of a connection, or of an address."""

    async def _place(self, sock: EngineSocket, destination: SockAddr | None) -> Any:
        if destination is not None:
            path, _ = await sock._path_to(destination)
            if not path.local:
                await self._wait_heard(path)
                return path.supervisor.link.device
        assert sock._host is not None
        return cast(VerbsDriver, self._driver).verbs.device(sock._host)

    def _lease(self, buffer: Buffer | DmaBuf) -> Lease:
        try:
            return super()._lease(buffer)
        except (OSError, ValueError):
            if not isinstance(buffer, DmaBuf):
                raise
            return Lease.unmapped(buffer.length)  # a device may reach what a process cannot

    async def _register(self, place: Any, lease: Lease, buffer: Buffer | DmaBuf) -> Registration:
        if isinstance(buffer, DmaBuf):
            register = partial(place.register_dmabuf, buffer.fd, buffer.offset, buffer.length)
        else:
            register = partial(place.register, lease.address, lease.length, writable=True, for_peers=True)
        found: Registration | None = None
        while found is None or found.rkey in self.regions:  # each device gives keys of its own
            former = found
            # Each page is pinned: 100 ms and more for 16 MiB that nobody has touched yet.
            found = await trio.to_thread.run_sync(register) if lease.length > QUICK_BYTES else register()
            if former is not None:
                former.close()
        return found

    def _local(self, task: Task, path: Path) -> tuple[int, int]:
        if task.masked:
            raise UnsupportedError("masked atomics: verbs have none, only some vendors' own; use compare_and_swap() in a loop")
        lease, device = task.lease, path.supervisor.link.device
        region = self.regions.covering(lease, device)
        if region is not None:
            return region.registration.start + lease.address - region.lease.address, region.registration.lkey
        if task.registration is None:
            task.registration = device.register(lease.address, lease.length, writable=not lease.view.readonly, for_peers=False)
        return task.registration.start, task.registration.lkey


class VerbsDriver(Driver):
    """The inside of a node over RDMA."""

    supervisor_type = VerbsSupervisor
    one_sided_type = VerbsOneSided
    has_tos = True

    def __init__(self, hosts: list[Host], network: VerbsNetwork, config: NodeConfig) -> None:
        super().__init__(hosts, network, config)  # type: ignore[arg-type]  # its listeners and connections are not of bytes
        self.verbs = network
        network.refused = self._warn

    def address_arrived(self, local: str, *, moved: bool) -> None:
        if moved:
            self.verbs.address_moved(local)

    @staticmethod
    def _tos_of(offered: Carrier) -> int:
        return cast("ConnectRequest", offered).data.tos

    def info(self) -> Info:
        connections = (supervisor.ib_info() for supervisor in self._supervisors.values() if isinstance(supervisor, VerbsSupervisor))
        return replace(super().info(), ib_connections=tuple(connections))

    async def start(self, nursery: trio.Nursery) -> None:
        try:
            await nursery.start(self.verbs.run)
        except _bridge.Unsupported as error:
            raise UnsupportedError(f"transport 'verbs': {error}; 'rdsx doctor' shows what is here") from error
        await super().start(nursery)
