"""The keys of a node: a ring of them by id, one of which new files are written with.

    KeyRing    a value: what a key file or a key command said (see `source`)
    Keys       what a disk carries: the ring of the moment, put in place of the older one when keys are rotated

    line of a key file          means
    2026-11-21-7c1e w3Yx…=      a key: its id, 16 or 32 bytes in base64
    plain                       as the last line: new files are not encrypted
    # …                         a comment; empty lines count as one

The last line says what new files are written with; all keys are for reading. So a new key is appended, and an old one
is taken out when no file is left that needs it.

Invariants: no key stands in a message, a repr, a log or a pickle; a ring does not pickle at all. What a worker process
needs is handed over its pipe, as the lines of the file (`lines`). Errors name a line by its number.
"""

from __future__ import annotations

import os
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from geokv.errors import ConfigurationError, EncryptionKeyError
from geokv.storage.encryption.cipher import SALT_BYTES, FileCipher, Stamp, check_of

PLAIN: Final = "plain"
KEY_BYTES: Final = (16, 32)
KEYS_MAX: Final = 256
ID_BYTES_MAX: Final = 16
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{ID_BYTES_MAX - 1}}}")


class KeyRing:
    """Keys by id, and which of them new files are written with (`active`; empty: none, they are plain)."""

    __slots__ = ("_checks", "_keys", "active")

    def __init__(self, keys: Mapping[str, bytes] | None = None, active: str = "") -> None:
        self._keys = dict(keys or {})
        self._checks: dict[str, bytes] = {}
        self.active = active
        assert not active or active in self._keys

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def key(self, key_id: str) -> bytes:
        """KeyError where there is none."""
        return self._keys[key_id]

    def check(self, key_id: str) -> bytes:
        """The check value of a key, found once. KeyError where there is none."""
        found = self._checks.get(key_id)
        if found is None:
            found = self._checks[key_id] = check_of(self._keys[key_id])
        return found

    def writing_with(self, key_id: str) -> KeyRing:
        """The same keys, and this one for new files; empty: they are plain. Its key must be there."""
        return KeyRing(self._keys, key_id)

    def lines(self) -> str:
        """What `parse_keys` makes this ring of. Holds the keys: for a pipe of one's own only."""
        ids = [key_id for key_id in self._keys if key_id != self.active] + [self.active] * bool(self.active)
        return "".join(key_line(key_id, self._keys[key_id]) for key_id in ids) + ("" if self.active else f"{PLAIN}\n")

    def joined(self, newer: KeyRing) -> KeyRing:
        """The keys of both, and the newer one's active key. Raises EncryptionKeyError where an id means two keys."""
        for key_id in newer._keys.keys() & self._keys.keys():
            if newer._keys[key_id] != self._keys[key_id]:
                raise EncryptionKeyError(
                    f"the key {key_id!r} is another one than before: a new key needs a new id; the keys stay as they were",
                    key_id=key_id,
                )
        return KeyRing(self._keys | newer._keys, newer.active)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"KeyRing(ids={self.ids}, active={self.active!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys do not travel in a pickle: it could be logged or stored")


class Keys:
    """What the files of a disk are sealed with. `replace` takes effect with the next file that is begun."""

    __slots__ = ("_draw", "ring")

    def __init__(self, ring: KeyRing | None = None, draw: Callable[[int], bytes] = os.urandom) -> None:
        """`draw`: gives that many random bytes; salts are made of them."""
        self.ring = ring if ring is not None else KeyRing()
        self._draw = draw

    def replace(self, ring: KeyRing) -> None:
        """Rotate. Whoever calls has seen that no key is missing that a file still needs."""
        self.ring = ring

    def draw(self, length: int) -> bytes:
        return self._draw(length)

    def begin(self, label: bytes) -> FileCipher | None:
        """For a new file; None where it is to be plain."""
        ring = self.ring
        if not ring.active:
            return None
        stamp = Stamp(ring.active, ring.check(ring.active), self._draw(SALT_BYTES))
        return FileCipher(ring.key(ring.active), stamp, label)

    def resume(self, stamp: Stamp, label: bytes, name: str) -> FileCipher:
        """For a file that is there. Raises EncryptionKeyError where the key is missing or another one."""
        self.demand(stamp, name)
        return FileCipher(self.ring.key(stamp.key_id), stamp, label)

    def demand(self, stamp: Stamp, name: str) -> None:
        """Raises EncryptionKeyError where the key of file `name` is missing or another one."""
        ring = self.ring
        if stamp.key_id not in ring.ids:
            held = f"the keys given are {', '.join(ring.ids)}" if len(ring) else "no key is given"
            raise EncryptionKeyError(
                f"{name} is encrypted with key {stamp.key_id!r}, and {held}: give that key with --encryption-key-file or "
                "--encryption-key-command; nothing was changed",
                key_id=stamp.key_id,
                path=name,
            )
        if ring.check(stamp.key_id) != stamp.check:
            raise EncryptionKeyError(
                f"{name} is encrypted with a key {stamp.key_id!r} that is another than the one given under that id: "
                "give the right one; nothing was changed",
                key_id=stamp.key_id,
                path=name,
            )


def key_line(key_id: str, key: bytes) -> str:
    """A line of a key file."""
    return f"{key_id} {b2a_base64(key, newline=False).decode()}\n"


def demand_id(key_id: str) -> None:
    """Raises ConfigurationError for what cannot be the id of a key."""
    if not _ID.fullmatch(key_id) or key_id == PLAIN:
        raise ConfigurationError(
            f"{key_id!r} cannot be the id of a key: 1 to {ID_BYTES_MAX} letters, digits, '.', '_' and '-', beginning with a "
            f"letter or a digit, and not {PLAIN!r}"
        )


def parse_keys(text: str, origin: str) -> KeyRing:
    """The ring that a key file describes; `origin` is told in errors. Raises ConfigurationError."""
    keys: dict[str, bytes] = {}
    active = ""
    is_plain = False
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if is_plain:
            raise ConfigurationError(f"{origin}, line {number - 1} or above: {PLAIN!r} must be the last line")
        if words == [PLAIN]:
            is_plain, active = True, ""
            continue
        active, key = _parse_line(words, f"{origin}, line {number}")
        if active in keys:
            raise ConfigurationError(f"{origin}, line {number}: the id {active!r} stands there twice; each key has its own")
        keys[active] = key
        if len(keys) > KEYS_MAX:
            raise ConfigurationError(f"{origin}: more than {KEYS_MAX} keys; take out those that no file needs any more")
    if not keys:
        raise ConfigurationError(f"{origin} holds no key; `geokv storage new-key` makes one")
    return KeyRing(keys, active)


def _parse_line(words: list[str], place: str) -> tuple[str, bytes]:
    if len(words) != 2:
        raise ConfigurationError(f"{place}: a line is the id of a key, a blank, and the key in base64")
    key_id, encoded = words
    if not _ID.fullmatch(key_id) or key_id == PLAIN:
        raise ConfigurationError(
            f"{place}: it does not begin with the id of a key (1 to {ID_BYTES_MAX} letters, digits, . _ -)"
        )
    try:
        key = a2b_base64(encoded, strict_mode=True)
    except (Base64Error, ValueError):
        raise ConfigurationError(f"{place}: the key {key_id!r} is not in base64") from None
    if len(key) not in KEY_BYTES:
        raise ConfigurationError(f"{place}: the key {key_id!r} has {len(key)} bytes; AES-GCM is used with 16 or 32")
    return key_id, key
