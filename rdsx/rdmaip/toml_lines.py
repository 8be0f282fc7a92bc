"""Where in a TOML text each key stands, which `tomllib` does not say. Owns the scan; the meaning of values is tomllib's.

It is for error messages, on texts that tomllib has accepted. Invariant: every key and every element of an array that tomllib finds has a
line here.
"""

from __future__ import annotations

import re
import tomllib

__all__ = ["Path", "find_lines"]

Path = tuple[str | int, ...]

SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SCALAR = re.compile(r"[^,\]}\n#]+")
STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


def find_lines(text: str) -> dict[Path, int]:
    """The line, counted from 1, of every key and array element, by its path: `("group", 1, "address", 0, "ip")`."""
    scan = Scan(text)
    scan.document()
    return scan.lines


class Scan:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.last_element: dict[Path, int] = {}  # of each array of tables

    def document(self) -> None:
        table: Path = ()
        while self.skip_space() < len(self.text):
            if self.takes("["):
                is_element = self.takes("[")
                table = self.header(is_element)
                self.note(table)
                self.at = self.text.index("]", self.at) + 1 + is_element
            else:
                self.pair(table)

    def header(self, is_element: bool) -> Path:
        *above, last = self.keys()
        path: Path = ()
        for key in above:
            path = (*path, key)
            self.note(path)
            if path in self.last_element:
                path = (*path, self.last_element[path])
        path = (*path, last)
        self.note(path)
        if not is_element:
            return path
        self.last_element[path] = self.last_element.get(path, -1) + 1
        return (*path, self.last_element[path])

    def keys(self) -> list[str]:
        """A key, in its parts: `a . "b c"`."""
        found = []
        while True:
            self.skip_space()
            match = STRING.match(self.text, self.at) or BARE_KEY.match(self.text, self.at)
            assert match, "tomllib would not have taken this"
            self.at = match.end()
            found.append(unquoted(match[0]))
            self.skip_space()
            if not self.takes("."):
                return found

    def pair(self, table: Path) -> None:
        path = table
        started = self.at
        for key in self.keys():
            path = (*path, key)
            self.lines.setdefault(path, self.line(started))
        self.takes("=")
        self.value(path)

    def value(self, path: Path) -> None:
        self.skip_space()
        if self.takes("["):
            index = 0
            while self.more("]"):
                self.note((*path, index))
                self.value((*path, index))
                index += 1
        elif self.takes("{"):
            while self.more("}"):
                self.pair(path)
        else:
            match = STRING.match(self.text, self.at) or SCALAR.match(self.text, self.at)
            assert match, "tomllib would not have taken this"
            self.at = match.end()

    def more(self, end: str) -> bool:
        """Whether another element follows in an array or inline table; takes the comma before it, or the end."""
        self.skip_space()
        self.takes(",")
        self.skip_space()
        return not self.takes(end)

    def skip_space(self) -> int:
        match = SPACE.match(self.text, self.at)
        assert match
        self.at = match.end()
        return self.at

    def takes(self, sign: str) -> bool:
        found = self.text.startswith(sign, self.at)
        self.at += len(sign) * found
        return found

    def note(self, path: Path) -> None:
        self.lines.setdefault(path, self.line(self.at))

    def line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1


def unquoted(key: str) -> str:
    """A key as it reads."""
    (name,) = tomllib.loads(f"{key} = 0")
    return name
