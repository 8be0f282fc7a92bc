"""Guests with soft-RoCE, and the pyverbs that programs in them use: the distribution's, where it fits this Python."""

from __future__ import annotations

import os
import shlex
import sysconfig
from pathlib import Path

from .guest import Guest

__all__ = ["SOFT_ROCE", "PyverbsAbsentError", "add_soft_roce", "verbs_command", "verbs_python_command"]

SOFT_ROCE = ("rdma_rxe", "rdma_ucm", "ib_uverbs")
DISTRIBUTION = Path("/usr/lib/python3/dist-packages/pyverbs")


async def add_soft_roce(guest: Guest) -> None:
    """A device rxe0 on the guest's network card, and two of its addresses known to it."""
    await guest.check("rdma link add rxe0 type rxe netdev eth0")


class PyverbsAbsentError(Exception):
    """No pyverbs fits this Python; the text says what there is. `is_installed`: the distribution has one, for another version of Python."""

    def __init__(self) -> None:
        built = sorted(path.name for path in DISTRIBUTION.glob("device.*"))
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        super().__init__(f"no pyverbs for this Python ({suffix}): apt-get install python3-pyverbs, which has {built or 'nothing yet'}")
        self.is_installed = bool(built)


def verbs_python_command(guest: Guest, scratch: Path, *arguments: object) -> str:
    """guest.python_command() with pyverbs in sight. `scratch`: an empty folder of the host's, for a link."""
    if not (DISTRIBUTION / f"device{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        raise PyverbsAbsentError
    link = scratch / "pyverbs"
    if not link.is_symlink():
        link.symlink_to(DISTRIBUTION)
    words = shlex.split(guest.python_command(*arguments))
    at = next(index for index, word in enumerate(words) if word.startswith("PYTHONPATH="))
    words[at] += f":{scratch}"
    return shlex.join(words)


def verbs_command(guest: Guest, scratch: Path, *arguments: object) -> str:
    """verbs_python_command() for tests: skips the test where no pyverbs fits this Python; with CI=true it fails, unless this is not the
    distribution's version of Python."""
    import pytest  # the benchmarks, which have none, need the rest of this page

    try:
        return verbs_python_command(guest, scratch, *arguments)
    except PyverbsAbsentError as error:
        if os.environ.get("CI") == "true" and not error.is_installed:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
