"""Sends the cases of a kernel, and those over RDMA, to guests of the lab, and reports here what they did there.

The first of a kind boots a guest and runs all of that kind in it, in one pytest; each then takes its own outcome. Without the lab they
are skipped, and say what is absent; with CI=true they fail.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from contractkit import IN_GUEST, LEFT, RIGHT, SERIES, eventually, is_kernel, pair
from lab.lab import Lab
from lab.readiness import require_host, require_kernel
from lab.verbs_guest import SOFT_ROCE, add_soft_roce, verbs_command
from namespaces import make_namespaces

ROOT = Path(__file__).parents[2]
RUN_S = 540.0


def guest_of(item: pytest.Item) -> tuple[str, str] | None:
    """(kind, kernel) of the guest that a test wants; None if it wants none. What goes over RDMA does not care for the kernel's version."""
    stack = getattr(item, "callspec", None) and item.callspec.params.get("stack", "")  # type: ignore[attr-defined]
    if stack == "verbs":
        return "verbs", SERIES[0]
    return ("kernel", stack.partition("-")[2]) if stack and is_kernel(stack) else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    wanted = None if IN_GUEST else guest_of(pyfuncitem)
    if wanted is None:
        return None
    kind, series = wanted
    outcomes = run_in_guest(kind, series)
    name = pyfuncitem.nodeid.partition("contract/")[2]
    found = outcomes.get(name, {"outcome": "failed", "text": f"it did not run in the guest:\n{outcomes['']['text']}"})
    if found["outcome"] == "skipped":
        pytest.skip(found["text"])
    if found["outcome"] != "passed":
        pytest.fail(f"in a {kind} guest with kernel {series}:\n{found['text']}", pytrace=False)
    return True


@functools.cache
def run_in_guest(kind: str, series: str) -> dict[str, dict[str, str]]:
    """All cases of one kind and kernel: outcome and text by the test's name; under "" what the run as a whole printed."""
    require_host()
    require_kernel(series)
    with tempfile.TemporaryDirectory() as scratch:
        return trio.run(guest_outcomes, kind, series, Path(scratch))


async def guest_outcomes(kind: str, series: str, scratch: Path) -> dict[str, dict[str, str]]:
    report = "/run/contract.jsonl"
    settings = ["env", f"RDSX_CONTRACT_REPORT={report}", f"RDSX_CONTRACT_KIND={kind}", f"RDSX_LAB_KERNELS={series}"]
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "-k", kind, "--tb=short"]
    async with Lab() as lab:
        if kind == "verbs":
            guest = await lab.start("C", modules=SOFT_ROCE, kernel=series)
            await add_soft_roce(guest)
            await guest.check("for n in 1 2 3; do ip address add 10.78.0.$n/24 dev eth0; done")
            program = verbs_command(guest, scratch, *options)
        else:
            guest = await lab.start("C", modules=["rds_tcp", "veth"], kernel=series)
            program = guest.python_command(*options)
        command = f"{shlex.join(settings)} {program}"
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
    if os.environ["RDSX_CONTRACT_KIND"] != "kernel":
        return
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
