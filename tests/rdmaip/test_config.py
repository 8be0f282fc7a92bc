"""The configuration file: what it means, and that whatever is wrong is named with file, line, setting and remedy."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdsx.rdmaip.config import CHOICES, RANGES, Config, ConfigError, Group, ManagedAddress, Probe, parse_config
from rdsx.rdmaip.toml_lines import find_lines

GROUP = """
[[group]]
name = "fabric"
ports = ["eth0", "eth1"]
address = [
  { ip = "10.9.0.11/24", home = "eth0" },
  { ip = "fd09::11/64", home = "eth1", allowed = ["eth1"] },
]
"""


def test_a_small_file() -> None:
    config = parse_config(GROUP)
    assert config.ports == ("eth0", "eth1")
    assert config.addresses == (ManagedAddress("10.9.0.11", 24, "eth0"), ManagedAddress("fd09::11", 64, "eth1", ("eth1",)))
    assert config.groups[0].subnets == ("10.9.0.0/24", "fd09::/64")
    assert [config.table(port) for port in config.ports] == [18900, 18901]
    assert config.group_of("eth1") is config.groups[0]
    assert config.group_of("lo") is None
    assert (config.failback, config.failback_hold_s, config.announce_at_ms[-1]) == ("auto", None, 5000)


def test_every_setting_can_be_set() -> None:
    text = """
[rdmaip]
failover_delay_ms = 5
failback = "manual"
failback_hold_s = 1.5
hold_max_s = 60
failback_sync_s = 30
failback_sync_offset_s = 2
min_stay_s = 0
settle_boot_s = 20
announce_at_ms = [0, 10]
announce_form = "both"
sysctl = "check"
routing = "none"
on_exit = "restore"
control = "/run/x.sock"
mark = 190
table_base = 2000
rule_priority = 3000
"""
    config = parse_config(text + GROUP)
    changed = {each.name for each in fields(Config) if each.name != "groups" and getattr(config, each.name) != each.default}
    assert changed == {each.name for each in fields(Config)} - {"groups"}


def test_names_are_canonical() -> None:
    text = '[[group]]\nports = ["a"]\naddress = [{ ip = "FD09:0::0011/64", home = "a" }]'
    assert parse_config(text).addresses[0].ip == "fd09::11"
    assert parse_config(text).groups[0].name == "group1"


def test_addresses_to_be_discovered() -> None:
    group = parse_config('[[group]]\nports = ["a"]\naddress = "discover"\nexclude = ["10.0.0.0/8"]').groups[0]
    assert (group.discover, group.addresses, group.exclude) == (True, (), ("10.0.0.0/8",))


WRONG = {
    "a broken file": ("[rdmaip", "x.toml: Expected"),
    "nothing": ("", "x.toml: there is no [[group]]"),
    "an unknown table": ("[rdmaipp]" + GROUP, "line 1, rdmaipp: no such setting; did you mean rdmaip?"),
    "an unknown setting": ("[rdmaip]\n\nfailbak = 3" + GROUP, "line 3, failbak: no such setting; did you mean failback?"),
    "an unknown setting of a group": (GROUP + 'port = "x"', "line 9, group 1, port: no such setting; did you mean ports?"),
    "a setting that nothing resembles": ("[rdmaip]\nxyz = 3" + GROUP, "line 2, xyz: no such setting; known are failover_delay_ms, "),
    "out of range": ("[rdmaip]\nmin_stay_s = 61" + GROUP, "line 2, min_stay_s: must be a number in 0..60, not 61"),
    "not a whole number": ("[rdmaip]\nmark = 1.5" + GROUP, "line 2, mark: must be a whole number in 1..255, not 1.5"),
    "true is no number": ("[rdmaip]\nhold_max_s = true" + GROUP, "line 2, hold_max_s: must be a number in 0..86400, not True"),
    "not a choice": ("[rdmaip]\nsysctl = 'no'" + GROUP, "line 2, sysctl: must be 'set' or 'check' or 'ignore', not 'no'"),
    "a choice that is a list": ("[rdmaip]\nsysctl = ['set']" + GROUP, "line 2, sysctl: must be 'set' or 'check' or 'ignore', not ['set']"),
    "no announcement": ("[rdmaip]\nannounce_at_ms = []" + GROUP, "line 2, announce_at_ms: must have 1 to 100 entries, not 0"),
    "announcements out of order": (
        "[rdmaip]\nannounce_at_ms = [0,\n 5,\n 5]" + GROUP,
        "line 4, announce_at_ms 3: 5 must be above the one before, 5",
    ),
    "an announcement too late": (
        "[rdmaip]\nannounce_at_ms = [70000]" + GROUP,
        "announce_at_ms 1: must be a whole number in 0..60000, not 70000",
    ),
    "announcements that are no list": ("[rdmaip]\nannounce_at_ms = 5" + GROUP, "line 2, announce_at_ms: must be a list, not 5"),
    "the offset of nothing": (
        "[rdmaip]\nfailback_sync_s = 5\nfailback_sync_offset_s = 5" + GROUP,
        "line 3, failback_sync_offset_s: 5 must be below failback_sync_s, which is 5",
    ),
    "a relative path": ("[rdmaip]\ncontrol = 'x'" + GROUP, "line 2, control: must be an absolute path, not 'x'"),
    "settings that are no table": ("rdmaip = 5" + GROUP, "line 1, rdmaip: must be a table, not 5"),
    "one bracket": (GROUP.replace("[[group]]", "[group]"), "line 2, group: a group is written [[group]], with two brackets"),
    "no ports": ("[[group]]\naddress = []", 'line 1, group 1: has no ports; write for example ports = ["eth0", "eth1"]'),
    "empty ports": ("[[group]]\nports = []", "line 2, group 1, ports: is empty"),
    "ports that are no list": ("[[group]]\nports = 'eth0'", "line 2, group 1, ports: must be a list, not 'eth0'"),
    "a port that is no text": ("[[group]]\nports = ['eth0', 1]", "line 2, group 1, ports 2: must be a text, not 1"),
    "a port twice": ("[[group]]\nports = ['eth0',\n'eth0']", "line 3, group 1, ports 2: 'eth0' is listed twice"),
    "a port that cannot be": ("[[group]]\nports = ['a b']", "line 2, group 1, ports 1: 'a b' cannot be the name of an interface"),
    "a long name": ("[[group]]\nports = ['averylonginterface']", "at most 15 bytes"),
    "no addresses": ("[[group]]\nports = ['a']", "line 1, group 1, address: no address to manage; list some, or write"),
    "an address that is a word": ("[[group]]\nports = ['a']\naddress = 'auto'", "line 3, group 1, address: must be a list of addresses"),
    "a port in two groups": (
        GROUP + GROUP.replace("fabric", "other").replace("0.11", "0.12").replace("::11", "::12"),
        "line 12, group 2, ports 1: 'eth0' is in group 'fabric' already; a port has one group",
    ),
    "a name of two groups": (GROUP + GROUP.replace("eth", "ens"), "line 11, group 2, name: 'fabric' is the name of group 1 already"),
    "an address of two groups": (
        GROUP + GROUP.replace("eth", "ens").replace("fabric", "b"),
        "line 14, group 2, address 1, ip: 10.9.0.11 is in group 'fabric' already",
    ),
    "a home elsewhere": (
        GROUP.replace('home = "eth0"', 'home = "eth2"'),
        "line 6, group 1, address 1, home: 'eth2' is no port of the group; its ports are eth0, eth1",
    ),
    "allowed elsewhere": (GROUP.replace('["eth1"] }', '["lo"] }'), "line 7, group 1, address 2, allowed: 'lo' is no port of the group"),
    "not allowed at home": (
        GROUP.replace('["eth1"] }', '["eth0"] }'),
        "line 7, group 1, address 2, allowed: the home 'eth1' is missing in it",
    ),
    "not in the subnets": (
        GROUP + 'subnets = ["10.8.0.0/24", "fd09::/64"]',
        "line 6, group 1, address 1, ip: 10.9.0.11 is in none of the group's subnets 10.8.0.0/24, fd09::/64",
    ),
    "subnet with host bits": (GROUP + 'subnets = ["10.9.0.1/24"]', "line 9, group 1, subnets 1: '10.9.0.1/24' is not a network"),
    "not an address": (GROUP.replace("10.9.0.11", "10.9.0"), "line 6, group 1, address 1, ip: '10.9.0' is not an IPv4 or IPv6 address"),
    "no prefix": (
        GROUP.replace("10.9.0.11/24", "10.9.0.11"),
        "line 6, group 1, address 1, ip: '10.9.0.11' needs the prefix length that it has at home, for example 10.9.0.11/24",
    ),
    "a prefix that cannot be": (GROUP.replace("11/64", "11/129"), "needs the prefix length that it has at home, for example fd09::11/64"),
    "multicast": (GROUP.replace("10.9.0.11", "224.0.0.1"), "224.0.0.1 cannot move"),
    "link-local": (GROUP.replace("fd09::11", "fe80::11"), "fe80::11 cannot move"),
    "a scope": (GROUP.replace("fd09::11", "fe80::11%eth0"), "an address with a scope belongs to one port and cannot move"),
    "no home": (GROUP.replace(', home = "eth0"', ""), "line 6, group 1, address 1: has no home; an address is written"),
    "an unknown setting of an address": (GROUP.replace("allowed", "alowed"), "line 7, group 1, address 2, alowed: no such setting"),
    "addresses that are texts": ("[[group]]\nports=['a']\naddress = ['10.9.0.1/24']", "line 3, group 1, address 1: must be a table"),
    "an unknown choice": (GROUP + 'choose = "best"', "line 9, group 1, choose: must be 'least-loaded' or 'first', not 'best'"),
    "probes of nobody": (GROUP + "probe = {}", "line 9, group 1, probe, targets: names nobody"),
    "probes too often": (
        GROUP + '[group.probe]\ntargets = ["10.9.0.1"]\ninterval_ms = 1',
        "line 11, group 1, probe, interval_ms: must be a whole number in 20..10000, not 1",
    ),
    "probes of what is no address": (GROUP + 'probe = { targets = ["x"] }', "line 9, group 1, probe, targets 1: 'x' is not"),
    "probes with an unknown setting": (GROUP + "probe = { mises = 1 }", "line 9, group 1, probe, mises: no such setting"),
    "an exclusion": (GROUP + 'exclude = ["x"]', "line 9, group 1, exclude 1: 'x' is not a network"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    text, expected = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.toml")
    said = str(caught.value)
    assert said.startswith("x.toml")
    assert expected in said


def test_settings_from_python_are_checked_too() -> None:
    group = Group(name="g", ports=("a",), addresses=(ManagedAddress("10.0.0.1", 24, "a"),))
    with pytest.raises(ConfigError, match="min_stay_s: must be a number"):
        Config(groups=(group,), min_stay_s=-1)
    with pytest.raises(ConfigError, match="misses"):
        Probe(targets=("10.0.0.1",), misses=0)
    with pytest.raises(ConfigError, match="home"):
        Group(name="g", ports=("a",), addresses=(ManagedAddress("10.0.0.1", 24, "b"),))


def test_every_number_has_a_range_and_every_word_a_choice() -> None:
    for each in (*fields(Config), *fields(Group), *fields(Probe)):
        if isinstance(each.default, str):
            assert each.name in CHOICES or each.name == "control", each.name
        if isinstance(each.default, int) and not isinstance(each.default, bool):
            low, high = RANGES[each.name]
            assert low <= each.default <= high


# -- lines


KEYS = st.text("ab-_9", min_size=1, max_size=3) | st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=4)
VALUES = st.recursive(
    st.integers(-99, 99) | st.booleans() | st.text("a\"'#]}\\,=\n[é", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def quoted(text: str) -> str:
    return '"' + "".join(each if each.isalnum() and each.isascii() else f"\\U{ord(each):08X}" for each in text) + '"'


def written(value: Any, draw: Any) -> str:
    """A value as TOML, one of the ways in which it can be written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        ways = [quoted(value), '"""' + "".join(each if each not in '"\\' else "\\" + each for each in value) + '"""']
        if "'" not in value:
            ways += [f"'''{value}'''"] + ([] if "\n" in value else [f"'{value}'"])
        return str(draw(st.sampled_from(ways)))
    if isinstance(value, list):
        gap = draw(st.sampled_from(["", " ", "\n", " # ]\n"]))
        return "[" + "".join(f"{gap}{written(each, draw)}{gap}," for each in value) + gap + "]"
    return "{" + ", ".join(f"{quoted(key)} = {written(each, draw)}" for key, each in value.items()) + "}"


def paths_of(value: Any, above: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return {(*above, key) for key, _ in items}.union(*(paths_of(each, (*above, key)) for key, each in items))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.dictionaries(KEYS, VALUES, max_size=4), st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_everything_has_its_line(data: st.DataObject, top: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    """All that tomllib finds in a file, however it is written, has a line; and a key stands in its line."""
    draw = data.draw
    top.pop("table", None)
    text = "".join(f"{quoted(key)} = {written(each, draw)}  # ' \" [\n" for key, each in top.items())
    for table in tables:
        text += "[[ table ]]\n" + "".join(f"{quoted(key)}={written(each, draw)}\n" for key, each in table.items())
        text += "\n  [table.'in side'.x]\n  a.b = 1\n" if "in side" not in table else ""
    found = find_lines(text)
    assert set(found) == paths_of(tomllib.loads(text))
    rows = text.split("\n")
    for path, line in found.items():
        if isinstance(path[-1], str) and path[0] != "table":
            assert quoted(path[-1]) in rows[line - 1]


def test_lines_of_headers_and_dotted_keys() -> None:
    text = "a.b = 1\n[x.y]\nz = [\n1,\n2]\n[[t]]\n[[t]]\nk = { l = 1 }\n[t.u]\nv = 1\n"
    assert find_lines(text) == {
        ("a",): 1, ("a", "b"): 1, ("x",): 2, ("x", "y"): 2, ("x", "y", "z"): 3, ("x", "y", "z", 0): 4, ("x", "y", "z", 1): 5,
        ("t",): 6, ("t", 0): 6, ("t", 1): 7, ("t", 1, "k"): 8, ("t", 1, "k", "l"): 8, ("t", 1, "u"): 9, ("t", 1, "u", "v"): 10,
    }  # fmt: skip
