"""Fixtures of the lab: one for the whole session, because a boot takes 3 to 4 s.

Without qemu, without a prepared kernel or without the right to make network namespaces the tests are skipped, and say what is absent;
with CI=true in the environment they fail instead. RDSX_LAB_KERNELS=6.1,6.12,7.2 runs them against those kernels, one after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
import trio

from lab import requirements
from lab.control import Result
from lab.guest import Guest
from lab.kernel import DEFAULT_KERNEL
from lab.lab import Lab
from lab.readiness import require_host, require_kernel

BOOT_S = 240.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab: boots a Linux kernel in an emulated guest; python -m tests.lab check says what that needs")


def pytest_report_header() -> str:
    missing = requirements.absent()
    return f"rdsx lab: {'; '.join(missing) if missing else f'namespaces as {requirements.mode()}, kernels {SERIES}'}"


SERIES = os.environ.get("RDSX_LAB_KERNELS", DEFAULT_KERNEL).split(",")


@pytest.fixture(scope="session")
def lab_is_possible() -> None:
    """Skips or fails what needs the lab where it cannot be."""
    require_host()


@pytest.fixture(scope="session", params=SERIES)
def series(request: pytest.FixtureRequest, lab_is_possible: None) -> str:
    """The series of the kernel to test against, prepared."""
    name: str = request.param
    require_kernel(name)
    return name


@pytest.fixture(scope="session")
def lab(lab_is_possible: None) -> Iterator[Lab]:
    """The session's lab."""
    lab = Lab()
    trio.run(lab.open)
    try:
        yield lab
    finally:
        trio.run(lab.aclose)


@pytest.fixture
def guest(lab: Lab, series: str) -> Guest:
    """The session's guest, 10.77.0.2 with rds_tcp. Booted anew if an earlier test has ended it."""
    found = lab.guests.get("K")
    if found is not None and (not found.is_up or found.settings.kernel.series != series):
        trio.run(found.kill)
        found = None
    return found or run(partial(lab.start, "K", kernel=series), BOOT_S)


@pytest.fixture
def fresh_guest(guest: Guest) -> Guest:
    """The session's guest, with a kernel that has never heard of any peer."""
    run(guest.reload, 60)
    return guest


def run(function: Callable[[], Coroutine[Any, Any, Any]], limit_s: float) -> Any:
    async def limited() -> Any:
        with trio.fail_after(limit_s):
            return await function()

    return trio.run(limited)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test that failed shows what the kernels said."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if lab is not None and report.when == "call" and report.failed:  # type: ignore[attr-defined]
        for guest in lab.guests.values():
            said = guest.console()
            if guest.is_up:
                try:
                    said += "\n" + result_text(run(partial(guest.run, "dmesg | tail -n 30", 5), 10))
                except Exception as error:  # the report of the failure itself matters more
                    said += f"\n(dmesg: {error})"
            report.sections.append((f"kernel of guest {guest.name}", said))  # type: ignore[attr-defined]
    return report


def result_text(result: Result) -> str:
    return result.output
