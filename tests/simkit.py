"""A whole cluster on virtual time with everything going wrong from one seed, and an exact account of every message.

`simulate(seed)` runs 2 to 5 real nodes on a `rdsx.testing.VirtualNetwork`. Senders send, receivers dawdle, and a chaos task cuts
streams at chosen bytes, partitions, half-opens, resets and restarts. The ledger holds, after every step: per (sender, receiver) in
order, at most once, nothing lost that was not cancelled and whose ends both lived; accounts add up; and at the end they are zero and
nobody is left waiting.
"""

from __future__ import annotations

import logging
import random
import struct
from collections import Counter
from contextlib import AsyncExitStack

import trio

import rdsx
from apikit import waits
from rdsx.testing import Faults, VirtualNetwork, run

TAG = struct.Struct(">III")  # sender's uid, sequence in its flow, length
DEADLINE_S = 3600.0  # virtual: whoever is not done by then waits for something that will never come


class Violation(AssertionError):
    """A promise was broken; the text carries the seed and the transcript."""


class Life:
    """One node from open to close, with its sockets."""

    def __init__(self, host: str, number: int) -> None:
        self.host = host
        self.number = number
        self.scope = trio.CancelScope()
        self.ready = trio.Event()
        self.over = trio.Event()
        self.node: rdsx.Node
        self.socks: dict[int, rdsx.RdsSocket] = {}


class Cluster:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        pick = self.random
        self.network = VirtualNetwork(
            seed,
            Faults(
                max_latency_s=pick.choice([0.0002, 0.005, 0.3]),
                buffer_bytes=pick.choice([3000, 16384, 65536]),
                partial_writes=pick.choice([0.0, 0.3, 0.9]),
            ),
        )
        self.hosts = [f"10.0.0.{n}" for n in pick.sample(range(1, 250), pick.randint(2, 5))]
        self.ports = list(range(4000, 4000 + pick.randint(1, 2)))
        self.small_buffers = pick.random() < 0.5
        self.restarts = pick.random() < 0.4
        self.lives: dict[str, Life] = {}
        self.uids = 0
        self.sent: Counter[tuple[int, str, int]] = Counter()  # (sender uid, host, port) -> messages sent
        self.got: dict[tuple[int, str, int], dict[int, list[int]]] = {}  # same flow -> receiving life -> sequences
        self.maybe: set[tuple[tuple[int, str, int], int]] = set()  # (flow, sequence) that may or may not arrive
        self.unsure: set[tuple[int, str, int]] = set()  # flows one of whose ends did not live through the run
        self.born: dict[int, str] = {}
        self.senders = 0
        self.done = trio.Event()  # every sender has sent and flushed
        self.calm = trio.Event()  # chaos has ended

    # -- lives

    async def live(self, host: str, number: int, nursery: trio.Nursery) -> None:
        life = Life(host, number)
        self.lives[host] = life
        config = rdsx.NodeConfig(
            seed=self.seed * 1000 + number,
            sequence_base=1 + number * 10**6,
            send_buffer_bytes=2500 if self.small_buffers else 106496,
            receive_buffer_bytes=1500 if self.small_buffers else 106496,
            max_message_bytes=20000,
            max_buffer_bytes=20000,
            busy_poll_s=1e-9 if self.seed % 4 == 3 else 0.0,  # that is one look at one link
        )
        with life.scope:
            async with AsyncExitStack() as stack:
                life.node = await stack.enter_async_context(rdsx.open_node(host, transport=self.network, config=config))
                for port in self.ports:
                    life.socks[port] = await life.node.bind(port)
                    nursery.start_soon(self.receive, life, port)
                life.ready.set()
                await trio.sleep_forever()
        life.over.set()

    def alive(self) -> list[Life]:
        return [life for life in self.lives.values() if not life.over.is_set() and life.ready.is_set()]

    # -- traffic

    async def send(self, host: str, port: int, count: int) -> None:
        """One sender on one socket, to random destinations, through every sending call."""
        pick = random.Random(f"{self.seed} {host} {port}")
        life = self.lives[host]
        self.uids += 1
        uid = self.uids
        self.born[uid] = host
        sock = life.socks[port]
        try:
            while count > 0:
                batch = []
                for _ in range(pick.choice([1, 1, 1, 5])):
                    flow = uid, pick.choice(self.hosts), pick.choice(self.ports)
                    if flow[1] == host and pick.random() < 0.8:
                        continue
                    length = pick.choice([12, 13, 60, 500, 1400, 2000] + ([] if self.small_buffers else [4095, 4096, 4097, 9000, 20000]))
                    self.sent[flow] += 1
                    batch.append((TAG.pack(uid, self.sent[flow], length).ljust(length, b"."), flow[1:]))
                count -= max(1, len(batch))
                await self.send_batch(sock, batch, pick)
                self.check_accounts()
                if pick.random() < 0.05:
                    self.cancel(sock, uid, (pick.choice(self.hosts), pick.choice(self.ports)))
                if pick.random() < 0.3:
                    await trio.sleep(pick.expovariate(100))
                if pick.random() < 0.02:
                    with trio.move_on_after(pick.random()):
                        await sock.flush()
            await sock.flush()
        except trio.ClosedResourceError:
            if not life.scope.cancel_called:
                raise
        finally:
            self.senders -= 1
            if not self.senders:
                self.done.set()

    async def send_batch(self, sock: rdsx.RdsSocket, batch: list[tuple[bytes, tuple[str, int]]], pick: random.Random) -> None:
        if len(batch) > 1:
            await sock.sendmmsg(batch)
            return
        for data, address in batch:
            how = pick.random()
            if how < 0.3:
                await sock.wait_writable(address)
                try:
                    sock.sendto_nowait(data, address)
                    continue
                except (trio.WouldBlock, rdsx.CongestedError):
                    pass
            await sock.sendto(data, address)

    def cancel(self, sock: rdsx.RdsSocket, uid: int, address: tuple[str, int]) -> None:
        flow = (uid, *address)
        arrived = {sequence for life in self.got.get(flow, {}).values() for sequence in life}
        if sock.cancel_sent_to(address):
            self.maybe |= {(flow, sequence) for sequence in range(1, self.sent[flow] + 1) if sequence not in arrived}

    async def receive(self, life: Life, port: int) -> None:
        """A receiver that sometimes sleeps long enough to become congested."""
        pick = random.Random(f"{self.seed} {life.number} {port} receive")
        sock = life.socks[port]
        lazy = pick.choice([0.0, 0.0, 0.05, 0.5])
        try:
            while True:
                if pick.random() < 0.5:
                    received = [await sock.recvfrom()]
                else:
                    received = await sock.recvmmsg(pick.randint(1, 50))
                for data, (source, _) in received:
                    self.record(life, port, data, source)
                self.check_accounts()
                if pick.random() < lazy:
                    await trio.sleep(pick.uniform(0, 2))
        except trio.ClosedResourceError:
            if not life.scope.cancel_called and not self.done.is_set():
                raise

    def record(self, life: Life, port: int, data: bytes, source: str) -> None:
        uid, sequence, length = TAG.unpack_from(data)
        flow = uid, life.host, port
        self.require(len(data) == length and data[12:] == b"." * (length - 12), f"{flow} #{sequence}: damaged")
        self.require(self.born[uid] == source, f"{flow} #{sequence}: came from {source}, was sent by {self.born[uid]}")
        for number, other in self.got.get(flow, {}).items():
            self.require(number == life.number or sequence not in other, f"{flow} #{sequence}: in life {number} and again in {life.number}")
        so_far = self.got.setdefault(flow, {}).setdefault(life.number, [])
        self.require(not so_far or sequence > so_far[-1], f"{flow}: #{sequence} after #{so_far[-1] if so_far else None}")
        so_far.append(sequence)

    # -- chaos

    async def chaos(self, nursery: trio.Nursery) -> None:
        pick = random.Random(f"{self.seed} chaos")
        numbers = 100
        while not self.done.is_set():
            await trio.sleep(pick.expovariate(pick.choice([2, 20, 200])))
            one, other = pick.sample(self.hosts, 2)
            what = pick.random()
            if pick.random() < 0.1:
                self.network.move(one)
            if what < 0.5:
                # inside a header, inside a payload, between messages, inside the map that begins a connection
                self.network.cut(one, other, after_bytes=pick.choice([0, 1, 7, 47, 48, 49, 300, 1460, 8191, 8240, 8241]))
            elif what < 0.65:
                self.lives[one].node.reset_connection(other)
            elif what < 0.75:
                self.network.half_open(one, other)
            elif what < 0.85:
                self.network.partition(one, other)
                await trio.sleep(pick.choice([0.01, 1, 40]))
                if pick.random() < 0.3:
                    self.network.move(other)
                    await trio.sleep(pick.choice([0.001, 0.5]))
                self.network.heal(one, other)
            elif self.restarts and numbers < 103:
                numbers += 1
                await self.restart(one, numbers, pick.random() < 0.5, nursery)
            if self.restarts or pick.random() < 0.03:
                await trio.sleep(pick.uniform(0, 0.2))
        self.network.heal_all()
        self.calm.set()

    async def restart(self, host: str, number: int, silently: bool, nursery: trio.Nursery) -> None:
        life = self.lives[host]
        self.network.note(f"restart {host}{' silently' if silently else ''}")
        self.unsure |= {flow for flow in self.sent if flow[1] == host or self.born[flow[0]] == host}
        self.unsure |= {(uid, host, port) for uid in self.born for port in self.ports}
        homeless = [uid for uid, home in self.born.items() if home == host]
        self.unsure |= {(uid, other, port) for uid in homeless for other in self.hosts for port in self.ports}
        if silently:
            self.network.crash(host)
        life.scope.cancel()
        await life.over.wait()
        nursery.start_soon(self.live, host, number, nursery)
        await trio.testing.wait_all_tasks_blocked()
        await self.lives[host].ready.wait()

    # -- judgement

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise Violation(what)

    def check_accounts(self) -> None:
        """The sums that must hold after every step."""
        for life in self.alive():
            node = life.node
            if life.scope.cancel_called:
                continue
            paths = [path for table in node._stack.tables.values() for path in table.routes.values()]
            queued_bytes = sum(path.queued_bytes for path in paths)
            self.require(node._stack.core.queued_bytes == queued_bytes, f"{life.host}: queued bytes do not add up")
            for port, sock in life.socks.items():
                endpoint = sock._endpoint
                pending = sum(path.pending_to(endpoint) for path in paths)
                unacknowledged = endpoint.unacknowledged
                self.require(unacknowledged == pending, f"{life.host}:{port}: {unacknowledged} unacknowledged, {pending} queued")
                self.require(bool(pending) or endpoint.sent_bytes == 0, f"{life.host}:{port}: {endpoint.sent_bytes} bytes of no message")
                if endpoint.bound:
                    self.require(endpoint.congested == endpoint.table.congestion.test(port), f"{life.host}:{port}: congestion bit is wrong")

    def complete(self) -> bool:
        return not self.missing()

    def missing(self) -> list[str]:
        out = []
        for flow, count in self.sent.items():
            if flow in self.unsure:
                continue
            arrived = [sequence for life in self.got.get(flow, {}).values() for sequence in life]
            lost = [n for n in range(1, count + 1) if n not in set(arrived) and (flow, n) not in self.maybe]
            if lost:
                out.append(f"{flow}: lost {lost[:10]} of {count}")
        return out

    # -- the run

    async def main(self) -> None:
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(self.hosts):
                nursery.start_soon(self.live, host, number, nursery)
            await trio.testing.wait_all_tasks_blocked()
            for life in list(self.lives.values()):
                await life.ready.wait()
            for host in self.hosts:
                for port in self.ports:
                    self.senders += 1
                    nursery.start_soon(self.send, host, port, self.random.randint(5, 25))
            nursery.start_soon(self.chaos, nursery)
            with trio.move_on_after(DEADLINE_S) as deadline:
                await self.done.wait()
                await self.calm.wait()
                while not self.complete():
                    await trio.sleep(1)
                for life in self.alive():
                    for sock in life.socks.values():
                        await sock.flush()
                while any(life.node._stack.core.queued_bytes for life in self.alive()):
                    await trio.sleep(1)
            if deadline.cancelled_caught:
                stuck = [
                    f"{life.host}:{port} waiting: {waits(sock)} {sock.statistics()}"
                    for life in self.alive()
                    for port, sock in life.socks.items()
                ]
                stuck += [str(link) for life in self.alive() for link in life.node.statistics().connections]
                raise Violation("\n".join(["never finished", f"{self.senders} senders", *self.missing(), *stuck]))
            self.check_accounts()
            for life in self.alive():
                for port, sock in life.socks.items():
                    statistics = sock.statistics()
                    self.require(not statistics.unacknowledged_messages, f"{life.host}:{port}: unacknowledged at the end")
                    empty = statistics.queued_messages == 0 and not statistics.congested
                    self.require(empty, f"{life.host}:{port}: still queued at the end")
            nursery.cancel_scope.cancel()


class TranscriptHandler(logging.Handler):
    """What the library logs, between the faults."""

    def __init__(self, network: VirtualNetwork) -> None:
        super().__init__()
        self.network = network

    def emit(self, record: logging.LogRecord) -> None:
        self.network.note(record.getMessage())


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def simulate(seed: int) -> Cluster:
    """Run one cluster. Raises Violation with the seed and the transcript."""
    cluster = Cluster(seed)
    handler = TranscriptHandler(cluster.network)
    log = logging.getLogger("rdsx")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    try:
        run(cluster.main, seed=seed)
    except BaseException as error:
        transcript = "\n".join(cluster.network.transcript[-80:])
        why = "\n".join(str(leaf) if isinstance(leaf, Violation) else repr(leaf) for leaf in leaves(error))
        raise Violation(f"seed {seed} (rerun it alone: RDSX_SEED={seed} pytest tests/simulation)\n{transcript}\n{why}") from error
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True
    return cluster
