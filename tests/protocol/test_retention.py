"""How long log segments live: who holds one, that nothing goes while somebody may ask for it, and what a refusal says."""

from __future__ import annotations

from geokv.core.origin import Origin
from geokv.protocol.effects import Effect, Trim
from geokv.protocol.streams import Stream
from tests.node.harness import Cluster


class Shelf:
    """The retention of one node that is left alone, with segments 10 to 12 written by hand and built up to 12."""

    def __init__(self, datacenters: int = 1) -> None:
        self.cluster = Cluster(datacenters=datacenters, partitions=1).start().serving()
        node = self.cluster.nodes["dc1-1"]
        self.context = node.context
        self.retention = node.assembly.retention
        self.commit = node.assembly.commit
        self.context.effects.clear()
        self.commit.segment_last.clear()
        self.commit.segment = 13
        self.retention.first_segment = 10
        self.retention.built_segment = 12
        (self.table,) = self.context.tables.values()

    def stream(self, node: str = "dc1-1", dc: str = "dc1") -> Stream:
        return self.table.streams.make(0, Origin(dc, node, 77).packed())

    def written(self, segment: int, stream: Stream, last: int) -> None:
        self.commit.segment_last.setdefault(segment, {})[stream] = last
        while stream.received < last:
            stream.take(stream.received + 1)
            stream.synced(stream.received, segment, 100, 50)

    def trimmed(self) -> list[int]:
        self.context.effects.clear()
        self.retention.trim()
        effects: list[Effect] = self.context.effects
        return [effect.segment for effect in effects if isinstance(effect, Trim)]


def test_a_segment_waits_for_every_co_owner() -> None:
    """It goes when the slowest of them covers the last number in it, and the places in it are forgotten."""
    shelf = Shelf()
    stream = shelf.stream()
    shelf.written(10, stream, 5)
    stream.peers.update({"dc1-2": 5, "dc1-3": 4})
    assert shelf.trimmed() == []
    assert shelf.retention.held_by == {"dc1-3": 4}
    stream.peers["dc1-3"] = 5
    assert shelf.trimmed() == [11]
    assert stream.place(5) is None
    assert 10 not in shelf.commit.segment_last


def test_own_records_wait_for_every_other_datacenter() -> None:
    """What was numbered here goes when all other datacenters' frontiers cover it."""
    shelf = Shelf(datacenters=3)
    stream = shelf.stream()
    shelf.written(10, stream, 5)
    stream.peers.update({"dc1-2": 5, "dc1-3": 5})
    stream.dcs["dc2"] = 5
    assert shelf.trimmed() == []
    assert shelf.retention.held_by == {"dc3": 0}
    stream.dcs["dc3"] = 9
    assert shelf.trimmed() == [11]


def test_a_co_owners_records_wait_until_it_has_shipped_them() -> None:
    """Whoever outlives the originator still has what other datacenters lack."""
    shelf = Shelf(datacenters=2)
    stream = shelf.stream("dc1-2")
    shelf.written(10, stream, 3)
    stream.peers.update({"dc1-2": 3, "dc1-3": 3})
    assert shelf.trimmed() == []
    assert shelf.retention.held_by == {"shipping by dc1-2": 0}
    stream.shipped = 3
    assert shelf.trimmed() == [11]


def test_what_came_from_another_datacenter_waits_for_co_owners_alone() -> None:
    """Its own datacenter keeps it for the rest."""
    shelf = Shelf(datacenters=2)
    stream = shelf.stream("dc2-1", "dc2")
    shelf.written(10, stream, 3)
    stream.peers.update({"dc1-2": 3, "dc1-3": 3})
    assert shelf.trimmed() == [11]


def test_segments_go_in_order_and_not_before_they_are_built() -> None:
    """A free segment behind one that is held stays, and so does what no checkpoint stands for."""
    shelf = Shelf()
    held, free = shelf.stream(), shelf.stream("dc1-2")
    shelf.written(10, free, 1)
    shelf.written(11, held, 1)
    shelf.written(12, free, 2)
    free.peers.update({"dc1-2": 2, "dc1-3": 2})
    assert shelf.trimmed() == [11]
    held.peers.update({"dc1-2": 1, "dc1-3": 1})
    assert shelf.trimmed() == [12]
    assert shelf.trimmed() == []  # 12 is not built
    shelf.retention.built_segment = 13
    assert shelf.trimmed() == [13]


def test_what_is_forgotten_or_deleted_holds_nothing() -> None:
    """A stream that left the tables is covered by everybody."""
    shelf = Shelf()
    stream = shelf.stream()
    shelf.written(10, stream, 5)
    shelf.table.streams.drop(0, stream.origin)
    assert shelf.trimmed() == [11]


def test_a_full_log_says_who_holds_it_up() -> None:
    """Past the budget the refusal names sizes, who is waited for, and what to do."""
    shelf = Shelf()
    stream = shelf.stream()
    shelf.written(10, stream, 5)
    stream.peers["dc1-2"] = 5
    assert shelf.trimmed() == []
    assert shelf.retention.refusal(shelf.retention.log_bytes()) == ""
    text = shelf.retention.refusal(shelf.retention.log_bytes() - 1)
    assert "dc1-3" in text and "log_bytes_max" in text
