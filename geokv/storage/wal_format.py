"""The bytes of the log: the segment's header, the frame, and a walk over the frames of one segment's image.

    segment header, 32 bytes                 frame, 20 bytes and the payload
    offset size field                        offset size field
    0      8    magic "geokvwal"             0      4    length of what follows the header (0: the log ends here)
    8      4    CRC-32 of bytes 12..32       4      4    CRC-32 of bytes 8.. to the end
    12     2    format (1; 2: encrypted)     8      1    format (1)
    14     2    reserved (0)                 9      1    flags (1: encrypted)
    16     4    number of the segment        10     2    frames before this one that were not synced
    20     4    size of the file             12     8    sequence
    24     8    sequence of its first frame  20          payload
    32     44   format 2: stamp of the key

    an encrypted frame has, in place of the payload: 8 bytes that are the run's own, the payload encrypted, 16 bytes of tag

Integers are little-endian. The CRC of a frame starts from a seed made of the segment's number, so bytes that
are a whole frame of another segment (a value may hold a copy of a log) are none in this one. It covers what stands
in the file: where the log ends, and whether something is missing, is seen without a key.
Format page: docs/formats/wal.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from geokv.errors import StorageError
from geokv.storage.encryption.cipher import STAMP_BYTES, TAG_BYTES, Stamp, decode_stamp

MAGIC: Final = b"geokvwal"
FORMAT: Final = 1
ENCRYPTED_FORMAT: Final = 2  # of a segment; its frames are of format 1, with the flag
ENCRYPTED: Final = 1
RUN_BYTES: Final = 8
SEALED_BYTES: Final = RUN_BYTES + TAG_BYTES  # by so much an encrypted frame is longer
PREFIX: Final = Struct("<II")
BODY: Final = Struct("<BBHQ")
FRAME_HEADER: Final = Struct("<IIBBHQ")
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size
UNSYNCED_FRAMES_MAX: Final = (1 << 16) - 1
_HEADER = Struct("<8sIHHIIQ")
_HEADER_BODY = Struct("<HHIIQ")
SEGMENT_HEADER_BYTES: Final = _HEADER.size
SEGMENT_HEADER_BYTES_MAX: Final = SEGMENT_HEADER_BYTES + STAMP_BYTES


class SegmentHeader(NamedTuple):
    """What a segment says of itself: the file's size, for good, the sequence of its first frame, the key (None: plain)."""

    size: int
    first_sequence: int
    stamp: Stamp | None = None

    @property
    def nbytes(self) -> int:
        """Where the first frame begins."""
        return SEGMENT_HEADER_BYTES if self.stamp is None else SEGMENT_HEADER_BYTES_MAX


class Frame(NamedTuple):
    """A whole frame of an image: where its payload begins and ends, where it ends itself, and its sequence.

    All up to `synced` was synced when it was written.
    """

    offset: int
    stop: int
    end: int
    sequence: int
    synced: int
    is_encrypted: bool


def segment_seed(number: int) -> int:
    """Where the CRC of each frame of a segment starts."""
    return crc32(MAGIC + number.to_bytes(8, "little"))


def encode_segment_header(number: int, size: int, first_sequence: int, stamp: Stamp | None = None) -> bytes:
    body = _HEADER_BODY.pack(FORMAT if stamp is None else ENCRYPTED_FORMAT, 0, number, size, first_sequence)
    return MAGIC + crc32(body).to_bytes(4, "little") + body + (b"" if stamp is None else stamp.encode())


def decode_segment_header(header: bytes, number: int, name: str) -> SegmentHeader | None:
    """None where it is damaged or another segment's. Raises StorageError where it is of a newer format.

    `header`: the first SEGMENT_HEADER_BYTES_MAX bytes of the file, or more.
    """
    if len(header) < SEGMENT_HEADER_BYTES:
        return None
    magic, crc, form, _, stated_number, size, first_sequence = _HEADER.unpack_from(header)
    if magic != MAGIC or crc != crc32(header[12:SEGMENT_HEADER_BYTES]):
        return None
    if not FORMAT <= form <= ENCRYPTED_FORMAT:
        raise _newer(name, form)
    stamp = None
    if form == ENCRYPTED_FORMAT:
        try:
            stamp = decode_stamp(header[SEGMENT_HEADER_BYTES:SEGMENT_HEADER_BYTES_MAX])
        except ValueError:
            return None
    return SegmentHeader(size, first_sequence, stamp) if stated_number == number else None


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
    if form != FORMAT or flags & ~ENCRYPTED:
        raise _newer(name, form, flags)
    if not flags:
        return Frame(offset, end, end, sequence, sequence - 1 - unsynced, False)
    if length <= SEALED_BYTES:
        return None  # nobody writes such a thing
    return Frame(offset + RUN_BYTES, end - TAG_BYTES, end, sequence, sequence - 1 - unsynced, True)


def frames_of(image: bytes, number: int, header: SegmentHeader) -> Iterator[Frame]:
    """The frames of an image that ends with a frame or zeros. Raises StorageError."""
    seed = segment_seed(number)
    sequence, start = header.first_sequence, header.nbytes
    while start < len(image):
        frame = frame_at(image, start, seed)
        if frame is None and not image[start:].strip(b"\0"):
            return  # a segment that recovery did not walk: its frames end before the file does
        if frame is None or frame.sequence != sequence:
            raise StorageError(f"segment {number} of the log is unreadable at byte {start}: frame {sequence} is not whole")
        yield frame
        sequence, start = sequence + 1, frame.end


def _newer(name: str, form: int, flags: int = 0) -> StorageError:
    what = f"frames with flags {flags:#04x}" if form == FORMAT else f"format {form}, this one reads up to {ENCRYPTED_FORMAT}"
    return StorageError(f"{name} was written by a newer version: {what}: start the version that wrote it")
