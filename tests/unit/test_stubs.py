"""The stubs are the contract: what they promise is there, what is there is promised, and the parameters have the same names."""

from __future__ import annotations

import ast
import ctypes
import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rdsx
from fakenic.build import SOURCE, load

MODULES = ["_fast", "_operation", "_stream"]
# What is built only where the headers of rdma-core are.
MODULES += [name for name in ("_bridge", "_rings") if importlib.util.find_spec(f"rdsx.{name}")]
MODULES += ["fake_nic"] if "_rings" in MODULES else []
# Classes that others derive from.
BASES = {"Nic"}
# The special methods that are part of the contract.
SPECIAL = {"__init__", "__bytes__"}


def stub_of(name: str) -> ast.Module:
    module = built(name)
    assert not str(module.__file__).endswith(".py"), "the tests are about the compiled module"
    folders = [str(SOURCE.parent)] if name == "fake_nic" else rdsx.__path__
    (found,) = {path for folder in folders if (path := Path(folder) / f"{name}.pyi").exists()}
    return ast.parse(found.read_text())


def built(name: str) -> ModuleType:
    return load() if name == "fake_nic" else importlib.import_module(f"rdsx.{name}")


def is_public(name: str) -> bool:
    return name in SPECIAL or not name.startswith("_")


def stub_names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a stub's module or class declares, imports for itself left out."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname: node for alias in node.names if alias.asname}
    return {name: node for name, node in names.items() if is_public(name)}


def module_names(module: ModuleType) -> set[str]:
    """What a compiled module offers: its own, and classes of rdsx that it shows."""
    own = {"_fast": {"WireError"}}.get(module.__name__.removeprefix("rdsx."), set())
    return own | {
        name
        for name, value in vars(module).items()
        if is_public(name) and not inspect.ismodule(value) and getattr(value, "__module__", module.__name__) == module.__name__
    }


def parameters(function: ast.FunctionDef) -> list[tuple[str, str, bool]]:
    """(name, kind, has a default) of each parameter but self."""
    arguments = function.args
    assert not arguments.vararg
    assert not arguments.kwarg
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    found = [(argument.arg, "positional", index >= first_default) for index, argument in enumerate(positional)]
    found += [
        (argument.arg, "keyword", default is not None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return [parameter for parameter in found if parameter[0] != "self"]


def real_parameters(function: Any) -> list[tuple[str, str, bool]]:
    return [
        (name, "keyword" if parameter.kind is parameter.KEYWORD_ONLY else "positional", parameter.default is not parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]


@pytest.mark.parametrize("name", MODULES)
def test_same_names(name: str) -> None:
    assert set(stub_names(stub_of(name).body)) == module_names(built(name))


def classes() -> list[tuple[str, str]]:
    return [
        (module, name) for module in MODULES for name, node in stub_names(stub_of(module).body).items() if isinstance(node, ast.ClassDef)
    ]


def test_there_are_classes() -> None:
    assert {("_fast", "Path"), ("_fast", "Endpoint"), ("_stream", "StreamWriter")} <= set(classes())


@pytest.mark.parametrize(("module", "name"), classes())
def test_same_members(module: str, name: str) -> None:
    node, cls = stub_names(stub_of(module).body)[name], getattr(built(module), name)
    assert isinstance(node, ast.ClassDef)
    assert (name in BASES) != ("final" in {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)})
    stub = stub_names(node.body)
    real = {member for member in vars(cls) if is_public(member)}
    assert set(stub) - {"__init__"} == real - {"__init__"}
    for member, declared in stub.items():
        if member == "__init__":
            continue
        is_property = isinstance(declared, ast.AnnAssign) or any(
            isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in getattr(declared, "decorator_list", [])
        )
        assert inspect.isdatadescriptor(vars(cls)[member]) == is_property, member


@pytest.mark.parametrize(("module", "name"), classes())
def test_same_parameters_of_methods(module: str, name: str) -> None:
    node, cls = stub_names(stub_of(module).body)[name], getattr(built(module), name)
    assert isinstance(node, ast.ClassDef)
    for member, declared in stub_names(node.body).items():
        if isinstance(declared, ast.FunctionDef) and not declared.decorator_list and not member.startswith("__"):
            assert parameters(declared) == real_parameters(getattr(cls, member)), f"{name}.{member}"


@pytest.mark.parametrize("name", MODULES)
def test_same_parameters_of_functions(name: str) -> None:
    for member, declared in stub_names(stub_of(name).body).items():
        if isinstance(declared, ast.FunctionDef):
            assert parameters(declared) == real_parameters(getattr(built(name), member)), member


@pytest.mark.parametrize(("module", "name"), classes())
def test_constructors_take_what_the_stub_says(module: str, name: str) -> None:
    """`__cinit__` shows in no signature but in the embedded one, so the names are tried out."""
    node, cls = stub_names(stub_of(module).body)[name], getattr(built(module), name)
    assert isinstance(node, ast.ClassDef)
    init = next((member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"), None)
    wanted = parameters(init) if init else []
    required = [parameter for parameter, _, has_default in wanted if not has_default]
    for left_out in required:
        with pytest.raises(TypeError, match="argument"):
            cls(**{parameter: WRONG for parameter in required if parameter != left_out})
    if wanted:  # Cython lets a class whose `__cinit__` takes nothing be called with anything
        with pytest.raises(TypeError, match="argument"):
            cls(**{parameter: RIGHT[parameter] for parameter in required}, no_such_parameter=1)
    for parameter, kind, has_default in wanted:
        arguments = {name: RIGHT[name] for name in required} | ({parameter: RIGHT[parameter]} if has_default else {})
        cls(**arguments)  # every name is known
        if kind == "keyword":
            with pytest.raises(TypeError):
                cls(*(RIGHT[name] for name, _, _ in wanted))


class Wrong:
    """Fits no parameter."""


WRONG = Wrong()


MEMORY = ctypes.create_string_buffer(2048 * 4160)  # room for rings of the default sizes


def right() -> dict[str, Any]:
    """A value for each parameter of a constructor."""
    fast = built("_fast")
    limits = dict.fromkeys(("max_message_bytes", "max_peer_queued_bytes", "max_node_queued_bytes"), 1000)
    limits |= {"max_unacked_packets": 8, "max_unacked_bytes": 1000, "answer_pings": True}
    core = fast.Core(**limits)
    table = fast.BindTable(core, "10.0.0.1")
    foreign = fast.CongestionMap()
    values: dict[str, Any] = {"core": core, "table": table, "host": "10.0.0.1", "foreign": foreign, "first_sequence": 5}
    values |= {"peer_table": table, "is_ipv6": False, "scope": 0, "header_acks": False, "send_limit": 10, "receive_limit": 10, "size": 8}
    values["wall_clock"] = None
    values |= {"kind": "write", "segments": [(0, 8, 1)], "remote_address": 0, "rkey": 1, "lease": None, "compare_add": 0, "swap": 0}
    values["fence"] = False
    values["tos"] = 5
    values |= {"depth": 8, "fd": 0, "available": 1, "owed": 1, "send_slots": 8, "receive_slots": 8, "max_inline_bytes": 0, "lkey": 77}
    values["packed"] = False
    values |= {"send_depth": 8, "receive_depth": 8, "automatic": True, "sink": True}
    values |= {"memory": ctypes.addressof(MEMORY), "memory_bytes": len(MEMORY)}
    if "fake_nic" in MODULES:
        values["nic"] = built("fake_nic").FakeNic(memory=values["memory"], memory_bytes=values["memory_bytes"])
    return limits | values | {"path": fast.Path(table, "10.0.0.2", foreign)}


RIGHT = right()


def test_counter_names() -> None:
    fast = built("_fast")
    names = fast.COUNTER_NAMES
    assert len(names) == len(set(names))
    core = RIGHT["core"]
    assert tuple(core.statistics()) == names
    before = core.statistics()[names[-1]]
    core.count(names[-1], 3)
    assert core.statistics()[names[-1]] == before + 3
    with pytest.raises(ValueError):
        core.count("no such counter")


def test_leaves_have_twins() -> None:
    """Every public function of `_fast` and its two stateful leaves have a twin of the same name and parameters."""
    reference = importlib.import_module("rdsx._reference")
    for name, node in stub_names(stub_of("_fast").body).items():
        if isinstance(node, ast.FunctionDef):
            assert [parameter for parameter, _, _ in real_parameters(getattr(reference, name))] == [
                parameter for parameter, _, _ in parameters(node)
            ]
    for name in ("Reassembly", "CongestionMap", "Ring"):
        node = stub_names(stub_of("_fast").body)[name]
        assert isinstance(node, ast.ClassDef)
        twin = getattr(reference, name)({"Reassembly": 10, "Ring": 8}[name]) if name != "CongestionMap" else reference.CongestionMap()
        assert [member for member in stub_names(node.body) if not hasattr(twin, member)] == []


def test_twins_are_never_imported() -> None:
    """They are oracles, not fallbacks."""
    folder = Path(next(iter(rdsx.__path__)))
    importers = [path.name for path in folder.rglob("*.py") if "_reference" in path.read_text() and path.name != "_reference.py"]
    assert importers == []
