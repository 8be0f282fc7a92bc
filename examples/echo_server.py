"""An echo server and a client that measures round trips.

python echo_server.py                                   both, in one process
python echo_server.py serve --server 10.0.0.2           the server, on one machine
python echo_server.py client --server 10.0.0.2 --client 10.0.0.1   the client, on another
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import trio

import rdsx


async def serve(node: rdsx.Node, rds_port: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Send every datagram back to where it came from.

    One socket serves all clients. It waits while the port of the client it answers is congested; a server that must not wait for
    one client answers with sendto_nowait(), as work_queue.py does.
    """
    with await node.bind(rds_port) as sock:
        task_status.started()
        async for data, address in sock:
            await sock.sendto(data, address)


async def ask(node: rdsx.Node, server: tuple[str, int], count: int, size: int) -> None:
    """Send `count` datagrams, each after the answer to the one before."""
    round_trips_us: list[float] = []
    with await node.bind() as sock:
        await sock.connect(server)
        for number in range(count):
            request = number.to_bytes(8, "big").ljust(size, b".")
            started_ns = time.monotonic_ns()
            await sock.send(request)
            if await sock.recv() != request:
                sys.exit(f"the answer to request {number} is another one's")
            round_trips_us.append((time.monotonic_ns() - started_ns) / 1000)
    print(f"{count} echoes of {size} bytes from {server[0]}, median round trip {statistics.median(round_trips_us):.0f} us")


async def run(options: argparse.Namespace) -> None:
    config = rdsx.NodeConfig(port=options.port)
    server = (options.server, options.rds_port)
    if options.mode == "serve":
        async with rdsx.open_node(options.server, config=config) as node:
            await serve(node, options.rds_port)
    elif options.mode == "client":
        async with rdsx.open_node(options.client, config=config) as node:
            await ask(node, server, options.count, options.size)
    else:
        async with (
            rdsx.open_node(options.server, config=config) as there,
            rdsx.open_node(options.client, config=config) as here,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(serve, there, options.rds_port)
            await ask(here, server, options.count, options.size)
            nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=["both", "serve", "client"], default="both", help="what to run (default: both)")
    parser.add_argument("--server", default="127.0.0.2", metavar="ADDRESS", help="address of the server (default: %(default)s)")
    parser.add_argument("--client", default="127.0.0.1", metavar="ADDRESS", help="address of the client (default: %(default)s)")
    parser.add_argument("--rds-port", type=int, default=4000, metavar="N", help="RDS port of the server's socket (default: %(default)s)")
    parser.add_argument("--port", type=int, default=rdsx.RDS_TCP_PORT, metavar="N", help="TCP port of all nodes (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="echoes to ask for (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, metavar="BYTES", help="bytes of a request, at least 8 (default: %(default)s)")
    options = parser.parse_args()
    if options.count < 1 or options.size < 8:
        parser.error("--count must be at least 1, and --size at least 8")
    try:
        trio.run(run, options)
    except* KeyboardInterrupt:
        pass
    except* OSError as errors:
        sys.exit(f"echo_server: {errors.exceptions[0]}")


if __name__ == "__main__":
    main()
