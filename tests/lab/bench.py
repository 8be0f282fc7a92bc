"""A bench: an rdsx node and a guest's kernel at the two ends of one cable, each with its lives, and an account of every message.

Invariant: a `Flow` knows what its sender was to send; what each life of its receiver got is compared with that, message by message.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import trio

from .driver import Driver, DriverError, RdsxDriver, open_kernel, open_rdsx
from .guest import Guest
from .lab import Lab
from .traffic import digests

__all__ = ["Bench", "End", "Flow", "Lost", "open_bench"]

PORT = 4000  # at both ends, for sending and for receiving
LINGER_S = 0.2  # time for a message that should not come
POLL_S = 0.02
MAX_LATE = 128  # messages that one report of an end brings, and then some

EndName = Literal["rdsx", "kernel"]


class Lost(AssertionError):
    """Messages are lost, twice, foreign or out of order. The text says which."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Messages from one end to the other, port to port."""

    sender: EndName
    seed: int
    count: int = 1
    low: int = 64
    high: int = 64

    @property
    def receiver(self) -> EndName:
        return "kernel" if self.sender == "rdsx" else "rdsx"

    @property
    def messages(self) -> dict[str, int]:
        """As arguments of the verbs that send."""
        return {"seed": self.seed, "count": self.count, "low": self.low, "high": self.high}

    @property
    def digests(self) -> list[str]:
        return digests(self.seed, self.count, self.low, self.high)


class End:
    """One end through all its lives; `now` is the present one."""

    def __init__(self, name: EndName, address: str, stack: AsyncExitStack, opener: Callable[[], Any]) -> None:
        self.name = name
        self.address = address
        self.lives: list[Driver] = []
        self._stack = stack
        self._open = opener

    @property
    def now(self) -> Driver:
        return self.lives[-1]

    async def start(self) -> None:
        """Begin a life. After kill() it is the next one."""
        self.lives.append(await self._stack.enter_async_context(self._open()))

    async def bind(self, *, reads: bool = True, **buffers: int) -> None:
        await self.now.do("bind", port=PORT, **buffers)
        if reads:
            await self.read()

    async def read(self) -> None:
        """Take what comes, from now on."""
        await self.now.tell("receive", port=PORT)

    def received(self, life: int = -1) -> list[str]:
        """What came in one life, by digest."""
        return [digest for digest, _ in self.lives[life].received[PORT]]


@dataclass
class Bench:
    """Made by `open_bench()`. `first` is who speaks first."""

    lab: Lab
    guest: Guest
    rdsx: End
    kernel: End
    first: EndName
    nursery: trio.Nursery

    @property
    def ends(self) -> tuple[End, End]:
        """The one who speaks first, and the other."""
        return (self.rdsx, self.kernel) if self.first == "rdsx" else (self.kernel, self.rdsx)

    def end(self, name: EndName) -> End:
        return self.rdsx if name == "rdsx" else self.kernel

    def other(self, end: End) -> End:
        return self.kernel if end is self.rdsx else self.rdsx

    # -- traffic

    async def send(self, flow: Flow, **options: Any) -> None:
        """Send it to its end, and wait until the other has acknowledged it. Returns early if the sender is killed."""
        sender = self.end(flow.sender).now
        arguments = {"port": PORT, "host": self.end(flow.receiver).address, "to": PORT, **flow.messages, **options}
        if isinstance(sender, RdsxDriver):
            arguments["timeout_s"] = 600.0
        try:
            await sender.do("send", **arguments)
        except DriverError:
            if not sender.has_ended:
                raise

    def start_sending(self, flow: Flow, **options: Any) -> trio.Event:
        """send() in the background; the event comes when it is done."""
        done = trio.Event()

        async def send() -> None:
            await self.send(flow, **options)
            done.set()

        self.nursery.start_soon(send)
        return done

    async def queue(self, flow: Flow, **options: Any) -> tuple[int, str | None]:
        """Queue what the sender takes without waiting: how many, and why no more."""
        sender = self.end(flow.sender).now
        answer = await sender.do("queue", port=PORT, host=self.end(flow.receiver).address, to=PORT, **flow.messages, **options)
        return answer["sent"], answer["error"]

    async def wait_received(self, flow: Flow, count: int) -> None:
        """Wait until so many messages of any kind came to the receiver's present life."""
        await self.end(flow.receiver).now.wait_received(PORT, count)

    async def wait_came(self, flow: Flow) -> None:
        """Wait until the last message of a flow came, and a little longer for what should not come."""
        end = self.end(flow.receiver).now
        last = flow.digests[-1]
        await end.wait_until(lambda: any(digest == last for digest, _ in end.received[PORT][-MAX_LATE:]))
        await trio.sleep(LINGER_S)

    async def acknowledged(self, flow: Flow) -> int:
        """How many of its messages the sender need not send again, while the receiver cannot be reached."""
        sender, before = self.end(flow.sender).now, None
        while True:
            account = await sender.do("account", port=PORT)
            count: int = account["sent"] - account["unacknowledged"]
            if count == before:
                return count
            before = count
            await trio.sleep(POLL_S)

    # -- faults

    async def kill_tcp(self) -> None:
        """The kernel's TCP connections to the node are gone, with a reset."""
        await self.guest.check(f"ss -K -t dst {self.rdsx.address} >/dev/null")

    async def reset(self) -> bool:
        """rdsx drops the connection, if there is one."""
        return bool(await self.rdsx.now.do("reset", host=self.kernel.address))

    async def connection(self) -> dict[str, Any]:
        """What rdsx says about its connection to the kernel."""
        (connection,) = (await self.rdsx.now.do("statistics"))["connections"]
        return dict(connection)

    async def events(self) -> list[str]:
        """Names of the events that rdsx has seen."""
        return [event.split("(")[0] for event in (await self.rdsx.now.do("statistics"))["events"]]

    # -- the account

    def account(self, end: EndName, *flows: Flow, life: int = -1) -> None:
        """A life got exactly these flows, in order, once."""
        self.compare(end, [digest for flow in flows for digest in flow.digests], life)

    def compare(self, end: EndName, expected: list[str], life: int = -1) -> None:
        found = self.end(end).received(life)
        if found == expected:
            return
        numbers = [expected.index(digest) if digest in expected else "foreign" for digest in found]
        lost = [number for number, digest in enumerate(expected) if digest not in found]
        twice = sorted({str(number) for number in numbers if numbers.count(number) > 1})
        order = "kept" if numbers == sorted(numbers, key=str) else numbers
        raise Lost(f"of {len(expected)} messages {end} got {len(found)}: lost {lost}, twice {twice}, order {order}\n{self.rdsx.now.log()}")


@contextlib.asynccontextmanager
async def open_bench(lab: Lab, guest: Guest, address: str, first: EndName, limit_s: float = 120.0) -> AsyncIterator[Bench]:
    """Both ends started; TimeoutError with rdsx's log if the block is not left in time."""
    bench: Bench | None = None
    host = guest.address6 if ":" in address else guest.address
    raised: BaseException | None = None
    with trio.move_on_after(limit_s) as limit:
        async with AsyncExitStack() as stack:
            rdsx = End("rdsx", address, stack, partial(open_rdsx, lab, address))
            kernel = End("kernel", host, stack, partial(open_kernel, guest, host))
            await kernel.start()
            await rdsx.start()
            nursery = await stack.enter_async_context(trio.open_nursery())
            bench = Bench(lab, guest, rdsx, kernel, first, nursery)
            try:
                yield bench
            except BaseException as error:  # leaves as it is, not wrapped in the nursery's group
                raised = error
            nursery.cancel_scope.cancel()
    if limit.cancelled_caught or isinstance(raised, trio.Cancelled):
        raise TimeoutError(describe(bench))
    if raised is not None:
        raise raised


def describe(bench: Bench | None) -> str:
    """Where things stand, for a test that does not get on."""
    if bench is None:
        return "the ends do not start"
    counts = {end.name: [len(end.received(life)) for life in range(len(end.lives))] for end in bench.ends}
    return f"no progress; received in each life: {counts}\n{bench.rdsx.now.log()}\n{bench.kernel.now.log()}"
