"""What the kernel has of the ports and addresses of a configuration, kept from its messages; and the facts that follow from it.

Owns the way from netlink's numbers (interface indices, tables, priorities) to the policy's names, and back for `backend`. No I/O.
Invariant: what is in here is what the kernel said last, or what it acknowledged to us since; a resynchronisation replaces all of it.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable

from rdsx.netlink.rtnetlink import Address, IpNetwork, Link, Message, Route, Rule
from rdsx.rdmaip.config import Config
from rdsx.rdmaip.facts import AddressFact, Fact, LinkFact, LinkType, RouteFact, RuleFact, Snapshot

__all__ = ["KernelState"]

ARPHRD_INFINIBAND = 32


class KernelState:
    """Links, source rules and private routes as they are now. Which addresses there are the policy keeps; here it is only how many."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ports = frozenset(config.ports)
        self._tables = {config.table(port): port for port in config.ports}
        self._wanted = {port: wanted_subnets(config, port) for port in config.ports}
        self._links: dict[int, Link] = {}
        self._indices: dict[str, int] = {}  # of ports
        self._rules: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)  # by address: (priority, table)
        self._routes: defaultdict[str, set[IpNetwork]] = defaultdict(set)  # by port
        self._ipv4: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)  # by port: addresses with prefix, also those of others
        self.needs_resync = False
        """Something happened after which only a dump tells what is there."""

    def link(self, port: str) -> Link | None:
        """The interface of that name; None if there is none."""
        index = self._indices.get(port)
        return None if index is None else self._links[index]

    def port_of(self, index: int) -> str | None:
        """The port that has this interface index."""
        link = self._links.get(index)
        return link.name if link is not None and link.name in self._ports else None

    @property
    def link_addresses(self) -> set[bytes]:
        """Of every interface of this host: who claims an address of ours from one of these is ourselves."""
        return {link.hardware for link in self._links.values()}

    def rules(self, ip: str) -> list[tuple[int, int]]:
        """(priority, table) of our source rules of an address, the one that counts first."""
        return sorted(self._rules.get(ip, ()))

    def everything(self) -> tuple[list[tuple[str, int, int]], list[tuple[str, IpNetwork]]]:
        """All rules of ours (address, priority, table), and all routes in our tables (port, destination)."""
        rules = [(ip, *rule) for ip, found in self._rules.items() for rule in found]
        return rules, [(port, destination) for port, found in self._routes.items() for destination in found]

    def wanted(self, port: str) -> tuple[IpNetwork, ...]:
        """The subnets that the table of a port should have a route to."""
        return self._wanted[port]

    def lacks_routes(self, port: str) -> bool:
        return not set(self._wanted[port]) <= self._routes[port]

    # -- what the kernel says

    def replace(self, messages: Iterable[Message]) -> Snapshot:
        """Everything anew, from dumps of links, addresses, rules and routes."""
        self._links, self._indices = {}, {}
        self._rules.clear()
        self._routes.clear()
        self._ipv4.clear()
        self.needs_resync = False
        messages = list(messages)
        # Links first: everything else names them by number.
        for message in messages:
            if isinstance(message, Link):
                self._handle_link(message)
        addresses = []
        for message in messages:
            if isinstance(message, Address):
                addresses += self._handle_address(message)
            elif isinstance(message, Rule):
                self._handle_rule(message)
            elif isinstance(message, Route):
                self._handle_route(message)
        return Snapshot(
            links=tuple(self._link_fact(port) for port in self._config.ports),
            addresses=tuple(addresses),
            rules=tuple(self._rule_fact(ip) for ip in self._rules),
            routes=tuple(self._route_fact(port) for port in self._config.ports),
        )

    def handle(self, messages: Iterable[Message]) -> list[Fact]:
        """What changed. Rules and routes are reported as they are after the last message: while one is switched, there are two."""
        facts: list[Fact] = []
        rules: dict[str, None] = {}
        routes: dict[str, None] = {}
        for message in messages:
            if isinstance(message, Link):
                for port in self._handle_link(message):
                    facts.append(self._link_fact(port))
                    routes[port] = None
            elif isinstance(message, Address):
                for fact in self._handle_address(message):
                    facts.append(fact)
                    routes[fact.port] = None
            elif isinstance(message, Rule):
                rules.update(dict.fromkeys(self._handle_rule(message)))
            elif isinstance(message, Route):
                routes.update(dict.fromkeys(self._handle_route(message)))
        facts += [self._rule_fact(ip) for ip in rules]
        facts += [self._route_fact(port) for port in routes]
        return facts

    # -- what we did ourselves, and the kernel acknowledged

    def address_removed(self, ip: str, port: str, prefix: int) -> None:
        """Afterwards the port may lack routes: see `lacks_routes`."""
        entry = ip, prefix
        if entry in self._ipv4[port]:
            self._ipv4[port].discard(entry)
            if not self._ipv4[port]:
                # With a port's last address the kernel drops its IPv4 routes, in all tables, and says nothing.
                self._routes[port] = {destination for destination in self._routes[port] if destination.version == 6}

    def rule_added(self, ip: str, priority: int, table: int) -> None:
        self._rules[ip].add((priority, table))

    def rule_removed(self, ip: str, priority: int, table: int) -> None:
        self._rules[ip].discard((priority, table))

    def route_added(self, port: str, destination: IpNetwork) -> None:
        self._routes[port].add(destination)

    # -- one message

    def _handle_link(self, link: Link) -> list[str]:
        """The ports about which something new is known."""
        before = self._links.get(link.index)
        changed = []
        if before is not None and (link.gone or before.name != link.name) and self._indices.get(before.name) == link.index:
            del self._indices[before.name]
            self._forget(before.name)
            changed.append(before.name)
        if link.gone:
            self._links.pop(link.index, None)
            return changed
        self._links[link.index] = link
        if link.name in self._ports:
            if self._indices.get(link.name) != link.index:
                # Its addresses were reported under another name, or before it came to this namespace.
                self.needs_resync = self.needs_resync or before is not None
                self._indices[link.name] = link.index
                self._forget(link.name)
            if not link.is_up:
                self._routes.pop(link.name, None)  # the kernel drops them with the port, and for IPv4 says nothing
            changed.append(link.name)
        return changed

    def _forget(self, port: str) -> None:
        """The interface of that name is another one."""
        self._routes.pop(port, None)
        self._ipv4.pop(port, None)

    def _handle_address(self, address: Address) -> list[AddressFact]:
        port = self.port_of(address.index)
        if port is None:
            return []
        if address.ip.version == 4:
            if address.gone:
                self.address_removed(str(address.ip), port, address.prefix)
            else:
                self._ipv4[port].add((str(address.ip), address.prefix))
        return [AddressFact(str(address.ip), port, address.prefix, not address.gone, address.mark, address.has_failed)]

    def _handle_rule(self, rule: Rule) -> list[str]:
        """The address whose rules changed, if they are ours."""
        source = rule.source
        if rule.mark != self._config.mark or rule.table not in self._tables or source is None or source.prefixlen != source.max_prefixlen:
            return []
        ip = str(source.network_address)
        if rule.gone:
            self.rule_removed(ip, rule.priority, rule.table)
        else:
            self.rule_added(ip, rule.priority, rule.table)
        return [ip]

    def _handle_route(self, route: Route) -> list[str]:
        """The port whose routes changed, if they are ours."""
        port = self._tables.get(route.table)
        if port is None or route.destination is None or route.mark != self._config.mark or route.index != self._indices.get(port):
            return []
        if route.gone:
            self._routes[port].discard(route.destination)
        else:
            self._routes[port].add(route.destination)
        return [port]

    # -- facts

    def _link_fact(self, port: str) -> LinkFact:
        link = self.link(port)
        if link is None:
            return LinkFact(port, present=False)
        kind = LinkType.INFINIBAND if link.hardware_type == ARPHRD_INFINIBAND else LinkType.ETHERNET
        return LinkFact(port, True, link.index, link.is_up, link.has_carrier, link.hardware, link.tag, kind)

    def _rule_fact(self, ip: str) -> RuleFact:
        """Two rules, left by one who was killed while it switched, count as none: then they are switched once more, down to one."""
        rules = self._rules[ip]
        return RuleFact(ip, self._tables[next(iter(rules))[1]] if len(rules) == 1 else None)

    def _route_fact(self, port: str) -> RouteFact:
        return RouteFact(port, not self.lacks_routes(port))


def wanted_subnets(config: Config, port: str) -> tuple[IpNetwork, ...]:
    group = config.group_of(port)
    return () if group is None else tuple(ipaddress.ip_network(text, strict=False) for text in group.subnets)
