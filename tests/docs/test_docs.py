"""What README, examples and docs say is so: code in them runs, tables of them equal what the code has, links lead somewhere.

Programs run in processes of their own, away from the checkout, so that they import the installed package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import contractkit
import rdsx
import rdsx.cli.rdmaip
import rdsx.diagnosis
import rdsx.rdmaip
import rdsx.testing
import rdsx.transports.capture
from apikit import free_tcp_port
from rdsx import ancillary, constants
from rdsx._fast import COUNTER_NAMES
from rdsx.engine.states import diagram
from rdsx.rdmaip.config import CHOICES, RANGES
from rdsx.rdmaip.status import State
from rdsx.transports.stream import REASONS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
GUARD_S = 60

SETUP_COMMANDS = [
    "python -m pip install '.[cli]' && rdsx demo",
    "python -m pip install '.[test]' && pytest",
]


def run_python(directory: Path, *arguments: object) -> str:
    """Standard output of a Python process that must succeed and say nothing on standard error."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=GUARD_S, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    """A section of the second level, up to the next."""
    _, found, rest = page.read_text().partition(f"\n## {title}\n")
    assert found, f"{page.name} has no section {title!r}"
    return rest.partition("\n## ")[0]


def first_cells(text: str) -> Iterator[str]:
    """What stands in backquotes in the first cell of each table row."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


# -- README


def test_the_setup_is_two_commands() -> None:
    assert [line for block in blocks(README, "sh") for line in block.splitlines()] == SETUP_COMMANDS


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = blocks(README, "python")
    assert len(example.splitlines()) <= 15
    config = f", config=rdsx.NodeConfig(port={free_tcp_port()}))"
    program, nodes = re.subn(r'(open_node\("[\d.]+")\)', lambda match: match[1] + config, example)
    assert nodes == 2
    (tmp_path / "example.py").write_text(program)
    lines = run_python(tmp_path, "example.py").splitlines()
    assert lines == [*(f"b'message {n}' from ('127.0.0.1', 4000)" for n in range(3)), "b'thank you'"]


# -- examples


def test_echo_server(tmp_path: Path) -> None:
    output = run_python(tmp_path, ROOT / "examples/echo_server.py", "--port", free_tcp_port(), "--count", 50, "--size", 2000)
    assert re.fullmatch(r"50 echoes of 2000 bytes from 127\.0\.0\.2, median round trip \d+ us\n", output)


def test_work_queue(tmp_path: Path) -> None:
    """Every job is done, and the slow worker does few of them."""
    output = run_python(tmp_path, ROOT / "examples/work_queue.py", "--port", free_tcp_port(), "--count", 60, "--slow-ms", 200)
    *fast, slow = map(int, re.findall(r"(\d+) jobs done$", output, re.MULTILINE))
    assert sum(fast) + slow == 60
    assert len(fast) == 3
    assert slow < min(fast)
    assert "60 jobs done in" in output


def test_peer_monitor(tmp_path: Path) -> None:
    output = run_python(tmp_path, ROOT / "examples/peer_monitor.py", "--port", free_tcp_port(), "--count", 3, "--json")
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["event"] for event in events] == ["up", "down", "restarted", "up", "down", "restarted", "up", "down"]
    assert {(event["local"], event["peer"]) for event in events} == {("127.0.0.1", "127.0.0.2")}


def test_peer_monitor_for_people(tmp_path: Path) -> None:
    output = run_python(tmp_path, ROOT / "examples/peer_monitor.py", "--port", free_tcp_port(), "--count", 1)
    assert re.fullmatch(r"127\.0\.0\.2 up, as 'rdsx'\n127\.0\.0\.2 down, because '\w+'\n", output)


def test_lock_manager(tmp_path: Path) -> None:
    """Every lock is granted once, and protects what it protects."""
    output = run_python(tmp_path, ROOT / "examples/lock_manager.py", "--port", free_tcp_port(), "--count", 20)
    match = re.fullmatch(r"160 locks granted, 160 changes kept, (\d+) reconnects\n", output)
    assert match
    assert int(match[1]) > 3


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


@each_example
def test_examples_explain_themselves(example: Path, tmp_path: Path) -> None:
    source = example.read_text()
    assert len(source.splitlines()) < 90
    first_line = source.splitlines()[0].strip('"')
    help_text = run_python(tmp_path, example, "--help")
    assert first_line in help_text
    assert "--port" in help_text


@each_example
def test_examples_say_in_one_line_that_the_port_is_in_use(example: Path, tmp_path: Path) -> None:
    port = free_tcp_port()
    with contextlib.ExitStack() as stack:
        for host in ("127.0.0.1", "127.0.0.2"):
            stack.enter_context(socket.create_server((host, port)))
        command = [sys.executable, str(example), "--port", str(port)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=GUARD_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"{example.stem}: .*port {port}/tcp: the port is in use.*\n", done.stderr)


# -- docs


def test_programs_in_the_testing_page_run(tmp_path: Path) -> None:
    programs = blocks(DOCS / "testing.md", "python")
    assert len(programs) == 3
    for number, program in enumerate(programs):
        (tmp_path / f"program{number}.py").write_text(program)
        assert run_python(tmp_path, f"program{number}.py") == ""


def test_the_program_in_the_calls_page_runs(tmp_path: Path) -> None:
    (program,) = blocks(DOCS / "calls.md", "python")
    config = f", config=rdsx.NodeConfig(port={free_tcp_port()}))"
    (tmp_path / "program.py").write_text(re.sub(r"(open_node\(\w+)\)", lambda match: match[1] + config, program))
    assert run_python(tmp_path, "program.py") == "0 b'HELLO'\n"


def test_the_capture_in_the_debugging_page_runs(tmp_path: Path) -> None:
    program = blocks(DOCS / "debugging.md", "python")[-1].replace("NodeConfig()", f"NodeConfig(port={free_tcp_port()})")
    (tmp_path / "program.py").write_text(program)
    assert run_python(tmp_path, "program.py") == ""
    assert (tmp_path / "links.pcapng").read_bytes()[:4] == b"\n\r\r\n"


def test_the_arguments_of_a_capture_are_complete() -> None:
    parameters = list(inspect.signature(rdsx.transports.capture.CaptureNetwork).parameters.values())[2:]
    expected = {f"{each.name}={'time.time' if each.default is time.time else each.default}" for each in parameters}
    assert set(first_cells(section(DOCS / "debugging.md", "Captures"))) == expected


def test_the_state_diagram_is_the_codes() -> None:
    match = re.search(r"<!-- begin states -->\n```mermaid\n(.*?)\n```\n<!-- end states -->", (DOCS / "protocol.md").read_text(), re.DOTALL)
    assert match
    assert match[1] == diagram(), "paste the output of rdsx.engine.states.diagram() between the markers"


def reasons_in_the_code() -> set[str]:
    """Every reason that is written down where links end, streams fail and connections are refused."""
    patterns = [
        r'count_drop\("(\w+)"\)',
        r'_refuse\(\w+, "(\w+)", ',
        r'_warn\("(\w+)", ',
        r'_judge\(\w+, "(\w+)", ',
        r'WireError\("(\w+)"',
        r'\.drop\("(\w+)"',
        r'\breason = "(\w+)"',
        r'_reason or "(\w+)"',
        r'\b_end\("(\w+)"\)',
        r'errno or 0, "(\w+)"',
    ]
    found = set(REASONS.values())
    library = ROOT / "rdsx"
    for path in [*library.glob("*.py*"), *library.glob("transports/**/*.py"), *library.glob("engine/*.py"), *library.glob("wire/*.py")]:
        source = path.read_text(errors="replace") if path.suffix in (".py", ".pyx") else ""
        source = "" if path.name == "_reference.py" else source
        for pattern in patterns:
            found |= set(re.findall(pattern, source))
        if path.parent.name == "verbs":
            found |= set(re.findall(r'^    "[A-Z_]+": "(\w+)"', source, re.MULTILINE)) | set(re.findall(r'refused\(\s*"(\w+)"', source))
        if path.name == "stream.py":
            found |= set(re.findall(r'(?:return|_ended =) "(\w+)"', source))
        if path.name == "_rings.pyx":
            found |= set(re.findall(r'break_off\("(\w+)"', source)) | set(re.findall(r'_ERR: "(\w+)"', source))
    return found


def test_drop_reasons_are_complete() -> None:
    text = section(DOCS / "debugging.md", "Drop reasons")
    documented = set(first_cells(text))
    elsewhere = {"short_header"}
    assert elsewhere <= quoted(text)
    found = reasons_in_the_code()
    assert found - documented - elsewhere == set(), "reasons in the code and not in docs/debugging.md"
    assert documented - found == set(), "reasons in docs/debugging.md and not in the code"


def test_counters_are_complete() -> None:
    assert sorted(first_cells(section(DOCS / "debugging.md", "Counters"))) == sorted(COUNTER_NAMES)


# -- docs/api.md

API = DOCS / "api.md"
CALLS_API = DOCS / "api-calls.md"
RDMAIP_API = DOCS / "api-rdmaip.md"
RDMAIP = DOCS / "rdmaip.md"


def signature(name: str, function: Any, *, is_method: bool) -> str:
    """A call as the page shows it: parameters and defaults, `await` in front if it must be awaited."""
    shown = []
    for parameter in list(inspect.signature(function).parameters.values())[is_method:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        shown.append(stars + parameter.name + ("" if parameter.default is parameter.empty else f"={parameter.default!r}"))
    return f"{'await ' if inspect.iscoroutinefunction(function) else ''}{name}({', '.join(shown)})"


def page_of(module: str) -> Path:
    pages = {"rdsx.calls": CALLS_API, "rdsx.rdmaip": RDMAIP_API}
    return next((page for name, page in pages.items() if module.startswith(name)), API)


@pytest.mark.parametrize("cls", [rdsx.Node, rdsx.RdsSocket, rdsx.calls.Courier, rdsx.calls.PendingCall], ids=lambda cls: cls.__name__)
def test_methods_are_complete(cls: type) -> None:
    public = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    expected = {signature(name, value, is_method=True) if callable(value) else name for name, value in public.items()}
    assert set(first_cells(section(page_of(cls.__module__), f"`{cls.__name__}`"))) == expected


def test_settings_are_complete() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(rdsx.NodeConfig)}
    expected = {f"{name}={'time.time' if value is time.time else repr(value)}" for name, value in defaults.items()}
    assert set(first_cells(section(API, "`NodeConfig`"))) == expected


def test_settings_of_calls_are_complete() -> None:
    expected = {f"{field.name}={field.default!r}" for field in dataclasses.fields(rdsx.calls.CallConfig)}
    assert set(first_cells(section(DOCS / "calls.md", "Settings"))) == expected


def test_counters_of_calls_are_complete() -> None:
    """Those with a name of their own; the others are made of endings and codes."""
    source = "".join(path.read_text() for path in (ROOT / "rdsx/calls").glob("*.py"))
    named = set(re.findall(r'counters\["(\w+)"\]', source))
    named |= {f"sessions_{reason}" for reason in re.findall(r'retire\(\w+, "(\w+)"\)', source)}
    named |= {f"busy_{reason}" for reason in re.findall(r'_busy\(session, seq, "(\w+)"', source)} | {"busy_reply_bytes", "busy_running"}
    documented = set(first_cells(section(DOCS / "calls.md", "The monitor")))
    assert {name for name in documented if not name.endswith("_")} == named


def test_public_names_are_complete() -> None:
    names = {re.sub(r"\(.*", "", cell) for cell in first_cells(section(API, "`rdsx`"))}
    assert names == set(rdsx.__all__) - set(rdsx.constants.__all__)
    assert signature("open_node", rdsx.open_node, is_method=False) in quoted(section(API, "`rdsx`"))


PUBLIC_MODULES = [rdsx.errors, ancillary, rdsx.calls, rdsx.diagnosis, rdsx.rdmaip, rdsx.testing, rdsx.transports.capture]


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_public_modules_are_complete(module: ModuleType) -> None:
    assert set(first_cells(section(page_of(module.__name__), f"`{module.__name__}`"))) == set(module.__all__)


@pytest.mark.parametrize("title", ["Events", "Statistics", "Info"])
def test_records_are_complete(title: str) -> None:
    """Each row has the record's name and all its fields; of an event those that `Event` does not have."""
    rows = {}
    for line in section(API, title).splitlines():
        if line.startswith("| `"):
            cells = line.split(" | ")
            rows[cells[0].strip("|` ")] = quoted(cells[1])
    wanted = {
        "Events": [rdsx.Event, rdsx.PeerUp, rdsx.PeerDown, rdsx.PeerRestarted, rdsx.CongestionChanged],
        "Statistics": [rdsx.NodeStatistics, rdsx.ConnectionStatistics, rdsx.SocketStatistics],
        "Info": [
            rdsx.Info,
            rdsx.ConnectionInfo,
            rdsx.MessageInfo,
            rdsx.SocketInfo,
            rdsx.TcpSocketInfo,
            rdsx.IbConnectionInfo,
        ],
    }[title]
    common = {"local", "peer"} if title == "Events" else set()
    assert rows == {cls.__name__: {field.name for field in dataclasses.fields(cls)} - common for cls in wanted}


def test_constants_are_complete() -> None:
    names = {name for name in vars(constants) if name.isupper()}
    assert quoted(section(API, "Constants")) == names
    assert all(getattr(rdsx, name) == getattr(constants, name) for name in names)


def test_faults_are_complete() -> None:
    documented = {cell for cell in first_cells(section(DOCS / "testing.md", "Faults")) if "=" in cell and "(" not in cell}
    assert documented == {f"{field.name}={field.default!r}" for field in dataclasses.fields(rdsx.testing.Faults)}


# -- docs/rdmaip.md


def test_settings_of_rdmaip_are_complete() -> None:
    """With default and range, as the code has them."""
    rows = [line.strip("| ").split(" | ") for line in section(RDMAIP, "Settings").splitlines() if line.startswith("| `")]
    settings = {row[0].strip("`"): row[1] for row in rows if "=" in row[0]}
    assert set(settings) == {f"{each.name}={each.default!r}" for each in dataclasses.fields(rdsx.rdmaip.Config) if each.name != "groups"}
    for name, said in settings.items():
        key = name.partition("=")[0]
        if key in CHOICES:
            assert said == ", ".join(CHOICES[key])
        elif key in RANGES:
            low, high = RANGES[key]
            assert said.endswith(f"{low}..{high}"), key
    text = section(RDMAIP, "Settings")
    for key in ("interval_ms", "misses"):
        assert f"`{key}` is {RANGES[key][0]}..{RANGES[key][1]}" in text


def test_settings_of_groups_are_complete() -> None:
    """Each one that the page has is taken, and the file takes no other."""
    with pytest.raises(rdsx.rdmaip.ConfigError) as caught:
        rdsx.rdmaip.parse_config("[[group]]\nxyz = 1")
    known = str(caught.value).partition("known are ")[2].split(", ")
    rows = {cell for cell in first_cells(section(RDMAIP, "Settings")) if "=" not in cell}
    assert rows == set(known)


def test_the_configuration_in_the_page_is_one() -> None:
    (text,) = blocks(RDMAIP, "toml")
    assert len(rdsx.rdmaip.parse_config(text).addresses) == 3
    (program,) = blocks(RDMAIP, "python")
    compile(program, "program", "exec")


def test_layers_and_states_are_complete() -> None:
    rows = list(first_cells(section(RDMAIP, "States")))
    assert rows[: len(rdsx.rdmaip.Layer)] == [layer.value for layer in rdsx.rdmaip.Layer]
    assert tuple(rows[len(rdsx.rdmaip.Layer) :]) == get_args(State)


def test_commands_of_rdmaip_are_complete() -> None:
    named = {cell.split()[0] for cell in first_cells(section(RDMAIP, "Commands"))}
    assert named == set(rdsx.cli.rdmaip.COMMANDS)


def test_metrics_are_complete() -> None:
    source = (ROOT / "rdsx/rdmaip/metrics.py").read_text()
    named = {f"rdsx_rdmaip_{name}" for name in re.findall(r'\{PREFIX\}_(\w+)"', source)}
    assert set(first_cells(section(RDMAIP, "Control socket, log and metrics"))) == named


def test_methods_of_policy_and_agent_are_complete() -> None:
    for cls in (rdsx.rdmaip.Policy, rdsx.rdmaip.Agent):
        documented = {re.sub(r"^await |\(.*", "", cell) for cell in first_cells(section(RDMAIP_API, f"`{cls.__name__}`"))}
        assert documented <= {name for name in vars(cls) if not name.startswith("_")}
        if cls is rdsx.rdmaip.Agent:
            assert documented == {name for name in vars(cls) if not name.startswith("_")} - {"report"}


# -- docs/contract.md


def test_departures_are_complete() -> None:
    """The table has those that tests name; a name that no test uses says nothing."""
    assert set(first_cells(section(DOCS / "contract.md", "Departures"))) == contractkit.DEPARTURES
    source = "".join(path.read_text() for path in (ROOT / "tests/contract").glob("*.py"))
    assert set(re.findall(r'departs\(stack, "([^"]+)"\)', source)) | {"events", "reset"} == contractkit.DEPARTURES


# -- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_places_named_exist(page: Path) -> None:
    """Folders and files of tests and examples that a page names, and that they are not empty."""
    for place in re.findall(r"`((?:tests|examples|benchmarks)/[\w./]*)`", page.read_text()):
        path = ROOT / place
        assert path.is_file() or list(path.glob("*.py")), f"{page.name}: {place}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) < 250
