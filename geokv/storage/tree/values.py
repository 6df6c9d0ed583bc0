"""How a cell stands in a tree, and what a tree says of itself. Format page: docs/formats/tree.md.

    value    CRC-32 over namespace, key and cell (4 bytes, little-endian), then the cell
    facts    one record per tree: up to where in the log it holds everything, and what collection has to know

LMDB's pages carry no checksum, so each value has one. It knows the key: a healthy value under another key is as wrong as a
flipped bit.

Invariants: no cell leaves a tree before its checksum was looked at; damage is a StorageError that names the tree's file and
the key. Facts of a newer format are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import Final
from zlib import crc32

from geokv.errors import StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.position import Position

CHECKSUM_BYTES: Final = 4
FORMAT: Final = 1
_ID = Struct("<Q")
_FACTS = Struct("<HHQQQQQ")
_KEY_SHOWN: Final = 64


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What a tree says of itself.

    `position`: all frames before it are in. `version_max`: no cell's version is above. `dead`: tombstones and cells with a
    deadline that were put since the last walk, and those that it left, at most. `walked_ms`: the slowest owner's clock then.
    """

    position: Position = field(default_factory=Position)
    version_max: int = 0
    dead: int = 0
    walked_ms: int = 0


def seed_of(namespace: int) -> int:
    """Where the checksums of a namespace's values begin."""
    return crc32(_ID.pack(namespace))


def seal(cell: bytes, key: bytes, seed: int) -> bytes:
    """The value that stands for a cell."""
    return crc32(cell, crc32(key, seed)).to_bytes(CHECKSUM_BYTES, "little") + cell


def is_sound(value: bytes, key: bytes, seed: int) -> bool:
    """Whether a value is what `seal` made for this key."""
    body = memoryview(value)[CHECKSUM_BYTES:]
    return len(value) > CHECKSUM_BYTES and int.from_bytes(value[:CHECKSUM_BYTES], "little") == crc32(body, crc32(key, seed))


def unseal(value: bytes, key: bytes, seed: int, path: str) -> bytes:
    """The cell. Raises StorageError."""
    if not is_sound(value, key, seed):
        raise damaged(path, key)
    return value[CHECKSUM_BYTES:]


def damaged(path: str, key: bytes) -> StorageError:
    """The error for a value that cannot be right."""
    what = f"the checksum of the value of key {key[:_KEY_SHOWN]!r} does not match"
    return StorageError(f"{path}: damaged: {what}. {WHAT_TO_DO}", path=path, key=key)


def encode_facts(facts: TreeFacts, seed: int) -> bytes:
    body = _FACTS.pack(FORMAT, 0, *facts.position, facts.version_max, facts.dead, facts.walked_ms)
    return crc32(body, seed).to_bytes(CHECKSUM_BYTES, "little") + body


def decode_facts(raw: bytes | None, seed: int, path: str) -> TreeFacts:
    """Inverse of `encode_facts`; those of an empty tree where there are none. Raises StorageError."""
    if raw is None:
        return TreeFacts()
    if len(raw) < CHECKSUM_BYTES or int.from_bytes(raw[:CHECKSUM_BYTES], "little") != crc32(raw[CHECKSUM_BYTES:], seed):
        raise StorageError(f"{path}: damaged: what the tree says of itself has a wrong checksum. {WHAT_TO_DO}", path=path)
    form = int.from_bytes(raw[CHECKSUM_BYTES : CHECKSUM_BYTES + 2], "little")
    if form != FORMAT or len(raw) != CHECKSUM_BYTES + _FACTS.size:
        raise StorageError(
            f"{path} was written by a newer version (format {form}, this one reads {FORMAT}): start the version that wrote it",
            path=path,
        )
    _, _, segment, offset, version_max, dead, walked_ms = _FACTS.unpack_from(raw, CHECKSUM_BYTES)
    return TreeFacts(Position(segment, offset), version_max, dead, walked_ms)
