"""What `rdsx demo` sends: real files, and who sends which to whom. Owns the choice of files and their deal; never opens a socket.

Invariant: with the same directory, sizes and seed, the deal is the same. A flow is one (sending socket, receiving socket) pair.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rdsx.cli.running import CliError

__all__ = ["BULK_SHARE", "Deal", "SourceFile", "deal_files", "find_files"]

# Socket i sends as much to socket i of the other node as to all others together: those flows carry the long datagrams.
BULK_SHARE = 0.5
FILE_COST_BYTES = 512  # what a file counts beyond its content, so that a directory of empty files ends too
MAX_TRANSFERS = 1_000_000  # in one direction: the plan is held in memory
NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class SourceFile:
    """One file and what must arrive."""

    path: str
    size: int
    sha256: str

    @property
    def cost(self) -> int:
        return self.size + FILE_COST_BYTES

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Deal:
    """`flows[i][j]`: indices of the files that socket i sends to the other node's socket j, in order."""

    flows: list[list[list[int]]]
    payload_bytes: int

    @property
    def transfers(self) -> int:
        return sum(len(files) for row in self.flows for files in row)


def find_files(directory: Path | None, budget_bytes: int) -> list[SourceFile]:
    """Files below `directory` (default: the standard library's sources), in order of their paths, as many as fit the budget."""
    if directory is None:
        root, names = Path(sysconfig.get_paths()["stdlib"]), _walk(sysconfig.get_paths()["stdlib"], ".py", NOT_STDLIB)
    else:
        if not directory.is_dir():
            problem = "is not a directory" if directory.exists() else "does not exist"
            raise CliError(f"{directory} {problem}; give a directory with files to send, or none for the standard library's sources")
        root, names = directory, _walk(os.fspath(directory), "", set())
    files: list[SourceFile] = []
    smallest: int | None = None
    left_bytes = budget_bytes
    for path in names:
        size = os.path.getsize(path)
        smallest = size if smallest is None else min(size, smallest)
        if size + FILE_COST_BYTES > left_bytes:
            continue
        with open(path, "rb") as file:
            files.append(SourceFile(path, size, hashlib.file_digest(file, "sha256").hexdigest()))
        left_bytes -= files[-1].cost
        if left_bytes <= FILE_COST_BYTES:
            break
    if smallest is None:
        raise CliError(f"{root} holds no files that can be read; give a directory with files to send")
    if not files:
        least = 2 * (smallest + FILE_COST_BYTES)
        raise CliError(f"no file in {root} fits: each direction gets half of --bytes; give --bytes {least} or more")
    return files


def deal_files(files: Sequence[SourceFile], sockets: int, budget_bytes: int, seed: str) -> Deal:
    """Deal the files to the sockets x sockets flows of one direction, over and over until the budget is used up."""
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    flows: list[list[list[int]]] = [[[] for _ in range(sockets)] for _ in range(sockets)]
    weights = {(i, j): BULK_SHARE if i == j else (1 - BULK_SHARE) / max(sockets - 1, 1) for i in range(sockets) for j in range(sockets)}
    loads = [(0.0, pair) for pair in weights]  # (bytes / weight, flow): a heap, the least loaded flow first
    left_bytes, payload_bytes, dealt = budget_bytes, 0, True
    transfers = 0
    while dealt:
        dealt = False
        for index in order:
            if files[index].cost > left_bytes or transfers == MAX_TRANSFERS:
                continue
            transfers += 1
            load, pair = loads[0]
            heapq.heapreplace(loads, (load + files[index].cost / weights[pair], pair))
            flows[pair[0]][pair[1]].append(index)
            left_bytes -= files[index].cost
            payload_bytes += files[index].size
            dealt = True
    return Deal(flows, payload_bytes)


def _walk(root: str, suffix: str, excluded: set[str]) -> Iterator[str]:
    """Paths of the readable regular files, sorted within each directory, the directory's own before its subdirectories'."""
    for parent, directories, names in os.walk(root):
        directories[:] = sorted(set(directories) - excluded)
        for name in sorted(names):
            path = os.path.join(parent, name)
            if name.endswith(suffix) and os.path.isfile(path) and os.access(path, os.R_OK):
                yield path
