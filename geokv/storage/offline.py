"""What can be said of the folder of a node that is stopped, and done to it: verify, inspect, dump, compact.

    DIR            a node's folder: log/ lsm/ lmdb/ rocksdb/ CLUSTER
    DIR/*          or a folder of such: a lab, a cluster of geokv.testing

Invariants: the folder is locked meanwhile, so that no node runs on it. `verify`, `inspect` and `dump` change nothing in
it but the lock's text. Not here: flushing, for which a node has to say what its own state is (`runtime.offline`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from geokv.core.record import CONTROL, decode_records
from geokv.errors import ConfigurationError, StorageError, Unavailable
from geokv.storage import checkpoint
from geokv.storage.disk import Disk, RealDisk
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.key_use import demand_keys, file_keys, key_use
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.engine import LsmEngine
from geokv.storage.lsm.facts import TableFacts, policy_of_tables
from geokv.storage.lsm.manifest import NAME, State, read_manifest
from geokv.storage.lsm.merging import pairs_of
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.verify import verify as verify_tables
from geokv.storage.lsm.work import run_job
from geokv.storage.tree.reader import TreeReader
from geokv.storage.tree.tree import TreePlace, open_tree, places
from geokv.storage.tree.verify import verify as verify_trees
from geokv.storage.wal_cipher import cipher_of, payloads_of
from geokv.storage.wal_format import decode_segment_header
from geokv.storage.wal_recovery import read_whole, segment_name
from geokv.storage.wal_verify import Damage, SegmentFigures, segment_numbers, verify_log

_SIGNS = ("lsm", "log", "checkpoint")


class Verified(NamedTuple):
    """What was looked at in one node's folder, and what is wrong there."""

    node: str
    tables: int
    trees: int
    segments: int
    damage: list[Damage]


class Pair(NamedTuple):
    """One cell and where it stands: a table's file, a tree, or a segment of the log."""

    namespace: int
    key: bytes
    cell: bytes
    path: str


def node_folders(directory: Path) -> list[Path]:
    """The node folders at `directory` or right below it. Raises ConfigurationError where there is none."""
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a directory")
    for folders in ([directory], sorted(path for path in directory.iterdir() if path.is_dir())):
        found = [path for path in folders if any((path / sign).is_dir() for sign in _SIGNS)]
        if found:
            return found
    raise ConfigurationError(
        f"{directory} is no directory of a node, and holds none: give the one that `geokv serve` was given"
    )


@contextmanager
def locked(folder: Path, ring: KeyRing | None = None, is_read_only: bool = True) -> Iterator[RealDisk]:
    """The disk of a node that does not run, with keys that fit it.

    Raises Unavailable where it does run, EncryptionKeyError where a key is missing or another one.
    """
    try:
        disk = RealDisk(folder, Keys(ring), is_read_only)
    except StorageError as error:
        if "process" in error.details:
            raise Unavailable(str(error)) from None
        raise
    try:
        demand_keys(disk)
        yield disk
    finally:
        disk.close()


def verify(disk: Disk, node: str, passed_over: Collection[str] = ()) -> Verified:
    """Read and check every byte of tables (but for those that are passed over), manifest, log and old checkpoints, and
    every value of trees.
    """
    damage = list(_verify_checkpoint(disk))
    damage += verify_tables(disk, passed_over)
    try:
        state = _state(disk)
    except StorageError:
        state = State()  # told already
    trees = 0
    if isinstance(disk, RealDisk):  # trees pass through no Disk
        damage += verify_trees(disk.root, state.position)
        trees = sum(1 for _ in places(disk.root))
    found = list(verify_log(disk, state.position))
    damage += [one for one in found if isinstance(one, Damage)]
    segments = sum(isinstance(one, SegmentFigures) for one in found)
    return Verified(node, sum(1 for _ in state.all_tables()), trees, segments, damage)


def _root(disk: Disk) -> Path:
    """Where trees are, which pass through no Disk."""
    assert isinstance(disk, RealDisk), "a folder"
    return disk.root


def _verify_checkpoint(disk: Disk) -> Iterator[Damage]:
    try:
        found = checkpoint.read_checkpoint(disk)
        for _ in found[2] if found is not None else ():
            pass
    except StorageError as error:
        name = str(error.details.get("path", "")).rpartition("/")[2]  # the system's own errors name the whole path
        yield Damage(f"{checkpoint.FOLDER}/{name}", int(error.details.get("offset", 0)), str(error))


def _state(disk: Disk) -> State:
    """What the manifest says; nothing where a node of version 0.1 left none."""
    return read_manifest(disk) if disk.exists(NAME) else State()


def inspect(disk: Disk, node: str) -> dict[str, Any]:
    """What a folder holds, as a tree of plain values. Raises StorageError where it cannot be read."""
    state = _state(disk)
    segments = [one for one in verify_log(disk, state.position) if isinstance(one, SegmentFigures)]
    written_with = {one.path: one.key_id for one in file_keys(disk)}
    return {
        "node": node,
        "position": {"segment": state.position.segment, "offset": state.position.offset},
        "next_job": state.next_job,
        "keys": [
            {"id": key_id, "is_active": key_id == disk.keys.ring.active, "files": files}
            for key_id, files in sorted(_key_use(disk).items())
        ],
        "state_bytes": len(state.meta),
        "namespaces": [
            {"id": f"{namespace:016x}", "tables": [_facts(facts, written_with.get(facts.name, "")) for facts in tables]}
            for namespace, tables in sorted(state.tables.items())
        ],
        "trees": [_tree(disk, place) for place in places(_root(disk))],
        "quarantined": [
            {
                "namespace": f"{one.facts.namespace:016x}",
                **_facts(one.facts, written_with.get(one.facts.name, "")),
                "offset": one.offset,
                "what": one.what,
            }
            for one in state.quarantined
        ],
        "segments": [segment._asdict() for segment in segments],
    }


def _tree(disk: Disk, place: TreePlace) -> dict[str, Any]:
    with closing(open_tree(_root(disk), place, is_read_only=True)) as tree:
        facts, (pairs, nbytes) = tree.facts(), tree.figures()
    return {
        "path": tree.name,
        "engine": place.engine,
        "namespace": f"{place.namespace:016x}",
        "pairs": pairs,
        "bytes": nbytes,
        "position": {"segment": facts.position.segment, "offset": facts.position.offset},
        "dead_max": facts.dead,
        "version_max": facts.version_max,
    }


def _key_use(disk: Disk) -> dict[str, dict[str, int]]:
    """As `key_use`, with the keys that are given and that no file needs."""
    given: dict[str, dict[str, int]] = {key_id: {} for key_id in disk.keys.ring.ids}
    return given | key_use(disk)


def _facts(facts: TableFacts, key_id: str) -> dict[str, Any]:
    return {
        "path": facts.name,
        "key_id": key_id,
        "level": facts.level,
        "run": facts.run,
        "policy": facts.policy,
        "bytes": facts.nbytes,
        "pairs": facts.pairs,
        "partials": facts.partials,
        "tombstones": facts.tombstones,
        "version_min": facts.version_min,
        "version_max": facts.version_max,
        "first_key": facts.first_key,
        "last_key": facts.last_key,
    }


def has_file(disk: Disk, path: str) -> bool:
    """Whether `dump` knows a table, tree or segment of that path. Raises StorageError where it cannot be told."""
    state = _state(disk)
    tables = {facts.name for facts in (*state.all_tables(), *(one.facts for one in state.quarantined))}
    segments = {segment_name(number) for number in segment_numbers(disk)}
    return path in tables | segments or any(path.startswith(place.path) for place in places(_root(disk)))


def dump(disk: Disk, path: str = "") -> Iterator[Pair]:
    """Every cell of every table, newest first, of every tree, and of the log behind them; `path`: of one file only.

    A table in quarantine is shown only where it is named, as far as it can be read. Raises Damaged where that ends.
    """
    state = _state(disk)
    for facts in (*state.all_tables(), *(one.facts for one in state.quarantined if one.facts.name == path)):
        if path in ("", facts.name):
            for key, cell in TableReader(disk, facts.number, BlockCache(0)).all_pairs():
                yield Pair(facts.namespace, key, bytes(cell), facts.name)
    for place in places(_root(disk)):
        if path.startswith(place.path) or not path:
            yield from _of_tree(disk, place)
    for number in segment_numbers(disk):
        if path == segment_name(number) or (not path and number >= state.position.segment):
            yield from _of_segment(disk, number, None if path else state)


def _of_segment(disk: Disk, number: int, state: State | None) -> Iterator[Pair]:
    """The cells of one segment, those behind the state's position only where one is given."""
    name = segment_name(number)
    image = read_whole(disk, name, 0, disk.size(name))
    header = decode_segment_header(image, number, name)
    if header is None:
        return
    for start, payload in payloads_of(image, number, header, cipher_of(header, number, disk.keys)):
        if state is None or (number, start) >= state.position:
            for record in decode_records(payload):
                if record.kind != CONTROL:
                    yield Pair(record.namespace, record.key, record.cell, name)


def _of_tree(disk: Disk, place: TreePlace) -> Iterator[Pair]:
    with closing(open_tree(_root(disk), place, is_read_only=True)) as tree:
        for key, cell in pairs_of(TreeReader(tree, BlockCache(0)).stretches()):
            yield Pair(place.namespace, key, cell, tree.name)


def compact(disk: Disk) -> int:
    """Make each namespace's tables one run, and each tree as small as it can be; how many there are. Raises StorageError."""
    engine = LsmEngine(disk)
    policies = {namespace: policy_of_tables(engine.tables(namespace)) for namespace in engine.stored_namespaces()}
    for namespace, policy in policies.items():
        cells = engine.create(namespace, policy)
        cells.has_dictionary = engine.has_dictionary(namespace)  # as the node that wrote them was told
    for namespace in policies:
        job = engine.full_compaction(namespace)
        if job is not None:
            engine.install(job, run_job(disk, job))
    while (job := engine.next_rewrite()) is not None:  # what stood alone already, and is of another key
        engine.install(job, run_job(disk, job))
    trees = list(places(_root(disk)))
    for place in trees:
        with closing(open_tree(_root(disk), place)) as tree:
            tree.compact()
    return len(policies) + len(trees)
