"""What runs a node: its tables and paths, one connection per peer, and the tasks that keep them going.

This is the one place where the engine, the links, the clock and trio meet. The hot path never calls up: after each batch somebody
calls `attend()`, which looks at what `_fast.Core` noted and wakes whom it concerns. Invariants: no task outlives the nursery that
`start()` was given; a path exists for every peer that a message waits for or that has ever spoken, and is never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import cycle
from math import inf

import trio

from rdsx import snapshot
from rdsx._fast import BindTable, CongestionMap, Core, Endpoint, Path
from rdsx.addresses import Host, SockAddr, bad_address
from rdsx.config import NodeConfig
from rdsx.engine.connection import Connection
from rdsx.engine.events import Event
from rdsx.engine_socket import EngineSocket
from rdsx.errors import TooManyPeersError
from rdsx.follower import Follower
from rdsx.lot import Lot
from rdsx.moves import Watched
from rdsx.one_sided import OneSided
from rdsx.stack import Stack
from rdsx.statistics import NodeStatistics
from rdsx.supervisor import Supervisor
from rdsx.transports.base import ByteStream, Carrier, Listener, Network
from rdsx.transports.signal import Signal
from rdsx.wire.info import Info

__all__ = ["Driver"]

log = logging.getLogger("rdsx.node")

MAX_REFUSED = 64  # connections of refused peers held open
REFUSED_HOLD_S = 1.0  # ... for this long: a kernel whose connection is closed at once reconnects at once, for ever
ACCEPT_RETRY_S = 0.1  # after EMFILE and the like
WARN_INTERVAL_S = 1.0  # between two log lines about the same kind of refusal
MAX_ACK_POLL_S = 0.1  # slowest polling of a stream that acknowledges nothing


class Driver(Stack[EngineSocket]):
    """The inside of a `Node` on our own engine: sockets and supervisors call it, users do not.

    `network` is None for a node of loopback only.
    """

    supervisor_type: type[Supervisor] = Supervisor
    one_sided_type: type[OneSided] = OneSided
    has_tos = False  # whether connections of each type of service are apart

    def __init__(self, hosts: list[Host], network: Network | None, config: NodeConfig) -> None:
        super().__init__(hosts, config)
        self._network = network
        self._random = random.Random(config.seed)
        self._generation = self._random.randrange(1, 2**32)
        self._first_sequence = max(1, int(config.wall_clock() * 1e9)) if config.sequence_base is None else config.sequence_base
        self.core = Core(
            max_message_bytes=config.max_message_bytes,
            max_peer_queued_bytes=config.max_peer_queued_bytes,
            max_node_queued_bytes=config.max_node_queued_bytes,
            max_unacked_packets=config.max_unacked_packets,
            max_unacked_bytes=config.max_unacked_bytes,
            answer_pings=config.ping_enable,
            wall_clock=config.wall_clock,
        )
        self.tables = {host.key: BindTable(self.core, host.key) for host in hosts}
        self._allowed = None if config.allowed_peers is None else [ipaddress.ip_network(text) for text in config.allowed_peers]
        self._foreign: dict[str, CongestionMap] = {}
        self._supervisors: dict[tuple[str, str, int], Supervisor] = {}  # by our host, theirs, and the type of service
        self.monitors: dict[EngineSocket, None] = {}
        self._congested: dict[CongestionMap, dict[int, Lot]] = {}
        self._drops: Counter[str] = Counter()
        self.moves_survived = 0
        self._subscribers: dict[trio.MemorySendChannel[Event], None] = {}
        self._missed_events = 0
        self._refused: deque[tuple[float, ByteStream]] = deque()  # with the time to let go of each
        self._warned_at_s: dict[str, float] = {}
        self._owing: dict[Supervisor, None] = {}
        self._owing_signal = Signal()
        self._nursery: trio.Nursery | None = None
        self._accepting = trio.CancelScope()
        self.heard = Lot()  # for those who wait for a peer to speak
        self._awaited: Counter[Path] = Counter()  # ... and whose
        self.one_sided = self.one_sided_type(self)

    @property
    def transport_name(self) -> str:
        return "loop" if self._network is None else self._network.name

    @property
    def generation(self) -> int:
        return self._generation

    # -- statistics and events

    def statistics(self) -> NodeStatistics:
        return NodeStatistics(
            addresses=tuple(self.hosts),
            sockets=len(self.sockets),
            queued_bytes=self.core.queued_bytes,
            missed_events=self._missed_events,
            counters=self.core.statistics(),
            drops=dict(self._drops),
            moves_survived=self.moves_survived,
            connections=tuple(snapshot.connection_statistics(self)),
        )

    def info(self) -> Info:
        return snapshot.node_info(self)

    def subscribe(self, buffer: int) -> trio.MemoryReceiveChannel[Event]:
        send, receive = trio.open_memory_channel[Event](buffer)
        if self.closed:
            send.close()
        else:
            self._subscribers[send] = None
        return receive

    # -- for sockets

    def socket(self) -> EngineSocket:
        sock = EngineSocket(self)
        self.sockets[sock] = None
        return sock

    def bind(self, endpoint: Endpoint, host: Host, port: int, address: SockAddr) -> int:
        """Bind to a port of one of our hosts, 0 for any free one; returns the port. EADDRINUSE as in the kernel."""
        table = self.tables[host.key]
        if port == 0:
            free = table.free_port(self._random.randrange(65536))
            if free is None:
                raise bad_address(errno.EADDRINUSE, address, "every port of this address is bound; close a socket or add an address")
            port = free
        elif table.find(port) is not None:
            raise bad_address(errno.EADDRINUSE, address, "the port is bound by another socket of this node; port 0 picks a free one")
        table.bind(endpoint, port)
        return port

    def known_route(self, local: str, host: Host, tos: int) -> Path | None:
        """The path from a local address to a peer, of a type of service, if there is one. Loopback has one for all types."""
        return self.tables[local].routes.get((host.key, tos) if tos and host.key not in self.tables else host.key)

    def route(self, local: str, host: Host, address: SockAddr, tos: int) -> Path:
        """known_route(); makes the connection if there is none."""
        table = self.tables[local]
        path = self.known_route(local, host, tos)
        if path is None:
            if not host.is_usable:
                raise bad_address(errno.EINVAL, address, "a message goes to one host: give a unicast address")
            if host.is_ipv6 != self.hosts[local].is_ipv6:
                raise bad_address(errno.EOPNOTSUPP, address, f"the socket is bound to {local}: both ends are IPv4, or both IPv6")
            path = self._make_local_path(table, host) if host.key in self.tables else self._make_path(table, host, tos)
        return path

    def attend(self) -> None:
        """Look at what the hot path noted since the last call, and wake whom it concerns."""
        core = self.core
        while core.attention:
            core.attention = False
            for path in core.take_dirty():
                if path.supervisor is not None:
                    path.supervisor.kick()
            self.one_sided.attend()
            for endpoint in core.take_woken():
                if endpoint.owner is not None:  # not closed meanwhile
                    endpoint.owner._wake()
            for path in core.take_resumable():
                if path.supervisor is not None and (link := path.supervisor.link) is not None:
                    link.resume()
            for table in core.take_remapped():
                self.map_changed(table.congestion, 2**64 - 1)
                for path in table.due_maps():
                    if path.supervisor is not None and not path.corked and (link := path.supervisor.link) is not None:
                        link.kick()

    def busy_poll(self, endpoint: Endpoint) -> bool:
        """Read the links for at most `busy_poll_s`, until there is a message for this endpoint; whether there is."""
        until_s = time.perf_counter() + self.config.busy_poll_s
        links = [supervisor.link for supervisor in self._supervisors.values() if supervisor.link is not None]
        for link in cycle(links):
            link.poll()
            if endpoint.queued:
                return True
            if time.perf_counter() >= until_s:
                break
        return False

    def congestion_lot(self, path: Path, port: int) -> Lot:
        """Where to wait until `port` at the other end of `path` may be free."""
        if path.supervisor is not None and path.supervisor.link is None:
            path.supervisor.kick()
        return self._congested.setdefault(path.foreign, {}).setdefault(port, Lot())

    def is_awaited(self, path: Path) -> bool:
        """Whether somebody waits for the other end of `path` to say that congestion has ended, or anything at all."""
        return path in self._awaited or any(self._congested.get(path.foreign, {}).values())

    @contextlib.contextmanager
    def awaiting(self, path: Path) -> Iterator[None]:
        """While in the block, somebody waits for the peer at the other end of `path` to speak; `heard` tells when one has."""
        self._awaited[path] += 1
        try:
            yield
        finally:
            self._awaited[path] -= 1
            if not self._awaited[path]:
                del self._awaited[path]

    def draw(self, below: int) -> int:
        """A random number."""
        return self._random.randrange(below)

    def map_changed(self, congestion: CongestionMap, freed: int) -> None:
        """Wake those who wait for ports that are free now, and tell the sockets that monitor congestion."""
        waiting = self._congested.get(congestion)
        if waiting:
            for port in congestion.freed(waiting):
                waiting.pop(port).unpark_all()
        for sock in self.monitors:
            sock._congestion_freed(freed)

    def forget_socket(self, sock: EngineSocket) -> None:
        super().forget_socket(sock)
        self.monitors.pop(sock, None)
        self.one_sided.forget_socket(sock)

    # -- for supervisors

    @property
    def network(self) -> Network:
        assert self._network is not None
        return self._network

    def owes_acks(self, supervisor: Supervisor) -> None:
        if supervisor not in self._owing:
            self._owing[supervisor] = None
            self._owing_signal.set()

    def count_drop(self, reason: str) -> None:
        self._drops[reason] += 1

    def _emit(self, event: Event) -> None:
        for channel in list(self._subscribers):
            try:
                channel.send_nowait(event)
            except trio.WouldBlock:
                self._missed_events += 1
            except trio.BrokenResourceError:
                del self._subscribers[channel]

    def reset_connection(self, peer: str) -> bool:
        return any([supervisor.drop("reset_by_user") for supervisor in self.supervisors_of(peer=peer)])

    def supervisors_of(self, *, local: str | None = None, peer: str | None = None) -> list[Supervisor]:
        """Those of one address of ours, or of one of a peer's."""
        return [each for (here, there, _), each in self._supervisors.items() if here == local or there == peer]

    def address_arrived(self, local: str, *, moved: bool) -> None:
        """An address of ours can be reached again, or through another port. What listens on a port of TCP need not know."""

    # -- paths

    def _make_local_path(self, table: BindTable, host: Host) -> Path:
        """Loopback between two addresses of this node (or one and itself): both directions, so that the receiver sees the sender."""
        for here, there in ((table, self.tables[host.key]), (self.tables[host.key], table)):
            if there.host not in here.routes:
                there_host = self.hosts[there.host]
                here.routes[there.host] = Path(
                    here, there_host.text, there.congestion, peer_table=there, is_ipv6=there_host.is_ipv6, scope=there_host.scope
                )
        return table.routes[host.key]

    def _make_path(self, table: BindTable, host: Host, tos: int) -> Path:
        local = self.hosts[table.host]
        if self._network is None:
            raise OSError(errno.ENETUNREACH, f"{host.key} is not an address of this node, and transport 'loop' reaches no other: use 'tcp'")
        if len(self._supervisors) >= self.config.max_peers:
            raise TooManyPeersError(f"{host.key} would be peer number {len(self._supervisors) + 1}: raise NodeConfig.max_peers")
        foreign = self._foreign.setdefault(host.key, CongestionMap())
        path = Path(
            table,
            host.text,
            foreign,
            first_sequence=self._first_sequence,
            is_ipv6=host.is_ipv6,
            scope=host.scope,
            header_acks=self.supervisor_type.header_acks,
            tos=tos,
        )
        connection = Connection(
            path,
            dials=self.supervisor_type.dials(local, host),
            config=self.config,
            generation=self.generation,
            uniform=self._random.random,
            emit=self._emit,
        )
        supervisor = self.supervisor_type(self, connection, local, host)
        path.supervisor = supervisor
        table.routes[(host.key, tos) if tos else host.key] = path
        self._supervisors[table.host, host.key, tos] = supervisor
        assert self._nursery is not None
        self._nursery.start_soon(supervisor.run, name=f"rdsx {table.host} -> {host.key}")
        return path

    def forget(self, supervisor: Supervisor) -> None:
        """A peer that never spoke and that nobody wants anything of: it must not take a place of max_peers."""
        path = supervisor.connection.path
        peer = supervisor.remote.key
        if self.closed:
            return
        del path.table.routes[(peer, path.tos) if path.tos else peer], self._supervisors[path.table.host, peer, path.tos]
        path.supervisor = None
        path.forgotten = True
        if not any(other.remote.key == peer for other in self._supervisors.values()):
            del self._foreign[peer]

    # -- the node's own tasks

    async def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        if self._network is None:
            return
        listeners: list[tuple[Host, Listener]] = []
        try:
            for host in self.hosts.values():
                listeners.append((host, await self._network.listen(host, self.config.port)))
        except BaseException:
            for _, listener in listeners:
                listener.close()
            raise
        nursery.start_soon(self._accept_all, listeners)
        nursery.start_soon(self._acknowledge)
        if self.config.follow_moves and isinstance(self._network, Watched):
            self._follow_moves(self._network, nursery)

    def _follow_moves(self, network: Watched, nursery: trio.Nursery) -> None:
        try:
            changes = network.watch(self.hosts.values())
        except (OSError, ValueError) as error:
            log.warning("moves of addresses are not followed: %s", error)
            return
        if changes is not None:
            nursery.start_soon(Follower(self, changes).run)

    async def _accept_all(self, listeners: list[tuple[Host, Listener]]) -> None:
        with self._accepting:
            async with trio.open_nursery() as nursery:
                for host, listener in listeners:
                    nursery.start_soon(self._accept, host, listener)

    async def _accept(self, local: Host, listener: Listener) -> None:
        with contextlib.closing(listener):
            while True:
                try:
                    stream, remote = await listener.accept()
                except OSError as error:
                    self._warn("accept_failed", f"{local.key}: {error}")
                    await trio.sleep(ACCEPT_RETRY_S)
                else:
                    self._place(local, remote, stream)

    def _place(self, local: Host, remote: Host, stream: ByteStream) -> None:
        """Decide what becomes of an incoming stream: the link of a smaller peer, the poke of a larger one, or nobody we know."""
        if remote.key in self.tables:
            self._warn("own_address", f"{local.key}: connection from {remote.key}, an address of this node")
            stream.close()
            return
        if self._allowed is not None and not any(remote.ip in network for network in self._allowed):
            self._refuse(stream, "not_allowed", f"{local.key}: connection from {remote.key}, which NodeConfig.allowed_peers does not have")
            return
        tos = self._tos_of(stream)
        supervisor = self._supervisors.get((local.key, remote.key, tos))
        if supervisor is None:
            try:
                path = self._make_path(self.tables[local.key], remote, tos)
            except TooManyPeersError as error:
                self._refuse(stream, "too_many_peers", f"{local.key}: connection from {remote.key}: {error.strerror}")
                return
            supervisor = path.supervisor
        supervisor.incoming(stream)

    @staticmethod
    def _tos_of(offered: Carrier) -> int:
        """The type of service that an incoming connection is for."""
        return 0

    def _refuse(self, stream: ByteStream, reason: str, text: str) -> None:
        self._warn(reason, text)
        if len(self._refused) >= MAX_REFUSED:
            self._refused.popleft()[1].close()
        self._refused.append((trio.current_time() + REFUSED_HOLD_S, stream))
        if len(self._refused) == 1:
            assert self._nursery is not None
            self._nursery.start_soon(self._release_refused)

    async def _release_refused(self) -> None:
        while self._refused:
            await trio.sleep_until(self._refused[0][0])
            while self._refused and self._refused[0][0] <= trio.current_time():
                self._refused.popleft()[1].close()

    def _warn(self, reason: str, text: str) -> None:
        """Count a refusal, and log it unless one like it was logged a moment ago: strangers must not fill the log."""
        self.count_drop(reason)
        now_s = trio.current_time()
        if now_s - self._warned_at_s.get(reason, -inf) >= WARN_INTERVAL_S:
            self._warned_at_s[reason] = now_s
            log.warning("%s: %s (%d so far)", reason, text, self._drops[reason])

    async def _acknowledge(self) -> None:
        """Give the acknowledgements that found no message to ride on, and collect those of byte streams, which make no event."""
        pause_s = self.config.ack_delay_s
        while True:
            if not self._owing:
                await self._owing_signal.wait()
                pause_s = self.config.ack_delay_s
            if pause_s > self.config.ack_delay_s:
                with trio.move_on_after(pause_s):
                    await self._owing_signal.wait()
                    pause_s = self.config.ack_delay_s
                    await trio.sleep(pause_s)
            else:
                await trio.sleep(pause_s)
            still: dict[Supervisor, None] = {}
            owing, self._owing = self._owing, still
            moved = False
            for supervisor in owing:
                before = supervisor.connection.path.retired
                if supervisor.link is not None and supervisor.link.tick():
                    still[supervisor] = None
                moved = moved or supervisor.connection.path.retired != before or supervisor not in still
            pause_s = self.config.ack_delay_s if moved else min(2 * pause_s, MAX_ACK_POLL_S)

    # -- the end

    async def drain(self) -> None:
        """Wait for what can still be acknowledged, then close every link in order. Each takes at most half of close_drain_s, so that
        one peer that cannot be reached does not cost the others their orderly end."""
        half_s = self.config.close_drain_s / 2
        with trio.move_on_after(half_s):
            # Once in a node's life: not worth an event for every acknowledgement.
            while any(sock.statistics().unacknowledged_messages for sock in self.sockets):  # noqa: ASYNC110
                await trio.sleep(self.config.ack_delay_s)
        self._accepting.cancel()
        with trio.move_on_after(half_s):
            async with trio.open_nursery() as nursery:
                for supervisor in self._supervisors.values():
                    nursery.start_soon(supervisor.finish, half_s)

    def close(self) -> None:
        self.closed = True
        for sock in list(self.sockets):
            sock.close()
        self.one_sided.close()
        for _, stream in self._refused:
            stream.close()
        for channel in self._subscribers:
            channel.close()
        self._subscribers.clear()
        for table in self.tables.values():
            for path in table.routes.values():
                path.clear()
            table.routes.clear()
        self.heard.unpark_all()
        self.one_sided.attend()
