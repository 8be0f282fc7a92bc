"""Where addresses are, as the kernel's messages tell it, and what has changed since somebody last asked. No I/O.

The kernel reports each step, and for IPv6 sometimes in the wrong order: a removal at once, an addition that came first from a work queue
2 ms later. Whoever has this asks for `changes()` some time after the first step; what is then as it was before is no change. Memory
is bounded by the kernel's own tables.
"""

from __future__ import annotations

from collections.abc import Iterable

from rdsx.moves import AddressChange, Change, NeighbourChange
from rdsx.netlink.rtnetlink import Address, IpAddress, Link, Message, Neighbour

__all__ = ["Picture"]


class Picture:
    """Links, addresses and neighbours of one network namespace."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._addresses: dict[str, dict[tuple[int, int], Address]] = {}  # by text, then by interface and prefix length
        self._neighbours: dict[tuple[str, int], bytes] = {}  # hardware addresses, by text and interface
        self._told_ports: dict[str, tuple[str, ...]] = {}
        self._told_hardware: dict[tuple[str, int], bytes] = {}
        self._touched_addresses: dict[str, None] = {}
        self._touched_neighbours: dict[tuple[str, int], str] = {}  # with the port's name, which may go before the change is told

    def ports(self, ip: str) -> tuple[str, ...]:
        """The names, in order, of interfaces on which the address is, and which are up and have a carrier."""
        found = set()
        for index, _ in self._addresses.get(ip, {}):
            link = self._links.get(index)
            if link is not None and link.is_up and link.has_carrier:
                found.add(link.name)
        return tuple(sorted(found))

    def apply(self, messages: Iterable[Message]) -> bool:
        """Take in what the kernel says; whether there may be something to tell now."""
        for message in messages:
            if isinstance(message, Link):
                self._apply_link(message)
            elif isinstance(message, Address):
                self._apply_address(message)
            elif isinstance(message, Neighbour):
                self._apply_neighbour(message)
        return bool(self._touched_addresses or self._touched_neighbours)

    def replace(self, messages: Iterable[Message]) -> None:
        """Forget all, and take in these: the tables as a whole."""
        for ip in self._addresses:
            self._touched_addresses[ip] = None
        for key in self._neighbours:
            self._touch_neighbour(key)
        self._links.clear()
        self._addresses.clear()
        self._neighbours.clear()
        self.apply(messages)

    def changes(self) -> list[Change]:
        """What is different from what was told last, addresses first; that is told with this."""
        found: list[Change] = []
        for ip in self._touched_addresses:
            before, after = self._told_ports.pop(ip, ()), self.ports(ip)
            if after:
                self._told_ports[ip] = after
            if before != after:
                found.append(AddressChange(ip, before, after))
        for key, port in self._touched_neighbours.items():
            known = self._told_hardware.pop(key, None)
            if key in self._neighbours:
                self._told_hardware[key] = self._neighbours[key]
            if known != self._told_hardware.get(key):
                found.append(NeighbourChange(key[0], port, known, self._told_hardware.get(key)))
        self._touched_addresses.clear()
        self._touched_neighbours.clear()
        return found

    # -- one message

    def _apply_link(self, link: Link) -> None:
        before = self._links.pop(link.index, None)
        if not link.gone:
            self._links[link.index] = link
        if before is None or link.gone or (before.name, before.is_up, before.has_carrier) != (link.name, link.is_up, link.has_carrier):
            for ip, places in self._addresses.items():
                if any(index == link.index for index, _ in places):
                    self._touched_addresses[ip] = None

    def _apply_address(self, address: Address) -> None:
        ip = text_of(address.ip, address.index)
        places = self._addresses.setdefault(ip, {})
        if address.gone or address.is_tentative or address.has_failed:
            places.pop((address.index, address.prefix), None)
        else:
            places[address.index, address.prefix] = address
        if not places:
            del self._addresses[ip]
        self._touched_addresses[ip] = None

    def _apply_neighbour(self, neighbour: Neighbour) -> None:
        if neighbour.ip.is_multicast:
            return
        key = text_of(neighbour.ip, neighbour.index), neighbour.index
        known = None if neighbour.gone else neighbour.hardware
        if known is None:
            self._neighbours.pop(key, None)
        else:
            self._neighbours[key] = known
        if self._told_hardware.get(key) != known:
            self._touch_neighbour(key)

    def _touch_neighbour(self, key: tuple[str, int]) -> None:
        link = self._links.get(key[1])
        if link is not None:
            self._touched_neighbours[key] = link.name
        else:
            self._touched_neighbours.setdefault(key, str(key[1]))


def text_of(ip: IpAddress, index: int) -> str:
    """As the addresses of nodes are spelled: link-local ones with the interface."""
    return f"{ip}%{index}" if ip.version == 6 and ip.is_link_local else str(ip)
