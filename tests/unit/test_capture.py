"""`rdsx.transports.capture`: the files are whole, true and bounded, and nothing that goes wrong with one reaches a link."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import logging
import os
import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import rdsx
from apikit import free_tcp_port
from capturekit import ACK, FIN, HEADER_BYTES, PSH, RST, SYN, Conversation, Packet, conversations, message_ends, read_pcapng
from rdsx.testing import Faults, VirtualNetwork
from rdsx.transports.capture import CaptureNetwork
from rdsx.transports.tcp import TcpNetwork

A, B = "10.0.0.1", "10.0.0.2"
PORT = 16385
SIZES = [0, 1, 47, 48, 49, 8192, 70000, 200000]
MAP_BYTES = 8240


@contextlib.asynccontextmanager
async def two_nodes(
    network: Any, *captures: Any, hosts: tuple[str, str] = (A, B), **config: Any
) -> AsyncIterator[tuple[rdsx.Node, rdsx.Node, rdsx.RdsSocket, rdsx.RdsSocket]]:
    """A node for each host, the first on the first capture, and a bound socket of each."""
    settings = {"send_buffer_bytes": 1048576, "receive_buffer_bytes": 1048576} | config
    transports = [*captures, network, network]
    async with (
        rdsx.open_node(hosts[0], transport=transports[0], config=rdsx.NodeConfig(seed=1, **settings)) as a,
        rdsx.open_node(hosts[1], transport=transports[1], config=rdsx.NodeConfig(seed=2, **settings)) as b,
    ):
        with await a.bind(4000) as left, await b.bind(4000) as right:
            yield a, b, left, right


async def exchange(left: rdsx.RdsSocket, right: rdsx.RdsSocket) -> None:
    """A message of each size to the right, and back again."""
    for size in SIZES:
        await left.sendto(bytes([size % 251]) * size, right.getsockname())
    for size in SIZES:
        assert await right.recv() == bytes([size % 251]) * size
        await right.sendto(bytes(size), left.getsockname())
    for size in SIZES:
        assert await left.recv() == bytes(size)


def links(file: io.BytesIO) -> list[Conversation]:
    """The connections that carried something: whoever closes first is dialled again by the other, in vain."""
    return [link for link in conversations(read_pcapng(file.getvalue())[0]) if link.dialler.data]


def payload_sizes(data: bytes) -> list[int]:
    """Sizes of the data messages of a stream: those with ports."""
    starts = [0, *message_ends(data)]
    return [end - start - HEADER_BYTES for start, end in itertools.pairwise(starts) if any(data[start + 20 : start + 24])]


def kinds(packets: list[Packet]) -> list[str]:
    """Who sent it, and what: `> SYN`, `< FIN ACK`."""
    names = {SYN: "SYN", FIN: "FIN", RST: "RST", ACK: "ACK", PSH: "PSH"}
    return [
        " ".join([">" if packet.is_outbound else "<", *(name for flag, name in names.items() if packet.flags & flag)]) for packet in packets
    ]


@pytest.mark.parametrize("hosts", [(A, B), ("fd00::1", "fd00::2")], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("faults", [Faults(), Faults(partial_writes=0.9, buffer_bytes=3001)], ids=["healthy", "torn"])
async def test_both_ends_record_the_same_streams(autojump_clock: object, hosts: tuple[str, str], faults: Faults) -> None:
    network = VirtualNetwork(seed=5, faults=faults)
    files = io.BytesIO(), io.BytesIO()
    with CaptureNetwork(network, files[0]) as one, CaptureNetwork(network, files[1]) as other:
        async with two_nodes(network, one, other, hosts=hosts) as (_, _, left, right):
            await exchange(left, right)
    (mine,), (theirs,) = map(links, files)
    assert mine.dialler.source[0] == hosts[0]
    assert mine.listener.source == (hosts[1], PORT)
    for host in hosts:
        assert mine.stream(host).data == theirs.stream(host).data
        assert payload_sizes(bytes(mine.stream(host).data)) == SIZES
    assert (mine.dialler.ends, mine.listener.ends) == ([FIN], [FIN])


async def test_a_packet_holds_bytes_of_one_message(autojump_clock: object) -> None:
    network, file = VirtualNetwork(seed=6, faults=Faults(partial_writes=0.7)), io.BytesIO()
    async with two_nodes(network, CaptureNetwork(network, file)) as (_, _, left, right):
        await exchange(left, right)
    packets, _ = read_pcapng(file.getvalue())
    (conversation,) = links(file)
    for stream in (conversation.dialler, conversation.listener):
        own = [packet for packet in packets if packet.source == stream.source and packet.data]
        ends = message_ends(bytes(stream.data))
        at = 0
        for packet in own:
            start, at = at, at + len(packet.data)
            assert not [end for end in ends if start < end < at]
            assert bool(packet.flags & PSH) == (at in ends)
        assert at == ends[-1]


async def test_what_the_packets_say(autojump_clock: object) -> None:
    """Handshake, numbers, acknowledgements, time, direction, interface; the peer's file mirrors them."""
    network, file = VirtualNetwork(seed=7), io.BytesIO()
    begin_s = 1700000000.0
    capture = CaptureNetwork(network, file, wall_clock=lambda: begin_s + trio.current_time())
    async with two_nodes(network, capture, close_drain_s=1.0) as (_, _, left, right):
        await left.sendto(b"hello", (B, 4000))
        assert await right.recv() == b"hello"
    packets, comments = read_pcapng(file.getvalue())
    assert kinds(packets)[:6] == ["> SYN", "< SYN ACK", "> ACK", "> ACK PSH", "< ACK PSH", "> ACK PSH"]
    assert [kind for kind in kinds(packets) if "FIN" in kind] == ["< FIN ACK", "> FIN ACK"]
    assert [packet.length for packet in packets[:6]] == [0, 0, 0, MAP_BYTES, MAP_BYTES, HEADER_BYTES + 5]
    assert [(packet.sequence, packet.acknowledged) for packet in packets[:6]] == [
        (0, 0),
        (0, 1),
        (1, 1),
        (1, 1),
        (1, 1 + MAP_BYTES),
        (1 + MAP_BYTES, 1 + MAP_BYTES),
    ]
    assert {packet.interface for packet in packets} == {f"virtual {A}"}
    assert [packet.time_us for packet in packets] == sorted(packet.time_us for packet in packets)
    assert packets[0].time_us >= begin_s * 1e6
    assert packets[-1].time_us < (begin_s + 60) * 1e6
    assert "PSH marks the end" in comments[0]
    assert f"rdsx {rdsx.__version__}".encode() in file.getvalue()


async def test_the_transport_keeps_its_name(autojump_clock: object) -> None:
    network = VirtualNetwork()
    async with two_nodes(network, CaptureNetwork(network, io.BytesIO())) as (a, _, left, _):
        await left.sendto(b"", (B, 4000))
        assert a.statistics().connections[0].transport == "virtual"


async def test_a_refused_connect_and_a_poke(autojump_clock: object) -> None:
    """Nobody listens at first; then the larger address dials only to be dialled."""
    network, file = VirtualNetwork(seed=8), io.BytesIO()
    async with rdsx.open_node(B, transport=CaptureNetwork(network, file)) as node:
        with await node.bind(4000) as sock:
            await sock.sendto(b"to the smaller", (A, 4000))
            await trio.sleep(0.05)
            async with rdsx.open_node(A, transport=network) as other:
                with await other.bind(4000) as receiver:
                    assert await receiver.recv() == b"to the smaller"
    packets, _ = read_pcapng(file.getvalue())
    refused, *_, poke, link = conversations(packets)
    assert kinds(packets)[:2] == ["> SYN", "< RST ACK"]
    assert "nobody listens" in packets[1].comment
    assert (refused.dialler.source[0], refused.listener.ends) == (B, [RST])
    assert (poke.dialler.source[0], bytes(poke.dialler.data + poke.listener.data)) == (B, b"")
    assert (link.dialler.source[0], link.listener.source) == (A, (B, PORT))


@pytest.mark.parametrize("resetter", [0, 1])
async def test_resets(autojump_clock: object, resetter: int) -> None:
    network, file = VirtualNetwork(seed=9), io.BytesIO()
    async with two_nodes(network, CaptureNetwork(network, file)) as (a, b, left, right):
        await exchange(left, right)
        assert (a, b)[resetter].reset_connection((B, A)[resetter])
        await exchange(left, right)
    first, second = links(file)
    assert RST in first.stream((A, B)[resetter]).ends
    assert (second.dialler.ends, second.listener.ends) == ([FIN], [FIN])


async def test_a_stream_that_breaks_without_a_word(autojump_clock: object) -> None:
    """Keepalive gives up: the reset is ours, and says why."""
    network, file = VirtualNetwork(seed=10), io.BytesIO()
    async with two_nodes(network, CaptureNetwork(network, file)) as (_, _, left, right):
        await exchange(left, right)
        network.partition(A, B)
        await trio.sleep(100)
        network.heal(A, B)
        await exchange(left, right)
    packets, _ = read_pcapng(file.getvalue())
    (reset,) = (packet for packet in packets if packet.flags & RST)
    assert (reset.is_outbound, reset.comment) == (True, "ETIMEDOUT")


async def test_snaplen(autojump_clock: object) -> None:
    """Enough for the RDS headers: they are there, the payloads are not, and lengths are still true."""
    network, file = VirtualNetwork(seed=11), io.BytesIO()
    async with two_nodes(network, CaptureNetwork(network, file, snaplen=88)) as (_, _, left, right):
        await exchange(left, right)
    packets, _ = read_pcapng(file.getvalue())
    assert len(file.getvalue()) < 20000
    for packet in packets:
        assert len(packet.data) == min(packet.length, HEADER_BYTES)
    sent = {packet.sequence: packet.length for packet in packets if packet.is_outbound and packet.length}
    for sequence, length in list(sent.items())[:-1]:
        assert sequence + length in sent


async def test_max_bytes(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    network, file = VirtualNetwork(seed=12), io.BytesIO()
    async with two_nodes(network, CaptureNetwork(network, file, max_bytes=100000)) as (_, _, left, right):
        for _ in range(3):
            await exchange(left, right)
    assert len(file.getvalue()) <= 100000
    packets, comments = read_pcapng(file.getvalue())
    assert packets
    assert comments[-1] == "recording stopped: max_bytes=100000 reached"
    assert [record.name for record in caplog.records if "max_bytes=100000 reached" in record.message] == ["rdsx.capture"]
    conversations(packets)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"snaplen": 0}])
def test_limits_that_cannot_be_meant(limits: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        CaptureNetwork(VirtualNetwork(), tmp_path / "links.pcapng", **limits)
    assert not list(tmp_path.iterdir())


# -- trouble with the file


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process can grow above it: a write there takes a part, and the next is EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_is_full(autojump_clock: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The recording ends, with its last whole packet and one line in the log; the node goes on."""
    network, path = VirtualNetwork(seed=13), tmp_path / "links.pcapng"
    with CaptureNetwork(network, path) as capture:
        async with two_nodes(network, capture) as (_, _, left, right):
            with file_size_limit(100001):
                for _ in range(3):
                    await exchange(left, right)
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert (record.name, str(path) in record.message, "File too large" in record.message) == ("rdsx.capture", True, True)
    assert path.stat().st_size < 100001
    packets, _ = read_pcapng(path.read_bytes())
    assert len(packets) > 3


class StubbornFile(io.RawIOBase):
    """Fails from a certain write on."""

    def __init__(self, good: int, how: str) -> None:
        self.good = good
        self.how = how

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        self.good -= 1
        if self.good >= 0:
            return len(data)
        if self.how == "would block":
            return None
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("how", ["would block", "broken pipe"])
async def test_a_file_that_fails(autojump_clock: object, how: str, caplog: pytest.LogCaptureFixture) -> None:
    network, file = VirtualNetwork(seed=14), StubbornFile(12, how)
    async with two_nodes(network, CaptureNetwork(network, file)) as (_, _, left, right):
        await exchange(left, right)
        await exchange(left, right)
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["rdsx.capture"]
    assert file.good == -1
    assert not file.closed


async def test_a_file_that_the_user_closes(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    network, file = VirtualNetwork(seed=15), io.BytesIO()
    async with two_nodes(network, CaptureNetwork(network, file)) as (_, _, left, right):
        await exchange(left, right)
        file.close()
        await exchange(left, right)
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["rdsx.capture"]


async def test_closing_the_capture_while_links_go_on(autojump_clock: object, tmp_path: Path) -> None:
    network, path = VirtualNetwork(seed=16), tmp_path / "links.pcapng"
    capture = CaptureNetwork(network, path)
    async with two_nodes(network, capture) as (_, _, left, right):
        await exchange(left, right)
        capture.close()
        capture.close()
        size = path.stat().st_size
        await exchange(left, right)
    assert path.stat().st_size == size


def test_a_file_that_cannot_be_opened_or_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CaptureNetwork(VirtualNetwork(), tmp_path / "nowhere" / "links.pcapng")
    with pytest.raises(OSError) as caught:
        CaptureNetwork(VirtualNetwork(), "/dev/full")
    assert caught.value.errno == errno.ENOSPC


# -- over real TCP, and for other programs


async def record_over_tcp(path: Path) -> None:
    port = free_tcp_port()
    config = rdsx.NodeConfig(port=port)
    with CaptureNetwork(TcpNetwork(config), path) as capture:
        async with two_nodes("tcp", capture, hosts=("127.0.0.1", "127.0.0.2"), port=port) as (_, _, left, right):
            with trio.fail_after(60):
                await exchange(left, right)


async def test_over_tcp(tmp_path: Path) -> None:
    await record_over_tcp(tmp_path / "links.pcapng")
    packets, _ = read_pcapng((tmp_path / "links.pcapng").read_bytes())
    (conversation,) = (each for each in conversations(packets) if each.dialler.data)
    assert payload_sizes(bytes(conversation.stream("127.0.0.1").data)) == SIZES
    assert payload_sizes(bytes(conversation.stream("127.0.0.2").data)) == SIZES
    assert {packet.interface for packet in packets} == {"tcp 127.0.0.1"}


@pytest.mark.parametrize("program", ["tcpdump", "tshark"])
async def test_programs_open_it(program: str, tmp_path: Path) -> None:
    """They read all of it, find the checksums right, and say nothing against it."""
    found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    path = tmp_path / "links.pcapng"
    await record_over_tcp(path)
    packets, _ = read_pcapng(path.read_bytes())
    checks = ["-o", "tcp.check_checksum:TRUE", "-T", "fields", "-e", "tcp.checksum.status", "-e", "tcp.analysis.flags"]
    options = {"tcpdump": ["-nvv"], "tshark": ["-n", *checks]}
    command = [found, *options[program], "-r", str(path)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    output, said = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, said
    assert not [line for line in said.splitlines() if "reading from file" not in line and "root" not in line]
    if program == "tshark":
        assert output.splitlines() == ["1\t"] * len(packets)
    else:
        assert output.count("Flags [") == output.count("(correct)") == len(packets)
