"""Hosts with agents and traffic between all their addresses, for scenarios.

Host number n has 10.9.0.n1 and fd09::n1 at home on p0, 10.9.0.n2 and fd09::n2 on p1. Invariant: at the end of a scenario `finish` has
compared every pair's count and hash at both ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rdmaip.topology import Host, Topology, open_topology
from rdmaip.zygote import GUARD_S, Process, Zygote

__all__ = ["Cluster", "HOLD_S", "config_text", "open_cluster"]

HOLD_S = 0.3
SEND_INTERVAL_S = 0.02

FAMILIES = {
    "ipv4": {"p0": "10.9.0.{}1/24", "p1": "10.9.0.{}2/24"},
    "ipv6": {"p0": "fd09::{}1/64", "p1": "fd09::{}2/64"},
}


def homes(number: int, families: Iterable[str], ports: Iterable[str] = ("p0", "p1")) -> dict[str, str]:
    """Home port of each address, with its prefix length, of a host."""
    return {FAMILIES[family][port].format(number): port for family in families for port in ports}


def config_text(addresses: dict[str, str], *, ports: Iterable[str] = ("p0", "p1"), group: str = "", **settings: object) -> str:
    """TOML for one group; `addresses` are homes by address with prefix, `group` further lines of the group."""
    values = {"failback_hold_s": HOLD_S, "min_stay_s": 0} | settings
    lines = ["[rdmaip]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    lines += ["[[group]]", 'name = "fabric"', f"ports = {json.dumps(list(ports))}", *([group] if group else [])]
    lines += ["address = [", *(f'  {{ ip = "{ip}", home = "{home}" }},' for ip, home in addresses.items()), "]"]
    return "\n".join(lines)


@dataclass
class Cluster:
    topology: Topology
    zygote: Zygote
    addresses: dict[str, dict[str, str]]  # by host: home ports by address with prefix
    agents: dict[str, Process] = field(default_factory=dict)
    nodes: dict[str, Process] = field(default_factory=dict)

    @property
    def hosts(self) -> dict[str, Host]:
        return self.topology.hosts

    # -- agents

    def start_agent(
        self, host: str, *, wait: bool = True, die_at: int | None = None, config: str | None = None, **settings: object
    ) -> Process:
        """An agent for a host, with its addresses as its configuration; it has settled when this returns."""
        text = config if config is not None else config_text(self.addresses[host], **settings)
        agent = self.zygote.start("rdmaip.agent_process:serve", self.hosts[host].descriptor, config=text, die_at=die_at)
        self.agents[host] = agent
        if wait:
            agent.wait_for(lambda message: message["event"] == "started")
        return agent

    def start_agents(self, **settings: object) -> None:
        for host in self.hosts:
            self.start_agent(host, **settings)

    def wait_moved(self, host: str, *addresses: str, to: str, guard_s: float = GUARD_S) -> list[dict[str, Any]]:
        """The events of these addresses' next moves to that port, in whatever order they come; other events are dropped."""
        missing = set(addresses)
        found = []

        def is_wanted(message: dict[str, Any]) -> bool:
            return message["event"] == "Moved" and message["ip"] in missing and message["to_port"] == to

        while missing:
            event = self.agents[host].wait_for(is_wanted, guard_s)
            missing.discard(event["ip"])
            found.append(event)
        return found

    def command(self, host: str, command: str, **fields: object) -> None:
        """A command of `rdsx.rdmaip` for a host's agent; it has been obeyed when this returns."""
        self.agents[host].send(command=command, **fields)
        self.agents[host].wait_for(lambda message: message["event"] == "obeyed")

    def home(self, host: str, port: str) -> list[str]:
        """Addresses that are at home on a port."""
        return [ip.partition("/")[0] for ip, home in self.addresses[host].items() if home == port]

    def placed_at_home(self, host: str) -> dict[str, set[str]]:
        """What `Host.addresses()` says when every address is at home."""
        return {port: set(self.home(host, port)) for port in self.hosts[host].ports}

    # -- traffic

    def start_traffic(self, interval_s: float = SEND_INTERVAL_S, **settings: object) -> None:
        """A node on every host with all its addresses, sending to all addresses of the others. `settings`: of NodeConfig."""
        own = {host: [ip.partition("/")[0] for ip in addresses] for host, addresses in self.addresses.items()}
        for host in self.hosts:
            remote = [ip for other in self.hosts if other != host for ip in own[other]]
            arguments = {"local": own[host], "remote": remote, "interval_s": interval_s, "settings": settings}
            self.nodes[host] = self.zygote.start("rdmaip.traffic:serve", self.hosts[host].descriptor, **arguments)
        for node in self.nodes.values():
            node.receive()
        self.ask_all("start")
        self.await_progress()

    def ask_all(self, do: str) -> dict[str, dict[str, Any]]:
        """Send a command to each node, and return their reports."""
        for node in self.nodes.values():
            node.send(do=do)
        return {host: node.receive() for host, node in self.nodes.items()}

    def await_progress(self, more: int = 3) -> None:
        """Until every pair has received so many more messages than now."""
        counts = {
            host: {pair: each["count"] + more for pair, each in report["received"].items()}
            for host, report in self.ask_all("report").items()
        }
        for host, report in self._await_counts(counts).items():
            late = {
                pair: (report["received"][pair]["count"], count)
                for pair, count in counts[host].items()
                if report["received"][pair]["count"] < count
            }
            assert not late, f"{host}: no progress of {late}"

    def longest_gap_s(self) -> tuple[float, str]:
        """The longest silence of any pair since `ask_all("reset gaps")`, and the pair."""
        gaps = [(each["gap_s"], pair) for report in self.ask_all("report").values() for pair, each in report["received"].items()]
        return max(gaps)

    def finish(self) -> None:
        """Stop sending, wait for everything to arrive, and compare both ends."""
        sent = {pair: each for report in self.ask_all("stop").values() for pair, each in report["sent"].items()}
        counts = {host: {pair: sent[pair]["count"] for pair in report["received"]} for host, report in self.ask_all("report").items()}
        self._await_counts(counts)
        reports = self.ask_all("report")
        received = {pair: each for report in reports.values() for pair, each in report["received"].items()}
        wrong = {
            pair: (sent[pair]["count"], received[pair]["count"])
            for pair in sent
            if (sent[pair]["count"], sent[pair]["digest"]) != (received[pair]["count"], received[pair]["digest"])
        }
        nodes = [{name: report[name] for name in ("drops", "connections")} for report in reports.values()]
        assert not wrong, f"(sent, received) of pairs that differ in count or content: {wrong}; {nodes}"
        assert all(each["count"] for each in sent.values())

    def _await_counts(self, counts: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
        for host, node in self.nodes.items():
            node.send(do="await", counts=counts[host])
        return {host: node.receive() for host, node in self.nodes.items()}


@contextlib.contextmanager
def open_cluster(
    zygote: Zygote, names: Iterable[str], *, families: Iterable[str] = ("ipv4",), at: Iterable[str] = ("p0", "p1")
) -> Iterator[Cluster]:
    """Hosts, without agents and traffic yet, with the addresses that their agents will place: those at home on the ports `at`.

    Leaving the block kills what the zygote has started.
    """
    names, families, at = list(names), list(families), list(at)
    addresses = {name: homes(number, families, at) for number, name in enumerate(names, 1)}
    with open_topology(names) as topology:
        try:
            yield Cluster(topology, zygote, addresses)
        finally:
            zygote.kill_all()
