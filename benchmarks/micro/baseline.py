"""The baseline: instructions per operation that were right once, and the environment they were counted in.

In that environment a case may need up to LIMIT times its baseline, as a whole and in our own modules. Anywhere else the figures of
Python, trio and the C library mean nothing, and other compilers and flags change ours too: there only our own modules are judged, by
FOREIGN_LIMIT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.micro.counting import Count
from benchmarks.micro.environment import Environment

__all__ = ["FOREIGN_LIMIT", "LIMIT", "PATH", "Baseline", "BaselineError", "Figures", "Verdict"]

PATH = Path(__file__).with_name("baseline.json")
LIMIT = 1.10
FOREIGN_LIMIT = 1.25


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

    def judge(self, environment: Environment, counts: Mapping[str, Count]) -> list[Verdict]:
        """A verdict on each case that was counted or is in the baseline."""
        is_home = environment == self.environment
        verdicts = [self.judge_case(name, count, is_home) for name, count in counts.items()]
        gone = [Verdict(name, None, None, "is in the baseline, but not a case") for name in self.cases if name not in counts]
        return verdicts + gone

    def judge_case(self, name: str, count: Count, is_home: bool) -> Verdict:
        expected = self.cases.get(name)
        if expected is None:
            return Verdict(name, None, None, "is not in the baseline")
        total, own = count.total / expected.total, count.own / expected.own
        if is_home:
            ratio, limit = max(total, own), LIMIT
        else:
            ratio, limit = own, FOREIGN_LIMIT
        complaint = f"needs {ratio - 1:.0%} more instructions, over the limit of {limit - 1:.0%}" if ratio > limit else None
        return Verdict(name, total, own, complaint)
