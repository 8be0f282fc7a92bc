"""The benchmark of calls runs, and counts what it says; no test here looks at a time."""

from __future__ import annotations

import importlib.util
import json

import pytest
from click.testing import CliRunner

from apikit import free_tcp_port
from benchmarks.__main__ import main
from benchmarks.calls import AT_ONCE, BACKENDS, NEEDS, measure, measure_memory


def check(backend: str, at_once: int) -> None:
    found = measure(backend, at_once, 0.1, free_tcp_port())
    assert found["calls_per_s"] > 0
    assert 0 < found["p50_us"] <= found["p99_us"]


@pytest.mark.parametrize("at_once", AT_ONCE)
def test_rdsx(at_once: int) -> None:
    check("rdsx", at_once)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend(backend: str) -> None:
    if backend in NEEDS and importlib.util.find_spec(NEEDS[backend][0]) is None:
        pytest.skip(f"pip install {NEEDS[backend][1]}")
    check(backend, 1)


def test_memory() -> None:
    memory = measure_memory(free_tcp_port())
    assert 0 <= memory["caller"] < 5_000
    assert 0 <= memory["callee"] < 20_000


@pytest.mark.slow
def test_the_command() -> None:
    result = CliRunner().invoke(
        main, ["calls", "--rounds", "1", "--seconds", "0.05", "--backend", "rdsx-plain", "--json", "--port", str(free_tcp_port())]
    )
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found["calls"]) == {f"rdsx-plain/{at_once}" for at_once in AT_ONCE}
