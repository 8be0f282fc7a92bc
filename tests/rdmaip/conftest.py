"""What the namespace tests need: skipped, saying why, where it is absent; with CI=true they fail instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from rdmaip.cluster import Cluster, open_cluster
from rdmaip.topology import Topology, obstacle, open_topology
from rdmaip.zygote import Zygote


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where network namespaces cannot be made."""
    why = obstacle()
    if why is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"network namespaces cannot be had here: {why}")
        pytest.skip(f"network namespaces: {why}")


@pytest.fixture
def make_topology(namespaces: None) -> Iterator[Callable[..., Topology]]:
    """`open_topology` until the end of the test."""
    with ExitStack() as stack:
        yield lambda *names, **options: stack.enter_context(open_topology(names, **options))


@pytest.fixture(scope="session")
def zygote(namespaces: None) -> Iterator[Zygote]:
    """One for all tests: it takes longer to start than most scenarios."""
    with Zygote() as found:
        yield found


@pytest.fixture
def make_cluster(zygote: Zygote) -> Iterator[Callable[..., Cluster]]:
    """`open_cluster` until the end of the test."""
    with ExitStack() as stack:
        yield lambda *names, **options: stack.enter_context(open_cluster(zygote, names, **options))
