"""`rdsx ping`: round-trip times to a node, as rds-ping measures them. Owns the schedule of pings, their sockets and what is printed.

A ping is an empty message to port 0; the answer is an empty datagram from there. It carries nothing, so the socket tells which ping it
answers. Invariant: a socket never has more than one ping outstanding. One whose answer does not come is replaced before its turn comes
again; a late answer then finds no socket and is never taken for another ping's.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Literal

import click
import trio

import rdsx
from rdsx.cli.hosts import local_address_towards, resolve_host
from rdsx.cli.latency import Latencies
from rdsx.cli.quantities import parse_count, parse_interval_s
from rdsx.cli.running import Interrupt, explain_bind_error, print_json, run

__all__ = ["command"]

TransportName = Literal["tcp", "verbs", "kernel"]
SOCKETS = 8
PING_PORT = 0
DEFAULT_PORT = 16385
PATIENCE_S = 1.0  # how long a socket whose turn it is may still wait for its answer
CLOSE_S = 0.5  # to part from the peer in order; all that the user asked for has been said by then
STATUS_NO_ANSWER = 1


@click.command()
@click.argument("host")
@click.option("-c", "--count", metavar="COUNT", type=parse_count, help="Stop after so many pings; may end in k, m or g.")
@click.option("-i", "--interval", "interval_s", metavar="INTERVAL", type=parse_interval_s, default="1", show_default=True,
              help="Time between pings in seconds, or with ms or us.")  # fmt: skip
@click.option("-I", "--local", "local", metavar="ADDRESS", default=None, help="Local address. Default: what the routes choose.")
@click.option("-Q", "--tos", type=click.IntRange(0, 255), default=0, show_default=True, help="Type of service; TCP has only 0.")
@click.option("--transport", type=click.Choice(["tcp", "verbs", "kernel"]), default="tcp", show_default=True,
              help="tcp, verbs: a node of rdsx, over TCP or RDMA; kernel: this machine's own RDS.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="TCP port of the nodes, for tcp.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines; the last line is the summary.")
@click.pass_context
def command(
    ctx: click.Context,
    host: str,
    count: int | None,
    interval_s: float,
    local: str | None,
    tos: int,
    transport: TransportName,
    port: int,
    as_json: bool,
) -> None:
    """Measure round-trip times to the node at HOST.

    Ends when COUNT answers have come, one interval after the last ping, or at Ctrl-C. Exit status 0 if anything was received, else 1.
    """
    if tos and transport == "tcp":
        raise click.BadParameter(f"{tos}: TCP carries no type of service; leave it out, or use --transport verbs", ctx, param_hint="'-Q'")
    tally = Tally(print_answer_json if as_json else print_answer)
    run(_run, host, local, transport, port, count, interval_s, tos, tally)
    if as_json:
        print_json(event="summary", **tally.summary())
    else:
        click.echo(tally.summary_text(host))
    ctx.exit(0 if tally.received else STATUS_NO_ANSWER)


def print_answer(number: int, microseconds: int, address: str | None, duplicate: bool, error: str | None) -> None:
    """rds-ping's line."""
    line = f" {number:3d}: {microseconds} usec"
    line += f" ({address})" if address else ""
    line += " DUP!" if duplicate else ""
    line += f" ERROR: {error}" if error else ""
    click.echo(line)


def print_answer_json(number: int, microseconds: int, address: str | None, duplicate: bool, error: str | None) -> None:
    event = "error" if error else "answer"
    print_json(event=event, number=number, usec=microseconds, address=address, duplicate=duplicate, error=error)


class Tally:
    """Counts pings and answers, and prints each answer as it comes."""

    def __init__(self, print_line: Callable[[int, int, str | None, bool, str | None], None]) -> None:
        self._print_line = print_line
        self._latencies = Latencies()
        self._remarked = False
        self.sent = 0
        self.received = 0
        self.duplicates = 0
        self.errors = 0

    def answered(self, number: int, round_trip_ns: int, address: str | None, *, duplicate: bool) -> None:
        """An answer came; `address` only if it is not the destination's."""
        if duplicate:
            self.duplicates += 1
        else:
            self.received += 1
            self._latencies.add(round_trip_ns)
        self._print_line(number, round_trip_ns // 1000, address, duplicate, None)

    def failed(self, number: int, elapsed_ns: int, error: OSError) -> None:
        """A send or receive failed."""
        self.errors += 1
        self._print_line(number, elapsed_ns // 1000, None, False, error.strerror or str(error))
        if error.errno == errno.EINVAL and not self._remarked:
            self._remarked = True
            click.echo("      Perhaps this system's RDS does not support ping.")

    def summary(self) -> dict[str, object]:
        fields: dict[str, object] = {
            "sent": self.sent,
            "received": self.received,
            "lost": self.sent - self.received,
            "duplicates": self.duplicates,
            "errors": self.errors,
        }
        return fields | {f"{name}_usec": None if ns is None else ns / 1000 for name, ns in self._times_ns().items()}

    def summary_text(self, host: str) -> str:
        lines = [f"--- {host}: {self.sent} sent, {self.received} received, {self.sent - self.received} lost"]
        if self.duplicates:
            lines[0] += f", {self.duplicates} duplicates"
        if self.received:
            times_ns = self._times_ns()
            values = "/".join(f"{(ns or 0) // 1000}" for ns in times_ns.values())
            lines.append(f"    {'/'.join(times_ns)} {values} usec")
        return "\n".join(lines)

    def _times_ns(self) -> dict[str, int | None]:
        latencies = self._latencies
        ranks = {name: latencies.percentile_ns(float(name[1:])) for name in ("p50", "p90", "p99")}
        ends = (latencies.min_ns, latencies.max_ns) if latencies.count else (None, None)
        return {"min": ends[0], **ranks, "max": ends[1]}


class PingSocket:
    """One of the sockets that take turns. `send` gives it a ping, a task of its own waits for the answer."""

    def __init__(self, node: rdsx.Node, local: str, target: str, tos: int, tally: Tally, answered: Callable[[], None]) -> None:
        self._node = node
        self._local = local
        self._target = target
        self._tos = tos
        self._tally = tally
        self._answered = answered
        self._scope = trio.CancelScope()
        self._number = 0
        self._sent_ns = 0
        self._answers = 0
        self._answer_came = trio.Event()
        self._sock: rdsx.RdsSocket | None = None

    async def send(self, number: int, tasks: trio.Nursery) -> None:
        """Send ping `number`. An earlier one that is still unanswered gets PATIENCE_S from its sending, then is given up."""
        if self._sock is not None and not self._answers:
            patience_s = PATIENCE_S - (time.monotonic_ns() - self._sent_ns) / 1e9
            with trio.move_on_after(max(0.0, patience_s)):
                await self._answer_came.wait()
            if not self._answers:
                self.close()
        self._number, self._answers, self._answer_came = number, 0, trio.Event()
        self._sent_ns = time.monotonic_ns()
        try:
            if self._sock is None:
                self._sock = self._node.socket()
                await self._sock.bind((self._local, 0))
                if self._tos:
                    self._sock.set_tos(self._tos)
                self._scope = trio.CancelScope()
                tasks.start_soon(self._receive, self._sock, self._scope)
            self._sent_ns = time.monotonic_ns()
            self._tally.sent += 1
            await self._sock.sendto(b"", (self._target, PING_PORT))
        except OSError as error:
            self._tally.failed(number, time.monotonic_ns() - self._sent_ns, error)
            self.close()

    def close(self) -> None:
        """Give the socket up, and with it a ping that is not answered."""
        self._scope.cancel()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def _receive(self, sock: rdsx.RdsSocket, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                _, sender = await sock.recvfrom()
                round_trip_ns = time.monotonic_ns() - self._sent_ns
                if sender[1] != PING_PORT:
                    continue  # somebody's message to a port that happens to be ours
                host = str(sender[0])
                elsewhere = None if host == self._target.partition("%")[0] else host
                self._tally.answered(self._number, round_trip_ns, elsewhere, duplicate=self._answers > 0)
                self._answers += 1
                self._answer_came.set()
                self._answered()


async def _run(
    host: str, local: str | None, transport: TransportName, port: int, count: int | None, interval_s: float, tos: int, tally: Tally
) -> None:
    interrupt = Interrupt()
    async with interrupt.ends_block():
        source, target = await _addresses(host, local)
        try:
            with trio.CancelScope() as scope:
                async with rdsx.open_node(source, transport=transport, config=rdsx.NodeConfig(port=port)) as node:
                    await _ping(node, source, target, tos, count, interval_s, tally)
                    scope.deadline = trio.current_time() + CLOSE_S
        except OSError as error:
            if transport != "tcp":
                raise
            remedy = f"stop that program, or ping from another local address with -I (the peer's port must be {port} too)"
            raise explain_bind_error(error, source, port, remedy) from error


async def _addresses(host: str, local: str | None) -> tuple[str, str]:
    """(local address, destination)."""
    if local is None:
        target = await resolve_host(host)
        return await local_address_towards(target), target
    source = await resolve_host(local)
    return source, await resolve_host(host, socket.AF_INET6 if ":" in source else socket.AF_INET)


async def _ping(node: rdsx.Node, source: str, target: str, tos: int, count: int | None, interval_s: float, tally: Tally) -> None:
    async with trio.open_nursery() as tasks:

        def finish_when_all_answered() -> None:
            if count is not None and tally.received >= count:
                tasks.cancel_scope.cancel()

        sockets = [PingSocket(node, source, target, tos, tally, finish_when_all_answered) for _ in range(SOCKETS)]
        next_s = trio.current_time()
        number = 0
        while count is None or number < count:
            await trio.sleep_until(next_s)
            await sockets[number % SOCKETS].send(number + 1, tasks)
            number += 1
            next_s = max(next_s + interval_s, trio.current_time() - interval_s)  # after a pause, no burst to catch up
        await trio.sleep(interval_s)
        tasks.cancel_scope.cancel()
    for sock in sockets:
        sock.close()
