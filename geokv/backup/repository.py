"""A folder of backups. Each is a folder of its own, whole by itself; what did not change is one file under several names.

    backups/monday/backup.json                 written last: without it there is no backup
    backups/monday/node-1/lsm/… log/…          as in that node's own directory
    backups/tuesday/node-1/lsm/…               hard links to monday's tables, where the node has them still
    backups/.wednesday.partial/                one that is being made, or was broken off: the next try goes on from it

So any backup may be removed, copied or moved with the system's own means; the space of a file comes back with its last name.

Invariants: a backup's files never change once it stands. One process at a time makes a backup of a name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from geokv.backup.form import NAME, Backup, BackupFile, decode, encode
from geokv.errors import ConfigurationError, InvalidRequest, StorageError, Unavailable
from geokv.storage.disk import sync_folder

_BACKUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RECEIVED: Final = "received.jsonl"
FOLDER_MODE: Final = 0o750  # as of a node's directory: others may not even list what is below
_COPY_BYTES: Final = 1024 * 1024

SharedKey = tuple[str, str, str, str, str, int, int]
"""Cluster, generation, node, path, identity, nbytes, used: where all of them are the same, the file is."""


def read(folder: Path) -> Backup:
    """What the backup in `folder` says of itself. Raises ConfigurationError where there is none, StorageError on damage."""
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"{folder} is no backup: it has no {NAME}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}", path=str(path), offset=0) from error
    return decode(text, path)


def backups(repository: Path) -> list[tuple[Path, Backup | StorageError]]:
    """All backups in a folder, oldest first; those that cannot be read with the reason."""
    if not repository.is_dir():
        raise ConfigurationError(f"{repository} is not a directory")
    found: list[tuple[Path, Backup | StorageError]] = []
    for folder in sorted(repository.iterdir()):
        if folder.name.startswith(".") or not (folder / NAME).is_file():
            continue
        try:
            found.append((folder, read(folder)))
        except StorageError as error:
            found.append((folder, error))
    return sorted(found, key=lambda one: one[1].begun_ms if isinstance(one[1], Backup) else 0)


def remove(folder: Path) -> None:
    """Remove one backup; what others share with it stays. Raises ConfigurationError where it is none."""
    if not (folder / NAME).is_file():
        raise ConfigurationError(f"{folder} is no backup: it has no {NAME}")
    doomed = folder.with_name(f".{folder.name}.removing")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)  # from here on it is none
    sync_folder(folder.parent)
    shutil.rmtree(doomed)


class Partial:
    """A backup that is being made. Made by `begin`."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self._shared: dict[SharedKey, tuple[Path, str]] = {}

    def have(self, key: SharedKey) -> tuple[Path, str] | None:
        """Where such a file is already, and its SHA-256."""
        return self._shared.get(key) if key[4] else None

    def note(self, key: SharedKey, digest: str) -> None:
        """A file is here, synced: a try that goes on need not fetch it again."""
        with (self.folder / _RECEIVED).open("a", encoding="utf-8") as received:
            received.write("\n" + json.dumps([*key, digest]))  # apart from a line that an earlier try tore

    def keep_only_of(self, node: str, files: Iterable[BackupFile]) -> None:
        """Remove what an earlier try has left in a node's folder and does not belong to this one."""
        wanted = {self.folder / node / file.path for file in files}
        for path in sorted((self.folder / node).rglob("*")):
            if path.is_file() and path not in wanted:
                path.unlink()

    def publish(self, backup: Backup) -> None:
        """Let it stand, durably."""
        for folder in [path for path in self.folder.iterdir() if path.is_dir() and path.name not in backup.files]:
            shutil.rmtree(folder)
        (self.folder / _RECEIVED).unlink(missing_ok=True)
        write_synced(self.folder / NAME, encode(backup).encode())
        for folder in [path for path in self.folder.rglob("*") if path.is_dir()]:
            sync_folder(folder)
        (self.folder / ".lock").unlink(missing_ok=True)
        sync_folder(self.folder)
        self.folder.rename(self.target)
        sync_folder(self.target.parent)


@contextmanager
def begin(target: Path) -> Iterator[Partial]:
    """Begin a backup, or go on with one that was broken off. Raises InvalidRequest, Unavailable."""
    if not _BACKUP_NAME.fullmatch(target.name):
        raise InvalidRequest(f"{target.name!r} is no name of a backup: letters, digits, '.', '_' and '-', not a sign first")
    if target.exists():
        raise InvalidRequest(f"{target} is there already: give each backup a name of its own, or remove that one")
    partial = Partial(target)
    partial.folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    descriptor = os.open(partial.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"{target} is being made by another process") from None
        partial._shared.update(_shared_with(target.parent))
        partial._shared.update(_received(partial.folder))
        yield partial
    finally:
        os.close(descriptor)


def _shared_with(repository: Path) -> Iterator[tuple[SharedKey, tuple[Path, str]]]:
    for folder, backup in backups(repository):
        if isinstance(backup, Backup):
            for node, files in backup.files.items():
                for file in files:
                    yield key_of(backup.cluster, backup.generation, node, file), (folder / node / file.path, file.sha256)


def _received(folder: Path) -> Iterator[tuple[SharedKey, tuple[Path, str]]]:
    try:
        lines = (folder / _RECEIVED).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in filter(None, lines):
        with suppress(ValueError):  # a torn line: that file is fetched again
            cluster, generation, node, path, identity, nbytes, used, digest = json.loads(line)
            yield (cluster, generation, node, path, identity, nbytes, used), (folder / node / path, digest)


def key_of(cluster: str, generation: str, node: str, file: BackupFile) -> SharedKey:
    return cluster, generation, node, file.path, file.identity, file.nbytes, file.used


# --- files ----------------------------------------------------------------------------------------------------------


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links."""
    if source == target:
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """A copy, durable but for its name."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _COPY_BYTES)
        writer.flush()
        os.fsync(writer.fileno())


def write_synced(path: Path, payload: bytes) -> None:
    with path.open("wb") as writer:
        writer.write(payload)
        writer.flush()
        os.fsync(writer.fileno())
