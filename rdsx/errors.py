"""The exceptions that rdsx raises on its own account. Everything else is an `OSError` with the errno that the kernel gives."""

from __future__ import annotations

import errno
import os

__all__ = ["CongestedError", "MessageTooLongError", "NotBoundError", "RdsError", "TooManyPeersError", "UnsupportedError", "WireError"]


class RdsError(OSError):
    """Base of the `OSError`s with a class of their own. `errno` is the kernel's; the text names the value and the remedy."""

    number: int = errno.EIO

    def __init__(self, text: str) -> None:
        super().__init__(self.number, f"{os.strerror(self.number)}: {text}")


class CongestedError(RdsError):
    """ENOBUFS: the destination port is congested. Wait with `wait_writable(address)`, or send without blocking later."""

    number = errno.ENOBUFS


class MessageTooLongError(RdsError):
    """EMSGSIZE: the message exceeds `NodeConfig.max_message_bytes` or the socket's SO_SNDBUF."""

    number = errno.EMSGSIZE


class NotBoundError(RdsError):
    """ENOTCONN: the socket is not bound, or no destination was given and it is not connected."""

    number = errno.ENOTCONN


class TooManyPeersError(RdsError):
    """EUSERS: the node knows `NodeConfig.max_peers` peers already."""

    number = errno.EUSERS


class UnsupportedError(RdsError):
    """EOPNOTSUPP: what this node stands on cannot do that, and it cannot be made up for."""

    number = errno.EOPNOTSUPP


class WireError(Exception):
    """Bytes from a peer that cannot be right. Stays inside the link, which drops the connection and counts `reason`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
