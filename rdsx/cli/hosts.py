"""Names of hosts to numeric addresses, and which local address leads there. Owns the errors for hosts that are not known."""

from __future__ import annotations

import socket

import trio

from rdsx.cli.running import CliError

__all__ = ["local_address_towards", "resolve_host"]

ANY_UDP_PORT = 9  # nothing is sent to it


async def resolve_host(host: str, family: int = socket.AF_UNSPEC) -> str:
    """The numeric address of a host, with its scope if it has one. Raises CliError naming a host that is not known."""
    try:
        found = await trio.socket.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else str(error)
        raise CliError(f"unknown host {host!r}: {reason}; give an address, or a name that resolves") from error
    sockaddr = found[0][4]
    address = str(sockaddr[0])
    scope = sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{address}%{scope}" if scope and "%" not in address else address


async def local_address_towards(address: str) -> str:
    """The address that this machine's routes choose to reach `address`. Raises CliError if none does."""
    family, _, _, _, sockaddr = (await trio.socket.getaddrinfo(address, ANY_UDP_PORT, type=socket.SOCK_DGRAM))[0]
    with trio.socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            await probe.connect(sockaddr)
        except OSError as error:
            raise CliError(f"no route to {address}: {error.strerror}; name a local address with -I") from error
        local = probe.getsockname()
    scope = local[3] if len(local) == 4 else 0
    return f"{local[0]}%{scope}" if scope else str(local[0])
