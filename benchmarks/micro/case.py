"""A case: one operation of the hot path in a loop. Owns the list of all cases; says what is measured and never how.

A case sets its objects up and hands a loop to `measure`, which runs it as often as it likes. A round leaves everything as it found it,
so each round costs the same. Invariant: no chance and no clock decides what a round does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["CASES", "OPTIONAL_SECTIONS", "Case", "Loop", "Measure", "case", "section_of"]

Loop = Callable[[int], Awaitable[None]]
Measure = Callable[[Loop], Awaitable[None]]

COUNTED_OPERATIONS = 4096
MIN_COUNTED_ROUNDS = 16


OPTIONAL_SECTIONS = {"rings"}  # whose cases are there only if rdsx was built with the headers of rdma-core


def section_of(name: str) -> str:
    return name.partition(" ")[0]


@dataclass(frozen=True)
class Case:
    name: str
    operations: int
    """Operations in one round."""
    counted_rounds: int
    """Rounds in an instruction count."""
    run: Callable[[Measure], Awaitable[None]]

    @property
    def section(self) -> str:
        return section_of(self.name)


CASES: dict[str, Case] = {}


def case(name: str, *, operations: int = 1, counted_rounds: int | None = None) -> Callable[[Callable[[Measure], Awaitable[None]]], None]:
    """Make the decorated function a case. The first word of `name` is its section."""

    def add(run: Callable[[Measure], Awaitable[None]]) -> None:
        rounds = max(MIN_COUNTED_ROUNDS, COUNTED_OPERATIONS // operations) if counted_rounds is None else counted_rounds
        CASES[name] = Case(name, operations, rounds, run)

    return add
