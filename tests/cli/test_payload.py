"""Which files the demo takes, and how they are dealt."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rdsx.cli.payload import FILE_COST_BYTES, deal_files, find_files
from rdsx.cli.running import CliError

SOCKETS = 8


def test_all_files_below_the_directory_with_their_hashes(source: Path) -> None:
    files = find_files(source, 1 << 20)
    assert {file.path for file in files} == {os.fspath(path) for path in source.rglob("file*")}
    for file in files:
        content = Path(file.path).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_files_that_do_not_fit_are_left_out(source: Path) -> None:
    files = find_files(source, 10_000)
    assert 0 < sum(file.cost for file in files) <= 10_000
    assert max(file.size for file in files) <= 4_096


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"x")
    assert [Path(file.path).name for file in find_files(tmp_path, 1 << 20)] == ["file"]


def test_by_default_the_standard_library() -> None:
    files = find_files(None, 1 << 20)
    assert all(file.path.endswith(".py") and "site-packages" not in file.path for file in files)
    assert sum(file.size for file in files) > 1 << 19


def test_a_directory_without_files_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="holds no files"):
        find_files(tmp_path, 1 << 20)


def test_too_small_a_budget_says_how_much_would_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    with pytest.raises(CliError) as caught:
        find_files(tmp_path, 5_000)
    enough = int(caught.value.message.split("--bytes ")[-1].split()[0])
    assert [file.size for file in find_files(tmp_path, enough // 2)] == [10_000]


def test_the_deal_uses_the_budget_and_depends_on_the_seed_only(source: Path) -> None:
    files = find_files(source, 1 << 20)
    deal = deal_files(files, SOCKETS, 10 << 20, "1")
    dealt = [index for row in deal.flows for flow in row for index in flow]
    assert sum(files[index].cost for index in dealt) > (10 << 20) - min(file.cost for file in files)
    assert sum(files[index].size for index in dealt) == deal.payload_bytes
    assert len(dealt) == deal.transfers
    assert set(dealt) == set(range(len(files)))
    assert deal == deal_files(files, SOCKETS, 10 << 20, "1")
    assert deal != deal_files(files, SOCKETS, 10 << 20, "2")


def test_bulk_flows_get_about_half(source: Path) -> None:
    files = find_files(source, 1 << 20)
    deal = deal_files(files, SOCKETS, 64 << 20, "1")
    bulk = sum(files[index].cost for i in range(SOCKETS) for index in deal.flows[i][i])
    assert 0.4 < bulk / (64 << 20) < 0.6


def test_empty_files_cost_something_so_that_the_deal_ends(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    deal = deal_files(find_files(tmp_path, 1 << 20), SOCKETS, 1 << 20, "1")
    assert deal.transfers == (1 << 20) // FILE_COST_BYTES
