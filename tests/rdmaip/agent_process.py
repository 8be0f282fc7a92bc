"""The agent as a process of a test: its events go to the test, and the test's commands to it.

`serve` is what the zygote runs. `die_at` is for tests of sudden death: the process kills itself as the kernel would, before or after the
so-and-so-many-th thing that it asks the kernel to change, or announces.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import logging
import os
import signal
import socket
import struct
import time
from typing import Any

import trio

import rdsx.rdmaip
from namespaces import libc
from rdmaip.zygote import receive_json, send_json
from rdsx.netlink.sockets import Commands
from rdsx.rdmaip.agent import Agent
from rdsx.rdmaip.announcer import Announcer
from rdsx.rdmaip.capabilities import NEEDED
from rdsx.rdmaip.config import parse_config

__all__ = ["serve"]

CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
CAPABILITY_DATA = struct.Struct("=6I")


def serve(channel: socket.socket, config: str, die_at: int | None = None) -> None:
    logging.basicConfig(level=logging.INFO if os.environ.get("RDSX_LOG") else logging.CRITICAL, format="agent %(message)s")
    if die_at is not None:
        die_at_step(die_at)
    trio.run(run, channel, config)


async def run(channel: socket.socket, text: str) -> None:
    channel.setblocking(False)
    with Agent(parse_config(text)) as agent:
        events = agent.subscribe(100_000)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(end_at_sigterm, tasks.cancel_scope)
            await tasks.start(agent.run)
            send_waiting(channel, events)
            send_json(channel, {"event": "started"})
            tasks.start_soon(obey, channel, agent)
            async for event in events:
                send_json(channel, plain(event))
        send_waiting(channel, events)  # what `on_exit` did


def send_waiting(channel: socket.socket, events: trio.MemoryReceiveChannel[rdsx.rdmaip.Event]) -> None:
    with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            send_json(channel, plain(events.receive_nowait()))


async def end_at_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def obey(channel: socket.socket, agent: Agent) -> None:
    """Commands: {"command": name of a class in rdsx.rdmaip, and its fields}, {"reconfigure": TOML}, or {"drop": capability}."""
    while True:
        await trio.lowlevel.wait_readable(channel)
        message = receive_json(channel)
        if message is None:
            return
        if "reconfigure" in message:
            agent.reconfigure(parse_config(message["reconfigure"]))
        elif "drop" in message:
            drop_capability(message["drop"])
        else:
            agent.command(getattr(rdsx.rdmaip, message.pop("command"))(**message))
        send_json(channel, {"event": "obeyed"})


def plain(event: Any) -> dict[str, Any]:
    """An event as JSON has it: its kind, and its fields; enums by their values, and times on CLOCK_MONOTONIC, which all processes share."""
    fields = {field.name: as_json(getattr(event, field.name)) for field in dataclasses.fields(event)}
    return {"event": type(event).__name__} | fields | {"at_s": event.at_s - trio.current_time() + time.monotonic()}


def as_json(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def drop_capability(name: str) -> None:
    """Give a capability up for good, as a container's manager may take it."""
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(CAPABILITY_DATA.size)
    check(libc.capget(header, data))
    number, _ = NEEDED[name]
    words = list(CAPABILITY_DATA.unpack(data.raw))
    words[:3] = [word & ~(1 << number) for word in words[:3]]  # effective, permitted, inheritable; the first 32 of them
    check(libc.capset(header, CAPABILITY_DATA.pack(*words)))


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def die_at_step(step: int) -> None:
    """Steps 0, 2, 4, … come before a change, 1, 3, 5, … after it."""
    left = step

    def tick() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    execute, announce = Commands.execute, Announcer.announce

    def execute_or_die(self: Commands, request: bytes) -> None:
        tick()
        execute(self, request)
        tick()

    def announce_or_die(self: Announcer, *arguments: Any) -> None:
        tick()
        announce(self, *arguments)
        tick()

    Commands.execute = execute_or_die  # type: ignore[method-assign]
    Announcer.announce = announce_or_die  # type: ignore[method-assign]
