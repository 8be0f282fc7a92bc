"""The outcome of `rdsx demo`. Owns the comparison of what one node sent with what the other got, and the table; measures nothing itself.

Invariant: `ok` is true only if every datagram arrived once, in order, and every file with the SHA-256 computed before the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rdsx.cli.latency import Latencies

__all__ = ["Direction", "Outcome", "compare"]


@dataclass(frozen=True)
class Direction:
    """One node's datagrams to the other."""

    sender: str
    receiver: str
    sent: int
    sent_bytes: int
    delivered: int
    delivered_bytes: int
    lost: int
    duplicated: int
    out_of_order: int
    corrupted: int
    files: int
    files_verified: int
    files_wrong: list[str]
    retransmitted: int
    latencies: Latencies


@dataclass(frozen=True)
class Outcome:
    """Both directions and what they share."""

    directions: tuple[Direction, Direction]
    cuts: int
    reconnects: int
    seconds: float

    def total(self, field: str) -> int:
        return sum(int(getattr(direction, field)) for direction in self.directions)

    @property
    def ok(self) -> bool:
        faults = ("lost", "duplicated", "out_of_order", "corrupted")
        return not any(self.total(fault) for fault in faults) and self.total("files") == self.total("files_verified")

    @property
    def messages_per_s(self) -> float:
        return self.total("delivered") / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_s(self) -> float:
        return self.total("delivered_bytes") / self.seconds / 1e6 if self.seconds else 0.0

    @property
    def latencies(self) -> Latencies:
        latencies = Latencies()
        for direction in self.directions:
            latencies.merge(direction.latencies.buckets)
        return latencies

    def as_json(self) -> dict[str, object]:
        totals = ("sent", "delivered", "lost", "duplicated", "out_of_order", "corrupted", "sent_bytes", "delivered_bytes")
        return {
            "event": "result",
            "ok": self.ok,
            **{name: self.total(name) for name in totals},
            "cuts": self.cuts,
            "reconnects": self.reconnects,
            "retransmitted": self.total("retransmitted"),
            "seconds": round(self.seconds, 3),
            "messages_per_s": round(self.messages_per_s, 1),
            "megabytes_per_s": round(self.megabytes_per_s, 2),
            "latency_p50_us": _microseconds(self.latencies, 50),
            "latency_p99_us": _microseconds(self.latencies, 99),
            "files": self.total("files"),
            "files_verified": self.total("files_verified"),
        }

    def as_table(self) -> Table:
        table = Table(title="rdsx demo", title_justify="left")
        table.add_column("")
        for direction in self.directions:
            table.add_column(f"{direction.sender} sends", justify="right")
        table.add_column("both", justify="right", style="bold")

        def add(label: str, field: str, *, fault: bool = False) -> None:
            numbers = [*(int(getattr(direction, field)) for direction in self.directions), self.total(field)]
            table.add_row(label, *(f"{number:,}" for number in numbers), style=("red" if numbers[2] else "green") if fault else None)

        add("messages sent", "sent")
        add("messages delivered", "delivered")
        add("bytes sent", "sent_bytes")
        add("bytes delivered", "delivered_bytes")
        table.add_section()
        add("lost", "lost", fault=True)
        add("duplicated", "duplicated", fault=True)
        add("out of order", "out_of_order", fault=True)
        add("corrupted", "corrupted", fault=True)
        add("files sent", "files")
        add("files verified", "files_verified")
        table.add_section()
        add("retransmissions", "retransmitted")
        table.add_row("reconnects", "", "", f"{self.reconnects:,}")
        each = [*(direction.latencies for direction in self.directions), self.latencies]
        for percent in (50, 99):
            table.add_row(f"latency p{percent}, ms", *(_milliseconds(latencies, percent) for latencies in each))
        table.add_row("seconds", "", "", f"{self.seconds:.2f}")
        table.add_row("messages/s", "", "", f"{self.messages_per_s:,.0f}")
        table.add_row("MB/s", "", "", f"{self.megabytes_per_s:,.1f}")
        return table


def compare(names: Sequence[str], results: Sequence[dict[str, Any]], files: Sequence[int]) -> Outcome:
    """Compare the results of both node processes; `files[k]` is how many files node k was to send."""
    directions = (
        _compare_direction(names[0], names[1], results[0], results[1], files[0]),
        _compare_direction(names[1], names[0], results[1], results[0], files[1]),
    )
    first_ns = min(result["first_sent_ns"] for result in results)
    last_ns = max(result["last_delivered_ns"] for result in results)
    return Outcome(
        directions,
        cuts=sum(result["cuts"] for result in results),
        reconnects=max(result["reconnects"] for result in results),  # both ends see each
        seconds=max(last_ns - first_ns, 0) / 1e9,
    )


def _compare_direction(sender_name: str, receiver_name: str, sender: dict[str, Any], receiver: dict[str, Any], files: int) -> Direction:
    lost = 0
    duplicated: int = receiver["duplicated"]
    sent = delivered = 0
    for (flow_sent, flow_sent_empty), (flow_got, flow_got_empty) in zip(sender["sent_flows"], receiver["delivered_flows"], strict=True):
        sent += flow_sent + flow_sent_empty
        delivered += flow_got + min(flow_got_empty, flow_sent_empty)
        lost += flow_sent - flow_got + max(flow_sent_empty - flow_got_empty, 0)
        duplicated += max(flow_got_empty - flow_sent_empty, 0)
    latencies = Latencies()
    latencies.merge(receiver["latencies"])
    return Direction(
        sender_name,
        receiver_name,
        sent=sent,
        sent_bytes=sender["sent_bytes"],
        delivered=delivered,
        delivered_bytes=receiver["delivered_bytes"],
        lost=lost,
        duplicated=duplicated,
        out_of_order=receiver["out_of_order"],
        corrupted=receiver["corrupted"],
        files=files,
        files_verified=receiver["files_verified"],
        files_wrong=receiver["files_wrong"],
        retransmitted=sender["retransmitted"],
        latencies=latencies,
    )


def _microseconds(latencies: Latencies, percent: float) -> float | None:
    duration_ns = latencies.percentile_ns(percent)
    return None if duration_ns is None else round(duration_ns / 1e3, 1)


def _milliseconds(latencies: Latencies, percent: float) -> str:
    duration_ns = latencies.percentile_ns(percent)
    return "–" if duration_ns is None else f"{duration_ns / 1e6:.2f}"
