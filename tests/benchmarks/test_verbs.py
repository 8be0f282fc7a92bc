"""rdsx over RDMA is measured beside perftest, in a guest, and what perftest prints is read; no test here looks at a time."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.backends import BACKENDS
from benchmarks.pair import BenchmarkError
from benchmarks.perftest import frames_of, parse_bandwidth, parse_latency
from benchmarks.results import Measurement
from benchmarks.verbs import MEASURED, run_over_rdma
from lab.readiness import in_full, require_host, require_kernel
from lab.verbs_guest import PyverbsAbsentError

# As the programs of perftest 4.5 print them.
BANDWIDTH = """\
                    Send BW Test
 Dual-port       : OFF		Device         : rxe0
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 {size}          {count}            38.75              {average}  		   {rate}
---------------------------------------------------------------------------------------
"""
LATENCY = """\
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% [usec]
 8       2000          13.09          5996.72      16.50  	       20.25     	1794.59		4122.65 		5988.45
"""


def test_bandwidth_is_read_where_it_has_more_digits() -> None:
    assert parse_bandwidth(BANDWIDTH.format(size=8, count=20000, average=0.15, rate="0.020022")) == pytest.approx(20022)
    assert parse_bandwidth(BANDWIDTH.format(size=65536, count=400, average="20.50", rate="0.000314")) == pytest.approx(20.5 * 16)


def test_latencies_are_of_round_trips() -> None:
    assert parse_latency(LATENCY) == (33.0, 8245.3, 40.5)


@pytest.mark.parametrize("text", ["", "Couldn't connect to 10.78.0.2:20000", LATENCY])
def test_other_text_is_an_error(text: str) -> None:
    with pytest.raises(BenchmarkError, match="no row of 5 figures"):
        parse_bandwidth(text)


def test_frames_are_those_of_rds() -> None:
    assert [frames_of(size) for size in (8, 4096, 4097, 1 << 20)] == [(56, 1), (4144, 1), (4144, 2), (4144, 256)]


@in_full
@pytest.mark.slow
async def test_in_a_guest() -> None:
    require_host()
    require_kernel("6.1")
    if (missing := BACKENDS["perftest"].missing()) and os.environ.get("CI") != "true":
        pytest.skip(missing)
    options = ["--scenario=ping-pong", "--rounds=1", "--size=8", "--messages=20", "--baseline=perftest"]
    try:
        text = await run_over_rdma("6.1", [*options, *(f"--backend={name}" for name in MEASURED)])
    except PyverbsAbsentError as error:
        pytest.skip(str(error))
    results = json.loads(text)
    assert (results["skipped"], results["failures"]) == ({}, [])
    measured = [Measurement(**each) for each in results["measurements"]]
    expected = [name for name in MEASURED if "ping-pong" in BACKENDS[name].scenarios]
    assert [(each.backend, each.messages) for each in measured] == [(name, 20) for name in expected]
