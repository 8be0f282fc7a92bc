"""The baseline: instructions per operation that were right once, and the environment they were counted in.

There a case may need up to LIMIT times its baseline, as a whole and in our own modules. In another environment the whole is not judged:
other versions of Python, trio and the C library change it by a third. Our own modules are, by LIMIT if they are compiled alike; if not,
by FOREIGN_LIMIT, because other compilers, flags and headers change them by a quarter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path

from benchmarks.micro.case import OPTIONAL_SECTIONS, section_of
from benchmarks.micro.counting import Count
from benchmarks.micro.environment import Environment

__all__ = ["FOREIGN_LIMIT", "LIMIT", "PATH", "Baseline", "BaselineError", "Figures", "Verdict"]

PATH = Path(__file__).with_name("baseline.json")
LIMIT = 1.10
FOREIGN_LIMIT = 1.50


class BaselineError(Exception):
    """The file is no baseline."""


@dataclass(frozen=True)
class Figures:
    """Instructions per operation of one case."""

    total: float
    own: float


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one case."""

    name: str
    total: float | None
    """What was counted, as a multiple of the baseline; None where there is nothing to compare."""
    own: float | None
    complaint: str | None
    """Why the check fails; None if this case is all right."""

    @property
    def is_better(self) -> bool:
        return self.own is not None and self.own < 1 / LIMIT


@dataclass(frozen=True)
class Baseline:
    environment: Environment
    cases: dict[str, Figures]

    @classmethod
    def of(cls, environment: Environment, counts: Mapping[str, Count]) -> Baseline:
        return cls(environment, {name: Figures(count.total, count.own) for name, count in counts.items()})

    @classmethod
    def load(cls, path: Path = PATH) -> Baseline:
        try:
            found = json.loads(path.read_text())
            return cls(Environment(**found["environment"]), {name: Figures(**figures) for name, figures in found["cases"].items()})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BaselineError(f"{path} is no baseline ({type(error).__name__}: {error}); check --update writes one") from error

    def save(self, path: Path = PATH) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def judge(self, here: Environment, counts: Mapping[str, Count]) -> list[Verdict]:
        """A verdict on each case that was counted or is in the baseline."""
        total_limit, own_limit = self.limits(here)
        verdicts = [self.judge_case(name, count, total_limit, own_limit) for name, count in counts.items()]
        absent = OPTIONAL_SECTIONS - {section_of(name) for name in counts}
        gone = [name for name in self.cases if name not in counts and section_of(name) not in absent]
        verdicts += [Verdict(name, None, None, "is in the baseline, but not a case") for name in gone]
        return verdicts

    def limits(self, here: Environment) -> tuple[float, float]:
        """Multiples of the baseline that are still right, in total and in our own modules, for counts made `here`."""
        return (LIMIT if here == self.environment else inf, LIMIT if here.compiles_like(self.environment) else FOREIGN_LIMIT)

    def judge_case(self, name: str, count: Count, total_limit: float, own_limit: float) -> Verdict:
        expected = self.cases.get(name)
        if expected is None:
            return Verdict(name, None, None, "is not in the baseline")
        total, own = count.total / expected.total, count.own / expected.own
        complaints = [
            f"{ratio - 1:.0%} more instructions {where}, the limit is {limit - 1:.0%}"
            for ratio, limit, where in ((total, total_limit, "in total"), (own, own_limit, "in our own modules"))
            if ratio > limit
        ]
        return Verdict(name, total, own, "; ".join(complaints) or None)
