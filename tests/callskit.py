"""What the tests of couriers share: two engines back to back with a wire between them, and couriers on the virtual network."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import rdsx
from rdsx.calls import CallConfig, Courier
from rdsx.calls.callee import Callee
from rdsx.calls.caller import Caller
from rdsx.calls.holder import Holder, Terms
from rdsx.calls.outcome import Outcome
from rdsx.calls.outgoing import Call
from rdsx.calls.wire import Code, Kind, Message, emit, parse_untrusted
from rdsx.testing import VirtualNetwork

HERE, THERE = ("10.0.0.1", 1), ("10.0.0.2", 1)
MSG_TYPE = 7


class Pair:
    """A caller and a callee, and every datagram between them in the test's hands. Time is `now_s`; nothing moves by itself."""

    def __init__(self, **settings: Any) -> None:
        self.config = replace(CallConfig(seed=1), **settings)
        self.now_s = 0.0
        self.nonce = 0
        self.wire: deque[tuple[bool, bytes]] = deque()  # (to the callee, datagram)
        self.log: list[Message] = []
        self.refusing = False
        self.forgotten = 0
        self.gone: list[Holder] = []
        self.stopped: list[Holder] = []
        self.caller = self.new_caller(11)
        self.callee = self.new_callee(100)

    # -- lives

    def new_caller(self, life: int) -> Caller:
        self.caller = Caller(life, self.config, Side(self, True), uniform=lambda: 0.5, draw_nonce=self.draw_nonce)
        return self.caller

    def new_callee(self, life: int, *, register: bool = True) -> Callee:
        self.callee = Callee(life, self.config, Side(self, False))
        if register:
            self.register()
        return self.callee

    def register(self, msg_type: int = MSG_TYPE, **terms: Any) -> None:
        self.callee.terms[msg_type] = Terms(**{"max_payload_bytes": 1000, **terms})

    def draw_nonce(self) -> int:
        self.nonce += 1
        return self.nonce

    # -- the wire

    def deliver(self, to_callee: bool, data: bytes) -> None:
        message = parse_untrusted(data)
        if to_callee:
            self.callee.handle(HERE, message, self.now_s)
        else:
            self.caller.handle(THERE, message, self.now_s)

    def take(self, kind: Kind) -> bytes:
        """Take the oldest datagram of one kind off the wire."""
        for index, (_, data) in enumerate(self.wire):
            if data[3] == kind:
                del self.wire[index]
                return data
        raise AssertionError(f"no {kind.name} on the wire, but {[Kind(data[3]).name for _, data in self.wire]}")

    def lose(self, kind: Kind) -> bytes:
        """Take a datagram off the wire, and have it for later."""
        return self.take(kind)

    def step(self, kind: Kind, *, copies: int = 1) -> bytes:
        """Deliver the oldest datagram of one kind."""
        data = self.take(kind)
        for _ in range(copies):
            self.late(data)
        return data

    def late(self, data: bytes) -> None:
        """Deliver a datagram of before."""
        self.deliver(data[3] % 2 == 1, data)

    def run(self) -> None:
        """Deliver what is on the wire, in order, until nothing is left."""
        while self.wire:
            self.deliver(*self.wire.popleft())

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.caller.tick(self.now_s)
        self.callee.tick(self.now_s)

    def sent(self, kind: Kind) -> int:
        """How many datagrams of one kind were ever sent."""
        return sum(message.kind is kind for message in self.log)

    # -- calls

    def call(self, payload: bytes = b"x", msg_type: int = MSG_TYPE) -> Call:
        return self.caller.start(self.caller.peer(THERE), msg_type, payload, self.now_s)

    def open(self) -> None:
        """A session, without a call in it left over."""
        self.finished(b"first")
        self.pass_time(0.06)
        self.run()
        self.log.clear()

    def finished(self, payload: bytes = b"x") -> Outcome:
        """A call from its beginning to its end."""
        call = self.call(payload)
        self.run()
        self.finish(self.begin())
        self.run()
        assert call.outcome is not None
        return call.outcome

    def begin(self) -> Holder:
        holder = self.callee.poll_start()
        assert holder is not None, "no handler may begin"
        return holder

    def finish(self, holder: Holder, reply: bytes = b"done", code: Code = Code.OK) -> None:
        self.callee.finish(holder, code, self.now_s, reply=reply)

    def end_of(self, call: Call) -> tuple[str, str]:
        """(ending, executed) of a call that has ended."""
        assert call.outcome is not None, "the call has not ended"
        return call.outcome.ending.name, call.outcome.executed.value

    def can_begin(self) -> bool:
        return self.callee.poll_start() is not None


class Side:
    """What an engine of a pair sees of the world."""

    def __init__(self, pair: Pair, is_caller: bool) -> None:
        self.pair = pair
        self.is_caller = is_caller

    def send(self, address: Any, message: Message) -> bool:
        if self.pair.refusing:
            return False
        self.pair.log.append(message)
        self.pair.wire.append((self.is_caller, emit(message)))
        return True

    def forget_sent(self, address: Any) -> None:
        self.pair.forgotten += 1

    def call_ended(self, call: Call) -> None:
        assert call.outcome is not None

    def caller_gone(self, holder: Holder) -> None:
        self.pair.gone.append(holder)

    def stop(self, holder: Holder) -> None:
        self.pair.stopped.append(holder)


# -- couriers on the virtual network

A, B = "10.0.0.1", "10.0.0.2"
PORT = 7000


def node_config(number: int) -> rdsx.NodeConfig:
    return rdsx.NodeConfig(seed=number, sequence_base=1 + number * 10**6, close_drain_s=0.5)


@dataclass
class Duo:
    """Two couriers, each on a node of its own."""

    network: VirtualNetwork
    here: Courier
    there: Courier
    peer: tuple[str, int] = (B, PORT)


@contextlib.asynccontextmanager
async def duo(
    seed: int = 1, *, here: dict[str, Any] | None = None, there: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Duo]:
    """`settings` are of both couriers' CallConfig; `here` and `there` are arguments of `open_courier`, for one of them."""
    network = VirtualNetwork(seed)
    async with (
        rdsx.open_node(A, transport=network, config=node_config(1)) as a,
        rdsx.open_node(B, transport=network, config=node_config(2)) as b,
        rdsx.open_courier(await b.bind(PORT), config=CallConfig(seed=2, **settings), **(there or {})) as right,
        rdsx.open_courier(await a.bind(PORT), config=CallConfig(seed=1, **settings), **(here or {})) as left,
    ):
        yield Duo(network, left, right)
