"""Whether the lab can run here. Tests that need it are skipped where it cannot, or fail where CI=true says that all has to be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from lab import kernel as kernels
from lab import requirements
from lab.kernel import KernelUnavailableError

__all__ = ["BRIEF", "in_full", "require_host", "require_kernel"]

# How much to run where everything takes an hour: what shows most, or all of it.
BRIEF = os.environ.get("RDSX_LAB_MATRIX", "full" if "RDSX_LAB_KERNELS" in os.environ else "brief") == "brief"
in_full = pytest.mark.skipif(BRIEF, reason="takes minutes: only with RDSX_LAB_MATRIX=full")


def give_up(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"the lab cannot run, and CI=true: {reason}", pytrace=False)
    pytest.skip(f"the lab cannot run: {reason}")


def require_host() -> None:
    """Skip or fail unless the host has what the lab needs."""
    if missing := requirements.absent():
        give_up("; ".join(missing))


def require_kernel(series: str) -> None:
    """Skip or fail unless the kernel is prepared; with CI=true it is prepared now."""
    try:
        if os.environ.get("CI") == "true":
            kernels.prepare(series)
        kernels.find(series)
    except KernelUnavailableError as error:
        give_up(str(error))
