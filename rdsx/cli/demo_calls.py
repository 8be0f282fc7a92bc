"""`rdsx demo calls`: a lock manager over exactly-once calls, while connections are cut and its master is killed and restarted.

Owns the options, the two processes (what they do is in `locks`), the kills, and the verdict, which it reads from the master's own table.
Invariant: both processes have ended when the command does.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from rdsx.cli.demo import ADDRESSES, DEFAULT_PORT, STATUS_FAULTY, check_port
from rdsx.cli.running import CliError, Interrupt, print_json, run

__all__ = ["command"]

BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from rdsx.cli.locks import main; main()"
STALL_S = 60.0


@click.command("calls")
@click.option("--workers", type=click.IntRange(1, 200), default=16, show_default=True, help="Tasks that take locks.")
@click.option("--locks", "locks_each", type=click.IntRange(1, 100_000), default=60, show_default=True, help="Locks that each takes.")
@click.option("--cuts", type=click.IntRange(0, 10_000), default=20, show_default=True, help="How often to cut the connection, at most.")
@click.option("--kills", type=click.IntRange(0, 100), default=3, show_default=True, help="How often to kill the master, and restart it.")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="TCP port of both nodes.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines; the last is the result.")
@click.pass_context
def command(ctx: click.Context, workers: int, locks_each: int, cuts: int, kills: int, port: int, as_json: bool) -> None:
    """Prove it for calls: a lock manager that grants each lock exactly once.

    Tasks of a node process on 127.0.0.2 take, convert and release locks of a master on 127.0.0.1, which keeps its table in SQLite. The
    connection is cut, and the master killed with SIGKILL and started again. Exit status 0 only if each request was granted exactly once,
    by the master's own table, and nobody ever shared an exclusive lock.
    """
    check_port(port)
    interrupt = Interrupt()
    with tempfile.TemporaryDirectory(prefix="rdsx-calls-") as directory:
        path = f"{directory}/locks.db"
        common = {"port": port, "workers": workers, "locks_each": locks_each, "cuts": cuts}
        master = {**common, "local": ADDRESSES[0], "remote": ADDRESSES[1], "store": path}
        worker = {**common, "local": ADDRESSES[1], "remote": ADDRESSES[0], "store": ""}
        found = run(_run, master, worker, workers * locks_each, kills, as_json, interrupt)
        if interrupt.signal_number:
            click.echo("rdsx demo calls: interrupted; both processes have ended", err=True)
            ctx.exit(interrupt.exit_status)
        outcome = judge(found, path, workers * locks_each)
    show(outcome, as_json)
    ctx.exit(0 if outcome["ok"] else STATUS_FAULTY)


async def _run(
    master: dict[str, Any], worker: dict[str, Any], total: int, kills: int, as_json: bool, interrupt: Interrupt
) -> dict[str, Any]:
    """Run both processes; returns what the workers counted."""
    result: dict[str, Any] = {"kills": 0}
    async with interrupt.ends_block(), AsyncProcess(master) as server, AsyncProcess(worker) as client:
        await server.read_until("ready")
        if as_json:
            print_json(event="started", processes={process.name: process.pid for process in (server, client)})
        while (event := await client.next_event())["event"] != "result":
            if result["kills"] < kills and event["locks"] >= (result["kills"] + 1) * total // (kills + 1):
                await server.kill()
                await server.start()
                result["kills"] += 1
                if as_json:
                    print_json(event="restarted", processes={server.name: server.pid})
        result.update(event)
    return result


class AsyncProcess:
    """One process: started, killed and started again, read."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._process: trio.Process | None = None
        self._lines: AsyncIterator[bytes] | None = None

    @property
    def name(self) -> str:
        """Its address."""
        return str(self._job["local"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> AsyncProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self.kill()

    async def start(self) -> None:
        command = [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), json.dumps(self._job)]
        pipe = subprocess.PIPE
        self._process = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, start_new_session=True)
        assert self._process.stdout is not None
        self._lines = lines_of(self._process.stdout)

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            await stream.aclose()

    async def next_event(self) -> dict[str, Any]:
        assert self._lines is not None
        with trio.move_on_after(STALL_S):
            async for line in self._lines:
                event: dict[str, Any] = json.loads(line)
                return event
            raise CliError(f"the process at {self._job['local']} ended unexpectedly")
        raise CliError(f"nothing happened at {self._job['local']} for {STALL_S:.0f} s: a lock was lost")

    async def read_until(self, name: str) -> None:
        while (await self.next_event())["event"] != name:
            pass


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    pending = b""
    async for chunk in stream:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line


def judge(found: dict[str, Any], path: str, total: int) -> dict[str, Any]:
    """Compare what the workers counted with what the master's table says."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ((grants, requests),) = connection.execute("SELECT count(*), count(DISTINCT request) FROM grants")
        ((released,),) = connection.execute("SELECT count(*) FROM requests WHERE state = 'released'")
    found.pop("event", None)
    outcome = {"requests": total, "granted": grants, "granted_twice": grants - requests, "never_granted": total - requests, **found}
    outcome["ok"] = grants == requests == released == total == found.get("locks") and found["violations"] == 0
    return {"event": "result", **outcome}


def show(outcome: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(**outcome)
        return
    table = Table(title="rdsx demo calls", title_justify="left", show_header=False)
    faults = ("granted_twice", "never_granted", "violations")
    labels = {
        "requests": "locks asked for", "granted": "grants in the master's table", "granted_twice": "granted twice",
        "never_granted": "never granted", "violations": "exclusive locks that were shared", "converted": "conversions",
        "blocked": "blocking ASTs", "cuts": "connections cut", "kills": "master killed", "interrupted": "questions asked again",
    }  # fmt: skip
    for name, label in labels.items():
        style = ("red" if outcome[name] else "green") if name in faults else None
        table.add_row(label, f"{outcome[name]:,}", style=style)
    Console(file=sys.stdout).print(table)
    click.echo("Every lock was granted exactly once." if outcome["ok"] else "NOT EXACTLY ONCE: see above.")
