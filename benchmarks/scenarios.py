"""What is measured: who sends how to whom. Owns the list of scenarios; knows no backend and moves no byte.

The *left* process sends first and the *right* one receives; a backend with one process plays both. `population` is what a scenario
varies besides the message size: sockets of the right node, or idle peers of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["SCENARIOS", "SIZES", "Case", "Job", "Scenario"]

Pattern = Literal["one-way", "both-ways", "ping-pong", "writes"]
Role = Literal["left", "right", "both"]

SIZES = (8, 64, 1024, 8192, 65536, 1048576)
BATCH_MESSAGES = 256
BATCH_BYTES = 256 << 10
SOCKET_BATCH_MESSAGES = 64  # to one of many sockets


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One table, one plot."""

    name: str
    summary: str
    pattern: Pattern = "one-way"
    batched: bool = True
    """Send and receive in batches where the backend has calls for it; else one awaited call for each message."""
    left_peers: int = 1
    right_peers: int = 1
    sockets: int = 1
    """Receiving sockets of each right peer; with "both-ways" of both sides."""
    sizes: tuple[int, ...] = (64,)
    rdma_sizes: tuple[int, ...] = (8, 4096, 65536, 1048576)
    """Instead of `sizes` in the guest with soft-RoCE."""
    populations: tuple[int, ...] = (0,)
    population_of: Literal["", "sockets", "idle_sockets", "idle_peers"] = ""

    def cases(self, sizes: tuple[int, ...] = ()) -> Iterator[Case]:
        """Each message size with each population; `sizes` instead of the scenario's own."""
        for size in sizes or self.sizes:
            for population in self.populations:
                yield Case(self, size, population)


@dataclass(frozen=True)
class Case:
    """One cell of a scenario's table, for every backend."""

    scenario: Scenario
    size: int
    population: int = 0

    @property
    def sockets(self) -> int:
        return self.population if self.scenario.population_of == "sockets" else self.scenario.sockets

    @property
    def batch_messages(self) -> int:
        """Messages in one batch: as many as a careful program would hand over at once."""
        if not self.scenario.batched:
            return 1
        limit = SOCKET_BATCH_MESSAGES if self.scenario.population_of == "sockets" else BATCH_MESSAGES
        return max(1, min(limit, BATCH_BYTES // self.size))

    @property
    def turn_messages(self) -> int:
        """Messages after which every socket of the population has had its batch."""
        return self.sockets * self.batch_messages if self.scenario.population_of == "sockets" else 1

    @property
    def idle_sockets(self) -> int:
        return self.population if self.scenario.population_of == "idle_sockets" else 0

    @property
    def idle_peers(self) -> int:
        return self.population if self.scenario.population_of == "idle_peers" else 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker process is to do; the text on its command line."""

    backend: str
    role: Role
    port: int
    case: Case
    hosts: tuple[str, str] = ("127.0.0.2", "127.0.0.1")
    """Addresses of the left and the right side's first peer."""

    @property
    def is_left(self) -> bool:
        return self.role != "right"

    @property
    def is_right(self) -> bool:
        return self.role != "left"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Job:
        case = fields["case"]
        made = Case(Scenario(**case["scenario"]), case["size"], case["population"])
        return Job(**{**fields, "case": made, "hosts": tuple(fields["hosts"])})


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="stream", summary="one sender, one receiver, batches where there are any", sizes=(64, 65536, 1048576)),
        Scenario(name="stream-single", summary="one sender, one receiver, one call for each message", batched=False),
        Scenario(
            name="rdma-write",
            summary="one writes into the other's memory, 16 writes under way, an empty message behind each",
            pattern="writes",
            batched=False,
            sizes=(1048576,),
            rdma_sizes=(1048576,),
        ),
        Scenario(name="ping-pong", summary="one message there and back", pattern="ping-pong", batched=False),
        Scenario(name="fan-in", summary="16 peers send to one socket", left_peers=16),
        Scenario(name="fan-out", summary="one socket sends to 16 peers in turn", right_peers=16),
        Scenario(
            name="all-to-all",
            summary="64 sockets on each of two nodes, each sends to all 64 of the other, over one connection",
            pattern="both-ways",
            sockets=64,
        ),
        Scenario(
            name="sockets",
            summary="one sender to every socket of a node in turn, a batch for each",
            populations=(1, 100, 10_000),
            population_of="sockets",
        ),
        Scenario(
            name="idle-sockets",
            summary="one sender, one receiver, while the receiver's node has other sockets",
            populations=(0, 10_000),
            population_of="idle_sockets",
        ),
        Scenario(
            name="idle-peers",
            summary="one sender, one receiver, while the receiver's node has other peers, connected",
            populations=(0, 1_000),
            population_of="idle_peers",
        ),
    )
}
