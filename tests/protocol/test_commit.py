"""Group commit: frames, their order, what may run when, and room."""

from __future__ import annotations

from geokv.core.limits import FRAME_BYTES_MAX, WAITING_BYTES_MAX
from geokv.core.namespace import BORN
from geokv.core.origin import Origin
from geokv.core.ring import Member, Ring
from geokv.protocol.commit import Commit, Entry
from geokv.protocol.effects import Effect, Persist
from geokv.protocol.placement import Placement
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.lsm.engine import LsmEngine

ROOM = 32 << 20


class Desk:
    """A commit with its effects at hand."""

    def __init__(self, room_bytes: int = ROOM, control_room_bytes: int = 64) -> None:
        self.effects: list[Effect] = []
        self.commit = Commit(self.effects, room_bytes, 0, control_room_bytes)
        self.said: list[str] = []
        self.at = 0

    def add(
        self, *payloads: bytes, say: str = "", stream: Stream | None = None, first: int = 1, by_us: int | None = None
    ) -> None:
        entries: list[Entry] = [(raw, stream, first + at if stream else 0) for at, raw in enumerate(payloads)]
        then = (lambda: self.said.append(say)) if say else None
        self.commit.add(entries, sum(map(len, payloads)), (), then, by_us)

    def flush(self, now_us: int = 0) -> Persist | None:
        self.effects.clear()
        self.commit.flush(now_us)
        (effect,) = self.effects or (None,)
        assert effect is None or isinstance(effect, Persist)
        return effect

    def land(self, persist: Persist) -> None:
        self.commit.landed(persist.token, 1, self.at, ROOM)
        self.at += len(persist.payload)


def a_table() -> Table:
    ring = Ring(4, [Member("n1", "rack", 1.0)])
    return Table(BORN, Placement({"dc1": ring}, {"dc1": 1}, "dc1", "n1"), LsmEngine(CrashDisk()).create(1, "lww"), 4)


def a_stream() -> Stream:
    return Stream(1, 0, Origin("dc1", "n1", 1).packed())


def test_what_arrives_while_the_disk_is_busy_goes_down_together() -> None:
    """At most one frame is under way; the next one holds all that came meanwhile, in order."""
    desk = Desk()
    desk.add(b"a", say="a")
    first = desk.flush()
    assert first is not None
    desk.add(b"b", say="b")
    desk.add(b"c", say="c")
    assert desk.flush() is None
    desk.land(first)
    assert desk.said == ["a"]
    second = desk.flush()
    assert second is not None
    assert second.payload == b"bc"
    assert second.sync
    desk.land(second)
    assert desk.said == ["a", "b", "c"]
    assert desk.flush() is None


def test_frontiers_and_tables_move_before_whoever_waits_is_told() -> None:
    """A callback sees its records synced and their cells shown."""
    desk, table, stream = Desk(), a_table(), a_stream()
    seen: list[tuple[int, bytes | None]] = []
    assert stream.take(1)
    table.waiting[b"k"] = b"cell"
    assert table.cells.get(b"k") is None
    desk.commit.add([(b"raw", stream, 1)], 3, (table,), lambda: seen.append((stream.frontier, table.cells.get(b"k"))), None)
    persist = desk.flush()
    assert persist is not None
    assert (stream.frontier, table.cells.get(b"k"), table.visible(b"k")) == (0, None, b"cell")
    desk.land(persist)
    assert seen == [(1, b"cell")]
    assert stream.place(1) == (1, 0, 3)


def test_records_behind_each_other_in_a_frame_are_found_at_their_own_place() -> None:
    """The place of each record is the frame's plus what stands before it."""
    desk, stream = Desk(), a_stream()
    desk.add(b"12345", b"123", b"1234567", stream=stream)
    persist = desk.flush()
    assert persist is not None
    desk.land(persist)
    assert [stream.place(n) for n in (1, 2, 3)] == [(1, 0, 5), (1, 5, 3), (1, 8, 7)]


def test_a_group_that_is_too_large_is_split_and_nobody_is_told_before_its_last_frame() -> None:
    """No frame is above the limit; callbacks and cells wait for all of it; until then nothing is whole."""
    desk, table, stream = Desk(), a_table(), a_stream()
    table.waiting[b"k"] = b"cell"
    payloads = [bytes(FRAME_BYTES_MAX // 3)] * 7
    entries: list[Entry] = [(raw, stream, at + 1) for at, raw in enumerate(payloads)]
    desk.commit.add(entries, sum(map(len, payloads)), (table,), lambda: desk.said.append("all"), None)
    sizes = []
    while (persist := desk.flush()) is not None:
        assert not desk.said
        assert not table.cells
        sizes.append(len(persist.payload))
        desk.land(persist)
        assert desk.commit.is_whole == (sum(sizes) == sum(map(len, payloads)))
    assert max(sizes) <= FRAME_BYTES_MAX
    assert sum(sizes) == sum(map(len, payloads))
    assert len(sizes) == 3
    assert desk.said == ["all"]
    assert dict(table.cells.items()) == {b"k": b"cell"}
    assert stream.frontier == 7
    assert desk.commit.pending_bytes == 0


def test_what_comes_between_the_frames_of_a_split_group_waits_for_both() -> None:
    """A later write of the same key lands with the rest, not before what it was built upon."""
    desk, table = Desk(), a_table()
    table.waiting[b"k"] = b"cell-1"
    payloads = [bytes(FRAME_BYTES_MAX // 2 + 1)] * 2
    desk.commit.add(
        [(raw, None, 0) for raw in payloads], sum(map(len, payloads)), (table,), lambda: desk.said.append("first"), None
    )
    first = desk.flush()
    assert first is not None
    table.waiting[b"k"] = b"cell-2"
    desk.commit.add([(b"x", None, 0)], 1, (table,), lambda: desk.said.append("second"), None)
    desk.land(first)
    assert not table.cells
    rest = desk.flush()
    assert rest is not None
    desk.land(rest)
    assert dict(table.cells.items()) == {b"k": b"cell-2"}
    assert desk.said == ["first", "second"]


def test_after_pending_waits_for_what_was_taken_in_so_far() -> None:
    """At once where nothing is on its way, otherwise with the frame that holds it."""
    desk = Desk()
    desk.commit.after_pending(lambda: desk.said.append("nothing"))
    assert desk.said == ["nothing"]
    desk.add(b"a", say="a")
    first = desk.flush()
    assert first is not None
    desk.commit.after_pending(lambda: desk.said.append("flying"))
    desk.add(b"b", say="b")
    desk.commit.after_pending(lambda: desk.said.append("waiting"))
    desk.land(first)
    assert desk.said == ["nothing", "a", "flying"]
    second = desk.flush()
    assert second is not None
    desk.land(second)
    assert desk.said == ["nothing", "a", "flying", "b", "waiting"]


def test_interval_durability_lingers_and_anything_else_takes_it_along() -> None:
    """A group that may wait is flushed when due, when half a frame is there, or at once with a record that may not wait."""
    desk = Desk()
    desk.add(b"a", by_us=1000)
    assert desk.flush(now_us=999) is None
    assert desk.commit.wake_at_us() == 1000
    desk.add(b"b", by_us=500)
    assert desk.commit.wake_at_us() == 500
    persist = desk.flush(now_us=500)
    assert persist is not None
    desk.land(persist)
    desk.add(b"c", by_us=10_000)
    desk.add(b"d")
    persist = desk.flush(now_us=501)
    assert persist is not None
    assert persist.payload == b"cd"
    desk.land(persist)
    desk.add(bytes(FRAME_BYTES_MAX // 2), by_us=10_000)
    assert desk.flush(now_us=502) is not None


def test_waiting_for_an_interval_namespace_makes_its_sync_due() -> None:
    """Whoever rests on what is pending does not wait for the interval."""
    desk = Desk()
    desk.add(b"a", by_us=1_000_000)
    desk.commit.after_pending(lambda: desk.said.append("synced"))
    persist = desk.flush(now_us=0)
    assert persist is not None
    desk.land(persist)
    assert desk.said == ["synced"]


def test_room_is_reserved_with_what_is_pending_and_some_is_kept_for_notes() -> None:
    """Data stops before notes do; the reason of the host is told."""
    desk = Desk(room_bytes=1_000_000, control_room_bytes=100_000)
    assert desk.commit.reserve(900_000) == ""
    assert "segment is being prepared" in desk.commit.reserve(900_001)
    desk.add(bytes(500_000))
    desk.commit.room_reason = "the disk is full"
    assert "the disk is full" in desk.commit.reserve(400_001)
    assert desk.commit.reserve(400_001, is_control=True) == ""
    assert desk.commit.reserve(500_000, is_control=True) != ""


def test_what_waits_for_the_disk_is_bounded() -> None:
    """With room on the disk, but a slow one, the queue refuses past its limit."""
    desk = Desk(room_bytes=1 << 30)
    desk.add(bytes(WAITING_BYTES_MAX))
    assert "wait for the disk already" in desk.commit.reserve(1)


def test_the_lowest_unsynced_stamp_is_known_until_it_is_synced() -> None:
    """What a feed may promise ends below the first own record that is not synced."""
    desk = Desk()
    assert desk.commit.first_unsynced_hlc() is None
    desk.commit.originated(5)
    desk.add(b"a")
    desk.commit.originated(7)
    first = desk.flush()
    assert first is not None
    desk.commit.originated(9)
    desk.add(b"b")
    assert desk.commit.first_unsynced_hlc() == 5
    desk.land(first)
    assert desk.commit.first_unsynced_hlc() == 9
