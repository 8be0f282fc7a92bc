"""One agent for each network namespace: the lock that a second one finds taken.

An abstract socket name, because the kernel keeps those by network namespace and frees them with the process, however it ends. It says
nothing of agents in other namespaces that were given the same ports; a port is in one namespace only.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

__all__ = ["AgentRunningError", "is_locked", "take_lock"]

NAME = "\0rdsx-rdmaip"


class AgentRunningError(OSError):
    """EADDRINUSE: another agent serves this network namespace."""


def is_locked(root: Path = Path("/")) -> bool:
    """Whether an agent serves this thread's network namespace. Only looks."""
    sockets = (root / "proc/thread-self/net/unix").read_text(errors="replace").splitlines()
    return any(line.endswith(" " + NAME.replace("\0", "@")) for line in sockets)


def take_lock() -> socket.socket:
    """The lock of this thread's network namespace, until it is closed. AgentRunningError if somebody has it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(NAME)
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        remedy = "another agent serves this network namespace; `rdsx rdmaip status` asks it, and it must end before this one starts"
        raise AgentRunningError(errno.EADDRINUSE, remedy) from None
    return sock
