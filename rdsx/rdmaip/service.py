"""Tells systemd how the agent is: started, alive, stopping. Does nothing where nobody listens.

The protocol of sd_notify(3): one datagram for each message, to the socket that the environment names. Messages are hints: one that cannot
be sent is dropped, because the agent's work must not wait for who looks after it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

__all__ = ["ServiceManager"]


class ServiceManager:
    """The one who started us, if it wants to hear. Close it when done."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._sock: socket.socket | None = None
        if name:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            # "@" stands for the zero byte of an abstract name.
            self._name = "\0" + name[1:] if name.startswith("@") else name
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = environment.get("WATCHDOG_USEC", "") if is_for_us else ""

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often `alive` is to be called: twice in the time after which we would be taken for hung. None: nobody watches."""
        if self._sock is None or not self._watchdog.isdigit() or int(self._watchdog) == 0:
            return None
        return int(self._watchdog) / 1e6 / 2

    def ready(self, status: str) -> None:
        """Everything is up; `status` is one line for `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Not hung."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def close(self) -> None:
        """A second call does nothing."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, message: str) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.sendto(message.encode(), self._name)
