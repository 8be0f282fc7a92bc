"""The netlink sockets, against the running kernel in a namespace of their own."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable

import pytest
import trio
import trio.testing

from rdmaip.topology import Host, Topology
from rdsx.netlink import rtnetlink
from rdsx.netlink.rtnetlink import Address, Dump, Link, Message, Route, Rule
from rdsx.netlink.sockets import Commands, Groups, Monitor, Overrun

GUARD_S = 20.0  # only a guard
MARK = 189
IP = ipaddress.ip_address("10.9.0.1")
HOST, SUBNET = ipaddress.ip_network("10.9.0.1/32"), ipaddress.ip_network("10.9.0.0/24")
ADDRESSES = Groups.IPV4_ADDRESS | Groups.IPV6_ADDRESS


@pytest.fixture
def host(make_topology: Callable[..., Topology]) -> Host:
    return make_topology("h1").hosts["h1"]


def index_of(commands: Commands, name: str) -> int:
    return next(link.index for link in commands.dump(Dump.LINKS) if isinstance(link, Link) and link.name == name)


def addresses(commands: Commands) -> list[Message]:
    return [message for message in commands.dump(Dump.ADDRESSES, 2) if isinstance(message, Address) and message.index > 1]


def test_what_is_asked_for_is_done_and_read_back(host: Host) -> None:
    with host.inside(), Commands() as commands:
        port = index_of(commands, "p0")
        commands.execute(rtnetlink.add_address(port, IP, 32, mark=MARK, prefix_route=False))
        assert addresses(commands) == [Address(port, IP, 32, "p0", 0x80 | 0x200, MARK)]
        commands.execute(rtnetlink.add_rule(HOST, 18900, 1000, mark=MARK))
        assert Rule(2, HOST, 18900, 1000, MARK) in commands.dump(Dump.RULES, 2)
        for _ in range(2):  # replacing it is no error
            commands.execute(rtnetlink.add_route(SUBNET, port, 18900, mark=MARK))
        assert Route(2, SUBNET, 18900, port, MARK, 253, 0) in commands.dump(Dump.ROUTES, 2)
        commands.execute(rtnetlink.remove_route(SUBNET, port, 18900, mark=MARK))
        commands.execute(rtnetlink.remove_rule(HOST, 18900, 1000, mark=MARK))
        commands.execute(rtnetlink.remove_address(port, IP, 32))
        assert addresses(commands) == []
        assert all(rule.mark != MARK for rule in commands.dump(Dump.RULES) if isinstance(rule, Rule))


def test_refusals_have_the_kernels_errno_and_words(host: Host) -> None:
    with host.inside(), Commands() as commands:
        port = index_of(commands, "p0")
        add = rtnetlink.add_address(port, IP, 32, mark=MARK, prefix_route=False)
        commands.execute(add)
        cases = [
            (add, errno.EEXIST),
            (rtnetlink.remove_address(port, IP, 24), errno.EADDRNOTAVAIL),
            (rtnetlink.remove_rule(HOST, 18900, 1000, mark=MARK), errno.ENOENT),
            (rtnetlink.remove_route(SUBNET, port, 18900, mark=MARK), errno.ESRCH),
            (rtnetlink.add_address(9999, IP, 32, mark=MARK, prefix_route=False), errno.ENODEV),
        ]
        for request, number in cases:
            with pytest.raises(OSError) as caught:
                commands.execute(request)
            assert caught.value.errno == number
        assert "Device not found" in str(caught.value)  # since Linux 6.3


async def test_a_monitor_hears_what_changes(host: Host) -> None:
    with trio.fail_after(GUARD_S), host.inside(), Commands() as commands, Monitor(ADDRESSES) as monitor:
        port = index_of(commands, "p0")
        async with trio.open_nursery() as nursery:
            heard: list[Message] = []

            async def hear() -> None:
                heard.extend(await monitor.receive())

            nursery.start_soon(hear)
            await trio.testing.wait_all_tasks_blocked()
            commands.execute(rtnetlink.add_address(port, IP, 32, mark=MARK, prefix_route=False))
        commands.execute(rtnetlink.remove_address(port, IP, 32))
        heard.extend(await monitor.receive())
        assert [(message.ip, message.gone) for message in heard if isinstance(message, Address)] == [(IP, False), (IP, True)]
        assert monitor.receive_nowait() == []


async def test_an_overrun_is_told_once_and_leaves_nothing_old_behind(host: Host) -> None:
    with trio.fail_after(GUARD_S), host.inside(), Commands() as commands, Monitor(ADDRESSES, receive_buffer_bytes=2048) as monitor:
        port = index_of(commands, "p0")
        for _ in range(200):
            commands.execute(rtnetlink.add_address(port, IP, 32, mark=MARK, prefix_route=False))
            commands.execute(rtnetlink.remove_address(port, IP, 32))
        with pytest.raises(Overrun):
            await monitor.receive()
        assert monitor.receive_nowait() == []
        commands.execute(rtnetlink.add_address(port, IP, 32, mark=MARK, prefix_route=False))
        (message,) = await monitor.receive()
        assert isinstance(message, Address)
        assert not message.gone


async def test_closing_ends_a_wait(host: Host) -> None:
    with trio.fail_after(GUARD_S), host.inside():
        monitor = Monitor(ADDRESSES)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await monitor.receive()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            monitor.close()
        monitor.close()
        with pytest.raises(trio.ClosedResourceError):
            await monitor.receive()


def test_a_table_that_changes_all_the_time_is_given_up() -> None:
    """No kernel of ours interrupts every dump, so what it says is put in."""
    answers = 0

    class Interrupted(Commands):
        def _dump(self, request: bytes) -> list[Message] | None:
            nonlocal answers
            answers += 1
            return None

    with Interrupted() as commands, pytest.raises(OSError, match="addresses change faster") as caught:
        commands.dump(Dump.ADDRESSES)
    assert caught.value.errno == errno.EBUSY
    assert answers == 10
