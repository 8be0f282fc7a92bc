"""A host's state as JSON text, for `rdsx rdmaip plan --state`, bug reports and tests. Whatever is wrong in such a text is a ValueError."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, fields
from typing import Any, TypeVar

from rdsx.rdmaip.facts import AddressFact, HardwareFact, LinkFact, LinkType, RouteFact, RuleFact, Snapshot

__all__ = ["format_snapshot", "parse_snapshot"]

KINDS: dict[str, type[Any]] = {
    "links": LinkFact,
    "addresses": AddressFact,
    "rules": RuleFact,
    "routes": RouteFact,
    "hardware": HardwareFact,
}
T = TypeVar("T")


def format_snapshot(snapshot: Snapshot) -> str:
    """One JSON object, a line for each fact."""
    parts = []
    for name in KINDS:
        rows = ",\n  ".join(json.dumps(asdict(fact), default=_plain) for fact in getattr(snapshot, name))
        parts.append(f' "{name}": [\n  {rows}\n ]' if rows else f' "{name}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def parse_snapshot(text: str, file: str = "snapshot") -> Snapshot:
    """Facts may leave out what has a default, and tables that are empty. ValueError names file, table, fact and field."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(data, dict) or not data.keys() <= KINDS.keys():
        raise ValueError(f"{file}: must be a JSON object with some of {', '.join(KINDS)}")
    found = {}
    for name, rows in data.items():
        if not isinstance(rows, list):
            raise ValueError(f"{file}: {name} must be a list, not {rows!r}")
        found[name] = tuple(_fact(KINDS[name], row, f"{file}: {name} {number}") for number, row in enumerate(rows, 1))
    return Snapshot(**found)


def _plain(value: object) -> str:
    return value.hex(":") if isinstance(value, bytes) else str(getattr(value, "value", value))


def _fact(kind: type[T], row: object, place: str) -> T:
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(row, dict) or not set(row) <= set(names):
        raise ValueError(f"{place}: must be an object with some of {', '.join(names)}, not {row!r}")
    try:
        return kind(**{name: _value(name, value) for name, value in row.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {str(error).removeprefix(f'{kind.__name__}.')}") from None


def _value(name: str, value: Any) -> Any:
    if name == "mac":
        return bytes.fromhex(str(value).replace(":", ""))
    if name == "link_type":
        return LinkType(value)
    if name == "ip":
        return str(ipaddress.ip_address(value))
    wanted: dict[str, type | tuple[type, ...]] = {
        "prefix": int,
        "index": int,
        "mark": int,
        "tag": (int, type(None)),
        "active": (bool, type(None)),
    }
    is_text = name == "port"
    expected = str if is_text else wanted.get(name, bool)
    if is_text and value is None:
        return None
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{name} cannot be {value!r}")
    return value
