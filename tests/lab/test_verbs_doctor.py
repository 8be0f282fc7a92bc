"""`rdsx doctor` where there is something to find: in a guest with soft-RoCE, with and without the kernel's own RDS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.lab import Lab
from lab.readiness import in_full
from lab.verbs_guest import SOFT_ROCE, add_soft_roce, verbs_command

pytestmark = [pytest.mark.lab, pytest.mark.slow, in_full]

TEXTS = ("rxe0 (port 1 ACTIVE, Ethernet, ", "10.77.0.2 on rxe0", "127.0.0.1 on no RDMA device", "a node can have 10.77.0.2, fd77::2")


async def test_doctor(series: str, tmp_path: Path) -> None:
    """Device, GIDs, addresses, modules and listeners are found; the kernel's RDS is in the way of ours, until it is unloaded."""
    async with Lab() as lab:
        guest = await lab.start("D", modules=[*SOFT_ROCE, "rds_tcp", "rds_rdma"], kernel=series)
        await add_soft_roce(guest)
        command = verbs_command(guest, tmp_path, "-m", "rdsx.cli", "doctor")
        text = await guest.check(f"COLUMNS=300 {command}")
        assert [part for part in TEXTS if part not in text] == []

        found = json.loads(await guest.check(f"{command} --json"))
        findings = {finding["subject"]: finding for finding in found["findings"]}
        (device,) = findings["RDMA devices"]["details"]["devices"]
        gids = {gid["address"]: (gid["type"], gid["interface"]) for gid in device["ports"][0]["gids"]}
        assert gids["10.77.0.2"] == gids["fd77::2"] == ("RoCE v2", "eth0")
        assert findings["addresses"]["details"]["devices"] == {"127.0.0.1": None, "::1": None, "10.77.0.2": "rxe0", "fd77::2": "rxe0"}
        assert findings["kernel modules"]["details"]["loaded"] == ["rds", "rds_tcp", "rds_rdma", "rdma_cm", "rdma_ucm", "ib_uverbs"]
        assert findings["RDMA ports 18634 and 16385"]["details"]["listeners"] == [
            {"address": "::", "port": 16385, "program": "rds_rdma"},
            {"address": "0.0.0.0", "port": 18634, "program": "rds_rdma"},
        ]
        assert found["transports"]["kernel"] == {"usable": True, "obstacles": []}
        assert found["transports"]["tcp"] == {"usable": False, "obstacles": ["no node can be opened at every address of this machine"]}
        assert "no node can listen there" in found["transports"]["verbs"]["obstacles"]

        await guest.check("modprobe -r rds_rdma rds_tcp")
        found = json.loads(await guest.check(f"{command} --json"))
        assert found["transports"]["tcp"] == {"usable": True, "obstacles": []}
        assert obstacles_of_the_machine(found) == []
        await guest.check("ip link set eth0 down")
        found = json.loads(await guest.check(f"{command} --json"))
        assert obstacles_of_the_machine(found) == ["needs an active port", "no address of this machine is on an RDMA device"]


def obstacles_of_the_machine(found: dict[str, Any]) -> list[str]:
    """Without what this build of rdsx may lack."""
    return [text for text in found["transports"]["verbs"]["obstacles"] if "a build with" not in text]
