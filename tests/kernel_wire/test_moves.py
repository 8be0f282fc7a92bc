"""An address that moves while the peer is a kernel: its connection is kept, because no end of it loses nothing."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from kernelkit import KERNEL, LARGER, SMALLER, kernel_and_node
from movekit import Script
from rdsx.moves import AddressChange, NeighbourChange, Progress
from rdsx.transports.tcp import TcpNetwork, TcpStream


@pytest.mark.parametrize("address", [SMALLER, LARGER])
async def test_a_kernels_connection_is_kept_even_when_it_stands_still(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its TCP's acknowledgements count, so a reset loses what was not read; and the end of our stream would wait behind the rest."""
    script = Script()
    monkeypatch.setattr(TcpNetwork, "watch", lambda self, hosts: script)
    monkeypatch.setattr(TcpStream, "progress", lambda self: Progress(100, 100, is_stalled=True))
    async with kernel_and_node(address) as (kernel, node):
        with await node.bind(4000) as sock:
            link = await kernel.meet()
            script.tell(AddressChange(address, ("p0",), ("p1",)))
            script.tell(NeighbourChange(KERNEL, "p0", b"\0\0\0\0\0\1", b"\0\0\0\0\0\2"))
            await trio.testing.wait_all_tasks_blocked()
            await link.send(b"still here")
            assert await sock.recv() == b"still here"
            assert node.statistics().drops == {}
            (connection,) = node.statistics().connections
            assert (connection.state, connection.links) == ("up", 1)
