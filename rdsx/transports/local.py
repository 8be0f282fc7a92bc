"""Where the addresses of this machine are, for the networks that use them."""

from __future__ import annotations

from collections.abc import Iterable

from rdsx.addresses import Host
from rdsx.moves import Changes

__all__ = ["watch_addresses"]


def watch_addresses(hosts: Iterable[Host]) -> Changes | None:
    """Changes of this machine's addresses and neighbours; None if all these addresses are loopback ones, which move nowhere.

    OSError where the system has no netlink.
    """
    if all(host.ip.is_loopback for host in hosts):
        return None
    from rdsx.netlink.watcher import watch  # here: it takes 90 ms to import, which a node on loopback need not pay

    return watch()
