"""`geokv serve`: one node, with every setting of geokv.server.config as a flag.

The flags are made from that table, so none can be forgotten here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from geokv.server.config import SETTINGS, Setting, describe, read_config


def _option(setting: Setting) -> Callable[[Any], Any]:
    text = f"{describe(setting)} [{setting.variable}]"
    if setting.kind is bool:
        spelling = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.option(spelling, setting.name, default=None, help=text)
    kind: Any = click.Choice(setting.choices) if setting.choices else str
    # Converted by read_config, which names the setting, whatever it came from.
    return click.option(setting.flag, setting.name, type=kind, default=None, help=text)


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


@click.command(short_help="Run one node.")
@_with_settings
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help='File of settings (TOML): a line such as log_format = "json" for each. [GEOKV_CONFIG]',
)
def serve(config: Path | None, **flags: Any) -> None:
    """Run one node until SIGTERM.

    Each setting comes from its flag, else from the environment (the name in brackets), else from the file of
    --config, else it has its default. When the node serves it writes a line of JSON with its address to standard
    output; its log goes to standard error.
    """
    settings = read_config({name: value for name, value in flags.items() if value is not None}, os.environ, config)
    from geokv.server.boot import serve as run_node

    run_node(settings)
