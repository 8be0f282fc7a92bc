"""The sysctl profile: judged by effective values, written only where wrong, restored exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rdmaip.topology import Topology
from rdsx.rdmaip.profile import ADVICE, SETTINGS, Profile, inspect

RIGHT = {
    "net/ipv4/conf/eth0.7/arp_ignore": 1,
    "net/ipv4/conf/eth0.7/arp_announce": 2,
    "net/ipv4/conf/eth0.7/rp_filter": 2,
    "net/ipv4/conf/eth0.7/promote_secondaries": 1,
    "net/ipv4/conf/eth0.7/ignore_routes_with_linkdown": 1,
    "net/ipv6/conf/eth0.7/ignore_routes_with_linkdown": 1,
    "net/ipv6/conf/eth0.7/keep_addr_on_down": 1,
    "net/ipv4/neigh/eth0.7/locktime": 0,
}
WRONG = dict.fromkeys(RIGHT, 0) | {"net/ipv4/conf/eth0.7/rp_filter": 1, "net/ipv4/neigh/eth0.7/locktime": 100}


def write(root: Path, values: dict[str, int]) -> None:
    for name, value in values.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def values(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): int(path.read_text()) for path in root.rglob("*") if path.is_file()}


def test_every_wrong_setting_is_found_set_and_restored(tmp_path: Path) -> None:
    write(tmp_path, WRONG)
    assert {finding.path: finding.wanted for finding in inspect(["eth0.7"], tmp_path)} == RIGHT
    profile = Profile(tmp_path)
    done, left = profile.apply("eth0.7")
    assert (len(done), left) == (len(SETTINGS), [])
    assert values(tmp_path) == RIGHT
    assert inspect(["eth0.7"], tmp_path) == []
    assert profile.changed == WRONG
    assert profile.restore() == []
    assert values(tmp_path) == WRONG


def test_right_settings_are_not_touched(tmp_path: Path) -> None:
    write(tmp_path, RIGHT | {"net/ipv4/conf/eth0.7/rp_filter": 0})
    profile = Profile(tmp_path)
    assert profile.apply("eth0.7") == ([], [])
    assert profile.changed == {}


def test_a_second_apply_does_not_forget_the_first_value(tmp_path: Path) -> None:
    write(tmp_path, WRONG)
    profile = Profile(tmp_path)
    profile.apply("eth0.7")
    write(tmp_path, {"net/ipv4/conf/eth0.7/arp_ignore": 0})
    profile.apply("eth0.7")
    assert profile.restore() == []
    assert values(tmp_path) == WRONG


def test_what_all_ports_have_counts(tmp_path: Path) -> None:
    """The kernel takes the larger value: "all" can make a port's right, and can make it wrong where the port cannot help."""
    write(
        tmp_path, RIGHT | {"net/ipv4/conf/eth0.7/arp_announce": 0, "net/ipv4/conf/all/arp_announce": 2, "net/ipv4/conf/all/arp_ignore": 2}
    )
    (finding,) = inspect(["eth0.7"], tmp_path)
    assert (finding.path, finding.found, finding.wanted) == ("net/ipv4/conf/all/arp_ignore", 2, 1)
    profile = Profile(tmp_path)
    assert profile.apply("eth0.7") == ([], [finding])  # it is every port's: not ours to change
    assert values(tmp_path)["net/ipv4/conf/all/arp_ignore"] == 2


def test_findings_say_what_to_run(tmp_path: Path) -> None:
    write(tmp_path, RIGHT | {"net/ipv4/conf/eth0.7/arp_ignore": 0})
    (finding,) = inspect(["eth0.7"], tmp_path)
    assert str(finding) == (
        "net/ipv4/conf/eth0.7/arp_ignore is 0, must be 1: else any port answers for any address, and peers send to the wrong one; "
        "run: sysctl -w net/ipv4/conf/eth0.7/arp_ignore=1"
    )


def test_advice_is_given_and_never_written(tmp_path: Path) -> None:
    write(tmp_path, RIGHT | {setting.path.format(port="eth0.7"): 1 for setting in ADVICE})
    assert len(inspect(["eth0.7"], tmp_path)) == len(ADVICE) == 2
    assert Profile(tmp_path).apply("eth0.7") == ([], [])


@pytest.mark.parametrize("content", ["", "many\n"])
def test_settings_that_cannot_be_read_are_left_alone(tmp_path: Path, content: str) -> None:
    write(tmp_path, RIGHT)
    (tmp_path / "net/ipv4/conf/eth0.7/arp_ignore").write_text(content)
    assert inspect(["eth0.7"], tmp_path) == []


def test_what_cannot_be_restored_is_said(tmp_path: Path) -> None:
    write(tmp_path, WRONG)
    profile = Profile(tmp_path)
    profile.apply("eth0.7")
    lost = tmp_path / "net/ipv4/neigh/eth0.7/locktime"
    lost.unlink()
    lost.parent.rmdir()
    assert profile.restore() == ["net/ipv4/neigh/eth0.7/locktime"]


def test_the_kernel_has_every_setting(make_topology: Callable[..., Topology]) -> None:
    host = make_topology("h1").hosts["h1"]
    with host.inside():
        for setting in SETTINGS + ADVICE:
            assert (Path("/proc/sys") / setting.path.format(port="p0")).exists()
        profile = Profile()
        before = inspect(["p0"])
        done, left = profile.apply("p0")
        assert before == done
        assert len(done) > 4
        assert left == inspect(["p0"]) == []
        assert profile.restore() == []
        assert inspect(["p0"]) == before
