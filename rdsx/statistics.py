"""Frozen records that `statistics()` methods return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ConnectionStatistics", "NodeStatistics", "SocketStatistics"]


@dataclass(frozen=True, slots=True)
class SocketStatistics:
    """One socket. Bytes are payload bytes; `unacknowledged_*` is the send queue, `queued_*` the receive queue. `congested`: None where
    the kernel does not say."""

    sent_messages: int
    received_messages: int
    unacknowledged_messages: int
    unacknowledged_bytes: int
    queued_messages: int
    queued_bytes: int
    congested: bool | None


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """One connection. `kind`: "rdsx", "kernel", "local", or None while the peer has never spoken. `links` counts the transport
    connections on which it has; `next_tx_seq` and `next_rx_seq` are the kernel's. On the kernel's stack `kind`, `generation`, `links`,
    `reconnects` and `retransmitted_messages` are None: it does not tell."""

    local: str
    peer: str
    transport: str
    state: str
    kind: str | None
    generation: int | None
    links: int | None
    reconnects: int | None
    next_tx_seq: int
    next_rx_seq: int
    send_queue_messages: int
    retransmit_queue_messages: int
    retransmitted_messages: int | None
    queued_bytes: int
    paused: bool


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """A node. `counters`: the kernel's names where it has the counter. `drops`: reason -> how many connections ended or were refused
    for it. `missed_events`: events that slow subscribers did not get. `moves_survived`: connections that outlived a move of one of their
    addresses to another port, once for each; those that did not are among `drops`."""

    addresses: tuple[str, ...]
    sockets: int
    queued_bytes: int
    missed_events: int
    counters: Mapping[str, int]
    drops: Mapping[str, int]
    moves_survived: int
    connections: tuple[ConnectionStatistics, ...]
