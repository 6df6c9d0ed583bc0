"""The node's own state beside the tables: one file for each flush, named and vouched for by the manifest.

    lsm/META-0000000000000007     what the flush that is job 7 was given, until a later flush stands

It may take many MiB where there are many namespaces, so only flushes write it; a compaction switches the manifest
alone. The manifest states job, length and checksum, so no older or half-written one can be taken for it.

    header, 16 bytes | blocks of PIECE_BYTES, sealed with the job's number and their offset

Invariants: written whole and synced, name included, before a manifest names it; removed only once none does. All
bytes of it pass `write_meta` and `read_meta`. Format page: docs/formats/manifest.md.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

import zstandard

from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.lsm.facts import FOLDER
from geokv.storage.lsm.sealing import Kind, damaged, seal, unseal

MAGIC: Final = b"geokvmet"
FORMAT: Final = 1
PIECE_BYTES: Final = 1024 * 1024
_HEADER = Struct("<8sIHH")
_HEADER_BODY = Struct("<HH")
_LENGTH = Struct("<I")
_NAME = re.compile(r"META-([0-9a-f]{16})")


class MetaFile(NamedTuple):
    """What the manifest says of it: the job that wrote it, how long the state is, and its CRC-32. Job 0: there is none."""

    job: int = 0
    length: int = 0
    crc: int = 0

    @property
    def name(self) -> str:
        return meta_name(self.job)


def meta_name(job: int) -> str:
    return f"{FOLDER}/META-{job:016x}"


def meta_jobs(disk: Disk) -> set[int]:
    """Of the files that are there, live or not."""
    return {int(match[1], 16) for match in map(_NAME.fullmatch, disk.list(FOLDER)) if match}


def write_meta(disk: Disk, job: int, meta: bytes) -> MetaFile:
    """Write it, durably, its name included: a switch of the manifest may last where a name beside it is lost.

    Raises StorageError, DiskFull.
    """
    if not meta:
        return MetaFile()
    name = meta_name(job)
    if disk.exists(name):  # what a failed write left; its unsynced pages must not be written upon
        disk.remove(name)
    disk.append(name, encode_meta(job, meta))
    disk.sync(name)
    disk.sync_dir(FOLDER)
    return MetaFile(job, len(meta), crc32(meta))


def read_meta(disk: Disk, file: MetaFile) -> bytes:
    """The state that the manifest means. Raises StorageError where that is not there, or is damaged."""
    if not file.job:
        return b""
    if not disk.exists(file.name):
        raise damaged(file.name, 0, "the manifest names it, and it is not there")
    meta = decode_meta(disk.read_at(file.name, 0, disk.size(file.name)), file.job)
    if (len(meta), crc32(meta)) != (file.length, file.crc):
        raise damaged(file.name, 0, "it is not the state that the manifest means")
    return meta


def encode_meta(job: int, meta: bytes) -> bytes:
    body = _HEADER_BODY.pack(FORMAT, 0)
    pieces = [MAGIC + crc32(body).to_bytes(4, "little") + body]
    offset = _HEADER.size
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
    for start in range(0, len(meta), PIECE_BYTES):
        block = seal(meta[start : start + PIECE_BYTES], job, offset + _LENGTH.size, Kind.META, compressor)
        pieces += [_LENGTH.pack(len(block)), block]
        offset += _LENGTH.size + len(block)
    return b"".join(pieces)


def decode_meta(raw: bytes, job: int) -> bytes:
    """Inverse of `encode_meta`. Raises StorageError."""
    name = meta_name(job)
    if len(raw) < _HEADER.size:
        raise damaged(name, 0, "it has no whole header")
    magic, crc, form, reserved = _HEADER.unpack_from(raw)
    if magic != MAGIC or crc != crc32(raw[12 : _HEADER.size]):
        raise damaged(name, 0, "the header's checksum does not match")
    if form != FORMAT or reserved:
        raise StorageError(
            f"{name} was written by a newer version (format {form}, this one reads {FORMAT}): start the version that wrote it",
            path=name,
        )
    pieces: list[bytes] = []
    offset = _HEADER.size
    while offset < len(raw):
        start = offset + _LENGTH.size
        length = int.from_bytes(raw[offset:start], "little")
        if start + length > len(raw):
            raise damaged(name, offset, "it ends inside a block")
        pieces.append(unseal(raw[start : start + length], job, start, Kind.META, name))
        offset = start + length
    return b"".join(pieces)
