"""Taking in what others numbered: what is taken, what is dropped, and what is said about it."""

from __future__ import annotations

import pytest

from geokv.core.cell import lww_version
from geokv.core.lww import encode_lww_record
from geokv.core.origin import Origin
from geokv.core.record import CELL, CONTROL, NO_OPERATION, encode_record
from geokv.core.ring import key_hash
from geokv.errors import RecordError
from geokv.protocol.intake import Taken
from geokv.protocol.messages import Replicated
from tests.node.harness import Cluster

ORIGIN = Origin("dc1", "dc1-9", 3).packed()


class Door:
    """The intake of one node that is started and otherwise left alone."""

    def __init__(self) -> None:
        self.cluster = Cluster(partitions=1).start().serving()
        self.node = self.cluster.nodes["dc1-1"]
        self.context = self.node.context
        (self.namespace,) = self.context.tables
        self.table = self.context.tables[self.namespace]
        self.synced: list[str] = []

    def record(self, number: int, key: bytes = b"k", version: int = 0, origin: bytes = ORIGIN, partition: int = 0) -> bytes:
        raw, _ = encode_lww_record(
            partition, self.namespace, number, number, NO_OPERATION, origin, key, version or number, 0, 0, b"v%d" % number
        )
        return raw

    def take(self, *records: bytes, is_closing: bool = False, answer: Replicated | None = None) -> Taken:
        return self.node.assembly.intake.take(
            b"".join(records), lambda: self.synced.append("synced"), is_closing=is_closing, answer=answer
        )

    def settle(self) -> None:
        self.context.commit.flush(self.cluster.now_us)
        for effect in list(self.context.effects):
            self.cluster._perform("dc1-1", effect)
        self.context.effects.clear()
        self.cluster.settle()

    def frontier(self) -> int:
        stream = self.table.streams.get(0, ORIGIN)
        return stream.frontier if stream is not None else 0


def test_records_are_shown_and_counted_when_they_are_synced() -> None:
    """Before the sync neither frontier nor readers know of them; then `then` runs."""
    door = Door()
    taken = door.take(door.record(1), door.record(2, b"other"))
    assert (taken.fresh, len(taken.present), taken.contiguous) == (2, 2, True)
    assert (door.frontier(), b"k" in door.table.cells, door.synced) == (0, False, [])
    door.settle()
    assert (door.frontier(), b"k" in door.table.cells, door.synced) == (2, True, ["synced"])


def test_a_known_number_is_present_and_not_merged_again() -> None:
    """A duplicate is no new record, but its sender is told only when the first one is synced."""
    door = Door()
    door.take(door.record(1))
    again = door.take(door.record(1))
    assert (again.fresh, len(again.present), again.contiguous) == (0, 1, True)
    assert door.synced == []
    door.settle()
    assert door.synced == ["synced"] * 2
    assert door.context.commit.records >= 1


def test_a_gap_is_said_and_said_again() -> None:
    """A record behind a gap is kept and not contiguous, also when it comes twice; with the gap filled it is."""
    door = Door()
    assert door.take(door.record(2)).contiguous is False
    door.settle()
    assert door.take(door.record(2)).contiguous is False
    assert door.take(door.record(1)).contiguous is True
    assert door.take(door.record(2)).contiguous is True
    door.settle()
    assert door.frontier() == 2


def test_a_newer_version_here_wins_and_is_named() -> None:
    """The index of the record and the version that wins over it, at the first time and at a repetition."""
    door = Door()
    door.take(door.record(1, version=50))
    late = door.record(2, version=7)
    answer = Replicated(1)
    assert door.take(door.record(3, b"x"), late, answer=answer).newer == [(1, 50)]
    assert answer.newer == [(1, 50)]
    door.settle()
    assert lww_version(door.table.cells[b"k"]) == 50
    assert door.take(late).newer == [(0, 50)]


def test_a_promised_origin_is_refused_but_from_its_closing() -> None:
    """What was promised is not taken from replication; a closer may bring it."""
    door = Door()
    door.context.promised[ORIGIN] = {0}
    taken = door.take(door.record(1))
    assert (list(taken.refused), taken.fresh, taken.contiguous) == ([ORIGIN], 0, False)
    assert door.take(door.record(1), is_closing=True).fresh == 1


def test_a_closed_stream_takes_what_is_missing_and_nothing_more() -> None:
    """Up to the last number, but no void one."""
    door = Door()
    door.table.streams.make(0, ORIGIN).close(3, [2])
    assert [door.take(door.record(n)).fresh for n in (1, 2, 3, 4)] == [1, 0, 1, 0]


def test_an_origin_that_is_closed_for_good_is_dropped_and_named() -> None:
    """Whoever still sends it is told that it is over."""
    door = Door()
    door.context.closed[ORIGIN] = {0}
    taken = door.take(door.record(1))
    assert (taken.fresh, list(taken.forgotten)) == (0, [(ORIGIN, 0)])
    assert door.table.streams.get(0, ORIGIN) is None


def test_an_unknown_namespace_is_named_and_a_deleted_one_is_not() -> None:
    """The one has to come again once its definition is here; nobody waits for the other."""
    door = Door()
    raw = encode_record(1, 0, 77, 1, 1, NO_OPERATION, ORIGIN, b"k", b"cell")
    taken = door.take(raw)
    assert (list(taken.unknown), taken.contiguous, taken.fresh) == ([77], False, 0)
    door.context.deleted.add(77)
    taken = door.take(raw)
    assert (list(taken.unknown), taken.contiguous, taken.fresh) == ([], True, 0)


def test_a_repaired_cell_is_logged_without_a_number() -> None:
    """It merges, and moves no frontier."""
    door = Door()
    _, cell = encode_lww_record(0, door.namespace, 1, 1, NO_OPERATION, ORIGIN, b"k", 9, 0, 0, b"v")
    partition = key_hash(b"k") >> door.table.placement.shift
    taken = door.take(encode_record(CELL, partition, door.namespace, 0, 0, NO_OPERATION, b"", b"k", cell))
    assert taken.fresh == 1
    door.settle()
    assert door.table.cells[b"k"] == cell
    assert not list(door.table.streams)


@pytest.mark.parametrize("what", ["partition", "control"])
def test_a_record_that_makes_no_sense_is_counted_and_dropped(what: str) -> None:
    """A partition that does not exist, a note that belongs to another node's log."""
    door = Door()
    raw = (
        door.record(1, partition=9)
        if what == "partition"
        else encode_record(CONTROL, 0, door.namespace, 0, 0, NO_OPERATION, b"", b"run", b"")
    )
    taken = door.take(raw)
    assert (taken.fresh, taken.contiguous) == (0, False)
    assert door.context.counters["intake.malformed"] == 1


def test_bytes_that_are_no_records_take_nothing() -> None:
    """A checksum that does not match in the last record: the first is not taken either."""
    door = Door()
    spoilt = bytearray(door.record(2))
    spoilt[-1] ^= 1
    with pytest.raises(RecordError, match="checksum"):
        door.take(door.record(1), bytes(spoilt))
    assert door.frontier() == 0
    assert door.context.commit.pending_bytes == 0


def test_without_room_nothing_is_taken_and_nobody_is_told() -> None:
    """The sender keeps it and sends it again."""
    door = Door()
    door.context.commit.room_bytes = 10
    taken = door.take(door.record(1))
    assert taken.reason
    assert (taken.fresh, door.synced) == (0, [])
