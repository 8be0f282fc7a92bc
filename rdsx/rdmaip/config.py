"""Settings of resilient RDMAIP: groups of ports, their addresses, and how patient to be. Owns every range and choice; reads no files.

The configuration file has the same names: the settings of `Config` under `[rdmaip]`, a `[[group]]` for each group. Whatever is wrong is a
`ConfigError` that names the setting, the value and the remedy; `parse_config` adds file and line.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rdsx.rdmaip.facts import Snapshot
from rdsx.rdmaip.toml_lines import Path, find_lines

__all__ = ["CHOICES", "DEFAULT_CONTROL", "RANGES", "Config", "ConfigError", "Group", "ManagedAddress", "Probe", "parse_config"]

RANGES: Mapping[str, tuple[float, float]] = {
    "failover_delay_ms": (0, 10_000),
    "failback_hold_s": (0, 3600),
    "hold_max_s": (0, 86_400),
    "failback_sync_s": (0, 86_400),
    "failback_sync_offset_s": (0, 86_400),
    "min_stay_s": (0, 60),
    "settle_boot_s": (0, 600),
    "announce_at_ms": (0, 60_000),
    "mark": (1, 255),
    "table_base": (256, 2**31 - 1),
    "rule_priority": (1, 32_764),
    "interval_ms": (20, 10_000),
    "misses": (1, 100),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "failback": ("auto", "never", "manual"),
    "announce_form": ("request", "reply", "both"),
    "sysctl": ("set", "check", "ignore"),
    "routing": ("rules", "none"),
    "on_exit": ("leave", "restore"),
    "choose": ("least-loaded", "first"),
}
DEFAULT_CONTROL = "/run/rdsx/rdmaip.sock"
MAX_ANNOUNCEMENTS = 100
MAX_NAME_BYTES = 15  # IFNAMSIZ, without its NUL


class ConfigError(ValueError):
    """A setting that cannot be. `path` leads to it, `problem` says what is wrong and what would be right."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{spelled(path)}: {problem}" if path else problem)
        self.path = path
        self.problem = problem

    def under(self, *above: str | int) -> ConfigError:
        """The same, seen from further up."""
        return ConfigError((*above, *self.path), self.problem)


@dataclass(frozen=True, slots=True)
class ManagedAddress:
    """An address that may move: `prefix` is its length at home, `allowed` the ports that may have it (None: all of the group)."""

    ip: str
    prefix: int
    home: str
    allowed: tuple[str, ...] | None = None

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.ip

    @property
    def host_prefix(self) -> int:
        return 128 if self.is_ipv6 else 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Ask `targets` through every port of a group, to find paths that are dead behind a live link.

    A port is taken for dead when none of the targets has answered `misses` probes in a row.
    """

    targets: tuple[str, ...]
    interval_ms: int = 100
    misses: int = 3

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError(("targets",), "names nobody; give at least one address that answers on this network, or leave `probe` out")
        for index, target in enumerate(self.targets):
            _ip(target, ("targets", index))
        for name in ("interval_ms", "misses"):
            _check_number(name, getattr(self, name), whole=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ports among which addresses move. The order of `ports` decides between equals; `subnets` get routes in every port's table."""

    name: str
    ports: tuple[str, ...]
    addresses: tuple[ManagedAddress, ...] = ()
    subnets: tuple[str, ...] = ()
    """Empty: those of the addresses."""
    choose: str = "least-loaded"
    """How a new port is chosen: the one with the fewest addresses, or the "first" that is usable."""
    probe: Probe | None = None
    discover: bool = False
    """`address = "discover"`: whatever is on the ports at the start is at home there."""
    exclude: tuple[str, ...] = ("169.254.0.0/16", "fe80::/10")
    """Networks whose addresses are not discovered."""

    def __post_init__(self) -> None:
        _check_choice("choose", self.choose)
        _check_ports(self.ports)
        networks = [_network(text, ("subnets", index)) for index, text in enumerate(self.subnets)]
        for index, text in enumerate(self.exclude):
            _network(text, ("exclude", index))
        if not self.subnets:
            found = dict.fromkeys(str(ipaddress.ip_network(f"{each.ip}/{each.prefix}", strict=False)) for each in self.addresses)
            object.__setattr__(self, "subnets", tuple(found))
        for index, address in enumerate(self.addresses):
            self._check_address(index, address, networks)
        if not self.addresses and not self.discover:
            raise ConfigError(("address",), 'no address to manage; list some, or write address = "discover"')

    def _check_address(self, index: int, address: ManagedAddress, networks: list[Any]) -> None:
        path = ("address", index)
        ip = _ip(address.ip, (*path, "ip"))
        if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
            raise ConfigError((*path, "ip"), f"{address.ip} cannot move: it is no unicast address that peers could use on another port")
        if networks and not any(ip in network for network in networks if network.version == ip.version):
            raise ConfigError((*path, "ip"), f"{address.ip} is in none of the group's subnets {', '.join(self.subnets)}")
        for key, ports in (("home", (address.home,)), ("allowed", address.allowed or ())):
            for port in ports:
                if port not in self.ports:
                    raise ConfigError((*path, key), f"{port!r} is no port of the group; its ports are {', '.join(self.ports)}")
        if address.allowed is not None and address.home not in address.allowed:
            raise ConfigError((*path, "allowed"), f"the home {address.home!r} is missing in it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings. Raises ConfigError naming the one that is out of range; times in the unit that their name ends with."""

    groups: tuple[Group, ...]
    failover_delay_ms: int = 0
    """How long a link must be lost before its addresses move; for links that blink."""
    failback: str = "auto"
    """Whether addresses go home: by themselves, when an operator says so ("manual"), or "never": only by `Move`."""
    failback_hold_s: float | None = None
    """How long a port must be usable before its addresses come home. None: 10, on RoCE 20, as in Oracle's module."""
    hold_max_s: float = 300
    """The hold doubles with each further failure within ten minutes, up to this."""
    failback_sync_s: float = 0
    """Failbacks wait for the next multiple of this on the wall clock, on all hosts at once; 0: they do not wait."""
    failback_sync_offset_s: float = 0
    """... and so long after it."""
    min_stay_s: float = 2
    """A failback does not follow another move of the same address sooner."""
    settle_boot_s: float = 0
    """How long after the start addresses do not go home, for machines whose network is still being set up."""
    announce_at_ms: tuple[int, ...] = (0, 100, 200, 500, 1000, 2000, 5000)
    """When a move is announced, counted from the move."""
    announce_form: str = "request"
    """Form of the ARP announcement."""
    sysctl: str = "set"
    """Whether the kernel settings that several ports in one subnet need are "set", only looked at ("check"), or ignored."""
    routing: str = "rules"
    """Whether each address has a source rule and each port a table; "none" is for ports in different subnets."""
    on_exit: str = "leave"
    """Whether addresses stay where they are when the agent ends, or go home ("restore")."""
    control: str = DEFAULT_CONTROL
    """Path of the control socket."""
    mark: int = 189
    """Protocol number on everything that the agent puts into the kernel."""
    table_base: int = 18_900
    """Routing table of the first port; the following ports have the following numbers."""
    rule_priority: int = 18_900
    """Priority of the source rules; the next one is used while a rule is switched."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in CHOICES:
                _check_choice(each.name, value)
            elif each.name in RANGES and each.name != "announce_at_ms" and not (each.name == "failback_hold_s" and value is None):
                _check_number(each.name, value, whole=isinstance(each.default, int) and not each.name.endswith("_s"))
        self._check_announcements()
        if self.failback_sync_s and self.failback_sync_offset_s >= self.failback_sync_s:
            raise ConfigError(
                ("failback_sync_offset_s",),
                f"{self.failback_sync_offset_s:g} must be below failback_sync_s, which is {self.failback_sync_s:g}",
            )
        if not str(self.control).startswith("/"):
            raise ConfigError(("control",), f"must be an absolute path, not {self.control!r}")
        self._check_groups()

    def _check_announcements(self) -> None:
        instants = self.announce_at_ms
        if not 1 <= len(instants) <= MAX_ANNOUNCEMENTS:
            raise ConfigError(("announce_at_ms",), f"must have 1 to {MAX_ANNOUNCEMENTS} entries, not {len(instants)}")
        for index, value in enumerate(instants):
            _check_number("announce_at_ms", value, whole=True, path=("announce_at_ms", index))
            if index and value <= instants[index - 1]:
                raise ConfigError(("announce_at_ms", index), f"{value} must be above the one before, {instants[index - 1]}")

    def _check_groups(self) -> None:
        if not self.groups:
            raise ConfigError((), "there is no [[group]]; one needs a name, ports and addresses")
        names: dict[str, int] = {}
        ports: dict[str, str] = {}
        ips: dict[str, str] = {}
        for index, group in enumerate(self.groups):
            if group.name in names:
                raise ConfigError(("group", index, "name"), f"{group.name!r} is the name of group {names[group.name] + 1} already")
            names[group.name] = index
            for place, port in enumerate(group.ports):
                if port in ports:
                    raise ConfigError(
                        ("group", index, "ports", place), f"{port!r} is in group {ports[port]!r} already; a port has one group"
                    )
                ports[port] = group.name
            for place, address in enumerate(group.addresses):
                if address.ip in ips:
                    raise ConfigError(("group", index, "address", place, "ip"), f"{address.ip} is in group {ips[address.ip]!r} already")
                ips[address.ip] = group.name

    def discovered(self, snapshot: Snapshot) -> Config:
        """The same, with what is on the ports now as the addresses of groups that leave them to be discovered.

        Raises ConfigError if there are none, or if one is there as a guest: then nobody knows its home.
        """
        return replace(self, groups=tuple(discover(group, snapshot, self.mark) if group.discover else group for group in self.groups))

    @property
    def ports(self) -> tuple[str, ...]:
        """All ports, in the order of the file: the order of their routing tables."""
        return tuple(port for group in self.groups for port in group.ports)

    @property
    def addresses(self) -> tuple[ManagedAddress, ...]:
        return tuple(address for group in self.groups for address in group.addresses)

    def group_of(self, port: str) -> Group | None:
        """The group that a port is in."""
        return next((group for group in self.groups if port in group.ports), None)

    def address(self, ip: str) -> ManagedAddress | None:
        return next((address for address in self.addresses if address.ip == ip), None)

    def table(self, port: str) -> int:
        """The number of a port's routing table."""
        return self.table_base + self.ports.index(port)


def discover(group: Group, snapshot: Snapshot, mark: int) -> Group:
    """A group with the addresses that are on its ports now; each is at home where it is."""
    excluded = [ipaddress.ip_network(text) for text in group.exclude]
    found: dict[str, ManagedAddress] = {}
    for fact in snapshot.addresses:
        ip = ipaddress.ip_address(fact.ip)
        if fact.port not in group.ports or not fact.present or ip.is_link_local or any(ip in network for network in excluded):
            continue
        if fact.ip in found or (fact.mark == mark and fact.prefix == ip.max_prefixlen):
            problem = "on two ports" if fact.ip in found else f"a guest on {fact.port}"
            raise ConfigError(
                (),
                f"{fact.ip} is {problem}, so its home is not known: list the addresses of group {group.name!r} instead of discovering them",
            )
        found[fact.ip] = ManagedAddress(fact.ip, fact.prefix, fact.port)
    if not found:
        raise ConfigError((), f"the ports of group {group.name!r} have no address; give them some, or list them in the file")
    return replace(group, addresses=tuple(found.values()), subnets=group.subnets, discover=False)


def parse_config(text: str, file: str = "configuration") -> Config:
    """A Config from TOML. Raises ConfigError whose text begins with file and line."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((), f"{file}: {error}") from None
    try:
        return _config(data)
    except ConfigError as error:
        line = _line(find_lines(text), error.path)
        raise ConfigError((), f"{file}, line {line}, {error}" if line else f"{file}: {error}") from None


def spelled(path: Path) -> str:
    """A path as people count: `group 1, address 3, home`."""
    words: list[str] = []
    for part in path:
        if isinstance(part, int):
            words[-1] = f"{words[-1]} {part + 1}"
        else:
            words.append(part)
    return ", ".join(words)


def _line(lines: Mapping[Path, int], path: Path) -> int | None:
    """The line of the setting, or of the nearest thing around it: a setting that is missing has none."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
        if ("rdmaip", *path[:length]) in lines:
            return lines[("rdmaip", *path[:length])]
    return None


# -- from TOML: paths in these errors begin at the table that a function is given


def _config(data: dict[str, Any]) -> Config:
    _check_keys(data, ("rdmaip", "group"))
    settings = _table(data.get("rdmaip", {}), ("rdmaip",))
    _check_keys(settings, [each.name for each in fields(Config) if each.name != "groups"])
    if "announce_at_ms" in settings:
        settings = {**settings, "announce_at_ms": tuple(_list(settings["announce_at_ms"], ("announce_at_ms",)))}
    tables = data.get("group", [])
    if not isinstance(tables, list):
        raise ConfigError(("group",), "a group is written [[group]], with two brackets")
    groups = []
    for index, table in enumerate(tables):
        try:
            groups.append(_group(_table(table, ()), f"group{index + 1}"))
        except ConfigError as error:
            raise error.under("group", index) from None
    return Config(groups=tuple(groups), **settings)


def _group(data: dict[str, Any], default_name: str) -> Group:
    _check_keys(data, ("name", "ports", "subnets", "choose", "probe", "address", "exclude"))
    if "ports" not in data:
        raise ConfigError((), 'has no ports; write for example ports = ["eth0", "eth1"]')
    lists = {name: _texts(data[name], (name,)) for name in ("ports", "subnets", "exclude") if name in data}
    address = data.get("address", [])
    if isinstance(address, str) and address != "discover":
        raise ConfigError(("address",), f'must be a list of addresses, or "discover", not {address!r}')
    listed = [] if address == "discover" else _list(address, ("address",))
    addresses = [_address(_table(each, ("address", index)), ("address", index)) for index, each in enumerate(listed)]
    return Group(
        name=_text(data.get("name", default_name), ("name",)),
        addresses=tuple(addresses),
        discover=address == "discover",
        probe=_probe(_table(data["probe"], ("probe",))) if "probe" in data else None,
        choose=data.get("choose", "least-loaded"),
        **lists,
    )


def _address(data: dict[str, Any], path: Path) -> ManagedAddress:
    _check_keys(data, ("ip", "home", "allowed"), path)
    for name in ("ip", "home"):
        if name not in data:
            raise ConfigError(path, f'has no {name}; an address is written {{ ip = "10.9.0.11/24", home = "eth0" }}')
    text = _text(data["ip"], (*path, "ip"))
    bare, _, length = text.partition("/")
    ip = _ip(bare, (*path, "ip"))
    if not (length.isascii() and length.isdecimal() and 1 <= int(length) <= ip.max_prefixlen):
        example = f"{ip}/{24 if ip.version == 4 else 64}"
        raise ConfigError((*path, "ip"), f"{text!r} needs the prefix length that it has at home, for example {example}")
    allowed = _texts(data["allowed"], (*path, "allowed")) if "allowed" in data else None
    return ManagedAddress(str(ip), int(length), _text(data["home"], (*path, "home")), allowed)


def _probe(data: dict[str, Any]) -> Probe:
    _check_keys(data, [each.name for each in fields(Probe)], ("probe",))
    targets = _texts(data.get("targets", []), ("probe", "targets"))
    try:
        return Probe(**{**data, "targets": targets})
    except ConfigError as error:
        raise error.under("probe") from None


def _table(value: object, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(path, f"must be a table, not {value!r}")
    return value


def _list(value: object, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(path, f"must be a list, not {value!r}")
    return value


def _text(value: object, path: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(path, f"must be a text, not {value!r}")
    return value


def _texts(value: object, path: Path) -> tuple[str, ...]:
    return tuple(_text(each, (*path, index)) for index, each in enumerate(_list(value, path)))


def _check_keys(data: Mapping[str, Any], known: Collection[str], above: Path = ()) -> None:
    for key in data:
        if key not in known:
            meant = difflib.get_close_matches(key, known, 1)
            raise ConfigError(
                (*above, key), f"no such setting; {f'did you mean {meant[0]}?' if meant else 'known are ' + ', '.join(known)}"
            )


# -- checks of single values


def _check_number(name: str, value: object, *, whole: bool, path: Path | None = None) -> None:
    low, high = RANGES[name]
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise ConfigError(path or (name,), f"must be {'a whole' if whole else 'a'} number in {low:g}..{high:.0f}, not {value!r}")


def _check_choice(name: str, value: object) -> None:
    if value not in CHOICES[name]:
        raise ConfigError((name,), f"must be {' or '.join(map(repr, CHOICES[name]))}, not {value!r}")


def _check_ports(ports: tuple[str, ...]) -> None:
    if not ports:
        raise ConfigError(("ports",), "is empty; a group has at least one port, and needs two to fail over")
    for index, port in enumerate(ports):
        path = ("ports", index)
        if port in ports[:index]:
            raise ConfigError(path, f"{port!r} is listed twice")
        if len(port.encode()) > MAX_NAME_BYTES or "/" in port or any(each.isspace() for each in port) or port in (".", ".."):
            raise ConfigError(path, f"{port!r} cannot be the name of an interface: at most {MAX_NAME_BYTES} bytes, no space and no slash")


def _ip(text: str, path: Path) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(path, f"{text!r} is not an IPv4 or IPv6 address") from None
    if ip.version == 6 and ip.scope_id is not None:
        raise ConfigError(path, f"{text!r}: an address with a scope belongs to one port and cannot move")
    return ip


def _network(text: str, path: Path) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(path, f"{text!r} is not a network: {error}") from None
