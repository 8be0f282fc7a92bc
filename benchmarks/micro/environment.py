"""The environment of a count: what the number of instructions depends on besides our code."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.micro.counting import valgrind_version
from rdsx import _fast

__all__ = ["Environment", "current_environment"]

COMPILER = re.compile(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+")


@dataclass(frozen=True)
class Environment:
    """`python` is the version with date and compiler of the build: two builds of one release differ. `compiler` and `cython` are those
    that built the extension modules."""

    machine: str
    compiler: str
    cython: str
    python: str
    trio: str
    libc: str
    valgrind: str

    def compiles_like(self, other: Environment) -> bool:
        """Whether both make the same machine code of our modules. The interpreter counts: its build chose the compiler's flags."""
        mine, theirs = ((it.machine, it.compiler, it.cython, it.python) for it in (self, other))
        return mine == theirs


def current_environment() -> Environment:
    return Environment(
        machine=platform.machine(),
        compiler=compiler_of(Path(_fast.__file__)),
        cython=cython_version(),
        python=" ".join(sys.version.split()),
        trio=version("trio"),
        libc=" ".join(platform.libc_ver()),
        valgrind=valgrind_version(),
    )


def compiler_of(library: Path) -> str:
    """What the compiler wrote into the comment section of its output."""
    found = COMPILER.search(library.read_bytes())
    return found[0].decode() if found else "unknown"


def cython_version() -> str:
    """That of the Cython which compiled `_fast`: its modules share their types in a module that is named after it."""
    names = [name for name in sys.modules if re.fullmatch(r"_cython_\d+_\d+_\w+", name)]
    return ", ".join(sorted(name.removeprefix("_cython_").replace("_", ".") for name in names)) or "unknown"
