"""A node's settings. Defaults are the kernel's where the kernel has the setting; every other number says why it is what it is."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from rdsx.constants import RDS_MAX_MSG_SIZE, RDS_TCP_PORT

__all__ = ["NodeConfig"]

# Where each int must lie. The upper ends are those of the fields that hold them, or of the TCP socket options.
RANGES = {
    "port": (1, 65535),
    "send_buffer_bytes": (1, 2**31 - 1),
    "receive_buffer_bytes": (2, 2**31 - 1),  # a port is free again below half of it
    "max_buffer_bytes": (1, 2**31 - 1),
    "max_message_bytes": (1, RDS_MAX_MSG_SIZE),
    "max_peer_queued_bytes": (1, 2**62),
    "max_node_queued_bytes": (1, 2**62),
    "max_peers": (1, 2**31 - 1),
    "max_unacked_packets": (1, 2**31 - 1),
    "max_unacked_bytes": (1, 2**62),
    "keepalive_idle_s": (1, 32767),
    "keepalive_interval_s": (1, 32767),
    "keepalive_probes": (1, 127),
    "send_ring_slots": (4, 32768),
    "receive_ring_slots": (4, 32768),
    "idle_registration_bytes": (0, 2**40),
    "sequence_base": (1, 2**63),
    "seed": (-(2**63), 2**64),
}
MAX_CREDIT_SLOTS = 8192
OPTIONAL = ("sequence_base", "seed")
NOT_ZERO = ("reconnect_min_delay_s", "reconnect_max_delay_s", "poke_min_delay_s", "connect_timeout_s", "hello_timeout_s", "ack_delay_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Settings of one node; times in seconds, sizes in bytes. Raises ValueError naming the field for a value out of range."""

    port: int = RDS_TCP_PORT
    """TCP port that every node of the cluster listens on. It must be the same everywhere: a node dials the port it listens on."""

    allowed_peers: tuple[str, ...] | None = None
    """Networks ("10.0.0.0/8", "fd00::/8") or addresses whose connections are taken; None takes all. Refused before any state is kept."""

    reconnect_min_delay_s: float = 0.001
    """Ceiling of the first random reconnect delay; the very first attempt is immediate (net.rds.reconnect_min_delay_ms)."""

    reconnect_max_delay_s: float = 1.0
    """The ceiling doubles up to this (net.rds.reconnect_max_delay_ms)."""

    poke_min_delay_s: float = 0.1
    """The larger address cannot dial for good, it only asks the smaller one to: at most this often at first, then doubling."""

    connect_timeout_s: float = 10.0
    """Give up one attempt to connect after this; the kernel waits for TCP's own two minutes."""

    hello_timeout_s: float = 10.0
    """Drop a connection on which a peer has said nothing at all; every RDS peer begins with its congestion map."""

    supersede_drain_s: float = 1.0
    """How long to read what an old connection still holds when the peer has already made a new one."""

    close_drain_s: float = 5.0
    """Leaving `open_node` waits at most half of this for acknowledgements, and the other half for peers to close (the kernel's 7.0 drains
    for 5 s)."""

    ack_delay_s: float = 0.002
    """Longest time an acknowledgement to an rdsx peer waits for a message to ride on; also how often TCP's are polled."""

    send_buffer_bytes: int = 106496
    """Effective SO_SNDBUF of a new socket: payload bytes queued and not acknowledged (half of net.core.wmem_default)."""

    receive_buffer_bytes: int = 106496
    """Effective SO_RCVBUF of a new socket: above it the port is congested, below half of it free again."""

    max_buffer_bytes: int = 4194304
    """Upper limit of both for setsockopt (net.core.wmem_max and rmem_max of 6.18)."""

    max_message_bytes: int = RDS_MAX_MSG_SIZE
    """Longest message that is sent or stored (RDS_MAX_MSG_SIZE)."""

    max_peer_queued_bytes: int = 67108864
    """Hard cap on what one peer may have in our receive queues; above it its connection is not read."""

    max_node_queued_bytes: int = 268435456
    """Hard cap on all receive queues of the node together."""

    max_peers: int = 4096
    """Connections to more peers than this are refused."""

    max_unacked_packets: int = 8
    """Ask an rdsx peer for an acknowledgement after so many messages without (net.rds.max_unacked_packets)."""

    max_unacked_bytes: int = 16777216
    """... or so many bytes (net.rds.max_unacked_bytes)."""

    ping_enable: bool = True
    """Answer pings to port 0, probes included (net.rds.ping_enable)."""

    keepalive_idle_s: int = 5
    """TCP keepalive, as rds_tcp sets it: first probe after this much silence,"""

    keepalive_interval_s: int = 5
    """then one every so often,"""

    keepalive_probes: int = 5
    """and dead after so many unanswered: about 30 s."""

    send_ring_slots: int = 256
    """RDMA: messages of up to 4 KiB, or parts of longer ones, that are sent and not known to have arrived (net.rds.ib.max_send_wr). A power
    of two; a device that has less gets less. Between rdsx nodes four make one, of 16 KiB."""

    receive_ring_slots: int = 1024
    """RDMA: receives that are posted for each peer, 4,160 bytes each, locked in memory (net.rds.ib.max_recv_wr). As above."""

    idle_registration_bytes: int = 67108864
    """Memory that stays registered after `free_mr(invalidate=False)`, for whoever registers it again; what was freed first goes first."""

    flow_control: bool = False
    """RDMA: offer to count credits, so that a sender never finds the other's receive ring empty (net.rds.ib.flow_control). They are counted
    only where both ends do; with at most 8,192 `receive_ring_slots`, because a kernel complains of 16,384 credits."""

    yield_interval_s: float = 0.001
    """Async methods that need not wait yield to the scheduler at least this often (or every 256 calls). 0: on every call."""

    busy_poll_s: float = 0.0
    """How long a receive that finds nothing reads the node's connections itself before it waits, as SO_BUSY_POLL: for answers that come
    within some 50 µs. No other task runs meanwhile, and each peer takes its turn: for nodes with few of them. 0: never."""

    follow_moves: bool = True
    """Watch where the node's addresses and its peers are, and redial connections that a move to another port has left standing still."""

    sequence_base: int | None = None
    """First sequence number of each path, larger in each life of a node than anything in an earlier one; None takes the wall clock in
    nanoseconds."""

    wall_clock: Callable[[], float] = time.time
    """The time in seconds since 1970: what SO_TIMESTAMP gives, and what the sequence base comes from."""

    seed: int | None = None
    """Seed of generation number, backoff jitter and port choice, for tests; None takes the system's entropy."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"NodeConfig.{name} must be an int in {low}..{high}, not {value!r}")
        for name in ("send_ring_slots", "receive_ring_slots"):
            if getattr(self, name).bit_count() != 1:
                raise ValueError(f"NodeConfig.{name} must be a power of two, not {getattr(self, name)}")
        if self.flow_control and self.receive_ring_slots > MAX_CREDIT_SLOTS:
            slots = self.receive_ring_slots
            raise ValueError(f"NodeConfig.receive_ring_slots is at most {MAX_CREDIT_SLOTS} with flow_control, not {slots}")
        for name in self.__slots__:
            if name.endswith("_s") and name not in RANGES and not getattr(self, name) >= 0:
                raise ValueError(f"NodeConfig.{name} is a time in seconds, at least 0, not {getattr(self, name)!r}")
        for name in NOT_ZERO:
            if getattr(self, name) == 0:
                raise ValueError(f"NodeConfig.{name} is a time in seconds and cannot be 0: the node would spin")
        if self.reconnect_min_delay_s > self.reconnect_max_delay_s:
            both = f"({self.reconnect_min_delay_s}) exceeds reconnect_max_delay_s ({self.reconnect_max_delay_s})"
            raise ValueError(f"NodeConfig.reconnect_min_delay_s {both}")
        for network in self.allowed_peers or ():
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"NodeConfig.allowed_peers: {error}; write a network such as '10.0.0.0/8'") from None
