"""What a courier tells about itself: frozen records, made from the engines' tables when asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.holder import CallerRecord, Holder, HolderState
from rdsx.calls.outgoing import Peer

__all__ = ["CourierStatistics", "PeerStatistics", "address_text", "statistics_of"]


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer. As a caller of ours: what we hold for it. As one that we call: what it has not answered. Ages in seconds."""

    peer: str
    sessions: int
    holders: int
    waiting: int
    running: int
    held_bytes: int
    oldest_s: float
    """Age of the oldest result that it has not released."""
    floor_lag: int
    """How many numbers it is ahead of the oldest one that it has not released."""
    duplicates: int
    refused: int
    busy: int
    queued_calls: int
    live_calls: int
    request_bytes: int


@dataclass(frozen=True, slots=True)
class CourierStatistics:
    """A courier. `counters`: see docs/calls.md."""

    life: int
    sessions: int
    holders: int
    held_bytes: int
    running: int
    waiting: int
    live_calls: int
    queued_calls: int
    counters: Mapping[str, int]
    peers: tuple[PeerStatistics, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `json`."""
        peers = [{name: getattr(peer, name) for name in PeerStatistics.__slots__} for peer in self.peers]
        own = {name: getattr(self, name) for name in CourierStatistics.__slots__ if name not in ("counters", "peers")}
        return {**own, "counters": dict(self.counters), "peers": peers}


def statistics_of(caller: Caller, callee: Callee, more: Counter[str], now_s: float) -> CourierStatistics:
    addresses = {*callee.records, *caller.peers}
    peers = [_peer(address, callee.records.get(address), caller.peers.get(address), now_s) for address in sorted(addresses, key=str)]
    return CourierStatistics(
        life=callee.life,
        sessions=len(callee.sessions),
        holders=callee.holders,
        held_bytes=callee.reply_bytes,
        running=callee.running,
        waiting=callee.ready,
        live_calls=sum(peer.live_calls for peer in peers),
        queued_calls=sum(peer.queued_calls for peer in peers),
        counters=dict(callee.counters + caller.counters + more),
        peers=tuple(peers),
    )


def address_text(address: tuple[Any, ...]) -> str:
    """host:port, as people write it."""
    return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"


def _peer(address: tuple[Any, ...], record: CallerRecord | None, peer: Peer | None, now_s: float) -> PeerStatistics:
    sessions = list(record.sessions.values()) if record is not None else []
    holders: list[Holder] = [holder for session in sessions for holder in session.holders.values()]
    done_s = min((holder.done_s for holder in holders if holder.state >= HolderState.DONE), default=now_s)
    states = Counter(holder.state for holder in holders)
    return PeerStatistics(
        peer=address_text(address),
        sessions=len(sessions),
        holders=len(holders),
        waiting=states[HolderState.WAITING],
        running=sum(session.running for session in sessions),
        held_bytes=sum(session.reply_bytes for session in sessions),
        oldest_s=now_s - done_s,
        floor_lag=max((session.highest_seq - session.floor + 1 for session in sessions), default=0),
        duplicates=record.duplicates if record is not None else 0,
        refused=record.refused if record is not None else 0,
        busy=record.busy_sent if record is not None else 0,
        queued_calls=len(peer.queue) if peer is not None else 0,
        live_calls=len(peer.session.live) if peer is not None and peer.session is not None else 0,
        request_bytes=peer.request_bytes if peer is not None else 0,
    )
