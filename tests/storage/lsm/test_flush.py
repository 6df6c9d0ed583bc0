"""A flush makes of the log what the node had made of it, no more and no less."""

import random

import pytest

from geokv.core.partial import Partial
from geokv.core.record import CELL, CONTROL, NO_OPERATION, encode_record
from geokv.errors import CorruptLog, StorageError
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.jobs import Flush, FlushedNamespace
from geokv.storage.lsm.table_writer import TableOptions
from geokv.storage.lsm.work import run_job
from geokv.storage.position import Position
from tests.storage.lsm.little_node import ORIGIN, LittleNode, cell_of
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")


def test_a_flush_holds_what_the_memtable_held() -> None:
    """Over several segments, overwrites in any order, two namespaces: the same cells, and the log may go."""
    node = LittleNode(CrashDisk(), (1, 2))
    rng = random.Random(7)
    for _ in range(60):
        pairs = {b"%02d" % rng.randrange(99): cell_of(rng.randrange(1, 500), rng.randbytes(60)) for _ in range(20)}
        node.put_unread(rng.choice([1, 2]), pairs)
    before = {namespace: dict(node.engine.scan(namespace)) for namespace in (1, 2)}
    segments = len(node.log.segments)
    node.flush(b"state")
    assert segments > 3 and len(node.log.segments) == 1
    assert {namespace: dict(node.engine.scan(namespace)) for namespace in (1, 2)} == before
    again = LittleNode(node.disk, (1, 2))
    assert {namespace: dict(again.engine.scan(namespace)) for namespace in (1, 2)} == before
    assert again.engine.meta == b"state" and not again.engine.table(1).missing([])


def test_only_frames_between_the_two_positions_are_taken() -> None:
    """The frame at the end position, and those before the beginning, stay out, exactly."""
    node = LittleNode(CrashDisk())
    ends = [Position()]
    for version in range(1, 5):
        node.put_unread(1, {b"k%d" % version: cell_of(version, b"v")})
        ends.append(node.end)
    for first in range(5):
        for last in range(first, 5):
            job = Flush(100 + 10 * first + last, ends[first], ends[last], (FlushedNamespace(1, "lww", True),), TableOptions())
            tables = run_job(node.disk, job)
            assert sum(facts.pairs for facts in tables) == last - first
            if tables:
                assert (tables[0].first_key, tables[0].last_key) == (b"k%d" % (first + 1), b"k%d" % last)


def test_cells_are_whole_only_where_nothing_older_can_be() -> None:
    """The first tables of a namespace hold whole cells; later ones are merged with them when read."""
    node = LittleNode(CrashDisk())
    node.put_unread(1, {b"k": cell_of(9, b"newer")})
    node.flush()
    node.put_unread(1, {b"k": cell_of(3, b"older")})
    node.flush()
    assert [facts.partials for facts in node.engine.tables(1)] == [1, 0]
    assert node.engine.get(1, b"k") == cell_of(9, b"newer")
    node.compact_all()
    assert [facts.partials for facts in node.engine.tables(1)] == [0]
    assert type(node.engine.get(1, b"k")) is not Partial


def test_repaired_cells_count_and_notes_do_not() -> None:
    """Cells without a number are flushed as deltas are; the node's own notes and other namespaces are passed over."""
    node = LittleNode(CrashDisk())
    records = [
        encode_record(CELL, 0, 1, 0, 1, NO_OPERATION, ORIGIN, b"repaired", cell_of(1, b"v")),
        encode_record(CONTROL, 0, 0, 0, 1, NO_OPERATION, ORIGIN, b"BOUND", b"\x90"),
        encode_record(CELL, 0, 77, 0, 1, NO_OPERATION, ORIGIN, b"of a deleted namespace", cell_of(1, b"v")),
    ]
    segment, offset = node.log.append(b"".join(records))
    node.log.sync()
    end = Position(segment, offset + sum(map(len, records)))
    job = node.engine.begin_flush(end, b"")
    (facts,) = run_job(node.disk, job)
    assert (facts.pairs, facts.first_key, facts.namespace) == (1, b"repaired", 1)


def test_what_was_collected_is_not_replayed() -> None:
    """The older put and the delete are in the segment where recovery begins, before its position: both stay gone."""
    node = LittleNode(CrashDisk())
    node.put(1, {b"k": cell_of(9, None)})
    node.put_unread(1, {b"k": cell_of(3, b"from the past")})
    node.flush()
    rule = CollectionRule(1, {(ORIGIN, 0): 100}, 1 << 40, node.end)
    node.compact_all(rule=rule)
    for disk in (node.disk, node.disk.crash_clone(random.Random(1))):
        again = LittleNode(disk)
        assert len(again.log.segments) == 1 and again.engine.get(1, b"k") is None


def test_a_damaged_log_is_not_flushed() -> None:
    """A frame that is not whole, a header that is none: an error with the file's name, and no table."""
    node = LittleNode(CrashDisk())
    node.put(1, {b"k": cell_of(1, bytes(100))})
    job = node.engine.begin_flush(node.end, b"")
    for offset in (40, 90, 12):
        copy = node.disk.copy()
        copy.damage("log/00000001.wal", offset, b"\xff\xfe")
        with pytest.raises(StorageError, match=r"log/00000001\.wal|segment 1 of the log"):
            run_job(copy, job)
        assert copy.list("lsm") == ["MANIFEST"]
    node.disk.truncate("log/00000001.wal", 60)
    with pytest.raises(StorageError, match=r"log/00000001\.wal|segment 1 of the log"):
        run_job(node.disk, job)


def test_records_that_make_no_sense_are_a_corrupt_log() -> None:
    """A whole frame of bytes that are no records names the segment."""
    node = LittleNode(CrashDisk())
    segment, offset = node.log.append(b"no record at all")
    node.log.sync()
    job = node.engine.begin_flush(Position(segment, offset + 16), b"")
    with pytest.raises(CorruptLog, match=r"log/00000001\.wal"):
        run_job(node.disk, job)
