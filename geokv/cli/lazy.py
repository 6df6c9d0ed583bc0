"""A group of commands that are imported when they run, so that `geokv --help` loads none of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click


class Lazy(NamedTuple):
    """Where a command stands, and what it does in one line (for `--help`, which does not import it)."""

    module: str
    attribute: str
    summary: str


class LazyGroup(click.Group):
    """Looks its commands up in a table of `Lazy` rows."""

    def __init__(self, *arguments: Any, lazy: Mapping[str, Lazy], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = self._lazy.get(cmd_name)
        if row is None:
            return None
        command: click.Command = getattr(import_module(row.module), row.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.summary) for name, row in self._lazy.items()])
