"""A guest: one qemu with a kernel, a network card on the lab's bridge, the host's root as its root, and a shell loop that runs commands.

The guest sees every file of the host under the host's path, read-only, as it was when first read; what it writes stays in its memory.
`/run/lab` is the one folder that host and guest share: scripts go in there, output comes out. Invariant: qemu dies with the lab,
with the thread that started it, and after `lifetime_s` at the latest.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from .control import Control, GuestDiedError, Result, escape
from .host import wait_exited
from .kernel import Kernel
from .namespace import Namespace

__all__ = ["Guest", "GuestProcess", "GuestSettings"]

STATUS_TIMEOUT = 124
OUTPUT_POLL_S = 0.01  # a file over 9p makes no event
STOP_S = 5.0
GUEST_RDS = Path(__file__).with_name("guest_rds.py").absolute()

KERNEL_LINE = (
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests no_timer_check"
    " sysctl.net.core.rmem_max=16777216 sysctl.net.core.wmem_max=16777216"
)

BOOT = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec >/run/lab/boot.out 2>&1 </dev/null
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" = rdsx.lab ] && exec 3<>/dev/${{port##*/}}
done
setup() {{
  mkdir -p /lib/modules/{release} && mount --bind {modules_folder} /lib/modules/{release} &&
  ip link set lo up && ip link set eth0 mtu {mtu} up && ip addr add {address}/24 dev eth0 && ip -6 addr add {address6}/64 dev eth0 nodad &&
  {{ [ -z "{modules}" ] || modprobe -a {modules}; }}
}}
hostname {name}
cd {folder}
setup
echo "ready $?" >&3
{terminal}
while read -r verb number argument <&3; do
  case $verb in
    run) {{
      setsid bash -c 'echo $$ >/run/$0.pid; . /run/lab/$0.sh' $number >/run/lab/$number.out 2>&1 </dev/null 3>&-
      echo "done $number $?" >&3
    }} 2>/dev/null & ;;  # bash says "Killed" of every command that is
    kill) kill -s $argument -- -$(cat /run/$number.pid) ;;
    off) sync; echo o >/proc/sysrq-trigger; sleep 9 ;;
  esac
done
"""

TERMINAL = "stty -F /dev/hvc0 rows {rows} cols {columns}; { setsid -c bash -i <>/dev/hvc0 >&0 2>&0 3>&-; echo o >/proc/sysrq-trigger; } &"


@dataclass(frozen=True, kw_only=True)
class GuestSettings:
    """What `Lab.start()` was asked for."""

    name: str
    address: str
    modules: tuple[str, ...]
    kernel: Kernel
    cpus: int
    memory_mb: int
    mtu: int
    lifetime_s: int
    boot_timeout_s: float
    terminal: bool

    @property
    def number(self) -> int:
        """The host part of the address; also the last byte of MAC and IPv6 address."""
        return int(self.address.rsplit(".", 1)[1])


class Guest:
    """A running guest. Made by `Lab.start()`; may be used from several trio runs, one after another."""

    def __init__(self, settings: GuestSettings, namespace: Namespace, folder: Path) -> None:
        self.settings = settings
        self.name = settings.name
        self.address = settings.address
        self.address6 = f"fd77::{settings.number:x}"
        self.tap = f"tap{settings.number}"
        self.boot_s = 0.0
        self._cable_out = False
        self._namespace = namespace
        self._folder = folder  # shared with the guest
        self._numbers = itertools.count(1)
        self._control = Control()
        self._popen: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Guest {self.name} {self.address} kernel {self.settings.kernel.release} {'up' if self.is_up else 'gone'}>"

    # -- commands

    async def run(self, command: str, timeout_s: float = 60.0) -> Result:
        """Run a bash command to its end; its exit status and output.

        After `timeout_s` it is killed and the status is 124. Cancelled: it is killed. GuestDiedError if the guest goes meanwhile.
        """
        async with self.start_process(command) as process:
            return await process.wait(timeout_s)

    async def check(self, command: str, timeout_s: float = 60.0) -> str:
        """run() for a command that must succeed; its output. AssertionError with the output otherwise."""
        status, output = await self.run(command, timeout_s)
        if status:
            raise AssertionError(f"guest {self.name}: {command!r}: exit status {status}\n{output}\n{self.console()}")
        return output

    def start_process(self, command: str) -> GuestProcess:
        """Start a bash command in the background. Use it in `async with`: it is killed when the block is left."""
        if not self.is_up:
            raise GuestDiedError(f"guest {self.name} is gone\n{self.console()}")
        number = next(self._numbers)
        (self._folder / f"{number}.in").touch()
        (self._folder / f"{number}.sh").write_text(command + "\n")
        self._control.send(f"run {number}")
        return GuestProcess(self, number, command)

    def rds_command(self, arguments: str, program: Path = GUEST_RDS) -> str:
        """The shell command that runs guest_rds.py, or another Python program that needs no packages."""
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else os.path.realpath(sys.executable)
        return f"exec {shlex.quote(python)} -I -S {shlex.quote(str(program))} {arguments}"

    def python_command(self, *arguments: object) -> str:
        """The shell command that runs this very Python, with the rdsx that this process has."""
        import rdsx  # here, because `python -m tests.lab` works in a checkout where nothing is built

        checkout = Path(rdsx.__file__).parent.parent
        return shlex.join(["env", f"PYTHONPATH={checkout}", sys.executable, "-P", *map(str, arguments)])

    # -- faults

    def pull_cable(self) -> None:
        """Nothing gets through between guest and bridge until plug_cable(); a guest that is booted meanwhile starts without."""
        self._cable_out = True
        self._set_cable()

    def plug_cable(self) -> None:
        self._cable_out = False
        self._set_cable()

    @contextlib.asynccontextmanager
    async def netem(self, faults: str) -> AsyncIterator[None]:
        """Disturb what the guest sends while in the block, as tc-netem(8): "delay 20ms 5ms loss 10%"."""
        await self.check(f"modprobe sch_netem && tc qdisc add dev eth0 root netem {faults}")
        try:
            yield
        finally:
            if self.is_up:
                with trio.CancelScope(shield=True):
                    await self.check("tc qdisc del dev eth0 root", 20)

    async def reload(self, *modules: str) -> None:
        """Unload and load RDS again, or just these modules: the kernel forgets every peer. Faster than a reboot.

        AssertionError when a module is in use.
        """
        names = " ".join(modules or self.settings.modules)
        await self.check(f"modprobe -r {names} && modprobe -a {names}")

    # -- life

    @property
    def is_up(self) -> bool:
        """Whether qemu runs."""
        return self._popen is not None and self._popen.poll() is None and not self._control.is_dead

    @property
    def pid(self) -> int | None:
        """Of the process in front of qemu."""
        return self._popen.pid if self._popen is not None else None

    async def boot(self) -> None:
        """Start it, and wait until it has its address and its modules."""
        began_s = time.monotonic()
        self._write_boot_script()
        self._namespace.add_tap(self.tap)
        try:
            self._start_qemu()
            self._set_cable()
            if self.settings.terminal:
                return
            with trio.move_on_after(self.settings.boot_timeout_s) as limit:
                status = await self._control.wait_ready()
                if status:
                    raise GuestDiedError(f"guest {self.name} could not be set up\n{self.console()}")
            if limit.cancelled_caught:
                raise GuestDiedError(f"guest {self.name} is not up after {self.settings.boot_timeout_s} s\n{self.console()}")
        except GuestDiedError as error:
            await self.kill()
            raise GuestDiedError(f"guest {self.name} did not boot: {error}\n{self.console()}") from None
        except BaseException:
            await self.kill()
            raise
        self.boot_s = time.monotonic() - began_s

    async def stop(self) -> None:
        """Power it off in order; a guest that does not obey is killed."""
        if self.is_up:
            self._control.send("off")
            with trio.move_on_after(STOP_S):
                await self._control.wait_dead()
        await self.kill()

    async def kill(self) -> None:
        """Pull the plug. What its kernel had not sent is lost, and nobody is told. May be called twice."""
        popen, self._popen = self._popen, None
        self._control.close()
        if popen is None:
            return
        with trio.CancelScope(shield=True):
            if popen.poll() is None:
                popen.terminate()
                with trio.move_on_after(STOP_S):
                    await wait_exited(popen)
            if popen.poll() is None:
                popen.kill()
                await wait_exited(popen)
        self._namespace.remove_tap(self.tap)

    async def reboot(self) -> None:
        """Kill it and boot it anew, with the same name, address and modules. Processes in it are gone."""
        await self.kill()
        self._control = Control()
        await self.boot()

    async def wait(self) -> None:
        """Wait until it is gone."""
        assert self._popen is not None
        await wait_exited(self._popen)

    def console(self) -> str:
        """What the kernel said on its serial console, and the boot script on its output: the end of it."""
        paths = [path for path in (self._folder / "console.log", self._folder / "boot.out") if path.exists()]
        texts = [path.read_text(errors="replace").strip()[-4000:] for path in paths]
        return "\n".join(text for text in texts if text)

    # -- helpers

    def _set_cable(self) -> None:
        if self._popen is not None:
            self._namespace.ip("link", "set", self.tap, "down" if self._cable_out else "up")

    def _write_boot_script(self) -> None:
        settings = self.settings
        size = shutil.get_terminal_size()
        script = BOOT.format(
            release=settings.kernel.release,
            modules_folder=shlex.quote(str(settings.kernel.modules)),
            mtu=settings.mtu,
            address=settings.address,
            address6=self.address6,
            modules=" ".join(settings.modules),
            name=shlex.quote(settings.name),
            folder=shlex.quote(os.getcwd()),
            terminal=TERMINAL.replace("{rows}", str(size.lines)).replace("{columns}", str(size.columns)) if settings.terminal else "",
        )
        shutil.rmtree(self._folder, ignore_errors=True)  # output of an earlier guest of that name would be taken for this one's
        self._folder.mkdir()
        (self._folder / "boot.sh").write_text(script)

    def _start_qemu(self) -> None:
        settings = self.settings
        descriptor = self._control.guest_end.fileno()
        foreground = ["--foreground"] if settings.terminal else []  # else the terminal stops it
        limit = ["timeout", *foreground, "-k", "5", str(settings.lifetime_s)]
        command = [*limit, "setpriv", "--pdeathsig", "KILL", "--", *self._qemu()]
        streams = None if settings.terminal else subprocess.DEVNULL
        with open(self._folder / "console.log", "ab") as log:
            self._popen = subprocess.Popen(
                self._namespace.command(command),
                stdin=streams,
                stdout=streams,
                stderr=log,
                pass_fds=[descriptor],
                env=self._namespace.environment,
                start_new_session=not settings.terminal,
            )
        self._control.started()

    def _qemu(self) -> Sequence[str]:
        settings = self.settings
        share, console = escape(self._folder), escape(self._folder / "console.log")
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off",
            "-smp", str(settings.cpus), "-m", str(settings.memory_mb),
            "-kernel", str(settings.kernel.vmlinux), "-initrd", str(settings.kernel.initramfs), "-append", KERNEL_LINE,
            "-chardev", f"file,id=log,path={console},append=on", "-serial", "chardev:log",
            "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", f"local,path={share},mount_tag=lab,security_model=none",
            "-netdev", f"tap,id=n0,ifname={self.tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=n0,mac=52:54:00:77:00:{settings.number:02x},romfile=",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=ctl,fd={self._control.guest_end.fileno()}", "-device", "virtserialport,chardev=ctl,name=rdsx.lab",
            *(["-chardev", "stdio,id=term,signal=off", "-device", "virtconsole,chardev=term"] if settings.terminal else []),
        ]  # fmt: skip


class GuestProcess:
    """A command in a guest, with the processes it started. Made by `Guest.start_process()`."""

    def __init__(self, guest: Guest, number: int, command: str) -> None:
        self.guest = guest
        self.command = command
        self._number = number
        self._control = guest._control  # a guest that was booted anew has another
        self._path = guest._folder / f"{number}.out"
        self._requests = guest._folder / f"{number}.in"

    @property
    def output(self) -> str:
        """What it wrote so far."""
        return self.output_from(0)

    def output_from(self, position: int) -> str:
        """What it wrote from this byte on."""
        try:
            with open(self._path, "rb") as output:
                output.seek(position)
                return output.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def has_ended(self) -> bool:
        """Whether it is over, or its guest is."""
        return self._control.status_of(self._number) is not None or self._control.is_dead

    def write(self, text: str) -> None:
        """Append to the file `/run/lab/$0.in`, as the command's script calls it: what the command is to read besides."""
        with open(self._requests, "a") as requests:
            requests.write(text)

    async def wait(self, timeout_s: float = 60.0) -> Result:
        """Wait for its end. After `timeout_s` it is killed, and the status is 124."""
        with trio.move_on_after(timeout_s):
            return Result(await self._wait_done(), self.output)
        self.kill()
        with trio.move_on_after(STOP_S):
            await self._control.wait_done(self._number)
        return Result(STATUS_TIMEOUT, self.output)

    async def wait_output(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until its output has `text` in it. AssertionError if it ends or the time is over before."""
        with trio.move_on_after(timeout_s):
            while text not in self.output:
                if (status := self._control.status_of(self._number)) is not None and text not in self.output:
                    raise AssertionError(f"{self.command!r} ended with status {status} and without {text!r}:\n{self.output}")
                if self._control.is_dead:
                    raise GuestDiedError(f"guest {self.guest.name} is gone\n{self.guest.console()}")
                await trio.sleep(OUTPUT_POLL_S)
            return
        raise AssertionError(f"{self.command!r}: no {text!r} within {timeout_s} s:\n{self.output}")

    def kill(self, signal: str = "KILL") -> None:
        """Send a signal to it and to what it started."""
        self._control.send(f"kill {self._number} {signal}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if not self.has_ended:
            self.kill()
            with trio.move_on_after(STOP_S) as limit, contextlib.suppress(GuestDiedError):
                limit.shield = True
                await self._control.wait_done(self._number)

    async def _wait_done(self) -> int:
        try:
            return await self._control.wait_done(self._number)
        except GuestDiedError:
            raise GuestDiedError(f"guest {self.guest.name} is gone, in {self.command!r}\n{self.guest.console()}") from None
