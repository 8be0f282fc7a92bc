"""How AF_RDS sockets are made and addressed, and how to wait for what the kernel makes no event of."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import trio

from rdsx.addresses import Host, SockAddr
from rdsx.constants import AF_RDS

__all__ = ["check_address", "kernel_sockaddr", "look_until", "open_socket"]

MIN_POLL_S = 0.001
MAX_POLL_S = 0.016

NO_MODULE = "this kernel has no RDS loaded: 'modprobe rds_tcp' as root loads it (Debian does not do that by itself)"
NO_ADDRESS = "no interface of this network namespace has it: see 'ip address', or open the node in the namespace that has it"
NO_TRANSPORT = "the address is there, but no RDS transport serves it: 'modprobe rds_tcp' as root, or rds_rdma for an RDMA device"


def kernel_sockaddr(host: Host, port: int) -> SockAddr:
    """A socket address as a socket of open_socket() takes it."""
    return (host.text if host.is_ipv6 else f"::ffff:{host.text}", port, 0, host.scope)


async def look_until(is_so: Callable[[], bool]) -> None:
    """Wait for what the kernel makes no event of, by looking: quickly at first, then less and less often."""
    pause_s = MIN_POLL_S
    while not is_so():
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_POLL_S)


def open_socket() -> socket.socket:
    """A non-blocking AF_RDS socket. OSError that says what to do where the kernel has none.

    To Python it is one of AF_INET6: for AF_RDS it knows IPv4 addresses only, while the kernel takes both, IPv4 as mapped addresses too.
    """
    try:
        with socket.socket(AF_RDS, socket.SOCK_SEQPACKET) as plain:
            descriptor = plain.detach()
    except OSError as error:
        remedies = {errno.EAFNOSUPPORT: NO_MODULE, errno.EMFILE: "each socket here is an open file: raise 'ulimit -n'"}
        remedy = remedies.get(error.errno or 0, "an AF_RDS socket cannot be made here")
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {remedy}") from None
    sock = socket.socket(socket.AF_INET6, socket.SOCK_SEQPACKET, fileno=descriptor)
    sock.setblocking(False)
    return sock


def check_address(host: Host) -> None:
    """OSError if no socket can be bound to it, with the reason."""
    with open_socket() as trial:
        try:
            trial.bind(kernel_sockaddr(host, 0))
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            if error.errno == errno.EADDRNOTAVAIL:
                reason += f": {NO_TRANSPORT if is_local(host) else NO_ADDRESS}"
            raise OSError(error.errno, f"{host.key}: {reason}") from None


def is_local(host: Host) -> bool:
    """Whether this network namespace has the address: to itself it would be the source. bind() says yes in a namespace without any."""
    with socket.socket(socket.AF_INET6 if host.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(host.sockaddr(9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == host.text)
