"""All cases, by import. Those of verbs are there only if rdsx was built with the headers of rdma-core."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks.micro import fast, sockets, stream  # noqa: F401  each adds its cases

if find_spec("rdsx._rings"):
    from benchmarks.micro import rings  # noqa: F401
