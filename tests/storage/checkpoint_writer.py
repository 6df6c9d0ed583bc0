"""Writes checkpoints as version 0.1 did, for the tests of what still reads them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from struct import Struct
from zlib import crc32

import zstandard

from geokv.errors import StorageError
from geokv.storage.checkpoint import (
    _BLOCK_PREFIX,
    _END,
    _PAIR,
    BLOCK_BYTES_MAX,
    END,
    FOLDER,
    FORMAT,
    MAGIC,
    META,
    PAIRS,
    _numbers,
    _path,
)
from geokv.storage.disk import Disk

BLOCK_BYTES = 256 * 1024  # raw bytes after which a block is closed
_LEVEL = 1
_HEADER_BODY = Struct("<HHQ")
_BLOCK_BODY = Struct("<BBHIQ")


def write_checkpoint(disk: Disk, meta: bytes, tables: Mapping[int, Mapping[bytes, bytes]], segment: int) -> None:
    """Write a checkpoint after which recovery begins at log segment `segment`; then remove the older ones.

    `tables` must not change meanwhile. Raises DiskFull or StorageError; the older checkpoint then stands as
    before.
    """
    disk.make_folder(FOLDER)
    older = _numbers(disk)
    number = max(older, default=0) + 1
    temporary = f"{FOLDER}/{number:08}.tmp"
    for name in disk.list(FOLDER):
        if name.endswith(".tmp"):
            disk.remove(f"{FOLDER}/{name}")
    try:
        for piece in _encode(meta, tables, segment):
            disk.append(temporary, piece)
        disk.sync(temporary)
    except BaseException:
        with suppress(StorageError):  # the first error is the one to tell; what is left is removed the next time
            disk.remove(temporary)
        raise
    disk.rename(temporary, _path(number))
    disk.sync_dir(FOLDER)
    for old in older:
        disk.remove(_path(old))
    if older:
        disk.sync_dir(FOLDER)


def _encode(meta: bytes, tables: Mapping[int, Mapping[bytes, bytes]], segment: int) -> Iterator[bytes]:
    body = _HEADER_BODY.pack(FORMAT, 0, segment)
    yield MAGIC + crc32(body).to_bytes(4, "little") + body
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    for start in range(0, len(meta), BLOCK_BYTES):
        yield _encode_block(compressor, META, 0, meta[start : start + BLOCK_BYTES])
    blocks = pairs = 0
    for namespace, table in tables.items():
        for raw in _pack_pairs(table.items()):
            yield _encode_block(compressor, PAIRS, namespace, raw)
            blocks += 1
        pairs += len(table)
    yield _encode_block(compressor, END, 0, _END.pack(blocks, pairs))


def _pack_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The pairs as raw blocks; one empty block where there are none."""
    pieces: list[bytes] = []
    size, is_first, pack = 0, True, _PAIR.pack
    for key, cell in pairs:
        pieces += (pack(len(key), len(cell)), key, cell)
        size += len(key) + len(cell) + 8
        if size >= BLOCK_BYTES:
            yield b"".join(pieces)
            pieces, size, is_first = [], 0, False
    if pieces or is_first:
        yield b"".join(pieces)


def _encode_block(compressor: zstandard.ZstdCompressor, kind: int, namespace: int, raw: bytes) -> bytes:
    if len(raw) > BLOCK_BYTES_MAX:
        raise StorageError(f"a pair of {len(raw)} bytes is too large for a checkpoint: at most {BLOCK_BYTES_MAX}")
    packed = compressor.compress(raw)
    body = _BLOCK_BODY.pack(kind, 0, 0, len(raw), namespace) + packed
    return _BLOCK_PREFIX.pack(len(packed), crc32(body)) + body
