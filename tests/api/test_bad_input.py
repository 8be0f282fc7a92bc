"""Bad input: each is one clear error that names the value and the remedy, and changes nothing."""

from __future__ import annotations

import errno
import inspect
import socket
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio

import rdsx
from apikit import FAR, GUARD_S, LEFT, MIB, RIGHT, assert_text, bound, config, fill, lonely_node, loop_node, public_methods, raises_errno
from rdsx.addresses import SockAddr
from rdsx.transports.verbs import detection

HERE = (LEFT, 4000)
Call = Callable[[rdsx.RdsSocket, Any], Awaitable[Any]]

# Every async method that takes an address, and every one that takes it without waiting.
ASYNC_WITH_ADDRESS: dict[str, Call] = {
    "bind": lambda sock, address: sock.bind(address),
    "connect": lambda sock, address: sock.connect(address),
    "sendto": lambda sock, address: sock.sendto(b"x", address),
    "sendmmsg": lambda sock, address: sock.sendmmsg([(b"x", address)]),
    "sendmsg": lambda sock, address: sock.sendmsg([b"x"], [], 0, address),
    "wait_writable": lambda sock, address: sock.wait_writable(address),
    "flush": lambda sock, address: sock.flush(address),
}
NOWAIT_WITH_ADDRESS: dict[str, Callable[[rdsx.RdsSocket, Any], Any]] = {
    "sendto_nowait": lambda sock, address: sock.sendto_nowait(b"x", address),
    "sendmmsg_nowait": lambda sock, address: sock.sendmmsg_nowait([(b"x", address)]),
    "cancel_sent_to": lambda sock, address: sock.cancel_sent_to(address),
}
asynchronous = pytest.mark.parametrize("name", ASYNC_WITH_ADDRESS)
nowait = pytest.mark.parametrize("name", NOWAIT_WITH_ADDRESS)


async def ready(node: rdsx.Node, name: str) -> rdsx.RdsSocket:
    """A socket on which the method can be called."""
    return node.socket() if name == "bind" else await bound(node, 4000, LEFT)


class Resolver(trio.abc.HostnameResolver):
    """Knows one name, and says what the system says to all others."""

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if host == b"known.test":
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (LEFT, 0))]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


# -- hosts


@asynchronous
async def test_unknown_host(name: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with loop_node() as node:
        sock = await ready(node, name)
        with pytest.raises(socket.gaierror) as caught:
            await ASYNC_WITH_ADDRESS[name](sock, ("no-such.test", 4000))
        assert caught.value.errno == socket.EAI_NONAME
        assert_text(caught.value, "unknown host", "no-such.test", "numeric")


@asynchronous
async def test_known_host(name: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with loop_node() as node:
        await ASYNC_WITH_ADDRESS[name](await ready(node, name), ("known.test", 4000))


@nowait
async def test_names_without_waiting(name: str) -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        with pytest.raises(ValueError) as caught:
            NOWAIT_WITH_ADDRESS[name](sock, ("known.test", 4000))
        assert_text(caught.value, "known.test", "numeric")


async def test_node_needs_numeric_addresses() -> None:
    for wrong in ("no-such.test", "", "10.0.0", "10.0.0.1:4000"):
        with pytest.raises(ValueError) as caught:
            async with rdsx.open_node(wrong, transport="loop"):
                pass
        assert_text(caught.value, repr(wrong), "IPv4 or IPv6 address")


async def test_node_needs_an_address() -> None:
    with pytest.raises(ValueError, match="at least one"):
        async with rdsx.open_node([], transport="loop"):
            pass


@pytest.mark.parametrize("wrong", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "fe80::1"])
async def test_node_needs_unicast_addresses(wrong: str) -> None:
    with pytest.raises(ValueError) as caught:
        async with rdsx.open_node(wrong, transport="loop"):
            pass
    assert_text(caught.value, wrong, "unicast")


@pytest.mark.parametrize("wrong", [None, 1, b"127.0.0.1"])
async def test_node_address_of_wrong_type(wrong: Any) -> None:
    with pytest.raises(TypeError) as caught:
        async with rdsx.open_node([wrong], transport="loop"):
            pass
    assert_text(caught.value, repr(wrong), "str")


async def test_node_address_not_local() -> None:
    with raises_errno(errno.EADDRNOTAVAIL, "192.0.2.1", "ip address"):
        async with rdsx.open_node("192.0.2.1", config=config()):
            pass


async def test_tcp_port_in_use() -> None:
    settings = config()
    with trio.fail_after(GUARD_S):
        async with rdsx.open_node(LEFT, config=settings):
            with raises_errno(errno.EADDRINUSE, LEFT, str(settings.port), "NodeConfig.port"):
                async with rdsx.open_node(LEFT, config=settings):
                    pass


async def test_second_of_two_addresses_fails() -> None:
    """The first listener is closed again."""
    settings = config()
    with trio.fail_after(GUARD_S):
        with raises_errno(errno.EADDRNOTAVAIL, "192.0.2.1"):
            async with rdsx.open_node([LEFT, "192.0.2.1"], config=settings):
                pass
        async with rdsx.open_node(LEFT, config=settings):
            pass


async def test_wrong_transport_name() -> None:
    with pytest.raises(ValueError) as caught:
        async with rdsx.open_node(LEFT, transport="udp"):  # type: ignore[arg-type]
            pass
    assert_text(caught.value, "'udp'", "'tcp', 'loop', 'verbs' or 'kernel'")


async def test_verbs_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found, what is needed, and what to do."""
    monkeypatch.setattr(detection, "LIBRARIES", ("libnosuch.so.1",))
    with raises_errno(errno.EOPNOTSUPP, "'verbs'", "libnosuch.so.1 cannot be loaded", "needed: the libraries of rdma-core", "apt install"):
        async with rdsx.open_node(LEFT, transport="verbs"):
            pass


@pytest.mark.skipif(Path("/proc/net/protocols").read_text().find("RDS ") >= 0, reason="this kernel has RDS")
async def test_kernel_without_rds() -> None:
    with raises_errno(errno.EAFNOSUPPORT, "modprobe rds_tcp"):
        async with rdsx.open_node(LEFT, transport="kernel"):
            pass


async def test_loop_reaches_no_other_node() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        for call in (sock.sendto(b"x", FAR), sock.sendmmsg([(b"x", FAR)]), sock.wait_writable(FAR), sock.flush(FAR)):
            with raises_errno(errno.ENETUNREACH, FAR[0], "'tcp'"):
                await call
        for name in ("sendto_nowait", "sendmmsg_nowait"):
            with raises_errno(errno.ENETUNREACH, FAR[0], "'tcp'"):
                NOWAIT_WITH_ADDRESS[name](sock, FAR)
        assert sock.cancel_sent_to(FAR) == 0


async def test_too_many_peers() -> None:
    async with lonely_node(max_peers=1) as node:
        sock = await bound(node, 4000, "10.0.0.1")
        await sock.sendto(b"", FAR)
        with raises_errno(errno.EUSERS, "10.0.0.3", "max_peers", kind=rdsx.TooManyPeersError):
            await sock.sendto(b"", ("10.0.0.3", 5000))


# -- bind


async def test_bind_to_an_address_that_is_not_the_nodes() -> None:
    async with loop_node(LEFT, RIGHT) as node:
        sock = node.socket()
        with raises_errno(errno.EADDRNOTAVAIL, "10.9.9.9", LEFT, RIGHT, "open it with"):
            await sock.bind(("10.9.9.9", 4000))
        await sock.bind((RIGHT, 4000))


async def test_rds_port_in_use() -> None:
    async with loop_node(LEFT, RIGHT) as node:
        first = await node.bind(4000)
        for bind in (node.bind(4000), node.socket().bind(HERE)):
            with raises_errno(errno.EADDRINUSE, LEFT, "4000", "port 0"):
                await bind
        await bound(node, 4000, RIGHT)  # another address, another port space
        first.close()
        assert (await node.bind(4000)).getsockname() == HERE


async def test_failed_node_bind_leaves_no_socket() -> None:
    async with loop_node() as node:
        await node.bind(4000)
        with raises_errno(errno.EADDRINUSE):
            await node.bind(4000)
        assert node.statistics().sockets == 1


async def test_port_1() -> None:
    async with loop_node() as node:
        for bind in (node.bind(1), node.socket().bind((LEFT, 1))):
            with raises_errno(errno.EINVAL, LEFT, "port 1", "2..65535"):
                await bind


async def test_bind_twice() -> None:
    async with loop_node(LEFT, RIGHT) as node:
        sock = await node.bind(4000)
        for again in (HERE, (LEFT, 4001), (RIGHT, 4000)):
            with raises_errno(errno.EINVAL, repr(again), "already bound", "4000"):
                await sock.bind(again)
        assert sock.getsockname() == HERE


async def test_no_port_left() -> None:
    async with loop_node() as node:
        socks = [await node.bind(port) for port in range(2, 65536)]
        with raises_errno(errno.EADDRINUSE, LEFT, "every port", "close a socket"):
            await node.bind(0)
        socks[1234].close()
        assert (await node.bind(0)).getsockname() == (LEFT, 1236)


# -- addresses of the wrong class

CLASSES: list[tuple[SockAddr, int, int, int]] = [  # address, errno of bind, of connect, of sending
    (("0.0.0.0", 4000), errno.EINVAL, errno.EDESTADDRREQ, errno.EINVAL),
    (("224.0.0.1", 4000), errno.EINVAL, errno.EINVAL, errno.EINVAL),
    (("239.255.255.255", 4000), errno.EINVAL, errno.EINVAL, errno.EINVAL),
    (("255.255.255.255", 4000), errno.EINVAL, errno.EINVAL, errno.EINVAL),
    (("::", 4000), errno.EINVAL, errno.EPROTOTYPE, errno.EINVAL),
    (("ff02::1", 4000, 0, 1), errno.EINVAL, errno.EPROTOTYPE, errno.EINVAL),
    (("fe80::1", 4000, 0, 0), errno.EINVAL, errno.EINVAL, errno.EINVAL),
    (("::ffff:224.0.0.1", 4000, 0, 0), errno.EINVAL, errno.EINVAL, errno.EINVAL),
]
SENDERS = sorted(set(ASYNC_WITH_ADDRESS) - {"bind", "connect"})


@pytest.mark.parametrize(("address", "of_bind", "of_connect", "of_send"), CLASSES, ids=lambda one: str(one[0]) if one == () else None)
async def test_addresses_that_are_not_unicast(address: SockAddr, of_bind: int, of_connect: int, of_send: int) -> None:
    async with lonely_node() as node:
        with raises_errno(of_bind, repr(address), "unicast"):
            await node.socket().bind(address)
        sock = await bound(node, 4000, "10.0.0.1")
        with raises_errno(of_connect, repr(address), "give"):
            await sock.connect(address)
        for name in SENDERS:
            with raises_errno(of_send, repr(address), "unicast"):
                await ASYNC_WITH_ADDRESS[name](sock, address)
        for name in ("sendto_nowait", "sendmmsg_nowait"):
            with raises_errno(of_send, repr(address), "unicast"):
                NOWAIT_WITH_ADDRESS[name](sock, address)


async def test_ipv4_and_ipv6_do_not_mix() -> None:
    async with loop_node("127.0.0.1", "::1") as node:
        four, six = await bound(node, 4000, LEFT), await bound(node, 4000, "::1")
        for sock, there in ((four, ("::1", 4000)), (six, HERE), (four, ("fd00::2", 1)), (six, ("10.0.0.2", 1))):
            own = sock.getsockname()[0]
            for name in SENDERS:
                with raises_errno(errno.EOPNOTSUPP, repr(there), own, "both ends"):
                    await ASYNC_WITH_ADDRESS[name](sock, there)
            with raises_errno(errno.EOPNOTSUPP, repr(there), own, "both ends"):
                sock.sendto_nowait(b"x", there)


async def test_ipv6_speaks_ipv6_and_mapped_is_ipv4() -> None:
    async with loop_node("127.0.0.1", "::1") as node:
        four, six = await bound(node, 4000, "::ffff:127.0.0.1"), await bound(node, 5000, "::1")
        assert four.getsockname() == HERE
        await six.sendto(b"x", ("0:0::1", 5000))
        assert await six.recvfrom() == (b"x", ("::1", 5000, 0, 0))
        await four.sendto(b"y", ("::ffff:7f00:1", 4000, 0, 0))
        assert await four.recvfrom() == (b"y", HERE)


# -- addresses of the wrong shape

SHAPES: list[Any] = [
    None,
    "127.0.0.1",
    4000,
    (),
    (LEFT,),
    (LEFT, 4000, 0),
    (LEFT, 4000, 0, 0, 0),
    [LEFT, 4000],
    (None, 4000),
    (b"127.0.0.1", 4000),
    (2130706433, 4000),
    ([], 4000),
]
PORTS: list[tuple[Any, type[Exception]]] = [
    (-1, OverflowError),
    (65536, OverflowError),
    (2**70, OverflowError),
    (True, TypeError),
    ("80", TypeError),
    (80.0, TypeError),
    (None, TypeError),
]


HAVE_DEFAULT = {"sendmsg", "wait_writable", "flush"}  # None is no error there


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name in ASYNC_WITH_ADDRESS for wrong in SHAPES if wrong is not None or name not in HAVE_DEFAULT]
)
async def test_shapes_of_addresses(name: str, wrong: Any) -> None:
    async with loop_node() as node:
        sock = await ready(node, name)
        with pytest.raises(TypeError) as caught:
            await ASYNC_WITH_ADDRESS[name](sock, wrong)
        culprit = wrong[0] if isinstance(wrong, tuple) and len(wrong) == 2 else wrong
        assert_text(caught.value, repr(culprit), "10.0.0.1" if culprit is not wrong else "(host, port)")


@nowait
@pytest.mark.parametrize("wrong", SHAPES, ids=repr)
async def test_shapes_of_addresses_without_waiting(name: str, wrong: Any) -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        with pytest.raises(TypeError) as caught:
            NOWAIT_WITH_ADDRESS[name](sock, wrong)
        culprit = wrong[0] if isinstance(wrong, tuple) and len(wrong) == 2 else wrong
        assert_text(caught.value, repr(culprit), "10.0.0.1" if culprit is not wrong else "(host, port)")


@pytest.mark.parametrize("route_known", [False, True])
@pytest.mark.parametrize(("wrong", "kind"), PORTS, ids=repr)
@pytest.mark.parametrize("name", [*ASYNC_WITH_ADDRESS, *NOWAIT_WITH_ADDRESS])
async def test_ports(name: str, wrong: Any, kind: type[Exception], route_known: bool) -> None:
    async with loop_node() as node:
        sock = await ready(node, name)
        if route_known and name != "bind":
            await sock.sendto(b"", (LEFT, 9))
        before = sock.statistics()
        with pytest.raises(kind) as caught:
            if name in ASYNC_WITH_ADDRESS:
                await ASYNC_WITH_ADDRESS[name](sock, (LEFT, wrong))
            else:
                NOWAIT_WITH_ADDRESS[name](sock, (LEFT, wrong))
        assert_text(caught.value, repr(wrong), "0..65535" if kind is OverflowError else "int")
        assert sock.statistics() == before


@pytest.mark.parametrize(("wrong", "kind"), PORTS, ids=repr)
async def test_ports_of_node_bind(wrong: Any, kind: type[Exception]) -> None:
    async with loop_node() as node:
        with pytest.raises(kind) as caught:
            await node.bind(wrong)
        assert_text(caught.value, repr(wrong), "0..65535" if kind is OverflowError else "int")


# -- data

DATA: list[Any] = ["text", 5, None, 1.5, ["x"], object()]
SEND_DATA: dict[str, Call] = {
    "sendto": lambda sock, data: sock.sendto(data, HERE),
    "send": lambda sock, data: sock.send(data),
    "sendmmsg": lambda sock, data: sock.sendmmsg([(data, HERE)]),
    "sendmsg": lambda sock, data: sock.sendmsg([data], [], 0, HERE),
}
SEND_DATA_NOWAIT: dict[str, Callable[[rdsx.RdsSocket, Any], Any]] = {
    "sendto_nowait": lambda sock, data: sock.sendto_nowait(data, HERE),
    "send_nowait": lambda sock, data: sock.send_nowait(data),
    "sendmmsg_nowait": lambda sock, data: sock.sendmmsg_nowait([(data, HERE)]),
}


@pytest.mark.parametrize("route_known", [False, True])
@pytest.mark.parametrize("data", DATA, ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("name", [*SEND_DATA, *SEND_DATA_NOWAIT])
async def test_data_of_wrong_type(name: str, data: Any, route_known: bool) -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        await sock.connect(HERE)
        if route_known:
            await sock.sendto(b"", (LEFT, 9))
        before = sock.statistics()
        with pytest.raises(TypeError) as caught:
            if name in SEND_DATA:
                await SEND_DATA[name](sock, data)
            else:
                SEND_DATA_NOWAIT[name](sock, data)
        assert_text(caught.value, type(data).__name__, "bytes-like object")
        assert sock.statistics() == before


@pytest.mark.parametrize("wrong", [b"x", (b"x",), (b"x", HERE, 0), [b"x", HERE], None])
async def test_batches_of_wrong_shape(wrong: Any) -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        with pytest.raises(TypeError) as caught:
            await sock.sendmmsg([wrong])
        assert_text(caught.value, repr(wrong), "(data, address)")
        with pytest.raises(TypeError) as caught:
            sock.sendmmsg_nowait([wrong])
        assert_text(caught.value, repr(wrong), "(data, address)")


async def test_batch_with_something_wrong_in_it() -> None:
    """What comes before is queued and counted; the rest, tried again, raises."""
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        batch: list[Any] = [(b"1", HERE), (b"2", HERE), (None, HERE), (b"4", HERE)]
        assert await sock.sendmmsg(batch) == 2
        with pytest.raises(TypeError):
            await sock.sendmmsg(batch[2:])
        assert sock.sendmmsg_nowait([batch[3], batch[2]]) == 1
        assert [data for data, _ in sock.recvmmsg_nowait()] == [b"1", b"2", b"4"]


async def test_message_longer_than_the_send_buffer() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        await sock.connect(HERE)
        data = bytes(106497)
        words = ("106497", "106496", "SO_SNDBUF")
        for call in (sock.sendto(data, HERE), sock.send(data), sock.sendmmsg([(data, HERE)]), sock.sendmsg([data], [], 0, HERE)):
            with raises_errno(errno.EMSGSIZE, *words, kind=rdsx.MessageTooLongError):
                await call
        nowait_calls: list[Callable[[], int]] = [
            lambda: sock.sendto_nowait(data, HERE),
            lambda: sock.send_nowait(data),
            lambda: sock.sendmmsg_nowait([(data, HERE)]),
        ]
        for plain in nowait_calls:
            with raises_errno(errno.EMSGSIZE, *words, kind=rdsx.MessageTooLongError):
                plain()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 106497)  # the remedy
        assert await sock.sendto(data, HERE) == 106497


async def test_message_longer_than_any() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MIB)
        with raises_errno(errno.EMSGSIZE, str(MIB + 1), str(MIB), "cut it", kind=rdsx.MessageTooLongError):
            await sock.sendto(bytes(MIB + 1), HERE)
        assert await sock.sendto(bytes(MIB), HERE) == MIB


# -- states


async def test_unbound() -> None:
    async with loop_node() as node:
        sock = node.socket()
        await sock.connect(HERE)
        assert sock.getsockname() == ("0.0.0.0", 0)
        for name in SENDERS:
            if name != "flush":
                with raises_errno(errno.ENOTCONN, "not bound", "bind()", kind=rdsx.NotBoundError):
                    await ASYNC_WITH_ADDRESS[name](sock, HERE)
        for call in NOWAIT_WITH_ADDRESS.values():
            with raises_errno(errno.ENOTCONN, "not bound", "bind()", kind=rdsx.NotBoundError):
                call(sock, HERE)
        for send in (sock.send(b""), sock.sendmmsg([]), sock.wait_writable(), sock.flush(HERE)):
            with raises_errno(errno.ENOTCONN, "bind()"):
                await send
        with raises_errno(errno.ENOTCONN, "bind()"):
            sock.send_nowait(b"")
        with raises_errno(errno.ENOTCONN, "bind()"):
            sock.sendmmsg_nowait([])
        await sock.flush()  # nothing was sent
        with pytest.raises(trio.WouldBlock):
            sock.recvfrom_nowait()


async def test_not_connected() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        for call in (sock.send(b""), sock.sendmsg([b""]), sock.wait_writable()):
            with raises_errno(errno.ENOTCONN, "not connected", "connect()", kind=rdsx.NotBoundError):
                await call
        for plain in (lambda: sock.send_nowait(b""), sock.getpeername):
            with raises_errno(errno.ENOTCONN, "not connected", "connect()", kind=rdsx.NotBoundError):
                plain()


CLOSED_SOCKET: dict[str, Callable[[rdsx.RdsSocket], Any]] = {
    "bind": lambda sock: sock.bind(HERE),
    "cancel_sent_to": lambda sock: sock.cancel_sent_to(HERE),
    "connect": lambda sock: sock.connect(HERE),
    "compare_and_swap": lambda sock: sock.compare_and_swap(0, 0, 1, HERE),
    "fetch_and_add": lambda sock: sock.fetch_and_add(0, 1, HERE),
    "flush": lambda sock: sock.flush(),
    "free_mr": lambda sock: sock.free_mr(1),
    "get_mr": lambda sock: sock.get_mr(bytearray(8)),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockname": lambda sock: sock.getsockname(),
    "get_tos": lambda sock: sock.get_tos(),
    "getsockopt": lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
    "rdma_read": lambda sock: sock.rdma_read(bytearray(8), 1, HERE),
    "rdma_write": lambda sock: sock.rdma_write(b"x", 1, HERE),
    "recv": lambda sock: sock.recv(),
    "recv_into": lambda sock: sock.recv_into(bytearray(9)),
    "recv_nowait": lambda sock: sock.recv_nowait(),
    "recvfrom": lambda sock: sock.recvfrom(),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(9)),
    "recvfrom_nowait": lambda sock: sock.recvfrom_nowait(),
    "recvmmsg": lambda sock: sock.recvmmsg(),
    "recvmmsg_nowait": lambda sock: sock.recvmmsg_nowait(),
    "recvmsg": lambda sock: sock.recvmsg(),
    "send": lambda sock: sock.send(b""),
    "send_nowait": lambda sock: sock.send_nowait(b""),
    "sendmmsg": lambda sock: sock.sendmmsg([]),
    "sendmmsg_nowait": lambda sock: sock.sendmmsg_nowait([]),
    "sendmsg": lambda sock: sock.sendmsg([b""], [], 0, HERE),
    "sendto": lambda sock: sock.sendto(b"", HERE),
    "sendto_nowait": lambda sock: sock.sendto_nowait(b"", HERE),
    "set_tos": lambda sock: sock.set_tos(0),
    "setsockopt": lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000),
    "wait_writable": lambda sock: sock.wait_writable(HERE),
}
WORKS_CLOSED = {"close", "statistics", "__aiter__", "__anext__", "__enter__", "__exit__"}


def test_no_method_is_forgotten() -> None:
    assert set(CLOSED_SOCKET) | WORKS_CLOSED == public_methods(rdsx.RdsSocket)


@pytest.mark.parametrize("state", ["unbound", "bound", "connected", "node closed"])
@pytest.mark.parametrize("name", CLOSED_SOCKET)
async def test_closed_socket(name: str, state: str) -> None:
    async with loop_node() as node:
        sock = node.socket()
        if state != "unbound":
            await sock.bind(HERE)
        if state == "connected":
            await sock.connect(HERE)
        if state != "node closed":
            sock.close()
    with pytest.raises(trio.ClosedResourceError) as caught:
        result = CLOSED_SOCKET[name](sock)
        if inspect.isawaitable(result):
            await result
    assert_text(caught.value, "closed")


async def test_closed_socket_peeking_and_out_of_band() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        sock.close()
        for flags in (socket.MSG_OOB, socket.MSG_PEEK, socket.MSG_DONTWAIT, socket.MSG_ERRQUEUE):
            with pytest.raises(trio.ClosedResourceError):
                await sock.recvfrom(None, flags)
            with pytest.raises(trio.ClosedResourceError):
                await sock.recvmsg(None, 0, flags)


async def test_what_a_closed_socket_still_does() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        await sock.sendto(b"x", HERE)
        with sock:
            pass
        sock.close()
        assert sock.statistics().sent_messages == 1
        assert sock.statistics().queued_messages == 0
        assert [message async for message in sock] == []
        assert "closed" in repr(sock)
        assert node.statistics().sockets == 0


async def test_no_binding_while_closing() -> None:
    """A socket that is closed while its name is looked up stays closed, and its port free."""
    asked, answer = trio.Event(), trio.Event()

    class Slow(Resolver):
        async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
            asked.set()
            await answer.wait()
            return await super().getaddrinfo(*args, **kwargs)

    trio.socket.set_custom_hostname_resolver(Slow())
    async with loop_node() as node, trio.open_nursery() as nursery:
        sock = node.socket()

        async def bind() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sock.bind(("known.test", 4000))

        nursery.start_soon(bind)
        await asked.wait()
        sock.close()
        answer.set()
        assert (await bound(node, 4000, LEFT)).getsockname() == HERE


CLOSED_NODE: dict[str, Callable[[rdsx.Node], Any]] = {
    "socket": lambda node: node.socket(),
    "bind": lambda node: node.bind(4000),
}


def test_no_method_of_a_node_is_forgotten() -> None:
    assert set(CLOSED_NODE) | {"events", "info", "reset_connection", "statistics"} == public_methods(rdsx.Node)


@pytest.mark.parametrize("name", CLOSED_NODE)
async def test_closed_node(name: str) -> None:
    async with loop_node() as node:
        pass
    with pytest.raises(trio.ClosedResourceError) as caught:
        result = CLOSED_NODE[name](node)
        if inspect.isawaitable(result):
            await result
    assert_text(caught.value, "node", "open_node")


async def test_what_a_closed_node_still_does() -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        await sock.sendto(b"x", FAR)
    assert node.statistics().sockets == 0
    assert node.reset_connection(FAR[0]) is False
    assert node.addresses == ("10.0.0.1",)
    with pytest.raises(trio.EndOfChannel):
        await node.events().receive()


async def test_reset_connection_needs_a_numeric_address() -> None:
    async with loop_node() as node:
        with pytest.raises(ValueError) as caught:
            node.reset_connection("no-such.test")
        assert_text(caught.value, "no-such.test")
        assert node.reset_connection("10.0.0.2") is False


# -- sizes and flags


async def test_sizes_of_receive_calls() -> None:
    """Refused before anything is taken."""
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        await sock.sendto(b"message", HERE)
        wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
            (lambda: sock.recv(-1), ValueError, "-1"),
            (lambda: sock.recvfrom(-1), ValueError, "-1"),
            (lambda: sock.recvmsg(-1), ValueError, "-1"),
            (lambda: sock.recvmsg(1, -1), ValueError, "-1"),
            (lambda: sock.recv_nowait(-1), ValueError, "-1"),
            (lambda: sock.recvfrom_nowait(-1), ValueError, "-1"),
            (lambda: sock.recv_into(bytearray(9), -1), ValueError, "-1"),
            (lambda: sock.recvfrom_into(bytearray(9), -1), ValueError, "-1"),
            (lambda: sock.recvmmsg(0), ValueError, "0"),
            (lambda: sock.recvmmsg_nowait(0), ValueError, "0"),
            (lambda: sock.recvfrom("9"), TypeError, "'9'"),  # type: ignore[arg-type]
            (lambda: sock.recvfrom_nowait("9"), TypeError, "'9'"),  # type: ignore[arg-type]
            (lambda: sock.recvmsg("9"), TypeError, "'9'"),  # type: ignore[arg-type]
            (lambda: sock.recvmmsg("9"), TypeError, "'9'"),  # type: ignore[arg-type]
            (lambda: sock.recv_into(b"read only"), TypeError, "bytearray"),
            (lambda: sock.recvfrom_into(memoryview(b"read only")), TypeError, "bytearray"),
        ]
        for call, kind, word in wrong:
            with pytest.raises(kind) as caught:
                result = call()
                if inspect.isawaitable(result):
                    await result
            assert_text(caught.value, word)
        assert await sock.recv() == b"message"


async def test_flags_of_sendmsg() -> None:
    async with loop_node() as node:
        sock = await bound(node, 4000, LEFT)
        for flag in (socket.MSG_OOB, socket.MSG_NOSIGNAL, socket.MSG_EOR, 0x4000000):
            with raises_errno(errno.EOPNOTSUPP, f"{flag | socket.MSG_DONTWAIT:#x}", "MSG_DONTWAIT"):
                await sock.sendmsg([b""], [], flag | socket.MSG_DONTWAIT, HERE)


async def test_full_queue_without_waiting() -> None:
    async with lonely_node() as node:
        sock = await bound(node, 4000, "10.0.0.1")
        await fill(sock)
        with raises_errno(errno.EAGAIN, "queue", "full", kind=BlockingIOError):
            await sock.sendmsg([b""], [], socket.MSG_DONTWAIT, FAR)


# -- settings

SETTINGS: list[tuple[str, Any]] = [
    ("port", 0),
    ("port", -1),
    ("port", 65536),
    ("max_buffer_bytes", 0),
    ("max_message_bytes", 0),
    ("max_message_bytes", MIB + 1),
    ("max_peers", 0),
    ("max_unacked_packets", 0),
    ("max_unacked_bytes", 0),
    ("send_buffer_bytes", 0),
    ("receive_buffer_bytes", 2**32),
    ("max_peer_queued_bytes", 0),
    ("max_node_queued_bytes", -1),
    ("allowed_peers", ("10.0.0.1/8",)),
    ("allowed_peers", ("host.test",)),
    *((one.name, -0.5) for one in fields(rdsx.NodeConfig) if one.name.endswith("_s")),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        rdsx.NodeConfig(**{name: value})
    culprit = value[0] if isinstance(value, tuple) else str(value)
    assert_text(caught.value, f"NodeConfig.{name}", culprit)


def test_settings_that_contradict() -> None:
    with pytest.raises(ValueError) as caught:
        rdsx.NodeConfig(reconnect_min_delay_s=2.0)
    assert_text(caught.value, "reconnect_min_delay_s (2.0)", "reconnect_max_delay_s (1.0)")


def test_settings_that_are_none() -> None:
    with pytest.raises(TypeError, match="no_such"):
        rdsx.NodeConfig(no_such=1)  # type: ignore[call-arg]


def test_settings_at_their_limits() -> None:
    rdsx.NodeConfig(port=65535, max_message_bytes=1, allowed_peers=("10.0.0.0/8", "fd00::1"), send_buffer_bytes=1, yield_interval_s=0)
    rdsx.NodeConfig(flow_control=True, receive_ring_slots=8192)


def test_more_receives_than_a_kernel_counts() -> None:
    with pytest.raises(ValueError, match=r"receive_ring_slots is at most 8192 with flow_control, not 16384"):
        rdsx.NodeConfig(flow_control=True, receive_ring_slots=16384)
