"""Test your own program against a cluster that lives in one process, on virtual time, with faults from a seed.

    from rdsx.testing import VirtualNetwork, run

    async def main():
        network = VirtualNetwork(seed=1)
        async with rdsx.open_node("10.0.0.1", transport=network) as a, rdsx.open_node("10.0.0.2", transport=network) as b:
            ...
            network.cut("10.0.0.1", "10.0.0.2", after_bytes=100)

    run(main, seed=1)

Everything above the byte streams is the real library: nodes, sockets, engine, links. Only TCP and the clock are made up.
"""

from __future__ import annotations

from rdsx.testing.network import Faults, VirtualNetwork
from rdsx.testing.running import run

__all__ = ["Faults", "VirtualNetwork", "run"]
