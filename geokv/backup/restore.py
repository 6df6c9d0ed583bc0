"""Restoring: from a backup to directories with which nodes start, as a cluster of a generation of its own.

    verified ──> states of all nodes made to fit (`node.restoring`) ──> files copied beside the target ──> renamed into place

The former cluster may still be alive somewhere, with newer state and the same names. So the directories get a
generation: nodes of different generations refuse each other as those of different clusters do, and neither can take
what the other numbers. Numbers themselves are never used twice: each start of a node draws a new incarnation.

Invariants: only empty or absent directories are written to, and each is a whole node's or not there. What is damaged is
refused by name before anything is written. For a whole cluster on several machines: the same backup, the same
generation, one node at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from geokv.backup import repository
from geokv.backup.form import Backup
from geokv.backup.verify import Wrong, verify, verify_file
from geokv.core.hlc import hlc_ms
from geokv.core.topology import Topology
from geokv.errors import ConfigurationError, InvalidRequest, StorageError
from geokv.node.restoring import Meta, reconciled
from geokv.protocol import control
from geokv.server.identity import claim_directory
from geokv.storage.disk import RealDisk, sync_folder
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.key_use import demand_keys
from geokv.storage.lsm.manifest import NAME as MANIFEST
from geokv.storage.lsm.manifest import manifest_key_id, read_manifest, write_manifest
from geokv.storage.lsm.meta import write_meta
from geokv.storage.lsm.shared_disk import SharedDisk

Report = Callable[[str], None]
GENERATION_CHARACTERS_MAX: Final = 40


def restore(
    folder: Path,
    targets: Mapping[str, Path],
    generation: str,
    report: Report,
    topology: Topology | None = None,
    ring: KeyRing | None = None,
) -> Backup:
    """Restore nodes (name to directory) from the backup in `folder`. Raises GeokvError, OSError.

    `topology`: of the cluster that is to run; where it is given it must have the ring of the backup.
    `ring`: the keys of all nodes that are encrypted, for the state of each is read. What is written anew for a node is
    encrypted with the key that it had written with.
    """
    backup = repository.read(folder)
    _check_asked(backup, targets, generation, topology)
    metas = reconciled(_states(folder, backup, ring), backup.places(), hlc_ms(int(backup.cut)))
    _refuse(list(verify(folder, backup, set(targets), ring)))
    staged: list[tuple[Path, Path]] = []
    try:
        for node, target in targets.items():
            staging = target.with_name(f".{target.name}.restoring")
            if staging.exists():
                shutil.rmtree(staging)
            staged.append((staging, target))
            _stage(folder, backup, node, staging, metas[node], generation, ring)
            report(f"{node}: {len(backup.files[node])} files")
        for staging, target in staged:
            if target.exists():
                target.rmdir()
            staging.rename(target)
            sync_folder(target.parent)
    finally:
        for staging, _ in staged:
            shutil.rmtree(staging, ignore_errors=True)
    return backup


def _check_asked(backup: Backup, targets: Mapping[str, Path], generation: str, topology: Topology | None) -> None:
    """Raises InvalidRequest, ConfigurationError for what cannot be done, before anything is read at length."""
    if not generation.isascii() or not generation.isprintable() or not 0 < len(generation) <= GENERATION_CHARACTERS_MAX:
        raise InvalidRequest(f"--generation {generation!r}: 1 to {GENERATION_CHARACTERS_MAX} printable characters of ASCII")
    if generation == backup.generation:
        raise InvalidRequest(f"{generation!r} is the generation that was backed up: give the restored cluster another one")
    if backup.missing:
        raise InvalidRequest(
            f"this backup is without {', '.join(backup.missing)}: a cluster starts from all of its nodes,"
            " and a single one cannot join one that lives yet"
        )
    if strangers := targets.keys() - backup.files.keys():
        raise InvalidRequest(f"no node {', '.join(sorted(strangers))} in it; there are: {', '.join(sorted(backup.files))}")
    for node, target in targets.items():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigurationError(f"{target} is not empty: a node is restored into a new directory only ({node})")
    if topology is not None:
        _check_ring(backup, topology)


def _check_ring(backup: Backup, topology: Topology) -> None:
    ours = {(one.name, one.dc, one.rack, float(one.weight)) for one in topology.nodes}
    theirs = {(one.name, one.dc, one.rack, float(one.weight)) for one in backup.members}
    facts = {
        "the cluster's name": (topology.cluster, backup.cluster),
        "partitions": (topology.partitions, backup.partitions),
        "replicas": ({dc.name: dc.replicas for dc in topology.datacenters}, dict(backup.replicas)),
        "nodes (name, datacenter, rack, weight)": (sorted(ours - theirs), sorted(theirs - ours)),
    }
    for what, (here, there) in facts.items():
        if here != there:
            raise ConfigurationError(f"the topology does not fit the backup: {what}: {here} here, {there} in the backup")


def _states(folder: Path, backup: Backup, ring: KeyRing | None) -> dict[str, Meta]:
    """The states of all nodes, restored here or not. Raises StorageError, EncryptionKeyError."""
    states: dict[str, Meta] = {}
    for node, files in backup.files.items():
        for file in files:
            if file.path == MANIFEST or "/META-" in file.path:
                _refuse([verify_file(folder, node, file)])
        with closing(SharedDisk(folder / node, Keys(ring))) as disk:
            demand_keys(disk, whose=f"{node}/")
            meta = control.unpack(read_manifest(disk).meta)
        if meta.get("format") != 1:
            raise StorageError(f"the state of {node} is of format {meta.get('format')}: use a newer geokv")
        states[node] = meta
    return states


def _refuse(wrongs: Iterable[Wrong | None]) -> None:
    """Raises StorageError where anything is wrong."""
    found = [wrong for wrong in wrongs if wrong is not None]
    if found:
        node, path, what = found[0]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise StorageError(f"{node}/{path}: {what}{more}; nothing was restored (`geokv backup verify` names all)", path=path)


def _stage(folder: Path, backup: Backup, node: str, staging: Path, meta: Meta, generation: str, ring: KeyRing | None) -> None:
    """A whole directory of a node, durable but for its name."""
    staging.mkdir(parents=True, mode=repository.FOLDER_MODE)
    for part in ("lsm", "log"):
        (staging / part).mkdir()
    for file in backup.files[node]:
        (staging / file.path).parent.mkdir(parents=True, exist_ok=True)
        repository.copy(folder / node / file.path, staging / file.path)
    disk = RealDisk(staging, Keys(ring))
    try:
        disk.keys.replace(disk.keys.ring.writing_with(manifest_key_id(disk)))
        state = read_manifest(disk)
        packed = control.pack(meta)
        old, job = state.meta_file, state.next_job
        file_of_meta = write_meta(disk, job, packed)
        write_manifest(disk, replace(state, next_job=job + 1, meta=packed, meta_file=file_of_meta))
        if old.job:
            disk.remove(old.name)
        for one in [path for path in staging.rglob("*") if path.is_dir()]:
            sync_folder(one)
        dc = next(member.dc for member in backup.members if member.name == node)
        claim_directory(disk, backup.cluster, dc, node, generation)
    finally:
        disk.close()
