"""A checkpoint: what version 0.1 kept in place of an engine's tables. It is read once, and loaded into the engine.

    header | META blocks | PAIRS blocks, namespace by namespace | END block

Every block is a zstd frame with a CRC, of a bounded size. The END block counts what came before it, so a file that was
cut at a block's edge is seen too.

Invariants: damage is an error, never skipped: an older checkpoint would need log segments that are gone. What is read
is removed only when the engine holds it, durably. Format page: docs/formats/checkpoint.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from struct import Struct
from typing import Final
from zlib import crc32

import zstandard

from geokv.errors import StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import Disk

FOLDER: Final = "checkpoint"
MAGIC: Final = b"geokvckp"
FORMAT: Final = 1
BLOCK_BYTES_MAX: Final = 64 * 1024 * 1024  # raw bytes that a block may expand to; one pair is never cut
META: Final = 1
PAIRS: Final = 2
END: Final = 3

_HEADER = Struct("<8sIHHQ")
_BLOCK_PREFIX = Struct("<II")
_BLOCK = Struct("<IIBBHIQ")
_PAIR = Struct("<II")
_END = Struct("<QQ")
_NAME = re.compile(r"(\d{8,})\.checkpoint")

Pairs = list[tuple[bytes, bytes]]
_Block = tuple[int, int, bytes]


def read_checkpoint(disk: Disk) -> tuple[int, bytes, Iterator[tuple[int, Pairs]]] | None:
    """The newest one: (segment, meta, iterator of (namespace, pairs)); None where none was ever written.

    Every namespace of it comes at least once, an empty one with no pairs. Raises StorageError on any damage,
    during the iteration too: what came before it must then not be used.
    """
    if not disk.exists(FOLDER):
        return None
    numbers = _numbers(disk)
    if not numbers:
        return None
    name = _path(max(numbers))
    header = disk.read_at(name, 0, _HEADER.size)
    segment = _decode_header(header, name)
    blocks = _blocks(disk, name)
    meta: list[bytes] = []
    for block in blocks:
        if block[0] != META:
            return segment, b"".join(meta), _tables(chain([block], blocks), name)
        meta.append(block[2])
    raise _damaged(name, _HEADER.size, "it ends without its end block")


def remove_checkpoints(disk: Disk) -> None:
    """Remove them all, and what an interrupted write left. Raises StorageError."""
    if not disk.exists(FOLDER):
        return
    names = disk.list(FOLDER)
    for name in names:
        disk.remove(f"{FOLDER}/{name}")
    if names:
        disk.sync_dir(FOLDER)


def _path(number: int) -> str:
    return f"{FOLDER}/{number:08}.checkpoint"


def _numbers(disk: Disk) -> list[int]:
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, disk.list(FOLDER)) if match)


def _damaged(name: str, offset: int, what: str) -> StorageError:
    return StorageError(
        f"{name}: damaged at byte {offset}: {what}. {WHAT_TO_DO}",
        path=name,
        offset=offset,
    )


# --- decoding -------------------------------------------------------------------------------------------------------


def _decode_header(header: bytes, name: str) -> int:
    if len(header) < _HEADER.size:
        raise _damaged(name, 0, "it has no whole header")
    magic, crc, form, _, segment = _HEADER.unpack(header)
    if magic != MAGIC or crc != crc32(header[12:]):
        raise _damaged(name, 0, "the header's checksum does not match")
    if form != FORMAT:
        raise StorageError(
            f"{name} was written by a newer version (format {form}, this one reads {FORMAT}): start the version that wrote it",
            path=name,
        )
    return int(segment)


def _blocks(disk: Disk, name: str) -> Iterator[_Block]:
    """(kind, namespace, raw bytes) of every block up to the END block, which comes last."""
    size, offset, kind = disk.size(name), _HEADER.size, 0
    decompressor = zstandard.ZstdDecompressor()
    while kind != END:
        if offset == size:
            raise _damaged(name, offset, "it ends without its end block")
        header = disk.read_at(name, offset, _BLOCK.size)
        if len(header) < _BLOCK.size:
            raise _damaged(name, offset, "it ends inside a block")
        length, crc, kind, _, _, raw_length, namespace = _BLOCK.unpack(header)
        start = offset + _BLOCK.size
        # The length stands outside the checksum; it is believed only as far as the file goes.
        packed = disk.read_at(name, start, length) if start + length <= size else b""
        if len(packed) != length or crc32(packed, crc32(header[_BLOCK_PREFIX.size :])) != crc:
            raise _damaged(name, offset, "the block's checksum does not match")
        yield kind, namespace, _unpack(decompressor, packed, raw_length, name, offset)
        offset = start + length
    if offset != size:
        raise _damaged(name, offset, "something stands behind its end block")


def _unpack(decompressor: zstandard.ZstdDecompressor, packed: bytes, raw_length: int, name: str, offset: int) -> bytes:
    # The frame states its size, and zstandard allocates that much at once: so it is looked at first.
    try:
        if raw_length <= BLOCK_BYTES_MAX and zstandard.frame_content_size(packed) == raw_length:
            return decompressor.decompress(packed)
    except zstandard.ZstdError as error:
        raise _damaged(name, offset, f"the block cannot be decompressed ({error})") from error
    raise _damaged(name, offset, f"the block's size is not what it states ({raw_length}), or too large")


def _tables(blocks: Iterable[_Block], name: str) -> Iterator[tuple[int, Pairs]]:
    count = pairs = 0
    for kind, namespace, raw in blocks:
        if kind == END:
            if raw != _END.pack(count, pairs):
                raise _damaged(name, 0, f"it holds {count} blocks and {pairs} pairs, its end block states another number")
        elif kind == PAIRS:
            table = _unpack_pairs(raw, name)
            count += 1
            pairs += len(table)
            yield namespace, table
        else:
            raise _damaged(name, 0, f"a block of unknown kind {kind}")


def _unpack_pairs(raw: bytes, name: str) -> Pairs:
    pairs: Pairs = []
    offset, unpack = 0, _PAIR.unpack_from
    try:
        while offset < len(raw):
            key_length, cell_length = unpack(raw, offset)
            start = offset + 8
            middle = start + key_length
            offset = middle + cell_length
            pairs.append((raw[start:middle], raw[middle:offset]))
    except struct.error as error:
        raise _damaged(name, 0, "a pair's lengths do not fit") from error
    if offset != len(raw):
        raise _damaged(name, 0, "a pair's lengths do not fit")
    return pairs
