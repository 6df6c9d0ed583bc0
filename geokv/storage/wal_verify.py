"""Verifying a log: every byte of every segment is looked at, and nothing is changed.

Recovery must go on where it can: it cuts a torn end, and looks at the rest only when something is missing. Here every
deviation is told: a frame that is not whole, anything but zeros behind the last one, segments that do not follow each
other, a segment that is missing.

    a node that was stopped in good order     has none of these
    after a power cut, or a kill              the last frame may be torn: that is told too, and cut at the next start

Invariants: one damaged segment does not hide another. Works on a folder whose node is stopped, through any Disk.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from geokv.core.record import decode_records
from geokv.errors import CorruptLog, RecordError, StorageError
from geokv.storage.disk import Disk
from geokv.storage.position import Position
from geokv.storage.wal_cipher import cipher_of, unseal_payload
from geokv.storage.wal_format import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES_MAX,
    decode_segment_header,
    frame_at,
    segment_seed,
)
from geokv.storage.wal_recovery import FOLDER, read_whole, segment_name

_NAME: Final = re.compile(r"(\d{8,})\.wal")
_ZEROS: Final = bytes(1 << 16)


class Damage(NamedTuple):
    """What is wrong, in which file, from which byte on as far as that is known."""

    path: str
    offset: int
    what: str


class SegmentFigures(NamedTuple):
    """What a segment holds; `frames` 0: a spare. `key_id`: what it is encrypted with; empty: it is plain."""

    number: int
    nbytes: int
    frames: int
    used_bytes: int
    first_sequence: int
    key_id: str = ""


def segment_numbers(disk: Disk) -> list[int]:
    """The segments that are there, oldest first."""
    if not disk.exists(FOLDER):
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, disk.list(FOLDER)) if match)


def verify_log(disk: Disk, position: Position) -> Iterator[Damage | SegmentFigures]:
    """Every damage that is found, and the figures of every segment that can be read.

    `position`: where recovery begins; the log must be there from its segment on.
    """
    before: SegmentFigures | None = None  # the segment before, as far as it is whole
    damaged: set[int] = set()
    ends: dict[int, int] = {}
    blank: list[int] = []
    numbers = segment_numbers(disk)
    for number in range(position.segment, numbers[0] if numbers else position.segment + 1):
        if number:
            yield _missing(number)
    for number in numbers:
        found = list(_verify_segment(disk, number))
        yield from found
        if any(isinstance(one, Damage) for one in found):
            damaged.add(number)
        figures = next((one for one in found if isinstance(one, SegmentFigures)), None)
        if figures is not None and not figures.frames and number not in damaged:
            blank.append(number)
        if figures is not None and figures.frames:
            yield from map(_emptied, blank)
            damaged.update(blank)
            blank.clear()
            if before is not None and number not in damaged and before.number not in damaged:
                yield from _break(before, figures, position, numbers)
            before = figures
            ends[number] = figures.used_bytes
    if position.segment in numbers and position.segment not in damaged and position.offset > ends.get(position.segment, 0):
        name = segment_name(position.segment)
        yield Damage(name, position.offset, f"{name}: recovery begins at its byte {position.offset}, which it does not reach")


def _break(before: SegmentFigures, figures: SegmentFigures, position: Position, there: Collection[int]) -> Iterator[Damage]:
    """Whether a segment goes on where the one before ended. What lies below recovery may be the rest of a trim."""
    for number in range(max(before.number + 1, position.segment), figures.number):
        if number not in there:
            yield _missing(number)
    expected = before.first_sequence + before.frames
    if figures.number == before.number + 1 and figures.first_sequence != expected:
        name = segment_name(figures.number)
        yield Damage(name, 0, f"{name}: it begins with frame {figures.first_sequence}, and frame {expected} comes next")


def _emptied(number: int) -> Damage:
    return Damage(segment_name(number), 0, f"{segment_name(number)} holds nothing, and a later one does")


def _missing(number: int) -> Damage:
    return Damage(segment_name(number), 0, f"{segment_name(number)} is missing, and recovery needs it")


def _verify_segment(disk: Disk, number: int) -> Iterator[Damage | SegmentFigures]:
    name = segment_name(number)
    try:
        image = read_whole(disk, name, 0, disk.size(name))
        header = decode_segment_header(image[:SEGMENT_HEADER_BYTES_MAX], number, name)
    except StorageError as error:
        yield Damage(name, int(error.details.get("offset", 0)), str(error))
        return
    if header is None:
        dirty = _first_byte(image, 0)
        if len(image) < SEGMENT_HEADER_BYTES_MAX:
            yield Damage(name, len(image), f"{name}: it has {len(image)} bytes and was made with more")
        elif dirty is None:
            yield SegmentFigures(number, len(image), 0, 0, 0)
        else:
            at = 0 if dirty < SEGMENT_HEADER_BYTES_MAX else dirty
            yield Damage(name, at, f"{name}: its header is damaged, or something stands in a spare (byte {dirty})")
        return
    if header.size != len(image):
        yield Damage(name, len(image), f"{name}: it has {len(image)} bytes and was made with {header.size}")
    seed, start, frames = segment_seed(number), header.nbytes, 0
    cipher = cipher_of(header, number, disk.keys)
    while (frame := frame_at(image, start, seed, name)) is not None and frame.sequence == header.first_sequence + frames:
        try:
            decode_records(unseal_payload(cipher, image, frame, 0, number))
        except CorruptLog as error:
            yield Damage(name, start, str(error))
        except RecordError as error:
            yield Damage(name, frame.offset, f"{name}: frame {frame.sequence} at byte {start} holds what is no record: {error}")
        start, frames = frame.end, frames + 1
    dirty = _first_byte(image, start)
    if dirty is not None:
        sequence = header.first_sequence + frames
        yield Damage(
            name,
            start if dirty < start + FRAME_HEADER_BYTES else dirty,
            f"{name}: frame {sequence} should stand at byte {start}, and something else stands there (byte {dirty}): "
            "damaged, or torn by a power cut or a kill; the next start tells which, and cuts what was torn",
        )
    yield SegmentFigures(
        number, len(image), frames, start, header.first_sequence, "" if cipher is None else cipher.stamp.key_id
    )


def _first_byte(image: bytes, start: int) -> int | None:
    """Where the first byte from `start` on stands that is not zero."""
    for at in range(start, len(image), len(_ZEROS)):  # comparing is ten times as fast as stripping
        piece = image[at : at + len(_ZEROS)]
        if piece != _ZEROS[: len(piece)]:
            return at + len(piece) - len(piece.lstrip(b"\0"))
    return None
