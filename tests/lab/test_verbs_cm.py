"""The RDMA CM: both ends in one guest with soft-RoCE, and with the kernel's rds_rdma in another guest as the other end.

The programs `verbs_cm.py` and `verbs_kernel_cm.py` have the cases. One run in a guest does all of them; each is a test here.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.guest import Guest
from lab.lab import Lab
from lab.readiness import in_full
from lab.verbs_guest import SOFT_ROCE, add_soft_roce, verbs_command

pytestmark = [pytest.mark.lab, pytest.mark.slow, in_full]

FOLDER = Path(__file__).parent.absolute()
RUN_S = 240.0


def cases_of(program: str) -> list[str]:
    """The names in the list that the program runs: it cannot be imported where there is no pyverbs."""
    for node in ast.walk(ast.parse((FOLDER / program).read_text())):
        if isinstance(node, ast.List) and node.elts and all(isinstance(one, ast.Name) for one in node.elts):
            return [one.id for one in node.elts if isinstance(one, ast.Name)]
    raise AssertionError(f"{program} has no list of cases")


Outcomes = dict[str, dict[str, Any]]


async def run_program(guest: Guest, scratch: Path, program: str, *arguments: str) -> Outcomes:
    command = verbs_command(guest, scratch, FOLDER / program, *arguments).replace(" -P ", " ")  # its folder has what it imports
    _, output = await guest.run(command, RUN_S)
    found = {"": {"failure": output}}
    for line in output.splitlines():
        if line.startswith('{"case"'):
            outcome = json.loads(line)
            found[outcome["case"]] = outcome
    return found


async def alone(series: str, scratch: Path) -> Outcomes:
    async with Lab() as lab:
        guest = await lab.start("V", modules=[*SOFT_ROCE, "veth"], kernel=series)
        await add_soft_roce(guest)
        await guest.check("ip address add 10.77.0.3/24 dev eth0 && ip -6 address add fd77::3/64 dev eth0 nodad")
        return await run_program(guest, scratch, "verbs_cm.py")


async def with_kernel(series: str, scratch: Path) -> Outcomes:
    async with Lab() as lab:
        kernel = await lab.start("K", address="10.77.0.2", modules=["rdma_rxe", "rds_rdma"], kernel=series)
        guest = await lab.start("V", address="10.77.0.3", modules=SOFT_ROCE, kernel=series)
        for one in (kernel, guest):
            await add_soft_roce(one)
        command = kernel.rds_command("send 10.77.0.2 10.77.0.3:4000 --count 1")
        async with kernel.start_process(command):
            return await run_program(guest, scratch, "verbs_kernel_cm.py", "10.77.0.3", "10.77.0.2")


def failure_of(outcomes: Outcomes, case: str) -> str | None:
    found = outcomes.get(case)
    text: str = f"it did not run:\n{outcomes['']['failure']}" if found is None else found["failure"]
    return text or None


@pytest.fixture(scope="module")
def outcomes(series: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcomes]:
    """What the guests said, by program; each is run when its first case is asked for."""
    return Programs(series, tmp_path_factory.mktemp("pyverbs"))


class Programs(dict[str, Outcomes]):
    def __init__(self, series: str, scratch: Path) -> None:
        self._series = series
        self._scratch = scratch

    def __missing__(self, program: str) -> Outcomes:
        function = {"verbs_cm.py": alone, "verbs_kernel_cm.py": with_kernel}[program]
        self[program] = trio.run(function, self._series, self._scratch)
        return self[program]


CASES = [(program, case) for program in ("verbs_cm.py", "verbs_kernel_cm.py") for case in cases_of(program)]


@pytest.mark.parametrize(("program", "case"), CASES, ids=[f"{program[:-3]}-{case}" for program, case in CASES])
def test_cm(program: str, case: str, outcomes: dict[str, Outcomes]) -> None:
    failure = failure_of(outcomes[program], case)
    if failure is not None:
        pytest.fail(failure, pytrace=False)
