"""Sends the kernel's cases to a guest of the lab, and reports here what they did there.

The first of them boots the guest and runs all of them in it, in one pytest; each then takes its own outcome. Without the lab they are
skipped, and say what is absent; with CI=true they fail.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from contractkit import IN_GUEST, LEFT, RIGHT, eventually, is_kernel, pair
from lab.lab import Lab
from lab.readiness import require_host, require_kernel
from namespaces import make_namespaces

ROOT = Path(__file__).parents[2]
RUN_S = 540.0


def series_of(item: pytest.Item) -> str | None:
    """The kernel that a test wants; None if it wants none."""
    stack = getattr(item, "callspec", None) and item.callspec.params.get("stack", "")  # type: ignore[attr-defined]
    return stack.partition("-")[2] if stack and is_kernel(stack) else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    series = None if IN_GUEST else series_of(pyfuncitem)
    if series is None:
        return None
    outcomes = run_in_guest(series)
    name = pyfuncitem.nodeid.partition("contract/")[2]
    found = outcomes.get(name, {"outcome": "failed", "text": f"it did not run in the guest:\n{outcomes['']['text']}"})
    if found["outcome"] == "skipped":
        pytest.skip(found["text"])
    if found["outcome"] != "passed":
        pytest.fail(f"in a guest with kernel {series}:\n{found['text']}", pytrace=False)
    return True


@functools.cache
def run_in_guest(series: str) -> dict[str, dict[str, str]]:
    """All cases of one kernel: outcome and text by the test's name; under "" what the run as a whole printed."""
    require_host()
    require_kernel(series)
    return trio.run(guest_outcomes, series)


async def guest_outcomes(series: str) -> dict[str, dict[str, str]]:
    report = "/run/contract.jsonl"
    settings = ["env", f"RDSX_CONTRACT_REPORT={report}", f"RDSX_LAB_KERNELS={series}"]
    options = ["-q", "-p", "no:cacheprovider", "tests/contract", "-k", "kernel", "--tb=short"]
    async with Lab() as lab:
        guest = await lab.start("C", modules=["rds_tcp", "veth"], kernel=series)
        command = f"{shlex.join(settings)} {guest.python_command('-m', 'pytest', *options)}"
        _, printed = await guest.run(f"cd {shlex.quote(str(ROOT))} && {command}", RUN_S)
        _, lines = await guest.run(f"cat {report}", 30)
        outcomes = {}
        for line in lines.splitlines():
            if line.startswith("{"):
                one = json.loads(line)
                outcomes[one.pop("name")] = one
        return outcomes | {"": {"outcome": "", "text": printed[-4000:]}}


# -- in the guest


@pytest.fixture(scope="session", autouse=IN_GUEST)
def two_namespaces() -> None:
    """Both ends, and a connection between them whose number of paths is settled: before that, messages may overtake each other."""
    make_namespaces()
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    trio.run(settle)


async def settle() -> None:
    async with pair("kernel") as two:
        left, right = await two.sockets()
        for sock, host in ((left, RIGHT), (right, LEFT)):
            await sock.sendto(b"", (host, 0))
            await sock.recv()
            await sock.flush()
        await eventually(lambda: all(connection.state == "up" for connection in two.left.statistics().connections))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if IN_GUEST and (report.when == "call" or report.outcome != "passed"):
        text = str(report.longrepr[2]) if report.skipped else report.longreprtext
        line = json.dumps({"name": item.nodeid.partition("contract/")[2], "outcome": report.outcome, "text": text})
        with open(os.environ["RDSX_CONTRACT_REPORT"], "a") as file:
            file.write(line + "\n")
    return report
