"""Lock manager: workers share locks that a courier on another node grants, while the connection is cut again and again.

The handler of LOCK waits until the lock can be had: one lost call would hang a worker for ever, one that ran twice would grant it twice.
A holder in the way is asked to let go by a call in the other direction (a blocking AST), as in ocfs2's lock manager.
"""

import argparse
import sys
from collections import Counter, defaultdict

import trio

import rdsx
from rdsx.calls import Courier, IncomingCall

MASTER, WORKERS, PORT = "127.0.0.1", "127.0.0.2", 7000
LOCK, CONVERT, UNLOCK, BLOCKING = range(1, 5)  # types of calls; the payload is "worker lock mode"


class Master:
    def __init__(self, courier: Courier, tasks: trio.Nursery) -> None:
        self.courier, self.tasks, self.granted = courier, tasks, 0
        self.holders = defaultdict[str, dict[str, str]](dict)  # lock -> worker -> mode
        self.changed = defaultdict[str, trio.lowlevel.ParkingLot](trio.lowlevel.ParkingLot)
        for msg_type, handler in ((LOCK, self.lock), (CONVERT, self.lock), (UNLOCK, self.unlock)):
            courier.register(msg_type, handler)

    async def lock(self, call: IncomingCall) -> None:
        worker, lock, mode = call.payload.decode().split()
        holders = self.holders[lock]
        while blocking := [other for other in holders if other != worker and "exclusive" in (mode, holders[other])]:
            self.tasks.start_soon(self.courier.call, call.peer, BLOCKING, blocking[0].encode())
            await self.changed[lock].park()
        self.granted += call.msg_type == LOCK
        holders[worker] = mode
        self.changed[lock].unpark_all()  # a conversion may have made room

    async def unlock(self, call: IncomingCall) -> None:
        worker, lock = call.payload.decode().split()
        del self.holders[lock][worker]
        self.changed[lock].unpark_all()


async def work(courier: Courier, name: str, count: int, in_the_way: dict[str, trio.Event], done: Counter[str]) -> None:
    """Take locks, change what they protect, which nothing else protects, and let go when somebody asks."""
    for number in range(count):
        lock = f"lock{number % 3}"
        in_the_way[name] = trio.Event()
        await courier.call((MASTER, PORT), LOCK, f"{name} {lock} exclusive".encode())
        before = done[lock]
        await trio.sleep(0.001)
        done[lock] = before + 1
        await courier.call((MASTER, PORT), CONVERT, f"{name} {lock} shared".encode())  # readers could come in now
        with trio.move_on_after(0.01):
            await in_the_way[name].wait()
        await courier.call((MASTER, PORT), UNLOCK, f"{name} {lock}".encode())


async def run(options: argparse.Namespace) -> None:
    config, done, in_the_way = rdsx.NodeConfig(port=options.port), Counter[str](), dict[str, trio.Event]()
    async with (
        rdsx.open_node(MASTER, config=config) as there, rdsx.open_courier(await there.bind(PORT)) as server,
        rdsx.open_node(WORKERS, config=config) as here, rdsx.open_courier(await here.bind(PORT)) as courier, trio.open_nursery() as tasks,
    ):  # fmt: skip
        master = Master(server, tasks)
        courier.register(BLOCKING, lambda call: in_the_way[call.payload.decode()].set())
        async with trio.open_nursery() as workers:
            for name in "abcdefgh":
                workers.start_soon(work, courier, name, options.count, in_the_way, done)
            while workers.child_tasks:
                await trio.sleep(0.02)
                here.reset_connection(MASTER)
        reconnects = here.statistics().connections[0].reconnects
    print(f"{master.granted} locks granted, {done.total()} changes kept, {reconnects} reconnects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, metavar="N", help="locks that each worker takes (default: %(default)s)")
    parser.add_argument("--port", type=int, default=rdsx.RDS_TCP_PORT, metavar="N", help="TCP port of both nodes (default: %(default)s)")
    options = parser.parse_args()
    try:
        trio.run(run, options)
    except* OSError as errors:
        sys.exit(f"lock_manager: {errors.exceptions[0]}")


if __name__ == "__main__":
    main()
