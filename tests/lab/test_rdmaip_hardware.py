"""The hardware layer of moving addresses, where there is hardware of a kind: two ports with soft-RoCE in a guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.readiness import in_full
from lab.verbs_guest import SOFT_ROCE, verbs_command

pytestmark = [pytest.mark.lab, pytest.mark.slow, in_full]

PORTS = (
    "ip link add p0 type veth peer name s0; ip link add p1 type veth peer name s1; "
    "for name in p0 p1 s0 s1; do ip link set $name up; done; "
    "rdma link add rxe0 type rxe netdev p0; rdma link add rxe1 type rxe netdev p1"
)

# Polling is off, so what is reported was told by the devices' events.
PROGRAM = """
import json, subprocess
import trio
from rdsx.rdmaip import hardware_watch

hardware_watch.POLL_S = float("inf")
reported = []

async def main():
    news, heard = trio.open_memory_channel(100)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(hardware_watch.watch_hardware, ["p0", "p1", "lo"], news.send_nowait)
        for command in (None, "ip link set s0 down", "ip link set s0 up", "ip link set p1 down"):
            if command:
                await trio.run_process(command.split())
            with trio.fail_after(60):
                reported.append(sorted((fact.port, fact.active) for fact in await heard.receive()))
        tasks.cancel_scope.cancel()

trio.run(main)
print(json.dumps(reported))
"""


async def test_events_of_devices_are_hints_to_look(series: str, tmp_path: Path) -> None:
    """A port whose link goes, or that is set down, is reported by its device's event, and only that port."""
    async with Lab() as lab:
        guest = await lab.start("H", modules=[*SOFT_ROCE, "veth"], kernel=series)
        await guest.check(PORTS)
        output = await guest.check(verbs_command(guest, tmp_path, "-c", PROGRAM))
    assert json.loads(output.splitlines()[-1]) == [[["p0", True], ["p1", True]], [["p0", False]], [["p0", True]], [["p1", False]]]
