"""Who may import whom. The table is the one in CONTRIBUTING.md; a folder that does not exist yet has nothing to break."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "rdsx"  # the checkout: an installed package has no .pyx

# What users import, besides the names of `rdsx` itself.
PUBLIC_MODULES = {"addresses", "ancillary", "calls", "cli", "constants", "diagnosis", "errors", "rdmaip", "testing"}

# The modules of `calls` that do no I/O.
CALLS_CORE = (
    "callee", "caller", "config", "errors", "holder", "monitor", "outcome", "outgoing", "outside", "records", "slots", "statistics",
    "tables", "timers", "wire",
)  # fmt: skip

# The modules of `rdmaip` that do no I/O.
RDMAIP_CORE = (
    "actions", "address", "announce", "checks", "config", "echoes", "events", "facts", "oracle", "placement", "plan", "planner", "policy",
    "port", "prober", "retries", "snapshot_file", "status", "toml_lines", "wording",
)  # fmt: skip

IMPURE = {"trio", "socket", "time", "random", "select", "selectors", "threading", "asyncio", "secrets", "datetime"}


def package_of(path: Path) -> list[str]:
    """The package that relative imports in this file start from."""
    return ["rdsx", *path.relative_to(ROOT).parts[:-1]]


def imports(path: Path, source: str | None = None) -> set[str]:
    """Full names of everything a file imports, also inside functions; `from a import b` counts as `a` and as `a.b`.

    What only the type checker sees does not couple anything, so `if TYPE_CHECKING:` is left out.
    """
    tree = ast.parse(path.read_text() if source is None else source)
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "import_module", "importlib.import_module"):
            found |= {str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def is_inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def files(folder: str) -> list[Path]:
    """The Python files of a folder, or of a module that is not a folder."""
    place = ROOT / folder
    if place.with_suffix(".py").exists():
        return [place.with_suffix(".py")]
    if not place.exists():
        return []
    return sorted(place.rglob("*.py"))


def broken(folder: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for name in sorted(imports(path))
        if any(is_inside(name, module) for module in forbidden)
    ]


def public_only(path: Path, found: set[str], package: str) -> list[str]:
    """What a file of `package` takes that is not public: private names, and modules that no user imports."""
    modules = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix in (".py", ".pyx")}
    inner = (modules | {"engine", "node", "wire"}) - PUBLIC_MODULES
    wrong = []
    for name in sorted(found):
        parts = name.split(".")
        if parts[0] != "rdsx" or is_inside(name, f"rdsx.{package}"):
            continue
        if any(part.startswith("_") and not part.startswith("__") for part in parts[1:]) or (parts[1:2] and parts[1] in inner):
            wrong.append(f"{path.name} imports {name}")
    return wrong


@pytest.mark.parametrize("folder", ["engine", "wire"])
def test_the_engine_and_the_wire_know_no_world(folder: str) -> None:
    assert broken(folder, IMPURE) == []


@pytest.mark.parametrize("folder", ["engine", "wire"])
def test_the_engine_and_the_wire_know_nobody_above(folder: str) -> None:
    above = {"rdsx.node", "rdsx.sockets", "rdsx.supervisor", "rdsx.transports", "rdsx.cli", "rdsx.calls", "rdsx.testing"}
    assert broken(folder, above | ({"rdsx.engine"} if folder == "wire" else set())) == []


def test_policies_and_holders_know_no_world() -> None:
    for name in ("policy.py", "holder.py"):
        for path in ROOT.rglob(name):
            assert [found for found in imports(path) if any(is_inside(found, module) for module in IMPURE)] == []


@pytest.mark.parametrize("name", CALLS_CORE)
def test_the_core_of_calls_knows_no_world(name: str) -> None:
    """Nor the courier and the store that stand around it."""
    around = {f"rdsx.calls.{path.stem}" for path in files("calls") if path.stem not in (*CALLS_CORE, "__init__")}
    found = imports(ROOT / "calls" / f"{name}.py")
    assert [wrong for wrong in found if any(is_inside(wrong, module) for module in IMPURE | around)] == []


@pytest.mark.parametrize("name", RDMAIP_CORE)
def test_the_core_of_rdmaip_knows_no_world(name: str) -> None:
    """Nor what stands around it: netlink, tasks, the control socket; and it needs no package that is not Python's own."""
    around = {f"rdsx.rdmaip.{path.stem}" for path in files("rdmaip") if path.stem not in (*RDMAIP_CORE, "__init__")}
    found = imports(ROOT / "rdmaip" / f"{name}.py")
    forbidden = IMPURE | around | {"os", "rdsx.netlink", "pyroute2", "click", "rich"}
    assert [wrong for wrong in found if any(is_inside(wrong, module) for module in forbidden)] == []


@pytest.mark.parametrize("name", ["moves", "netlink/rtnetlink", "netlink/picture"])
def test_what_tells_of_moves_knows_no_world(name: str) -> None:
    assert [found for found in imports(ROOT / f"{name}.py") if any(is_inside(found, module) for module in IMPURE)] == []


def test_the_netlink_codec_is_imported_by_few() -> None:
    """It brings pyroute2, which takes 80 ms to import: programs that have nothing to do with netlink must not pay for it."""
    users = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if any(is_inside(name, "pyroute2") for name in imports(path))}
    assert users == {"netlink/rtnetlink.py"}
    assert not loads("rdsx, rdsx.cli", "pyroute2")


def test_a_node_follows_moves_without_an_agent() -> None:
    """`watch()` is all that it needs; the agent that moves addresses takes as long to import again."""
    assert [path for path in files("netlink") if any(is_inside(name, "rdsx.rdmaip") for name in imports(path))] == []
    ours = {name for path in files("netlink") for name in imports(path) if is_inside(name, "rdsx")}
    assert {name.split(".")[1] for name in ours if name != "rdsx"} == {"moves", "netlink"}
    assert broken("transports", {"rdsx.rdmaip"}) == []
    assert not loads("rdsx.driver, rdsx.transports.local, rdsx.netlink.watcher", "rdsx.rdmaip")


def loads(modules: str, package: str) -> bool:
    """Whether importing these modules brings the package with it."""
    program = f"import sys, {modules}; sys.exit(any((name + '.').startswith('{package}.') for name in sys.modules))"
    return subprocess.run([sys.executable, "-c", program], cwd="/", timeout=60, check=False).returncode != 0


def test_the_kernels_stack_does_not_know_ours() -> None:
    ours = ("_fast", "_stream", "driver", "engine_socket", "supervisor", "transports", "cli", "calls")
    engine = ("engine.connection", "engine.states", "engine.reconnect")  # not its events: they are of the face
    assert broken("kernel", {f"rdsx.{name}" for name in ours + engine}) == []


def test_what_only_looks_opens_nothing() -> None:
    """Whether verbs can work is asked by programs that never use them: no event loop, and nothing of ours is loaded for it."""
    for name in ("machine", "diagnosis", "transports/verbs/detection", "transports/verbs/devices"):
        found = broken(name, IMPURE | {"rdsx._fast", "rdsx._bridge", "rdsx.driver", "rdsx.engine", "pyverbs"})
        assert files(name)
        assert found == []


def test_pyverbs_is_imported_only_when_it_is_used() -> None:
    """It is optional, slow to import, and configures the application's logging as it is imported."""
    seen = 0
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        at_once = [name for node in tree.body for name in imports(path, ast.unparse(node))]
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for part in ast.walk(node)}
        outside = [node for node in ast.walk(tree) if id(node) not in inside and isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in outside if "pyverbs" in ast.unparse(node)], path
        seen += any(is_inside(name, "pyverbs") for name in at_once)
    assert seen > 2


def test_transports_do_not_know_the_engine() -> None:
    assert broken("transports", {"rdsx.engine", "rdsx.node", "rdsx.sockets", "rdsx.supervisor", "rdsx.cli", "rdsx.calls"}) == []


@pytest.mark.parametrize("folder", ["cli", "calls"])
def test_users_take_public_names_only(folder: str) -> None:
    assert [wrong for path in files(folder) for wrong in public_only(path, imports(path), folder)] == []


def test_the_hot_path_knows_nobody() -> None:
    for name in ("_fast.pyx", "_operation.pyx", "_stream.pyx", "_rings.pyx"):
        lines = (ROOT / name).read_text().splitlines()
        modules = [line.split()[1] for line in lines if line.split()[:1] in (["import"], ["from"], ["cimport"]) and "import" in line]
        assert modules, name
        for module in modules:
            known = module.split(".")[0] in ("cpython", "libc", "cython") or module in ("rdsx._fast", "rdsx._operation", "rdsx.errors")
            assert known, (name, module)


def test_folders_are_found() -> None:
    """The checks above must not pass because they look at nothing."""
    assert (ROOT / "_fast.pyx").exists()
    for folder in ("engine", "wire", "transports", "cli", "calls", "rdmaip"):
        if list((ROOT / folder).glob("*.py")):
            assert len(files(folder)) >= 1
        if len(files(folder)) > 2:
            assert any(name.startswith("rdsx") for path in files(folder) for name in imports(path)), folder


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import trio", {"trio"}),
        ("import os.path as p, time", {"os.path", "time"}),
        ("from . import states", {"rdsx.engine", "rdsx.engine.states"}),
        ("from ..node import Node", {"rdsx.node", "rdsx.node.Node"}),
        ("from rdsx import _fast", {"rdsx", "rdsx._fast"}),
        ("def f():\n    import socket", {"socket"}),
        ("importlib.import_module('time')", {"time"}),
        ("if TYPE_CHECKING:\n    import trio\nelse:\n    import os", {"os"}),
    ],
)
def test_how_imports_are_read(source: str, expected: set[str]) -> None:
    assert imports(ROOT / "engine" / "imaginary.py", source) == expected


def test_how_private_names_are_recognised() -> None:
    path = ROOT / "cli" / "imaginary.py"
    fine = {"rdsx", "rdsx.open_node", "rdsx.errors", "rdsx.errors.WireError", "rdsx.testing.fake", "rdsx.cli._tables", "os._exit", "trio"}
    assert public_only(path, fine | {"rdsx.__version__"}, "cli") == []
    for name in ("rdsx._fast", "rdsx.engine", "rdsx.engine.states.State", "rdsx.node.Node", "rdsx.testing._fake", "rdsx.wire.hello"):
        assert public_only(path, {name}, "cli")
