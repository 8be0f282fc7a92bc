"""What is wrong with a configuration on this host, before an agent is started: judged from what others have read. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rdsx.rdmaip.config import Config, Group
from rdsx.rdmaip.facts import LinkFact, Snapshot

__all__ = ["Finding", "check_config", "check_managers"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was looked at. `level`: error (an agent cannot do its work), warning, or ok."""

    level: str
    subject: str
    text: str
    remedy: str = ""


def check_config(config: Config, snapshot: Snapshot, interfaces: Collection[str]) -> list[Finding]:
    """Whether ports exist and belong together, and what is on them. `interfaces`: names of all that there are."""
    links = {link.port: link for link in snapshot.links if link.present}
    findings = [finding for group in config.groups for finding in _check_group(group, links, interfaces)]
    for fact in snapshot.addresses:
        managed = config.address(fact.ip)
        if managed is None:
            continue
        if config.group_of(fact.port) is None and fact.mark != config.mark:
            remedy = f"run: ip address del {fact.ip}/{fact.prefix} dev {fact.port}"
            findings.append(Finding("error", fact.ip, f"it is on {fact.port}, which is no port of its group", remedy))
        elif fact.port == managed.home and fact.prefix != managed.prefix and fact.mark != config.mark:
            text = f"it is on {fact.port} with prefix length {fact.prefix}, and /{managed.prefix} in the file; it is left so"
            findings.append(Finding("warning", fact.ip, text, "make both the same"))
    return findings


def _check_group(group: Group, links: Mapping[str, LinkFact], interfaces: Collection[str]) -> Iterable[Finding]:
    for port in group.ports:
        link = links.get(port)
        if link is None:
            there = ", ".join(sorted(interfaces)) or "none"
            yield Finding("error", port, "there is no such interface", f"interfaces are {there}; the agent would wait for it to appear")
        elif not link.admin:
            yield Finding("warning", port, "the interface is down", f"run: ip link set {port} up")
        elif not link.carrier:
            yield Finding("warning", port, "it has no link", "look at the cable and at the other end")
        else:
            yield Finding(
                "ok", port, f"up, index {link.index}, {link.link_type.value}" + (f", tag {link.tag}" if link.tag is not None else "")
            )
    found = [links[port] for port in group.ports if port in links]
    if len({link.link_type for link in found}) > 1:
        kinds = ", ".join(f"{link.port} is {link.link_type.value}" for link in found)
        yield Finding("error", group.name, f"addresses cannot move between different kinds of links: {kinds}", "make two groups of it")
    elif len({link.tag for link in found}) > 1:
        tags = ", ".join(f"{link.port} has {'none' if link.tag is None else link.tag}" for link in found)
        yield Finding("warning", group.name, f"addresses move only between ports of one VLAN or partition: {tags}", "")
    if len(group.ports) == 1:
        yield Finding("warning", group.name, "with one port there is nowhere to go", "name a second port")


def check_managers(managers: Mapping[str, str]) -> list[Finding]:
    """`managers`: which network manager configures a port, by port, as `find_managers` says."""
    remedies = {
        "systemd-networkd": (
            "in its .network file set KeepConfiguration=yes, and in networkd.conf ManageForeignRoutes=no and "
            "ManageForeignRoutingPolicyRules=no"
        ),
        "NetworkManager": "run: nmcli device set {port} managed no",
    }
    return [
        Finding("warning", port, f"{manager} manages it and may remove addresses, rules and routes", remedies[manager].format(port=port))
        for port, manager in managers.items()
    ]
