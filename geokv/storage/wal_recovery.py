"""Opening a log: where does it end, is anything missing, and is what is there durable?

The segments that recovery needs are read whole, in order, and their frames walked with the sequence that must
come next. Where the walk stops before the last byte that was ever written, something is missing. Then
everything behind that place is searched for whole frames. One that states that the missing frame was synced
before it proves a hole: CorruptLog. Otherwise what is behind was never synced, hence never acknowledged, and
is set to zeros.

Why whole frames can stand behind a tear at all: what was appended and not synced reaches the disk in any
order.

Invariants: an error of the disk is an error, never a torn tail. When `recover` returns, all that it found is
durable, names included, and all behind it is zeros. Not here: anything after the opening (`storage.wal`).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from geokv.core.limits import FRAME_BYTES_MAX
from geokv.errors import CorruptLog, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import FileCipher, Stamp
from geokv.storage.wal_format import (
    FRAME_HEADER,
    SEALED_BYTES,
    SEGMENT_HEADER_BYTES_MAX,
    Frame,
    SegmentHeader,
    decode_segment_header,
    frame_at,
    segment_seed,
)

FOLDER: Final = "log"
_NAME = re.compile(r"(\d{8,})\.wal")
# A frame's format, flags and unsynced count, then the low and the high bytes of its sequence.
_LOW_BYTES: Final = 3
_SEARCH_BYTES_MAX: Final = 1 << 28
_STEP_BYTES: Final = 1 << 18
_ZEROS: Final = bytes(_STEP_BYTES)


def segment_name(number: int) -> str:
    return f"{FOLDER}/{number:08}.wal"


@dataclass(slots=True)
class Segment:
    """A segment file. `end`: where the next frame goes (0: a spare, all zeros); `capacity`: its size.

    `stamp`: of the key, None where it is plain. `starts`: where the frames of an encrypted one begin, once that is known;
    `cipher`: once it was needed.
    """

    number: int
    end: int
    capacity: int
    first_sequence: int
    stamp: Stamp | None = None
    starts: array[int] | None = None
    cipher: FileCipher | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = segment_name(self.number)

    @property
    def header(self) -> SegmentHeader:
        return SegmentHeader(self.capacity, self.first_sequence, self.stamp)

    @property
    def key_id(self) -> str:
        """Empty where it is plain."""
        return "" if self.stamp is None else self.stamp.key_id


@dataclass(slots=True)
class Found:
    """What a log holds: segments with frames and spares, oldest first, and the last frame's sequence."""

    used: list[Segment]
    spares: list[Segment]
    sequence: int


class _Place(NamedTuple):
    """Where the walk stopped: frame `sequence` should stand at `offset` of `segment`."""

    segment: int
    offset: int
    sequence: int


def recover(disk: Disk, segment_bytes: int, first_segment: int) -> Found:
    """Find the end of the log and settle it. See the module."""
    disk.make_folder(FOLDER)
    numbers = _numbers(disk, first_segment)
    start = _walk_start(disk, numbers, first_segment or 1)
    older = [_older_segment(disk, number) for number in numbers if number < start]
    walk = _Walk(disk, [number for number in numbers if number >= start])
    disk.sync_dir(FOLDER)
    newest_used = walk.used[-1].number if walk.used else 0
    spares = [
        Segment(number, 0, disk.size(segment_name(number)), 0) for number in numbers if number >= start and number > newest_used
    ]
    return Found(older + walk.used, _fit_spares(disk, spares, segment_bytes), walk.next_sequence - 1)


# --- which segments are there ---------------------------------------------------------------------------------------


def _numbers(disk: Disk, first_segment: int) -> list[int]:
    """The numbers of all segments, without a gap. Raises CorruptLog where one that recovery needs is missing.

    Removes what an interrupted `prepare` or `trim` left behind.
    """
    names = disk.list(FOLDER)
    for name in names:
        if name.endswith(".tmp"):
            disk.remove(f"{FOLDER}/{name}")
    numbers = sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)
    if not numbers and not first_segment:
        return []
    first = first_segment or 1
    there = set(numbers)
    for number in range(first, max([first, *numbers[-1:]]) + 1):
        if number not in there:
            _refuse_missing(number, first_segment)
    oldest = first
    while oldest - 1 in there:
        oldest -= 1
    # A trim removes the oldest first, and a crash may undo any part of it: what lies below a gap is its rest.
    for number in numbers:
        if number < oldest:
            disk.remove(segment_name(number))
    return [number for number in numbers if number >= oldest]


def _refuse_missing(number: int, first_segment: int) -> NoReturn:
    why = f"recovery needs all from {first_segment} on" if first_segment else "no checkpoint says it may be"
    raise CorruptLog(f"{segment_name(number)} is missing, and {why}. {WHAT_TO_DO}", path=segment_name(number), offset=0)


def _walk_start(disk: Disk, numbers: list[int], first: int) -> int:
    """The segment whose header says with which sequence the walk begins.

    The one that recovery begins with, unless nothing of it reached the disk: then the one before, which
    `trim` leaves there for this.
    """
    for number in range(first, min(numbers, default=1) - 1, -1):
        if number == 1 or _header(disk, number) is not None:
            return number
    raise _damaged_header(first)


def _header(disk: Disk, number: int) -> SegmentHeader | None:
    name = segment_name(number)
    return decode_segment_header(disk.read_at(name, 0, SEGMENT_HEADER_BYTES_MAX), number, name)


def _older_segment(disk: Disk, number: int) -> Segment:
    """A segment that is only kept for those who are behind: nothing but its header is looked at."""
    header = _header(disk, number)
    if header is None:
        raise _damaged_header(number)
    size = disk.size(segment_name(number))
    _demand_size(number, size, header.size)
    return Segment(number, size, size, header.first_sequence, header.stamp)


def _demand_size(number: int, size: int, stated: int) -> None:
    """A segment got its size, durably, before its name: a file of another size was cut or replaced."""
    if size != stated:
        name = segment_name(number)
        raise CorruptLog(
            f"{name}: the file has {size} bytes and was made with {stated} or more. {WHAT_TO_DO}",
            path=name,
            offset=size,
        )


def _damaged_header(number: int) -> CorruptLog:
    name = segment_name(number)
    return CorruptLog(f"{name}: the header is damaged. {WHAT_TO_DO}", path=name, offset=0)


def _fit_spares(disk: Disk, spares: list[Segment], segment_bytes: int) -> list[Segment]:
    """Spares from the first one on that is smaller than segments are now to be are removed.

    The newest first, and each durably, so that no crash leaves a gap between segments.
    """
    fit = next((index for index, spare in enumerate(spares) if spare.capacity < segment_bytes), len(spares))
    for spare in reversed(spares[fit:]):
        disk.remove(spare.name)
        disk.sync_dir(FOLDER)
    return spares[:fit]


def read_whole(disk: Disk, name: str, offset: int, length: int) -> bytes:
    """Exactly these bytes; fewer are an error of the disk."""
    payload = disk.read_at(name, offset, length)
    if len(payload) != length:
        raise StorageError(f"{name}: {len(payload)} bytes came of {length} at {offset}; the disk fails, or the file was cut")
    return payload


# --- the walk -------------------------------------------------------------------------------------------------------


class _Walk:
    """One pass over the segments of recovery. Afterwards `used` and `next_sequence` say what is there."""

    def __init__(self, disk: Disk, numbers: list[int]) -> None:
        self._disk = disk
        self.used: list[Segment] = []
        self.next_sequence = 1
        self._synced = 0
        self._blank: int | None = None
        self._hole: _Place | None = None
        self._to_sync: dict[str, None] = {}
        to_clear = [rest for number in numbers if (rest := self._visit(number))]
        for number, start, stop in to_clear:
            self._write(segment_name(number), start, bytes(stop - start))
        self._write_unsynced_again()
        for name in self._to_sync:
            disk.sync(name)

    def _visit(self, number: int) -> tuple[int, int, int] | None:
        """Take in one segment. Returns the place (number, start, stop) in it that is to be cleared."""
        name = segment_name(number)
        image = read_whole(self._disk, name, 0, self._disk.size(name))
        if len(image) < SEGMENT_HEADER_BYTES_MAX:
            _demand_size(number, len(image), SEGMENT_HEADER_BYTES_MAX)
        written = _written_bytes(image)
        if not written:
            self._blank = self._blank or number
            return None
        start = 0 if self._hole or self._blank else self._walk_frames(number, image)
        if start >= written:
            return None
        self._hole = self._hole or _Place(self._blank or number, 0 if self._blank else start, self.next_sequence)
        self._refuse_what_was_synced(number, image, start, written, self._hole)
        return number, start, written

    def _walk_frames(self, number: int, image: bytes) -> int:
        """Walk the frames of a segment as far as they are whole and in sequence. Returns where that ends."""
        name = segment_name(number)
        header = decode_segment_header(image[:SEGMENT_HEADER_BYTES_MAX], number, name)
        if header is None or (header.first_sequence != self.next_sequence and (self.used or number == 1)):
            return 0
        _demand_size(number, len(image), header.size)
        first_sequence = header.first_sequence
        seed, start, sequence = segment_seed(number), header.nbytes, first_sequence
        starts = array("I")
        while (frame := frame_at(image, start, seed, name)) is not None and frame.sequence == sequence:
            self._synced = max(self._synced, frame.synced)
            starts.append(start)
            sequence, start = sequence + 1, frame.end
        self.next_sequence = sequence
        is_plain = header.stamp is None
        self.used.append(Segment(number, start, len(image), first_sequence, header.stamp, starts=None if is_plain else starts))
        return start

    def _refuse_what_was_synced(self, number: int, image: bytes, start: int, written: int, hole: _Place) -> None:
        for frame in _survivors(image, start, written, number, hole.sequence):
            # Header and first frame of a segment are one write, and one sector: no tear leaves the frame
            # alone.
            is_rotten_header = hole.offset == 0 and frame.sequence == hole.sequence and number == hole.segment
            if frame.synced >= hole.sequence or is_rotten_header:
                name = segment_name(hole.segment)
                raise CorruptLog(
                    f"{name}: damaged or missing from byte {hole.offset} on: frame {hole.sequence} should "
                    f"stand there, it was synced, and frame {frame.sequence} behind it "
                    f"(in {segment_name(number)}) is whole. {WHAT_TO_DO}",
                    path=name,
                    offset=hole.offset,
                )

    def _write_unsynced_again(self) -> None:
        """Write the frames again that no later one states to be synced: they may stand in memory only."""
        for segment in reversed(self.used):
            if self.used[-1] is not segment and self.next_of(segment) - 1 <= self._synced:
                break
            image = read_whole(self._disk, segment.name, 0, segment.end)
            start = self._first_unsynced(image, segment)
            if start < segment.end:
                self._write(segment.name, start, image[start:])

    def _first_unsynced(self, image: bytes, segment: Segment) -> int:
        """Where the first frame begins that is not known to be synced; 0, with the header, for the first."""
        if segment.first_sequence > self._synced:
            return 0
        start, sequence = segment.header.nbytes, segment.first_sequence
        while sequence <= self._synced and start < segment.end:
            start += FRAME_HEADER.size + int(FRAME_HEADER.unpack_from(image, start)[0])
            sequence += 1
        return start

    def next_of(self, segment: Segment) -> int:
        """The sequence that comes after a segment's last one."""
        index = self.used.index(segment)
        return self.used[index + 1].first_sequence if index + 1 < len(self.used) else self.next_sequence

    def _write(self, name: str, offset: int, payload: bytes) -> None:
        self._disk.write_at(name, offset, payload)
        self._to_sync[name] = None


def _written_bytes(image: bytes) -> int:
    """The length without the zeros at the end; in large steps, since most of a segment may be zeros."""
    end = len(image)
    while end and image[max(end - _STEP_BYTES, 0) : end] == _ZEROS[-min(end, _STEP_BYTES) :]:
        end = max(end - _STEP_BYTES, 0)
    start = max(end - _STEP_BYTES, 0)
    return start + len(image[start:end].rstrip(b"\0"))


def _survivors(image: bytes, start: int, written: int, number: int, sequence: int) -> Iterator[Frame]:
    """Whole frames that begin anywhere from `start` on with a sequence of `sequence` or (not much) above."""
    high_bytes = {(sequence + ahead).to_bytes(8, "little")[_LOW_BYTES:] for ahead in (0, 1 << 8 * _LOW_BYTES)}
    ends = b"|".join(map(re.escape, sorted(high_bytes)))
    pattern = re.compile(rb"\x01[\x00\x01][\x00-\xff]{%d}(?:%b)" % (2 + _LOW_BYTES, ends), re.DOTALL)
    seed = segment_seed(number)
    body_offset = FRAME_HEADER.size - 12
    position, checked_bytes = start + body_offset, 0
    while match := pattern.search(image, position, min(written + FRAME_HEADER.size, len(image))):
        position = match.start() + 1
        header = match.start() - body_offset
        length = int.from_bytes(image[header : header + 4], "little")
        if not length or length > FRAME_BYTES_MAX + SEALED_BYTES:
            continue
        checked_bytes += length
        if checked_bytes > _SEARCH_BYTES_MAX:
            _refuse_unsearchable(number, start)
        frame = frame_at(image, header, seed, segment_name(number))
        if frame is not None and frame.sequence >= sequence:
            yield frame


def _refuse_unsearchable(number: int, start: int) -> NoReturn:
    name = segment_name(number)
    raise CorruptLog(
        f"{name}: damaged from byte {start} on, and what is behind looks like frames in too many places to "
        f"be searched. {WHAT_TO_DO}",
        path=name,
        offset=start,
    )
