"""Hosts with two ports each, on bridges, as network namespaces of one kernel. Needs root and iproute2.

Namespaces have no names: a descriptor of this process keeps each alive, so they vanish with the test, however it ends. A host's port is one
end of a veth pair, its other end a port of a bridge in the switch's namespace:

- `cut`: the bridge's end goes down, so the host's port loses carrier;
- `set_admin`: the host's own end goes down or up;
- `blackhole`: the bridge's end leaves the bridge: carrier stays, nothing passes.

Invariant: what a method asks of the kernel is done when it returns. What follows from it (events, addresses) is to be waited for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from namespaces import CLONE_NEWNET, inside_descriptor, libc

__all__ = ["Host", "Topology", "obstacle", "open_topology"]

PROGRAM_S = 30.0
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


def obstacle() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    try:
        subprocess.run(["ip", "-V"], check=True, capture_output=True, timeout=PROGRAM_S)
    except (OSError, subprocess.SubprocessError):
        return "needs the program ip (iproute2)"
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    if not (held >> CAP_NET_ADMIN & 1 and held >> CAP_SYS_ADMIN & 1):
        return "needs root: CAP_NET_ADMIN and CAP_SYS_ADMIN, to make network namespaces"
    return None


@dataclass
class Namespace:
    """A network namespace, alive while `descriptor` is open."""

    descriptor: int

    @property
    def path(self) -> str:
        """Where any process may open it from, while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """This thread is in the namespace while in the block."""
        return inside_descriptor(self.descriptor)

    def ip(self, *commands: str) -> None:
        """Run commands of `ip`, one after another, in one process. CalledProcessError with its output on the first that fails."""
        with self.inside():
            run_ip(["-batch", "-"], "\n".join(commands))

    def ip_output(self, arguments: str) -> str:
        """What one command of `ip` prints."""
        with self.inside():
            return run_ip(arguments.split(), "")

    def sysctl(self, **values: int) -> None:
        """Set network settings; dots of the names are double underscores: `ipv4__conf__all__arp_ignore=1`."""
        with self.inside():
            for name, value in values.items():
                with open("/proc/sys/net/" + name.replace("__", "/"), "w") as file:
                    file.write(str(value))


@dataclass
class Host(Namespace):
    """A host: ports p0, p1, … with their ends on the switch, named `<host>-p0`, …"""

    name: str = ""
    ports: tuple[str, ...] = ()
    switch: Namespace = field(default_factory=lambda: Namespace(-1))
    bridges: dict[str, str] = field(default_factory=dict)  # by port

    def cut(self, *ports: str) -> None:
        """Take the carrier from ports."""
        self.switch.ip(*(f"link set {self.name}-{port} down" for port in ports))

    def restore(self, *ports: str) -> None:
        """Give it back."""
        self.switch.ip(*(f"link set {self.name}-{port} up" for port in ports))

    def blackhole(self, port: str) -> None:
        self.switch.ip(f"link set {self.name}-{port} nomaster")

    def end_blackhole(self, port: str) -> None:
        self.switch.ip(f"link set {self.name}-{port} master {self.bridges[port]}")

    def set_admin(self, port: str, *, up: bool) -> None:
        self.ip(f"link set {port} {'up' if up else 'down'}")

    def addresses(self) -> dict[str, set[str]]:
        """Addresses on each port, without link-local ones, as the kernel has them now."""
        found: dict[str, set[str]] = {port: set() for port in self.ports}
        for line in self.ip_output("-o address show").splitlines():
            port, address = line.split()[1], line.split()[3]
            if port in found and not address.startswith("fe80:"):
                found[port].add(address.partition("/")[0])
        return found


@dataclass
class Topology:
    hosts: dict[str, Host]
    switch: Namespace


@contextlib.contextmanager
def open_topology(names: Iterable[str], *, ports: int = 2, bridges: int = 1) -> Iterator[Topology]:
    """Hosts with so many ports, without addresses. Port i is on bridge `i % bridges`; more bridges than one are linked with each other."""
    with contextlib.ExitStack() as stack:

        def make() -> int:
            descriptor = make_namespace()
            stack.callback(os.close, descriptor)
            return descriptor

        switch = Namespace(make())
        switch.sysctl(ipv6__conf__default__disable_ipv6=1)
        commands = []
        for index in range(bridges):
            # Flooding instead of snooping: there is no querier here, and advertisements are multicast.
            commands.append(f"link add name br{index} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
            commands.append(f"link set br{index} up")
            if index:
                commands.append(f"link add name up{index} type veth peer name down{index}")
                commands += [f"link set up{index} master br{index - 1} up", f"link set down{index} master br{index} up"]
        switch.ip(*commands)
        hosts = {}
        for name in names:
            host = Host(make(), name, tuple(f"p{index}" for index in range(ports)), switch)
            host.bridges = {port: f"br{index % bridges}" for index, port in enumerate(host.ports)}
            # Link-local addresses need not be defended here, and every second of waiting for that is one of the test's.
            host.sysctl(ipv6__conf__default__dad_transmits=0, ipv6__conf__default__accept_dad=0, ipv6__conf__default__accept_ra=0)
            for port in host.ports:
                add_port(host, port)
            host.ip("link set lo up")
            hosts[name] = host
        yield Topology(hosts, switch)


def add_port(host: Host, port: str) -> None:
    """Connect a port, up on both sides; also to replace one that was deleted."""
    end = f"{host.name}-{port}"
    host.switch.ip(
        f"link add name {end} type veth peer name {port} netns {host.path}",
        f"link set {end} master {host.bridges[port]} up",
    )
    host.ip(f"link set {port} up")


def make_namespace() -> int:
    """A descriptor of a new network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            if libc.setns(before, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(before)


def run_ip(arguments: list[str], text: str) -> str:
    done = subprocess.run(["ip", *arguments], input=text, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(f"ip {' '.join(arguments)}: {done.stderr.strip()}\n{text}")
    return done.stdout
