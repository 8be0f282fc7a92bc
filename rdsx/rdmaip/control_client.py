"""Talking to an agent by its control socket. Owns the connection and the errors for agents that are not there."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import AsyncIterator
from typing import Any

import trio

from rdsx.rdmaip.config import DEFAULT_CONTROL

__all__ = ["ControlClient", "ControlError", "open_control"]

READ_BYTES = 65536


class ControlError(Exception):
    """The agent is not there, may not be asked, or will not do it; the text says which, and what to do."""


class ControlClient:
    """One connection to an agent. Requests are answered one after another."""

    def __init__(self, stream: trio.SocketStream, path: str) -> None:
        self._stream = stream
        self._path = path
        self._buffered = b""

    async def request(self, op: str, **arguments: str | None) -> dict[str, Any]:
        """What the agent answers. Raises ControlError with its reason if it refuses. Cancelled: whether it was done is not known."""
        line = json.dumps({"op": op, **{name: value for name, value in arguments.items() if value is not None}})
        try:
            await self._stream.send_all(line.encode() + b"\n")
            answer = await self._read()
        except trio.BrokenResourceError:
            answer = None
        if answer is None:
            raise ControlError(f"the agent at {self._path} closed the connection; it may have too many, or have ended")
        if not answer.get("ok"):
            raise ControlError(str(answer.get("error")))
        return answer

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """After `request("subscribe")`: events as they happen, until the agent ends."""
        with contextlib.suppress(trio.BrokenResourceError):
            while (event := await self._read()) is not None:
                yield event

    async def _read(self) -> dict[str, Any] | None:
        while b"\n" not in self._buffered:
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                return None
            self._buffered += data
        line, _, self._buffered = self._buffered.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.asynccontextmanager
async def open_control(path: str = DEFAULT_CONTROL) -> AsyncIterator[ControlClient]:
    """A connection for the block. Raises ControlError."""
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            problem = "no agent listens there; start one with `rdsx rdmaip run FILE`, or name its control socket with --control"
        elif error.errno in (errno.EACCES, errno.EPERM):
            problem = "you may not open it; become root, the agent's user, or a member of its group"
        else:
            problem = error.strerror or str(error)
        raise ControlError(f"control socket {path}: {problem}") from error
    async with stream:
        yield ControlClient(stream, path)
