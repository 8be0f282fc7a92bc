"""`python -m tests.lab`: the lab for a developer. Run it in the checkout's root."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from functools import partial

import trio

from . import kernel as kernels
from . import requirements
from .control import GuestDiedError
from .kernel import DEFAULT_KERNEL, KernelUnavailableError
from .lab import Lab, LabError
from .namespace import NamespaceError

FOLLOW_S = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Linux kernels with RDS, in emulated guests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--kernel", default=DEFAULT_KERNEL, metavar="SERIES", help="kernel series: 6.1 (default), 6.12, 7.2")
    booting = argparse.ArgumentParser(add_help=False, parents=[common])
    booting.add_argument("--modules", default="rds_tcp", help="modules to load, comma-separated (default: %(default)s)")
    booting.add_argument("--address", default="10.77.0.2", help="the guest's address (default: %(default)s); the host has .1 and .9")
    verbs.add_parser("prepare", parents=[common], help="download a kernel and make it bootable; does nothing if that was done")
    verbs.add_parser("check", help="say what is absent on this host")
    verbs.add_parser("shell", parents=[booting], help="a shell in a new guest; `exit` ends it")
    run = verbs.add_parser("run", parents=[booting], help="run one command in a new guest, with its output and exit status")
    run.add_argument("--timeout", type=float, default=600.0, metavar="S", help="then end it with status 124 (default: %(default)s)")
    run.add_argument("command", nargs="+", metavar="CMD", help="after --; one word is given to bash as it is")
    record = verbs.add_parser("record", parents=[common], help="record cases of rdsx against a kernel into tests/data")
    record.add_argument("--revision", help="what to call the rdsx that was recorded (default: the checkout's commit)")
    record.add_argument("cases", nargs="*", metavar="CASE", help="default: all of tests/lab/record.py")
    arguments = parser.parse_args()
    try:
        return VERBS[arguments.verb](arguments)
    except (KernelUnavailableError, LabError, NamespaceError, GuestDiedError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125


def prepare(arguments: argparse.Namespace) -> int:
    began_s = time.monotonic()
    kernel = kernels.prepare(arguments.kernel)
    print(f"kernel {kernel.release} in {kernel.folder} ({time.monotonic() - began_s:.1f} s)")
    return 0


def check(arguments: argparse.Namespace) -> int:
    missing = requirements.absent(preparing=True) + requirements.absent()
    for line in missing:
        print(line)
    print(f"network namespaces: as {requirements.mode() or 'nobody'}; kernels: {', '.join(prepared()) or 'none prepared'}")
    return 1 if missing else 0


def prepared() -> list[str]:
    found = []
    for path in sorted(kernels.lab_folder().glob("*/kernel.json")):
        with contextlib.suppress(KernelUnavailableError):
            found.append(kernels.find(path.parent.name).release)
    return found


def run(arguments: argparse.Namespace) -> int:
    command = arguments.command[0] if len(arguments.command) == 1 else shlex.join(arguments.command)
    kernels.prepare(arguments.kernel)
    return trio.run(partial(run_in_guest, arguments, command))


async def run_in_guest(arguments: argparse.Namespace, command: str) -> int:
    async with Lab() as lab:
        guest = await lab.start(kernel=arguments.kernel, modules=modules(arguments), address=arguments.address)
        shown = 0
        async with guest.start_process(command) as process, trio.open_nursery() as nursery:

            async def follow() -> None:
                nonlocal shown
                while True:
                    output = process.output
                    print(output[shown:], end="", flush=True)
                    shown = len(output)
                    await trio.sleep(FOLLOW_S)

            nursery.start_soon(follow)
            status, output = await process.wait(arguments.timeout)
            nursery.cancel_scope.cancel()
        print(output[shown:], end="", flush=True)
        return status


def record(arguments: argparse.Namespace) -> int:
    from . import record as recorder  # not above: the other verbs need no rdsx

    kernels.prepare(arguments.kernel)
    return trio.run(recorder.record, arguments)


def shell(arguments: argparse.Namespace) -> int:
    kernels.prepare(arguments.kernel)
    return trio.run(partial(shell_in_guest, arguments))


async def shell_in_guest(arguments: argparse.Namespace) -> int:
    async with Lab() as lab:
        enter = f"nsenter -t {lab.namespace.keeper_pid} {'-n' if requirements.mode() == 'root' else '-U --preserve-credentials -n'}"
        print(f"host side, in another terminal: {enter}; guest: {arguments.address}", file=sys.stderr)
        guest = await lab.start(kernel=arguments.kernel, modules=modules(arguments), address=arguments.address, terminal=True)
        await guest.wait()
    return 0


def modules(arguments: argparse.Namespace) -> list[str]:
    return [name for name in arguments.modules.split(",") if name]


VERBS = {"prepare": prepare, "check": check, "run": run, "record": record, "shell": shell}

if __name__ == "__main__":
    sys.exit(main())
