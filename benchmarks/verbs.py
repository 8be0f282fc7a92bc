"""`benchmarks verbs`: rdsx over RDMA beside what else there is on the same device, in a guest of the lab with soft-RoCE. Owns the guest.

Both sides run in the one guest, on one device, each with an address of its own. The kernel's `rds_rdma` takes the ports of RDS on every
device, so it is loaded only while it is measured itself.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import trio
from rich.console import Console

from benchmarks.backends import BACKENDS
from benchmarks.guest import BENCHMARKS, RESULTS, ROOT, RUN_S
from benchmarks.results import Results
from benchmarks.run import LARGEST_BYTES
from benchmarks.tables import print_results

__all__ = ["command", "run_over_rdma"]

BASELINE = "perftest"
MEASURED = [name for name, backend in BACKENDS.items() if backend.guest == "rdma"]
SCENARIO_NAMES = ("stream", "ping-pong", "rdma-write")
CPUS = 2


@click.command()
@click.option("--kernel", default="6.1", show_default=True, help="Series of the guest's kernel; `python -m tests.lab prepare` fetches it.")
@click.option("--scenario", "scenarios", multiple=True, type=click.Choice([*SCENARIO_NAMES, "stream-single"]), help="May be repeated.")
@click.option("--backend", "backends", multiple=True, type=click.Choice(MEASURED), help="Run only this one; may be repeated.")
@click.option("--size", "sizes", multiple=True, type=click.IntRange(1, LARGEST_BYTES), help="Payload bytes; may be repeated.")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1), help="Measurements of each cell, in fresh processes.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.01, 60), help="Wanted length of a measured section.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write a result file.")
def command(
    kernel: str, scenarios: Sequence[str], backends: Sequence[str], sizes: Sequence[int], rounds: int, seconds: float, path: Path | None
) -> None:
    """Measure rdsx over RDMA beside the kernel's RDS, pyverbs and perftest, on soft-RoCE in a guest of the lab.

    The guest is emulated: its figures compare with each other, and with nothing else.
    """
    from tests.lab.kernel import KernelUnavailableError, find
    from tests.lab.verbs_guest import PyverbsAbsentError

    try:
        find(kernel)
    except KernelUnavailableError as error:
        raise click.ClickException(str(error)) from None
    options = ["--baseline", BASELINE, "--rounds", str(rounds), "--seconds", str(seconds)]
    given = (("--backend", backends or MEASURED), ("--scenario", scenarios or SCENARIO_NAMES), ("--size", sizes))
    for option, values in given:
        for value in values:
            options += [option, str(value)]
    with Console(stderr=True).status(f"in a guest with kernel {kernel}"):
        try:
            text = trio.run(run_over_rdma, kernel, options)
        except PyverbsAbsentError as error:
            raise click.ClickException(str(error)) from None
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder, "results.json")
        path.write_text(text)
        print_results(Results.load(path), BASELINE)


async def run_over_rdma(kernel: str, options: Sequence[str]) -> str:
    """The text of the result file."""
    from tests.lab.lab import Lab
    from tests.lab.verbs_guest import SOFT_ROCE, add_soft_roce, verbs_python_command

    with tempfile.TemporaryDirectory() as scratch:
        async with Lab() as lab:
            guest = await lab.start("B", modules=SOFT_ROCE, kernel=kernel, cpus=CPUS)
            await add_soft_roce(guest)
            await guest.check("for n in 1 2; do ip address add 10.78.0.$n/24 dev eth0; done")
            arguments = ["-c", BENCHMARKS, ROOT, "run", "--guest", "rdma", *options, "--json", RESULTS]
            ended, printed = await guest.run(verbs_python_command(guest, Path(scratch), *arguments), RUN_S)
            if ended:
                raise click.ClickException(f"in the guest:\n{printed}")
            return await guest.check(f"cat {shlex.quote(RESULTS)}")
