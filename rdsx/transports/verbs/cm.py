"""Connections by the RDMA CM, as rds_rdma makes them: who connects to whom, with which private data, to which version.

A connection is asked for (`ConnectionManager.connect`), or taken from a `Listener` as a `ConnectRequest` that is granted or rejected;
either way the queue pair is ours, and ready for receives before the other end can send. Whether a request may be granted is not decided
here. Invariant: each call on an identifier is one that its state allows, because neither librdmacm nor pyverbs checks that; whoever is
cancelled leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import trio

from rdsx import _bridge
from rdsx.addresses import Host, parse_host
from rdsx.errors import WireError
from rdsx.rdma_structs import pack_sockaddr, unpack_sockaddr
from rdsx.transports.signal import Signal
from rdsx.transports.verbs.device import OpenDevice, PortHandler, QueuePair, QueueSizes
from rdsx.transports.verbs.identifier import CmEvent, EventChannel, Identifier
from rdsx.wire.cm_data import (
    PORT_IPV4,
    PORT_IPV6,
    REJECT_DATA,
    CmData,
    Version,
    accepted_version,
    agreed_version,
    pack_cm_data,
    parse_cm_data_untrusted,
)

__all__ = ["CmConnection", "ConnectRequest", "ConnectionManager", "Listener", "Offer", "Receiver"]

RESOLVE_TIMEOUT_MS = 5000  # of the address, and of the route: rds_rdma's
CLOSE_S = 1.0  # for the other tasks of a node to let go of their connections
BACKLOG = 128  # rds_rdma's; also how many requests may wait for us
RETRY_COUNT = (
    7  # of lost packets, before a connection is given up; the CM's maximum. rds_rdma has 1, which loses a connection to two lost packets
)
RNR_RETRY_COUNT = 7  # for ever: a receive ring that runs dry is no error
PORT_UNKNOWN = 8  # the CM's reason for a rejection: "invalid service ID", nobody listens

Refused: TypeAlias = Callable[[str, str], None]

# What ends a connection, and the name under which that is counted.
ENDINGS = {
    "DISCONNECTED": "closed_by_peer",
    "REJECTED": "closed_by_peer",  # it gave up before it heard that we accept
    "TIMEWAIT_EXIT": "closed_by_peer",
    "ADDR_CHANGE": "address_changed",  # another port or device has the address now: connect again to find it
    "DEVICE_REMOVAL": "device_removed",
    "UNREACHABLE": "unreachable",
    "CONNECT_ERROR": "connect_failed",
}


def cm_port(host: Host) -> int:
    """Where RDS listens: it tells the other end, too, which form the private data has."""
    return PORT_IPV6 if host.is_ipv6 else PORT_IPV4


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one end says of its receives as a connection is made; see `CmData`."""

    fragment_bytes: int = 0
    credit: int = 0


class Receiver(Protocol):
    """What posts the receives of a queue pair."""

    def offer(self, pair: QueuePair) -> Offer:
        """Get ready; what the peer is to be told. Receives can be posted from now on."""

    def post(self, peer: CmData) -> None:
        """The peer has said this, and nothing has come yet: the last moment to post receives."""


class ConnectionManager:
    """All connections of a node through the RDMA CM. Raises OSError where that cannot be used, `_bridge.Unsupported` where it is unknown.

    `sizes`: of each connection's queues. `refused(reason, text)` is told of requests that were malformed, and rejected for it;
    `port_changed(type, port)` of events of a device. run() must run while the other methods are in use.
    """

    def __init__(self, sizes: QueueSizes, *, refused: Refused, port_changed: PortHandler) -> None:
        self.sizes = sizes
        self.refused = refused
        self.channel = EventChannel()
        self._port_changed = port_changed
        self._devices: list[OpenDevice] = []  # those that were removed, too
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle events until cancelled, then close everything."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self.channel.run)
                task_status.started()
        finally:
            # Whoever holds a connection is being cancelled, too, and its rings must be done before the queue pair goes.
            with trio.move_on_after(CLOSE_S, shield=True):
                while any(device.in_use for device in self._devices):
                    await trio.lowlevel.checkpoint()
            self.channel.close()
            for device in self._devices:
                device.close()

    def device(self, identifier: Identifier) -> OpenDevice:
        """The device that an identifier is bound to; opened when it is first needed, and shared by all its connections."""
        name = _bridge.device_name(identifier.pointer)
        if name is None:
            raise OSError(errno.ENODEV, "the RDMA device has gone")
        for device in self._devices:
            if device.name == name and not device.is_removed:
                return device
        opened = OpenDevice(name)
        self._devices = [device for device in self._devices if device.in_use or not device.is_removed] + [opened]
        assert self._nursery is not None
        self._nursery.start_soon(opened.watch, self._port_changed)
        return opened

    async def listen(self, local: Host) -> Listener:
        """Take requests to this address. OSError with the remedy in its text when that cannot be."""
        await trio.lowlevel.checkpoint()
        return Listener(self, local)

    async def connect(self, local: Host, remote: Host, receiver: Receiver, *, tos: int = 0, ack_seq: int = 0) -> CmConnection:
        """Ask `remote` for a connection, whose receives `receiver` posts.

        `ack_seq`: the last sequence number that was received from this peer. OSError if there is no connection now; WireError if the
        answer is no RDS. Cancelled: there is none, and the other end is told so.
        """
        identifier = self.channel.identifier()
        pair: QueuePair | None = None
        try:
            if tos:
                _bridge.set_tos(identifier.pointer, tos)
            addresses = pack_sockaddr(local.sockaddr(0)), pack_sockaddr(remote.sockaddr(cm_port(remote)))
            _bridge.resolve_addr(identifier.pointer, *addresses, RESOLVE_TIMEOUT_MS)
            await expect(identifier, "ADDR_RESOLVED", remote)
            _bridge.resolve_route(identifier.pointer, RESOLVE_TIMEOUT_MS)
            await expect(identifier, "ROUTE_RESOLVED", remote)
            device = self.device(identifier)
            pair = device.queue_pair(self.sizes)
            pair.to_init(identifier.cmid)
            offer = receiver.offer(pair)
            data = CmData(
                sender=local.ip,
                receiver=remote.ip,
                tos=tos,
                fragment_bytes=offer.fragment_bytes,
                ack_seq=ack_seq,
                credit=offer.credit,
            )
            _bridge.connect(
                identifier.pointer,
                pack_cm_data(data),
                qp_num=pair.number,
                responder_resources=device.limits.responder_resources,
                initiator_depth=device.limits.initiator_depth,
                retry_count=RETRY_COUNT,
                rnr_retry_count=RNR_RETRY_COUNT,
            )
            response = await expect(identifier, "CONNECT_RESPONSE", remote)
            reply = parse_cm_data_untrusted(response.private_data, is_ipv6=remote.is_ipv6)
            version = accepted_version(reply)
            receiver.post(reply)
            pair.to_ready(identifier.cmid)
            _bridge.establish(identifier.pointer)
            return CmConnection(identifier, pair, local, remote, version, tos, reply)
        except BaseException:
            close_all(pair, identifier)
            raise


class Listener:
    """Takes requests to one local address. Made by `ConnectionManager.listen()`."""

    def __init__(self, manager: ConnectionManager, local: Host) -> None:
        self.local = local
        self._manager = manager
        self._requests: deque[ConnectRequest] = deque()
        self._signal = Signal()
        self._identifier = self._listen()

    async def accept(self) -> ConnectRequest:
        """The next request. OSError for trouble that may pass: the address has moved to another device, or the device has gone; call again
        later. Cancelled: the request stays for the next call."""
        if self._identifier.is_closed:
            self._identifier = self._listen()
        while not self._requests:
            await self._signal.wait()
            if self._identifier.is_closed:
                raise OSError(errno.ENODEV, f"{self.local.key} is no longer on the RDMA device that it was on")
        return self._requests.popleft()

    @property
    def device(self) -> OpenDevice:
        """The one that has the address now. OSError ENODEV if none has."""
        if self._identifier.is_closed:
            raise OSError(errno.ENODEV, f"{self.local.key} is no longer on the RDMA device that it was on")
        return self._manager.device(self._identifier)

    def reopen(self) -> None:
        """The address is on another device: what waited is refused, and the accept() that waits, or the next one, fails. Then call it
        again. The CM tells nothing of a move (it does of a bond's failover)."""
        self.close()
        self._signal.set()

    def close(self) -> None:
        """Take no more requests, and reject those that wait. Twice is harmless."""
        while self._requests:
            self._requests.popleft().close()
        self._identifier.close()

    def _listen(self) -> Identifier:
        identifier = self._manager.channel.identifier()
        port = cm_port(self.local)
        try:
            _bridge.bind_addr(identifier.pointer, pack_sockaddr(self.local.sockaddr(port)))
            identifier.requested = self._requested
            identifier.happened = self._happened
            _bridge.listen(identifier.pointer, BACKLOG)
        except OSError as error:
            identifier.close()
            raise listen_error(error, self.local, port) from error
        except BaseException:
            identifier.close()
            raise
        return identifier

    def _happened(self, event: CmEvent) -> None:
        """Nothing good happens to a listener: it is bound to a device that has lost the address, or that goes."""
        if event.kind in ("ADDR_CHANGE", "DEVICE_REMOVAL"):
            self._identifier.close()
            self._signal.set()

    def _requested(self, identifier: Identifier, event: CmEvent) -> None:
        try:
            request = ConnectRequest(self._manager, self.local, identifier, event)
        except WireError as error:
            reject(identifier)
            self._manager.refused(error.reason, f"{self.local.key}: {error}")
            return
        if len(self._requests) >= BACKLOG:
            request.close()
            self._manager.refused("backlog", f"{self.local.key}: {BACKLOG} requests wait, the one of {request.remote.key} is one too many")
            return
        self._requests.append(request)
        self._signal.set()


class ConnectRequest:
    """A peer asks for a connection. Call accept() or close(). Raises WireError for a request that is no RDS."""

    def __init__(self, manager: ConnectionManager, local: Host, identifier: Identifier, event: CmEvent) -> None:
        self._manager = manager
        self._identifier = identifier
        self._answered = False
        self._responder_resources = event.responder_resources
        self._initiator_depth = event.initiator_depth
        self.local = local
        self.remote = peer_of(identifier)
        self.data = parse_cm_data_untrusted(event.private_data, is_ipv6=local.is_ipv6)
        self.version = agreed_version(self.data)
        named = self.data.sender, self.data.receiver
        if not self.data.is_empty and named != (self.remote.ip, local.ip):
            # A kernel believes these; but then anybody could speak in the name of anybody.
            raise WireError(
                "bad_private_data", f"the request names {named[0]} and {named[1]}, and comes from {self.remote.key} to {local.key}"
            )

    async def accept(self, receiver: Receiver, *, ack_seq: int = 0) -> CmConnection:
        """Grant it. `receiver` and `ack_seq` as in `ConnectionManager.connect()`; messages may come before this returns.

        OSError if the peer has given up meanwhile, or does not confirm. Cancelled: the peer is told that there is no connection.
        """
        pair: QueuePair | None = None
        identifier = self._identifier
        self._answered = True
        try:
            device = self._manager.device(identifier)
            pair = device.queue_pair(self._manager.sizes)
            pair.to_init(identifier.cmid)
            pair.to_ready(identifier.cmid)
            offer = receiver.offer(pair)
            receiver.post(self.data)
            pair.established_early = lambda: notify_established(identifier)
            data = CmData(
                sender=self.local.ip,
                receiver=self.remote.ip,
                version=self.version,
                tos=self.data.tos,
                fragment_bytes=offer.fragment_bytes,
                ack_seq=ack_seq,
                credit=offer.credit,
            )
            _bridge.accept(
                identifier.pointer,
                pack_cm_data(data),
                qp_num=pair.number,
                responder_resources=min(self._responder_resources, device.limits.responder_resources),
                initiator_depth=min(self._initiator_depth, device.limits.initiator_depth),
                rnr_retry_count=RNR_RETRY_COUNT,
            )
            await expect(identifier, "ESTABLISHED", self.remote)
            return CmConnection(identifier, pair, self.local, self.remote, self.version, self.data.tos, self.data)
        except BaseException:
            close_all(pair, identifier)
            raise

    def close(self) -> None:
        """Refuse it: the peer tries again after a random time. After accept(), and the second time, it does nothing."""
        if not self._answered:
            self._answered = True
            reject(self._identifier)


class CmConnection:
    """An established connection and its queue pair. `peer_data` is what the peer said as it was made: its `ack_seq`, its `credit`."""

    def __init__(
        self, identifier: Identifier, pair: QueuePair, local: Host, remote: Host, version: Version, tos: int, peer_data: CmData
    ) -> None:
        self._identifier = identifier
        self.queue_pair = pair
        self.local = local
        self.remote = remote
        self.version = version
        self.tos = tos
        self.peer_data = peer_data

    async def wait_ended(self) -> str:
        """Wait until it has ended for the CM; returns the reason, a name to be counted. That the peer is silent the CM does not see."""
        while True:
            event = await self._identifier.next_event()
            if event.kind == "DEVICE_REMOVAL":
                self.queue_pair.device.remove()
            if event.kind in ENDINGS:
                return ENDINGS[event.kind]

    def disconnect(self) -> None:
        """Tell the peer that it ends, and flush what is posted: every work request completes. Twice is harmless."""
        if not self._identifier.is_closed:
            with contextlib.suppress(OSError):  # it has ended already
                _bridge.disconnect(self._identifier.pointer)
        if not self.queue_pair.is_closed:
            self.queue_pair.to_error()

    def close(self) -> None:
        """Free all of it. Completions must have been taken, and events acknowledged; registered memory is freed after this. Twice is
        harmless."""
        close_all(self.queue_pair, self._identifier)


# -- helpers


async def expect(identifier: Identifier, kind: str, remote: Host) -> CmEvent:
    """The next event if it is of this kind; otherwise the OSError that it stands for."""
    event = await identifier.next_event()
    if event.kind != kind:
        raise event_error(event, remote)
    return event


def event_error(event: CmEvent, remote: Host) -> OSError:
    """What went wrong, as an errno that connect() of a socket would give."""
    if event.kind == "REJECTED":
        if event.status == PORT_UNKNOWN:
            return OSError(errno.ECONNREFUSED, f"{remote.key}: nobody listens for RDS over RDMA there")
        return OSError(errno.ECONNRESET, f"{remote.key} rejects the connection (CM reason {event.status})")
    number = -event.status if event.status < 0 else errno.EHOSTUNREACH
    return OSError(number, f"{remote.key}: no connection over RDMA: {event.kind}, {os.strerror(number)}")


def listen_error(error: OSError, local: Host, port: int) -> OSError:
    """The same errno with the address, the port and the remedy in the text."""
    remedies = {
        errno.EADDRINUSE: "the port is in use, by another rdsx node: stop that; or by the kernel's rds_rdma: 'modprobe -r rds_rdma', "
        "or use it with transport='kernel'",
        errno.EADDRNOTAVAIL: "no RDMA device of this machine has the address: 'rdsx doctor' shows which device has which",
    }
    remedy = remedies.get(error.errno or 0, error.strerror or str(error))
    return OSError(error.errno, f"cannot listen on {local.key} port {port} of RDMA: {remedy}")


def peer_of(identifier: Identifier) -> Host:
    """Who asks, as the CM says."""
    _, remote = _bridge.addresses(identifier.pointer)
    address = unpack_sockaddr(remote)
    return parse_host(address[0], address[3] if len(address) == 4 else 0)


def reject(identifier: Identifier) -> None:
    """Refuse a request and free its identifier."""
    try:
        with contextlib.suppress(OSError):  # the peer has given up meanwhile
            _bridge.reject(identifier.pointer, REJECT_DATA)
    finally:
        identifier.close()


def notify_established(identifier: Identifier) -> None:
    if not identifier.is_closed:
        with contextlib.suppress(OSError):  # the CM knows by now
            _bridge.notify_established(identifier.pointer)


def close_all(pair: QueuePair | None, identifier: Identifier) -> None:
    """The queue pair first: it is stopped, so that nothing is written into memory that is about to be freed."""
    try:
        if pair is not None:
            pair.close()
    finally:
        identifier.close()
