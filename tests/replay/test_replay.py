"""What live kernels said to rdsx, said again to the rdsx of today, and what rdsx said to them, held to the rules. Needs no lab."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import rdsx
from kernelkit import PROBE_PORT, Frame, Violation
from lab.traffic import digest
from replaykit import (
    DATA,
    Case,
    Connection,
    Cut,
    Life,
    Played,
    account_of,
    as_captured,
    at_once,
    at_random,
    byte_by_byte,
    check_rules,
    frames,
    generation_in,
    load,
    names,
    payload_digests,
    play,
)

SMALL = 12000  # bytes of a compressed capture that is also played byte by byte
NAMES = names()
SERIES = sorted({name.split("/")[0] for name in NAMES})
each_capture = pytest.mark.parametrize("name", NAMES)
CUTS: dict[str, Cut] = {"captured": as_captured, "whole": at_once, "random1": at_random(1), "random2": at_random(2)}
LINK_ENDS = {"closed_by_peer", "reset_by_peer", "refused", "connect_timeout"}


def test_the_captures_are_there() -> None:
    """Not fewer than the ones this was written for: a replay of nothing passes, too."""
    kernels = Counter(name.split("/")[0] for name in NAMES)
    assert kernels["6.1"] >= 22
    assert kernels["6.12"] >= 6
    assert kernels["7.2"] >= 14


# -- the kernel's bytes


@each_capture
@pytest.mark.parametrize("cut", CUTS)
async def test_what_the_kernel_said(autojump_clock: object, name: str, cut: str) -> None:
    """Every message that it sent is delivered, once and in order; every ping and probe is answered; nothing is counted as wrong."""
    await play_and_check(load(name), CUTS[cut])


@pytest.mark.parametrize("name", [name for name in NAMES if (DATA / f"{name}.pcap.gz").stat().st_size < SMALL])
async def test_what_the_kernel_said_byte_by_byte(autojump_clock: object, name: str) -> None:
    await play_and_check(load(name), byte_by_byte)


async def play_and_check(case: Case, cut: Cut) -> None:
    for life in case.lives:
        played = await play(case, life, cut)
        check_delivery(case, life, played)
        check_answers(case, life, played)
        check_written(case, life, played.connections)
        assert not any(connection.rdsx for connection in played.pokes)


def check_written(case: Case, life: Life, connections: list[Connection]) -> None:
    """All is as the rules have it, and it is what was sent."""
    written = check_rules(connections, is_smaller=case.is_smaller)
    assert [digest(frame.payload) for frame in written if frame.is_data and frame.sport] == payload_digests(life.to_kernel)
    assert sum(1 for frame in written if frame.dport == 0) == life.pings_by_rdsx


def check_delivery(case: Case, life: Life, played: Played) -> None:
    account = account_of(life)
    for port, received in played.received.items():
        sent = payload_digests(each for each in life.to_rdsx if each["dport"] == port)
        if not sent and port in account.data:
            sent = [digest(b"")] * life.pings_by_rdsx
        assert [digest(data) for data in received] == sent, f"port {port}"
    counters = played.statistics.counters
    wrong = {key: value for key, value in counters.items() if key.startswith("recv_drop") and value}
    assert wrong == ({"recv_drop_old_seq": account.duplicates} if account.duplicates else {})
    assert counters["cong_update_received"] == account.maps
    assert counters["recv_ping"] == len(account.pings) + len(account.probes)
    assert set(played.statistics.drops) <= LINK_ENDS
    (connection,) = played.statistics.connections
    assert (connection.kind, connection.peer, connection.transport) == ("kernel", case.kernel, "replay")
    assert connection.links == sum(1 for each in life.connections if each.kernel)
    generations = [int.from_bytes(found, "big") for found in map(generation_in, account.probes) if found]
    assert connection.generation == (generations[-1] if generations else None)
    restarts = [event for event in played.events if isinstance(event, rdsx.PeerRestarted)]
    assert len(restarts) == max(0, len(set(generations)) - 1)


def check_answers(case: Case, life: Life, played: Played) -> None:
    """A pong for each ping, to the port it came from; one for each probe, and on each link one that nobody asked for: an earlier one
    that is resent will do."""
    account = account_of(life)
    assert len(account.pings) == life.pings_by_kernel
    written = check_rules(played.connections, is_smaller=case.is_smaller)
    pongs = Counter(frame.dport for frame in written if frame.sport == 0 and frame.dport != PROBE_PORT)
    assert pongs == Counter(frame.sport for frame in account.pings)
    probe_pongs = [frame for frame in written if frame.is_probe_pong]
    links = [each for each in played.connections if each.kernel]
    assert all(any(frame.is_probe_pong for frame in frames(each.rdsx)) for each in links)
    assert 1 <= len(probe_pongs) - len(account.probes) <= len(links)
    told = [found for found in map(generation_in, probe_pongs) if found]
    assert told == [played.generation.to_bytes(4, "big")] * sum(1 for frame in account.probes if generation_in(frame))


# -- the bytes of rdsx


@each_capture
def test_what_rdsx_said(name: str) -> None:
    case = load(name)
    for life in case.lives:
        check_written(case, life, life.connections)


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("side", ["smaller", "larger"])
def test_the_captures_show_what_they_are_for(series: str, side: str) -> None:
    """Congestion, resends, restarts: recordings in which they did not happen prove nothing."""

    def frames_of(title: str) -> tuple[list[Any], list[Any]]:
        lives = load(f"{series}/{title}-{side}").lives
        return [each for life in lives for each in life.kernel_frames], [each for life in lives for each in life.rdsx_frames]

    for title, sender in (("congested-kernel", 0), ("congested-rdsx", 1)):
        if f"{series}/{title}-{side}" in NAMES:
            maps = [frame.payload for frame in frames_of(title)[sender] if frame.is_map]
            assert [any(bits) for bits in maps].count(True) >= 1
            assert not any(maps[-1])
    if f"{series}/reset-by-rdsx-{side}" in NAMES:
        theirs, ours = frames_of("reset-by-rdsx")
        assert any(frame.is_resent for frame in theirs)
        assert any(frame.is_resent for frame in ours)
    if f"{series}/kernel-restarts-{side}" in NAMES:
        theirs, _ = frames_of("kernel-restarts")
        assert [frame.sequence for frame in theirs].count(1) == 2
    if f"{series}/rdsx-restarts-{side}" in NAMES:
        assert len(load(f"{series}/rdsx-restarts-{side}").lives) == 3


@each_capture
def test_probes_of_each_kernel(name: str) -> None:
    """NPATHS; 7.2 has GEN_NUM and SPORT_IDX behind it."""
    form = rb"\x05\x00\x08\x06.{4}\x08\x00{7}" if name.startswith("7.2/") else rb"\x05\x00\x08\x00{13}"
    for life in load(name).lives:
        for probe in account_of(life).probes:
            assert re.fullmatch(form, probe.extensions, re.DOTALL), probe.extensions.hex(" ")


@pytest.mark.parametrize("series", SERIES)
def test_some_probes_are_there(series: str) -> None:
    lives = [life for name in NAMES if name.startswith(f"{series}/") for life in load(name).lives]
    assert sum(len(account_of(life).probes) for life in lives) >= 2


# -- a replay can fail

RESENDS = "6.1/reset-by-kernel-smaller"
Edit = Callable[[list[Frame]], object]


def put(index: int, **fields: Any) -> Edit:
    """Change fields of one message."""

    def edit(messages: list[Frame]) -> None:
        messages[index] = replace(messages[index], **fields)

    return edit


def swap(one: int, other: int) -> Edit:
    def edit(messages: list[Frame]) -> None:
        messages[one], messages[other] = messages[other], messages[one]

    return edit


def repeat(index: int, **fields: Any) -> Edit:
    def edit(messages: list[Frame]) -> None:
        messages.insert(index, replace(messages[index], **fields))

    return edit


def edited(data: bytes, edit: Edit) -> bytes:
    messages = frames(data)
    edit(messages)
    return b"".join(message.pack() for message in messages)


# Of rdsx, on the second connection: 0 is the map, 1 to 6 are resends, 7 is the pong.
CORRUPTIONS: dict[str, tuple[Edit, str]] = {
    "no map": (lambda messages: messages.pop(0), "where the map must be"),
    "no hello": (put(0, extensions=bytes(16)), "hello"),
    "another hello": (put(0, extensions=b"R\x01\0\0\1\1\1\1" + bytes(8)), "another hello"),
    "port 1 congested": (put(0, payload=b"\2" + bytes(8191)), "never congested"),
    "swapped": (swap(2, 3), "R0"),
    "twice": (repeat(2), "R0"),
    "pong before the resends": (lambda messages: messages.insert(1, messages.pop(7)), "R0"),
    "resend without its flag": (put(1, flags=0), "is not flagged"),
    "no resend, and flagged": (put(7, flags=4), "on no earlier connection"),
    "unknown flag": (put(7, flags=2), "h_flags"),
    "resent as another": (put(3, payload=bytes(156)), "another message"),
    "resent to another port": (put(3, dport=4001), "another message"),
    "ack": (put(4, ack=1), "another message|h_ack"),
    "checksum": (put(7, checksum=1), "h_csum"),
    "padding": (put(7, padding=b"\1\0\0\0"), "padding"),
    "extensions": (put(7, sport=4000), "extension headers"),
    "eight paths": (put(7, extensions=b"\5\0\x08" + bytes(13)), "probe pong"),
    "generation": (put(7, extensions=b"\5\0\1\6\1\1\1\1" + bytes(8)), "sent none"),
    "no pong": (lambda messages: messages.pop(7), "R2"),
    "probe": (put(7, sport=1, dport=0, extensions=bytes(16)), "probe ping"),
    "pong with a payload": (put(7, length=1, payload=b"x"), "with a payload"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_broken_rules_are_seen(name: str) -> None:
    case = load(RESENDS)
    edit, text = CORRUPTIONS[name]
    (life,) = case.lives
    connection = [each for each in life.connections if each.rdsx][1]
    assert [frame.flags for frame in frames(connection.rdsx)] == [1, 4, 4, 4, 4, 4, 4, 0]
    connection.rdsx = edited(connection.rdsx, edit)
    with pytest.raises(Violation, match=text):
        check_written(case, life, life.connections)


def test_a_message_before_the_kernel_has_spoken_is_seen() -> None:
    case = load(RESENDS)
    connection = case.lives[0].connections[-1]
    connection.rdsx_heard = [0] * len(connection.rdsx_heard)
    with pytest.raises(Violation, match="before the kernel's first header"):
        check_written(case, case.lives[0], case.lives[0].connections)


def test_bytes_on_a_poke_are_seen() -> None:
    case = load("6.1/single-rdsx-first-larger")
    next(each for each in case.lives[0].connections if each.by_rdsx).rdsx = bytes(48)
    with pytest.raises(Violation, match="larger address"):
        check_written(case, case.lives[0], case.lives[0].connections)


def test_a_lost_message_is_seen() -> None:
    case = load("6.1/mixed-larger")
    connection = next(each for each in case.lives[0].connections if each.rdsx)
    connection.rdsx = edited(connection.rdsx, lambda messages: messages.remove(next(each for each in messages if each.is_data)))
    with pytest.raises(AssertionError):
        check_written(case, case.lives[0], case.lives[0].connections)


# Of the kernel, on the second connection: 0 is the map, 1 to 6 are resends.
FAULTS: dict[str, Edit] = {
    "changed": put(2, payload=bytes(2845)),
    "lost": lambda messages: messages.pop(3),
    "swapped, and not flagged": lambda messages: [put(index, flags=0)(messages) for index in range(1, 7)] and swap(2, 3)(messages),
    "twice, and not flagged": lambda messages: messages.insert(4, replace(messages[3], flags=0)),
    "resent behind a newer one": swap(2, 3),
    "from elsewhere": repeat(6, sequence=10, flags=0, payload=b"foreign", length=7),
    "to nobody": repeat(6, sequence=10, flags=0, dport=4002),
    "a short map": put(0, length=1, payload=b"x"),
    "bad checksum": put(6, checksum=1),
    "too long": put(6, length=1 << 21),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_wrong_bytes_of_the_kernel_are_seen(autojump_clock: object, name: str) -> None:
    case = load(RESENDS)
    (life,) = case.lives
    connection = [each for each in life.connections if each.kernel][1]
    assert [frame.flags for frame in frames(connection.kernel)] == [1, 4, 4, 4, 4, 4, 4]
    connection.kernel = edited(connection.kernel, FAULTS[name])
    played = await play(case, life, at_once)
    with pytest.raises(AssertionError):
        check_delivery(case, life, played)


async def test_pings_without_answers_are_seen(autojump_clock: object) -> None:
    case = load("6.1/pings-larger")
    (life,) = case.lives
    played = await play(case, life, at_once, ping_enable=False)
    with pytest.raises(AssertionError):
        check_answers(case, life, played)
