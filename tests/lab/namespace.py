"""The network namespace of a lab, with the bridge that guests are plugged into. Has no name, so it collides with no other.

As root a network namespace, otherwise one inside a user namespace. `keeper.py` holds it and frees everything in it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import requirements

__all__ = ["Namespace", "NamespaceError"]

KEEPER = Path(__file__).with_name("keeper.py")


class NamespaceError(Exception):
    """The namespace, or something in it, cannot be made."""


class Namespace:
    """Call close(); if the process ends without it, keeper.py does the same."""

    def __init__(self, folder: Path, addresses: Sequence[str]) -> None:
        mode = requirements.mode()
        if mode is None:
            raise NamespaceError("; ".join(requirements.absent()))
        unshare = ["unshare", "--net"] if mode == "root" else ["unshare", "--user", "--map-root-user", "--net"]
        enter = ["--net"] if mode == "root" else ["--user", "--preserve-credentials", "--net"]
        self.environment = requirements.ENVIRONMENT
        self.addresses = tuple(addresses)
        self._keeper = subprocess.Popen(
            [*unshare, sys.executable, "-I", "-S", KEEPER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,  # so that Ctrl-C at the terminal does not reach it
        )
        self._prefix = ["nsenter", "--target", str(self._keeper.pid), *enter, "--"]
        try:
            assert self._keeper.stdout is not None
            if self._keeper.stdout.readline() != b"ready\n":
                raise NamespaceError(f"{' '.join(unshare)} failed")
            self._make_bridge()
        except BaseException:
            self.close()
            raise

    @property
    def keeper_pid(self) -> int:
        """Whose namespace it is: `nsenter --target PID --net` enters it."""
        return self._keeper.pid

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """`argv` as a command that runs inside, and that the kernel kills if the calling thread ends."""
        return [*self._prefix, "setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]

    def ip(self, *arguments: str) -> None:
        """Run ip(8) inside."""
        command = [*self._prefix, "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=self.environment, check=False)
        if done.returncode:
            raise NamespaceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def add_tap(self, name: str) -> None:
        self.ip("tuntap", "add", name, "mode", "tap", "vnet_hdr")
        self.ip("link", "set", name, "master", "br0", "up")

    def remove_tap(self, name: str) -> None:
        self.ip("tuntap", "del", name, "mode", "tap")

    def close(self) -> None:
        """Kill what still runs inside and free all. May be called twice."""
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()
        self._keeper.wait(30)

    def _make_bridge(self) -> None:
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        for address in self.addresses:
            self.ip("addr", "add", address, "dev", "br0", *(["nodad"] if ":" in address else []))  # nodad: usable at once
        self.ip("link", "set", "br0", "up")
