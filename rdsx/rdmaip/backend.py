"""Carries out the policy's actions in the kernel, each at once and synchronously: a round trip takes microseconds.

Owns the command socket, the announcer and the picture of the kernel that actions are translated with; decides nothing. Every refusal is an
errno for the policy, and a line in the log with the kernel's own words. Invariant: at no moment is an address that has a source rule
without one, because the new one is made before the old one goes.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from rdsx.netlink import rtnetlink
from rdsx.netlink.rtnetlink import Dump, IpAddress, Link, Message, Neighbour
from rdsx.netlink.sockets import Commands
from rdsx.rdmaip.actions import Action, AddAddress, Announce, EnsureRoutes, RemoveAddress, SwitchRule
from rdsx.rdmaip.announce import ETHERNET_BROADCAST
from rdsx.rdmaip.config import Config
from rdsx.rdmaip.facts import Fact, Snapshot
from rdsx.rdmaip.hardware import find_rdma_ports, hardware_facts
from rdsx.rdmaip.kernel_state import KernelState

__all__ = ["Backend", "Sender", "read_snapshot"]

log = logging.getLogger("rdsx.rdmaip")

TABLES = (Dump.LINKS, Dump.ADDRESSES, Dump.RULES, Dump.ROUTES)
ALREADY_SO = (errno.EEXIST, errno.EADDRNOTAVAIL, errno.ENOENT, errno.ESRCH)  # what was asked for is the case: not worth a line


class Sender(Protocol):
    """What sends announcements: an `Announcer`."""

    def announce(self, address: IpAddress, interface: int, link: bytes, broadcast: bytes) -> None: ...


class Backend:
    """Reads and changes the network of the namespace in which `commands` and `announcer` were made. Owns neither."""

    def __init__(self, config: Config, commands: Commands, announcer: Sender) -> None:
        self._config = config
        self._commands = commands
        self._announcer = announcer
        self.state = KernelState(config)
        self._executors: dict[type[Action], Callable[..., None]] = {
            AddAddress: self._add_address,
            RemoveAddress: self._remove_address,
            SwitchRule: self._switch_rule,
            EnsureRoutes: self._ensure_routes,
            Announce: self._announce,
        }

    def snapshot(self) -> Snapshot:
        """Read everything anew. OSError if the kernel does not let us, which it lets everybody."""
        return read_tables(self.state, self._commands)

    def facts(self, messages: Iterable[Message]) -> list[Fact]:
        """What the monitor's messages mean."""
        return self.state.handle(messages)

    def execute(self, action: Action) -> int | None:
        """Do it now; returns None, or the errno of the refusal. Every action but `Resync`, which is the caller's: `snapshot`."""
        try:
            self._executors[type(action)](action)
        except OSError as error:
            number = error.errno or errno.EIO
            if number not in ALREADY_SO:
                log.warning("%s: %s", action, error.strerror or os.strerror(number))
            return number
        return None

    def withdraw(self) -> None:
        """Take back all source rules and all routes of ours, also those that others before us have left. What is refused is logged."""
        self.snapshot()
        rules, routes = self.state.everything()
        for ip, priority, table in rules:
            self._try(rtnetlink.remove_rule(ipaddress.ip_network(ip), table, priority, mark=self._config.mark))
        for port, destination in routes:
            table = self._config.table(port)
            self._try(rtnetlink.remove_route(destination, self._link(port).index, table, mark=self._config.mark))

    def _try(self, request: bytes) -> None:
        try:
            self._commands.execute(request)
        except OSError as error:
            if error.errno not in ALREADY_SO:
                log.warning("a rule or route cannot be taken back: %s", error.strerror)

    def _link(self, port: str) -> Link:
        link = self.state.link(port)
        if link is None:
            raise OSError(errno.ENODEV, f"there is no interface {port}")
        return link

    def _add_address(self, action: AddAddress) -> None:
        ip = ipaddress.ip_address(action.ip)
        at_home = not action.guest
        has_broadcast = at_home and ip.version == 4 and action.prefix <= 30  # a subnet of two has none (RFC 3021)
        index = self._link(action.port).index
        self._commands.execute(
            rtnetlink.add_address(index, ip, action.prefix, mark=self._config.mark, prefix_route=at_home, broadcast=has_broadcast)
        )

    def _remove_address(self, action: RemoveAddress) -> None:
        link = self._link(action.port)
        had_routes = not self.state.lacks_routes(action.port)
        self._commands.execute(rtnetlink.remove_address(link.index, ipaddress.ip_address(action.ip), action.prefix))
        self.state.address_removed(action.ip, action.port, action.prefix)
        if had_routes and self.state.lacks_routes(action.port):
            self._restore_routes(action.port)
        if not link.has_carrier:
            self._free_waiting(link)

    def _restore_routes(self, port: str) -> None:
        """What our own removal took away is put back within it, so that an address which returns finds the table as it was."""
        try:
            self._ensure_routes(EnsureRoutes(port))
        except OSError as error:
            log.warning("routes of %s could not be put back: %s", port, error.strerror)
            self.state.needs_resync = True

    def _free_waiting(self, link: Link) -> None:
        """Drop the packets that wait for a neighbour on a dead port.

        A connection's cached IPv6 route leads into the port for a moment after it has lost its carrier. A segment that goes there waits for
        the neighbour for 3 s (mcast_solicit times retrans_time_ms), and TCP does not send one again that is still queued on its own host.
        """
        for neighbour in self._commands.dump(Dump.NEIGHBOURS, index=link.index):
            if isinstance(neighbour, Neighbour) and neighbour.index == link.index and neighbour.is_awaited:
                with contextlib.suppress(FileNotFoundError):  # it was given up meanwhile
                    self._commands.execute(rtnetlink.remove_neighbour(link.index, neighbour.ip))

    def _switch_rule(self, action: SwitchRule) -> None:
        table = self._config.table(action.port)
        source = ipaddress.ip_network(action.ip)
        rules = self.state.rules(action.ip)
        right = [rule for rule in rules if rule[1] == table][:1]
        if not right:
            both = (self._config.rule_priority, self._config.rule_priority + 1)
            taken = {priority for priority, _ in rules}
            priority = next((each for each in both if each not in taken), None)
            if priority is None:  # left by one who was killed twice: the first counts, so the second may go
                priority = rules[-1][0]
                self._remove_rule(action.ip, *rules.pop())
            self._commands.execute(rtnetlink.add_rule(source, table, priority, mark=self._config.mark))
            self.state.rule_added(action.ip, priority, table)
            right = [(priority, table)]
        for rule in rules:
            if rule not in right:
                self._remove_rule(action.ip, *rule)

    def _remove_rule(self, ip: str, priority: int, table: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # somebody was faster
            self._commands.execute(rtnetlink.remove_rule(ipaddress.ip_network(ip), table, priority, mark=self._config.mark))
        self.state.rule_removed(ip, priority, table)

    def _ensure_routes(self, action: EnsureRoutes) -> None:
        index, table = self._link(action.port).index, self._config.table(action.port)
        for destination in self.state.wanted(action.port):
            self._commands.execute(rtnetlink.add_route(destination, index, table, mark=self._config.mark))
            self.state.route_added(action.port, destination)

    def _announce(self, action: Announce) -> None:
        link = self._link(action.port)
        self._announcer.announce(ipaddress.ip_address(action.ip), link.index, link.hardware, link.broadcast or ETHERNET_BROADCAST)


def read_snapshot(config: Config) -> Snapshot:
    """What there is now of a configuration's ports and addresses, in this thread's network namespace. Needs no privilege.

    Raises:
        OSError: there is no netlink here.
    """
    with Commands() as commands:
        return replace(read_tables(KernelState(config), commands), hardware=tuple(hardware_facts(find_rdma_ports(config.ports))))


def read_tables(state: KernelState, commands: Commands) -> Snapshot:
    return state.replace(message for table in TABLES for message in commands.dump(table))
