"""Verifying a backup: every byte against its SHA-256, and what the files say of themselves. No node is needed.

Invariants: nothing is changed. One damaged file does not hide another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from geokv.backup.form import Backup, BackupFile
from geokv.errors import GeokvError
from geokv.storage import offline
from geokv.storage.lsm.shared_disk import SharedDisk

_READ_BYTES = 1024 * 1024


class Wrong(NamedTuple):
    """What is wrong, in which file of which node."""

    node: str
    path: str
    what: str


def verify(folder: Path, backup: Backup, nodes: Collection[str] | None = None) -> Iterator[Wrong]:
    """Every fault of a backup, or of these nodes in it."""
    for node, files in backup.files.items():
        if nodes is None or node in nodes:
            faults = [wrong for file in files if (wrong := verify_file(folder, node, file)) is not None]
            yield from faults
            if not faults:
                yield from _verify_contents(folder, node)


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


def _verify_contents(folder: Path, node: str) -> Iterator[Wrong]:
    try:
        disk = SharedDisk(folder / node)
        try:
            damage = offline.verify(disk, node).damage
        finally:
            disk.close()
    except GeokvError as error:
        yield Wrong(node, "", str(error))
        return
    for one in damage:
        yield Wrong(node, one.path, f"damaged at byte {one.offset}: {one.what}")
