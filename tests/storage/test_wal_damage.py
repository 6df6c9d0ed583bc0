"""Damage of what was synced: the end of the log is a torn tail, all else is refused with instructions."""

import errno
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from geokv.errors import CorruptLog, EncryptionKeyError, StorageError
from geokv.storage import crash_disk
from geokv.storage.encryption.cipher import TAG_BYTES
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.position import Position
from geokv.storage.wal import Log
from geokv.storage.wal_format import FRAME_HEADER_BYTES, encode_segment_header, frame_at, segment_seed
from geokv.storage.wal_recovery import segment_name
from geokv.storage.wal_verify import Damage, SegmentFigures, verify_log
from tests.storage.lsm.little_node import LittleNode, cell_of
from tests.storage.modes import RING, CrashDisk, frame_start, header_bytes, is_encrypted

pytestmark = pytest.mark.usefixtures("mode")
SEGMENT = 1024


@dataclass(frozen=True)
class Place:
    """Where a frame stands, header included."""

    segment: int
    start: int
    end: int


def _small_log(count: int = 24) -> tuple[CrashDisk, list[bytes], list[Place]]:
    """A log of several segments, every frame synced before the next, and where its frames stand."""
    rng = random.Random(1)
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    payloads = [rng.randbytes(rng.randint(1, 150)) for _ in range(count)]
    places = []
    for payload in payloads:
        while log.room_bytes() < len(payload):
            log.prepare()
        segment, offset = log.append(payload)
        log.sync()
        places.append(Place(segment, frame_start(offset), offset + len(payload) + TAG_BYTES * is_encrypted()))
    return disk, payloads, places


def _replayed(log: Log) -> list[bytes]:
    return [payload for _, _, payload in log.replay()]


def _expect(disk: CrashDisk, payloads: list[bytes], damaged: int | None) -> None:
    """Frame `damaged` (None: none of them) is not whole any more: only the last one may go, by being cut."""
    if damaged is not None and damaged < len(payloads) - 1:
        with pytest.raises(CorruptLog, match="put its newest state back") as caught:
            Log.open(disk, SEGMENT)
        assert caught.value.details["path"].startswith("log/0000000")
        return
    expected = payloads if damaged is None else payloads[:-1]
    log = Log.open(disk, SEGMENT)
    assert _replayed(log) == expected
    log.append(b"after")
    log.sync()
    assert _replayed(Log.open(disk, SEGMENT)) == [*expected, b"after"]


def test_every_bit_flip_is_cut_or_refused(samples) -> None:
    """A flipped bit in the last frame cuts it; in any earlier one, and in a header, it is refused."""
    disk, payloads, places = _small_log()
    bits = [(place.segment, bit) for place in places for bit in range(place.start * 8, place.end * 8)]
    bits += [(segment, bit) for segment in {place.segment for place in places} for bit in range(header_bytes() * 8)]
    chosen = random.Random(2).sample(bits, min(len(bits), samples.of(test=400, check=1600, soak=len(bits))))
    for segment, bit in chosen:
        copy = disk.copy()
        byte = copy.read_at(segment_name(segment), bit // 8, 1)[0] ^ 1 << bit % 8
        copy.damage(segment_name(segment), bit // 8, bytes([byte]))
        hit = [
            index
            for index, place in enumerate(places)
            if place.segment == segment and (place.start <= bit // 8 < place.end or bit < header_bytes() * 8)
        ]
        _expect(copy, payloads, hit[0])


def test_every_truncation_is_refused(samples) -> None:
    """A segment has its full size before it has its name, so a shorter one is damage, wherever it ends."""
    disk, _, places = _small_log()
    cuts = [(segment, length) for segment in range(1, places[-1].segment + 1) for length in range(SEGMENT)]
    chosen = random.Random(3).sample(cuts, min(len(cuts), samples.of(test=300, check=1000, soak=len(cuts))))
    for segment, length in chosen:
        copy = disk.copy()
        copy.truncate(segment_name(segment), length)
        with pytest.raises(CorruptLog, match=f"file has {length} bytes.*put its newest state back"):
            Log.open(copy, SEGMENT)


def test_every_tear_of_the_last_frame_is_cut(samples) -> None:
    """Of the last frame any prefix may be there: it is cut, and the log goes on behind the one before."""
    disk, payloads, places = _small_log()
    last = places[-1]
    lengths = range(last.end - last.start)
    for length in random.Random(4).sample(lengths, samples.of(test=20, check=60, soak=len(lengths))):
        copy = disk.copy()
        start = last.start + length
        copy.damage(segment_name(last.segment), start, bytes(last.end - start))
        _expect(copy, payloads, len(payloads) - 1)


def test_a_zeroed_sector_in_the_middle_is_a_hole() -> None:
    """A zero length ends the log only where nothing but zeros stands behind it."""
    disk, payloads, places = _small_log()
    place = places[2]
    disk.damage(segment_name(place.segment), place.start, bytes(place.end - place.start))
    _expect(disk, payloads, 2)


def test_a_missing_frame_at_a_segments_end_is_a_hole_between_segments() -> None:
    """The last frame of a sealed segment turned to zeros: the next segment proves that it was there."""
    disk, _, places = _small_log()
    index = max(i for i, place in enumerate(places) if place.segment == 1)
    disk.damage(segment_name(1), places[index].start, bytes(places[index].end - places[index].start))
    with pytest.raises(CorruptLog, match=f"frame {index + 1} should stand there") as caught:
        Log.open(disk, SEGMENT)
    assert caught.value.details["path"] == segment_name(2) and caught.value.details["offset"] == 0


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_segment_is_refused_by_name(missing: int) -> None:
    """A segment file that is gone, at the front or in the middle, is named."""
    disk, _, places = _small_log()
    assert places[-1].segment > 2
    disk.remove(segment_name(missing))
    with pytest.raises(CorruptLog, match=f"{segment_name(missing)} is missing.*put its newest state back"):
        Log.open(disk, SEGMENT)


def test_a_segment_that_a_checkpoint_needs_must_be_there() -> None:
    """An empty log folder beside a checkpoint is a lost log, not a new one."""
    with pytest.raises(CorruptLog, match=r"00000004\.wal is missing, and recovery needs all from 4 on"):
        Log.open(CrashDisk(), SEGMENT, 4)


def test_a_trimmed_log_without_its_checkpoint_is_refused() -> None:
    """Segments from 3 on and no checkpoint: what stood in the first two is lost, and that is said."""
    disk, _, _ = _small_log()
    log = Log.open(disk, SEGMENT)
    log.trim(3)
    with pytest.raises(CorruptLog, match=r"00000001\.wal is missing, and no checkpoint says it may be"):
        Log.open(disk, SEGMENT)
    assert Log.open(disk, SEGMENT, 3).segments[0].number == 3


def test_two_segments_that_changed_places_are_refused() -> None:
    """A segment's frames count only in the file with their own number."""
    disk, _, _ = _small_log()
    one, two = (disk.read_at(segment_name(number), 0, SEGMENT) for number in (1, 2))
    disk.damage(segment_name(1), 0, two)
    disk.damage(segment_name(2), 0, one)
    with pytest.raises(CorruptLog):
        Log.open(disk, SEGMENT)


def _opening_error(disk: CrashDisk) -> StorageError | None:
    try:
        Log.open(disk, SEGMENT)
    except StorageError as error:
        return error
    return None


def test_a_read_error_is_never_taken_for_a_torn_tail() -> None:
    """EIO, and a read that comes back short, stop the opening; nothing is cut, and later all is there."""
    disk, payloads, places = _small_log()
    reads = 0
    disk.fail("read_at", errno.EIO)
    while (error := _opening_error(disk)) is not None:
        assert type(error) is StorageError and "Input/output error" in str(error)
        reads += 1
        disk.fail("read_at", errno.EIO, after=reads)
    disk.heal()
    assert reads >= places[-1].segment
    for written in (0, 20, 700):
        disk.fail("read_at", 0, name=segment_name(2), written=written)
        with pytest.raises(StorageError, match="bytes came of") as caught:
            Log.open(disk, SEGMENT)
        assert not isinstance(caught.value, CorruptLog)
    assert _replayed(Log.open(disk, SEGMENT)) == payloads


def test_a_newer_format_is_refused_by_name() -> None:
    """A whole header of format 3, or frame of format 2, asks for the newer version instead of being cut."""
    disk, _, places = _small_log()
    in_header = disk.copy()
    header = bytearray(encode_segment_header(1, SEGMENT, 1))
    header[12] = 3
    header[8:12] = _crc(bytes(header[12:]))
    in_header.damage(segment_name(1), 0, bytes(header))
    in_frame = disk.copy()
    last = places[-1]
    frame = bytearray(in_frame.read_at(segment_name(last.segment), last.start, last.end - last.start))
    frame[8] = 2
    frame[4:8] = _crc(bytes(frame[8:]), segment_seed(last.segment))
    in_frame.damage(segment_name(last.segment), last.start, bytes(frame))
    for changed in (in_header, in_frame):
        before = changed.read_at(segment_name(1), 0, SEGMENT)
        with pytest.raises(StorageError, match=r"written by a newer version: format [23], this one reads"):
            Log.open(changed, SEGMENT)
        assert changed.read_at(segment_name(1), 0, SEGMENT) == before


def _crc(content: bytes, start: int = 0) -> bytes:
    from zlib import crc32

    return crc32(content, start).to_bytes(4, "little")


def test_unsynced_frames_may_arrive_in_any_order() -> None:
    """Of frames that were never synced the first may be missing and a later one whole: a tear, not a hole."""
    disk = CrashDisk()
    log = Log.open(disk, SEGMENT)
    log.append(b"synced")
    log.sync()
    _, offset = log.append(b"first unsynced")
    log.append(b"second unsynced")
    start = frame_start(offset)
    disk.damage(segment_name(1), start, bytes(FRAME_HEADER_BYTES))
    log = Log.open(disk, SEGMENT)
    assert _replayed(log) == [b"synced"]
    assert not disk.read_at(segment_name(1), start, SEGMENT).strip(b"\0")


def test_a_value_that_holds_a_copy_of_a_log_is_no_frame() -> None:
    """A torn frame whose payload contains whole frames of another segment is cut, not refused."""
    disk, payloads, _ = _small_log()
    foreign = disk.read_at(segment_name(1), 32, 500)
    log = Log.open(disk, SEGMENT)
    log.prepare()
    segment, offset = log.append(foreign)
    disk.damage(segment_name(segment), frame_start(offset), b"\xff")
    assert _replayed(Log.open(disk, SEGMENT)) == payloads


def test_a_segment_too_full_of_what_looks_like_frames_is_refused_not_searched_for_hours() -> None:
    """The search behind a tear has a bound; past it the log is refused, in seconds."""
    disk = CrashDisk()
    log = Log.open(disk, 16 << 20)
    log.append(b"good")
    log.sync()
    lookalike = (3 << 20).to_bytes(4, "little") + bytes(4) + b"\x01\0\0\0" + (2).to_bytes(8, "little")
    _, offset = log.append(lookalike * 100_000)
    disk.damage("log/00000001.wal", offset, lookalike * 100_000)  # in a payload that is encrypted nobody could put them there
    disk.damage("log/00000001.wal", frame_start(offset) + 12, b"\xff")
    with pytest.raises(CorruptLog, match="too many places to be searched"):
        Log.open(disk, 16 << 20)


GOLDEN = Path(__file__).parent / "golden"


def test_the_bytes_of_format_1_still_open() -> None:
    """A segment that was written by the first version opens and gives the same frames for ever."""
    disk = CrashDisk()
    disk.make_folder("log")
    disk.append(segment_name(1), (GOLDEN / "format-1.wal").read_bytes())
    log = Log.open(disk, 512)
    assert list(log.replay()) == [(1, 52, b"first"), (1, 77, b"\0\xffsecond"), (1, 105, b"third" * 20)]
    image = disk.read_at(segment_name(1), 0, 512)
    frames = [frame_at(image, start, segment_seed(1)) for start in (32, 57, 85)]
    assert [(frame.sequence, frame.synced) for frame in frames if frame] == [(1, 0), (2, 1), (3, 1)]


def test_the_bytes_of_format_2_still_open() -> None:
    """An encrypted segment of the first version that could opens with its key, and with no other."""
    raw = (GOLDEN / "format-2-encrypted.wal").read_bytes()
    for ring in (RING, KeyRing({"new": bytes(range(32))})):
        disk = crash_disk.CrashDisk(keys=Keys(ring))
        disk.make_folder("log")
        disk.append(segment_name(1), raw)
        assert list(Log.open(disk, 512).replay()) == [(1, 104, b"first"), (1, 153, b"\0\xffsecond"), (1, 205, b"third" * 20)]
    disk.keys.replace(KeyRing({"new": bytes(32)}))
    with pytest.raises(EncryptionKeyError, match=r"log/00000001\.wal is encrypted with a key 'new' that is another"):
        list(Log.open(disk, 512).replay())


def test_verifying_names_an_emptied_segment_and_where_strays_stand() -> None:
    """A segment turned to zeros below one in use is damage; what stands alone among zeros is named at its own byte."""
    node = LittleNode(CrashDisk())
    for version in range(1, 300):
        node.put_unread(1, {b"key": cell_of(version, bytes(200))})
    figures = [one for one in verify_log(node.disk, Position(0, 0)) if isinstance(one, SegmentFigures)]
    used = [one for one in figures if one.frames]
    assert len(used) > 3 and len(used) < len(figures)
    for at in (0, 1):  # below where recovery begins, and where it does
        emptied = node.disk.copy()
        emptied.damage(segment_name(used[at].number), 0, bytes(used[at].nbytes))
        (damage,) = [one for one in verify_log(emptied, Position(used[1].number, 0)) if isinstance(one, Damage)]
        assert (damage.path, damage.offset) == (segment_name(used[at].number), 0)
    for number, offset in ((used[-1].number, used[-1].nbytes - 5), (figures[-1].number, 9000)):
        strayed = node.disk.copy()
        strayed.damage(segment_name(number), offset, b"\x04")
        (damage,) = [one for one in verify_log(strayed, Position(0, 0)) if isinstance(one, Damage)]
        assert (damage.path, damage.offset) == (segment_name(number), offset)
