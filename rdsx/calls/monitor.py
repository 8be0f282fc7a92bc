"""The monitor: finds what does not shrink, does not end, or does not add up, and says it in the log once, with the peer's name.

Looks at the callee's tables every few seconds; decides nothing. A complaint is made when something begins to be wrong, and again only
after it was right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rdsx.calls.callee import Callee
from rdsx.calls.holder import Holder, HolderState, IncomingSession

__all__ = ["Monitor"]

STUCK_FLOOR_S = 60.0
MAX_QUERIES = 5  # unanswered, before the log says so
FULL = 0.8  # of a limit
LATELY_S, BEFORE_S = 600.0, 3600.0  # growth: the last ten minutes, compared with the hour before
LEAST_GROWTH = 64  # holders: a table that small may double as it likes


class Monitor:
    """Complaints about one callee."""

    def __init__(self, callee: Callee) -> None:
        self._callee = callee
        self._told: set[object] = set()
        self._history: deque[tuple[float, int, int]] = deque()  # (time, holders, calls handled so far)

    def check(self, now_s: float) -> list[str]:
        """What is wrong now and was not before, as texts."""
        found = dict(self._complaints(now_s))
        new = [text for key, text in found.items() if key not in self._told]
        self._told = set(found)
        return new

    def _complaints(self, now_s: float) -> Iterator[tuple[object, str]]:
        yield from self._sums()
        yield from self._limits()
        yield from self._growth(now_s)
        for session in self._callee.sessions.values():
            yield from self._of_session(session, now_s)

    def _of_session(self, session: IncomingSession, now_s: float) -> Iterator[tuple[object, str]]:
        peer = session.record.address
        done = [holder for holder in session.holders.values() if holder.state >= HolderState.DONE]
        oldest_s = now_s - min((holder.done_s for holder in done), default=now_s)
        if session.queried >= MAX_QUERIES:
            held = f"{len(done)} results of {session.reply_bytes} bytes, the oldest for {oldest_s:.0f} s"
            yield ("unreleased", session.number), f"{peer} does not release {held}, and does not answer"
        done_ahead = sum(holder.seq != session.floor for holder in done)
        if now_s - session.floor_s > STUCK_FLOOR_S and done_ahead > self._callee.config.window // 2:
            yield ("stuck", session.number), f"{peer}: {done_ahead} results wait behind one call: {self._blocking(session, now_s)}"
        for holder in session.holders.values():
            if holder.state is HolderState.RUNNING and now_s - holder.born_s > self._callee.config.handler_warn_s:
                since_s = now_s - holder.born_s
                text = f"{peer}: the handler of type {holder.msg_type:#x} for call {holder.seq}, which came {since_s:.0f} s ago, still runs"
                yield ("long", session.number, holder.seq), text

    def _blocking(self, session: IncomingSession, now_s: float) -> str:
        holder: Holder | None = session.holders.get(session.floor)
        if holder is None:
            return f"number {session.floor}, which has not come"
        return f"number {holder.seq} of type {holder.msg_type:#x}, {holder.state.name.lower()}, {now_s - holder.born_s:.0f} s old"

    def _limits(self) -> Iterator[tuple[object, str]]:
        callee, config = self._callee, self._callee.config
        tables = {
            "holders": (callee.holders, config.max_holders),
            "reply bytes": (callee.reply_bytes, config.max_reply_bytes),
            "running handlers": (callee.running, config.max_running),
            "sessions": (callee.confirmed, config.max_sessions),
        }
        for name, (value, limit) in tables.items():
            if value > FULL * limit:
                yield ("full", name), f"{name}: {value} of at most {limit}"

    def _sums(self) -> Iterator[tuple[object, str]]:
        callee = self._callee
        holders = sum(len(session.holders) for session in callee.sessions.values())
        held = sum(session.reply_bytes for session in callee.sessions.values())
        if (holders, held) != (callee.holders, callee.reply_bytes):
            yield "sums", f"a bug: {holders} holders of {held} bytes are counted as {callee.holders} of {callee.reply_bytes}"

    def _growth(self, now_s: float) -> Iterator[tuple[object, str]]:
        """The table's high water of late is over twice that of before, and the rate of calls is not."""
        callee, history = self._callee, self._history
        handled = sum(count for name, count in callee.counters.items() if name.startswith("handled_"))
        history.append((now_s, callee.holders, handled))
        while history[0][0] < now_s - LATELY_S - BEFORE_S:
            history.popleft()
        before = [entry for entry in history if entry[0] < now_s - LATELY_S]
        if not before or before[0][0] > now_s - LATELY_S - BEFORE_S / 2:
            return  # too early to tell
        lately = [entry for entry in history if entry[0] >= now_s - LATELY_S]
        high_before, high_lately = (max(entry[1] for entry in entries) for entries in (before, lately))
        rate_before = (before[-1][2] - before[0][2]) / max(before[-1][0] - before[0][0], 1.0)
        rate_lately = (lately[-1][2] - lately[0][2]) / max(lately[-1][0] - lately[0][0], 1.0)
        if high_lately > max(2 * high_before, LEAST_GROWTH) and rate_lately <= 2 * rate_before:
            yield "growth", f"possible leak: up to {high_lately} holders of late, {high_before} in the hour before"
