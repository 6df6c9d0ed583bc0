"""The write-ahead log: numbered frames in preallocated segments; a torn tail is told from a hole.

    log/00000001.wal   header | frame 1 | frame 2 | … | frame 900 | zeros
    log/00000002.wal   header | frame 901 | … | zeros      <- the active segment
    log/00000003.wal   zeros                               <- a spare, made ahead by prepare()

A segment is all zeros before it is used, so a frame is one write into blocks that exist already, a sync has
no metadata to carry, and a zero length ends the log. A frame carries its sequence (1, 2, 3 … over the whole
log) and how many frames before it were not synced when it was written. So each frame states what was durable
before it, and recovery need not guess:

    what is missing or damaged        and behind it                                  then
    the end of the log                nothing that states it was synced              a torn tail: cut, durably
    anywhere else                     a frame that states that it was synced         CorruptLog, with
    instructions

Invariants: a frame, once synced, is replayed for ever, until trimmed; replay yields an exact prefix of what
was appended, never half a frame. What `open` found is durable when it returns: an unsynced end (of a process
that was killed, or whose sync failed) is written again and synced, since the page cache may show what the
disk never got. After a failed append or sync every call raises until the log is opened anew.

Encryption: a segment is encrypted with the key that new files of the disk are written with when its first frame is
written; payloads are read and replayed as they were given. Where that key was rotated, the next frame begins a new segment
as soon as the room that was told allows for it: `prepare` makes one more spare for this.

Threads: append and sync on one, prepare on another, read, trim and the figures on any.
Not here: what a payload means (`core.record`), finding a torn log's survivors (`storage.wal_recovery`).
Format page: docs/formats/wal.md.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Final, NamedTuple
from zlib import crc32

from geokv.core.limits import FRAME_BYTES_MAX, SEGMENT_BYTES
from geokv.errors import CorruptLog, DiskFull, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import FileCipher
from geokv.storage.wal_cipher import cipher_of, payloads_of, seal_payload, segment_label, unseal_payload
from geokv.storage.wal_format import (
    BODY,
    ENCRYPTED,
    FORMAT,
    FRAME_HEADER_BYTES,
    PREFIX,
    RUN_BYTES,
    SEALED_BYTES,
    SEGMENT_HEADER_BYTES,
    SEGMENT_HEADER_BYTES_MAX,
    UNSYNCED_FRAMES_MAX,
    encode_segment_header,
    frame_at,
    frames_of,
    segment_seed,
)
from geokv.storage.wal_recovery import FOLDER, Found, Segment, read_whole, recover, segment_name

SPARES_MAX: Final = 2
OPENED_FRAMES_MAX: Final = 4  # encrypted ones, kept for who reads them record by record


class SegmentFacts(NamedTuple):
    """A segment that holds frames. `bytes` is what is used of it; `key_id` is empty where it is plain."""

    number: int
    bytes: int
    first_sequence: int
    key_id: str = ""


class Log:
    """See the module. Made by `Log.open`."""

    def __init__(self, disk: Disk, segment_bytes: int, first_segment: int, found: Found) -> None:
        self._disk = disk
        self._keys = disk.keys
        self._segment_bytes = segment_bytes
        self._has_keys = len(disk.keys.ring) > 0  # then room is counted as if all were encrypted: it may be soon
        self._frame_extra_bytes = FRAME_HEADER_BYTES + (SEALED_BYTES if self._has_keys else 0)
        self._header_bytes = SEGMENT_HEADER_BYTES_MAX if self._has_keys else SEGMENT_HEADER_BYTES
        self._frame_bytes_max = min(FRAME_BYTES_MAX + self._frame_extra_bytes, segment_bytes - self._header_bytes)
        self._first_segment = first_segment
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._segments = {segment.number: segment for segment in found.used}
        self._spares = deque(found.spares)
        self._newest_number = max((segment.number for segment in found.used + found.spares), default=0)
        # Of a log without frames the active segment is one without room, so that the first append takes a
        # spare.
        self._active = found.used[-1] if found.used else Segment(0, 0, 0, 0)
        self._seed = segment_seed(self._active.number)
        self._sequence = self._synced = found.sequence
        self._unsynced: list[Segment] = []
        self._failure = ""
        self._promised_bytes = 0  # of the room that was told: what may still be appended without asking again
        self._opened: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        if self._active.stamp is not None:
            self._resume(self._active)

    @classmethod
    def open(cls, disk: Disk, segment_bytes: int = SEGMENT_BYTES, first_segment: int = 0) -> Log:
        """Find the end of the log, cut a torn tail, make what is there durable.

        `first_segment` is where recovery begins (the checkpoint's; 0: none, the log must be whole). Raises
        CorruptLog where frames are missing that were synced, StorageError where the disk fails or the format
        is newer.
        """
        if segment_bytes <= SEGMENT_HEADER_BYTES_MAX + FRAME_HEADER_BYTES + SEALED_BYTES:
            raise ValueError(f"segment_bytes = {segment_bytes}: a segment holds at least one frame")
        log = cls(disk, segment_bytes, first_segment, recover(disk, segment_bytes, first_segment))
        if not log._segments and not log._spares:
            with suppress(DiskFull):  # a full disk shows as no room, and the next `prepare` says why
                log.prepare()
        return log

    # --- the disk thread --------------------------------------------------------------------------------------------

    def append(self, payload: bytes) -> tuple[int, int]:
        """Write one frame; returns (segment, offset) of its payload. Durable after the next `sync`.

        Raises DiskFull, with the log as it was, where no spare segment stands ready; any other error ends
        this object.
        """
        self._check()
        length = len(payload)
        frame_bytes = self._frame_extra_bytes + length
        if not length or frame_bytes > self._frame_bytes_max:
            raise ValueError(f"a frame of {length} bytes: must be 1 to {self._frame_bytes_max - self._frame_extra_bytes}")
        if self._sequence - self._synced >= UNSYNCED_FRAMES_MAX:
            self.sync()
        active = self._active
        if active.end + frame_bytes > active.capacity or (self._is_rotating and self._may_leave()):
            active = self._roll(frame_bytes)
        cipher = active.cipher
        head = b"" if active.end else encode_segment_header(active.number, *active.header)
        offset = active.end or len(head)
        body = BODY.pack(FORMAT, ENCRYPTED if cipher else 0, self._sequence - self._synced, self._sequence + 1)
        sealed = payload if cipher is None else seal_payload(cipher, payload, self._run, offset, body)
        prefix = PREFIX.pack(len(sealed), crc32(sealed, crc32(body, self._seed)))
        self._write(active, offset - len(head), b"".join((head, prefix, body, sealed)))
        if not self._unsynced or self._unsynced[-1] is not active:
            self._unsynced.append(active)
        self._sequence += 1
        self._promised_bytes -= frame_bytes
        if cipher is None:
            active.end = offset + FRAME_HEADER_BYTES + length
            return active.number, offset + FRAME_HEADER_BYTES
        assert active.starts is not None
        active.starts.append(offset)
        active.end = offset + frame_bytes
        return active.number, offset + FRAME_HEADER_BYTES + RUN_BYTES

    def sync(self) -> None:
        """Make every appended frame durable; sealed segments before the active one."""
        self._check()
        try:
            for segment in self._unsynced:
                self._disk.sync(segment.name)
        except Exception as error:
            self._fail(error)
            raise
        self._unsynced.clear()
        self._synced = self._sequence

    def _roll(self, frame_bytes: int) -> Segment:
        """Go on in the next spare. Its header is written together with its first frame."""
        with self._lock:
            if not self._spares or self._spares[0].capacity < self._header_bytes + frame_bytes:
                raise DiskFull("the log has no room left: its next segment could not be made (see free space and quota)")
            active = self._spares.popleft()
            active.first_sequence = self._sequence + 1
            active.cipher = self._keys.begin(segment_label(active.number)) if self._has_keys else None
            if active.cipher is not None:
                active.stamp = active.cipher.stamp
                active.starts = array("I")
                self._run = self._keys.draw(RUN_BYTES)
            self._segments[active.number] = active
            self._active = active
            self._seed = segment_seed(active.number)
        return active

    def _resume(self, segment: Segment) -> None:
        """Go on in an encrypted segment of an earlier run."""
        segment.cipher = cipher_of(segment.header, segment.number, self._keys)
        self._run = self._keys.draw(RUN_BYTES)

    @property
    def _is_rotating(self) -> bool:
        """Whether the active segment is not written with the key that new files are to be written with."""
        return self._has_keys and self._active.key_id != self._keys.ring.active and self._active.capacity > 0

    def _may_leave(self) -> bool:
        """Whether what was told of the room still holds without the rest of the active segment."""
        with self._lock:
            return bool(self._spares) and self._room_of(list(self._spares)) >= self._promised_bytes

    def _write(self, segment: Segment, offset: int, payload: bytes) -> None:
        try:
            self._disk.write_at(segment.name, offset, payload)
        except Exception as error:
            self._fail(error)
            raise

    # --- any thread -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make one more spare segment, unless enough stand ready. Slow: writes zeros and syncs them.

        Raises DiskFull; nothing is left behind, and the log goes on with the room that it has.
        """
        with self._preparing:
            self._check()
            with self._lock:
                if len(self._spares) >= SPARES_MAX + self._is_rotating:
                    return
                number = self._newest_number + 1
            temporary = f"{FOLDER}/{number:08}.tmp"
            self._disk.allocate(temporary, self._segment_bytes)
            self._disk.rename(temporary, segment_name(number))
            self._disk.sync_dir(FOLDER)
            with self._lock:
                self._newest_number = number
                self._spares.append(Segment(number, 0, self._segment_bytes, 0))

    def read(self, segment: int, offset: int, length: int) -> bytes:
        """Bytes of one segment, as they were appended. Raises StorageError where the segment was trimmed."""
        self._check()
        found = self._segments.get(segment)
        if found is None or offset < SEGMENT_HEADER_BYTES or offset + length > found.end:
            raise self._not_held(segment, offset, length)
        if found.stamp is None:
            return read_whole(self._disk, found.name, offset, length)
        begin, payload = self._opened_frame(found, offset, length)
        if offset < begin or offset + length > begin + len(payload):
            raise self._not_held(segment, offset, length)
        return payload[offset - begin : offset - begin + length]

    def _not_held(self, segment: int, offset: int, length: int) -> StorageError:
        return StorageError(f"the log does not hold {length} bytes at {offset} of segment {segment} (any more)")

    def _opened_frame(self, segment: Segment, offset: int, length: int) -> tuple[int, bytes]:
        """(where it stands, payload) of the encrypted frame that holds that place."""
        starts = segment.starts
        if starts is None:
            starts = segment.starts = self._starts_of(segment)
        index = bisect_right(starts, offset) - 1
        if index < 0:
            raise self._not_held(segment.number, offset, length)
        start = starts[index]
        begin = start + FRAME_HEADER_BYTES + RUN_BYTES
        payload = self._opened.get((segment.number, start))
        if payload is None:
            end = starts[index + 1] if index + 1 < len(starts) else segment.end
            image = read_whole(self._disk, segment.name, start, end - start)
            frame = frame_at(image, 0, segment_seed(segment.number), segment.name)
            if frame is None:
                raise CorruptLog(
                    f"{segment.name}: damaged at byte {start}: a frame is not whole. {WHAT_TO_DO}",
                    path=segment.name,
                    offset=start,
                )
            payload = unseal_payload(self._cipher(segment), image, frame, start, segment.number)
            self._opened[segment.number, start] = payload
            if len(self._opened) > OPENED_FRAMES_MAX:
                with suppress(KeyError):  # another thread may have been faster
                    self._opened.popitem(last=False)
        return begin, payload

    def _starts_of(self, segment: Segment) -> array[int]:
        image = read_whole(self._disk, segment.name, 0, segment.end)
        skipped = FRAME_HEADER_BYTES + RUN_BYTES
        return array("I", [frame.offset - skipped for frame in frames_of(image, segment.number, segment.header)])

    def _cipher(self, segment: Segment) -> FileCipher | None:
        if segment.cipher is None:
            segment.cipher = cipher_of(segment.header, segment.number, self._keys)
        return segment.cipher

    def replay(self, first_segment: int | None = None) -> Iterator[tuple[int, int, bytes]]:
        """(segment, offset, payload) of every frame from `first_segment` (else the one given to `open`) on.

        To be used up before anything is appended.
        """
        first = self._first_segment if first_segment is None else first_segment
        for segment in self._in_order():
            if segment.number >= first:
                yield from self._replay(segment)

    def _replay(self, segment: Segment) -> Iterator[tuple[int, int, bytes]]:
        self._check()
        image = read_whole(self._disk, segment.name, 0, segment.end)
        for offset, payload in payloads_of(image, segment.number, segment.header, self._cipher(segment)):
            yield segment.number, offset, payload

    def trim(self, segment: int) -> None:
        """Remove the segments below `segment`, never the last with a synced frame: it holds the sequence."""
        self._check()
        with self._lock:
            kept = self._in_order()
            doomed = [
                found
                for found, following in pairwise(kept)
                if found.number < segment and following.first_sequence <= self._synced
            ]
            for found in doomed:
                del self._segments[found.number]
        for found in doomed:
            self._disk.remove(found.name)
        if doomed:
            self._disk.sync_dir(FOLDER)

    def room_bytes(self) -> int:
        """What can surely be appended without any further allocation, whatever the frames' sizes.

        A frame takes FRAME_HEADER_BYTES besides its payload; one header is subtracted already, so a single
        payload of this size (and of FRAME_BYTES_MAX at most) fits. 0 after a failure.
        """
        if self._failure:
            return 0
        with self._lock:
            parts = list(self._spares)
            if not parts or not self._is_rotating:
                parts.insert(0, self._active)
        room = self._room_of(parts)
        self._promised_bytes = max(self._promised_bytes, room)
        return room

    def _room_of(self, parts: list[Segment]) -> int:
        free = [part.capacity - (part.end or self._header_bytes) for part in parts]
        # At the end of each segment but the last a frame that does not fit may leave as much as its size,
        # less one, unused.
        room = free[-1] + sum(max(0, part - self._frame_bytes_max + 1) for part in free[:-1])
        return max(0, room - self._frame_extra_bytes)

    @property
    def needs_spare(self) -> bool:
        """Whether `prepare` would make a segment."""
        return len(self._spares) < SPARES_MAX + self._is_rotating and not self._failure

    @property
    def sequence(self) -> int:
        """The number of the last frame; 0 for an empty log."""
        return self._sequence

    @property
    def segments(self) -> list[SegmentFacts]:
        """The segments that hold frames, oldest first."""
        with self._lock:
            return [SegmentFacts(found.number, found.end, found.first_sequence, found.key_id) for found in self._in_order()]

    @property
    def total_bytes(self) -> int:
        with self._lock:
            return sum(found.end for found in self._segments.values())

    def _in_order(self) -> list[Segment]:
        # Rolls add the newest at the end and recovery begins in order, so the dictionary stands in order.
        return list(self._segments.values())

    # --- failure ----------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self._failure = str(error) or type(error).__name__

    def _check(self) -> None:
        if self._failure:
            raise StorageError(f"the log failed and must be opened anew: {self._failure}")
