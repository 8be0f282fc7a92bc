"""TCP streams over loopback: the options that they have, and what they tell of their progress."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio

from rdsx.addresses import parse_host
from rdsx.config import NodeConfig
from rdsx.transports.local import watch_addresses
from rdsx.transports.tcp import TCP_RTO_MAX_MS, TcpNetwork, TcpStream


def connected() -> tuple[TcpStream, socket.socket]:
    """A stream, and the plain socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    TcpNetwork(NodeConfig()).tune(near)
    return TcpStream(near), far


@pytest.fixture
def ends() -> Iterator[tuple[TcpStream, socket.socket]]:
    async def close(stream: TcpStream) -> None:
        stream.close()

    stream, far = connected()
    with far:
        yield stream, far
    trio.run(close, stream)


def test_it_tries_at_least_once_a_second(ends: tuple[TcpStream, socket.socket]) -> None:
    with socket.socket() as probe:
        try:
            probe.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS)
        except OSError:
            pytest.skip("TCP_RTO_MAX_MS needs Linux 6.15")
    assert ends[0]._sock.getsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS) == 1000


def test_a_system_without_that_option_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdsx.transports.tcp.TCP_RTO_MAX_MS", 9999)
    with closing(socket.socket()) as sock:
        TcpNetwork(NodeConfig()).tune(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_progress(ends: tuple[TcpStream, socket.socket]) -> None:
    """Acknowledged bytes grow; what a peer does not read waits, and is not under way; what the peer sends does not count."""
    stream, far = ends
    before = stream.progress()
    assert before is not None
    assert (before.outstanding_bytes, before.is_stalled) == (0, False)
    far.send(bytes(500))
    stream.send([bytes(1000)])
    after = stream.progress()  # over loopback the acknowledgement is there when send() returns
    assert after is not None
    assert after.acknowledged_bytes - before.acknowledged_bytes == 1000
    try:
        while True:
            stream.send([bytes(65536)])
    except BlockingIOError:
        pass
    full = stream.progress()
    assert full is not None
    assert not full.is_stalled
    assert full.outstanding_bytes < stream.unacknowledged() / 2  # some of it is on its way still


def test_a_broken_stream_tells_nothing(ends: tuple[TcpStream, socket.socket]) -> None:
    stream, far = ends
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with pytest.raises(ConnectionResetError):
        stream.receive_into([memoryview(bytearray(1))])
    assert stream.progress() is None


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "::1", "127.3.2.1"]])
def test_loopback_addresses_are_not_watched(addresses: list[str]) -> None:
    assert watch_addresses([parse_host(text) for text in addresses]) is None


def test_other_addresses_are() -> None:
    async def main() -> None:
        changes = watch_addresses([parse_host("127.0.0.1"), parse_host("10.0.0.1")])
        assert changes is not None
        changes.close()

    trio.run(main)
