"""Processes that are killed at each commit point of their stores: before each transaction, before each COMMIT, and at each note in `meta`.

A process has both ends: a caller with a store makes durable calls to a callee with another one, over loopback. It kills itself at point n
of a run, then at a point of the run that recovers, and then recovers in peace. Outside of the library two files say what happened: what
handlers did, and what callers were told.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

CALLS = 3  # of each kind, at once

# A process that imports everything once, and forks for each job.
ZYGOTE = """
import json, os, signal, sqlite3, sys, trio, rdsx
from rdsx.calls import CallConfig, SqliteStore

HERE, THERE, PORT = "127.0.0.1", "127.0.0.2", 7000
JOURNAL, TRANSACTION = 1, 2

class Points:
    def __init__(self, deadly):
        self.deadly, self.passed = deadly, 0
        self.connect, sqlite3.connect = sqlite3.connect, self.traced
    def traced(self, *arguments, **settings):
        connection = self.connect(*arguments, **settings)
        connection.set_trace_callback(self.look)
        return connection
    def look(self, statement):
        if statement.startswith(("BEGIN", "COMMIT", "INSERT OR REPLACE INTO meta")):
            self.passed += 1
            if self.passed == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)

def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")

async def tell(folder, name, pending):
    try:
        reply = await pending.wait()
        note(f"{folder}/told", f"{name} {reply.payload.decode()}")
    except rdsx.calls.CallError as error:
        note(f"{folder}/told", f"{name} {type(error).__name__}")

async def main(folder, calls):
    caller_store = SqliteStore(f"{folder}/caller.db")
    callee_store = SqliteStore(f"{folder}/callee.db", schema="CREATE TABLE IF NOT EXISTS runs (name TEXT)")
    config = CallConfig(release_delay_s=0.001, grace_s=30.0, close_s=10.0)
    async with rdsx.open_node([HERE, THERE], transport="loop") as node:
        sock, other = node.socket(), node.socket()
        await sock.bind((HERE, PORT))
        await other.bind((THERE, PORT))
        async with rdsx.open_courier(other, config=config, store=callee_store) as callee:
            async def work(call):
                note(f"{folder}/ran", call.payload.decode())
                return b"done"
            def write(call):
                call.transaction.execute("INSERT INTO runs VALUES (?)", (call.payload.decode(),))
                return b"done"
            callee.register(JOURNAL, work)
            callee.register(TRANSACTION, write, durability="transaction")
            async with rdsx.open_courier(sock, config=config, store=caller_store) as caller, trio.open_nursery() as tasks:
                for pending in caller.recovered_calls():
                    note(f"{folder}/recovered", pending._call.payload.decode())
                    tasks.start_soon(tell, folder, pending._call.payload.decode(), pending)
                for number in range(calls):
                    for kind in (JOURNAL, TRANSACTION):
                        name = f"{kind}/{number}"
                        tasks.start_soon(tell, folder, name, caller.start_call((THERE, PORT), kind, name.encode(), durable=True))

for line in sys.stdin:
    folder, calls, deadly = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            points = Points(deadly)
            trio.run(main, folder, calls)
            note(f"{folder}/points", str(points.passed))
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

Zygote = subprocess.Popen[str]


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with subprocess.Popen([sys.executable, "-P", "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def run(zygote: Zygote, folder: Path, calls: int, deadly: int) -> int:
    """One process; returns its exit status. `deadly`: the point at which it kills itself, 0: none."""
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    zygote.stdin.write(json.dumps([str(folder), calls, deadly]) + "\n")
    zygote.stdin.flush()
    return int(zygote.stdout.readline())


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def judge(folder: Path) -> Counter[str]:
    """Compare what handlers did with what callers were told; returns how calls ended."""
    ran = Counter(lines(folder / "ran"))
    with closing(sqlite3.connect(folder / "callee.db")) as connection:
        ran.update(name for (name,) in connection.execute("SELECT name FROM runs"))
        ((held,),) = connection.execute("SELECT count(*) FROM holders")
    with closing(sqlite3.connect(folder / "caller.db")) as connection:
        ((under_way,),) = connection.execute("SELECT count(*) FROM calls")
    assert (held, under_way) == (0, 0)
    assert max(ran.values(), default=1) == 1, f"ran twice: {ran}"
    told: dict[str, Any] = {}
    for line in lines(folder / "told"):
        name, _, end = line.partition(" ")
        assert name not in told, f"{name} was told {told[name]} and {end}"
        told[name] = end
        assert end in ("done", "CallInterruptedError"), f"{name}: {end}"  # nobody is told MAYBE
        assert ran[name] == 1 or end == "CallInterruptedError", f"{name} was told {end}, and ran {ran[name]} times"
        assert end == "done" or name.startswith("1/"), f"{name}: a transaction is never interrupted"
    assert set(lines(folder / "recovered")) <= set(told), "a recovered call has no end"
    return Counter(told.values())


@pytest.mark.slow
def test_killed_at_each_commit_point(zygote: Zygote, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(zygote, whole, CALLS, 0) == 0
    assert judge(whole) == {"done": 2 * CALLS}
    (points,) = map(int, lines(whole / "points"))
    assert points > 20
    ends: Counter[str] = Counter()
    for deadly in range(1, points + 1):
        folder = tmp_path / f"{deadly}"
        folder.mkdir()
        status = run(zygote, folder, CALLS, deadly)
        assert status in (-9, 0)  # how many commits there are depends on how they are gathered: the last points may not come
        if status:
            assert run(zygote, folder, 0, 1 + deadly % 17) in (-9, 0)
        assert run(zygote, folder, 0, 0) == 0
        ends += judge(folder)
    print(f"{points} points, {ends}")
    assert ends["done"] > points
