"""Which key each file of a node is written with: to refuse a start before anything is touched, and to tell what is needed.

    demand_keys     every file's key is given, and is the right one; before the engine and the log are opened
    key_use         per key (empty: plain) how many files of which kind: whether an old key may be forgotten

Invariants: nothing is written. A file whose header cannot be read says nothing of its key: who opens it tells that it is
damaged. A missing or wrong key is an EncryptionKeyError, never damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import Stamp
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.lsm import manifest, meta
from geokv.storage.lsm.facts import FOLDER, table_name
from geokv.storage.lsm.footer import read_footer
from geokv.storage.lsm.small_file import HEADER_BYTES_MAX, read_header
from geokv.storage.wal_format import SEGMENT_HEADER_BYTES_MAX, decode_segment_header
from geokv.storage.wal_recovery import segment_name
from geokv.storage.wal_verify import segment_numbers

_NEWEST_ANY: Final = (1 << 16) - 1


class FileKey(NamedTuple):
    """A file and its key. `kind`: "log", "table" or "state"; `stamp` None: it is plain."""

    path: str
    kind: str
    stamp: Stamp | None

    @property
    def key_id(self) -> str:
        return "" if self.stamp is None else self.stamp.key_id


def file_keys(disk: Disk) -> Iterator[FileKey]:
    """Of every file that holds anything of users, as far as its header can be read."""
    for name, magic in _state_files(disk):
        with suppress(StorageError):
            if disk.exists(name):
                yield FileKey(name, "state", read_header(disk.read_at(name, 0, HEADER_BYTES_MAX), magic, _NEWEST_ANY, name)[2])
    numbers: set[int] = set()
    with suppress(StorageError):
        numbers = manifest.table_numbers(disk) if disk.exists(FOLDER) else set()
    for number in sorted(numbers):
        with suppress(StorageError):
            yield FileKey(table_name(number), "table", read_footer(disk, number).stamp)
    segments: list[int] = []
    with suppress(StorageError):
        segments = segment_numbers(disk)
    for number in segments:
        name = segment_name(number)
        with suppress(StorageError):
            header = decode_segment_header(disk.read_at(name, 0, SEGMENT_HEADER_BYTES_MAX), number, name)
            if header is not None:  # else a spare, which holds nothing, or damaged
                yield FileKey(name, "log", header.stamp)


def _state_files(disk: Disk) -> Iterator[tuple[str, bytes]]:
    """(name, magic) of the manifest, and of the node's states that are there, live or not."""
    yield manifest.NAME, manifest.MAGIC
    with suppress(StorageError):
        for job in sorted(meta.meta_jobs(disk)) if disk.exists(FOLDER) else ():
            yield meta.meta_name(job), meta.MAGIC


def demand_keys(disk: Disk, keys: Keys | None = None, whose: str = "") -> None:
    """Raises EncryptionKeyError for the first file whose key is missing, or another one. `keys`: those of the disk.

    `whose`: told before the file's name.
    """
    given = disk.keys if keys is None else keys
    for one in file_keys(disk):
        if one.stamp is not None:
            given.demand(one.stamp, whose + one.path)


def encrypted_with(disk: Disk) -> list[str]:
    """The ids of the keys that a folder's files are written with."""
    return sorted({one.key_id for one in file_keys(disk)} - {""})


def key_use(disk: Disk) -> dict[str, dict[str, int]]:
    """Per id of a key (empty: plain) how many files of each kind are written with it."""
    found: dict[str, dict[str, int]] = {}
    for one in file_keys(disk):
        kinds = found.setdefault(one.key_id, {})
        kinds[one.kind] = kinds.get(one.kind, 0) + 1
    return found


def rotate(disk: Disk, ring: KeyRing) -> None:
    """Let a running node write with another key. Raises EncryptionKeyError, and then all is as it was.

    The keys that it had so far are kept in memory: a file that is just being written may need one. What is refused is a
    ring with which the node could not start again.
    """
    demand_keys(disk, Keys(ring))
    disk.keys.replace(disk.keys.ring.joined(ring))
