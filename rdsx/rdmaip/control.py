"""The control socket of an agent: status, events, and what operators may want done. Owns the socket file and its connections.

A Unix stream socket with mode 0660. Requests and answers are JSON objects, one on each line: `{"op": "status"}` is answered by
`{"ok": true, "status": …}`, what cannot be done by `{"ok": false, "error": …}`. After `{"op": "subscribe"}` each event is a line.
Whoever may open the file may ask; what changes something is for root and the agent's own user, as the kernel names the peer (SO_PEERCRED).
Invariant: nobody can make the agent hold more than `MAX_CONNECTIONS` connections, `MAX_LINE_BYTES` of a request and `BACKLOG` events each.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import trio

from rdsx.rdmaip.events import Event
from rdsx.rdmaip.facts import Command, Drain, Failback, Move, Trigger, Undrain
from rdsx.rdmaip.policy import CommandError
from rdsx.rdmaip.status import Status
from rdsx.rdmaip.wording import describe_event

__all__ = ["Controlled", "event_as_json", "open_listener", "serve_control"]

log = logging.getLogger("rdsx.rdmaip")

MAX_CONNECTIONS = 64
MAX_LINE_BYTES = 4096
BACKLOG = 256
MODE = 0o660
PEERCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Controlled(Protocol):
    """What is controlled: an `Agent`."""

    def status(self) -> Status: ...

    def command(self, command: Command) -> None:
        """Raises CommandError."""

    def subscribe(self, buffer: int = BACKLOG) -> trio.MemoryReceiveChannel[Event]: ...


class RequestError(Exception):
    """A request that cannot be answered; the text is the answer."""


@contextlib.contextmanager
def open_listener(path: str) -> Iterator[trio.SocketListener]:
    """The listening socket of the block; its file is gone afterwards. One that a dead agent left behind is replaced.

    Raises OSError: EADDRINUSE if an agent answers there, or if there is a file that is no socket; others as the system has them.
    """
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
        try:
            remove_stale(path)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # With the mode from the start: between bind and chmod anybody could connect.
            before = os.umask(0o777 & ~MODE)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
        except OSError as error:
            raise OSError(error.errno, f"control socket {path}: {error.strerror or error}; see the setting `control`") from error
        stack.callback(Path(path).unlink, missing_ok=True)
        sock.listen()
        yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def remove_stale(path: str) -> None:
    """Remove a socket at which nobody listens."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "there is a file of that name that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and is busy
    raise OSError(errno.EADDRINUSE, "another agent listens there")


async def serve_control(
    listener: trio.SocketListener, controlled: Controlled, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer until cancelled. Does not own the listener."""
    room = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def serve_one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                room.acquire_nowait()
            except trio.WouldBlock:
                log.info("a connection to the control socket is refused: there are %d already", MAX_CONNECTIONS)
                return
            try:
                await Conversation(stream, controlled).run()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer is gone
            finally:
                room.release()

    task_status.started()
    async with trio.open_nursery() as tasks:
        while True:
            try:
                tasks.start_soon(serve_one, await listener.accept())
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("the control socket cannot accept: %s", error.strerror)
                await trio.sleep(1.0)


class Conversation:
    """One connection."""

    def __init__(self, stream: trio.SocketStream, controlled: Controlled) -> None:
        self._stream = stream
        self._controlled = controlled
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEERCRED.size)
        _, self._uid, _ = PEERCRED.unpack(credentials)

    async def run(self) -> None:
        """Until the peer ends it, or says something that is no request."""
        buffered = bytearray()
        while True:
            line, found, rest = bytes(buffered).partition(b"\n")
            if found:
                buffered = bytearray(rest)
                if not await self._answer(line):
                    return
            elif len(buffered) > MAX_LINE_BYTES:
                await self._say({"ok": False, "error": f"a request is one line of at most {MAX_LINE_BYTES} bytes"})
                return
            else:
                data = await self._stream.receive_some(MAX_LINE_BYTES)
                if not data:
                    return
                buffered += data

    async def _answer(self, line: bytes) -> bool:
        """Returns whether another request may follow."""
        try:
            request = parse_request_untrusted(line)
            if request["op"] == "subscribe":
                await self._tell_events()
                return False
            if request["op"] == "status":
                await self._say({"ok": True, "status": self._controlled.status().as_json()})
                return True
            self._obey(request)
        except (RequestError, CommandError) as error:
            await self._say({"ok": False, "error": str(error)})
            return True
        await self._say({"ok": True})
        return True

    def _obey(self, request: dict[str, Any]) -> None:
        command = command_of_untrusted(request)
        if self._uid not in (0, os.geteuid()):
            raise RequestError(f"only root and the agent's own user may {request['op']}; you are uid {self._uid}")
        log.info("uid %d wants %s", self._uid, command)
        self._controlled.command(command)

    async def _tell_events(self) -> None:
        """What is, then what happens. Ends with the agent, or with the peer."""
        with self._controlled.subscribe(BACKLOG) as events:
            await self._say({"ok": True, "status": self._controlled.status().as_json()})
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._notice_end, tasks.cancel_scope)
                async for event in events:
                    await self._say(event_as_json(event))
                tasks.cancel_scope.cancel()

    async def _notice_end(self, scope: trio.CancelScope) -> None:
        """A subscriber has nothing more to say: whatever comes is the end."""
        with contextlib.suppress(trio.BrokenResourceError):
            await self._stream.receive_some(1)
        scope.cancel()

    async def _say(self, answer: dict[str, Any]) -> None:
        await self._stream.send_all(json.dumps(answer).encode() + b"\n")


def event_as_json(event: Event) -> dict[str, Any]:
    """An event's kind, its fields, and what it says in words."""
    return {"event": type(event).__name__, **plain(asdict(event)), "text": describe_event(event)}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.value if isinstance(value, Enum) else value


def parse_request_untrusted(line: bytes) -> dict[str, Any]:
    """Raises RequestError for what is no request."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("op"), str):
        raise RequestError('a request is a JSON object with "op", such as {"op": "status"}')
    return request


def command_of_untrusted(request: dict[str, Any]) -> Command:
    """Raises RequestError for an operation that does not exist, or lacks what it needs."""
    match request:
        case {"op": "move", "ip": str(ip), "port": str(port)}:
            return Move(canonical(ip), port)
        case {"op": "failback", "ip": str(ip)}:
            return Failback(canonical(ip))
        case {"op": "failback"}:
            return Failback()
        case {"op": "drain", "port": str(port)}:
            return Drain(port)
        case {"op": "undrain", "port": str(port)}:
            return Undrain(port)
        case {"op": "trigger"}:
            return Trigger()
    raise RequestError(
        f"{request['op']!r} cannot be done so; operations are status, subscribe, trigger, failback (ip), move (ip, port), drain (port), "
        "undrain (port)"
    )


def canonical(ip: str) -> str:
    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        raise RequestError(f"{ip!r} is not an IPv4 or IPv6 address") from None
