"""Rotation of keys: the log goes on in a new segment and keeps what it promised, tables are rewritten where they stand."""

import random

import pytest

from geokv.errors import EncryptionKeyError
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.key_use import demand_keys, file_keys, key_use, rotate
from geokv.storage.wal import Log
from geokv.storage.wal_format import FRAME_HEADER_BYTES, RUN_BYTES
from geokv.storage.wal_recovery import segment_name
from tests.storage.lsm.little_node import LittleNode, cell_of

SEGMENT = 4096
ALL = {"old": bytes(range(16)), "new": bytes(range(32))}


def _ring(active: str) -> KeyRing:
    return KeyRing(ALL, active)


def _disk(active: str = "old", keys: dict[str, bytes] | None = None) -> CrashDisk:
    return CrashDisk(keys=Keys(KeyRing(ALL if keys is None else keys, active), random.Random(3).randbytes))


def _append(log: Log, count: int) -> list[bytes]:
    payloads = [b"%d " % at * 20 for at in range(count)]
    for payload in payloads:
        if log.needs_spare:
            log.prepare()
        log.append(payload)
    log.sync()
    return payloads


def test_the_log_goes_on_with_the_new_key_and_keeps_its_promise() -> None:
    """Rotated in the midst: what was told of the room still holds, the next segment begins soon, and all of it replays."""
    disk = _disk("")
    log = Log.open(disk, SEGMENT)
    written: list[bytes] = []
    for active in ("old", "new", "", "new"):
        written += _append(log, 12)
        room = log.room_bytes()
        rotate(disk, _ring(active))
        log.prepare()
        filled = 0
        while filled + 100 + 64 <= room:  # as a node does that was told of so much room
            log.append(b"x" * 100)
            written.append(b"x" * 100)
            filled += 100 + 64
        assert log.segments[-1].key_id == active
        written += _append(log, 1)
        log.room_bytes()
    assert {facts.key_id for facts in log.segments} == {"", "old", "new"}
    assert [payload for _, _, payload in log.replay()] == written
    places = [(segment, offset, payload) for segment, offset, payload in log.replay()]
    assert [log.read(segment, offset, len(payload)) for segment, offset, payload in places] == written
    again = Log.open(disk.crash_clone(random.Random(1)), SEGMENT)
    assert [payload for _, _, payload in again.replay()] == written


def test_an_idle_log_leaves_its_old_segment_with_the_next_frame() -> None:
    """Long before the segment is full, once one more spare stands ready."""
    disk = _disk("old")
    log = Log.open(disk, SEGMENT)
    _append(log, 3)
    log.room_bytes()
    rotate(disk, _ring("new"))
    assert log.needs_spare
    log.prepare()
    log.append(b"next")
    assert [facts.key_id for facts in log.segments] == ["old", "new"]


def test_no_place_is_written_twice_under_the_same_nonce() -> None:
    """A torn tail that is overwritten, and two runs on copies of one disk: the same payload at the same place, other bytes."""
    disk = _disk("old")
    log = Log.open(disk, SEGMENT)
    log.append(b"stays")
    log.sync()
    copy = disk.copy()
    copy.keys = Keys(disk.keys.ring, random.Random(4).randbytes)
    seen = set()
    for one in (disk, copy, disk.copy()):
        run = Log.open(one, SEGMENT)
        segment, offset = run.append(b"the same payload")
        start = offset - RUN_BYTES - FRAME_HEADER_BYTES
        seen.add((start, one.read_at(segment_name(segment), offset - RUN_BYTES, RUN_BYTES + 16)))
        one.damage(segment_name(segment), start, bytes(100))  # torn away
    assert len(seen) == 3 and len({run[:RUN_BYTES] for _, run in seen}) == 3 and len({start for start, _ in seen}) == 1


def _pairs_per_level(node: LittleNode) -> dict[int, int]:
    levels: dict[int, int] = {}
    for facts in node.engine.tables(1):
        levels[facts.level] = levels.get(facts.level, 0) + facts.pairs
    return levels


def test_tables_and_manifest_are_rewritten_where_they_stand() -> None:
    """Every table gets the new key, keeps its level and cells; then manifest and state; then nobody needs the old key."""
    disk = _disk("")
    node = LittleNode(disk)
    for version in range(1, 5):
        node.put(1, {b"%03d" % key: cell_of(version * 100 + key, bytes(30)) for key in range(0, 80, version)})
        node.flush()
        while node.compact():
            pass
    for active in ("old", "new", ""):
        before = dict(node.engine.scan(1))
        levels = _pairs_per_level(node)
        rotate(disk, _ring(active))
        assert node.engine.wants_compaction
        assert node.engine.figures()["tables_of_other_keys"] == len(node.engine.tables(1)) > 0
        while node.compact():
            pass
        assert not node.engine.wants_compaction and node.engine.figures()["tables_of_other_keys"] == 0
        assert {one.key_id for one in file_keys(disk) if one.kind != "log"} == {active}
        assert sum(one.kind == "state" for one in file_keys(disk)) == 2 and node.engine.meta == b"meta"
        assert dict(node.engine.scan(1)) == before
        assert _pairs_per_level(node) == levels
        node.log.prepare()
        node.put(1, {b"more": cell_of(10_000, active.encode())})
        node.flush()
        while node.compact():
            pass
        assert key_use(disk).keys() <= {active, "", "old", "new"}
    assert dict(LittleNode(disk.crash_clone(random.Random(2))).engine.scan(1)) == dict(node.engine.scan(1))


def test_a_missing_or_wrong_key_is_seen_before_anything_is_touched() -> None:
    """By any file of any kind; the disk is asked for reads only, and holds what it held."""
    disk = _disk("old")
    node = LittleNode(disk)
    node.put(1, {b"a": cell_of(1, b"1")})
    node.flush()
    rotate(disk, _ring("new"))
    node.log.prepare()
    node.put(1, {b"b": cell_of(2, b"2")})
    assert key_use(disk) == {"old": {"state": 2, "table": 1, "log": 1}, "new": {"log": 1}}
    demand_keys(disk)
    before = dict(disk.calls)
    for keys, named in (({}, "old"), ({"old": ALL["old"]}, "new"), ({**ALL, "new": bytes(16)}, "new")):
        copy = disk.copy()
        copy.keys = Keys(KeyRing(keys))
        with pytest.raises(EncryptionKeyError) as caught:
            demand_keys(copy)
        assert caught.value.key_id == named and caught.value.path in str(caught.value)
        assert copy.calls.keys() <= {"read_at", "size", "list"}
    assert disk.calls == before


def test_a_rotation_that_would_leave_out_a_needed_key_changes_nothing() -> None:
    """Nor does one that means another key by the same id; one that leaves out what nobody needs is fine."""
    disk = _disk("old")
    LittleNode(disk).put(1, {b"a": cell_of(1, b"1")})
    ring = disk.keys.ring
    for keys, active in (({"new": ALL["new"]}, "new"), ({**ALL, "new": bytes(16)}, "new")):
        with pytest.raises(EncryptionKeyError):
            rotate(disk, KeyRing(keys, active))
        assert disk.keys.ring is ring
    rotate(disk, KeyRing({"old": ALL["old"]}, "old"))
    assert set(disk.keys.ring.ids) == set(ALL)  # kept until the process ends: a file may just be written with it
