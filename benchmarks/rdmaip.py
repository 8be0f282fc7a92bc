"""`python -m benchmarks rdmaip`: how long RDS is silent while addresses move between ports. Owns the rounds and the table.

Two hosts as network namespaces with two ports each, an agent on both, and a message each millisecond in both directions between their
addresses. What is timed, on one clock for all processes: the cut, the agent's noticing it, the end of the move, and the first message
behind it. Every round ends with all messages of both directions counted. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import statistics
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from benchmarks.tables import console

FAMILIES = {"ipv4": "10.9.0.11", "ipv6": "fd09::11"}
INTERVAL_S = 0.001
FRESH_AFTER = 10  # rounds with the same agents and nodes
DEAD_S = 5.0

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
IFREQ = struct.Struct("16sH14x")

# What is promised, in ms of silence; for the dead agent, after its restart.
TARGETS_MS = {"planned move": 60.0, "cable cut": 100.0, "other port's cable cut": 150.0, "cable cut, agent dead for 5 s": 500.0}

Samples = dict[str, list[float]]


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Of each case; with a dead agent a tenth of them.")
@click.option("--family", "families", type=click.Choice(list(FAMILIES)), multiple=True, help="Only these; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print samples in ms as JSON.")
def command(rounds: int, families: tuple[str, ...], as_json: bool) -> None:
    """Measure how long RDS is silent while addresses move between ports."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from rdmaip.topology import obstacle

    why = obstacle()
    if why is not None:
        raise click.ClickException(f"network namespaces: {why}")
    found = {f"{case}, {family}": samples for family in families or FAMILIES for case, samples in measure(family, rounds).items()}
    if as_json:
        click.echo(json.dumps(found))
    else:
        console().print(table(found))


def table(found: dict[str, Samples]) -> Table:
    shown = Table(title="milliseconds: median (worst)")
    names = list(dict.fromkeys(name for samples in found.values() for name in samples))
    for heading in ("", "rounds", *names, "promised silence"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for case, samples in found.items():
        cells = [f"{statistics.median(samples[name]):.2f} ({max(samples[name]):.2f})" if name in samples else "" for name in names]
        shown.add_row(case, str(len(next(iter(samples.values())))), *cells, f"≤ {TARGETS_MS[case.rpartition(', ')[0]]:g}")
    return shown


def measure(family: str, rounds: int) -> dict[str, Samples]:
    """Samples in ms, by case and what they are of."""
    few = max(1, rounds // 10)
    return {
        "planned move": play(family, rounds, planned_move),
        "cable cut": play(family, rounds, cable_cut),
        "other port's cable cut": play(family, rounds, other_cable_cut),
        "cable cut, agent dead for 5 s": play(family, few, dead_agent),
    }


def play(family: str, rounds: int, case: Callable[[Any, str], dict[str, float]]) -> Samples:
    samples: defaultdict[str, list[float]] = defaultdict(list)
    for first in range(0, rounds, FRESH_AFTER):
        with traffic(family) as cluster:
            for _ in range(min(FRESH_AFTER, rounds - first)):
                for name, value_s in case(cluster, FAMILIES[family]).items():
                    samples[name].append(value_s * 1000)
            cluster.finish()
    return dict(samples)


@contextlib.contextmanager
def traffic(family: str) -> Iterator[Any]:
    """Two hosts with an address each, at home on the first port, with agents that fail back soon."""
    from rdmaip.cluster import open_cluster
    from rdmaip.zygote import Zygote

    with Zygote() as zygote, open_cluster(zygote, ["h1", "h2"], families=[family], at=["p0"]) as cluster:
        cluster.start_agents(hold_max_s=0.3)
        cluster.start_traffic(INTERVAL_S)
        yield cluster


def planned_move(cluster: Any, address: str) -> dict[str, float]:
    cluster.ask_all("reset gaps")
    cluster.command("h1", "Move", ip=address, port="p1")
    cluster.await_progress(20)
    silence_s = longest_gap(cluster)["gap_s"]
    cluster.command("h1", "Failback", ip=address)
    cluster.await_progress(20)
    return {"silence": silence_s}


def cable_cut(cluster: Any, address: str) -> dict[str, float]:
    cluster.ask_all("reset gaps")
    cut_s = cut(cluster, "p0")
    event_s = cluster.agents["h1"].wait_for(lambda message: message["event"] == "PortDown")["at_s"]
    moved_s = cluster.wait_moved("h1", address, to="p1")[0]["at_s"]
    cluster.await_progress(20)
    gap = longest_gap(cluster)
    come_home(cluster, address)
    return {
        "cut to event": event_s - cut_s,
        "event to moved": moved_s - event_s,
        "moved to first message": max(0.0, gap["gap_at_s"] - moved_s),
        "silence": gap["gap_s"],
    }


def other_cable_cut(cluster: Any, address: str) -> dict[str, float]:
    """The port that fails has no address."""
    cluster.ask_all("reset gaps")
    cut(cluster, "p1")
    cluster.agents["h1"].wait_for(lambda message: message["event"] == "PortDown")
    cluster.await_progress(20)
    silence_s = longest_gap(cluster)["gap_s"]
    cluster.hosts["h1"].restore("p1")
    cluster.agents["h1"].wait_for(lambda message: message["event"] == "PortUp")
    return {"silence": silence_s}


def dead_agent(cluster: Any, address: str) -> dict[str, float]:
    cluster.agents["h1"].kill()
    cluster.ask_all("reset gaps")
    cut(cluster, "p0")
    time.sleep(DEAD_S)
    started_s = time.monotonic()
    agent = cluster.start_agent("h1", wait=False, hold_max_s=0.3)
    moved_s = agent.wait_for(lambda message: message["event"] == "Moved" and message["to_port"] == "p1")["at_s"]
    cluster.await_progress(20)
    gap = longest_gap(cluster)
    come_home(cluster, address)
    return {"restart to moved": moved_s - started_s, "moved to first message": max(0.0, gap["gap_at_s"] - moved_s)}


def longest_gap(cluster: Any) -> dict[str, float]:
    """Of both directions."""
    reports = cluster.ask_all("report").values()
    return max((each for report in reports for each in report["received"].values()), key=lambda each: each["gap_s"])


def come_home(cluster: Any, address: str) -> None:
    cluster.hosts["h1"].restore("p0")
    cluster.wait_moved("h1", address, to="p0")
    cluster.await_progress(20)


def cut(cluster: Any, port: str) -> float:
    """Take the carrier from a port of h1, by one system call; returns the time just before it."""
    end = f"h1-{port}".encode()
    with cluster.topology.switch.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = IFREQ.unpack(fcntl.ioctl(sock, SIOCGIFFLAGS, IFREQ.pack(end, 0)))[1]
        now_s = time.monotonic()
        fcntl.ioctl(sock, SIOCSIFFLAGS, IFREQ.pack(end, flags & ~IFF_UP))
    return now_s
