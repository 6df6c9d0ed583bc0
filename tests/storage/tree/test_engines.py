"""One suite for all engines: a sorted map that merges, whatever was flushed, compacted, collected, reopened or crashed.

On real files, so a crash is a process that is no more (`test_kill` has the real ones): what it had not written is lost. Cuts of
the power, with every fate of an unsynced write, are the simulated disk's and the engine `lsm`'s.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from geokv.core.conflict import policy_of
from geokv.storage.memory import MemoryCells
from tests.core.cells.harness import play, tape_of_seed
from tests.storage.lsm.little_node import cell_of
from tests.storage.tree.real_node import DURABLE, TREES, RealNode, everything_stable, with_rocksdb

_KEYS = st.builds(lambda group, index: b"%c/%02d" % (group, index), st.integers(97, 99), st.integers(0, 15))
_CELLS = st.builds(
    cell_of, st.integers(1, 60), st.none() | st.binary(max_size=30), deadline_ms=st.sampled_from([0, 0, 0, 5, 1 << 45])
)
_PAIRS = st.dictionaries(_KEYS, _CELLS, min_size=1, max_size=12)
_NAMESPACES = st.sampled_from([1, 2])


class EngineAgainstModel(RuleBasedStateMachine):
    """Namespace 1 is of the engine under test, namespace 2 of `lsm` beside it; two dictionaries are the model."""

    engine = "lsm"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="geokv-engines-")
        self.node = RealNode(Path(self.folder.name) / "node", {1: (self.engine, "lww"), 2: ("lsm", "lww")})
        self.model: dict[int, dict[bytes, bytes]] = {1: {}, 2: {}}

    def _merge(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        held = self.model[namespace]
        held.update({key: max(cell, held.get(key, cell)) for key, cell in pairs.items()})

    @rule(namespace=_NAMESPACES, pairs=_PAIRS)
    def put(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        self.node.put(namespace, pairs)
        self._merge(namespace, pairs)

    @rule(namespace=_NAMESPACES, pairs=_PAIRS)
    def put_unread(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        self.node.put_unread(namespace, pairs)
        self._merge(namespace, pairs)

    @rule(namespace=_NAMESPACES, keys=st.lists(_KEYS, max_size=8))
    def read(self, namespace: int, keys: list[bytes]) -> None:
        found = self.node.read(namespace, keys)
        assert found == [self.model[namespace].get(key) for key in keys]
        assert all(type(cell) in {bytes, type(None)} for cell in found)

    @rule(start=_KEYS, stop=st.none() | _KEYS)
    def scan(self, start: bytes, stop: bytes | None) -> None:
        assert list(self.node.engine.table(1).scan(start, stop)) == [
            (key, cell) for key, cell in sorted(self.model[1].items()) if start <= key and (stop is None or key < stop)
        ]

    @rule(prefix=st.sampled_from([b"", b"a", b"b/", b"c/1", b"\xff"]))
    def scan_prefix(self, prefix: bytes) -> None:
        found = list(self.node.engine.table(1).scan_prefix(prefix))
        assert found == [pair for pair in sorted(self.model[1].items()) if pair[0].startswith(prefix)]

    @rule()
    def flush(self) -> None:
        self.node.flush()

    @rule()
    def compact(self) -> None:
        self.node.compact()

    @rule(namespace=_NAMESPACES)
    def collect(self, namespace: int) -> None:
        """All that was written is stable, and flushed: what is dead goes for good."""
        self.node.flush()
        clock_ms = 1 << 40
        self.node.compact_all(namespace, everything_stable(self.node.end, clock_ms))
        held = self.model[namespace]
        rule = everything_stable(self.node.end, clock_ms)
        self.model[namespace] = {key: cell for key, cell in held.items() if not rule.covers(policy_of("lww"), key, cell)}

    @rule(pairs=_PAIRS, is_made=st.booleans(), is_crash=st.booleans())
    def put_during_a_flush(self, pairs: dict[bytes, bytes], is_made: bool, is_crash: bool) -> None:
        """What comes meanwhile is there; a crash before the position moves leaves what is merged once more."""
        job = self.node.engine.begin_flush(self.node.end, b"m")
        self.put(1, pairs)
        tables = self.node.engine.do(job) if is_made or not is_crash else ()
        self.put_unread(2, pairs)
        self.agrees()
        if is_crash:
            self.node = self.node.crashed()
        else:
            self.node.engine.install(job, tables)

    @rule()
    def reopen(self) -> None:
        self.node = self.node.reopened()

    @rule()
    def crash(self) -> None:
        self.node = self.node.crashed()

    @invariant()
    def agrees(self) -> None:
        for namespace, held in self.model.items():
            assert self.node.scan(namespace) == held

    def teardown(self) -> None:
        self.node.close()
        self.folder.cleanup()


class LmdbAgainstModel(EngineAgainstModel):
    """A B+tree."""

    engine = "lmdb"


class RocksDbAgainstModel(EngineAgainstModel):
    """A RocksDB."""

    engine = "rocksdb"


class MemoryAgainstModel(RuleBasedStateMachine):
    """What all engines do alike, and what `memory` does not: nothing of it is there after a restart."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = MemoryCells(1 << 20)
        self.model: dict[bytes, bytes] = {}

    @rule(pairs=_PAIRS)
    def put(self, pairs: dict[bytes, bytes]) -> None:
        merged = {key: max(cell, self.cells.get(key) or cell) for key, cell in pairs.items()}
        self.cells.update(merged)
        self.model |= {key: max(cell, self.model.get(key, cell)) for key, cell in pairs.items()}

    @rule(keys=st.lists(_KEYS, max_size=8))
    def read(self, keys: list[bytes]) -> None:
        assert self.cells.look(keys) == ([self.model.get(key) for key in keys], [])

    @rule(pairs=_PAIRS)
    def restart(self, pairs: dict[bytes, bytes]) -> None:
        """Recovery finds what the log has, and puts none of it here."""
        self.cells, self.model = MemoryCells(1 << 20), {}
        for pair in pairs.items():
            self.cells.merge_in(*pair)

    @invariant()
    def agrees(self) -> None:
        assert dict(self.cells.items()) == self.model


_STEPS = settings(max_examples=max(4, settings.default.max_examples // 4), stateful_step_count=25)
for _machine in (EngineAgainstModel, LmdbAgainstModel, RocksDbAgainstModel, MemoryAgainstModel):
    _machine.TestCase.settings = _STEPS
TestLsm = EngineAgainstModel.TestCase
TestLmdb = LmdbAgainstModel.TestCase
TestRocksDb = with_rocksdb(RocksDbAgainstModel.TestCase)
TestMemory = MemoryAgainstModel.TestCase

_RUNS = st.lists(
    st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d"]), _CELLS, min_size=1, max_size=4), min_size=1, max_size=4
)


@pytest.mark.parametrize("engine", DURABLE)
@settings(max_examples=15)
@given(runs=_RUNS, later=st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d"]), _CELLS, min_size=1))
def test_compaction_commutes_with_merging(engine: str, runs: list[dict[bytes, bytes]], later: dict[bytes, bytes]) -> None:
    """merge(compact(x), y) == compact(merge(x, y)), whatever y is and whether it comes before or after."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = (RealNode(Path(folder) / name, {1: (engine, "lww")}) for name in ("before", "after"))
        for run in runs:
            for node in (before, after):
                node.put_unread(1, run)
                node.flush()
        before.compact_all(1)
        for node in (before, after):
            node.put_unread(1, later)
        after.flush()
        after.compact_all(1)
        assert before.scan(1) == after.scan(1)
        keys = [b"a", b"b", b"c", b"d"]
        assert before.read(1, keys) == after.read(1, keys)
        for node in (before, after):
            node.close()


@pytest.mark.parametrize("engine", TREES)
def test_a_tree_does_not_tell_how_old_what_waits_in_it_is(engine: str, tmp_path: Path) -> None:
    """In memory that is known; once it is flushed the figure is left out, and what comes then does not stand for all."""
    node = RealNode(tmp_path / "node", {1: (engine, "lww")})
    node.put(1, {b"k": cell_of(5 << 16, None)})
    held = node.engine.held(1)
    assert (held.oldest_ms(1_000), held.is_dated) == (5, True)
    node.flush()
    node.put(1, {b"later": cell_of(9 << 16, None)})
    held = node.engine.held(1)
    assert held.count(1_000) == 2 and (held.oldest_ms(1_000), held.is_dated) == (None, False)


@pytest.mark.parametrize("engine", DURABLE)
@pytest.mark.parametrize("policy", ["siblings", "counter_pn", "set_aw", "map_rr"])
def test_deltas_of_every_policy_fold_into_what_their_merge_is(engine: str, policy: str, tmp_path: Path, samples) -> None:
    """Deltas of random histories, as replicas take them: in any order, flushed, crashed and compacted in between."""
    merge = policy_of(policy).merge
    node = RealNode(tmp_path / "node", {1: (engine, policy)})
    for seed in range(samples.of(test=6, check=25, soak=600)):
        rng = random.Random(seed)
        key = b"key-%d" % seed
        deltas = play(policy, tape_of_seed(seed)).deltas[:12]
        rng.shuffle(deltas)
        expected = None
        for delta in deltas:
            node.put_unread(1, {key: delta})
            expected = merge(delta, delta) if expected is None else merge(expected, delta)
            choice = rng.random()
            if choice < 0.3:
                node.flush()
            elif choice < 0.4:
                node = node.crashed()
            elif choice < 0.5:
                node.compact_all(1)
        found = node.read(1, [key])[0]
        assert (found and merge(found, found)) == expected, seed
    node.close()
