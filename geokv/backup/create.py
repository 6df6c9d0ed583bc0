"""Making a backup of nodes that run: a snapshot on each at one cut, fetched, checked, and let go.

    status of all nodes ──> cut = the highest clock among them
      ──> snapshot_hold on all ──> snapshot_create on all at once, each past the cut
      ──> what the repository does not have is fetched in pieces ──> checked as `geokv storage verify` would ──> published

The cut is drawn after the command began, above every clock that stamped what was acknowledged before. Each node's
snapshot has all that this node stamped up to it, so every such write is in its coordinator's snapshot, and in those of
the replicas that had acknowledged it. What was stamped later may be in some and not in others.

Invariants: nothing stands under the target's name before all of it is there and was checked. The snapshots on the
nodes are removed whatever happens; one that could not be goes by itself after a day.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from geokv.backup import repository
from geokv.backup.form import Backup, BackupFile, RingMember, is_path
from geokv.backup.repository import Partial
from geokv.core.limits import SNAPSHOT_READ_BYTES_MAX, TIMEOUT_MS_MAX
from geokv.errors import ConfigurationError, GeokvError, InvalidRequest, Overloaded, StorageError, Unavailable
from geokv.lab.ask import NodeConnection, ask_all, ring_from
from geokv.runtime.wire.kv import Fetch, RingSeen
from geokv.storage import offline
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.key_use import demand_keys, encrypted_with
from geokv.storage.lsm.shared_disk import SharedDisk
from geokv.version import __version__

Report = Callable[[str], None]
NODES_AT_ONCE: Final = 4
FETCH_TRIES: Final = 5
_PIECE_S_MAX: Final = 30.0
_SNAPSHOT_S_MAX: Final = TIMEOUT_MS_MAX / 1000


@dataclass(frozen=True, slots=True)
class Moved:
    """What making it took: files and bytes that came over the network, and those that were there already."""

    fetched_files: int = 0
    fetched_bytes: int = 0
    shared_files: int = 0
    shared_bytes: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.fetched_files + other.fetched_files,
            self.fetched_bytes + other.fetched_bytes,
            self.shared_files + other.shared_files,
            self.shared_bytes + other.shared_bytes,
        )


def create(
    addresses: Iterable[str],
    target: Path,
    report: Report,
    viewpoint: str = "",
    only: Iterable[str] = (),
    ring_of_keys: KeyRing | None = None,
) -> tuple[Backup, Moved]:
    """Back up the cluster that these addresses lead to, into the folder `target`. Raises GeokvError, OSError.

    `ring_of_keys`: to look into what is encrypted; without any that is taken as it comes, which is reported.
    """
    begun_ms = _now_ms()
    ring = ring_from(addresses, viewpoint)
    nodes = {node.name: node.address for node in ring.nodes}
    if strangers := set(only) - nodes.keys():
        raise ConfigurationError(f"no node {', '.join(sorted(strangers))} here; there are: {', '.join(sorted(nodes))}")
    wanted = {name: address for name, address in nodes.items() if name in set(only) or not only}
    with repository.begin(target) as partial:
        statuses = _all_of(ask_all(wanted, "status"), "status")
        cut = max(int(status["hlc"]) for status in statuses.values())
        generation = _one_generation(statuses)
        first = next(iter(wanted))
        namespaces = _all_of(ask_all({first: wanted[first]}, "namespace_list"), "namespace_list")[first]["namespaces"]
        name = f"backup-{secrets.token_hex(8)}"
        report(f"cut {cut}: {len(wanted)} nodes take a snapshot")
        try:
            _all_of(ask_all(wanted, "snapshot_hold", {"name": name}), "snapshot_hold")
            asked = ask_all(wanted, "snapshot_create", {"name": name, "cut": str(cut), "held": True}, _SNAPSHOT_S_MAX)
            snapshots = _all_of(asked, "snapshot_create")
            pull = _Pull(partial, ring.cluster, generation, name, report, ring_of_keys)
            with ThreadPoolExecutor(NODES_AT_ONCE) as pool:
                pulled = list(pool.map(lambda one: pull.node(one, wanted[one], snapshots[one]), wanted))
        finally:
            ask_all(wanted, "snapshot_remove", {"name": name})
        backup = Backup(
            name=target.name,
            id=secrets.token_hex(8),
            geokv=__version__,
            cluster=ring.cluster,
            generation=generation,
            cut=str(cut),
            begun_ms=begun_ms,
            done_ms=_now_ms(),
            partitions=ring.partitions,
            replicas=dict(ring.replicas),
            members=_members(ring),
            namespaces=namespaces,
            files={node: files for node, (files, _) in zip(wanted, pulled, strict=True)},
        )
        partial.publish(backup)
    return backup, sum((moved for _, moved in pulled), Moved())


def _members(ring: RingSeen) -> tuple[RingMember, ...]:
    return tuple(RingMember(node.name, node.dc, node.rack, node.weight, node.address) for node in ring.nodes)


def _all_of(answers: Mapping[str, dict[str, Any] | GeokvError], verb: str) -> dict[str, dict[str, Any]]:
    """The answers, where all nodes gave one. Raises Unavailable with what the others said, InvalidRequest."""
    failed = {node: answer for node, answer in answers.items() if isinstance(answer, GeokvError)}
    if failed:
        said = "; ".join(f"{node}: {error}" for node, error in sorted(failed.items()))
        kind = InvalidRequest if any(isinstance(error, InvalidRequest) for error in failed.values()) else Unavailable
        old = " (nodes of an older version cannot do this)" if "unknown verb" in said else ""
        raise kind(f"no backup was made, since not all nodes answered to {verb}{old}: {said}")
    return {node: answer for node, answer in answers.items() if not isinstance(answer, GeokvError)}


def _one_generation(statuses: Mapping[str, Mapping[str, Any]]) -> str:
    found = {node: str(status.get("generation", "")) for node, status in statuses.items()}
    if len(set(found.values())) > 1:
        raise ConfigurationError(f"these nodes are of different restores, and not one cluster: {found}")
    return next(iter(found.values()))


class _Pull:
    """Fetches the snapshots; `node` may be called from several threads."""

    def __init__(
        self, partial: Partial, cluster: str, generation: str, snapshot: str, report: Report, keys: KeyRing | None
    ) -> None:
        self._keys = keys
        self._partial = partial
        self._place = cluster, generation
        self._snapshot = snapshot
        self._report = report

    def node(self, node: str, address: str, listed: Mapping[str, Any]) -> tuple[tuple[BackupFile, ...], Moved]:
        """All files of one node, in their places and checked, and what that took."""
        folder = self._partial.folder / node
        for part in ("lsm", "log"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        files: list[BackupFile] = []
        shared: set[str] = set()
        with NodeConnection(address) as connection:
            for one in listed["files"]:
                wanted = BackupFile(one["path"], one["nbytes"], one["used"], one["identity"], "")
                if not is_path(wanted.path):
                    raise StorageError(f"{node} lists {wanted.path!r}, which cannot stand in a backup", path=wanted.path)
                digest = self._shared(node, wanted, folder)
                if digest:
                    shared.add(wanted.path)
                else:
                    digest = self._fetch(connection, node, wanted, folder)
                files.append(replace(wanted, sha256=digest))
        self._partial.keep_only_of(node, files)
        self._check(node, folder, shared)
        held, fetched = sum(f.used for f in files if f.path in shared), sum(f.used for f in files if f.path not in shared)
        moved = Moved(len(files) - len(shared), fetched, len(shared), held)
        self._report(f"{node}: {moved.fetched_files} files fetched ({fetched} bytes), {len(shared)} shared ({held} bytes)")
        return tuple(files), moved

    def _shared(self, node: str, file: BackupFile, folder: Path) -> str:
        """Use what the repository has; its SHA-256, empty where it has none."""
        found = self._partial.have(repository.key_of(*self._place, node, file))
        if found is None:
            return ""
        source, digest = found
        with suppress(OSError):
            if source.stat().st_size == file.nbytes:
                repository.link_or_copy(source, folder / file.path)
                return digest
        return ""

    def _fetch(self, connection: NodeConnection, node: str, file: BackupFile, folder: Path) -> str:
        """Bring a file here, in pieces; its SHA-256."""
        digest = sha256()
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be another backup's, too
        with target.open("wb") as writer:
            while writer.tell() < file.used:
                piece = self._piece(connection, file, writer.tell())
                writer.write(piece)
                digest.update(piece)
            writer.truncate(file.nbytes)  # zeros that take no space
            writer.flush()
            os.fsync(writer.fileno())
        zeros = bytes(SNAPSHOT_READ_BYTES_MAX)
        for start in range(file.used, file.nbytes, len(zeros)):
            digest.update(zeros[: file.nbytes - start])
        self._partial.note(repository.key_of(*self._place, node, file), digest.hexdigest())
        return digest.hexdigest()

    def _piece(self, connection: NodeConnection, file: BackupFile, offset: int) -> bytes:
        length = min(SNAPSHOT_READ_BYTES_MAX, file.used - offset)
        for left in reversed(range(FETCH_TRIES)):
            try:
                piece = connection.fetch(Fetch(self._snapshot, file.path, offset, length), _PIECE_S_MAX)
            except (Unavailable, Overloaded):
                if not left:
                    raise
                time.sleep(0.5)
            else:
                if len(piece) == length:
                    return piece
        raise StorageError(f"{connection.address} sent less of {file.path} than it listed", path=file.path)

    def _check(self, node: str, folder: Path, shared: set[str]) -> None:
        """What a node sends may have been damaged on its disk: a backup of that helps nobody."""
        with closing(SharedDisk(folder, Keys(self._keys))) as disk:
            ids = encrypted_with(disk)
            if ids and not self._keys:
                self._report(
                    f"{node}: encrypted with key {', '.join(ids)}, which is not given: what was fetched is as the node has it,"
                    " and was not looked into; `geokv backup verify --encryption-key-file` does that"
                )
                return
            demand_keys(disk, whose=f"{node}/")
            damage = offline.verify(disk, node, shared).damage
        if damage:
            first = damage[0]
            raise StorageError(
                f"{node} holds {first.path}, damaged at byte {first.offset}: {first.what}; no backup was made."
                f" `geokv storage verify` on that node tells more; --only the other nodes can be backed up meanwhile",
                path=first.path,
                offset=first.offset,
            )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
