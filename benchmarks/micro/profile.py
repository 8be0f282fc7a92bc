"""A profile: what callgrind counted, by function. Reads callgrind's output format; knows no case."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Function", "ProfileError", "read_profile"]

NAME = re.compile(r"(c?)(ob|fn)=\((\d+)\)(?: (.+))?")
COST = re.compile(r"[-+*\d]\S* (\d+)")
OWN = re.compile(r"/rdsx/_\w+\.[^/]*so")
CYCLE = re.compile(r"'\d+$")


class ProfileError(Exception):
    """Not what callgrind writes."""


@dataclass(frozen=True)
class Function:
    name: str
    library: str
    """Path of the executable or library that it is in."""

    @property
    def is_own(self) -> bool:
        """Whether it is in an extension module of rdsx."""
        return OWN.search(self.library) is not None


def read_profile(path: Path) -> Counter[Function]:
    """Instructions in each function, without those of the functions that it called."""
    names: dict[tuple[str, str], str] = {}
    current = {"ob": "", "fn": ""}
    counts: Counter[Function] = Counter()
    total = -1
    is_call = False
    for line in path.read_text().splitlines():
        if match := NAME.fullmatch(line):
            called, kind, number, name = match.groups()
            if name:
                names[kind, number] = CYCLE.sub("", name)
            if not called:
                current[kind] = names[kind, number]
        elif line.startswith("calls="):
            is_call = True  # the next line has the cost of the called function, which is counted there
        elif match := COST.fullmatch(line):
            if not is_call:
                counts[Function(current["fn"], current["ob"])] += int(match[1])
            is_call = False
        elif line.startswith("totals:"):
            total = int(line.split()[1])
    if counts.total() != total:
        raise ProfileError(f"{path.name}: the functions have {counts.total()} instructions, the whole has {total}")
    return counts
