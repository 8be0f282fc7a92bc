"""What scenarios run over. Owns the list: each backend's module, what it needs installed, and which scenarios make sense with it.

A module here is imported only in worker processes, so that an absent package is no error, and one library never slows another.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

__all__ = ["BACKENDS", "Backend", "Guest", "load"]

Guest = Literal["", "tcp", "rdma"]

EVERY_STREAM = ("stream", "stream-single", "ping-pong", "fan-in", "fan-out")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to move messages."""

    name: str
    summary: str
    module: str = ""
    """In this package; "" for the program in C."""
    batch: str = "stream"
    """How the program in C sends many messages."""
    requires: str = ""
    """The module that must be importable."""
    package: str = ""
    """What pip installs it with."""
    scenarios: tuple[str, ...] = EVERY_STREAM
    one_process: bool = False
    buffer_bytes: int = 0
    """Of the sockets, where the library has that; 0: its default."""
    busy_poll_s: float = 0.0
    """How long a receiver reads before it waits, where the library has that."""
    transport: str = ""
    """Of the rdsx nodes; "" for other libraries."""
    node_settings: Mapping[str, int] = field(default_factory=dict)
    """Of their NodeConfig, besides the above."""
    guest: Guest = ""
    """Only in a guest: "tcp", with the kernel's RDS and a network namespace for each side; "rdma", with soft-RoCE."""
    kernel_module: str = ""
    """Loaded while this is measured, and not while others are."""
    tool: str = ""
    """With perftest's programs instead of processes of ours: "poll", or "events"; "frames": "poll", and the frames of kernels."""

    def missing(self) -> str:
        """What to install before it runs; "" if nothing is missing."""
        if self.tool:
            return "" if shutil.which("ib_send_bw") else "no perftest: apt-get install perftest"
        if not self.module and shutil.which("cc") is None:
            return "no C compiler: install gcc"
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return f"pip install {self.package}"
        return ""


def ours(**fields: Any) -> Backend:
    """rdsx itself, with these fields of `Backend`."""
    return Backend(module="rdsx_node", requires="rdsx", package="rdsx", **fields)


BACKENDS = {
    backend.name: backend
    for backend in (
        ours(
            name="rdsx-tcp",
            summary="rdsx, one node in each process",
            transport="tcp",
            scenarios=(*EVERY_STREAM, "all-to-all", "sockets", "idle-sockets", "idle-peers", "rdma-write"),
        ),
        ours(
            name="rdsx-loop",
            summary="rdsx, all sockets on one node of one process",
            transport="loop",
            scenarios=("stream", "stream-single", "ping-pong", "all-to-all", "sockets", "idle-sockets"),
            one_process=True,
        ),
        ours(
            name="rdsx-tcp-4M",
            summary="rdsx with socket buffers of 4 MiB, about what TCP alone lets the others have under way",
            transport="tcp",
            buffer_bytes=4 << 20,
            scenarios=("stream", "stream-single", "fan-in", "fan-out"),
        ),
        ours(
            name="rdsx-tcp-poll",
            summary="rdsx, a receive polls for 100 µs before it waits",
            transport="tcp",
            busy_poll_s=1e-4,
            scenarios=("stream-single", "ping-pong"),
        ),
        ours(
            name="rdsx-kernel",
            summary="the kernel's AF_RDS behind the same calls, over its rds_tcp",
            transport="kernel",
            scenarios=("stream", "stream-single", "ping-pong", "all-to-all"),
            guest="tcp",
        ),
        ours(
            name="rdsx-verbs",
            summary="rdsx over RDMA, socket buffers of 4 MiB, send ring of 8 MiB, receive ring of 16 MiB",
            transport="verbs",
            buffer_bytes=4 << 20,
            node_settings={"send_ring_slots": 2048, "receive_ring_slots": 4096},
            scenarios=("stream", "stream-single", "ping-pong", "rdma-write"),
            guest="rdma",
        ),
        ours(
            name="rdsx-verbs-poll",
            summary="rdsx over RDMA, a receive polls for 10 ms before it waits",
            transport="verbs",
            buffer_bytes=4 << 20,
            busy_poll_s=1e-2,
            scenarios=("stream-single", "ping-pong"),
            guest="rdma",
        ),
        ours(
            name="rdsx-kernel-rdma",
            summary="the kernel's AF_RDS behind the same calls, over its rds_rdma, socket buffers of 4 MiB",
            transport="kernel",
            buffer_bytes=4 << 20,
            scenarios=("stream", "stream-single", "ping-pong", "rdma-write"),
            guest="rdma",
            kernel_module="rds_rdma",
        ),
        Backend(
            name="pyverbs",
            summary="pyverbs' own post and poll, busy polling",
            module="pyverbs_queue",
            requires="pyverbs",
            package="pyverbs",
            scenarios=("stream", "ping-pong"),
            guest="rdma",
        ),
        Backend(
            name="perftest",
            summary="ib_send_bw, ib_write_bw and ib_send_lat, busy polling",
            tool="poll",
            scenarios=("stream", "ping-pong", "rdma-write"),
            guest="rdma",
        ),
        Backend(
            name="perftest-events",
            summary="the same, waiting for completions",
            tool="events",
            scenarios=("stream", "ping-pong"),
            guest="rdma",
        ),
        Backend(
            name="perftest-frames",
            summary="ib_send_bw with the frames of kernels: 48 bytes of header before each 4 KiB",
            tool="frames",
            scenarios=("stream",),
            guest="rdma",
        ),
        Backend(
            name="yardstick",
            summary="a C program, TCP, the same header; small payloads are copied into one buffer",
            scenarios=(*EVERY_STREAM, "idle-peers"),
        ),
        Backend(
            name="yardstick-writev",
            summary="the same, each header and payload a vector of writev",
            batch="vectors",
            scenarios=("stream",),
        ),
        Backend(name="pyzmq", summary="ZeroMQ, blocking calls", module="zeromq", requires="zmq", package="pyzmq"),
        Backend(
            name="uvloop",
            summary="an asyncio protocol on uvloop, length prefix",
            module="uvloop_protocol",
            requires="uvloop",
            package="uvloop",
        ),
        Backend(
            name="trio-streams",
            summary="trio streams, length prefix written by hand",
            module="trio_streams",
            requires="trio",
            package="trio",
        ),
        Backend(name="pynng", summary="nng under trio", module="nng", requires="pynng", package="pynng"),
        Backend(name="grpc", summary="gRPC streaming of bytes, asyncio", module="grpc_streaming", requires="grpc", package="grpcio"),
    )
}


def load(name: str) -> ModuleType:
    """The module of a backend, which has a class `Side`."""
    return importlib.import_module(f"benchmarks.backends.{BACKENDS[name].module}")
