"""Two network namespaces with a cable between them, so that one kernel is both ends of an RDS connection over TCP. Needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

__all__ = ["CLONE_NEWNET", "HOSTS", "inside", "inside_descriptor", "libc", "make_namespaces"]

HOSTS = {"10.78.0.1": "left", "10.78.0.2": "right"}
CLONE_NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def make_namespaces() -> None:
    commands = ["ip link add left type veth peer name right"]
    for host, name in HOSTS.items():
        commands += [
            f"ip netns add {name}",
            f"ip link set {name} netns {name}",
            f"ip -n {name} address add {host}/24 dev {name}",
            f"ip -n {name} link set {name} up",
            f"ip -n {name} link set lo up",
        ]
    for command in commands:
        subprocess.run(command.split(), check=True)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread's sockets are made in the namespace of that name while in the block."""
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        with inside_descriptor(there):
            yield
    finally:
        os.close(there)


@contextlib.contextmanager
def inside_descriptor(descriptor: int) -> Iterator[None]:
    """This thread's sockets are made in that namespace while in the block."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(descriptor)
        try:
            yield
        finally:
            enter(before)
    finally:
        os.close(before)


def enter(descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
