"""What a backup says of itself: one JSON document, `backup.json`, under its own checksum.

Invariants: what is read is whole and of a format that this version knows, and every path in it stays inside the
node's folder. Format page: docs/formats/backup.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from geokv.core.ring import Member, Ring
from geokv.errors import StorageError
from geokv.node.restoring import Places

NAME: Final = "backup.json"
FORMAT: Final = 1
_PATH = re.compile(
    r"(lsm/(MANIFEST|META-[0-9a-f]{16}|[0-9a-f]{16}\.sst))"
    r"|(log/[0-9]{8,}\.wal)"
    r"|((lmdb|rocksdb)/[0-9a-f]{16}/[A-Za-z0-9][A-Za-z0-9._-]*)"
)
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BackupFile:
    """One file. `nbytes`: its size here and in a node's folder; from `used` on it is zeros."""

    path: str
    nbytes: int
    used: int
    identity: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RingMember:
    """A node as the ring has it, in the backup or not."""

    name: str
    dc: str
    rack: str
    weight: float
    address: str


@dataclass(frozen=True, slots=True)
class Backup:
    """A whole backup. `files` by node; `cut`: an HLC, in decimal; times in milliseconds since 1970."""

    name: str
    id: str
    geokv: str
    cluster: str
    generation: str
    cut: str
    begun_ms: int
    done_ms: int
    partitions: int
    replicas: Mapping[str, int]
    members: tuple[RingMember, ...]
    namespaces: list[Any]
    files: Mapping[str, tuple[BackupFile, ...]]

    @property
    def nbytes(self) -> int:
        return sum(file.used for files in self.files.values() for file in files)

    @property
    def missing(self) -> list[str]:
        """The nodes of the ring that are not in it."""
        return sorted({member.name for member in self.members} - self.files.keys())

    def places(self) -> Places:
        rings = {
            dc: Ring(self.partitions, [Member(m.name, m.rack, m.weight) for m in self.members if m.dc == dc])
            for dc in self.replicas
        }
        owners = {dc: [ring.owners(p, self.replicas[dc]) for p in range(self.partitions)] for dc, ring in rings.items()}
        return Places({member.name: member.dc for member in self.members}, owners)


def encode(backup: Backup) -> str:
    tree = {"format": FORMAT, **asdict(backup)}
    return json.dumps({**tree, "sha256": _digest(tree)}, indent=1, sort_keys=True) + "\n"


def decode(text: str, where: Path) -> Backup:
    """Inverse of `encode`. Raises StorageError for what it cannot have written."""
    try:
        tree = json.loads(text)
        digest, form = tree.pop("sha256"), tree["format"]
        if digest != _digest(tree):
            raise ValueError("its checksum does not match")
        if form == FORMAT:
            del tree["format"]
            members = tuple(RingMember(**member) for member in tree.pop("members"))
            files = {node: tuple(BackupFile(**file) for file in files) for node, files in tree.pop("files").items()}
            backup = Backup(members=members, files=files, **tree)
            _check(backup)
            return backup
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{where} is damaged, or no backup's: {error}", path=str(where), offset=0) from error
    raise StorageError(f"{where} is of format {form}, this version of geokv reads {FORMAT}: use a newer one", path=str(where))


def is_path(path: str) -> bool:
    """Whether a file of that path can stand in a node's folder of a backup: it leads nowhere else."""
    return _PATH.fullmatch(path) is not None


def _check(backup: Backup) -> None:
    """Nothing in it may lead out of the folder, whoever wrote it."""
    names = {member.name for member in backup.members}
    for node, files in backup.files.items():
        if node not in names or not _NODE.fullmatch(node):
            raise ValueError(f"{node!r} is no node of it")
        for file in files:
            if not is_path(file.path) or not _SHA256.fullmatch(file.sha256) or not 0 <= file.used <= file.nbytes:
                raise ValueError(f"{file.path!r} cannot stand in it")
    int(backup.cut)


def _digest(tree: object) -> str:
    return sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
