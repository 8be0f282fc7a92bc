"""A node over RDMA: the driver and the supervisors of `transport="verbs"`. Imported only where its modules were built.

Both ends dial, whoever is smaller. Who takes what is the kernel's rule: a request is granted by an end that has no connection and makes
none; otherwise it is refused, and a connection that is up is dropped, because a peer that asks has lost it. Both try again after random
times until one finds the other idle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import trio

from rdsx import _bridge
from rdsx.addresses import Host
from rdsx.config import NodeConfig
from rdsx.driver import Driver
from rdsx.engine.states import State
from rdsx.errors import UnsupportedError
from rdsx.supervisor import Supervisor
from rdsx.transports.base import Carrier, Link
from rdsx.transports.stream import reason_of
from rdsx.transports.verbs.network import VerbsConnection, VerbsNetwork
from rdsx.wire.info import IbConnectionInfo, Info

if TYPE_CHECKING:
    from rdsx.transports.verbs.cm import ConnectRequest

__all__ = ["VerbsDriver"]


class VerbsSupervisor(Supervisor):
    """A supervisor whose links are queue pairs."""

    header_acks = True
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
        self.connection.dial_failed(trio.current_time())
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


class VerbsDriver(Driver):
    """The inside of a node over RDMA."""

    supervisor_type = VerbsSupervisor
    has_tos = True

    def __init__(self, hosts: list[Host], network: VerbsNetwork, config: NodeConfig) -> None:
        super().__init__(hosts, network, config)  # type: ignore[arg-type]  # its listeners and connections are not of bytes
        self._verbs = network
        network.refused = self._warn

    @staticmethod
    def _tos_of(offered: Carrier) -> int:
        return cast("ConnectRequest", offered).data.tos

    def info(self) -> Info:
        connections = (supervisor.ib_info() for supervisor in self._supervisors.values() if isinstance(supervisor, VerbsSupervisor))
        return replace(super().info(), ib_connections=tuple(connections))

    async def start(self, nursery: trio.Nursery) -> None:
        try:
            await nursery.start(self._verbs.run)
        except _bridge.Unsupported as error:
            raise UnsupportedError(f"transport 'verbs': {error}; 'rdsx doctor' shows what is here") from error
        await super().start(nursery)
