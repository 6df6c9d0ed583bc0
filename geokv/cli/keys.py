"""The options with which a command is given the keys of encryption at rest, as `geokv serve` is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from geokv.storage.encryption.keys import KeyRing

_KEY_FILE = click.option(
    "--encryption-key-file",
    "key_file",
    type=click.Path(path_type=Path),
    envvar="GEOKV_ENCRYPTION_KEY_FILE",
    help="The keys that the node was given. [GEOKV_ENCRYPTION_KEY_FILE]",
)
_KEY_COMMAND = click.option(
    "--encryption-key-command",
    "key_command",
    default="",
    envvar="GEOKV_ENCRYPTION_KEY_COMMAND",
    help="The command that prints them. [GEOKV_ENCRYPTION_KEY_COMMAND]",
)


def keys_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The keys with which files are read: `key_file` and `key_command`."""
    return _KEY_FILE(_KEY_COMMAND(command))


def read_ring(key_file: Path | None, key_command: str) -> KeyRing:
    """The keys that they stand for, none where neither is given. Raises ConfigurationError."""
    from geokv.storage.encryption.source import KeySource

    return KeySource(key_file, key_command).read()
