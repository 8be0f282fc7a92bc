"""Addresses that are moved as by hand: `ip address`, and an announcement, as arping sends it. No agent, and no care either."""

from __future__ import annotations

import contextlib
import ipaddress

from rdmaip.cluster import Cluster
from rdmaip.topology import Host
from rdsx.netlink.rtnetlink import Dump, Link
from rdsx.netlink.sockets import Commands
from rdsx.rdmaip.announcer import Announcer

__all__ = ["Hand", "settle"]


class Hand:
    """Somebody at the console of one host. Close it when done."""

    def __init__(self, host: Host, addresses: dict[str, str]) -> None:
        self.host = host
        self._places = dict(addresses)  # ports by address with prefix
        self._closing = contextlib.ExitStack()
        with host.inside():
            self._commands = self._closing.enter_context(Commands())
            self._announcer = self._closing.enter_context(contextlib.closing(Announcer()))
        host.sysctl(
            ipv4__conf__all__arp_ignore=1,
            ipv4__conf__all__arp_announce=2,
            **{f"{family}__conf__{port}__ignore_routes_with_linkdown": 1 for family in ("ipv4", "ipv6") for port in host.ports},
        )
        host.ip(*(f"addr add {address} dev {port}{nodad(address)}" for address, port in addresses.items()))

    def close(self) -> None:
        self._closing.close()

    def move(self, to: str, *, remove_first: bool = False) -> None:
        """Every address to that port, and announce it."""
        for address, port in self._places.items():
            steps = [f"addr add {address} dev {to}{nodad(address)}", f"addr del {address} dev {port}"]
            self.host.ip(*(reversed(steps) if remove_first else steps))
            self._places[address] = to
        self.announce()

    def announce(self) -> None:
        links = {link.name: link for link in self._commands.dump(Dump.LINKS) if isinstance(link, Link)}
        for address, port in self._places.items():
            link = links[port]
            self._announcer.announce(ipaddress.ip_interface(address).ip, link.index, link.hardware, link.broadcast)


def nodad(address: str) -> str:
    return " nodad" if ":" in address else ""


def settle(cluster: Cluster, closing: contextlib.ExitStack) -> dict[str, Hand]:
    """Every host of the cluster has its addresses where they are at home, and nobody's help."""
    return {name: closing.enter_context(contextlib.closing(Hand(host, cluster.addresses[name]))) for name, host in cluster.hosts.items()}
