"""The policy of one connection, without I/O: when it dials, what it lets go when, what a peer's announcement changes."""

from __future__ import annotations

from math import inf

import pytest

from rdsx._fast import BindTable, CongestionMap, Core, Endpoint, Path
from rdsx._stream import StreamWriter
from rdsx.config import NodeConfig
from rdsx.engine.connection import Connection
from rdsx.engine.events import Event, PeerDown, PeerRestarted, PeerUp
from rdsx.engine.states import IllegalMove, State
from rdsx.wire.hello import pack_hello
from rdsx.wire.probe import pack_probe

KERNEL = bytes(16)


class Fixture:
    def __init__(self, *, dials: bool = True, header_acks: bool = False) -> None:
        core = Core(
            max_message_bytes=1 << 20,
            max_peer_queued_bytes=1 << 26,
            max_node_queued_bytes=1 << 28,
            max_unacked_packets=8,
            max_unacked_bytes=1 << 24,
            answer_pings=True,
        )
        self.table = BindTable(core, "10.0.0.1" if dials else "10.0.0.3")
        self.path = Path(self.table, "10.0.0.2", CongestionMap(), first_sequence=100, header_acks=header_acks)
        self.path.corked = True  # no driver: nobody to mark it dirty for
        self.table.routes["10.0.0.2"] = self.path
        self.endpoint = Endpoint(1 << 20, 1 << 20)
        self.table.bind(self.endpoint, 4000)
        self.events: list[Event] = []
        config = NodeConfig(reconnect_min_delay_s=1.0, reconnect_max_delay_s=8.0, poke_min_delay_s=0.5)
        self.connection = Connection(
            self.path, dials=dials, config=config, generation=7, uniform=lambda: 0.5, emit=self.events.append
        )

    def send(self, data: bytes = b"x") -> None:
        assert self.endpoint.submit(data, ("10.0.0.2", 4001)) == 0

    def up(self, extensions: bytes = KERNEL, ack: int = 0) -> None:
        self.connection.dialling() if self.connection.dials else self.connection.accepting()
        self.connection.established()
        self.connection.heard_hello(extensions, ack)

    def lose(self, now_s: float = 0.0) -> None:
        self.connection.dropped()
        self.connection.shutting()
        self.connection.gone("reset_by_peer", now_s)

    def written(self) -> bytes:
        """Everything a link would write now."""
        writer = StreamWriter(self.path)
        out = b""
        while (buffers := writer.poll()) is not None:
            data = b"".join(bytes(memoryview(buffer)) for buffer in buffers)
            writer.written(len(data))
            out += data
        return out

    def messages(self) -> list[tuple[int, int, bytes]]:
        """(sequence, flags, extensions) of the messages written now, behind the map."""
        rest, found = self.written(), []
        while rest:
            sequence, length, flags = int.from_bytes(rest[:8]), int.from_bytes(rest[16:20]), rest[24]
            if flags != 1:
                found.append((sequence, flags, rest[32:48]))
            rest = rest[48 + length :]
        return found


def test_nobody_dials_without_a_reason() -> None:
    for dials in (True, False):
        assert Fixture(dials=dials).connection.dial_at(awaited=False) == inf


@pytest.mark.parametrize("dials", [True, False])
def test_a_message_is_a_reason_to_dial_or_poke(dials: bool) -> None:
    fixture = Fixture(dials=dials)
    fixture.send()
    assert fixture.connection.dial_at(awaited=False) == -inf


@pytest.mark.parametrize("dials", [True, False])
def test_waiting_for_a_map_is_a_reason_to_dial_or_poke(dials: bool) -> None:
    assert Fixture(dials=dials).connection.dial_at(awaited=True) == -inf


def test_a_poke_makes_the_smaller_address_dial() -> None:
    fixture = Fixture()
    fixture.connection.poked_by_peer()
    assert fixture.connection.dial_at(awaited=False) == -inf


def test_once_up_the_smaller_address_reconnects_for_ever_and_the_larger_never() -> None:
    smaller, larger = Fixture(), Fixture(dials=False)
    for fixture in (smaller, larger):
        fixture.up()
        while fixture.messages():
            pass
        fixture.path.retire_written(1 << 40)
        fixture.lose(10.0)
    assert smaller.connection.dial_at(awaited=False) == 10.0
    assert larger.connection.dial_at(awaited=False) == inf


def test_backoff_grows_until_a_link_was_good_for_something() -> None:
    fixture = Fixture()
    fixture.send()
    delays = []
    for _ in range(5):
        fixture.connection.dialling()
        fixture.connection.dial_failed(0.0, "refused")
        delays.append(fixture.connection.dial_at(awaited=False))
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0]
    fixture.connection.dialling()
    fixture.connection.established()  # TCP is there, but the peer has said nothing
    fixture.lose()
    assert fixture.connection.dial_at(awaited=False) == 4.0
    fixture.up()  # it has spoken, but neither taken nor sent a message
    fixture.lose()
    assert fixture.connection.dial_at(awaited=False) == 4.0
    fixture.up()
    fixture.messages()
    fixture.path.retire_written(1 << 40)
    fixture.lose()
    assert fixture.connection.dial_at(awaited=False) == 0.0


@pytest.mark.parametrize("reason", ["unreachable", "address_absent"])
def test_after_a_move_the_next_dial_is_at_once_and_the_next_ones_soon(reason: str) -> None:
    fixture = Fixture()
    fixture.send()
    for _ in range(5):
        fixture.connection.dialling()
        fixture.connection.dial_failed(0.0, reason)
    assert fixture.connection.dial_at(awaited=False) == 4.0
    fixture.connection.hurry(1.0)
    assert fixture.connection.dial_at(awaited=False) == 1.0
    delays = []
    for _ in range(6):
        fixture.connection.dialling()
        fixture.connection.dial_failed(0.0, reason)
        delays.append(fixture.connection.dial_at(awaited=False))
    assert delays == [0.010, 0.020, 0.050, 0.100, 0.0, 0.5]


def test_a_move_postpones_no_dial_and_is_no_reason_for_one() -> None:
    fixture = Fixture()
    fixture.connection.hurry(5.0)
    assert fixture.connection.dial_at(awaited=False) == inf
    fixture.send()
    assert fixture.connection.dial_at(awaited=False) == -inf


def test_a_link_that_is_dropped_for_a_move_is_followed_at_once() -> None:
    """Also one that was good for nothing yet."""
    fixture = Fixture()
    fixture.send()
    for _ in range(3):
        fixture.connection.dialling()
        fixture.connection.dial_failed(0.0, "refused")
    fixture.up()
    fixture.connection.hurry(7.0)
    fixture.lose(7.0)
    assert fixture.connection.dial_at(awaited=False) == 7.0


def test_a_kernel_in_the_place_of_an_rdsx_node_is_somebody_else() -> None:
    """And the other way round: its numbers begin anew, and it must not get what the former one may have seen."""
    fixture = Fixture()
    fixture.send()
    fixture.up(pack_hello(9))
    fixture.messages()
    fixture.path.next_receive = 10**18
    fixture.lose()
    fixture.up()
    assert fixture.path.next_receive == 0
    assert fixture.endpoint.unacknowledged == 0
    assert PeerRestarted("10.0.0.1", "10.0.0.2", flushed=1) in fixture.events


def test_pokes_are_spaced() -> None:
    fixture = Fixture(dials=False)
    fixture.send()
    fixture.connection.dialling()
    fixture.connection.poked(0.0)
    assert fixture.connection.dial_at(awaited=False) == 0.5
    fixture.connection.dialling()
    fixture.connection.poked(1.0)
    assert fixture.connection.dial_at(awaited=False) == 1.0 + 0.5 + 0.5 * 0.5


def test_nothing_but_the_map_goes_out_before_the_peer_has_spoken() -> None:
    fixture = Fixture()
    fixture.send()
    fixture.connection.dialling()
    fixture.connection.established()
    first = fixture.written()
    assert len(first) == 48 + 8192
    assert first[24] == 1
    assert first[32:48] == pack_hello(7)
    fixture.connection.heard_hello(KERNEL, 0)
    assert [sequence for sequence, _, _ in fixture.messages()] == [100, 101]


def test_a_kernel_hears_one_path_behind_what_is_unacknowledged() -> None:
    fixture = Fixture()
    fixture.send()
    fixture.up()
    assert fixture.messages() == [(100, 0, bytes(16)), (101, 0, pack_probe(paths=1))]
    fixture.lose()
    fixture.send()
    fixture.up()
    assert [(sequence, flags) for sequence, flags, _ in fixture.messages()] == [(100, 4), (101, 4), (102, 0)]


def test_over_verbs_a_kernel_hears_no_path_count_and_acknowledges() -> None:
    fixture = Fixture(header_acks=True)
    fixture.send()
    fixture.up()
    assert fixture.connection.kind == "kernel"
    assert fixture.messages() == [(100, 2, bytes(16))]
    for _ in range(2):
        fixture.send()
    assert [(sequence, flags) for sequence, flags, _ in fixture.messages()] == [(101, 0), (102, 2)]  # the last one always asks
    fixture.lose()
    fixture.up()
    assert [(sequence, flags) for sequence, flags, _ in fixture.messages()] == [(100, 6), (101, 6), (102, 6)]


def test_an_rdsx_peer_hears_no_path_count_and_acknowledges() -> None:
    fixture = Fixture()
    fixture.send()
    fixture.up(pack_hello(9))
    assert fixture.messages() == [(100, 2, bytes(16))]
    assert fixture.path.peer_acks
    fixture.send()
    fixture.messages()
    fixture.lose()
    fixture.up(pack_hello(9), ack=100)
    assert [(sequence, flags & 4) for sequence, flags, _ in fixture.messages()] == [(101, 4)]


def test_a_restarted_peer_does_not_get_what_its_former_life_may_have_seen() -> None:
    fixture = Fixture()
    fixture.send()
    fixture.up(pack_hello(9))
    fixture.messages()
    fixture.path.next_receive = 50
    fixture.lose()
    fixture.send()
    fixture.up(pack_hello(10), ack=10**9)
    assert [sequence for sequence, _, _ in fixture.messages()] == [101]
    assert fixture.path.next_receive == 0
    assert fixture.endpoint.unacknowledged == 1
    restarted = [event for event in fixture.events if isinstance(event, PeerRestarted)]
    assert restarted == [PeerRestarted("10.0.0.1", "10.0.0.2", flushed=1)]


def test_a_kernel_that_changes_its_generation_has_restarted() -> None:
    fixture = Fixture()
    fixture.up()
    fixture.connection.heard_probe(pack_probe(paths=8, generation=5), 1, answer=True)
    fixture.send()
    fixture.messages()
    fixture.connection.heard_probe(pack_probe(paths=8, generation=5), 1, answer=True)
    assert not any(isinstance(event, PeerRestarted) for event in fixture.events)
    fixture.connection.heard_probe(pack_probe(paths=8, generation=6), 1, answer=True)
    assert any(isinstance(event, PeerRestarted) for event in fixture.events)


def test_the_answer_to_a_probe_carries_our_generation_only_if_the_probe_had_one() -> None:
    fixture = Fixture()
    fixture.up()
    fixture.messages()
    fixture.connection.heard_probe(pack_probe(paths=8), 1, answer=True)
    fixture.connection.heard_probe(pack_probe(paths=8, generation=5), 1, answer=True)
    fixture.connection.heard_probe(pack_probe(paths=8), 0, answer=True)  # a pong: no answer
    fixture.connection.heard_probe(pack_probe(paths=8), 1, answer=False)  # ping_enable is off
    assert [extensions for _, _, extensions in fixture.messages()] == [
        pack_probe(paths=1),
        pack_probe(paths=1, generation=7),
    ]


def test_events_tell_up_and_down_once_each() -> None:
    fixture = Fixture()
    fixture.up()
    fixture.lose()
    fixture.connection.dialling()
    fixture.connection.established()
    fixture.lose()  # was never heard: no event
    assert fixture.events == [
        PeerUp("10.0.0.1", "10.0.0.2", kind="kernel"),
        PeerDown("10.0.0.1", "10.0.0.2", reason="reset_by_peer"),
    ]


def test_an_illegal_report_is_a_bug_and_says_so() -> None:
    fixture = Fixture()
    with pytest.raises(IllegalMove):
        fixture.connection.established()
    assert fixture.connection.state is State.DOWN
