"""The log in use: room, rolling, reading, trimming, failures, threads."""

import errno
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.limits import FRAME_BYTES_MAX
from geokv.errors import DiskFull, StorageError
from geokv.storage.disk import RealDisk
from geokv.storage.wal import SPARES_MAX, Log
from geokv.storage.wal_format import FRAME_HEADER_BYTES, SEALED_BYTES, SEGMENT_HEADER_BYTES_MAX, UNSYNCED_FRAMES_MAX
from tests.storage.modes import CrashDisk, frame_extra_bytes, header_bytes, keys

pytestmark = pytest.mark.usefixtures("mode")
SEGMENT = 1024


def _replayed(log: Log, first_segment: int | None = None) -> list[bytes]:
    return [payload for _, _, payload in log.replay(first_segment)]


def test_an_append_says_where_its_payload_stands() -> None:
    """The place that append returns is the one that replay names and read answers from."""
    log = Log.open(CrashDisk(), SEGMENT)
    payloads = [bytes([index]) * (index * 13 + 1) for index in range(40)]
    places = []
    for payload in payloads:
        if log.needs_spare:
            log.prepare()
        places.append((*log.append(payload), payload))
    assert list(log.replay()) == places
    assert {segment for segment, _, _ in places} == set(range(1, places[-1][0] + 1))
    for segment, offset, payload in places:
        assert log.read(segment, offset, len(payload)) == payload
    assert log.sequence == len(payloads)


def test_segments_and_bytes_count_what_is_used() -> None:
    """The figures follow every append and every trim, and are the same after opening anew."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    assert log.segments == [] and log.total_bytes == 0 and log.sequence == 0
    for _ in range(3):
        log.prepare()
        log.append(bytes(SEGMENT - header_bytes() - frame_extra_bytes()))
    log.sync()
    assert [(facts.number, facts.bytes, facts.first_sequence) for facts in log.segments] == [
        (1, SEGMENT, 1),
        (2, SEGMENT, 2),
        (3, SEGMENT, 3),
    ]
    log.trim(3)
    assert [facts.number for facts in log.segments] == [3] and log.total_bytes == SEGMENT
    assert Log.open(disk, SEGMENT, 3).segments == log.segments


def test_older_segments_stay_readable_and_are_replayed_on_request() -> None:
    """Recovery begins at the checkpoint's segment; what is kept below it can still be read and replayed."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    for index in range(4):
        log.prepare()
        place = log.append(bytes([index]) * 900)
        log.sync()
    log = Log.open(disk, SEGMENT, 3)
    assert _replayed(log) == [b"\2" * 900, b"\3" * 900]
    assert log.read(1, place[1], 900) == bytes(900)
    assert [payload[:1] for _, _, payload in log.replay(0)] == [b"\0", b"\1", b"\2", b"\3"]
    assert [facts.first_sequence for facts in log.segments] == [1, 2, 3, 4]


@given(
    sizes=st.lists(st.integers(1, SEGMENT - SEGMENT_HEADER_BYTES_MAX - FRAME_HEADER_BYTES - SEALED_BYTES), max_size=80),
    prepared=st.integers(0, SPARES_MAX),
)
def test_room_is_a_promise(sizes: list[int], prepared: int) -> None:
    """While frames with their headers fit into the room no append fails; each takes no more than itself."""
    log = Log.open(CrashDisk(), SEGMENT)
    for _ in range(prepared):
        log.prepare()
    for size in sizes:
        room = log.room_bytes()
        if size > room:
            if not log.needs_spare:
                return
            log.prepare()
            assert log.room_bytes() >= size
            room = log.room_bytes()
        log.append(bytes(size))
        assert log.room_bytes() >= room - size - frame_extra_bytes()


def test_the_default_segments_take_the_largest_frame() -> None:
    """A frame of FRAME_BYTES_MAX goes in while there is room; one byte more, or none, is a mistake."""
    log = Log.open(CrashDisk())
    count = 0
    while log.room_bytes() >= FRAME_BYTES_MAX:
        log.append(b"\1" * FRAME_BYTES_MAX)
        count += 1
    assert count >= 7
    for payload in (b"", bytes(FRAME_BYTES_MAX + 1)):
        with pytest.raises(ValueError, match="must be 1 to"):
            log.append(payload)
    assert log.sequence == count


def test_no_spare_refuses_and_harms_nothing() -> None:
    """An append that lacks a spare is refused with DiskFull; the log has not failed, and goes on later."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    log.append(bytes(900))
    with pytest.raises(DiskFull, match="no room left"):
        log.append(b"x" * 900)
    log.sync()
    log.prepare()
    log.append(b"x" * 900)
    log.sync()
    assert _replayed(Log.open(disk, SEGMENT)) == [bytes(900), b"x" * 900]


def test_a_full_disk_in_prepare_is_said_and_leaves_nothing() -> None:
    """prepare raises DiskFull and takes no space; the log goes on with what it has, and later prepares."""
    disk = CrashDisk(capacity_bytes=2 * SEGMENT + 100)
    log = Log.open(disk, SEGMENT)
    log.prepare()
    room, free, names = log.room_bytes(), disk.free_bytes(), disk.list("log")
    disk.capacity_bytes = 2 * SEGMENT + 500
    while len(log.segments) < 2:
        log.append(b"y" * 100)
    with pytest.raises(DiskFull, match="free some space"):
        log.prepare()
    assert disk.list("log") == names and disk.free_bytes() == free + 400 and log.room_bytes() < room
    log.append(b"z")
    log.sync()
    disk.capacity_bytes = 4 * SEGMENT
    log.prepare()
    assert log.room_bytes() > SEGMENT // 2
    assert _replayed(Log.open(disk, SEGMENT))[-1] == b"z"


def test_a_log_opens_on_a_full_disk() -> None:
    """A disk without room for one segment gives a log without room, that says why when asked to prepare."""
    log = Log.open(CrashDisk(capacity_bytes=10), SEGMENT)
    assert log.room_bytes() == 0
    with pytest.raises(DiskFull):
        log.append(b"x")
    with pytest.raises(DiskFull):
        log.prepare()


@pytest.mark.parametrize("written", [0, 5, 20, 33, 300])
def test_an_append_that_ran_out_of_space_leaves_no_hole(written: int) -> None:
    """However much of a frame was written before ENOSPC, the next opening cuts it and the log goes on."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    log.append(b"before")
    log.sync()
    disk.fail("write_at", errno.ENOSPC, written=written)
    with pytest.raises(DiskFull):
        log.append(b"\1" * 400)
    log = Log.open(disk, SEGMENT)
    assert _replayed(log) == [b"before"]
    log.append(b"after")
    log.sync()
    for seed in range(10):
        assert _replayed(Log.open(disk.crash_clone(random.Random(seed)), SEGMENT)) == [b"before", b"after"]


def _append_and_sync(log: Log) -> None:
    log.append(b"lost")
    log.sync()


@pytest.mark.parametrize("call", ["write_at", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EINTR])
def test_a_failed_log_refuses_every_later_call(call: str, error: int) -> None:
    """After one failed append or sync nothing is accepted, read or promised until the log is opened anew."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    segment, offset = log.append(b"before")
    log.sync()
    disk.fail(call, error)
    with pytest.raises(StorageError) as first:
        _append_and_sync(log)
    assert isinstance(first.value, DiskFull) is (error == errno.ENOSPC)
    for attempt in (
        lambda: log.append(b"x"),
        log.sync,
        log.prepare,
        lambda: log.read(segment, offset, 6),
        lambda: log.trim(1),
        lambda: list(log.replay()),
    ):
        with pytest.raises(StorageError, match=r"the log failed and must be opened anew: .*log/00000001"):
            attempt()
    assert log.room_bytes() == 0 and not log.needs_spare
    again = Log.open(disk, SEGMENT)
    assert _replayed(again)[0] == b"before"
    again.append(b"x")
    again.sync()


def test_reading_outside_of_what_is_there_is_an_error() -> None:
    """A trimmed segment, a place beyond the end, and a header are not readable."""
    log = Log.open(CrashDisk(), SEGMENT)
    log.append(bytes(900))
    log.prepare()
    segment, offset = log.append(b"second" * 20)
    log.sync()
    log.trim(segment)
    for place in ((1, 52, 10), (segment, offset, 121), (segment, 0, 10), (9, 52, 1)):
        with pytest.raises(StorageError, match="does not hold"):
            log.read(*place)
    assert log.read(segment, offset, 120) == b"second" * 20


def test_sealed_segments_are_synced_before_the_active_one() -> None:
    """One sync covers every segment that was written since the last, the oldest first."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    log.prepare()
    log.append(b"a" * 900)
    log.append(b"b" * 900)
    disk.fail("sync", name="00000002")
    with pytest.raises(StorageError):
        log.sync()
    for seed in range(20):
        assert _replayed(Log.open(disk.crash_clone(random.Random(seed)), SEGMENT))[0] == b"a" * 900


def test_more_unsynced_frames_than_a_header_can_count_force_a_sync() -> None:
    """The count of unsynced frames is 16 bits; before it overflows the log syncs by itself."""
    disk = CrashDisk()
    log = Log.open(disk, 4 << 20)
    before = disk.calls.get("sync", 0)
    for _ in range(UNSYNCED_FRAMES_MAX + 1):
        log.append(b"x")
    assert disk.calls.get("sync", 0) == before + 1
    assert len(_replayed(Log.open(disk, 4 << 20))) == UNSYNCED_FRAMES_MAX + 1


def test_smaller_spares_of_an_earlier_setting_are_replaced() -> None:
    """With larger segments set, spares that are too small go; the segments in use stay as they are."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    log.append(b"small")
    log.sync()
    log.prepare()
    log.prepare()
    log = Log.open(disk, 4 * SEGMENT)
    assert disk.list("log") == ["00000001.wal"]
    log.prepare()
    log.append(b"x" * 3000)
    log.sync()
    assert _replayed(Log.open(disk, 4 * SEGMENT)) == [b"small", b"x" * 3000]


def test_what_an_interrupted_prepare_left_is_removed() -> None:
    """A killed process's temporary file goes; a file of somebody else's stays, and harms nothing."""
    disk = CrashDisk()
    Log.open(disk, SEGMENT).append(b"x")
    disk.allocate("log/00000002.tmp", SEGMENT)
    disk.append("log/notes.txt", b"an operator's")
    Log.open(disk, SEGMENT)
    assert disk.list("log") == ["00000001.wal", "notes.txt"]


class _Loop(threading.Thread):
    """Does one thing over and over until it is told to stop, and keeps the error that ended it."""

    def __init__(self, step: Callable[[], None], is_done: threading.Event) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self._step, self._is_done = step, is_done
        self.start()

    def run(self) -> None:
        try:
            while not self._is_done.is_set():
                self._step()
        except BaseException as error:
            self.failure = error
            self._is_done.set()


def test_four_threads_at_once(tmp_path: Path) -> None:
    """Append and sync, prepare, read, and trim, each on its own thread over a real disk, harm nothing."""
    disk = RealDisk(tmp_path, keys())
    log = Log.open(disk, 64 * 1024)
    written: list[tuple[int, int, bytes]] = []
    is_done = threading.Event()

    def read() -> None:
        for segment, offset, payload in written[-50:]:
            try:
                found = log.read(segment, offset, len(payload))
            except StorageError:
                found = payload if segment < log.segments[0].number else b"lost"  # trimmed meanwhile
            assert found == payload

    def trim() -> None:
        if written:
            log.trim(max(1, written[-1][0] - 2))

    loops = [_Loop(log.prepare, is_done), _Loop(read, is_done), _Loop(trim, is_done)]
    rng = random.Random(5)
    while len(written) < 500 and not is_done.is_set():
        payload = rng.randbytes(rng.randint(1, 4000))
        if log.room_bytes() >= len(payload):
            written.append((*log.append(payload), payload))
            if len(written) % 10 == 0:
                log.sync()
    is_done.set()
    for loop in loops:
        loop.join()
    assert [loop.failure for loop in loops] == [None, None, None]
    log.sync()
    first = log.segments[0].number
    disk.close()
    again = RealDisk(tmp_path, keys())
    expected = [place for place in written if place[0] >= first]
    assert first > 1 and list(Log.open(again, 64 * 1024, first).replay()) == expected
    again.close()
