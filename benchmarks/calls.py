"""`python -m benchmarks calls`: rdsx.calls beside a bare ping-pong of datagrams, gRPC (grpc.aio, unary) and ZeroMQ (pyzmq, REQ and REP).

All in one run: each measurement has fresh processes, a client and a server on the loopback interface; rounds of all backends are
interleaved, tables show medians. `datagrams` are rdsx sockets without calls, one for each ping-pong at once: the floor. Only calls resend
over a broken connection and run a handler once; the rows with a store also survive a restart of the server.
A backend whose package is absent is skipped, and named.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import click

CLIENT, SERVER = "127.0.0.1", "127.0.0.2"
RDS_PORT = 7000
PAYLOAD = b"x" * 64
NEEDS = {"grpc": ("grpc", "grpcio"), "zmq": ("zmq", "pyzmq")}
BACKENDS = ("datagrams", "rdsx", "rdsx-plain", "rdsx-journal", "rdsx-transaction", "grpc", "zmq")
AT_ONCE = (1, 64)
OUTSTANDING = 2000
WARM_UP_S = 0.3
BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from benchmarks.calls import run_side; run_side()"


# -- rdsx


def rdsx_server(kind: str, port: int) -> None:
    import trio

    import rdsx

    async def echo(call: rdsx.calls.IncomingCall) -> bytes:
        return call.payload

    async def never(call: rdsx.calls.IncomingCall) -> None:
        await trio.sleep_forever()

    def plain(call: rdsx.calls.IncomingCall) -> bytes:
        return call.payload

    def stored(call: rdsx.calls.IncomingCall) -> bytes:
        assert call.transaction is not None
        call.transaction.execute("INSERT INTO log VALUES (?)", (call.payload,))
        return call.payload

    async def main(directory: str) -> None:
        durable = kind in ("rdsx-journal", "rdsx-transaction")
        schema = "CREATE TABLE IF NOT EXISTS log (payload BLOB)"
        store = rdsx.calls.SqliteStore(f"{directory}/calls.db", schema=schema) if durable else None
        config = rdsx.calls.CallConfig(max_running=10_000, max_session_running=10_000, window=10_000)
        async with (
            rdsx.open_node(SERVER, config=rdsx.NodeConfig(port=port)) as node,
            rdsx.open_courier(await node.bind(RDS_PORT), store=store, config=config) as courier,
        ):
            if kind == "rdsx-transaction":
                courier.register(1, stored, durability="transaction")
            else:
                courier.register(1, plain if kind == "rdsx-plain" else echo)
            courier.register(2, never, concurrency=10_000)
            await serve_until_told(trio)

    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, directory)


async def serve_until_told(trio: Any) -> None:
    print("ready", flush=True)
    async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
        async for _ in stdin:
            print(json.dumps({"kib": resident_kib()}), flush=True)


def rdsx_client(port: int, at_once: int, seconds: float) -> dict[str, Any]:
    import trio

    import rdsx

    async def main() -> dict[str, Any]:
        config = rdsx.calls.CallConfig(window=10_000, max_queued_calls=10_000)
        async with (
            rdsx.open_node(CLIENT, config=rdsx.NodeConfig(port=port)) as node,
            rdsx.open_courier(await node.bind(), config=config) as courier,
        ):
            peer = (SERVER, RDS_PORT)
            if at_once == 0:
                return await outstanding(courier, peer)
            clock = Clock(seconds)

            async def work() -> None:
                while clock.goes_on():
                    began_ns = time.perf_counter_ns()
                    reply = await courier.call(peer, 1, PAYLOAD)
                    clock.note(began_ns, reply.payload)

            async with trio.open_nursery() as nursery:
                for _ in range(at_once):
                    nursery.start_soon(work)
            return clock.result()

    async def outstanding(courier: rdsx.calls.Courier, peer: tuple[str, int]) -> dict[str, Any]:
        await courier.call(peer, 1, PAYLOAD)
        print(json.dumps({"kib": resident_kib()}), flush=True)
        sys.stdin.readline()
        pending = [courier.start_call(peer, 2, PAYLOAD) for _ in range(OUTSTANDING)]
        await trio.sleep(1)
        found = {"kib": resident_kib()}
        print(json.dumps(found), flush=True)
        sys.stdin.readline()
        for call in pending:
            call.abandon()
        raise SystemExit  # the server's handlers never end

    return trio.run(main)


# -- rdsx without calls


def datagrams_server(kind: str, port: int) -> None:
    import trio

    import rdsx

    async def main() -> None:
        async with rdsx.open_node(SERVER, config=rdsx.NodeConfig(port=port)) as node:
            with await node.bind(RDS_PORT) as sock:
                print("ready", flush=True)
                async for data, address in sock:
                    await sock.sendto(data, address)

    trio.run(main)


def datagrams_client(port: int, at_once: int, seconds: float) -> dict[str, Any]:
    import trio

    import rdsx

    async def main() -> dict[str, Any]:
        async with rdsx.open_node(CLIENT, config=rdsx.NodeConfig(port=port)) as node:
            clock = Clock(seconds)

            async def work() -> None:
                with await node.bind() as sock:
                    while clock.goes_on():
                        began_ns = time.perf_counter_ns()
                        await sock.sendto(PAYLOAD, (SERVER, RDS_PORT))
                        clock.note(began_ns, await sock.recv())

            async with trio.open_nursery() as nursery:
                for _ in range(at_once):
                    nursery.start_soon(work)
            return clock.result()

    return trio.run(main)


# -- gRPC


def grpc_server(kind: str, port: int) -> None:
    import grpc

    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler("Calls", {"Call": grpc.unary_unary_rpc_method_handler(echo)})
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(f"{CLIENT}:{port}")
        await server.start()
        print("ready", flush=True)
        await server.wait_for_termination()

    asyncio.run(main())


def grpc_client(port: int, at_once: int, seconds: float) -> dict[str, Any]:
    import grpc

    async def main() -> dict[str, Any]:
        clock = Clock(seconds)
        async with grpc.aio.insecure_channel(f"{CLIENT}:{port}") as channel:
            call = channel.unary_unary("/Calls/Call")

            async def work() -> None:
                while clock.goes_on():
                    began_ns = time.perf_counter_ns()
                    clock.note(began_ns, await call(PAYLOAD))

            await asyncio.gather(*(work() for _ in range(at_once)))
        return clock.result()

    return asyncio.run(main())


# -- ZeroMQ


def zmq_server(kind: str, port: int) -> None:
    import zmq

    sock = zmq.Context().socket(zmq.REP)
    sock.bind(f"tcp://{CLIENT}:{port}")
    print("ready", flush=True)
    while True:
        sock.send(sock.recv())


def zmq_client(port: int, at_once: int, seconds: float) -> dict[str, Any]:
    """One REQ socket for each call at once, all in one thread."""
    import zmq

    context, poller, began = zmq.Context(), zmq.Poller(), {}
    clock = Clock(seconds)
    for _ in range(at_once):
        sock = context.socket(zmq.REQ)
        sock.linger = 0
        sock.connect(f"tcp://{CLIENT}:{port}")
        poller.register(sock, zmq.POLLIN)
        began[sock] = time.perf_counter_ns()
        sock.send(PAYLOAD)
    if at_once == 1:
        while clock.goes_on():
            clock.note(began[sock], sock.recv())
            began[sock] = time.perf_counter_ns()
            sock.send(PAYLOAD)
    while clock.goes_on():
        for sock, _ in poller.poll():
            clock.note(began[sock], sock.recv())
            began[sock] = time.perf_counter_ns()
            sock.send(PAYLOAD)
    context.destroy(linger=0)
    return clock.result()


# -- measuring


class Clock:
    """Latencies of the calls that began after the warm-up."""

    def __init__(self, seconds: float) -> None:
        self._start_s = time.perf_counter() + WARM_UP_S
        self._end_s = self._start_s + seconds
        self._latencies_ns: list[int] = []
        self._last_s = self._start_s

    def goes_on(self) -> bool:
        self._last_s = time.perf_counter()
        return self._last_s < self._end_s

    def note(self, began_ns: int, reply: bytes) -> None:
        if len(reply) != len(PAYLOAD):
            raise ValueError(f"a reply of {len(reply)} bytes to a request of {len(PAYLOAD)}")
        if began_ns >= self._start_s * 1e9:
            self._latencies_ns.append(time.perf_counter_ns() - began_ns)

    def result(self) -> dict[str, Any]:
        ordered = sorted(self._latencies_ns)
        return {
            "calls_per_s": len(ordered) / (self._last_s - self._start_s),
            "p50_us": ordered[len(ordered) // 2] / 1000,
            "p99_us": ordered[len(ordered) * 99 // 100] / 1000,
        }


def resident_kib() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def start(side: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", BOOT, json.dumps(sys.path), side, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_side() -> None:
    """A process: its side, backend and port, and what a client is to do."""
    side, backend, port, *rest = sys.argv[2:]
    family = backend.split("-")[0]
    if side == "server":
        {"datagrams": datagrams_server, "rdsx": rdsx_server, "grpc": grpc_server, "zmq": zmq_server}[family](backend, int(port))
    else:
        client = {"datagrams": datagrams_client, "rdsx": rdsx_client, "grpc": grpc_client, "zmq": zmq_client}[family]
        print(json.dumps(client(int(port), int(rest[0]), float(rest[1]))), flush=True)


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise click.ClickException(f"a process of the benchmark ended with status {process.wait()}")
    return line


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def measure(backend: str, at_once: int, seconds: float, port: int) -> dict[str, Any]:
    server = start("server", backend, port)
    try:
        read(server)
        client = start("client", backend, port, at_once, seconds)
        try:
            result: dict[str, Any] = json.loads(read(client))
            return result
        finally:
            client.kill()
            client.communicate()
    finally:
        server.kill()
        server.communicate()


def measure_memory(port: int) -> dict[str, float]:
    """Bytes for each outstanding call, whose handler runs, on both sides."""
    server = start("server", "rdsx", port)
    read(server)
    client = start("client", "rdsx", port, 0, 0)
    try:
        found = []
        for _ in range(2):
            here_kib = json.loads(read(client))["kib"]
            tell(server)
            found.append((here_kib, json.loads(read(server))["kib"]))
            tell(client)
        return {side: (after - before) * 1024 / OUTSTANDING for side, before, after in zip(("caller", "callee"), *found, strict=True)}
    finally:
        for process in (client, server):
            process.kill()
            process.communicate()


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds over all backends.")
@click.option("--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Length of a measurement.")
@click.option("--backend", "chosen", type=click.Choice(BACKENDS), multiple=True, help="Only this one; may be repeated.")
@click.option("--port", type=click.IntRange(1, 65000), default=24500, show_default=True, help="The first TCP port.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(rounds: int, seconds: float, chosen: tuple[str, ...], port: int, as_json: bool) -> None:
    """Calls/s, p50 and p99 with 1 and 64 calls at once; memory for each outstanding call."""
    backends = [backend for backend in chosen or BACKENDS if is_there(backend)]
    found: dict[tuple[int, str], list[dict[str, Any]]] = {(at_once, backend): [] for at_once in AT_ONCE for backend in backends}
    for _ in range(rounds):
        for (at_once, backend), results in found.items():
            port += 1
            results.append(measure(backend, at_once, seconds, port))
    medians = {key: {name: statistics.median(result[name] for result in results) for name in results[0]} for key, results in found.items()}
    memory = measure_memory(port + 1)
    if as_json:
        calls = {f"{backend}/{at_once}": each for (at_once, backend), each in medians.items()}
        click.echo(json.dumps({"calls": calls, "memory": memory}))
    else:
        show(backends, medians, memory)


def is_there(backend: str) -> bool:
    module, package = NEEDS.get(backend, ("rdsx", "rdsx"))
    if importlib.util.find_spec(module) is None:
        click.echo(f"{backend}: skipped, pip install {package}", err=True)
        return False
    return True


def show(backends: list[str], medians: dict[tuple[int, str], dict[str, Any]], memory: dict[str, float]) -> None:
    for at_once in AT_ONCE:
        click.echo(f"\n{at_once} at once".ljust(25) + "calls/s     p50, µs     p99, µs".rjust(32))
        for backend in backends:
            each = medians[at_once, backend]
            click.echo(f"{backend:20} {each['calls_per_s']:12,.0f} {each['p50_us']:11,.0f} {each['p99_us']:11,.0f}")
    caller, callee = memory["caller"], memory["callee"]
    click.echo(f"\nmemory for each outstanding call: caller {caller:,.0f} bytes, callee with its handler's task {callee:,.0f}")
