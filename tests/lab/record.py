"""Records what a live kernel and rdsx say to each other, case by case: small captures that tests replay where there is no lab.

Every case begins with a kernel that knows no peer and with a capture that runs before anybody dials. What was sent is checked at the
receiver, as in any lab test, and noted in `provenance.json` beside the captures, so that a replay can check it again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from .driver import Driver, open_rdsx
from .guest import Guest
from .lab import LARGER, SMALLER, Lab
from .traffic import digests

__all__ = ["CASES", "DATA", "record"]

DATA = Path(__file__).parents[1] / "data"
ADDRESSES = {"smaller": SMALLER, "larger": LARGER}
RDSX_PORT, KERNEL_PORT, KERNEL_SENDER_PORT = 4000, 4000, 4001
CASE_S = 90.0
LINGER_S = 0.3  # time for a message that should not come
STEP_S = 0.05  # time for a congestion map to come before the next message is sent
BLOCKED_S = 1.0  # time for a sender to run into congestion
DRAINED_S = 1.5  # more than NodeConfig.supersede_drain_s


@dataclass
class Case:
    """One recording in the making: both ends, and what was sent so far."""

    lab: Lab
    guest: Guest
    address: str
    provenance: dict[str, Any] = field(default_factory=dict)
    node: Driver | None = None
    life: int = -1

    @contextlib.asynccontextmanager
    async def rdsx(self, *, receive_buffer: int = 0) -> AsyncIterator[Driver]:
        """The rdsx node, or its next life."""
        self.life += 1
        async with open_rdsx(self.lab, self.address) as self.node:
            await self.node.do("bind", port=RDSX_PORT, receive_buffer=receive_buffer)
            yield self.node

    async def to_kernel(self, seed: int, count: int, low: int, high: int, *, interval_s: float = 0.0, options: str = "") -> None:
        """Messages from rdsx to the kernel, and that all of them came, once and in order. `options`: of the receiver."""
        assert self.node is not None
        receive = f"recv {self.guest.address}:{KERNEL_PORT} --count {count} --timeout 40 --linger {LINGER_S} {options}"
        async with self.guest.start_process(self.guest.rds_command(receive)) as receiver:
            await receiver.wait_output("ready")
            traffic = {"seed": seed, "count": count, "low": low, "high": high}
            self.note("to_kernel", sport=RDSX_PORT, dport=KERNEL_PORT, **traffic)
            await self.node.do(
                "send", port=RDSX_PORT, host=self.guest.address, to=KERNEL_PORT, interval_s=interval_s, timeout_s=40.0, **traffic
            )
            status, output = await receiver.wait(60)
        assert status == 0, output
        check_same(json.loads(output.splitlines()[-1])["digests"], digests(seed, count, low, high), output, self.node)

    async def to_rdsx(self, seed: int, count: int, low: int, high: int, *, interval_s: float = 0.0, wait_s: float = 0.0) -> None:
        """The same from the kernel to rdsx, which begins to read after `wait_s`."""
        assert self.node is not None
        addresses = f"{self.guest.address}:{KERNEL_SENDER_PORT} {self.address}:{RDSX_PORT}"
        send = f"send {addresses} --seed {seed} --count {count} --sizes {low}-{high} --interval {interval_s} --timeout 40 --drain 40"
        self.note("to_rdsx", sport=KERNEL_SENDER_PORT, dport=RDSX_PORT, seed=seed, count=count, low=low, high=high)
        async with self.guest.start_process(self.guest.rds_command(send)) as sender:
            await trio.sleep(wait_s)
            got = await self.node.do("recv", port=RDSX_PORT, count=count, timeout_s=40.0, linger_s=LINGER_S)
            status, output = await sender.wait(60)
        assert status == 0, output
        check_same(got["digests"], digests(seed, count, low, high), output, self.node)

    async def both_ways(self, seed: int, count: int, low: int, high: int) -> None:
        """Messages both ways at once; `seed` to the kernel, the next one to rdsx."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.to_kernel, seed, count, low, high)
            nursery.start_soon(self.to_rdsx, seed + 1, count, low, high)

    async def kernel_sent(self) -> int:
        """How many messages the kernel has queued for rdsx so far."""
        output = await self.guest.check(self.guest.rds_command("info"))
        sent: int = json.loads(output.splitlines()[-1])["connections"][0]["next_tx_seq"]
        return sent

    def note(self, what: str, **facts: Any) -> None:
        self.provenance.setdefault(what, []).append({"life": self.life} | facts)


def check_same(found: list[str], expected: list[str], output: str, node: Driver) -> None:
    if found != expected:
        raise AssertionError(f"sent {expected}\ngot {found}\n{output}\n{node.log()}")


# -- the cases


async def single_rdsx_first(case: Case) -> None:
    """One message of 64 bytes each way, rdsx first."""
    async with case.rdsx():
        await case.to_kernel(1, 1, 64, 64)
        await case.to_rdsx(2, 1, 64, 64)


async def single_kernel_first(case: Case) -> None:
    """One message of 64 bytes each way, the kernel first."""
    async with case.rdsx():
        await case.to_rdsx(2, 1, 64, 64)
        await case.to_kernel(1, 1, 64, 64)


async def mixed(case: Case) -> None:
    """Messages of 0 to 64 KiB both ways at once."""
    async with case.rdsx():
        await case.both_ways(3, 12, 0, 65536)


async def long(case: Case) -> None:
    """One message of 1 MiB each way."""
    async with case.rdsx():
        await case.to_kernel(5, 1, 1048576, 1048576)
        await case.to_rdsx(6, 1, 1048576, 1048576)


async def congested_kernel(case: Case) -> None:
    """The kernel's receiver does not read for a second, and its queue is small."""
    async with case.rdsx():
        await case.to_kernel(7, 6, 20000, 20000, interval_s=STEP_S, options=f"--rcvbuf 16384 --pause {BLOCKED_S}")


async def congested_rdsx(case: Case) -> None:
    """The other way round."""
    async with case.rdsx(receive_buffer=16384):
        await case.to_rdsx(8, 6, 20000, 20000, interval_s=STEP_S, wait_s=BLOCKED_S)


async def pings(case: Case) -> None:
    """Three pings each way."""
    async with case.rdsx() as node:
        case.note("pings_by_rdsx", count=3)
        answer = await node.do("ping", host=case.guest.address, count=3)
        assert answer["answers"] == 3, answer
        case.note("pings_by_kernel", count=3)
        output = await case.guest.check(case.guest.rds_command(f"ping {case.guest.address} {case.address} --count 3 --timeout 10"))
        assert json.loads(output)["answers"] == 3, output


async def reset_by_rdsx(case: Case) -> None:
    """Both ends send into an unplugged cable, rdsx drops the connection, the cable is plugged in: both resend."""

    async def reset(node: Driver) -> None:
        assert await node.do("reset", host=case.guest.address)
        await trio.sleep(DRAINED_S)

    await lose_and_reconnect(case, reset)


async def reset_by_kernel(case: Case) -> None:
    """The same, and the kernel drops the connection: it does when its buffer sizes are set."""

    async def reset(node: Driver) -> None:
        await case.guest.check("sysctl -w net.rds.tcp.rds_tcp_sndbuf=1048576")

    await lose_and_reconnect(case, reset)


async def lose_and_reconnect(case: Case, reset: Callable[[Driver], Awaitable[None]]) -> None:
    async with case.rdsx() as node:
        await case.to_kernel(9, 2, 0, 1000)
        await case.to_rdsx(10, 2, 0, 1000)
        sent = await case.kernel_sent()
        case.guest.pull_cable()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.both_ways, 11, 6, 100, 5000)
            while (await node.do("statistics"))["connections"][0]["retransmit_queue_messages"] < 6 or await case.kernel_sent() < sent + 6:
                pass
            await reset(node)
            case.guest.plug_cable()


async def kernel_restarts(case: Case) -> None:
    """The kernel's module is unloaded and loaded again between two rounds of messages."""
    async with case.rdsx():
        await case.to_rdsx(13, 5, 0, 2000)
        await case.to_kernel(14, 5, 0, 2000)
        await case.guest.reload()
        await case.to_kernel(15, 5, 0, 2000)
        await case.to_rdsx(16, 5, 0, 2000)


async def rdsx_restarts(case: Case) -> None:
    """Three lives of rdsx; the first is killed, the second closes in order."""
    for life in range(3):
        async with case.rdsx() as node:
            await case.to_rdsx(17 + 2 * life, 5, 0, 2000)
            await case.to_kernel(18 + 2 * life, 5, 0, 2000)
            if life == 0:
                await node.kill()


CASES: dict[str, Callable[[Case], Awaitable[None]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        single_rdsx_first,
        single_kernel_first,
        mixed,
        long,
        congested_kernel,
        congested_rdsx,
        pings,
        reset_by_rdsx,
        reset_by_kernel,
        kernel_restarts,
        rdsx_restarts,
    )
}


# -- recording


async def record(arguments: argparse.Namespace) -> int:
    """Record the cases that were asked for, each with rdsx at either address, and note how they came about."""
    revision = arguments.revision or output_of("git", "describe", "--always", "--dirty", "--abbrev=12")
    async with Lab() as lab:
        guest = await lab.start(kernel=arguments.kernel)
        common = {"kernel": guest.settings.kernel.release, "rdsx": revision}
        for name in arguments.cases or CASES:
            for side, address in ADDRESSES.items():
                title = f"{name}-{side}"
                case = Case(lab, guest, address)
                raw = await record_case(case, CASES[name])
                command = f"python -m tests.lab record --kernel {arguments.kernel} {name}"
                keep(DATA / arguments.kernel, title, raw, {"command": command} | common | case.provenance)
    return 0


async def record_case(case: Case, play: Callable[[Case], Awaitable[None]]) -> Path:
    """Play it with a kernel that knows nobody; returns the capture. Late words of an earlier case's connections are left out."""
    raw = case.lab.folder / "case.pcap"
    await case.guest.reload()
    case.provenance |= {
        "what": (play.__doc__ or "").strip(),
        "recorded": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel_address": case.guest.address,
        "rdsx_address": case.address,
    }
    with trio.fail_after(CASE_S):
        async with case.lab.capture(raw, f"tcp port 16385 and host {case.address}"):
            await play(case)
    return raw


def keep(folder: Path, title: str, raw: Path, provenance: dict[str, Any]) -> None:
    """Add a capture to the folder, or replace it, and note where it is from."""
    folder.mkdir(parents=True, exist_ok=True)
    capture, notes = folder / f"{title}.pcap.gz", folder / "provenance.json"
    capture.write_bytes(gzip.compress(raw.read_bytes(), 9, mtime=0))
    known = json.loads(notes.read_text()) if notes.exists() else {}
    known[title] = provenance
    notes.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    print(f"{capture.name}: {capture.stat().st_size} bytes", flush=True)


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
