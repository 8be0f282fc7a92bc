"""Metrics as Prometheus reads them, over HTTP, while the agent goes on."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

import rdsx.rdmaip
from rdmaipkit import FakeControlled, FakeHost, config_of
from rdsx.cli.group import main
from rdsx.rdmaip.facts import Drain, Move
from rdsx.rdmaip.metrics import open_metrics

GUARD_S = 20


async def read(port: int) -> dict[tuple[str, ...], float]:
    """All samples: name, and values of labels in the order of their names."""

    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=GUARD_S) as answer:
            return str(answer.read().decode())

    text = await trio.to_thread.run_sync(fetch)
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_what_is_and_what_happened() -> None:
    controlled = FakeControlled(FakeHost(config_of(2, 2)))
    with trio.fail_after(GUARD_S):
        async with open_metrics(controlled, "127.0.0.1", 0) as port:
            await trio.testing.wait_all_tasks_blocked()  # the events are listened to
            found = await read(port)
            assert found["rdsx_rdmaip_port_layer", "carrier", "p0"] == 1
            assert found["rdsx_rdmaip_port_usable", "p0"] == found["rdsx_rdmaip_port_settled", "p0"] == 1
            assert found["rdsx_rdmaip_address", "p0", "10.9.0.1", "p0", "home"] == 1
            assert found["rdsx_rdmaip_parked_addresses",] == found["rdsx_rdmaip_crippled",] == 0
            assert found["rdsx_rdmaip_actions_total", "Announce", "done"] == 2
            assert not [name for name in found if name[0] == "rdsx_rdmaip_moves_total"]

            controlled.command(Move("10.9.0.1", "p1"))
            controlled.command(Drain("p1"))
            controlled.command(Drain("p0"))
            await trio.testing.wait_all_tasks_blocked()
            found = await read(port)
            assert found["rdsx_rdmaip_port_usable", "p1"] == found["rdsx_rdmaip_port_layer", "enabled", "p1"] == 0
            assert found["rdsx_rdmaip_moves_total", "operator"] == 1
            assert found["rdsx_rdmaip_moves_total", "drained"] == 2
            assert found["rdsx_rdmaip_parked_addresses",] == found["rdsx_rdmaip_parkings_total",] == 2
            assert found["rdsx_rdmaip_port_downs_total", "p1"] == 0  # a drain is no failure


async def test_a_port_that_is_taken() -> None:
    controlled = FakeControlled(FakeHost(config_of(2, 1)))
    with trio.fail_after(GUARD_S):
        async with open_metrics(controlled, "127.0.0.1", 0) as port:
            with pytest.raises(OSError, match="in use"):
                async with open_metrics(controlled, "127.0.0.1", port):
                    pass


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and missing: the error names it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "rdsx.rdmaip.metrics")
    monkeypatch.delattr(rdsx.rdmaip, "metrics")
    path = tmp_path / "rdmaip.toml"
    path.write_text('[[group]]\nports = ["nosuch0"]\naddress = [{ ip = "10.99.9.9/32", home = "nosuch0" }]')
    result = CliRunner().invoke(main, ["rdmaip", "run", str(path), "--dry-run", "--metrics", "127.0.0.1:0"])
    assert result.exit_code == 1
    assert "--metrics needs prometheus-client. Run: python -m pip install 'rdsx[metrics]'" in result.output


@pytest.mark.parametrize("text", ["127.0.0.1", ":9474", "host:port", "127.0.0.1:70000"])
def test_an_address_that_is_none(text: str) -> None:
    result = CliRunner().invoke(main, ["rdmaip", "run", "/dev/null", "--metrics", text])
    assert result.exit_code == 1 or "is not HOST:PORT" in result.output
