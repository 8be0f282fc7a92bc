"""The micro benchmarks: every case runs, and the check of instruction counts sees what it must see."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import click.testing
import pytest
import trio

from benchmarks.micro import baseline, command, counting, profile
from benchmarks.micro.baseline import Baseline
from benchmarks.micro.case import CASES, OPTIONAL_SECTIONS, Case, Loop, section_of
from benchmarks.micro.counting import Count, CountingError
from benchmarks.micro.environment import Environment, current_environment
from benchmarks.micro.timing import time_case

HERE = Environment("x86_64", "GCC: (Debian 12.2.0-14) 12.2.0", "3.1.0", "3.11.7 (main)", "0.30.0", "glibc 2.36", "3.19.0")
COUNTS = {name: Count(1000.0 + number, 400.0, {}) for number, name in enumerate(CASES)}
VICTIM = "writer 64 B"

every_case = pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)


@every_case
def test_a_case_runs(case: Case) -> None:
    async def measure(loop: Loop) -> None:
        await loop(1)
        await loop(3)

    trio.run(case.run, measure)
    assert case.counted_rounds >= 8  # the short run is an eighth


@pytest.mark.parametrize("name", ["ports find", "sockets sendmmsg and recvmmsg"])
def test_times(name: str) -> None:
    timing = time_case(CASES[name], samples=3, sample_s=0.0001)
    assert 0 < timing.best_ns <= timing.median_ns


def test_run_prints_json() -> None:
    result = click.testing.CliRunner().invoke(command.main, ["run", "--json", "--only", "ring"])
    assert list(json.loads(result.stdout)) == ["ring allocate and release"]


def test_an_unknown_case_is_refused() -> None:
    result = click.testing.CliRunner().invoke(command.main, ["run", "--only", "wring"])
    assert result.exit_code == 2
    assert "'wring' is no case and no section" in result.output


# -- the check


def check(monkeypatch: pytest.MonkeyPatch, path: Path, *options: str, here: Environment = HERE) -> click.testing.Result:
    """`check` on COUNTS, as if they had been counted `here`."""
    monkeypatch.setattr(command, "count_cases", lambda names: {name: COUNTS[name] for name in names})
    monkeypatch.setattr(command, "current_environment", lambda: here)
    return click.testing.CliRunner().invoke(command.main, ["check", "--baseline", str(path), *options])


def lowered(path: Path, *, total: float = 1.0, own: float = 1.0) -> Path:
    """A baseline from which VICTIM is above by these factors, and nothing else is."""
    known = Baseline.of(HERE, COUNTS)
    figures = known.cases[VICTIM]
    known.cases[VICTIM] = replace(figures, total=figures.total / total, own=figures.own / own)
    known.save(path)
    return path


def test_update_writes_what_check_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert check(monkeypatch, path, "--update").exit_code == 0
    result = check(monkeypatch, path)
    assert result.exit_code == 0
    assert f"{len(CASES)} cases are within their limits" in result.output
    assert "WARNING" not in result.output


@pytest.mark.parametrize(("total", "own", "where"), [(1.2, 1.0, "in total"), (1.0, 1.2, "in our own modules")])
def test_a_regression_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: float, own: float, where: str) -> None:
    result = check(monkeypatch, lowered(tmp_path / "baseline.json", total=total, own=own))
    assert result.exit_code == 1
    complaints = result.stderr.splitlines()
    assert complaints[0].startswith(f"{VICTIM}: 20% more instructions {where}, the limit is 10%")
    assert len(complaints) == 2  # and the advice


def test_less_than_the_limit_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check(monkeypatch, lowered(tmp_path / "baseline.json", total=1.09, own=1.09)).exit_code == 0


def test_a_gain_is_to_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = check(monkeypatch, lowered(tmp_path / "baseline.json", total=0.8, own=0.8))
    assert result.exit_code == 0
    assert re.search(rf"check --update.*{VICTIM}$", result.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("here", "total", "own", "status"),
    [
        (replace(HERE, trio="0.31.0"), 2.0, 1.05, 0),
        (replace(HERE, trio="0.31.0"), 1.0, 1.2, 1),
        (replace(HERE, python="3.13.0 (main)"), 2.0, 1.2, 0),
        (replace(HERE, python="3.13.0 (main)"), 1.0, 1.6, 1),
    ],
)
def test_another_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Environment, total: float, own: float, status: int
) -> None:
    """Totals are not judged there; our own instructions are, less sharply if they were compiled otherwise."""
    result = check(monkeypatch, lowered(tmp_path / "baseline.json", total=total, own=own), here=here)
    assert result.exit_code == status
    assert "WARNING: the baseline was made in another environment" in result.stderr
    assert (f"{VICTIM}: " in result.stderr) == bool(status)


def test_cases_come_and_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = Baseline.of(HERE, COUNTS)
    known.cases["writer 65 B"] = known.cases.pop(VICTIM)
    known.save(tmp_path / "baseline.json")
    result = check(monkeypatch, tmp_path / "baseline.json")
    assert result.exit_code == 1
    assert f"{VICTIM}: is not in the baseline" in result.stderr
    assert "writer 65 B: is in the baseline, but not a case" in result.stderr


def test_not_a_baseline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "baseline.json").write_text('{"cases": {}}')
    result = check(monkeypatch, tmp_path / "baseline.json")
    assert result.exit_code == 2
    assert "check --update writes one" in result.stderr


def test_the_committed_baseline_has_every_case() -> None:
    absent = OPTIONAL_SECTIONS - {case.section for case in CASES.values()}
    assert [name for name in Baseline.load(baseline.PATH).cases if section_of(name) not in absent] == list(CASES)


def test_what_was_not_built_is_not_missed() -> None:
    counts = {name: count for name, count in COUNTS.items() if section_of(name) not in OPTIONAL_SECTIONS}
    known = Baseline.of(HERE, counts | dict.fromkeys(["rings of yore"], Count(1.0, 1.0, {})))
    assert not [verdict for verdict in known.judge(HERE, counts) if verdict.complaint]
    (complaint,) = [verdict for verdict in known.judge(HERE, counts | {"rings": Count(1.0, 1.0, {})}) if verdict.name == "rings of yore"]
    assert complaint.complaint == "is in the baseline, but not a case"


# -- callgrind

PROFILE = """\
ob=(1) /venv/rdsx/_fast.cpython-311-x86_64-linux-gnu.so
fl=(1) _fast.c
fn=(1) pack
10 7
+2 3
cob=(2) /usr/lib/libc.so.6
cfn=(2) memcpy
calls=4 0
* 40
fn=(3) pack'2
* 5

ob=(2)
fn=(2)
0 40
totals: 55
"""


def test_a_profile(tmp_path: Path) -> None:
    """A function has its own lines, recursive ones included, and not the cost of its calls."""
    (tmp_path / "out").write_text(PROFILE)
    counts = profile.read_profile(tmp_path / "out")
    assert {(function.name, function.is_own): instructions for function, instructions in counts.items()} == {
        ("pack", True): 15,
        ("memcpy", False): 40,
    }


def test_a_profile_that_does_not_add_up(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(PROFILE.replace("55", "56"))
    with pytest.raises(profile.ProfileError, match="the functions have 55 instructions, the whole has 56"):
        profile.read_profile(tmp_path / "out")


def test_valgrind_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = click.testing.CliRunner().invoke(command.main, ["count"])
    assert result.exit_code == 2
    assert "apt-get install valgrind" in result.stderr


SLOWED_WORKER = """\
from itertools import repeat

from benchmarks.micro import worker
from benchmarks.micro.case import case
from rdsx._fast import pack_header


@case("header pack slowed")
async def slowed(measure):
    async def loop(rounds):
        for _ in repeat(None, rounds):
            pack_header(7, 3, 64, 4000, 4001)
            for _ in repeat(None, 30):
                pass

    await measure(loop)


worker.main()
"""


@pytest.mark.slow
def test_counts_repeat_and_show_a_slowed_case(tmp_path: Path) -> None:
    try:
        here = current_environment()
    except CountingError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
    script = tmp_path / "worker.py"
    script.write_text(SLOWED_WORKER)
    first = counting.count(["header pack"])
    second = counting.count(["header pack", "header pack slowed"], worker=[str(script)])
    known = Baseline.of(here, first)

    assert second["header pack"].total == pytest.approx(first["header pack"].total, rel=0.01)
    assert second["header pack"].own == pytest.approx(first["header pack"].own, rel=0.01)
    (verdict,) = known.judge(here, {"header pack": second["header pack slowed"]})
    assert verdict.complaint is not None
