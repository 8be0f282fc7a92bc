"""A process on the host's side of the bridge: inside the lab's network namespace, with its standard streams as trio streams."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import trio

from .namespace import Namespace

__all__ = ["HostProcess", "wait_exited"]

STOP_S = 5.0


class HostProcess:
    """Made by `Lab.host_process()`; runs from `async with` on and is ended when the block is left: SIGTERM, after 5 s SIGKILL.

    `stdin` and `stdout` are trio streams; stderr is collected, see `errors()`.
    """

    def __init__(
        self, namespace: Namespace, argv: Sequence[str | Path], *, environment: Mapping[str, str], cwd: Path, errors: IO[bytes]
    ) -> None:
        self._errors = errors
        # Not in a worker thread: the kernel ends a process with the thread that started it (see Namespace.command).
        self._popen = subprocess.Popen(
            namespace.command(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.stdin = trio.lowlevel.FdStream(os.dup(self._popen.stdin.fileno()))
        self.stdout = trio.lowlevel.FdStream(os.dup(self._popen.stdout.fileno()))
        self._popen.stdin.close()
        self._popen.stdout.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, -N if signal N ended it, None while it runs."""
        return self._popen.poll()

    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return Path(self._errors.name).read_text(errors="replace")

    def send_signal(self, number: int) -> None:
        self._popen.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end; the exit status."""
        await wait_exited(self._popen)
        return self._popen.returncode

    async def stop(self) -> None:
        """End it and close its streams. May be called twice."""
        with trio.CancelScope(shield=True):
            if self._popen.poll() is None:
                self._popen.send_signal(signal.SIGTERM)
                with trio.move_on_after(STOP_S):
                    await wait_exited(self._popen)
            if self._popen.poll() is None:
                self._popen.kill()
                await wait_exited(self._popen)
            for stream in (self.stdin, self.stdout):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await stream.aclose()
            self._errors.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.stop()


async def wait_exited(popen: subprocess.Popen[bytes]) -> None:
    """Popen.wait() for trio, for a process that was started outside of trio or in another run of it."""
    if popen.poll() is not None:
        return
    descriptor = os.pidfd_open(popen.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    popen.wait()
