"""What an engine node looks like at one moment: the records of `Node.statistics()` and `Node.info()`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rdsx._fast import Path
from rdsx.addresses import SockAddr
from rdsx.engine.states import State
from rdsx.statistics import ConnectionStatistics
from rdsx.wire.info import ConnectionInfo, Info, MessageInfo, SocketInfo

if TYPE_CHECKING:
    from rdsx.driver import Driver
    from rdsx.engine.connection import Connection

__all__ = ["connection_statistics", "node_info"]

UNSET = ("0.0.0.0", 0)


def paths(driver: Driver) -> Iterator[tuple[Path, Connection | None]]:
    """Every path with its connection; None for loopback."""
    for table in driver.tables.values():
        for path in table.routes.values():
            yield path, None if path.supervisor is None else path.supervisor.connection


def connection_statistics(driver: Driver) -> Iterator[ConnectionStatistics]:
    for path, connection in paths(driver):
        yield ConnectionStatistics(
            local=path.table.host,
            peer=path.host,
            transport="loop" if path.local else driver.transport_name,
            state="up" if connection is None else connection.state.value,
            kind="local" if connection is None else connection.kind,
            generation=driver.generation if connection is None else connection.peer_generation,
            links=0 if connection is None else connection.links,
            reconnects=0 if connection is None else max(0, connection.links - 1),
            next_tx_seq=path.next_sequence,
            next_rx_seq=path.next_receive,
            send_queue_messages=path.send_queue,
            retransmit_queue_messages=path.retransmit_queue,
            retransmitted_messages=path.retransmitted,
            queued_bytes=path.queued_bytes,
            paused=path.paused,
        )


def node_info(driver: Driver) -> Info:
    written: list[MessageInfo] = []
    waiting: list[MessageInfo] = []
    for path, _ in paths(driver):
        for sequence, length, sport, dport, is_written in path.listing():
            queue = written if is_written else waiting
            queue.append(MessageInfo(sequence, length, (path.table.host, sport), (path.host, dport), path.tos))
    return Info(
        counters=driver.core.statistics(),
        connections=tuple(connection_info(driver)),
        send_messages=tuple(waiting),
        retransmit_messages=tuple(written),
        receive_messages=tuple(received(driver)),
        sockets=tuple(socket_info(driver)),
    )


def connection_info(driver: Driver) -> Iterator[ConnectionInfo]:
    for path, connection in paths(driver):
        state = State.UP if connection is None else connection.state
        yield ConnectionInfo(
            next_tx_seq=path.next_sequence,
            next_rx_seq=path.next_receive,
            local=path.table.host,
            peer=path.host,
            transport="loopback" if path.local else driver.transport_name,
            sending=path.send_queue > 0,
            connecting=state is State.CONNECTING,
            connected=state is State.UP,
            tos=path.tos,
        )


def received(driver: Driver) -> Iterator[MessageInfo]:
    for sock in driver.sockets:
        for length, address in sock._endpoint.listing():
            yield MessageInfo(None, length, short(sock.getsockname()), short(address), 0)


def socket_info(driver: Driver) -> Iterator[SocketInfo]:
    for sock in driver.sockets:
        endpoint = sock._endpoint
        peer = sock._peer_address
        yield SocketInfo(endpoint.send_limit, endpoint.receive_limit, short(sock.getsockname()), UNSET if peer is None else short(peer), 0)


def short(address: SockAddr) -> tuple[str, int]:
    return address[0], address[1]
