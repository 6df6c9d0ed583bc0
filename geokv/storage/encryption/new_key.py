"""A new key: a line of a key file, printed or put at the end of one."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from geokv.errors import ConfigurationError
from geokv.storage.disk import sync_folder
from geokv.storage.encryption.keys import PLAIN, demand_id, key_line, parse_keys
from geokv.storage.encryption.source import KeySource


def drawn_id() -> str:
    """The day, and four digits that tell keys of one day apart."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(2)}"


def new_line(key_id: str, nbytes: int) -> str:
    """A key of so many random bytes. Raises ConfigurationError for what cannot be an id."""
    demand_id(key_id)
    return key_line(key_id, secrets.token_bytes(nbytes))


def append_line(path: Path, line: str) -> None:
    """Put the line at the end of a key file, durably; the file is made where it is not there, readable by its owner only.

    Raises ConfigurationError; then the file is as it was. A reader sees the old or the new one. One process at a time: the
    file that is written beside it is the lock.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as writer:
                writer.write(_appended(path, line))
                writer.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)  # what is encrypted with a key must not outlast its line
    except FileExistsError:
        raise ConfigurationError(
            f"{temporary} is there: another process is just writing the key file, or was killed in the midst of it. In that"
            " case remove it; the key file is as it was"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be written: {error.strerror or error}") from None


def _appended(path: Path, line: str) -> str:
    """What the file is to hold. Raises ConfigurationError."""
    before = ""
    if path.exists():
        KeySource(path).read()  # its rights, and that it is one
        before = path.read_text(encoding="ascii")
    lines = before.splitlines()
    while lines and lines[-1].strip() in ("", PLAIN):  # encryption was off, and is turned on again
        lines.pop()
    text = "".join(f"{kept}\n" for kept in lines) + line
    parse_keys(text, str(path))
    return text
