"""Producer and workers: congestion is the back-pressure, and a slow worker holds up nobody but itself.

The producer has one socket and one job list. Each worker is a socket with a short receive queue. When that queue is full the
worker's port is congested: the producer learns of it and gives the next job to a worker that has room. The last worker is slow.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections import Counter, deque

import trio

import rdsx

FIRST_PORT = 4001
JOB_BYTES = 1000
FAST_MS = 1.0  # time a worker needs for a job
QUEUE_BYTES = 4 * JOB_BYTES  # a worker is congested when more than this waits for it
SEND_BYTES = 8 * JOB_BYTES  # jobs on their way, to all workers together


async def work(sock: rdsx.RdsSocket, job_s: float) -> None:
    """Do one job after another, and send each result to whoever sent the job."""
    async for job, producer in sock:
        await trio.sleep(job_s)
        await sock.sendto(job[:8], producer)


async def feed(sock: rdsx.RdsSocket, worker: tuple[str, int], jobs: deque[bytes]) -> None:
    """Give a worker the next job whenever it has room. While this task waits for that, others feed the other workers."""
    while jobs:
        try:
            sock.sendto_nowait(jobs[0], worker)
        except (rdsx.CongestedError, trio.WouldBlock):  # the worker's queue is full, or ours: SEND_BYTES are on their way
            await sock.wait_writable(worker)
        else:
            jobs.popleft()
            await trio.lowlevel.checkpoint()  # the other workers' turn


async def run(options: argparse.Namespace) -> None:
    config = rdsx.NodeConfig(port=options.port)
    times_ms = [FAST_MS] * (options.workers - 1) + [options.slow_ms]
    jobs = deque(number.to_bytes(8, "big").ljust(JOB_BYTES, b".") for number in range(options.count))
    done: Counter[int] = Counter()
    async with (
        rdsx.open_node("127.0.0.2", config=config) as there,
        rdsx.open_node("127.0.0.1", config=config) as here,
        trio.open_nursery() as nursery,
    ):
        sock = await here.bind()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        started_s = trio.current_time()
        for port, job_ms in enumerate(times_ms, FIRST_PORT):
            worker = await there.bind(port)
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
            nursery.start_soon(work, worker, job_ms / 1000)
            nursery.start_soon(feed, sock, ("127.0.0.2", port), jobs)
        while done.total() < options.count:
            _, (_, port) = await sock.recvfrom()
            done[port] += 1
        elapsed_s = trio.current_time() - started_s
        nursery.cancel_scope.cancel()
    for port, job_ms in enumerate(times_ms, FIRST_PORT):
        print(f"worker {port}: {job_ms:g} ms a job, {done[port]} jobs done")
    equal_s = options.count / len(times_ms) * options.slow_ms / 1000
    print(f"{done.total()} jobs done in {elapsed_s:.3f} s; with equal shares the slow worker would need {equal_s:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, metavar="N", help="number of jobs (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="number of workers, the last is slow (default: %(default)s)")
    parser.add_argument(
        "--slow-ms", type=float, default=50, metavar="MS", help="time the slow worker needs for a job (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=rdsx.RDS_TCP_PORT, metavar="N", help="TCP port of both nodes (default: %(default)s)")
    options = parser.parse_args()
    try:
        trio.run(run, options)
    except* OSError as errors:
        sys.exit(f"work_queue: {errors.exceptions[0]}")


if __name__ == "__main__":
    main()
