"""Hosts whose ports fail, under traffic: what must hold of agents, addresses and messages. In network namespaces.

Every scenario ends with the counts and hashes of every pair of addresses compared at both ends: nothing lost, nothing twice, in order. What
is waited for is an event or a deadline of the protocol; times are compared only with generous guards. `python -m benchmarks rdmaip` has
the figures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdmaip.cluster import HOLD_S, Cluster, config_text
from rdmaip.topology import Host, add_port

ALL = ("h1", "h2", "h3", "h4")
BOTH = ("h1", "h2")
SILENCE_S = 2.5  # generous, for busy machines: what it must catch is a neighbour that is asked in vain for 3 s, or never asked anew
OTHER = {"p0": "p1", "p1": "p0"}
KILLS = int(os.environ.get("RDSX_KILLS", "24"))


def eventually(what: Callable[[], Any], expected: Any, guard_s: float = 10.0) -> None:
    """For what has no event of its own, such as the kernel's state after somebody else's change."""
    end_s = time.monotonic() + guard_s
    while (found := what()) != expected:
        assert time.monotonic() < end_s, (found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("families", [("ipv4",), ("ipv6",), ("ipv4", "ipv6")], ids="-".join)
def test_each_port_is_cut_once(make_cluster: Callable[..., Cluster], families: tuple[str, ...]) -> None:
    """N1, N7: addresses move, silence is short, and after the hold they are home."""
    names = ALL if families == ("ipv4",) else BOTH
    cluster = make_cluster(*names, families=families)
    cluster.start_agents()
    cluster.start_traffic()
    for port, other in OTHER.items():
        for host in names:
            cluster.ask_all("reset gaps")
            cluster.hosts[host].cut(port)
            moves = cluster.wait_moved(host, *cluster.home(host, port), to=other)
            assert {move["reason"] for move in moves} == {"carrier"}
            cluster.await_progress()
            assert cluster.hosts[host].addresses()[port] == set()
            cut_at_s = time.monotonic()
            cluster.hosts[host].restore(port)
            cluster.wait_moved(host, *cluster.home(host, port), to=port)
            assert time.monotonic() - cut_at_s >= HOLD_S
            cluster.await_progress()
            gap_s, pair = cluster.longest_gap_s()
            assert gap_s < SILENCE_S, pair
            assert cluster.hosts[host].addresses() == cluster.placed_at_home(host)
    cluster.finish()


def test_addresses_are_usable_at_once(make_cluster: Callable[..., Cluster]) -> None:
    """N7: while its other copy is still there, an IPv6 address is never tentative, and never found to be a duplicate."""
    cluster = make_cluster("h1", families=("ipv6",))
    cluster.start_agents()
    for index in range(20):
        to = "p1" if index % 2 == 0 else "p0"
        cluster.command("h1", "Move", ip="fd09::11", port=to)
        shown = cluster.hosts["h1"].ip_output(f"-6 -o address show dev {to} to fd09::11")
        assert "fd09::11" in shown
        assert "tentative" not in shown
        assert "dadfailed" not in shown


@pytest.mark.slow
def test_both_ports_of_a_host_are_cut(make_cluster: Callable[..., Cluster]) -> None:
    """N2: its addresses are parked, the others do not notice, and what was queued arrives after its return."""
    cluster = make_cluster("h1", "h2", "h3")
    cluster.start_agents()
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    host.cut("p0", "p1")
    parked = {"10.9.0.11", "10.9.0.12"}
    for _ in range(2):
        parked.discard(cluster.agents["h1"].wait_for(lambda message: message["event"] == "Parked")["ip"])
    assert not parked
    others = {pair for host in ("h2", "h3") for pair in cluster.ask_all("report")[host]["received"] if "10.9.0.1" not in pair}
    assert len(others) == 8
    before = counts(cluster, others)
    eventually(lambda: all(counts(cluster, others)[pair] > before[pair] + 20 for pair in others), True)
    host.restore("p1")
    back = set()
    while len(back) < 2:
        back.add(cluster.agents["h1"].wait_for(lambda message: message["event"] == "Unparked")["ip"])
    host.restore("p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p0")
    assert host.addresses() == cluster.placed_at_home("h1")
    cluster.await_progress()
    cluster.finish()


def counts(cluster: Cluster, pairs: set[str]) -> dict[str, int]:
    return {
        pair: each["count"] for report in cluster.ask_all("report").values() for pair, each in report["received"].items() if pair in pairs
    }


@pytest.mark.slow
def test_a_port_flaps(make_cluster: Callable[..., Cluster]) -> None:
    """N3: however often it comes back, its address stays away until the port has kept still, for twice as long after each failure."""
    cluster = make_cluster(*BOTH)
    cluster.start_agents(hold_max_s=1.2)
    cluster.start_traffic()
    agent = cluster.agents["h1"]
    flaps = 8
    holds = []
    for _ in range(flaps):
        cluster.hosts["h1"].cut("p0")
        agent.wait_for(lambda message: message["event"] == "PortDown")
        cluster.hosts["h1"].restore("p0")
        holds.append(agent.wait_for(lambda message: message["event"] == "PortUp")["hold_s"])
    assert holds == [0.3, 0.6] + [1.2] * (flaps - 2)
    settled_at_s = agent.wait_for(lambda message: message["event"] == "Settled")["at_s"]
    (home,) = cluster.wait_moved("h1", "10.9.0.11", to="p0")
    assert home["reason"] == "failback"
    assert home["at_s"] >= settled_at_s
    cluster.finish()


def test_one_port_after_the_other(make_cluster: Callable[..., Cluster]) -> None:
    """N4: guests go on to the next port, and with the last one; who is alone with a port takes everybody."""
    cluster = make_cluster(*BOTH)
    cluster.start_agents(failback_hold_s=3600)
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    everybody = {"10.9.0.11", "10.9.0.12"}
    host.cut("p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p1")
    cluster.await_progress()
    assert host.addresses() == {"p0": set(), "p1": everybody}
    host.cut("p1")
    cluster.agents["h1"].wait_for(lambda message: message["event"] == "Parked")
    host.restore("p0")
    cluster.wait_moved("h1", "10.9.0.11", "10.9.0.12", to="p0")
    cluster.await_progress()
    assert host.addresses() == {"p0": everybody, "p1": set()}
    cluster.finish()


@pytest.mark.slow
def test_all_hosts_fail_back_at_the_same_instant(make_cluster: Callable[..., Cluster]) -> None:
    """N5: with a common period, hosts whose ports came back at different times move their addresses home together."""
    cluster = make_cluster(*ALL)
    cluster.start_agents(failback_sync_s=1)
    cluster.start_traffic()
    for host in ALL:
        cluster.hosts[host].cut("p0")
        cluster.wait_moved(host, *cluster.home(host, "p0"), to="p1")
    for host in ALL:
        cluster.hosts[host].restore("p0")
        cluster.agents[host].wait_for(lambda message: message["event"] == "PortUp")
    at_s = [cluster.wait_moved(host, *cluster.home(host, "p0"), to="p0")[0]["at_s"] for host in ALL]
    # One clock, so one instant; those whose hold ended after it take the next.
    instants = {round(each - min(at_s)) for each in at_s}
    assert len(instants) <= 2, at_s
    assert all(abs(each - min(at_s) - round(each - min(at_s))) < 0.2 for each in at_s), at_s
    cluster.await_progress()
    cluster.finish()


@pytest.mark.slow
def test_an_agent_is_killed_anywhere(make_cluster: Callable[..., Cluster]) -> None:
    """N6: before or after any single thing that it does; the next one finds out from the kernel alone. RDSX_KILLS: how many kills."""
    cluster = make_cluster(*BOTH)
    cluster.start_agent("h2")
    cluster.start_agent("h1", failback_hold_s=0).kill()
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    died = 0
    for kill in range(KILLS):
        # Odd rounds fail over, even ones fail back; each time the agent gets one step further than the last time.
        (host.cut if kill % 2 == 0 else host.restore)("p0")
        where = {"p0": set(), "p1": {"10.9.0.11", "10.9.0.12"}} if kill % 2 == 0 else cluster.placed_at_home("h1")
        doomed = cluster.start_agent("h1", wait=False, failback_hold_s=0, die_at=kill // 2 % 20)
        doomed.wait()
        died += 1
        copies = [ip for addresses in host.addresses().values() for ip in addresses]
        assert {"10.9.0.11", "10.9.0.12"} <= set(copies), f"step {kill // 2 % 20}: an address is nowhere"
        assert len(copies) <= 3, f"step {kill // 2 % 20}: {copies}"
        heir = cluster.start_agent("h1", failback_hold_s=0)
        eventually(host.addresses, where)
        rules = host.ip_output("rule show")
        assert rules.count("from 10.9.0.11 ") == rules.count("from 10.9.0.12 ") == 1, rules
        cluster.await_progress(1)
        heir.kill()
    assert died == KILLS
    cluster.start_agent("h1", failback_hold_s=0)
    cluster.finish()


def test_an_unmanaged_address_shares_the_dead_port(make_cluster: Callable[..., Cluster]) -> None:
    """N8: its subnet's route stays on the dead port, and the managed addresses' traffic does not go there."""
    cluster = make_cluster(*BOTH)
    host = cluster.hosts["h1"]
    host.ip("address add 10.9.0.99/24 dev p0")
    cluster.start_agents()
    cluster.start_traffic()
    host.cut("p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p1")
    cluster.await_progress()
    assert "10.9.0.99" in host.addresses()["p0"]
    for address in ("10.9.0.11", "10.9.0.12"):
        assert " dev p1 " in host.ip_output(f"route get 10.9.0.21 from {address}")
    cluster.finish()


def test_a_port_is_left_without_any_address(make_cluster: Callable[..., Cluster]) -> None:
    """With its last IPv4 address the kernel drops a port's routes, and says nothing: they are there when the address returns."""
    cluster = make_cluster(*BOTH, at=["p0"])
    cluster.start_agents()
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    tables = [host.ip_output(f"-4 route show table {table}") for table in (18900, 18901)]
    assert all("10.9.0.0/24" in table for table in tables)
    for index in range(12):
        to = "p1" if index % 2 == 0 else "p0"
        cluster.command("h1", "Move", ip="10.9.0.11", port=to)
        assert host.addresses() == {"p0": set(), "p1": set()} | {to: {"10.9.0.11"}}
        assert [host.ip_output(f"-4 route show table {table}") for table in (18900, 18901)] == tables
        cluster.await_progress(1)
    gap_s, pair = cluster.longest_gap_s()
    assert gap_s < SILENCE_S, pair
    cluster.finish()


@pytest.mark.parametrize("form", ["request", "reply", "both"])
def test_peers_that_nobody_has_set_up(make_cluster: Callable[..., Cluster], form: str) -> None:
    """N9: a peer with the default settings of ARP believes announcements in each form."""
    cluster = make_cluster(*BOTH)
    cluster.start_agent("h1", announce_form=form)
    cluster.hosts["h2"].ip("address add 10.9.0.21/24 dev p0", "address add 10.9.0.22/24 dev p1")
    cluster.start_traffic()
    cluster.ask_all("reset gaps")
    cluster.hosts["h1"].cut("p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p1")
    cluster.await_progress()
    cluster.finish()


@pytest.mark.parametrize("target", ["10.9.0.21", "fd09::21", None])
def test_a_path_is_dead_behind_a_live_link(make_cluster: Callable[..., Cluster], target: str | None) -> None:
    """N10: with probes the addresses move after so many misses; without, nothing tells, and they stay."""
    cluster = make_cluster(*BOTH, families=("ipv4", "ipv6"))
    cluster.start_agent("h2")
    misses, interval_ms = 3, 50
    probe = f'probe = {{ targets = ["{target}"], interval_ms = {interval_ms}, misses = {misses} }}' if target else ""
    cluster.start_agent("h1", config=config_text(cluster.addresses["h1"], group=probe))
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    if target:
        cut_at_s = time.monotonic()
        host.blackhole("p0")
        moved = cluster.wait_moved("h1", "10.9.0.11", "fd09::11", to="p1")[0]
        assert moved["reason"] == "path"
        assert moved["at_s"] - cut_at_s >= (misses - 1) * interval_ms / 1000
        cluster.await_progress()
        host.end_blackhole("p0")
        cluster.wait_moved("h1", "10.9.0.11", "fd09::11", to="p0")
    else:
        host.blackhole("p0")
        # Whatever could have told the agent is told before this: it is one queue.
        cluster.command("h1", "Drain", port="p1")
        cluster.command("h1", "Undrain", port="p1")
        assert "10.9.0.11" in host.addresses()["p0"]
        host.end_blackhole("p0")
    cluster.await_progress()
    cluster.finish()


def test_somebody_removes_an_address(make_cluster: Callable[..., Cluster]) -> None:
    """N11: it is put back; and after the sixth time in a minute it is reported and left alone, until an operator says otherwise."""
    cluster = make_cluster("h1")
    cluster.start_agents()
    host = cluster.hosts["h1"]
    host.ip("address delete 10.9.0.11/24 dev p0")
    (moved,) = cluster.wait_moved("h1", "10.9.0.11", to="p0")
    assert moved["reason"] == "removed"
    assert host.addresses() == cluster.placed_at_home("h1")


def test_somebody_has_an_address_of_ours(make_cluster: Callable[..., Cluster]) -> None:
    """N11: another host that claims an address is reported with its link address, and the address stays."""
    cluster = make_cluster(*BOTH, families=("ipv4", "ipv6"))
    cluster.start_agent("h1")
    thief = cluster.hosts["h2"]
    thief.sysctl(ipv4__conf__p1__arp_notify=1, ipv6__conf__p1__ndisc_notify=1)
    thief.ip("address add 10.9.0.11/24 dev p1", "address add fd09::11/64 dev p1 nodad", "link set p1 address 0a:00:00:00:00:77")
    claimed = set()
    while len(claimed) < 2:
        conflict = cluster.agents["h1"].wait_for(lambda message: message["event"] == "Conflict")
        assert "0a:00:00:00:00:77" in conflict["text"]
        claimed.add(conflict["ip"])
    assert claimed == {"10.9.0.11", "fd09::11"}
    assert cluster.hosts["h1"].addresses() == cluster.placed_at_home("h1")


def test_a_port_is_replaced_by_another_of_the_same_name(make_cluster: Callable[..., Cluster]) -> None:
    """A hot-plugged adapter: addresses leave with the old one, and come home to the new one, whose settings are put right."""
    cluster = make_cluster(*BOTH)
    cluster.start_agents()
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    host.ip("link delete p0")
    (moved,) = cluster.wait_moved("h1", "10.9.0.11", to="p1")
    assert moved["reason"] in ("admin", "vanished")  # the kernel sets a port down before it deletes it
    cluster.await_progress()
    add_port(host, "p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p0")
    with host.inside(), open("/proc/sys/net/ipv4/conf/p0/arp_ignore") as setting:
        assert setting.read() == "1\n"
    cluster.await_progress()
    cluster.finish()


def test_a_port_is_set_down_by_hand(make_cluster: Callable[..., Cluster]) -> None:
    """Its routes go with it and nobody says so; they are there again when it is up."""
    cluster = make_cluster(*BOTH, families=("ipv4", "ipv6"))
    cluster.start_agents()
    cluster.start_traffic()
    host = cluster.hosts["h1"]
    tables = [host.ip_output(f"{family} route show table 18900") for family in ("-4", "-6")]
    host.set_admin("p0", up=False)
    assert {move["reason"] for move in cluster.wait_moved("h1", "10.9.0.11", "fd09::11", to="p1")} == {"admin"}
    cluster.await_progress()
    host.set_admin("p0", up=True)
    cluster.wait_moved("h1", "10.9.0.11", "fd09::11", to="p0")
    assert [host.ip_output(f"{family} route show table 18900") for family in ("-4", "-6")] == tables
    cluster.await_progress()
    cluster.finish()


@pytest.mark.parametrize("capability", ["CAP_NET_ADMIN", "CAP_NET_RAW"])
def test_a_capability_is_lost(make_cluster: Callable[..., Cluster], capability: str) -> None:
    """N12: the agent says which one it lacks, changes nothing any more, and goes on watching."""
    cluster = make_cluster("h1")
    cluster.start_agents()
    host, agent = cluster.hosts["h1"], cluster.agents["h1"]
    agent.send(drop=capability)
    agent.wait_for(lambda message: message["event"] == "obeyed")
    host.cut("p0")
    agent.wait_for(lambda message: message["event"] == "PortDown")
    if capability == "CAP_NET_RAW":  # the announcement's socket was made when we had it: it goes on working
        cluster.wait_moved("h1", "10.9.0.11", to="p1")
        return
    assert agent.wait_for(lambda message: message["event"] == "Crippled")["capability"] == capability
    before = host.addresses()
    host.cut("p1")
    assert agent.wait_for(lambda message: message["event"] == "PortDown")["port"] == "p1"
    host.restore("p0", "p1")
    assert {agent.wait_for(lambda message: message["event"] == "PortUp")["port"] for _ in range(2)} == {"p0", "p1"}
    assert host.addresses() == before == cluster.placed_at_home("h1")


@pytest.mark.parametrize("missing", ["net_admin", "net_raw"])
def test_a_capability_is_missing_from_the_start(make_cluster: Callable[..., Cluster], missing: str, tmp_path: Path) -> None:
    """N12: without it the agent does not start, and says which one is missing and how to give it."""
    host = make_cluster("h1").hosts["h1"]
    file = tmp_path / "rdmaip.toml"
    file.write_text(config_text({"10.9.0.11/24": "p0"}))
    command = ["setpriv", f"--bounding-set=-{missing}", sys.executable, "-P", "-m", "rdsx.cli", "rdmaip", "run", str(file)]
    with host.inside():
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"lacks CAP_{missing.upper()}, to " in result.stderr
    assert "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW" in result.stderr
    assert host.addresses() == {"p0": set(), "p1": set()}


def test_more_changes_than_can_be_heard(make_cluster: Callable[..., Cluster]) -> None:
    """N14: the agent misses what happened among thousands of changes, reads everything anew, and is right in the end."""
    cluster = make_cluster("h1")
    cluster.start_agents()
    host = cluster.hosts["h1"]
    os.kill(cluster.agents["h1"].pid, signal.SIGSTOP)  # it hears nothing
    storm = [f"address {verb} 10.1.{index // 250}.{index % 250 + 1}/32 dev lo" for index in range(4000) for verb in ("add", "delete")]
    host.ip(*storm[:4000], "address delete 10.9.0.11/24 dev p0", *storm[4000:])
    assert lost_messages(host) > 0
    os.kill(cluster.agents["h1"].pid, signal.SIGCONT)
    cluster.wait_moved("h1", "10.9.0.11", to="p0")
    assert host.addresses() == cluster.placed_at_home("h1")


def lost_messages(host: Host) -> int:
    """What the kernel could not tell the netlink sockets of a namespace, because they did not read."""
    with host.inside():
        lines = Path("/proc/net/netlink").read_text().splitlines()
    column = lines[0].split().index("Drops")
    return sum(int(line.split()[column]) for line in lines[1:])


def test_a_configuration_is_read_again(make_cluster: Callable[..., Cluster]) -> None:
    """What is in both does not move, what is new is placed, what is gone stays where it is."""
    cluster = make_cluster("h1")
    cluster.start_agents(failback_hold_s=3600)
    host = cluster.hosts["h1"]
    host.cut("p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p1")
    host.restore("p0")
    cluster.agents["h1"].wait_for(lambda message: message["event"] == "PortUp")
    text = config_text({"10.9.0.11/24": "p0", "10.9.0.13/24": "p0"}, failback_hold_s=3600)
    cluster.agents["h1"].send(reconfigure=text)
    cluster.agents["h1"].wait_for(lambda message: message["event"] == "obeyed")
    eventually(host.addresses, {"p0": {"10.9.0.13"}, "p1": {"10.9.0.11", "10.9.0.12"}})


@pytest.mark.parametrize("on_exit", ["leave", "restore"])
def test_the_agent_ends(make_cluster: Callable[..., Cluster], on_exit: str) -> None:
    """Addresses stay where they work; or all go home, and the settings are as they were before."""
    cluster = make_cluster("h1")
    host = cluster.hosts["h1"]
    before = settings(host)
    cluster.start_agents(on_exit=on_exit)
    assert settings(host) != before
    host.cut("p0")
    cluster.wait_moved("h1", "10.9.0.11", to="p1")
    cluster.agents["h1"].terminate()
    cluster.agents["h1"].wait()
    if on_exit == "leave":
        assert host.addresses() == {"p0": set(), "p1": {"10.9.0.11", "10.9.0.12"}}
        assert settings(host) != before
    else:
        assert host.addresses() == cluster.placed_at_home("h1")
        assert settings(host) == before


def settings(host: Host) -> list[str]:
    """What an agent changes besides addresses: sysctls, rules, tables."""
    tables = [host.ip_output(f"{family} {what}") for family in ("-4", "-6") for what in ("rule show", "route show table all proto 189")]
    with host.inside():
        return tables + [
            Path(f"/proc/sys/net/ipv4/conf/p0/{name}").read_text() for name in ("arp_ignore", "arp_announce", "promote_secondaries")
        ]
