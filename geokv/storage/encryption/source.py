"""Where the keys come from: a file that only its owner can read, or a command that prints the same.

    KeySource(path, command)    remembers which of the two, and reads it again when keys are rotated

Invariants: neither a file's content nor what a command prints, on either stream, is ever told: errors say where, and
what is wrong with it, by line number.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Final

from geokv.errors import ConfigurationError
from geokv.storage.encryption.keys import KeyRing, parse_keys

COMMAND_S_MAX: Final = 30.0
TEXT_BYTES_MAX: Final = 64 * 1024


class KeySource:
    """See the module; neither of the two: no keys."""

    def __init__(self, path: Path | None = None, command: str = "", command_s_max: float = COMMAND_S_MAX) -> None:
        if path is not None and command:
            raise ConfigurationError(
                "--encryption-key-file and --encryption-key-command are both given: keys come from one place"
            )
        self._path = path
        self._command = command
        self._command_s_max = command_s_max

    @property
    def is_there(self) -> bool:
        return self._path is not None or bool(self._command)

    def read(self) -> KeyRing:
        """The keys as they are now. Raises ConfigurationError."""
        if self._path is not None:
            return parse_keys(_decoded(_read_file(self._path), str(self._path)), str(self._path))
        if self._command:
            origin = "what --encryption-key-command prints"
            return parse_keys(_decoded(_run(self._command, self._command_s_max), origin), origin)
        return KeyRing()


def _read_file(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigurationError(f"the key file {path} is not a file; to read keys from elsewhere use a key command")
            if facts.st_mode & 0o077:
                raise ConfigurationError(
                    f"the key file {path} can be read or written by others (mode {facts.st_mode & 0o777:04o}): "
                    f"chmod 600 {shlex.quote(str(path))}, and think of the keys in it as known to them"
                )
            return os.read(descriptor, TEXT_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be read: {error.strerror or error}") from None


def _run(command: str, seconds: float) -> bytes:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(f"--encryption-key-command cannot be split into words: {error}") from None
    if not words:
        raise ConfigurationError("--encryption-key-command is empty")
    program = words[0]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"the key command {program} took more than {seconds:g} s and was ended") from None
    except OSError as error:
        raise ConfigurationError(f"the key command {program} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        raise ConfigurationError(
            f"the key command {program} ended with code {done.returncode}; run it by hand to see what it says: "
            "its output is not shown here, for there may be keys in it"
        )
    return done.stdout


def _decoded(raw: bytes, origin: str) -> str:
    if len(raw) > TEXT_BYTES_MAX:
        raise ConfigurationError(f"{origin}: more than {TEXT_BYTES_MAX} bytes; that is no list of keys")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{origin} is not plain ASCII text; keys stand there in base64") from None
