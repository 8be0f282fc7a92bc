"""What was measured, and the file it is kept in. Owns the format of result files, medians and ratios; measures nothing.

A ratio of two backends is taken within each round, where both saw the same machine at nearly the same time; then comes the median.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

__all__ = ["Measurement", "Results", "Spread", "machine_facts", "ratio"]

FORMAT = 1
PACKAGES = ("rdsx", "trio", "Cython", "pyzmq", "pynng", "uvloop", "grpcio")

Figure = Callable[["Measurement"], float | None]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One round of one cell. Times are of the measured section only; `cpu_s` is user and system time of both sides together."""

    scenario: str
    backend: str
    size: int
    population: int
    round: int = 0
    messages: int
    seconds: float
    cpu_s: float
    left_resident_bytes: int
    right_resident_bytes: int
    idle_resident_bytes: int
    """Of the right side, when all is open and nothing has been sent."""
    p50_us: float | None = None
    p99_us: float | None = None
    stream_reads: int | None = None
    """System calls that read the stream, on both sides, where the backend counts them."""
    stream_writes: int | None = None

    @property
    def messages_per_s(self) -> float:
        return self.messages / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.messages * self.size / self.seconds

    @property
    def cpu_s_per_million(self) -> float:
        return self.cpu_s / self.messages * 1e6

    @property
    def calls_per_message(self) -> float | None:
        if self.stream_reads is None or self.stream_writes is None:
            return None
        return (self.stream_reads + self.stream_writes) / self.messages


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the smallest and largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None if there are no values."""
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None


@dataclass
class Results:
    """The content of one result file."""

    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Backend -> why it was left out."""
    failures: list[str] = field(default_factory=list)

    def rounds(self, scenario: str, backend: str, size: int, population: int = 0) -> list[Measurement]:
        wanted = (scenario, backend, size, population)
        return [each for each in self.measurements if (each.scenario, each.backend, each.size, each.population) == wanted]

    def cells(self, scenario: str) -> list[tuple[int, int, str]]:
        """Every (size, population, backend) of a scenario, in the order of the run."""
        return list(dict.fromkeys((each.size, each.population, each.backend) for each in self.measurements if each.scenario == scenario))

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(each.scenario for each in self.measurements))

    def save(self, path: Path) -> None:
        fields = {"format": FORMAT, **asdict(self)}
        path.write_text(json.dumps(fields, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises click.ClickException for what is not a result file."""
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != FORMAT:
                raise ValueError(f"another format than {FORMAT}")
            fields["measurements"] = [Measurement(**each) for each in fields["measurements"]]
            return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise click.ClickException(f"{path} is not a result file of `benchmarks run --json`: {error}") from error


def ratio(left: list[Measurement], right: list[Measurement], figure: Figure) -> Spread | None:
    """left / right, round by round."""
    others = {each.round: figure(each) for each in right}
    pairs = ((figure(each), others.get(each.round)) for each in left)
    return Spread.of(mine / other for mine, other in pairs if mine is not None and other)


def machine_facts() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "load_average": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
