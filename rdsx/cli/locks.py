"""The lock manager of `rdsx demo calls`, as ocfs2's is on its o2net: LOCK, CONVERT, UNLOCK, and a blocking AST the other way.

The master keeps the lock table in its store and changes it in the transactions of its handlers, so that a lock is granted exactly once
also when the master is killed at any moment. Workers wait for a grant with WAIT, which changes nothing and may be asked again. The
functions here run in processes of their own; the parent is `demo_calls`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from collections import Counter, defaultdict
from typing import Any

import trio

import rdsx
from rdsx.calls import CallInterruptedError, Courier, IncomingCall, Reply, SqliteStore

__all__ = ["LOCKS", "main"]

LOCK, CONVERT, UNLOCK, WAIT, BLOCKING = range(1, 6)
LOCKS = 5
RDS_PORT = 7000
SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (request TEXT PRIMARY KEY, lock TEXT, mode TEXT, state TEXT);
CREATE TABLE IF NOT EXISTS grants (request TEXT);
"""


class Master:
    """The side that grants. The handlers that change the table run inside the store's transactions."""

    def __init__(self, courier: Courier, path: str) -> None:
        self._courier = courier
        self._reader = sqlite3.connect(path)
        self._granted: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        for msg_type, function in ((LOCK, self.lock), (CONVERT, self.convert), (UNLOCK, self.unlock)):
            courier.register(msg_type, function, durability="transaction", on_committed=self.committed)
        courier.register(WAIT, self.wait, concurrency=1000)

    def lock(self, call: IncomingCall) -> bytes:
        return self._change(call, "INSERT INTO requests VALUES (:request, :lock, :mode, 'waiting')")

    def convert(self, call: IncomingCall) -> bytes:
        return self._change(call, "UPDATE requests SET mode = :mode WHERE request = :request AND state = 'granted'")

    def unlock(self, call: IncomingCall) -> bytes:
        return self._change(call, "UPDATE requests SET state = 'released' WHERE request = :request AND state = 'granted'")

    def _change(self, call: IncomingCall, statement: str) -> bytes:
        """Change one request, then grant what can be granted, in the order of requests; the reply says what came of it."""
        transaction = call.transaction
        assert transaction is not None
        asked = json.loads(call.payload)
        if transaction.execute(statement, asked).rowcount != 1:
            raise LookupError(f"request {asked['request']} does not hold its lock")
        query = "SELECT request, mode, state FROM requests WHERE lock = ? AND state != 'released' ORDER BY rowid"
        rows = transaction.execute(query, (asked["lock"],))
        held: dict[str, str] = {}
        granted, blocking = [], []
        for request, mode, state in sorted(rows, key=lambda row: row[2] != "granted"):  # keeps the order within each
            if state == "waiting" and held and "exclusive" in (mode, *held.values()):
                blocking = list(held)
                break
            if state == "waiting":
                transaction.execute("UPDATE requests SET state = 'granted' WHERE request = ?", (request,))
                transaction.execute("INSERT INTO grants VALUES (?)", (request,))
                granted.append(request)
            held[request] = mode
        return json.dumps({"granted": granted, "blocking": blocking, "peer": call.peer}).encode()

    def committed(self, reply: Reply) -> None:
        """The change is on disk: wake those who wait for it, and ask those who are in the way to let go."""
        change = json.loads(reply.payload)
        for request in change["granted"]:
            self._granted[request].set()
        for request in change["blocking"]:
            with contextlib.suppress(trio.WouldBlock):  # it is only a hint
                self._courier.start_call(tuple(change["peer"]), BLOCKING, request.encode())

    async def wait(self, call: IncomingCall) -> int:
        """Until a request is granted. Changes nothing: after a crash it is simply asked again."""
        request = call.payload.decode()
        query = "SELECT count(*) FROM requests WHERE request = ? AND state = 'granted'"
        while not self._reader.execute(query, (request,)).fetchone()[0]:
            await self._granted[request].wait()
        self._granted.pop(request, None)
        return 0


class Workers:
    """The side that takes locks, and checks that it has them alone."""

    def __init__(self, courier: Courier, node: rdsx.Node, job: dict[str, Any]) -> None:
        self._courier = courier
        self._node = node
        self._job = job
        self._master = (job["remote"], RDS_PORT)
        self._in_the_way: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._exclusive: dict[str, str] = {}
        self._shared: Counter[str] = Counter()
        self.counts: Counter[str] = Counter(locks=0, converted=0, interrupted=0, violations=0, cuts=0, blocked=0)
        courier.register(BLOCKING, self._let_go)

    def _let_go(self, call: IncomingCall) -> None:
        self.counts["blocked"] += 1
        if call.payload.decode() in self._in_the_way:
            self._in_the_way[call.payload.decode()].set()

    async def run(self) -> None:
        async with trio.open_nursery() as cutting:
            cutting.start_soon(self._cut)
            async with trio.open_nursery() as tasks:
                for number in range(self._job["workers"]):
                    tasks.start_soon(self._work, number)
            cutting.cancel_scope.cancel()

    async def _work(self, worker: int) -> None:
        for number in range(self._job["locks_each"]):
            request, lock = f"{worker}/{number}", f"lock{(worker + number * number) % LOCKS}"
            asked = {"request": request, "lock": lock, "mode": "shared" if (worker + number) % 3 == 0 else "exclusive"}
            self._in_the_way[request] = trio.Event()
            reply = await self._courier.call(self._master, LOCK, json.dumps(asked).encode())
            if request not in json.loads(reply.payload)["granted"]:
                await self._wait(request)
            await self._hold(request, asked)
            await self._courier.call(self._master, UNLOCK, json.dumps(asked).encode())
            del self._in_the_way[request]
            self.counts["locks"] += 1
            emit("progress", locks=self.counts["locks"])

    async def _wait(self, request: str) -> None:
        while True:
            try:
                await self._courier.call(self._master, WAIT, request.encode())
                return
            except CallInterruptedError:  # the master was killed, and knows that the question was not answered
                self.counts["interrupted"] += 1

    async def _hold(self, request: str, asked: dict[str, str]) -> None:
        lock = asked["lock"]
        if asked["mode"] == "exclusive":
            self.counts["violations"] += lock in self._exclusive or self._shared[lock] > 0
            self._exclusive[lock] = request
            await trio.sleep(0.001)
            self.counts["violations"] += self._exclusive.pop(lock, None) != request
            self._shared[lock] += 1  # before readers may come in
            asked["mode"] = "shared"
            await self._courier.call(self._master, CONVERT, json.dumps(asked).encode())
            self.counts["converted"] += 1
        else:
            self.counts["violations"] += lock in self._exclusive
            self._shared[lock] += 1
        with trio.move_on_after(0.02):  # idle, until somebody needs it
            await self._in_the_way[request].wait()
        self._shared[lock] -= 1

    async def _cut(self) -> None:
        """Cut the connection again and again, as often as asked for; a master that is down cannot be cut."""
        while self.counts["cuts"] < self._job["cuts"]:
            await trio.sleep(0.05)
            self.counts["cuts"] += self._node.reset_connection(self._job["remote"])


def main() -> None:
    """A process: a job as its last argument, events as JSON lines on standard output; it ends when standard input does."""
    trio.run(_serve, json.loads(sys.argv[-1]))


async def _serve(job: dict[str, Any]) -> None:
    store = SqliteStore(job["store"], schema=SCHEMA) if job["store"] else None
    async with (
        rdsx.open_node(job["local"], config=rdsx.NodeConfig(port=job["port"])) as node,
        rdsx.open_courier(await node.bind(RDS_PORT), store=store) as courier,
    ):
        if job["store"]:
            Master(courier, job["store"])
            emit("ready")
        else:
            workers = Workers(courier, node, job)
            await workers.run()
            emit("result", **workers.counts)
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
            async for _ in stdin:
                pass


def emit(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()
