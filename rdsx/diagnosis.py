"""What this machine offers to each transport: findings, and what each of them means. `rdsx doctor` prints it; any program can ask.

Looks at files, loads the libraries of rdma-core if they are there, and asks `ip` and `rdma` of iproute2. Needs no privilege and changes
nothing. Invariant: a transport is usable exactly if no finding is an obstacle to it.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rdsx import machine
from rdsx.constants import RDS_TCP_PORT
from rdsx.machine import InterfaceAddress, Listener
from rdsx.transports.verbs import detection
from rdsx.transports.verbs.devices import Device, list_devices, node_problem
from rdsx.wire.cm_data import PORT_IPV4, PORT_IPV6

__all__ = ["TRANSPORTS", "Diagnosis", "Finding", "Meaning", "diagnose"]

TRANSPORTS = ("loop", "tcp", "verbs", "kernel")
MODULES = ("rds", "rds_tcp", "rds_rdma", "rdma_cm", "rdma_ucm", "ib_uverbs")
RECEIVE_RING_BYTES = 1024 * (48 + 4096)  # rds_rdma's receive ring, which a peer of it matches: net.rds.ib.max_recv_wr


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a finding means for one transport. `remedy`: what to do about it, "" if nothing is to be done.

    `level`: "ok", "note" (it works, and this is worth knowing) or "obstacle" (it does not work).
    """

    transport: str
    level: Literal["ok", "note", "obstacle"]
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `details` are the same facts for programs: what JSON can hold."""

    subject: str
    found: str
    meanings: tuple[Meaning, ...]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found, and what is in the way of each transport."""

    findings: tuple[Finding, ...]

    def obstacles(self, transport: str) -> list[Meaning]:
        """What keeps a transport from working on this machine; empty if it works."""
        meanings = [meaning for finding in self.findings for meaning in finding.meanings]
        return [meaning for meaning in meanings if meaning.transport == transport and meaning.level == "obstacle"]

    def as_json(self) -> dict[str, Any]:
        """The same as what `json.dumps` takes."""
        return {
            "transports": {
                name: {"usable": not self.obstacles(name), "obstacles": [one.text for one in self.obstacles(name)]} for name in TRANSPORTS
            },
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def diagnose(*, port: int = RDS_TCP_PORT, root: Path = Path("/")) -> Diagnosis:
    """Look at this machine. `port`: the TCP port of the nodes; `root`: where its /proc, /sys and /dev are, for tests. Takes up to 0.5 s."""
    modules = machine.loaded_modules(MODULES, root)
    devices = list_devices(root)
    return Diagnosis(
        (
            interpreter(),
            rdma_core(),
            pyverbs(),
            device_finding(devices, root),
            address_finding(machine.interface_addresses(), devices, modules),
            locked_memory(machine.locked_memory_bytes(root)),
            module_finding(modules),
            tcp_listener_finding(port, machine.tcp_listeners(port, root), modules),
            cm_listener_finding(machine.cm_listeners(), bool(devices)),
        )
    )


# -- software


def interpreter() -> Finding:
    # Deferred: this module is imported with the package.
    from rdsx import __version__

    obstacle = detection.build_obstacle()
    found = f"rdsx {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    without = "" if obstacle is None else f", built without verbs ({obstacle.found})"
    return Finding(
        "versions",
        found + without,
        (Meaning("tcp", "ok", "needs nothing else"), of_obstacle(obstacle, "the modules for verbs are there")),
        {"rdsx": __version__, "python": platform.python_version(), "kernel": platform.release(), "verbs_modules": obstacle is None},
    )


def rdma_core() -> Finding:
    versions = {library.partition(".so")[0]: detection.rdma_core_version(library) for library in detection.LIBRARIES}
    found = ", ".join(f"{name} {version or 'absent'}" for name, version in versions.items())
    return Finding("rdma-core", found, (of_obstacle(detection.library_obstacle(), "the libraries can be loaded"),), versions)


def pyverbs() -> Finding:
    obstacle = detection.pyverbs_obstacle()
    version, location = detection.pyverbs_version(), detection.pyverbs_location()
    return Finding(
        "pyverbs",
        f"{version}, in {location}" if obstacle is None else obstacle.found,
        (of_obstacle(obstacle, "its modules can be imported"),),
        {"usable": obstacle is None, "version": version, "location": location},
    )


def of_obstacle(obstacle: detection.Obstacle | None, fine: str) -> Meaning:
    if obstacle is None:
        return Meaning("verbs", "ok", fine)
    return Meaning("verbs", "obstacle", f"needs {obstacle.needed}", obstacle.remedy)


# -- devices and addresses


def device_finding(devices: Sequence[Device], root: Path) -> Finding:
    found = "; ".join(describe(device) for device in devices) or "none"
    obstacle = detection.device_obstacle(devices, root)
    meanings = [of_obstacle(obstacle, "a device can be opened, and has an active port")]
    if obstacle is None:
        problems = [problem for device in devices if device.is_adapter and (problem := node_problem(root, device)) is not None]
        meanings += [Meaning("verbs", "note", problem) for problem in problems]
    meanings += [
        Meaning("verbs", "note", f"{device.name} is {device.kind}: RDS goes over InfiniBand and RoCE only")
        for device in devices
        if not device.is_adapter
    ]
    return Finding("RDMA devices", found, tuple(meanings), {"devices": [as_json(device) for device in devices]})


def describe(device: Device) -> str:
    ports = [f"port {port.number} {port.state.partition(': ')[2] or '?'}, {port.link_layer}, {port.rate}" for port in device.ports]
    return f"{device.name} ({', '.join(ports) or 'no ports'})"


def as_json(device: Device) -> dict[str, Any]:
    ports = [
        {
            "number": port.number,
            "state": port.state,
            "link_layer": port.link_layer,
            "rate": port.rate,
            "gids": [
                {"index": gid.index, "gid": str(gid.value), "address": gid.address, "type": gid.kind, "interface": gid.interface}
                for gid in port.gids
            ],
        }
        for port in device.ports
    ]
    return {"name": device.name, "type": device.kind, "file": f"/{device.node}" if device.node else None, "ports": ports}


def address_finding(addresses: Sequence[InterfaceAddress], devices: Sequence[Device], modules: Sequence[str]) -> Finding:
    where = {one.address: device_of(one, devices) for one in addresses}
    known = "; ".join(f"{address} on {one.name if one else 'no RDMA device'}" for address, one in where.items())
    found = known or "not known: no 'ip' program"
    meanings = [Meaning("tcp", "ok", "a node can have any of them")]
    mapped = [address for address, device in where.items() if device is not None]
    if mapped:
        meanings.append(Meaning("verbs", "ok", f"a node can have {', '.join(mapped)}"))
        if "rds_rdma" in modules:
            meanings.append(Meaning("kernel", "note", f"{', '.join(mapped)}: over RDMA, unless a socket asks for TCP before it binds"))
    elif devices:
        remedy = "put the node's address on the device's network interface: 'ip address add … dev …'"
        meanings.append(Meaning("verbs", "obstacle", "no address of this machine is on an RDMA device", remedy))
    return Finding("addresses", found, tuple(meanings), {"devices": {address: one.name if one else None for address, one in where.items()}})


def device_of(address: InterfaceAddress, devices: Sequence[Device]) -> Device | None:
    """The device an address belongs to: on RoCE its GIDs say so, on InfiniBand the network interface on it."""
    for device in devices:
        if device.is_adapter and address.address in device.addresses:
            return device
    infiniband = [device for device in devices if any(port.link_layer == "InfiniBand" for port in device.ports)]
    return next((device for device in infiniband if address.interface in device.interfaces), None)


def locked_memory(limit: int | None) -> Finding:
    if limit is None:
        return Finding("locked memory", "no limit", (Meaning("verbs", "ok", "any number of peers, any memory"),), {"limit_bytes": None})
    rings = limit // RECEIVE_RING_BYTES
    text = f"enough for the receive rings of {rings} peers (1,024 messages of 4,144 bytes for each), less what the program registers"
    remedy = "'ulimit -l', LimitMEMLOCK= of systemd, or /etc/security/limits.d; CAP_IPC_LOCK has no limit"
    level: Literal["note", "obstacle"] = "note" if rings else "obstacle"
    return Finding("locked memory", f"at most {limit // 1024} KiB", (Meaning("verbs", level, text, remedy),), {"limit_bytes": limit})


# -- the kernel


def module_finding(modules: Sequence[str]) -> Finding:
    return Finding(
        "kernel modules", ", ".join(modules) or "none of RDS and RDMA", tuple(module_meanings(modules)), {"loaded": list(modules)}
    )


def module_meanings(modules: Sequence[str]) -> Iterator[Meaning]:
    if "rds_tcp" in modules or "rds_rdma" in modules:
        names = " and ".join(name for name in ("rds_tcp", "rds_rdma") if name in modules)
        yield Meaning("kernel", "ok", f"{names}: AF_RDS sockets work, for addresses that these serve")
    else:
        yield Meaning("kernel", "obstacle", "this kernel has no RDS transport loaded", "'modprobe rds_tcp', or rds_rdma, as root")
    if "rds_tcp" in modules:
        text = f"the kernel's RDS takes TCP port {RDS_TCP_PORT} of all addresses of this network namespace"
        yield Meaning("tcp", "note", text, "transport='kernel', 'modprobe -r rds_tcp', or another NodeConfig.port on all nodes")
    if "rds_rdma" in modules:
        text = f"the kernel's RDS takes ports {PORT_IPV4} and {PORT_IPV6} of RDMA on all devices"
        yield Meaning("verbs", "note", text, "transport='kernel', or 'modprobe -r rds_rdma'")


def tcp_listener_finding(port: int, listeners: Sequence[Listener], modules: Sequence[str]) -> Finding:
    def name(listener: Listener) -> str:
        is_kernels = "rds_tcp" in modules and port == RDS_TCP_PORT
        return listener.program or ("the kernel's rds_tcp" if is_kernels else "not to be seen by this user")

    subject = f"TCP port {port}"
    details = {"listeners": [dataclasses.asdict(listener) for listener in listeners]}
    if not listeners:
        return Finding(subject, "nobody listens", (Meaning("tcp", "ok", "the port is free"),), details)
    found = "; ".join(f"{listener.address}: {name(listener)}" for listener in listeners)
    everywhere = any(listener.address in ("0.0.0.0", "::") for listener in listeners)
    taken = "every address of this machine" if everywhere else ", ".join(listener.address for listener in listeners)
    remedy = "stop that program, or set NodeConfig.port on all nodes"
    level: Literal["note", "obstacle"] = "obstacle" if everywhere else "note"
    return Finding(subject, found, (Meaning("tcp", level, f"no node can be opened at {taken}", remedy),), details)


def cm_listener_finding(listeners: Sequence[Listener] | None, has_devices: bool) -> Finding:
    subject = f"RDMA ports {PORT_IPV4} and {PORT_IPV6}"
    if listeners is None:
        found = "not known: no 'rdma' program of iproute2" if has_devices else "no RDMA here"
        return Finding(subject, found, (), {"listeners": None})
    ours = [listener for listener in listeners if listener.port in (PORT_IPV4, PORT_IPV6)]
    details = {"listeners": [dataclasses.asdict(listener) for listener in ours]}
    if not ours:
        return Finding(subject, "nobody listens", (Meaning("verbs", "ok", "the ports are free"),), details)
    found = "; ".join(f"{listener.address} {listener.port}: {listener.program or 'not to be seen by this user'}" for listener in ours)
    kernels = any(listener.program == "rds_rdma" for listener in ours)
    remedy = "use transport='kernel', or 'modprobe -r rds_rdma' as root" if kernels else "stop that program"
    return Finding(subject, found, (Meaning("verbs", "obstacle", "no node can listen there", remedy),), details)
