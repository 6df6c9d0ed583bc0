"""The log and power cuts: what was synced is there, nothing half-written shows, all is an exact prefix."""

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.errors import StorageError
from geokv.storage.wal import Log
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")
SEGMENT = 2048

# Random bytes, zeros (which look like the unused part of a segment), and what looks like a frame's header.
_PAYLOADS = st.one_of(
    st.binary(min_size=1, max_size=700),
    st.integers(1, 1900).map(bytes),
    st.integers(1, 60).map(lambda count: b"\x10\0\0\0\0\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0" * count),
)
_STEPS = st.lists(
    st.one_of(
        _PAYLOADS.map(lambda payload: ("append", payload)),
        st.just(("sync", b"")),
        st.just(("prepare", b"")),
        st.just(("crash", b"")),
        st.just(("kill", b"")),
        st.just(("failed sync", b"")),
    ),
    max_size=60,
)


def _replayed(log: Log) -> list[bytes]:
    return [payload for _, _, payload in log.replay()]


@given(steps=_STEPS, seed=st.integers(0, 2**32))
def test_every_crash_leaves_an_exact_prefix_with_all_that_was_synced(steps: list[tuple[str, bytes]], seed: int) -> None:
    """Whatever was appended, synced, cut, killed and failed: replay is a prefix that holds all synced."""
    rng = random.Random(seed)
    disk = CrashDisk(random.Random(seed))
    log = Log.open(disk, SEGMENT)
    written: list[bytes] = []
    synced = 0
    for step, payload in [*steps, ("crash", b"")]:
        if step == "append":
            while log.room_bytes() < len(payload):
                log.prepare()
            log.append(payload)
            written.append(payload)
        elif step == "prepare":
            log.prepare()
        elif step == "sync":
            log.sync()
            synced = len(written)
        else:
            if step == "failed sync":
                disk.fail("sync")
                if synced < len(written):
                    with pytest.raises(StorageError):
                        log.sync()
                disk.heal()
            disk = disk.crash_clone(rng) if step == "crash" else disk
            log = Log.open(disk, SEGMENT)
            found = _replayed(log)
            assert found == written[: len(found)]
            assert len(found) >= synced
            assert log.sequence == len(found)
            written, synced = found, len(found)


@given(seed=st.integers(0, 2**32), cuts=st.integers(1, 4))
def test_a_crash_during_recovery_loses_nothing_more(seed: int, cuts: int) -> None:
    """Recovery may be cut at any call itself; the next one finds all that was synced, and never a hole."""
    rng = random.Random(seed)
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    written = [rng.randbytes(rng.randint(1, 900)) for _ in range(12)]
    synced = rng.randint(0, len(written))
    for index, payload in enumerate(written):
        while log.room_bytes() < len(payload):
            log.prepare()
        log.append(payload)
        if index + 1 == synced:
            log.sync()
    for _ in range(cuts):
        disk = disk.crash_clone(rng)
        call = rng.choice(["write_at", "sync", "sync_dir", "read_at", "remove", "list"])
        disk.fail(call, rng.choice([errno.EIO, errno.ENOSPC]), after=rng.randint(0, 2), written=rng.randint(0, 600))
        try:
            Log.open(disk, SEGMENT)
        except StorageError:
            pass
        disk.heal()
    disk = disk.crash_clone(rng)
    found = _replayed(Log.open(disk, SEGMENT))
    assert found == written[: len(found)] and len(found) >= synced


def test_what_recovery_returned_is_durable() -> None:
    """Frames that a killed process left unsynced are either replayed and durable, or gone for ever."""
    for seed in range(50):
        rng = random.Random(seed)
        disk = CrashDisk(rng)
        log = Log.open(disk, SEGMENT)
        for _ in range(3):
            log.append(rng.randbytes(400))
        found = _replayed(Log.open(disk, SEGMENT))
        assert _replayed(Log.open(disk.crash_clone(rng), SEGMENT)) == found


def test_a_failed_sync_is_made_good_by_opening_anew() -> None:
    """The page cache shows what a failed sync never wrote; opening writes it again."""
    for seed in range(50):
        disk = CrashDisk(random.Random(seed))
        log = Log.open(disk, SEGMENT)
        log.append(b"one" * 200)
        disk.fail("sync")
        with pytest.raises(StorageError, match="Input/output"):
            log.sync()
        log = Log.open(disk, SEGMENT)
        assert _replayed(log) == [b"one" * 200]
        log.append(b"two")
        log.sync()
        assert _replayed(Log.open(disk.crash_clone(random.Random(seed)), SEGMENT)) == [b"one" * 200, b"two"]


def test_a_spare_that_was_found_after_a_kill_keeps_its_name() -> None:
    """Killed between a spare's rename and the sync of its folder: the next opening makes the name durable."""
    disk = CrashDisk()
    disk.fail("sync_dir", name="log")
    with pytest.raises(StorageError):
        Log.open(disk, SEGMENT)
    log = Log.open(disk, SEGMENT)
    log.append(b"kept")
    log.sync()
    for seed in range(20):
        assert _replayed(Log.open(disk.crash_clone(random.Random(seed)), SEGMENT)) == [b"kept"]


@given(seed=st.integers(0, 2**32))
def test_trimming_survives_a_crash_at_any_point(seed: int) -> None:
    """Whatever part of a trim reached the disk, the log is whole from the checkpoint's segment on."""
    rng = random.Random(seed)
    disk = CrashDisk(rng)
    log = Log.open(disk, SEGMENT)
    places = []
    for _ in range(40):
        payload = rng.randbytes(rng.randint(1, 500))
        while log.room_bytes() < len(payload):
            log.prepare()
        places.append((log.append(payload)[0], payload))
        if rng.random() < 0.8:
            log.sync()
    log.sync()
    first = rng.randint(1, places[-1][0])
    disk.fail("sync_dir", times=-1)
    try:
        log.trim(first)
    except StorageError:
        pass
    disk.heal()
    log = Log.open(disk.crash_clone(rng), SEGMENT, first)
    assert _replayed(log) == [payload for segment, payload in places if segment >= first]
    assert log.sequence == len(places)
    numbers = [facts.number for facts in log.segments]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_first_segment_of_which_nothing_was_synced_keeps_the_sequence() -> None:
    """Where no frame of the checkpoint's segment reached the disk, the frames are counted on."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    log.append(b"a" * 1500)
    log.sync()
    log.prepare()
    segment, _ = log.append(b"b" * 1500)
    log.trim(segment)
    for seed in range(30):
        crashed = Log.open(disk.crash_clone(random.Random(seed)), SEGMENT, segment)
        found = _replayed(crashed)
        assert found in ([], [b"b" * 1500])
        assert crashed.sequence == 1 + len(found)
        crashed.prepare()
        crashed.append(b"c")
        assert crashed.sequence == 2 + len(found)
