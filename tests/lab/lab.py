"""A lab: one network namespace with a bridge, and what was started on it. Frees everything, whatever fails.

Invariant: whatever a lab starts lives in its namespace, and `keeper.py` ends what is in there when the lab is closed or when this
process is no more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from . import kernel as kernels
from . import requirements
from .control import Result
from .guest import Guest, GuestSettings
from .host import HostProcess
from .kernel import DEFAULT_KERNEL
from .namespace import Namespace

__all__ = ["Lab", "LabError"]

# rdsx takes one of these: smaller than a guest's 10.77.0.2, and larger.
SMALLER, LARGER = "10.77.0.1", "10.77.0.9"
HOST_ADDRESSES = (f"{SMALLER}/24", f"{LARGER}/24", "fd77::1/64", "fd77::9/64")


class LabError(Exception):
    """The lab cannot work here. The text says what is absent."""


class Lab:
    """Use it in `async with`; or open() and aclose() it from different trio runs, as a fixture of a whole session does.

    Must be used in the thread that made it, and that thread must outlive it: the kernel ends its processes with the thread.
    """

    def __init__(self, addresses: Sequence[str] = HOST_ADDRESSES) -> None:
        self.guests: dict[str, Guest] = {}
        self._addresses = addresses
        self._folder: Path | None = None
        self._namespace: Namespace | None = None
        self._processes: list[HostProcess] = []

    # -- guests

    async def start(
        self,
        name: str = "K",
        *,
        address: str = "10.77.0.2",
        modules: Sequence[str] = ("rds_tcp",),
        kernel: str = DEFAULT_KERNEL,
        cpus: int = 1,
        memory_mb: int = 768,
        mtu: int = 1500,
        lifetime_s: int = 3600,
        boot_timeout_s: float = 120.0,
        terminal: bool = False,
    ) -> Guest:
        """Boot a guest; returns when it has its address and its modules, 3 to 4 s later. Its IPv6 address is fd77:: with the same number.

        GuestDiedError with the console's last words if it does not boot; KernelUnavailableError if the kernel was not prepared.
        """
        if name in self.guests and self.guests[name].is_up:
            raise ValueError(f"there is a guest {name!r} already")
        settings = GuestSettings(
            name=name,
            address=address,
            modules=tuple(modules),
            kernel=kernels.find(kernel),
            cpus=cpus,
            memory_mb=memory_mb,
            mtu=mtu,
            lifetime_s=lifetime_s,
            boot_timeout_s=boot_timeout_s,
            terminal=terminal,
        )
        guest = Guest(settings, self.namespace, self.folder / name)
        self.guests[name] = guest
        await guest.boot()
        return guest

    # -- the host's side

    def host_process(
        self, argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> HostProcess:
        """Start a process in the namespace. Use it in `async with`: it is ended when the block is left.

        `environment` is added to this process's own.
        """
        # Not unlinked at once: errors() reads it by name.
        errors = tempfile.NamedTemporaryFile(dir=self.folder, prefix="stderr-", delete=False)  # noqa: SIM115  the process closes it
        merged = self.namespace.environment | dict(environment or {})
        process = HostProcess(self.namespace, argv, environment=merged, cwd=Path(cwd or os.getcwd()), errors=errors)
        self._processes = [other for other in self._processes if other.returncode is None] + [process]
        return process

    async def host_run(
        self, argv: Sequence[str | Path], timeout_s: float = 60.0, *, environment: Mapping[str, str] | None = None
    ) -> Result:
        """Run a command in the namespace to its end: exit status (124: ended by the timeout), stdout and stderr."""
        output = b""
        async with self.host_process(argv, environment=environment) as process:
            await process.stdin.aclose()
            with trio.move_on_after(timeout_s):
                async for piece in process.stdout:
                    output += piece
                status = await process.wait()
                return Result(status, output.decode(errors="replace") + process.errors())
        return Result(124, output.decode(errors="replace") + process.errors())

    @contextlib.asynccontextmanager
    async def capture(self, path: str | Path, expression: str = "tcp port 16385") -> AsyncIterator[None]:
        """Write what crosses the bridge while in the block to a pcap file. Needs tcpdump."""
        options = ["-i", "br0", "-U", "-s", "0", "-B", "16384", "--immediate-mode", "-Z", "root", "-w", str(path)]
        async with self.host_process(["tcpdump", *options, *expression.split()]) as process:
            with trio.fail_after(20):
                while "listening on" not in process.errors():
                    if process.returncode is not None:
                        raise LabError(f"tcpdump: {process.errors()}")
                    await trio.sleep(0.01)
            yield
            process.send_signal(signal.SIGINT)
            with trio.move_on_after(5):
                await process.wait()

    # -- life

    @property
    def namespace(self) -> Namespace:
        if self._namespace is None:
            raise LabError("the lab is not open")
        return self._namespace

    @property
    def folder(self) -> Path:
        """The lab's own folder; gone when it is closed."""
        if self._folder is None:
            raise LabError("the lab is not open")
        return self._folder

    async def open(self) -> None:
        if missing := requirements.absent():
            raise LabError("; ".join(missing))
        self._folder = Path(tempfile.mkdtemp(prefix="rdsx-lab-"))
        try:
            self._namespace = Namespace(self._folder, self._addresses)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    async def aclose(self) -> None:
        """End everything and free it. May be called twice."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for process in self._processes:
                    nursery.start_soon(process.stop)
                for guest in self.guests.values():
                    nursery.start_soon(guest.kill)
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            namespace.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()
