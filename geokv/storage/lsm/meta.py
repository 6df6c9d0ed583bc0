"""The node's own state beside the tables: one file for each flush, named and vouched for by the manifest.

    lsm/META-0000000000000007     what the flush that is job 7 was given, until a later flush stands

It may take many MiB where there are many namespaces, so only flushes write it; a compaction switches the manifest
alone, but for the first one after a rotation of keys. The manifest states job, length and checksum, so no older or
half-written one can be taken for it.

    header (`lsm.small_file`) | blocks of PIECE_BYTES, sealed with the job's number and their offset

Where the disk has a key for new files it is encrypted, under a new salt each time it is written.

Invariants: written whole and synced, name included, before a manifest names it; removed only once none does. All
bytes of it pass `write_meta` and `read_meta`. Format page: docs/formats/manifest.md.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

import zstandard

from geokv.storage.disk import Disk
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.facts import FOLDER
from geokv.storage.lsm.sealing import Kind, damaged, seal, unseal
from geokv.storage.lsm.small_file import HEADER_BYTES, HEADER_BYTES_MAX, encode_header, key_id_of, read_header

MAGIC: Final = b"geokvmet"
FORMAT: Final = 1
PIECE_BYTES: Final = 1024 * 1024
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
    disk.append(name, encode_meta(job, meta, disk.keys))
    disk.sync(name)
    disk.sync_dir(FOLDER)
    return MetaFile(job, len(meta), crc32(meta))


def read_meta(disk: Disk, file: MetaFile) -> bytes:
    """The state that the manifest means. Raises StorageError where that is not there, or is damaged, EncryptionKeyError."""
    if not file.job:
        return b""
    if not disk.exists(file.name):
        raise damaged(file.name, 0, "the manifest names it, and it is not there")
    meta = decode_meta(disk.read_at(file.name, 0, disk.size(file.name)), file.job, disk.keys)
    if (len(meta), crc32(meta)) != (file.length, file.crc):
        raise damaged(file.name, 0, "it is not the state that the manifest means")
    return meta


def meta_key_id(disk: Disk, file: MetaFile) -> str:
    """The key that it is written with; empty: none, it is plain or not there. Raises StorageError."""
    return key_id_of(disk.read_at(file.name, 0, HEADER_BYTES_MAX), MAGIC, FORMAT, file.name) if file.job else ""


def encode_meta(job: int, meta: bytes, keys: Keys | None = None) -> bytes:
    cipher = (keys or Keys()).begin(_label(job))
    pieces = [encode_header(MAGIC, FORMAT, 0, cipher)]
    offset = len(pieces[0])
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
    for start in range(0, len(meta), PIECE_BYTES):
        block = seal(meta[start : start + PIECE_BYTES], job, offset + _LENGTH.size, Kind.META, compressor, cipher)
        pieces += [_LENGTH.pack(len(block)), block]
        offset += _LENGTH.size + len(block)
    return b"".join(pieces)


def decode_meta(raw: bytes, job: int, keys: Keys | None = None) -> bytes:
    """Inverse of `encode_meta`. Raises StorageError, EncryptionKeyError."""
    name = meta_name(job)
    stamp = read_header(raw, MAGIC, FORMAT, name, known_flags=0)[2]
    cipher = None if stamp is None else (keys or Keys()).resume(stamp, _label(job), name)
    pieces: list[bytes] = []
    offset = HEADER_BYTES if stamp is None else HEADER_BYTES_MAX
    while offset < len(raw):
        start = offset + _LENGTH.size
        length = int.from_bytes(raw[offset:start], "little")
        if start + length > len(raw):
            raise damaged(name, offset, "it ends inside a block")
        pieces.append(unseal(raw[start : start + length], job, start, Kind.META, name, cipher))
        offset = start + length
    return b"".join(pieces)


def _label(job: int) -> bytes:
    return b"meta " + job.to_bytes(8, "little")
