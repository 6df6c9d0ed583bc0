"""The bytes of the log: the segment's header, the frame, and a walk over the frames of one segment's image.

    segment header, 32 bytes                 frame, 20 bytes and the payload
    offset size field                        offset size field
    0      8    magic "geokvwal"             0      4    length of the payload (0: the log ends here)
    8      4    CRC-32 of bytes 12..32       4      4    CRC-32 of bytes 8.. to the end
    12     2    format (1)                   8      1    format (1)
    14     2    reserved (0)                 9      1    flags (0)
    16     4    number of the segment        10     2    frames before this one that were not synced
    20     4    size of the file             12     8    sequence
    24     8    sequence of its first frame  20          payload

Integers are little-endian. The CRC of a frame starts from a seed made of the segment's number, so bytes that
are a whole frame of another segment (a value may hold a copy of a log) are none in this one.
Format page: docs/formats/wal.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from geokv.errors import StorageError

MAGIC: Final = b"geokvwal"
FORMAT: Final = 1
PREFIX: Final = Struct("<II")
BODY: Final = Struct("<BBHQ")
FRAME_HEADER: Final = Struct("<IIBBHQ")
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size
UNSYNCED_FRAMES_MAX: Final = (1 << 16) - 1
_HEADER = Struct("<8sIHHIIQ")
_HEADER_BODY = Struct("<HHIIQ")
SEGMENT_HEADER_BYTES: Final = _HEADER.size


class SegmentHeader(NamedTuple):
    """What a segment says of itself: the file's size, for good, and the sequence of its first frame."""

    size: int
    first_sequence: int


class Frame(NamedTuple):
    """A whole frame of an image: where its payload begins and ends, and its sequence.

    All up to `synced` was synced when it was written.
    """

    offset: int
    end: int
    sequence: int
    synced: int


def segment_seed(number: int) -> int:
    """Where the CRC of each frame of a segment starts."""
    return crc32(MAGIC + number.to_bytes(8, "little"))


def encode_segment_header(number: int, size: int, first_sequence: int) -> bytes:
    body = _HEADER_BODY.pack(FORMAT, 0, number, size, first_sequence)
    return MAGIC + crc32(body).to_bytes(4, "little") + body


def decode_segment_header(header: bytes, number: int, name: str) -> SegmentHeader | None:
    """None where it is damaged or another segment's. Raises StorageError where it is of a newer format."""
    if len(header) < SEGMENT_HEADER_BYTES:
        return None
    magic, crc, form, _, stated_number, size, first_sequence = _HEADER.unpack_from(header)
    if magic != MAGIC or crc != crc32(header[12:SEGMENT_HEADER_BYTES]):
        return None
    if form != FORMAT:
        raise _newer(name, form)
    return SegmentHeader(size, first_sequence) if stated_number == number else None


def frame_at(image: bytes, start: int, seed: int, name: str = "") -> Frame | None:
    """The frame whose header begins at `start`, or None where none stands there whole.

    Raises StorageError where it is whole and of a newer format.
    """
    if start + FRAME_HEADER_BYTES > len(image):
        return None
    length, crc, form, flags, unsynced, sequence = FRAME_HEADER.unpack_from(image, start)
    offset = start + FRAME_HEADER_BYTES
    end = offset + length
    if not length or end > len(image) or crc32(memoryview(image)[start + PREFIX.size : end], seed) != crc:
        return None
    if form != FORMAT or flags:
        raise _newer(name, form, flags)
    return Frame(offset, end, sequence, sequence - 1 - unsynced)


def frames_of(image: bytes, number: int, first_sequence: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the payloads of an image that ends with a frame or zeros. Raises StorageError."""
    seed = segment_seed(number)
    sequence, start = first_sequence, SEGMENT_HEADER_BYTES
    while start < len(image):
        frame = frame_at(image, start, seed)
        if frame is None and not image[start:].strip(b"\0"):
            return  # a segment that recovery did not walk: its frames end before the file does
        if frame is None or frame.sequence != sequence:
            raise StorageError(f"segment {number} of the log is unreadable at byte {start}: frame {sequence} is not whole")
        yield frame.offset, frame.end
        sequence, start = sequence + 1, frame.end


def _newer(name: str, form: int, flags: int = 0) -> StorageError:
    what = f"format {form}" if form != FORMAT else f"frames with flags {flags:#04x}"
    return StorageError(
        f"{name} was written by a newer version: {what}, this one reads format {FORMAT}: start the version that wrote it"
    )
