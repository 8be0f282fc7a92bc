"""`benchmarks guest`: scenarios in a guest of the lab, where a kernel with RDS is. Owns the guest.

Both sides run in the one guest, each in a network namespace with an address of its own, with a cable between them. So the kernel's
RDS goes over its TCP, as to another host, and rdsx goes over the same TCP.
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
from benchmarks.results import Results
from benchmarks.run import LARGEST_BYTES
from benchmarks.tables import print_results

__all__ = ["command"]

ROOT = Path(__file__).parent.parent
BASELINE = "rdsx-kernel"
MEASURED = (BASELINE, "rdsx-tcp")
SCENARIO_NAMES = BACKENDS[BASELINE].scenarios
RESULTS = "/run/results.json"
# The checkout comes last on the path: rdsx is the one that this process has, built in place or installed.
MAKE_NAMESPACES = "import sys; sys.path.append(sys.argv[1]); from tests.namespaces import make_namespaces; make_namespaces()"
BENCHMARKS = "import sys; sys.path.append(sys.argv.pop(1)); from benchmarks.__main__ import main; main()"
RUN_S = 1800.0


@click.command()
@click.option("--kernel", default="6.1", show_default=True, help="Series of the guest's kernel; `python -m tests.lab prepare` fetches it.")
@click.option("--scenario", "scenarios", multiple=True, type=click.Choice(SCENARIO_NAMES), help="Run only this one; may be repeated.")
@click.option("--size", "sizes", multiple=True, type=click.IntRange(1, LARGEST_BYTES), help="Payload bytes; may be repeated.")
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1), help="Measurements of each cell, in fresh processes.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.01, 60), help="Wanted length of a measured section.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write a result file.")
def command(kernel: str, scenarios: Sequence[str], sizes: Sequence[int], rounds: int, seconds: float, path: Path | None) -> None:
    """Measure rdsx beside the kernel's own AF_RDS, in a guest of the lab.

    The guest is emulated: its figures compare with each other, and with nothing else.
    """
    from tests.lab.kernel import KernelUnavailableError, find

    try:
        find(kernel)
    except KernelUnavailableError as error:
        raise click.ClickException(str(error)) from None
    options = ["--guest", "tcp", "--baseline", BASELINE, "--rounds", str(rounds), "--seconds", str(seconds), "--json", RESULTS]
    for option, values in (("--backend", MEASURED), ("--scenario", scenarios or SCENARIO_NAMES), ("--size", sizes)):
        for value in values:
            options += [option, str(value)]
    with Console(stderr=True).status(f"in a guest with kernel {kernel}"):
        text = trio.run(run_in_guest, kernel, options)
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder, "results.json")
        path.write_text(text)
        print_results(Results.load(path), BASELINE)


async def run_in_guest(kernel: str, options: Sequence[str]) -> str:
    """The text of the result file."""
    from tests.lab.lab import Lab

    async with Lab() as lab:
        guest = await lab.start("B", modules=["rds_tcp", "veth"], kernel=kernel)
        await guest.check(guest.python_command("-c", MAKE_NAMESPACES, ROOT))
        ended, printed = await guest.run(guest.python_command("-c", BENCHMARKS, ROOT, "run", *options), RUN_S)
        if ended:
            raise click.ClickException(f"in the guest:\n{printed}")
        return await guest.check(f"cat {shlex.quote(RESULTS)}")
