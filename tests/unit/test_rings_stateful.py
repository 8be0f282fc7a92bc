"""Two ends on a made-up device that is late, stalls, fails and is replaced: nothing is lost, nothing comes twice, nothing out of order,
nobody sleeps over a completion, and nothing grows."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

ringskit = pytest.importorskip("ringskit", reason="rdsx was built without the headers of rdma-core")

from fastkit import SENT, received  # noqa: E402
from rdsx._fast import Endpoint  # noqa: E402
from rdsx._operation import Operation  # noqa: E402
from ringskit import operation, pair, relink, settle, use_credits  # noqa: E402

PORTS = (4000, 4001)
OPERATIONS_PORT = 4002  # of messages behind operations: they are not sent again, so some are lost
SIZES = [0, 1, 100, 4048, 4095, 4096, 4097, 9000, 16336, 16384, 16385, 20000]
HOSTS = "10.0.0.1", "10.0.0.2"
ends = st.integers(0, 1)
few = st.integers(1, 6)


class Machine(RuleBasedStateMachine):
    @initialize(
        send_slots=st.sampled_from([4, 8, 32]),
        receive_slots=st.sampled_from([4, 8, 32, 64, 1024]),
        inline=st.sampled_from([0, 100]),
        credits=st.booleans(),
        peers=st.sampled_from(["kernel", "rdsx", "packing rdsx"]),
    )
    def start(self, send_slots: int, receive_slots: int, inline: int, credits: bool, peers: str) -> None:
        self.sides = pair(send_slots=send_slots, receive_slots=receive_slots, inline=inline, packed=peers == "packing rdsx")
        self.credits = credits
        self.endpoints: list[list[Endpoint]] = [[side.endpoint(port) for port in PORTS] for side in self.sides]
        self.counted = [side.endpoint(OPERATIONS_PORT) for side in self.sides]
        self.expected: list[dict[int, list[bytes]]] = [{port: [] for port in PORTS} for _ in self.sides]
        self.numbers = [0, 0]
        self.operations: list[list[Operation]] = [[], []]
        for side in self.sides:
            side.path.peer_is_kernel = peers == "kernel"
        if credits:
            use_credits(*self.sides)

    # -- users

    @rule(end=ends, port=st.sampled_from(PORTS), size=st.sampled_from(SIZES), kick=st.booleans())
    def send(self, end: int, port: int, size: int, kick: bool) -> None:
        data = (b"%d.%d." % (end, self.numbers[end]) * (size // 4 + 1))[:size]
        if self.endpoints[end][0].submit(data, (HOSTS[1 - end], port)) == SENT:
            self.numbers[end] += 1
            self.expected[1 - end][port].append(data)
        if kick:
            self.sides[end].kick()

    @rule(end=ends, size=st.sampled_from([0, 5000]))
    def add(self, end: int, size: int) -> None:
        """Add 1 to a number of the peer's, before a message."""
        side, other = self.sides[end], self.sides[1 - end]
        one = operation("fetch_and_add", side, other, compare_add=1, remote_address=other.shared_address + 8, lease=object())
        if self.endpoints[end][0].submit_operation(bytes(size), side.path, OPERATIONS_PORT, one) == SENT:
            self.operations[end].append(one)

    @rule(end=ends)
    def take(self, end: int) -> None:
        for endpoint in self.endpoints[end]:
            for data in received(endpoint):
                assert data == self.expected[end][endpoint.port].pop(0)

    @rule(end=ends)
    def congest(self, end: int) -> None:
        """A map is owed in the middle of things."""
        self.sides[end].path.owe_map()

    # -- the link's tasks

    @rule(end=ends)
    def run_link(self, end: int) -> None:
        self.sides[end].run()

    @rule(end=ends)
    def tick(self, end: int) -> None:
        self.sides[end].tick()

    # -- the device

    @rule(end=ends, count=few)
    def carry(self, end: int, count: int) -> None:
        self.sides[end].nic.carry(count)

    @rule(end=ends, count=few)
    def show_sends(self, end: int, count: int) -> None:
        self.sides[end].nic.show_sends(count)

    @rule(end=ends, count=few)
    def show_receives(self, end: int, count: int) -> None:
        self.sides[end].nic.show_receives(count)

    @rule(end=ends, status=st.sampled_from([5, 10, 12, 21]), how=st.sampled_from(["send", "pair", "post"]))
    def fail(self, end: int, status: int, how: str) -> None:
        nic = self.sides[end].nic
        if how == "send":
            nic.fail_next(status)
        elif how == "post":
            nic.refuse_posts(1)
        else:
            nic.fail()

    @rule()
    def relink(self) -> None:
        relink(*self.sides)
        if self.credits:
            use_credits(*self.sides)

    # -- what always holds

    @precondition(lambda self: hasattr(self, "sides"))
    @invariant()
    def the_device_is_content(self) -> None:
        for side in self.sides:
            assert side.is_clean()
            assert side.nic.starved == 0 or not self.credits
            assert side.rings.reason != "credit_overrun"
            assert side.rings.in_flight <= side.rings.send_ring.size
            if side.rings.credits is not None:
                assert side.rings.credits.granted + side.rings.credits.unadvertised <= side.rings.receive_ring.size

    @precondition(lambda self: hasattr(self, "sides"))
    @invariant()
    def the_accounts_add_up(self) -> None:
        for end, side in enumerate(self.sides):
            listing = side.path.listing()
            assert self.endpoints[end][0].unacknowledged == len(listing)
            assert [sequence for sequence, *_ in listing] == sorted({sequence for sequence, *_ in listing})

    def the_operations_add_up(self, end: int) -> None:
        """Each has one outcome. What succeeded was done once, what was dropped at most once, nothing else at all."""
        told = self.sides[end].core.take_finished()
        assert sorted(map(id, told)) == sorted(map(id, self.operations[end]))
        assert all(one.lease is None for one in told)
        done = int.from_bytes(self.sides[1 - end].shared[8:16], "little")
        succeeded = sum(one.status == 0 for one in told)
        assert succeeded <= done <= succeeded + sum(one.status in (3, 4) for one in told)
        assert len(received(self.counted[1 - end])) <= len(told)
        assert sum(one.status == 2 for one in told) == 0

    def teardown(self) -> None:
        """After one more link everything arrives, though each end acts only when an event wakes it."""
        if not hasattr(self, "sides"):
            return
        if any(side.nic.failed or side.rings.broken for side in self.sides):
            self.relink()
        for side in self.sides:
            side.nic.fail_next(0)
            side.nic.refuse_posts(0)
        settle(*self.sides)
        if any(side.rings.broken for side in self.sides):  # what had failed came to light only now
            self.relink()
            settle(*self.sides)
        for end in (0, 1):
            self.take(end)
            assert self.expected[end] == {port: [] for port in PORTS}
            assert self.sides[end].path.retransmit_queue == self.sides[end].path.send_queue == 0
            assert self.endpoints[end][0].sent_bytes == 0
            self.the_operations_add_up(end)
        self.the_device_is_content()


TestRings = Machine.TestCase
TestRings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
