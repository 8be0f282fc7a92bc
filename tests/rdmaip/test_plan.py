"""Dry runs: a state in, what would be done and why out; and the file that a state is written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from rdmaipkit import FakeHost, config_of
from rdsx.cli.group import main
from rdsx.rdmaip.actions import AddAddress, Announce, EnsureRoutes, RemoveAddress, SwitchRule
from rdsx.rdmaip.config import ConfigError, parse_config
from rdsx.rdmaip.facts import AddressFact, HardwareFact, LinkFact, LinkType, RouteFact, RuleFact, Snapshot
from rdsx.rdmaip.oracle import import_oracle
from rdsx.rdmaip.plan import make_plan
from rdsx.rdmaip.snapshot_file import format_snapshot, parse_snapshot

FILE = """
[[group]]
name = "fabric"
ports = ["p0", "p1"]
address = [
  { ip = "10.9.0.1/24", home = "p0" },
  { ip = "fd09::2/64", home = "p1" },
]
"""


def host_at_rest() -> FakeHost:
    host = FakeHost(config_of(2, 2))
    for managed in host.config.addresses:
        host.put(managed.ip, managed.home, managed.prefix, host.config.mark)
        host.rules[managed.ip] = managed.home
    host.routes = {"p0", "p1"}
    return host


def test_a_host_at_rest_is_announced_and_no_more() -> None:
    host = host_at_rest()
    now, then = make_plan(host.config, host.snapshot())
    assert [step.action for step in now.steps] == [Announce("10.9.0.1", "p0"), Announce("fd09::2", "p1")]
    assert then.steps == ()
    assert [(each.ip, each.ports, each.state) for each in then.addresses] == [("10.9.0.1", ("p0",), "home"), ("fd09::2", ("p1",), "home")]


def test_what_a_failure_would_do() -> None:
    host = host_at_rest()
    _, then = make_plan(host.config, host.snapshot(), [LinkFact("p0", index=2, admin=True, carrier=False)])
    assert [str(step) for step in then.steps] == [
        "add 10.9.0.1/32 to p1 (carrier)",
        "route packets from 10.9.0.1 by p1 (carrier)",
        "remove 10.9.0.1/24 from p0 (carrier)",
        "announce 10.9.0.1 on p1 (so that peers know)",
    ]
    assert [(each.ip, each.state) for each in then.addresses] == [("10.9.0.1", "guest"), ("fd09::2", "home")]


def test_an_empty_host() -> None:
    config = config_of(2, 1)
    now, _ = make_plan(config, Snapshot())
    assert now.steps == ()
    assert [(each.state, each.why) for each in now.addresses] == [("absent", "p0: present, p1: present")]


def test_reasons_are_named() -> None:
    host = FakeHost(config_of(2, 1))
    host.put("10.9.0.1", "p0", 24, host.config.mark)
    host.put("10.9.0.1", "p1", 32, host.config.mark)
    now, _ = make_plan(host.config, host.snapshot())
    assert [(step.action, step.why) for step in now.steps] == [
        (EnsureRoutes("p0"), "routes are missing in it"),
        (SwitchRule("10.9.0.1", "p0"), "not as it should be"),
        (RemoveAddress("10.9.0.1", "p1", 32), "a copy too many"),
        (Announce("10.9.0.1", "p0"), "so that peers know"),
        (EnsureRoutes("p1"), "routes are missing in it"),
    ]


def test_an_address_left_alone() -> None:
    host = FakeHost(config_of(2, 1))
    host.put("10.9.0.1", "lo", 32, mark=4)
    now, _ = make_plan(host.config, host.snapshot())
    assert not any(isinstance(step.action, AddAddress) for step in now.steps)
    assert [(each.state, each.why) for each in now.addresses] == [("left alone", "it is on lo, where it may not be")]


# -- addresses that are discovered


def discovering(exclude: str = "") -> str:
    return f'[[group]]\nname = "g"\nports = ["p0", "p1"]\naddress = "discover"\n{exclude}'


def test_discovery() -> None:
    snapshot = Snapshot(
        addresses=(
            AddressFact("10.9.0.1", "p0", 24),
            AddressFact("169.254.1.1", "p0", 16),
            AddressFact("fe80::1", "p0", 64),
            AddressFact("10.9.0.2", "p1", 24, mark=189),  # came home with our mark
            AddressFact("10.9.0.3", "lo", 8),
            AddressFact("10.9.0.4", "p1", 24, present=False),
        )
    )
    config = parse_config(discovering()).discovered(snapshot)
    assert [(each.ip, each.prefix, each.home) for each in config.addresses] == [("10.9.0.1", 24, "p0"), ("10.9.0.2", 24, "p1")]
    assert config.groups[0].subnets == ("10.9.0.0/24",)
    assert config.discovered(Snapshot()) is not None  # nothing is left to discover


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ((AddressFact("10.9.0.1", "p1", 32, mark=189),), "10.9.0.1 is a guest on p1, so its home is not known"),
        ((AddressFact("10.9.0.1", "p0", 24), AddressFact("10.9.0.1", "p1", 24)), "10.9.0.1 is on two ports"),
        ((AddressFact("10.9.0.1", "eth7", 24),), "the ports of group 'g' have no address"),
        ((AddressFact("10.8.0.1", "p0", 24),), "the ports of group 'g' have no address"),
    ],
)
def test_what_cannot_be_discovered(addresses: tuple[AddressFact, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(discovering('exclude = ["10.8.0.0/16"]')).discovered(Snapshot(addresses=addresses))
    assert said in str(caught.value)


def test_discovery_comes_before_a_policy() -> None:
    with pytest.raises(ValueError, match=r"Config\.discovered"):
        make_plan(parse_config(discovering()), Snapshot())


# -- the state in a file


FACTS = Snapshot(
    links=(LinkFact("p0", True, 2, True, False, b"\x02" * 6, 7, LinkType.INFINIBAND), LinkFact("p1", present=False)),
    addresses=(AddressFact("10.9.0.1", "p0", 24, True, 189, False), AddressFact("fd09::1", "p0", 64, failed=True)),
    rules=(RuleFact("10.9.0.1", "p0"), RuleFact("10.9.0.2", None)),
    routes=(RouteFact("p0", True),),
    hardware=(HardwareFact("p0", None), HardwareFact("p1", False)),
)


@pytest.mark.parametrize("snapshot", [FACTS, Snapshot()])
def test_a_state_survives_its_file(snapshot: Snapshot) -> None:
    assert parse_snapshot(format_snapshot(snapshot)) == snapshot


def test_what_may_be_left_out() -> None:
    assert parse_snapshot('{"links": [{"port": "p0", "mac": "02:00"}]}') == Snapshot(links=(LinkFact("p0", mac=b"\x02\x00"),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "s.json: Expecting"),
        ("[]", "s.json: must be a JSON object with some of links, addresses, rules, routes, hardware"),
        ('{"linkz": []}', "must be a JSON object"),
        ('{"links": 5}', "s.json: links must be a list, not 5"),
        ('{"links": [5]}', "s.json: links 1: must be an object"),
        ('{"links": [{"prt": 5}]}', "s.json: links 1: must be an object with some of port, present"),
        ('{"links": [{"port": 5}]}', "s.json: links 1: port cannot be 5"),
        ('{"links": [{"port": "p0"}, {}]}', "s.json: links 2: "),
        ('{"links": [{"port": "p0", "mac": "zz"}]}', "s.json: links 1: non-hexadecimal"),
        ('{"links": [{"port": "p0", "link_type": "token ring"}]}', "s.json: links 1: 'token ring' is not a valid LinkType"),
        ('{"links": [{"port": "p0", "index": true}]}', "s.json: links 1: index cannot be True"),
        ('{"addresses": [{"ip": "10.9.0", "port": "p0", "prefix": 24}]}', "s.json: addresses 1: '10.9.0' does not appear to be an IPv4"),
        ('{"addresses": [{"ip": "10.9.0.1", "port": "p0", "prefix": "24"}]}', "s.json: addresses 1: prefix cannot be '24'"),
        ('{"routes": [{"port": "p0", "complete": 1}]}', "s.json: routes 1: complete cannot be 1"),
    ],
)
def test_a_wrong_state_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_snapshot(text, "s.json")
    assert said in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["10.9.0.1", "p0", "ethernet"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["ip", "port", "prefix", "mac", "tag", "active", "x"]), inner)
    ),
)
TABLES = st.sampled_from(["links", "addresses", "rules", "routes", "hardware"])


@given(
    st.dictionaries(
        TABLES, st.lists(st.dictionaries(st.sampled_from(["ip", "port", "prefix", "mac", "tag", "active"]), JSON), max_size=2) | JSON
    )
)
def test_any_state_is_facts_or_a_value_error(data: object) -> None:
    try:
        found = parse_snapshot(json.dumps(data))
    except ValueError:
        return
    assert make_plan(config_of(2, 2), found)


# -- commands


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["rdmaip", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and a state."""
    (tmp_path / "rdmaip.toml").write_text(FILE)
    (tmp_path / "state.json").write_text(format_snapshot(host_at_rest().snapshot()))
    return tmp_path / "rdmaip.toml", tmp_path / "state.json"


def test_the_command(files: tuple[Path, Path]) -> None:
    config, state = files
    result = invoke("plan", config, "--state", state, "--down", "p1")
    assert result.exit_code == 0
    assert (
        result.output
        == """\
Now:
  announce 10.9.0.1 on p0 (so that peers know)
  announce fd09::2 on p1 (so that peers know)
  = 10.9.0.1 on p0: home
  = fd09::2 on p1: home

If p1 loses its link:
  add fd09::2/128 to p0 (carrier)
  route packets from fd09::2 by p0 (carrier)
  remove fd09::2/64 from p1 (carrier)
  announce fd09::2 on p0 (so that peers know)
  = 10.9.0.1 on p0: home
  = fd09::2 on p0: guest
"""
    )


def test_the_command_with_everything_down(files: tuple[Path, Path]) -> None:
    config, state = files
    output = invoke("plan", config, "--state", state, "--down", "p0", "--down", "p1").output
    assert "= 10.9.0.1 on p0: parked (p0: carrier, p1: carrier)" in output


def test_the_command_with_a_port_that_comes_up(files: tuple[Path, Path]) -> None:
    config, state = files
    host = host_at_rest()
    host.change("p0", carrier=False)
    state.write_text(format_snapshot(host.snapshot()))
    result = invoke("plan", config, "--state", state, "--up", "p0", "--json")
    plans = json.loads(result.output)
    assert plans["now"]["steps"][0] == {
        "action": "AddAddress", "ip": "10.9.0.1", "port": "p1", "prefix": 32, "guest": True, "why": "startup",
    }  # fmt: skip
    assert plans["then"]["addresses"][0]["ports"] == ["p1"]  # p0 has not settled


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--down", "p7"), "p7 is not a port of any group; those are p0, p1"),
        (("--down", "p0", "--up", "p0"), "p0 cannot be assumed to be both up and down"),
        (("--state", "/no/such"), "/no/such: No such file or directory"),
        (("--save-state", "/no/such/file"), "/no/such/file: No such file or directory"),
    ],
)
def test_what_cannot_be_planned(files: tuple[Path, Path], arguments: tuple[str, ...], said: str) -> None:
    config, state = files
    result = invoke("plan", config, "--state", state, *arguments)
    assert result.exit_code == 1
    assert f"Error: {said}" in result.output


def test_a_file_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    assert f"Error: {path}: No such file or directory" in invoke("plan", path).output
    path.write_bytes(b"\xff")
    assert f"Error: {path}: this is not text" in invoke("plan", path).output
    path.write_text("[rdmaip]\nmark = 0" + FILE)
    assert f"Error: {path}, line 2, mark: must be a whole number in 1..255, not 0" in invoke("plan", path).output


def test_importing_oracles_settings(tmp_path: Path) -> None:
    result = invoke("import-oracle", "ib0,ib1;ib2,ib3", "--no-failback", "--exclude", "169.254/16,172.10/16")
    config = parse_config(result.output)
    assert [group.ports for group in config.groups] == [("ib0", "ib1"), ("ib2", "ib3")]
    assert config.failback == "never"
    assert config.groups[0].exclude == ("169.254.0.0/16", "172.10.0.0/16")
    assert all(group.discover for group in config.groups)
    assert parse_config(import_oracle("ib0,ib1")).failback == "auto"


@pytest.mark.parametrize(
    ("groups", "said"),
    [("ib0;;ib1", "has an empty group"), ("ib0,ib0", "'ib0' is listed twice"), ("ib0,ib1;ib2,ib0", "'ib0' is in group 'ib0-ib1' already")],
)
def test_groups_that_cannot_be_imported(groups: str, said: str) -> None:
    result = invoke("import-oracle", groups)
    assert result.exit_code == 1
    assert said in result.output
