"""Output: tables for people, one JSON document for programs.

Versions are 64 bits wide, more than JSON's readers keep exactly, so they are strings there. A value or key that is
not UTF-8 goes as base64, under another name, so that nobody mistakes one for the other.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

WIDTH_WITHOUT_TERMINAL: Final = 120


def print_json(tree: object) -> None:
    """One document, on one line unless a person reads it."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(tree, indent=indent, ensure_ascii=False, allow_nan=False))


def text_or_base64(name: str, payload: bytes | None) -> dict[str, str | None]:
    """`{name: text}`, or `{name_base64: …}` for bytes that are no UTF-8; an absent one is None."""
    if payload is None:
        return {name: None}
    try:
        return {name: payload.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(payload).decode("ascii")}


def plain(value: Any) -> Any:
    """A value that a policy shows as JSON can carry it: bytes as text, or as {"base64": …} where they are no UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, frozenset | set):
        return [plain(one) for one in sorted(value)]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {_name_of(key): plain(one) for key, one in value.items()}
    return value


def _name_of(key: Any) -> str:
    """A field of a map: its name, and its type where the key is both."""
    if isinstance(key, tuple):
        name, kind = key
        return f"{_name_of(name)}:{kind}"
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table; numbers stand right."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console().print(table)


def console(to_stderr: bool = False) -> Any:
    """rich's console; it honours NO_COLOR and a missing terminal."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
