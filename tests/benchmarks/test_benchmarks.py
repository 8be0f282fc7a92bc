"""The benchmarks run and tell the truth about counts; no test here looks at a time."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from benchmarks import backends, pair
from benchmarks.__main__ import COMMANDS, main
from benchmarks.backends import BACKENDS, Backend
from benchmarks.pair import Plan, measure
from benchmarks.results import Measurement, Results, Spread, ratio
from benchmarks.run import run_all
from benchmarks.scenarios import SCENARIOS, Case, Job, Scenario
from benchmarks.targets import TARGETS

MESSAGES = 300
FEW = {"sockets": (1, 20), "idle_sockets": (0, 20), "idle_peers": (0, 5)}  # instead of thousands


def small(scenario: Scenario) -> Scenario:
    return dataclasses.replace(scenario, sizes=(64,), populations=FEW.get(scenario.population_of, (0,)))


def combinations(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, scenario, id=f"{name}-{scenario}") for name in names for scenario in BACKENDS[name].scenarios]


def check(measurement: Measurement, case: Case) -> None:
    assert measurement.messages == MESSAGES
    assert (measurement.size, measurement.population) == (case.size, case.population)
    assert measurement.seconds > 0
    assert measurement.cpu_s >= 0
    assert measurement.idle_resident_bytes > 0
    assert (measurement.p50_us is not None) == (case.scenario.pattern == "ping-pong")
    if measurement.p50_us is not None:
        assert measurement.p99_us is not None
        assert measurement.p99_us >= measurement.p50_us


HERE = tuple(name for name, backend in BACKENDS.items() if not backend.guest)
OURS_HERE = tuple(name for name in HERE if name.startswith("rdsx"))


@pytest.mark.parametrize(("name", "scenario"), combinations(OURS_HERE))
async def test_rdsx_plays_every_scenario(name: str, scenario: str) -> None:
    for case in small(SCENARIOS[scenario]).cases():
        measurement = await measure(BACKENDS[name], case, Plan(1.0, MESSAGES))
        check(measurement, case)
        assert measurement.stream_writes is not None
        assert (measurement.stream_writes > 0) == (name != "rdsx-loop")


@pytest.mark.parametrize(("name", "scenario"), combinations(tuple(name for name in HERE if not name.startswith("rdsx"))))
async def test_others_play_what_they_list(name: str, scenario: str) -> None:
    if missing := BACKENDS[name].missing():
        pytest.skip(f"{name}: {missing}")
    for case in small(SCENARIOS[scenario]).cases():
        check(await measure(BACKENDS[name], case, Plan(1.0, MESSAGES)), case)


@pytest.mark.parametrize("size", [1, 100_000, 1 << 20])
async def test_sizes(size: int) -> None:
    for scenario in ("stream", "fan-out", "ping-pong"):
        measurement = await measure(BACKENDS["rdsx-tcp"], Case(SCENARIOS[scenario], size), Plan(1.0, 20))
        assert measurement.messages == 20


async def test_a_wanted_time_decides_the_number_of_messages() -> None:
    measurement = await measure(BACKENDS["rdsx-tcp"], Case(SCENARIOS["stream"], 64), Plan(0.05))
    assert measurement.messages > MESSAGES


def test_jobs_survive_the_command_line() -> None:
    for name, scenario in SCENARIOS.items():
        job = Job(backend="rdsx-tcp", role="left", port=1, case=next(scenario.cases()))
        again = Job.from_json(json.loads(json.dumps(job.as_json())))
        assert again.case.scenario.name == name
        assert (again.case.sockets, again.case.batch_messages, again.hosts) == (job.case.sockets, job.case.batch_messages, job.hosts)


# -- what is absent or fails


async def run_small(chosen: list[Backend]) -> Results:
    return await run_all([small(SCENARIOS["stream"])], chosen, (), 2, Plan(1.0, MESSAGES), lambda _: None)


async def test_an_absent_backend_is_skipped_with_its_package() -> None:
    absent = Backend(name="absent", summary="", module="absent", requires="no_such_module", package="no-such-package")
    results = await run_small([absent, BACKENDS["rdsx-loop"]])
    assert results.skipped == {"absent": "pip install no-such-package"}
    assert [(each.backend, each.round) for each in results.measurements] == [("rdsx-loop", 0), ("rdsx-loop", 1)]


async def test_the_kernel_is_measured_in_a_guest_only() -> None:
    results = await run_small([BACKENDS["rdsx-kernel"]])
    assert results.skipped == {"rdsx-kernel": "runs in a guest: python -m benchmarks guest"}
    assert not results.measurements


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda _: None)
    assert "gcc" in BACKENDS["yardstick"].missing()


async def test_a_failing_backend_is_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Backend(name="wrong", summary="", module="no_such_module")
    monkeypatch.setitem(pair.BACKENDS, "wrong", wrong)
    results = await run_small([wrong])
    assert not results.measurements
    (failure,) = results.failures
    assert "stream 64 B, wrong: the right process ended: " in failure


async def test_missing_messages_are_an_error() -> None:
    class Liar(pair.Worker):
        def __init__(self) -> None:
            self.role = "right"

        async def tell(self, command: str) -> None:
            pass

        async def hear(self, event: str, patience_s: float) -> dict[str, Any]:
            return {"messages": 9, "bytes": 9 * 64}

    with pytest.raises(pair.BenchmarkError, match="9 messages with 576 bytes arrived, not 10 with 640"):
        await pair.run_phase([Liar()], Case(SCENARIOS["stream"], 64), 10)


# -- result files


def measured(**fields: Any) -> Measurement:
    common = {"scenario": "stream", "backend": "rdsx-tcp", "size": 64, "population": 0, "messages": 1_000_000, "seconds": 1.0, "cpu_s": 0.4}
    memory = dict.fromkeys(("left_resident_bytes", "right_resident_bytes", "idle_resident_bytes"), 1 << 20)
    return Measurement(**{**common, **memory, **fields})


def everything(rate: float = 1.0) -> list[Measurement]:
    """A made-up run over all backends and scenarios; rdsx is twice as fast as the others, times `rate`."""
    made = []
    for scenario in SCENARIOS.values():
        for case in scenario.cases():
            for backend in BACKENDS.values():
                for number in range(3):
                    seconds = (0.5 / rate if backend.name == "rdsx-tcp" else 1.0) + number / 100
                    cell = {"scenario": scenario.name, "backend": backend.name, "size": case.size, "population": case.population}
                    times = {"p50_us": 50 * seconds, "p99_us": 90 * seconds} if scenario.pattern == "ping-pong" else {}
                    idle = (10 << 20) + case.population * 800
                    made.append(
                        measured(**cell, **times, seconds=seconds, round=number, idle_resident_bytes=idle, stream_reads=5, stream_writes=5)
                    )
    return made


def save(path: Path, measurements: list[Measurement], **machine: Any) -> str:
    Results(machine=machine, measurements=measurements, skipped={"pynng": "pip install pynng"}).save(path)
    return str(path)


@pytest.fixture
def call() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, list(arguments), env={"COLUMNS": "170"})


def test_files_keep_everything(tmp_path: Path) -> None:
    save(tmp_path / "a.json", everything(), cpu="x")
    again = Results.load(tmp_path / "a.json")
    assert again.measurements == everything()
    assert again.machine == {"cpu": "x"}
    assert again.skipped == {"pynng": "pip install pynng"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "measurements": [{"size": 1}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(click.ClickException, match=r"a\.json is not a result file"):
        Results.load(path)


def test_ratios_are_made_within_rounds() -> None:
    mine = [measured(round=number, seconds=seconds) for number, seconds in enumerate((1.0, 2.0, 4.0))]
    others = [measured(round=number, seconds=2 * seconds) for number, seconds in enumerate((1.0, 2.0, 4.0))]
    assert ratio(mine, others, lambda each: each.messages_per_s) == Spread(2.0, 2.0, 2.0)
    assert ratio(mine, [], lambda each: each.messages_per_s) is None


# -- commands


def test_every_command_has_help(call: Callable[..., Result]) -> None:
    for name in COMMANDS:
        assert call(name, "--help").exit_code == 0


def test_run_writes_tables_and_a_file(call: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    arguments = ("--scenario", "ping-pong", "--backend", "rdsx-loop", "--rounds", "2", "--messages", "50", "--baseline", "rdsx-loop")
    result = call("run", *arguments, "--json", str(path))
    assert result.exit_code == 0, result.output
    assert re.search(r"64 B.*rdsx-loop", result.stdout)
    results = Results.load(path)
    assert [(each.messages, each.round) for each in results.measurements] == [(50, 0), (50, 1)]
    assert {"cpu", "kernel", "python", "packages", "date"} <= results.machine.keys()


def test_run_refuses_a_folder_that_is_not_there_before_it_measures(call: Callable[..., Result], tmp_path: Path) -> None:
    result = call("run", "--json", str(tmp_path / "no" / "a.json"))
    assert result.exit_code == 2
    assert "is not a directory" in result.output


def test_compare_tells_better_from_worse(call: Callable[..., Result], tmp_path: Path) -> None:
    old = save(tmp_path / "old.json", everything(), kernel="6.1")
    new = save(tmp_path / "new.json", everything(rate=2.0), kernel="6.2")
    forth, back = call("compare", old, new), call("compare", new, old)
    assert forth.exit_code == 0
    assert "not the same kernel: 6.1; 6.2" in forth.stdout
    assert forth.stdout.count("better") == back.stdout.count("worse") == sum(len(list(each.cases())) for each in SCENARIOS.values())
    assert "worse" not in forth.stdout


def test_targets(call: Callable[..., Result], tmp_path: Path) -> None:
    result = call("targets", save(tmp_path / "a.json", everything()))
    assert result.exit_code == 1
    assert result.stdout.count("met") == len(TARGETS)
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.count("│") > 4}
    assert " 2 " in rows["stream 64 B, batched / pyzmq"]
    assert "not met" in rows["stream 64 B, batched / pyzmq"]
    assert "not met" not in rows["stream 64 B, batched / C yardstick"]
    assert "0.5 " in rows["ping-pong 64 B p50 / uvloop"]
    assert "0.781 KiB" in rows["memory of an idle socket"]
    assert "0.4 s" in rows["CPU for a million 64 B messages, batched"]


def test_targets_without_figures(call: Callable[..., Result], tmp_path: Path) -> None:
    result = call("targets", save(tmp_path / "a.json", [measured()]))
    assert result.exit_code == 0
    assert result.stdout.count("not measured") == len(TARGETS) - 1


def test_plot(call: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = call("plot", save(tmp_path / "a.json", everything()), str(tmp_path / "plots"))
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {f"{name}.svg" for name in SCENARIOS}


def test_the_yardstick_compiles_without_warnings(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O2", "-std=gnu11", "-o", str(tmp_path / "yardstick"), str(pair.YARDSTICK)]
    subprocess.run(command, check=True)
