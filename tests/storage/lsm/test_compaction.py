"""Compaction changes where cells stand, never what they say; and what is collected does not come back."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.conflict import policy_of
from geokv.core.ring import partition_of
from geokv.errors import StorageError
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.jobs import Compaction
from geokv.storage.lsm.merging import in_stretches
from geokv.storage.lsm.table_writer import TableOptions, write_tables
from geokv.storage.lsm.work import run_job
from geokv.storage.position import Position
from tests.storage.lsm.little_node import ORIGIN, SMALL, LittleNode, cell_of
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")

_KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
_CELLS = st.builds(cell_of, st.integers(1, 40), st.none() | st.binary(max_size=3))
_RUNS = st.lists(st.dictionaries(_KEYS, _CELLS, min_size=1), min_size=1, max_size=4)
DAY = 86_400_000 << 16
LWW = policy_of("lww")


def _rule(since: Position, clock: int = 10 * DAY, numbers: int = 100) -> CollectionRule:
    """Everything of ORIGIN is stable up to `numbers`; every clock has passed `clock`."""
    return CollectionRule(4, {(ORIGIN, partition): numbers for partition in range(4)}, clock >> 16, since)


@given(runs=_RUNS, later=st.dictionaries(_KEYS, _CELLS))
def test_compaction_commutes_with_merging(runs: list[dict[bytes, bytes]], later: dict[bytes, bytes]) -> None:
    """merge(compact(x), y) == compact(merge(x, y)), whatever y is and whether it comes before or after."""
    before, after = LittleNode(CrashDisk()), LittleNode(CrashDisk())
    for run in runs:
        for node in (before, after):
            node.put_unread(1, run)
            node.flush()
    before.compact_all()
    for node in (before, after):
        if later:
            node.put_unread(1, later)
    after.flush()
    after.compact_all()
    assert dict(before.engine.scan(1)) == dict(after.engine.scan(1))
    assert all(before.engine.get(1, key) == after.engine.get(1, key) for key in (b"a", b"b", b"c", b"d"))


def test_without_a_rule_nothing_is_left_out() -> None:
    """Tombstones and expired cells outlive any number of compactions."""
    node = LittleNode(CrashDisk())
    cells = {b"dead": cell_of(5, None), b"expired": cell_of(6, b"x", deadline_ms=7)}
    for _ in range(3):
        node.put(1, cells)
        node.flush()
        node.compact_all()
    assert dict(node.engine.scan(1)) == cells


def test_the_delete_is_flushed_the_older_put_arrives_later() -> None:
    """The older put is in the memtable, then in a newer table: the deeper tombstone stays until both are inputs."""
    node = LittleNode(CrashDisk())
    delete, older_put = cell_of(9, None), cell_of(3, b"from the past")
    node.put(1, {b"k": delete, b"other": cell_of(1, b"o")})
    node.flush()
    node.put_unread(1, {b"k": older_put})
    # Stability was seen with the put in the memtable only: the rule does not count before that is flushed.
    rule = _rule(node.end)
    node.compact_all(rule=rule)
    assert node.engine.get(1, b"k") == delete
    node.flush()
    # Now it is in a newer table that is not among the inputs.
    (deep,) = (facts for facts in node.engine.tables(1) if facts.tombstones)
    (newer,) = (facts for facts in node.engine.tables(1) if not facts.tombstones)
    alone = Compaction(900, 1, "lww", ((deep.number,),), (newer.number,), 0, deep.run, True, False, SMALL.tables, rule)
    node.engine.install(alone, run_job(node.disk, alone))
    assert node.engine.get(1, b"k") == delete
    node.compact_all(rule=rule)
    assert node.engine.get(1, b"k") is None and node.engine.get(1, b"other") is not None
    assert LittleNode(node.disk).engine.get(1, b"k") is None


@pytest.mark.parametrize(
    ("cell", "clock", "stable", "is_collected"),
    [
        (cell_of(DAY, None, number=7), 2 * DAY, 7, True),
        (cell_of(DAY, None, number=7), 2 * DAY, 6, False),  # not stable
        (cell_of(DAY, None, number=7), DAY, 7, False),  # a clock has not passed its version
        (cell_of(DAY, b"live", number=7), 2 * DAY, 7, False),
        (cell_of(DAY, b"x", number=7, deadline_ms=(3 * DAY >> 16) - 1), 3 * DAY, 7, True),
        (cell_of(DAY, b"x", number=7, deadline_ms=3 * DAY >> 16), 3 * DAY, 7, False),  # not expired on every clock
        (b"not a cell", 2 * DAY, 7, False),
    ],
)
def test_a_rule_covers_what_is_dead_for_everyone(cell: bytes, clock: int, stable: int, is_collected: bool) -> None:
    """Tombstone or expired, its dot stable, its version and deadline passed by every clock: all of them, or it stays."""
    rule = _rule(Position(), clock, stable)
    assert rule.covers(LWW, b"k", cell) == is_collected
    node = LittleNode(CrashDisk())
    node.put(1, {b"k": cell})
    node.flush()
    node.compact_all(rule=rule)
    assert (node.engine.get(1, b"k") is None) == is_collected


def test_stability_is_per_partition() -> None:
    """A dot that is stable in another partition's stream is not stable in this one."""
    cell = cell_of(DAY, None, number=7)
    partition = partition_of(b"k", 4)
    for stable, is_covered in ((partition, True), ((partition + 1) % 4, False)):
        assert CollectionRule(4, {(ORIGIN, stable): 9}, 2 * DAY >> 16, Position()).covers(LWW, b"k", cell) == is_covered


def test_a_collected_cell_does_not_stay_in_the_row_cache() -> None:
    """What was read before the collection is not answered after it."""
    node = LittleNode(CrashDisk())
    node.put(1, {b"k": cell_of(5, None)})
    node.flush()
    assert node.engine.get(1, b"k") is not None
    node.compact_all(rule=_rule(node.end))
    assert node.engine.get(1, b"k") is None and node.engine.tables(1) == ()


def test_a_damaged_input_ends_the_job_and_changes_nothing() -> None:
    """The error names the file, no output is left, and what can be read is read as before."""
    node = LittleNode(CrashDisk())
    for version in (1, 2):
        node.put(1, {b"%04d" % index: cell_of(100 * version + index, bytes(20)) for index in range(50)})
        node.flush()
    job = node.engine.full_compaction(1)
    assert job is not None
    files = node.disk.list("lsm")
    newest = node.engine.tables(1)[0]
    node.disk.damage(newest.name, 5, b"\xff")
    with pytest.raises(StorageError, match=newest.name):
        run_job(node.disk, job)
    assert node.disk.list("lsm") == files
    assert node.engine.get(1, b"0049") == cell_of(249, bytes(20))


def test_outputs_are_cut_at_the_target_size() -> None:
    """Many tables, each near the size that was asked for, none overlapping another."""
    disk = CrashDisk()
    disk.make_folder("lsm")
    pairs = [(b"%06d" % index, cell_of(index + 1, Random(index).randbytes(30))) for index in range(3000)]
    inputs = write_tables(disk, 1, 1, "lww", in_stretches(pairs), TableOptions())
    job = Compaction(2, 1, "lww", ((inputs[0].number,),), (), 1, 0, True, False, TableOptions(table_bytes=8192))
    outputs = run_job(disk, job)
    assert len(outputs) > 5 and sum(facts.pairs for facts in outputs) == 3000
    assert all(8192 <= facts.nbytes < 16384 for facts in outputs[:-1])
    assert all(one.last_key < two.first_key for one, two in pairwise(outputs))
