"""Real processes, real sockets, real files: couriers that call while connections are cut and the server is killed with SIGKILL.

The server counts executions in its own table, in the transactions of the handlers; the clients count what they were told. Then both must
agree. RDSX_CALLS=100096 is the full size.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from apikit import free_tcp_port

COURIERS = 8
SERVER, CLIENTS = "127.0.0.1", "127.0.0.2"

SERVE = """
import sys, trio, rdsx
from rdsx.calls import SqliteStore
async def main(address, port, path):
    store = SqliteStore(path, schema="CREATE TABLE IF NOT EXISTS runs (payload BLOB)")
    async with rdsx.open_node(address, config=rdsx.NodeConfig(port=port)) as node:
        async with rdsx.open_courier(await node.bind(7000), store=store) as courier:
            def add(call):
                call.transaction.execute("INSERT INTO runs VALUES (?)", (call.payload,))
                return b"ran " + call.payload
            courier.register(1, add, durability="transaction")
            print("ready", flush=True)
            await trio.sleep_forever()
trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
"""

CALL = """
import json, sys, trio, rdsx
from collections import Counter
async def main(address, server, port, couriers, calls, cuts):
    told, latencies = Counter(), []
    done = 0
    async with rdsx.open_node(address, config=rdsx.NodeConfig(port=port)) as node:
        async def work(courier, name, count):
            nonlocal done
            for number in range(count):
                text = f"{name}/{number}".encode()
                try:
                    reply = await courier.call((server, 7000), 1, text)
                    told["wrong" if reply != (0, b"ran " + text) else "replied"] += 1
                except rdsx.calls.CallError as error:
                    told[f"{type(error).__name__} {error.executed.value}"] += 1
                done += 1
                if done % max(couriers * calls // 50, 1) == 0:
                    print(json.dumps({"done": done}), flush=True)
        async def cut():
            while True:
                await trio.sleep(0.05)
                told["cuts"] += node.reset_connection(server)
        async def courier(number):
            async with rdsx.open_courier(await node.bind()) as courier, trio.open_nursery() as tasks:
                for task in range(16):
                    tasks.start_soon(work, courier, f"{number}/{task}", calls // 16)
        async with trio.open_nursery() as cutting:
            if cuts:
                cutting.start_soon(cut)
            async with trio.open_nursery() as tasks:
                for number in range(couriers):
                    tasks.start_soon(courier, number)
            cutting.cancel_scope.cancel()
    print(json.dumps({"done": done, "told": told}), flush=True)
trio.run(main, *json.loads(sys.argv[1]))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-P", "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def serve(port: int, path: Path) -> subprocess.Popen[str]:
    process = start(SERVE, SERVER, port, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def run_calls(path: Path, total: int, kills: int) -> dict[str, Any]:
    """`total` calls from 8 couriers; the server is killed `kills` times, evenly spread. Returns what the clients were told."""
    port = free_tcp_port()
    each = total // COURIERS
    server = serve(port, path)
    client = start(CALL, json.dumps([CLIENTS, SERVER, port, COURIERS, each, True]))
    assert client.stdout is not None
    killed = 0
    try:
        for line in client.stdout:
            event = json.loads(line)
            if killed < kills and event["done"] >= (killed + 1) * total // (kills + 1):
                server.kill()
                server.communicate()
                server = serve(port, path)
                killed += 1
        assert client.wait() == 0
        assert killed == kills
        told: dict[str, Any] = event["told"]
        return told
    finally:
        for process in (client, server):
            process.kill()
            process.communicate()


def check(path: Path, total: int, kills: int) -> None:
    told = run_calls(path, total, kills)
    cuts = told.pop("cuts")
    print(f"{total} calls, {cuts} cuts, {kills} kills")
    assert told == {"replied": total}  # nobody was told MAYBE, or anything wrong
    assert cuts > 3
    wanted = {
        f"{courier}/{task}/{number}".encode()
        for courier, task, number in itertools.product(range(COURIERS), range(16), range(total // COURIERS // 16))
    }
    with closing(sqlite3.connect(path)) as connection:
        ran = [payload for (payload,) in connection.execute("SELECT payload FROM runs")]
    assert len(ran) == len(set(ran)) == total
    assert set(ran) == wanted


def test_calls_survive_cuts_and_kills(tmp_path: Path) -> None:
    check(tmp_path / "server.db", int(os.environ.get("RDSX_CALLS", "6400")) // 128 * 128, kills=3)
