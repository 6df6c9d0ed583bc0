"""Where the keys of a TOML text stand: a map from key path to line number.

`tomllib` names a line only for text that is not TOML at all. A value that is valid TOML but makes no sense
(five replicas on three nodes) comes back without one, so this small scan finds it again. It is no second
parser: it runs only over text that tomllib accepted, looks at table headers and at keys that begin a line,
and a key that it does not see (inside an inline table, say) is answered with the line of the nearest
enclosing key.

    [[datacenter]]          ("datacenter", 0)                  line 1
    name = "eu-west"        ("datacenter", 0, "name")          line 2
    [[datacenter.node]]     ("datacenter", 0, "node", 0)       line 3
    rack = "a"              ("datacenter", 0, "node", 0, "rack")
"""

import re
from collections.abc import Sequence

KeyPath = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_LONG_QUOTE = re.compile(r'"""|\'\'\'')


class LineMap:
    """The line of every key and table of one text; lines count from 1."""

    def __init__(self, text: str) -> None:
        self._lines: dict[KeyPath, int] = {(): 1}
        self._lengths: dict[KeyPath, int] = {}
        self._table: KeyPath = ()
        self._scan(text.split("\n"))

    def line(self, path: Sequence[str | int]) -> int:
        """Return the line of `path`, or of the nearest enclosing key that has one."""
        known = tuple(path)
        while known not in self._lines:
            known = known[:-1]
        return self._lines[known]

    def _scan(self, lines: list[str]) -> None:
        inside_long_string = False
        for number, line in enumerate(lines, start=1):
            if not inside_long_string:
                self._look_at(line, number)
            if len(_LONG_QUOTE.findall(line)) % 2:
                inside_long_string = not inside_long_string

    def _look_at(self, line: str, number: int) -> None:
        if header := _HEADER.match(line):
            self._enter(header[1] == "[[", _parts(header[2]), number)
        elif key := _KEY.match(line):
            self._note(self._table + _parts(key[1]), number)

    def _enter(self, is_array: bool, parts: tuple[str, ...], number: int) -> None:
        """Make the table that a header names the current one; an array header begins its next element."""
        path: KeyPath = ()
        for part in parts[:-1]:
            path = self._newest((*path, part))
        path = (*path, parts[-1])
        if is_array:
            index = self._lengths.get(path, 0)
            self._lengths[path] = index + 1
            self._lines.setdefault(path, number)
            path = (*path, index)
        self._note(path, number)
        self._table = path

    def _newest(self, path: KeyPath) -> KeyPath:
        """Return `path`, or its newest element where it is an array of tables."""
        length = self._lengths.get(path)
        return path if length is None else (*path, length - 1)

    def _note(self, path: KeyPath, number: int) -> None:
        self._lines.setdefault(path, number)


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(dotted))
