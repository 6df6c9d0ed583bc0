"""The engine is a sorted map that merges, whatever was flushed, compacted, reopened or crashed in between."""

import errno
import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from geokv.core.cells import codec
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update
from geokv.core.limits import KIB
from geokv.errors import DiskFull, StorageError
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.strategy import SizeTiered
from geokv.storage.lsm.table_writer import TableOptions
from geokv.storage.lsm.verify import verify
from geokv.storage.lsm.work import run_job
from geokv.storage.position import Position
from tests.storage.lsm.little_node import ORIGIN, SMALL, LittleNode, cell_of, sealed_files

_KEYS = st.builds(lambda group, index: b"%c/%02d" % (group, index), st.integers(97, 99), st.integers(0, 15))
_CELLS = st.builds(cell_of, st.integers(1, 60), st.none() | st.binary(max_size=30))
_PAIRS = st.dictionaries(_KEYS, _CELLS, min_size=1, max_size=12)
_NAMESPACES = st.sampled_from([1, 2])
_TIERED = LsmOptions(SMALL.tables, SizeTiered(runs_min=2, runs_max=3), 2048, 512)


class EngineAgainstModel(RuleBasedStateMachine):
    """Puts, reads, flushes, compactions, reopenings and crashes in any order against two dictionaries."""

    options = SMALL

    def __init__(self) -> None:
        super().__init__()
        self.disk = CrashDisk()
        self.node = LittleNode(self.disk, (1, 2), self.options)
        self.model: dict[int, dict[bytes, bytes]] = {1: {}, 2: {}}

    @rule(namespace=_NAMESPACES, pairs=_PAIRS)
    def put(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        self.node.put(namespace, pairs)
        self._merge(namespace, pairs)

    @rule(namespace=_NAMESPACES, pairs=_PAIRS)
    def put_unread(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        self.node.put_unread(namespace, pairs)
        self._merge(namespace, pairs)

    def _merge(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        held = self.model[namespace]
        held.update({key: max(cell, held.get(key, cell)) for key, cell in pairs.items()})

    @rule(namespace=_NAMESPACES, keys=st.lists(_KEYS, max_size=8))
    def get(self, namespace: int, keys: list[bytes]) -> None:
        cells = self.node.engine.table(namespace)
        missing = cells.missing(keys)
        reads = self.disk.calls.get("read_at", 0)
        for key in keys:
            if key not in missing:
                assert cells.get(key) == self.model[namespace].get(key)
        assert self.disk.calls.get("read_at", 0) == reads, "a key that was said to be in memory cost a read"
        cells.load(missing)
        for key in keys:
            found = cells.get(key)
            assert found == self.model[namespace].get(key) and type(found) in {bytes, type(None)}

    @rule(namespace=_NAMESPACES, start=_KEYS, stop=st.none() | _KEYS)
    def scan(self, namespace: int, start: bytes, stop: bytes | None) -> None:
        assert list(self.node.engine.scan(namespace, start, stop)) == [
            (key, cell) for key, cell in sorted(self.model[namespace].items()) if start <= key and (stop is None or key < stop)
        ]

    @rule(namespace=_NAMESPACES, prefix=st.sampled_from([b"", b"a", b"b/", b"c/1", b"\xff"]))
    def scan_prefix(self, namespace: int, prefix: bytes) -> None:
        found = list(self.node.engine.table(namespace).scan_prefix(prefix))
        assert found == [pair for pair in sorted(self.model[namespace].items()) if pair[0].startswith(prefix)]

    @rule()
    def flush(self) -> None:
        self.node.flush()

    @rule()
    def flush_that_fails(self) -> None:
        before = set(sealed_files(self.disk))
        self.disk.fail("sync", name=".sst")
        try:
            self.node.flush()
        except StorageError:
            pass
        self.disk.heal()
        assert set(sealed_files(self.disk)) <= before, "a job that failed leaves nothing"

    @rule()
    def compact(self) -> None:
        self.node.compact()

    @rule(namespace=_NAMESPACES)
    def compact_all(self, namespace: int) -> None:
        self.node.compact_all(namespace)

    @rule(pairs=_PAIRS)
    def put_during_a_flush(self, pairs: dict[bytes, bytes]) -> None:
        engine = self.node.engine
        job = engine.begin_flush(self.node.end, b"m")
        self.put(1, pairs)
        tables = run_job(self.disk, job)
        self.put_unread(2, pairs)
        self.agrees()
        engine.install(job, tables)

    @rule()
    def reopen(self) -> None:
        self.node = LittleNode(self.disk, (1, 2), self.options)

    @rule(seed=st.integers(0, 2**32))
    def crash(self, seed: int) -> None:
        self.disk = self.disk.crash_clone(random.Random(seed))
        self.node = LittleNode(self.disk, (1, 2), self.options)

    @invariant()
    def agrees(self) -> None:
        for namespace, held in self.model.items():
            assert dict(self.node.engine.table(namespace).items()) == held
        engine = self.node.engine
        assert engine.cache.bytes <= engine.cache.bytes_max and len(engine) >= sum(map(len, self.model.values()))

    def teardown(self) -> None:
        live = {facts.name.rpartition("/")[2] for facts in LsmEngine(self.disk)._state.all_tables()}
        assert set(sealed_files(self.disk)) == {"MANIFEST", *live}


class TieredAgainstModel(EngineAgainstModel):
    """The same with size-tiered compaction and caches that hold next to nothing."""

    options = _TIERED


EngineAgainstModel.TestCase.settings = settings(stateful_step_count=30)
TieredAgainstModel.TestCase.settings = settings(stateful_step_count=30)
TestEngineAgainstModel = EngineAgainstModel.TestCase
TestTieredAgainstModel = TieredAgainstModel.TestCase


def _fill(node: LittleNode, rounds: int = 4) -> dict[bytes, bytes]:
    model: dict[bytes, bytes] = {}
    for version in range(1, rounds + 1):
        pairs = {b"%03d" % index: cell_of(version * 1000 + index, bytes(30)) for index in range(0, 100, version)}
        node.put(1, pairs)
        model |= pairs
        node.flush()
    return model


def test_cells_stand_where_a_dictionary_stood() -> None:
    """What the protocol and its tests do with a dictionary of cells, in memory and in tables."""
    node = LittleNode(CrashDisk())
    cells = node.engine.table(1)
    for _ in range(2):
        cells[b"b"] = cell_of(2, b"two")
        node.put(1, {b"a": cell_of(1, b"one"), b"b": cell_of(2, b"two")})
        assert dict(cells) == dict(cells.items()) == {b"a": cell_of(1, b"one"), b"b": cell_of(2, b"two")}
        assert list(cells) == [b"a", b"b"] and b"a" in cells and b"c" not in cells and len(cells) >= 2
        assert cells[b"a"] == cell_of(1, b"one") and cells.get(b"c", b"default") == b"default"
        with pytest.raises(KeyError):
            cells[b"c"]
        node.flush()


def test_the_way_of_compacting_may_change_at_any_start() -> None:
    """Levelled, by size, levelled again with other filters: after each flush, compaction and start all is there."""
    disk = CrashDisk()
    model: dict[bytes, bytes] = {}
    for turn, options in enumerate([SMALL, _TIERED, replace(SMALL, tables=replace(SMALL.tables, bits_per_key=20)), _TIERED]):
        node = LittleNode(disk, options=options)
        for step in range(6):
            keys = range(step * 10, step * 10 + 40)
            some = {b"%03d" % (turn * 40 + at): cell_of(turn * 6 + step + 1, b"v" * at) for at in keys}
            node.put_unread(1, some)
            model |= some
            node.flush()
            while node.compact():
                assert dict(node.engine.scan(1)) == model
        assert {key: node.engine.table(1).get(key) for key in model} == model
        assert list(verify(disk)) == []


def test_a_scan_and_gets_go_on_while_tables_are_replaced() -> None:
    """A compaction removes the files that a scan is in the midst of: it goes on in the new ones and misses nothing."""
    node = LittleNode(CrashDisk(), options=LsmOptions(SMALL.tables, block_cache_bytes=0, row_cache_bytes=0))
    model = {b"%05d" % index: cell_of(index + 1, b"v") for index in range(1000)}
    node.put(1, model)
    node.flush()
    seen = []
    for count, pair in enumerate(node.engine.scan(1)):
        seen.append(pair)
        if count in {10, 300, 700}:
            node.put(1, {b"zz%d" % count: cell_of(1, b"new")})
            node.flush()
            node.compact_all()
    assert [pair for pair in seen if pair[0] in model] == sorted(model.items())


def test_a_get_looks_again_where_its_table_was_replaced() -> None:
    """The file goes between the look at the view and the read: the get answers from the new table."""
    node = LittleNode(CrashDisk())
    _fill(node, 3)
    cells = node.engine.table(1)
    node.engine.cache.bytes_max = 0
    expected = cells.get(b"000")
    inner = node.disk.read_at

    def compacted_meanwhile(name: str, offset: int, length: int) -> bytes:
        node.disk.read_at = inner  # type: ignore[method-assign]
        node.compact_all()
        return inner(name, offset, length)

    node.disk.read_at = compacted_meanwhile  # type: ignore[method-assign]
    assert cells._from_tables(b"000") == expected


def test_a_stale_row_never_enters_the_row_cache() -> None:
    """What was read before a flush is not remembered after it, though the reading ends later."""
    node = LittleNode(CrashDisk())
    node.put(1, {b"k": cell_of(1, b"old")})
    node.flush()
    node.put_unread(1, {b"k": cell_of(2, b"new")})
    inner = node.disk.read_at

    def flushed_meanwhile(name: str, offset: int, length: int) -> bytes:
        node.disk.read_at = inner  # type: ignore[method-assign]
        block = inner(name, offset, length)
        node.flush()
        return block

    node.disk.read_at = flushed_meanwhile  # type: ignore[method-assign]
    assert node.engine.get(1, b"k") == cell_of(2, b"new")
    assert node.engine.get(1, b"k") == cell_of(2, b"new")


def test_damage_is_an_error_that_names_the_table_and_spares_the_others() -> None:
    """A get and a scan that meet a damaged block raise; keys elsewhere are answered."""
    node = LittleNode(CrashDisk(), options=LsmOptions(TableOptions(block_bytes=200), block_cache_bytes=0, row_cache_bytes=0))
    model = _fill(node, 1)
    (facts,) = node.engine.tables(1)
    node.disk.damage(facts.name, 20, b"\xff\xff")
    for read in (lambda: node.engine.get(1, b"000"), lambda: list(node.engine.scan(1))):
        with pytest.raises(StorageError, match=f"{facts.name}: damaged at byte 0") as caught:
            read()
        assert (caught.value.details["path"], caught.value.details["offset"]) == (facts.name, 0)
    assert node.engine.get(1, b"099") == model[b"099"]


def test_a_dropped_namespace_is_gone_and_its_files_too() -> None:
    """Its cells at once, its files with the next install, and neither comes back under the same id."""
    node = LittleNode(CrashDisk(), (1, 2))
    _fill(node)
    node.put(2, {b"k": cell_of(1, b"kept")})
    node.engine.drop(1)
    node.engine.drop(1)
    assert node.engine.get(1, b"000") is None and list(node.engine.scan(1)) == []
    assert node.engine.create(1).get(b"000") is None
    node.flush()
    assert {facts.namespace for facts in LsmEngine(node.disk)._state.all_tables()} == {2}
    assert len(sealed_files(node.disk)) == 2


def test_a_flush_in_progress_brings_nothing_of_a_dropped_namespace_back() -> None:
    """Dropped, and made again under the same id, between planning and installing: it is empty."""
    node = LittleNode(CrashDisk())
    node.put(1, {b"k": cell_of(1, b"x")})
    job = node.engine.begin_flush(node.end, b"")
    tables = run_job(node.disk, job)
    node.engine.drop(1)
    node.engine.create(1)
    node.engine.install(job, tables)
    assert node.engine.get(1, b"k") is None and node.engine.tables(1) == ()


def test_what_a_manifest_names_stays_though_its_namespace_is_dropped_while_it_is_written() -> None:
    """Dropped in the midst of a switch: that manifest still names its tables, and a crash right then opens."""
    node = LittleNode(CrashDisk(), (1, 2))
    _fill(node)
    node.put(2, {b"k": cell_of(1, b"kept")})
    inner = node.disk.rename

    def dropped_meanwhile(old: str, new: str) -> None:
        node.disk.rename = inner  # type: ignore[method-assign]
        node.engine.drop(1)
        inner(old, new)

    node.disk.rename = dropped_meanwhile  # type: ignore[method-assign]
    node.flush()
    again = LittleNode(node.disk.crash_clone(random.Random(1)), (1, 2))
    assert again.engine.get(2, b"k") == cell_of(1, b"kept")
    node.flush()
    assert len(sealed_files(node.disk)) == 2


def test_a_load_is_what_the_engine_begins_with() -> None:
    """Cells of a checkpoint become tables at once, with position and meta; a second load is refused."""
    disk = CrashDisk()
    engine = LsmEngine(disk, SMALL)
    pairs = {b"%03d" % index: cell_of(index + 1, b"x") for index in range(200)}
    for namespace in (1, 2):
        engine.create(namespace)
    engine.load([(1, sorted(pairs.items())), (2, [(b"a", b"b")])], Position(4, 0), b"state")
    reopened = LsmEngine(disk.crash_clone(random.Random(1)), SMALL)
    for one in (engine, reopened):
        one.create(1)
        assert dict(one.scan(1)) == pairs and (one.position, one.meta) == ((4, 0), b"state")
    with pytest.raises(AssertionError):
        engine.load([], Position(5, 0), b"")


def test_what_many_want_is_read_once() -> None:
    """Calls that waited for the same key go to the disk together; only the first of them needs it."""
    disk = CrashDisk()
    node = LittleNode(disk, options=replace(SMALL, block_cache_bytes=0, row_cache_bytes=100_000))
    node.put(1, {b"%03d" % key: cell_of(key + 1, b"value") for key in range(100)})
    node.flush()
    cells, reads = node.engine.table(1), disk.calls["read_at"]
    for _ in range(50):
        cells.load([b"007"])
    assert disk.calls["read_at"] == reads + 1
    node.put(1, {b"008": cell_of(1000, b"newer")})
    reads = disk.calls["read_at"]
    cells.load([b"008"])
    assert disk.calls["read_at"] == reads, "memory has all of it"


def test_a_failed_switch_keeps_the_files_of_both_sides_until_the_next() -> None:
    """The manifest may be the old or the new one: nothing that either names is removed before a switch succeeds.

    One that could not even be written is no switch: what was made for it goes at once.
    """
    for call in ("sync", "rename", "sync_dir"):
        node = LittleNode(CrashDisk())
        model = _fill(node)
        job = node.engine.full_compaction(1)
        assert job is not None
        tables = run_job(node.disk, job)
        before = set(node.disk.list("lsm"))
        node.disk.fail(call)
        with pytest.raises(StorageError):
            node.engine.install(job, tables)
        made = {f"{table.number:016x}.sst" for table in tables} if call == "sync" else set()
        assert before - made <= set(node.disk.list("lsm")) and dict(node.engine.scan(1)) == model
        for seed in range(5):
            assert dict(LittleNode(node.disk.crash_clone(random.Random(seed))).engine.scan(1)) == model
        node.compact_all()
        assert len(sealed_files(node.disk)) == 1 + len(node.engine.tables(1)) and dict(node.engine.scan(1)) == model


def test_tries_on_a_disk_that_is_nearly_full_do_not_fill_it() -> None:
    """A flush of two namespaces has room for the first one's tables only: each try gives back what it took."""
    node = LittleNode(CrashDisk(), (1, 2))
    model = {b"%03d" % index: cell_of(index + 1, random.Random(index).randbytes(100)) for index in range(100)}
    for namespace in (1, 2):
        node.put(namespace, model)
    free = node.disk.free_bytes()
    one_table = 16_000
    node.disk.capacity_bytes = (1 << 60) - free + one_table
    job = node.engine.begin_flush(node.end, b"")
    taken = 0
    for _ in range(3):
        with pytest.raises(DiskFull):
            node.build(job)
        assert sealed_files(node.disk) == ["MANIFEST"] and node.disk.free_bytes() == one_table
        job = node.engine.flush_again(job)
        taken = max(taken, job.number)
    assert taken == job.number, "no try takes the name of an earlier one's files"
    node.disk.capacity_bytes += one_table
    node.build(job)
    assert all(dict(LittleNode(node.disk, (1, 2)).engine.scan(namespace)) == model for namespace in (1, 2))


def test_tables_that_no_manifest_was_written_for_go_at_once() -> None:
    """Where manifest or state find no room, or are not synced, what was made for them does not add up either."""
    for call, failing in product(("append", "sync"), ("MANIFEST", "META")):
        node = LittleNode(CrashDisk())
        model = _fill(node, 1)
        live = set(node.disk.list("lsm"))
        node.put(1, newer := {b"001": cell_of(9_000, b"newer")})
        node.disk.fail(call, errno.ENOSPC, name=failing, times=3)
        job = node.engine.begin_flush(node.end, b"a newer state")
        for _ in range(3):
            with pytest.raises(StorageError):
                node.build(job)
            assert set(node.disk.list("lsm")) - {"MANIFEST.tmp"} == live
            job = node.engine.flush_again(job)
        node.build(job)
        assert set(sealed_files(node.disk)) > {name for name in live if "META" not in name}
        assert len(sealed_files(node.disk)) == 1 + len(node.engine.tables(1))
        assert dict(LittleNode(node.disk.crash_clone(random.Random(1))).engine.scan(1)) == model | newer


def test_space_of_a_dropped_namespace_comes_back_without_a_flush() -> None:
    """The next compaction is one of nothing: a manifest without its tables; then none is due any more."""
    node = LittleNode(CrashDisk(), (1, 2))
    _fill(node, 1)
    assert not node.compact()
    node.engine.drop(1)
    assert node.compact() and sealed_files(node.disk) == ["MANIFEST"]
    assert not node.compact()


@pytest.mark.parametrize(("policy", "is_sampled"), [("lww", False), ("siblings", True)])
def test_what_is_dead_in_memory_is_estimated_from_few_bytes_where_cells_must_be_decoded(policy: str, is_sampled: bool) -> None:
    """Of cells that are told at a glance each one counts; of cells of dots so many as fit into 64 KiB, one at least."""
    engine = LsmEngine(CrashDisk(), SMALL)
    cells = engine.create(1, policy)
    assert cells.dead_in_memory()[:2] == (0, False)

    def put(index: int, value: bytes | None) -> None:
        if policy == "lww":
            cells[b"%03d" % index] = cell_of(index + 1, value)
            return
        kind, dot = type_of(policy), Dot(ORIGIN, index + 1)
        operation = Operation("delete") if value is None else Operation("put", (value, 0))
        cells[b"%03d" % index] = codec.encode(kind.tag, update(kind, CellState(), operation, dot))

    for index in range(3):
        put(index, None)
    assert cells.dead_in_memory()[:2] == (3, False)
    put(3, bytes(100 * KIB))
    assert cells.dead_in_memory()[:2] == ((0, True) if is_sampled else (3, False))
    for index in range(4, 64):
        put(index, None if index % 2 else bytes(4 * KIB))
    dead, is_estimate, *_ = cells.dead_in_memory()
    assert is_estimate is is_sampled and 30 <= dead <= 33
