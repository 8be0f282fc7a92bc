"""KernelStack: the inside of a node whose protocol the running kernel speaks.

There is little in it: the kernel has the connections, the queues and the timers. What user space cannot know (events of peers, their
generations) is refused or None, never made up.
"""

from __future__ import annotations

import logging
import socket as stdlib_socket
from collections.abc import Callable

import trio

from rdsx.addresses import Host
from rdsx.config import NodeConfig
from rdsx.constants import RDS_MAX_MSG_SIZE
from rdsx.engine.events import Event
from rdsx.errors import UnsupportedError
from rdsx.kernel import pages
from rdsx.kernel.af_rds import check_address, look_until, open_socket
from rdsx.kernel.socket import KernelSocket
from rdsx.stack import Stack
from rdsx.statistics import ConnectionStatistics, NodeStatistics
from rdsx.wire.info import ConnectionInfo, Info, MessageInfo

__all__ = ["KernelStack"]

log = logging.getLogger("rdsx.kernel")


class KernelStack(Stack[KernelSocket]):
    """AF_RDS sockets of the network namespace in which each of them was made."""

    def __init__(self, hosts: list[Host], config: NodeConfig) -> None:
        super().__init__(hosts, config)
        self._asker: stdlib_socket.socket | None = None
        self._told: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self.scratch = memoryview(bytearray(RDS_MAX_MSG_SIZE))  # every receive call fills it and copies out at once

    @property
    def transport_name(self) -> str:
        return "kernel"

    @property
    def generation(self) -> None:
        return None

    # -- sockets

    async def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._asker = open_socket()
        try:
            for host in self.hosts.values():
                check_address(host)
        except BaseException:
            self._asker.close()
            raise

    def socket(self) -> KernelSocket:
        sock = KernelSocket(self, open_socket())
        self.sockets[sock] = None
        return sock

    def watch(self, is_so: Callable[[], bool]) -> None:
        """Have a task look until it is so, or the node ends."""
        assert self._nursery is not None
        self._nursery.start_soon(look_until, is_so)

    def warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    # -- what the kernel tells when asked

    @property
    def asker(self) -> stdlib_socket.socket:
        """A socket that nothing is sent from or to, to ask by."""
        if self.closed or self._asker is None:
            raise trio.ClosedResourceError("this node was closed: the kernel is asked through it no more")
        return self._asker

    def congestion_updates(self) -> int:
        """How many congestion maps the kernel has received, from anybody."""
        return pages.read_counters(self.asker)["cong_update_received"]

    def unacknowledged(self) -> list[MessageInfo]:
        """Messages of this machine that are queued or not acknowledged.

        The send queue is read before and after: a lost connection moves messages back to it. Who is listed twice is named once.
        """
        queues = pages.read_messages(self.asker, "send_messages", "retransmit_messages", "send_messages")
        return list(dict.fromkeys(queues))

    def received(self) -> list[MessageInfo]:
        """Messages to this machine that nobody has received yet."""
        return list(pages.read_messages(self.asker, "receive_messages"))

    def info(self) -> Info:
        return pages.read_info(self.asker)

    def statistics(self) -> NodeStatistics:
        texts = {host.text for host in self.hosts.values()}
        info = self.info()
        return NodeStatistics(
            addresses=tuple(self.hosts),
            sockets=len(self.sockets),
            queued_bytes=sum(message.length for message in info.receive_messages if message.local[0] in texts),
            missed_events=0,
            counters=info.counters,
            drops={},
            moves_survived=0,
            connections=tuple(connection_statistics(one, info) for one in info.connections if one.local in texts),
        )

    # -- what it does not

    def subscribe(self, buffer: int) -> trio.MemoryReceiveChannel[Event]:
        raise UnsupportedError("the kernel tells nobody what happens to its peers: compare statistics().connections from time to time")

    def reset_connection(self, peer: str) -> bool:
        raise UnsupportedError(f"the kernel resets no connection on request: 'ss -K dst {peer} dport = 16385' as root kills its TCP")

    # -- the end

    async def drain(self) -> None:
        def is_done() -> bool:
            ports = {(sock._host.text, sock._port) for sock in self.sockets if sock._host is not None}
            return not any(message.local in ports for message in self.unacknowledged())

        with trio.move_on_after(self.config.close_drain_s / 2):
            await look_until(is_done)

    def close(self) -> None:
        self.closed = True
        for sock in list(self.sockets):
            sock.close()
        if self._asker is not None:
            self._asker.close()


def connection_statistics(one: ConnectionInfo, info: Info) -> ConnectionStatistics:
    def between(messages: tuple[MessageInfo, ...]) -> list[MessageInfo]:
        return [message for message in messages if message.local[0] == one.local and message.peer[0] == one.peer]

    return ConnectionStatistics(
        local=one.local,
        peer=one.peer,
        transport=one.transport,
        state="up" if one.connected else "connecting" if one.connecting else "down",
        kind=None,
        generation=None,
        links=None,
        reconnects=None,
        next_tx_seq=one.next_tx_seq,
        next_rx_seq=one.next_rx_seq,
        send_queue_messages=len(between(info.send_messages)),
        retransmit_queue_messages=len(between(info.retransmit_messages)),
        retransmitted_messages=None,
        queued_bytes=sum(message.length for message in between(info.receive_messages)),
        paused=False,
    )
