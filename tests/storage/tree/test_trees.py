"""Trees: what a crash leaves between them and the manifest, what is refused, what is found damaged, how they grow and go."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from geokv.core.cells import codec, halves
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update
from geokv.errors import DiskFull, InvalidRequest, StorageError
from geokv.storage import engines, offline
from geokv.storage.child import environment
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.disk import RealDisk
from geokv.storage.lsm.engine import LsmEngine
from geokv.storage.lsm.worker import Worker
from geokv.storage.node_engine import WALK_MS_MIN, NodeEngine
from geokv.storage.node_jobs import Removal, TreeCollection
from geokv.storage.position import Position
from geokv.storage.tree import merging
from geokv.storage.tree.merging import merge_into, remove_dead
from geokv.storage.tree.tree import TreePlace, open_tree
from geokv.storage.tree.values import TreeFacts, decode_facts, encode_facts, is_sound, seal, seed_of
from tests.storage.lsm.little_node import ORIGIN, cell_of
from tests.storage.tree.real_node import DAY_MS, KIB, TINY, TREES, RealNode, everything_stable, files_of, with_rocksdb

DAY = DAY_MS << 16
every_tree = pytest.mark.parametrize("engine", TREES)


def node_at(tmp_path: Path, engine: str, **options: object) -> RealNode:
    return RealNode(tmp_path / "node", {1: (engine, "lww")}, replace(TINY, **options))  # type: ignore[arg-type]


def many(count: int, version: int = 1, size: int = 100) -> dict[bytes, bytes]:
    return {b"key-%05d" % at: cell_of(version, bytes(size)) for at in range(count)}


# --- crashes between tree and manifest ------------------------------------------------------------------------------


@every_tree
def test_a_crash_between_a_tree_and_the_manifest_is_merged_once_more(engine: str, tmp_path: Path) -> None:
    """The tree is ahead, the position is not: the frames come again, to the same cells, and so does a counter's delta."""
    node = RealNode(tmp_path / "node", {1: (engine, "lww"), 3: (engine, "set_aw")})
    node.put_unread(1, {b"k": cell_of(1, b"old"), b"gone": cell_of(2, b"x")})
    node.flush()
    node.put_unread(1, {b"k": cell_of(3, b"new"), b"gone": cell_of(4, None)})
    expected = node.scan(1)
    for _ in range(2):
        begun = node.engine.position
        job = node.engine.begin_flush(node.end, b"meta")
        node.engine.do(job)
        if engine == "rocksdb":  # whose part is done when the job is installed: as far as that, and no further
            node.engine.lsm.install = _power_cut  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                node.engine.install(job, ())
        tree = node.engine._spaces[1].tree
        assert tree is not None and tree.facts().position == node.end > begun
        node = node.crashed()
        assert node.engine.position == begun and node.scan(1) == expected
    node.flush()
    assert node.engine.position == node.end and node.reopened().scan(1) == expected


def _power_cut(*_: object) -> None:
    raise KeyboardInterrupt


@with_rocksdb
def test_a_rocksdb_that_refuses_a_write_is_opened_anew_and_merged_again(tmp_path: Path) -> None:
    """Nothing in the midst of it is an error to those who ask what is in memory; the flush that is done again has all."""
    node = node_at(tmp_path, "rocksdb")
    node.put_unread(1, many(10))
    node.flush()
    node.put_unread(1, many(10, version=2))
    tree = node.engine._spaces[1].tree
    assert tree is not None
    tree._store, store = None, tree._store  # type: ignore[attr-defined]  # as in the moment between closing and opening
    assert tree.peek(b"absent") == (False, None) and node.engine.figures()["debt_bytes"] == 0
    tree._store = store  # type: ignore[attr-defined]
    job = node.engine.begin_flush(node.end, b"meta")
    tree._unlogged, options = object(), tree._unlogged  # type: ignore[attr-defined]  # which no write takes
    with pytest.raises(StorageError, match=r"writing .* failed"):
        node.build(job)
    assert tree._store is not store  # type: ignore[attr-defined]
    tree._unlogged = options  # type: ignore[attr-defined]
    assert node.scan(1) == many(10, version=2)
    node.build(node.engine.flush_again(job))
    assert node.engine.figures()["memtable_pairs"] == 0 and node.reopened().scan(1) == many(10, version=2)


@every_tree
def test_a_flush_that_dies_between_two_steps_is_merged_once_more(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some keys are in the tree, its position is the old one: the next life finds all, each with its newest cell."""
    monkeypatch.setattr(merging, "STEP_PAIRS", 1000)
    node = node_at(tmp_path, engine)
    node.put_unread(1, many(3000))
    node.flush()
    newer = many(3000, version=2)
    node.put_unread(1, newer)
    tree = node.engine._spaces[1].tree
    assert tree is not None
    calls: list[int] = []

    def dies(nbytes: int) -> None:
        calls.append(nbytes)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_into(tree, newer, "lww", node.end, dies)
    assert tree.facts().position < node.end
    if engine == "lmdb":
        assert {value[4:] for value in tree.get([b"key-00000", b"key-02999"]) if value} == {
            newer[b"key-00000"],
            many(1)[b"key-00000"],
        }
    node = node.crashed()
    assert node.scan(1) == newer
    node.flush()
    node = node.reopened()
    assert node.scan(1) == newer
    node.close()


@every_tree
def test_a_flush_that_fails_leaves_memory_as_it_was_and_is_done_again(engine: str, tmp_path: Path) -> None:
    """The memtable stays until a later try has succeeded, also over what came meanwhile."""
    node = node_at(tmp_path, engine)
    node.put_unread(1, {b"a": cell_of(1, b"1")})
    job = node.engine.begin_flush(node.end, b"meta")
    node.engine.discard(job)  # its worker died
    node.put_unread(1, {b"a": cell_of(2, b"2"), b"b": cell_of(1, b"1")})
    again = node.engine.flush_again(job)
    assert again.number != job.number
    node.build(again)
    assert node.engine.figures()["memtable_pairs"] == 2
    assert node.scan(1) == {b"a": cell_of(2, b"2"), b"b": cell_of(1, b"1")}
    node.flush()
    assert node.engine.figures()["memtable_pairs"] == 0 and len(list(node.engine.table(1).items())) == 2
    node.close()


# --- what is refused ------------------------------------------------------------------------------------------------


@every_tree
def test_a_tree_that_is_lost_or_older_than_the_tables_is_refused_by_name(engine: str, tmp_path: Path) -> None:
    """Either would silently lack what was acknowledged."""
    node = node_at(tmp_path, engine)
    node.put_unread(1, many(10))
    node.flush()
    node.close()
    folder = node.root / engine / f"{1:016x}"
    shutil.copytree(folder, tmp_path / "older")
    node = RealNode(node.root, node.namespaces)
    node.put_unread(1, many(10, version=2))
    node.flush()
    node.close()
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match=f"{engine}/{1:016x} is missing"):
        RealNode(node.root, node.namespaces)
    shutil.copytree(tmp_path / "older", folder)
    with pytest.raises(StorageError, match="is an older copy"):
        RealNode(node.root, node.namespaces)
    with offline.locked(node.root) as disk:
        assert [one.path for one in offline.verify(disk, "n").damage if "older" in one.what]


def test_a_newer_format_is_refused() -> None:
    """With what to do, and nothing is guessed."""
    seed = seed_of(1)
    facts = TreeFacts(Position(3, 4), 5, 6, 7)
    packed = encode_facts(facts, seed)
    assert decode_facts(packed, seed, "p") == facts and decode_facts(None, seed, "p") == TreeFacts()
    with pytest.raises(StorageError, match="wrong checksum"):
        decode_facts(packed[:-1] + b"x", seed, "p")
    with pytest.raises(StorageError, match="wrong checksum"):
        decode_facts(packed, seed_of(2), "p")
    from zlib import crc32

    newer = b"\2\0" + packed[6:]
    with pytest.raises(StorageError, match="newer version"):
        decode_facts(crc32(newer, seed).to_bytes(4, "little") + newer, seed, "p")


@every_tree
def test_an_encrypted_node_and_one_without_files_refuse_trees(engine: str, tmp_path: Path) -> None:
    """At creation, with what to choose instead; `lsm` is taken by both."""
    disk = RealDisk(tmp_path)
    encrypted, simulated = NodeEngine(disk, is_encrypted=True), LsmEngine(CrashDisk())
    for held in (encrypted, simulated):
        with pytest.raises(InvalidRequest, match=r"encrypts its disk|needs real files"):
            held.create(1, "lww", engine)
        assert held.create(2, "lww", "lsm").get(b"k") is None
    disk.close()


@every_tree
def test_a_tree_that_is_there_and_can_no_longer_be_used_is_refused_and_stays(engine: str, tmp_path: Path) -> None:
    """Its library is gone, or the node encrypts now: the node does not start, and nobody takes the folder for a stray."""
    node = node_at(tmp_path, engine)
    node.put_unread(1, many(10))
    node.flush()
    node.close()
    with pytest.raises(StorageError, match=f"{engine}/{1:016x} is there and cannot be used: .*encrypts its disk"):
        RealNode(node.root, node.namespaces, is_encrypted=True)
    assert node.reopened().scan(1) == many(10)


def test_what_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the extra."""
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=r"rocksdict, which is not installed: pip install 'geokv\[rocksdb\]'"):
        engines.check_held("rocksdb", has_files=True, is_encrypted=False)
    with pytest.raises(InvalidRequest, match="not known to this version"):
        engines.check_held("shelf", has_files=True, is_encrypted=False)
    engines.check_held("lsm", has_files=False, is_encrypted=True)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_checksum_knows_namespace_and_key() -> None:
    """The value of another key, or of another namespace's tree, is as wrong as a flipped bit."""
    value = seal(b"cell", b"k", seed_of(1))
    assert is_sound(value, b"k", seed_of(1))
    assert not is_sound(value, b"l", seed_of(1)) and not is_sound(value, b"k", seed_of(2))
    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not is_sound(bytes(flipped), b"k", seed_of(1))
    assert not is_sound(b"", b"k", seed_of(1)) and not is_sound(value[:4], b"k", seed_of(1))


def _flip(path: Path, needle: bytes, after: int = 0) -> int:
    raw = bytearray(path.read_bytes())
    at = raw.index(needle) + after
    raw[at] ^= 4
    path.write_bytes(raw)
    return at


def test_a_flipped_bit_in_lmdb_is_named_by_reads_and_by_verify(tmp_path: Path) -> None:
    """No wrong value: an error with file and key; verify tells where; other keys are answered; dump says so, too."""
    node = node_at(tmp_path, "lmdb")
    node.put_unread(1, {b"key-%03d" % at: cell_of(at + 1, b"value %d" % at) for at in range(100)})
    node.flush()
    node.close()
    path = node.root / "lmdb" / f"{1:016x}" / "data.mdb"
    at = _flip(path, b"value 42", 3)
    node = RealNode(node.root, node.namespaces)
    cells = node.engine.table(1)
    with pytest.raises(StorageError, match=r"lmdb/0+1/data.mdb: damaged: .*key-042"):
        cells.load([b"key-042"])
    with pytest.raises(StorageError, match="key-042"):
        node.scan(1)
    assert node.read(1, [b"key-041"]) == [cell_of(42, b"value 41")]
    # A newer put than anything in the tree stands above whatever was damaged, an older one is not taken for all there was.
    node.put_unread(1, {b"key-042": cell_of(7, b"older")})
    with pytest.raises(StorageError, match="key-042"):
        node.flush()
    node.put_unread(1, {b"key-042": cell_of(1000, b"newer")})
    node.engine.flush_again(node.engine.begin_flush(node.end, b"meta"))
    node.close()
    with offline.locked(node.root) as disk:
        (damage,) = offline.verify(disk, "n").damage
        with pytest.raises(StorageError, match="key-042"):
            list(offline.dump(disk))
    assert damage.path == f"lmdb/{1:016x}/data.mdb" and at - 80 <= damage.offset <= at
    node = RealNode(node.root, node.namespaces)
    node.flush()
    assert node.read(1, [b"key-042"]) == [cell_of(1000, b"newer")]
    node.close()
    with offline.locked(node.root) as disk:
        assert not offline.verify(disk, "n").damage


def test_a_damaged_page_of_lmdb_is_told_by_verify_whatever_it_does_to_its_reader(tmp_path: Path) -> None:
    """Pages overwritten one by one: the process that verifies goes on and tells, or all is read right."""
    node = node_at(tmp_path, "lmdb")
    node.put_unread(1, many(400))
    node.flush()
    node.close()
    path = node.root / "lmdb" / f"{1:016x}" / "data.mdb"
    sound = path.read_bytes()
    told = 0
    for page in range(2, len(sound) // 4096, 5):
        path.write_bytes(sound[: page * 4096] + b"\xa5" * 64 + sound[page * 4096 + 64 :])
        with offline.locked(node.root) as disk:
            told += bool(offline.verify(disk, "n").damage)
    assert told >= 2
    path.write_bytes(sound)
    with offline.locked(node.root) as disk:
        assert not offline.verify(disk, "n").damage


@with_rocksdb
def test_a_flipped_bit_in_rocksdb_is_named_by_reads_and_by_verify(tmp_path: Path) -> None:
    """RocksDB's own checksum finds it; verify tells file and offset."""
    node = node_at(tmp_path, "rocksdb")
    node.put_unread(1, {b"key-%03d" % at: cell_of(at + 1, b"value %d" % at * 20) for at in range(100)})
    node.flush()
    node.close()
    folder = node.root / "rocksdb" / f"{1:016x}"
    table = max(folder.glob("*.sst"), key=lambda path: path.stat().st_size)
    raw = bytearray(table.read_bytes())
    raw[100] ^= 4
    table.write_bytes(raw)
    with offline.locked(node.root) as disk:
        (damage, *_) = offline.verify(disk, "n").damage
    assert damage.path == f"rocksdb/{1:016x}/{table.name}" and damage.offset <= 100
    node = RealNode(node.root, node.namespaces)
    with pytest.raises(StorageError, match=f"rocksdb/{1:016x}: damaged"):
        node.scan(1)
    node.close()


# --- growing --------------------------------------------------------------------------------------------------------


def test_lmdb_grows_in_the_worker_while_the_node_reads(tmp_path: Path) -> None:
    """The map of 64 KiB becomes some MiB in the other process; the node takes its size over and misses nothing."""
    node = node_at(tmp_path, "lmdb")
    worker = Worker(node.root, niceness=0)
    model: dict[bytes, bytes] = {}
    for round_ in range(3):
        pairs = {b"%d-%05d" % (round_, at): cell_of(round_ + 1, bytes(400)) for at in range(1500)}
        for start in range(0, 1500, 20):
            node.put_unread(1, dict(list(pairs.items())[start : start + 20]))
        model |= pairs
        scanned = node.engine.table(1).items()
        next(scanned)
        job = node.engine.begin_flush(node.end, b"meta")
        node.engine.install(job, worker.run(job))
        assert len(dict(scanned)) == len(model) - 1
        assert node.scan(1) == model
        assert node.read(1, [b"absent", b"0-00000"]) == [None, model[b"0-00000"]]
    worker.close()
    assert node.engine.figures()["tree_bytes"] > 1500 * 3 * 400
    node.close()


def test_lmdb_that_may_grow_no_further_says_so_and_goes_on_when_it_may(tmp_path: Path) -> None:
    """DiskFull with what to do; what was put stays in memory and in the log, and is flushed once there is room."""
    node = node_at(tmp_path, "lmdb", map_bytes_max=128 * KIB)
    model = many(500, size=300)
    for start in range(0, 500, 20):
        node.put_unread(1, dict(list(model.items())[start : start + 20]))
    with pytest.raises(DiskFull, match="may not grow beyond 0 MiB: delete what is not needed"):
        node.flush()
    assert node.scan(1) == model
    node.close()
    node = RealNode(node.root, node.namespaces, TINY)
    assert node.scan(1) == model
    node.flush()
    assert node.scan(1) == model and node.engine.figures()["tree_pairs"] == 500
    node.close()


def test_one_worker_and_one_node_change_the_same_tree_one_after_the_other(tmp_path: Path) -> None:
    """Two processes merge into one key at once, as after a node was killed and begun anew: no cell is lost."""
    place = TreePlace("lmdb", 1)
    script = (
        "import sys; from pathlib import Path; from tests.storage.tree.test_trees import merge_versions;"
        "merge_versions(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    root = Path(__file__).parents[3]
    tree = open_tree(tmp_path, place, TINY)
    tree.settle(TreeFacts())
    tree.close()
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(first)], cwd=root, env=environment())
        for first in (0, 1)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    tree = open_tree(tmp_path, place, TINY)
    expected = {b"%02d" % key: cell_of(4000 + (key + 1) % 2 + key, b"") for key in range(20)}
    assert {key: value[4:] for key, value in tree.step(b"", None, 99)}.keys() == expected.keys()
    assert all(value[4:] == _newest(key) for key, value in tree.step(b"", None, 99))
    tree.close()


def merge_versions(root: Path, first: int) -> None:
    """Every second version of twenty keys, in a random-looking order."""
    tree = open_tree(root, TreePlace("lmdb", 1), TINY)
    for step in range(first, 200, 2):
        merge_into(tree, {b"%02d" % key: _version(key, step) for key in range(20)}, "lww", Position())
    tree.close()


def _version(key: int, step: int) -> bytes:
    return cell_of(1 + (step * 37 + key * 11) % 200, b"")


def _newest(key: bytes) -> bytes:
    return max(_version(int(key), step) for step in range(200))


# --- reading --------------------------------------------------------------------------------------------------------


@every_tree
def test_what_is_in_memory_is_known_without_the_disk_and_nothing_else(engine: str, tmp_path: Path) -> None:
    """A flushed key must be loaded first; then it is in memory, and so is that an absent one is absent, until a flush."""
    node = node_at(tmp_path, engine)
    node.put(1, {b"k": cell_of(1, b"v"), b"other": cell_of(1, b"v")})
    node.flush()
    cells = node.engine.table(1)
    if engine == "lmdb":
        assert cells.missing([b"k", b"absent"]) == [b"k", b"absent"]
        cells.load([b"k", b"absent"])
    assert cells.missing([b"k", b"absent"]) == []
    assert cells.look([b"k", b"absent"]) == ([cell_of(1, b"v"), None], [])
    node.put_unread(1, {b"absent": cell_of(2, b"there now")})
    node.flush()
    assert node.read(1, [b"k", b"absent"]) == [cell_of(1, b"v"), cell_of(2, b"there now")]
    node.close()


@every_tree
def test_a_replica_need_not_look_under_a_cell_that_is_newer_than_all_in_the_tree(engine: str, tmp_path: Path) -> None:
    """The tree knows its highest version, across a restart."""
    node = node_at(tmp_path, engine)
    node.put(1, {b"k": cell_of(7, b"v")})
    node.flush()
    for _ in range(2):
        ceiling = node.engine.table(1).ceiling
        assert cell_of(8, b"") > ceiling > cell_of(7, b"v")
        node = node.reopened()
    node.close()


# --- collection -----------------------------------------------------------------------------------------------------


@every_tree
def test_tombstone_expired_and_absent_are_three_things_until_a_rule_covers_them(engine: str, tmp_path: Path) -> None:
    """Nothing goes without a rule; with one only what it covers goes, and no cache brings it back."""
    node = node_at(tmp_path, engine)
    dead, expired, live = cell_of(DAY, None, 7), cell_of(DAY, b"x", 8, deadline_ms=5), cell_of(DAY, b"x", 9)
    later = cell_of(DAY, b"x", 10, deadline_ms=100 * DAY_MS)
    node.put(1, {b"dead": dead, b"expired": expired, b"live": live, b"later": later})
    node.flush()
    keys = [b"dead", b"expired", b"live", b"later", b"absent"]
    assert node.read(1, keys) == [dead, expired, live, later, None]
    node.compact_all(1)
    assert not node.compact()
    assert node.read(1, keys) == [dead, expired, live, later, None]
    node.compact_all(1, everything_stable(node.end, clock_ms=DAY_MS))  # no clock has passed the versions
    assert node.read(1, keys) == [dead, expired, live, later, None]
    node.compact_all(1, everything_stable(node.end, clock_ms=2 * DAY_MS))
    assert node.read(1, keys) == [None, None, live, later, None]
    node = node.reopened()
    assert node.read(1, keys) == [None, None, live, later, None]
    node.close()


@every_tree
def test_the_delete_is_flushed_the_older_put_arrives_later(engine: str, tmp_path: Path) -> None:
    """While an older put is in the memtable only, the tombstone stays; flushed, both go together."""
    node = node_at(tmp_path, engine)
    node.put(1, {b"k": cell_of(5, None)})
    node.flush()
    node.put_unread(1, {b"k": cell_of(3, b"older")})
    rule = everything_stable(node.end)
    node.compact_all(1, rule)
    assert node.compact({1: rule}) is False
    assert node.read(1, [b"k"]) == [cell_of(5, None)]
    node.flush()
    assert node.compact({1: rule})
    assert node.read(1, [b"k"]) == [None] and node.scan(1) == {}
    node.close()


@every_tree
def test_a_walk_is_due_when_there_is_something_dead_and_not_too_often(engine: str, tmp_path: Path) -> None:
    """Not without tombstones, not twice within a minute of the rule's clock; in bounded steps."""
    node = node_at(tmp_path, engine)
    node.put(1, {b"live": cell_of(1, b"v")})
    node.flush()
    clock_ms = 10 * DAY_MS
    assert node.engine.next_compaction({1: everything_stable(node.end, clock_ms)}) is None
    node.put_unread(1, {b"key-%05d" % at: cell_of(at + 2, None if at % 3 else b"v") for at in range(5000)})
    node.flush()
    job = node.engine.next_compaction({1: everything_stable(node.end, clock_ms), 77: everything_stable(node.end)})
    assert isinstance(job, TreeCollection)
    node.build(job)
    assert len(node.scan(1)) == 1 + len(range(0, 5000, 3))
    node.put_unread(1, {b"key-00000": cell_of(9000, None)})
    node.flush()
    soon, later = (everything_stable(node.end, clock_ms + more) for more in (WALK_MS_MIN - 1, 60 * WALK_MS_MIN))
    assert node.engine.next_compaction({1: soon}) is None
    assert isinstance(node.engine.next_compaction({1: later}), TreeCollection)
    node.close()


@every_tree
def test_collection_leaves_what_became_newer_while_it_walked(engine: str, tmp_path: Path) -> None:
    """The cell is looked at again in the transaction that removes it."""
    node = node_at(tmp_path, engine)
    node.put(1, {b"k": cell_of(5, None), b"l": cell_of(5, None)})
    node.flush()
    tree = node.engine._spaces[1].tree
    assert tree is not None

    def meanwhile(_: int) -> None:
        merge_into(tree, {b"k": cell_of(6, b"new")}, "lww", node.end)

    assert remove_dead(tree, everything_stable(node.end), "lww", meanwhile) >= 1
    assert [value and value[4:] for value in tree.get([b"k", b"l"])] == [cell_of(6, b"new"), None]
    node.close()


@every_tree
def test_a_walk_counts_all_that_it_removes(engine: str, tmp_path: Path) -> None:
    """Also of a namespace whose policy was changed: an lww value that expires beside dots that have gone."""
    kind, frame = type_of("siblings"), halves.behind(cell_of(5, b"old", deadline_ms=1000), b"")
    gone = CellState()
    gone.join(update(kind, gone, Operation("put", (b"new", 0)), Dot(ORIGIN, 1)))
    gone.join(update(kind, gone, Operation("delete"), Dot(ORIGIN, 2)))
    node = RealNode(tmp_path / "node", {1: (engine, "changed")})
    node.put_unread(1, {b"k": halves.fold(frame + codec.encode(kind.tag, gone)), b"l": cell_of(6, None)})
    node.flush()
    tree = node.engine._spaces[1].tree
    assert tree is not None and tree.facts().dead == 2
    assert remove_dead(tree, everything_stable(node.end), "changed") == 2
    assert tree.facts().dead == 0
    node.close()


# --- deleting -------------------------------------------------------------------------------------------------------


def with_a_removal(path: Path, engine: str) -> tuple[RealNode, Removal]:
    """A node that has deleted a namespace of ten keys, and is to remove its tree."""
    node = node_at(path, engine)
    node.put_unread(1, many(10))
    node.flush()
    node.engine.drop(1)
    job = node.engine.next_compaction()
    assert isinstance(job, Removal)
    return node, job


@every_tree
def test_a_dropped_namespace_loses_its_folder_and_a_restart_before_the_next_flush_is_no_loss(
    engine: str, tmp_path: Path
) -> None:
    """The flushed state still knows the namespace: a mark says that its tree went on purpose, until the next flush."""
    node, job = with_a_removal(tmp_path, engine)
    node.build(job)
    assert [path.name for path in (node.root / engine).iterdir()] == [f"{1:016x}.gone"]
    node = node.reopened()  # begins with the namespace, as its state says
    assert node.scan(1) == {}
    node.engine.drop(1)
    node.namespaces = {}
    node.flush()
    assert not list(files_of(node.root / engine))
    node.close()


@every_tree
def test_a_removal_that_is_broken_off_anywhere_keeps_no_node_from_starting(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, between and after the files of the folder: the state that knows the namespace goes on, and the rest goes, too."""
    files = 0
    for at in range(100):
        node, job = with_a_removal(tmp_path / str(at), engine)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", partial(_removed_in_part, count=at))
            with pytest.raises(KeyboardInterrupt):
                node.engine.install(job, ())
        files = files or len(list((node.root / engine).glob("*/*")))
        node = node.crashed()  # to what was flushed, where the namespace is there yet
        assert len(node.scan(1)) in (0, 10)
        node.engine.drop(1)
        while node.compact():
            pass
        node.flush()
        assert list((node.root / engine).iterdir()) == []
        node.close()
        if at > files:
            return


@every_tree
def test_what_cannot_be_removed_yet_keeps_no_node_from_starting(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a deleted namespace is of no use to anybody: the next start tries again."""
    node, job = with_a_removal(tmp_path, engine)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", partial(_removed_in_part, count=0))
        with pytest.raises(KeyboardInterrupt):
            node.engine.install(job, ())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", partial(_unremovable, remove=shutil.rmtree))
        node = node.crashed()
        assert list((node.root / engine).glob("*.removing"))
    node = node.crashed()
    assert not list((node.root / engine).glob("*.removing"))
    node.close()


def _unremovable(folder: Path, remove: Callable[[Path], None]) -> None:
    if folder.suffix == ".removing":
        raise OSError(errno.EIO, "Input/output error")
    remove(folder)


def _removed_in_part(folder: Path, count: int) -> None:
    for path in sorted(folder.iterdir(), reverse=True)[:count]:
        path.unlink()
    raise KeyboardInterrupt


@every_tree
def test_a_namespace_dropped_in_the_midst_of_its_flush_is_no_failure(engine: str, tmp_path: Path) -> None:
    """The job goes on without it, and its folder goes after."""
    node = node_at(tmp_path, engine)
    node.put_unread(1, many(100))
    job = node.engine.begin_flush(node.end, b"meta")
    node.engine.drop(1)
    node.engine.install(job, node.engine.do(job))
    while node.compact():
        pass
    assert not [path for path in (node.root / engine).glob("*") if path.is_dir()]
    node.close()


@every_tree
def test_a_tree_of_nobody_goes(engine: str, tmp_path: Path) -> None:
    """A crash came between the deletion and the removal: the folder goes after the next start."""
    node = node_at(tmp_path, engine)
    node.put_unread(1, many(10))
    node.flush()
    node.close()
    node = RealNode(node.root, {})
    assert node.compact() and not node.compact()
    assert not [path for path in (node.root / engine).iterdir() if path.is_dir()]
    node.close()


# --- copies, loading, compacting ------------------------------------------------------------------------------------


@every_tree
def test_a_copy_stands_by_itself_while_the_node_goes_on(engine: str, tmp_path: Path) -> None:
    """What was flushed at the moment of the copy is in it, whatever is put later, and it is durable as a folder."""
    node = node_at(tmp_path, engine)
    model = many(500)
    node.put_unread(1, model)
    node.flush()
    assert node.engine.copy_trees(tmp_path / "backup") == [TreePlace(engine, 1)]
    node.put_unread(1, many(500, version=2))
    node.flush()
    tree = open_tree(tmp_path / "backup", TreePlace(engine, 1), TINY, is_read_only=True)
    assert {key: value[4:] for key, value in tree.step(b"", None, 1000)} == model
    tree.close()
    with pytest.raises(StorageError):
        node.engine.copy_trees(tmp_path / "backup")  # there is one already
    node.close()


@every_tree
def test_an_engine_that_holds_nothing_is_loaded(engine: str, tmp_path: Path) -> None:
    """As a restored backup would: cells in key order go into table and tree, durably, up to a position."""
    node = RealNode(tmp_path / "node", {1: (engine, "lww"), 2: ("lsm", "lww"), 3: (engine, "lww")})
    model = many(300)
    node.engine.load(((namespace, sorted(model.items())) for namespace in (1, 2)), Position(1, 0), b"meta")
    for _ in range(2):
        assert node.scan(1) == node.scan(2) == model and node.scan(3) == {}
        assert node.engine.position == Position(1, 0) and node.engine.meta == b"meta"
        node = node.reopened()
    node.close()


@every_tree
def test_compacting_offline_makes_it_smaller_and_keeps_every_cell(engine: str, tmp_path: Path) -> None:
    """Overwritten again and again, then compacted; inspect and dump see the same cells before and after."""
    node = node_at(tmp_path, engine)
    for version in range(1, 6):
        node.put_unread(1, many(400, version, size=500 if version < 5 else 10))
        node.flush()
    node.close()
    with offline.locked(node.root) as disk:
        before = offline.inspect(disk, "n")["trees"]
        cells = {pair.key: pair.cell for pair in offline.dump(disk)}
        assert cells == many(400, 5, size=10)
        assert offline.compact(disk) == 1
        after = offline.inspect(disk, "n")["trees"]
        assert {pair.key: pair.cell for pair in offline.dump(disk, after[0]["path"])} == cells
        assert after[0]["bytes"] < before[0]["bytes"] and after[0]["pairs"] == 400
        assert not offline.verify(disk, "n").damage
    node = RealNode(node.root, node.namespaces)
    assert node.scan(1) == cells
    node.close()


@with_rocksdb
def test_rocksdb_keeps_no_log_of_its_own(tmp_path: Path) -> None:
    """The node's log is the log: what RocksDB would log stays empty."""
    node = node_at(tmp_path, "rocksdb")
    for version in range(1, 5):
        node.put_unread(1, many(400, version))
        node.flush()
    assert sum(path.stat().st_size for path in (node.root / "rocksdb").rglob("*.log")) == 0
    node.close()


def test_a_copied_tree_of_another_namespace_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """Its facts carry the namespace in their checksum."""
    node = node_at(tmp_path, "lmdb")
    node.put_unread(1, many(10))
    node.flush()
    node.close()
    shutil.copytree(node.root / "lmdb" / f"{1:016x}", node.root / "lmdb" / f"{2:016x}")
    with pytest.raises(StorageError, match="wrong checksum"):
        RealNode(node.root, {1: ("lmdb", "lww"), 2: ("lmdb", "lww")})
