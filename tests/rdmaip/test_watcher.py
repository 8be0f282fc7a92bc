"""`watch()` in namespaces: what it tells of real moves, and what it makes of an overrun."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from rdmaip.topology import Host, Topology
from rdsx.moves import AddressChange, NeighbourChange
from rdsx.netlink import rtnetlink
from rdsx.netlink.rtnetlink import Dump, Link
from rdsx.netlink.sockets import Commands, Monitor
from rdsx.netlink.watcher import GROUPS, Watch
from rdsx.rdmaip.announcer import Announcer

GUARD_S = 20.0  # only a guard
NOBODY = 65534
IPV4, IPV6 = "10.9.0.1", "fd09::1"


@pytest.fixture
def hosts(make_topology: Callable[..., Topology]) -> tuple[Host, Host]:
    topology = make_topology("h1", "h2")
    one, other = topology.hosts["h1"], topology.hosts["h2"]
    one.ip(f"addr add {IPV4}/24 dev p0", f"addr add {IPV6}/64 dev p0 nodad")
    other.ip("addr add 10.9.0.2/24 dev p0", "addr add fd09::2/64 dev p0 nodad")
    return one, other


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root while in the block."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def next_about(changes: Watch, ip: str) -> AddressChange | NeighbourChange:
    """The next change of this address; the interfaces of the hosts have others, too."""
    async for change in changes:
        if change.ip == ip:
            return change
    raise AssertionError("unreachable")


@pytest.mark.parametrize(("ip", "prefix"), [(IPV4, 24), (IPV6, 64)], ids=["ipv4", "ipv6"])
async def test_an_own_address_that_moves(hosts: tuple[Host, Host], ip: str, prefix: int) -> None:
    one, _ = hosts
    with trio.fail_after(GUARD_S), one.inside():
        with unprivileged():
            changes = Watch()
        with changes:
            assert changes.ports(ip) == ("p0",)
            nodad = " nodad" if ip == IPV6 else ""
            one.ip(f"addr add {ip}/{prefix} dev p1{nodad}", f"addr del {ip}/{prefix} dev p0")
            assert await next_about(changes, ip) == AddressChange(ip, ("p0",), ("p1",))
            one.cut("p1")
            assert await next_about(changes, ip) == AddressChange(ip, ("p1",), ())
            one.restore("p1")
            assert await next_about(changes, ip) == AddressChange(ip, (), ("p1",))
            assert changes.ports(ip) == ("p1",)
            one.ip(f"addr del {ip}/{prefix} dev p1")
            assert await next_about(changes, ip) == AddressChange(ip, ("p1",), ())


def hardware_of(host: Host, port: str) -> tuple[int, bytes]:
    with host.inside(), Commands() as commands:
        link = next(link for link in commands.dump(Dump.LINKS) if isinstance(link, Link) and link.name == port)
        return link.index, link.hardware


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["ipv4", "ipv6"])
async def test_a_peers_address_that_moves(hosts: tuple[Host, Host], ip: str) -> None:
    one, other = hosts
    index, after = hardware_of(one, "p1")
    _, before = hardware_of(one, "p0")
    # The peer must know the address: only then does an announcement of IPv4 mean anything to it.
    other.ip(f"neigh replace {ip} lladdr {before.hex(':')} dev p0 nud reachable")
    with trio.fail_after(GUARD_S), one.inside(), contextlib.closing(Announcer()) as announcer:
        one.ip(f"addr add {ip} dev p1 nodad" if ip == IPV6 else f"addr add {ip} dev p1")
        with other.inside(), unprivileged():
            changes = Watch()
        with changes:
            announcer.announce(ipaddress.ip_address(ip), index, after, b"\xff" * 6)
            assert await next_about(changes, ip) == NeighbourChange(ip, "p0", before, after)


async def test_after_an_overrun_the_tables_count(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes than fit: what is told in the end is where the addresses are."""
    one, _ = hosts
    monkeypatch.setattr("rdsx.netlink.watcher.Monitor", lambda groups: Monitor(groups, receive_buffer_bytes=2048))
    with trio.fail_after(GUARD_S), one.inside(), Commands() as commands, Watch() as changes:
        index, _ = hardware_of(one, "p1")
        ip = ipaddress.ip_address("10.9.0.7")
        for number in range(201):
            request = (
                rtnetlink.remove_address(index, ip, 32) if number % 2 else rtnetlink.add_address(index, ip, 32, mark=0, prefix_route=False)
            )
            commands.execute(request)
        one.ip(f"addr add {IPV4}/32 dev p1", f"addr del {IPV4}/24 dev p0")
        told = {}
        while len(told) < 2:
            change = await changes.__anext__()
            told[change.ip] = change
        assert told["10.9.0.7"] == AddressChange("10.9.0.7", (), ("p1",))
        assert told[IPV4] == AddressChange(IPV4, ("p0",), ("p1",))


async def test_a_watch_that_was_cancelled_goes_on_where_it_was(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    with trio.fail_after(GUARD_S), one.inside(), Watch() as changes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes.__anext__)
            await trio.testing.wait_all_tasks_blocked()
            one.ip(f"addr del {IPV4}/24 dev p0")
            await trio.testing.wait_all_tasks_blocked()  # it has heard, and waits for more of it
            nursery.cancel_scope.cancel()
        assert await next_about(changes, IPV4) == AddressChange(IPV4, ("p0",), ())


async def test_closing_ends_a_wait() -> None:
    """Needs neither privilege nor a namespace."""
    changes = Watch()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                async for _ in changes:
                    pass

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        changes.close()
    changes.close()


def test_a_failure_to_open_leaves_no_descriptor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Monitor] = []

    class Recorded(Monitor):
        def __init__(self) -> None:
            super().__init__(GROUPS)
            opened.append(self)

    def refused() -> Commands:
        raise PermissionError(1, "no netlink here")

    monkeypatch.setattr("rdsx.netlink.watcher.Monitor", lambda groups: Recorded())
    monkeypatch.setattr("rdsx.netlink.watcher.Commands", refused)

    async def main() -> None:
        with pytest.raises(PermissionError):
            Watch()
        with pytest.raises(trio.ClosedResourceError):
            await opened[0].receive()

    trio.run(main)
