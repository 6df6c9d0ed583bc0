"""Verifying a backup: every byte against its SHA-256, and what the files say of themselves. No node is needed.

What is encrypted can be looked into with its keys only. Without any the bytes are compared, and `unread` names the nodes.

Invariants: nothing is changed. One damaged file does not hide another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from geokv.backup.form import Backup, BackupFile
from geokv.errors import EncryptionKeyError, GeokvError, StorageError
from geokv.storage import offline
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.key_use import demand_keys, encrypted_with
from geokv.storage.lsm.shared_disk import SharedDisk

_READ_BYTES = 1024 * 1024


class Wrong(NamedTuple):
    """What is wrong, in which file of which node."""

    node: str
    path: str
    what: str


def unread(folder: Path, backup: Backup) -> dict[str, list[str]]:
    """The nodes with files that are encrypted, and the ids of their keys."""
    found: dict[str, list[str]] = {}
    for node in backup.files:
        with suppress(StorageError), closing(SharedDisk(folder / node)) as disk:  # what cannot be read is told by `verify`
            found[node] = encrypted_with(disk)
    return {node: ids for node, ids in found.items() if ids}


def verify(folder: Path, backup: Backup, nodes: Collection[str] | None = None, ring: KeyRing | None = None) -> Iterator[Wrong]:
    """Every fault of a backup, or of these nodes in it.

    `ring`: the keys of what is encrypted; where there are none the bytes of such nodes are compared, and not looked into.
    Raises EncryptionKeyError where a key is missing among those given, or is another one.
    """
    closed = {} if ring else unread(folder, backup)
    for node, files in backup.files.items():
        if nodes is None or node in nodes:
            faults = [wrong for file in files if (wrong := verify_file(folder, node, file)) is not None]
            yield from faults
            if not faults and node not in closed:
                yield from _verify_contents(folder, node, Keys(ring))


def verify_file(folder: Path, node: str, file: BackupFile) -> Wrong | None:
    """Whether a file is, byte for byte, what was backed up."""
    digest = sha256()
    try:
        with (folder / node / file.path).open("rb") as reader:
            while piece := reader.read(_READ_BYTES):
                digest.update(piece)
            size = reader.tell()
    except OSError as error:
        return Wrong(node, file.path, f"it cannot be read: {error.strerror or error}")
    if size != file.nbytes:
        return Wrong(node, file.path, f"it has {size} bytes, and had {file.nbytes}")
    if digest.hexdigest() != file.sha256:
        return Wrong(node, file.path, "its SHA-256 is not what it was")
    return None


def _verify_contents(folder: Path, node: str, keys: Keys) -> Iterator[Wrong]:
    try:
        with closing(SharedDisk(folder / node, keys)) as disk:
            demand_keys(disk, whose=f"{node}/")
            damage = offline.verify(disk, node).damage
    except EncryptionKeyError:
        raise
    except GeokvError as error:
        yield Wrong(node, "", str(error))
        return
    for one in damage:
        yield Wrong(node, one.path, f"damaged at byte {one.offset}: {one.what}")
