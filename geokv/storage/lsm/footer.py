"""The footer of a table: where its parts stand, and what a reader needs before it can read any of them.

    60 bytes         parts, number, format of the facts, flags, checksum, magic
    56 before these  the extension: flags, length of the dictionary, stamp of the key, their own checksum

The extension is there for a table that is encrypted or has a dictionary. Whether it is stands in the last
bytes, as the parts' places do; so the end of a file is read once, and is enough.

Invariants: nothing is believed before its checksum. Damage is a StorageError that names
file and offset. Format page: docs/formats/sstable.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import STAMP_BYTES, Stamp, decode_stamp
from geokv.storage.lsm.facts import table_name
from geokv.storage.lsm.sealing import damaged

MAGIC: Final = b"geokvsst"
FORMAT: Final = 2
FOOTER: Final = Struct("<QQQQIIIHHI8s")
FOOTER_BODY: Final = Struct("<QQQQIIIHH")
EXTENSION: Final = Struct(f"<II{STAMP_BYTES}sI")
FOOTER_BYTES_MAX: Final = FOOTER.size + EXTENSION.size
EXTENDED: Final = 1  # a flag of the footer
ENCRYPTED: Final = 1  # a flag of the extension
_NO_STAMP: Final = bytes(STAMP_BYTES)


class Part(NamedTuple):
    """Where a block stands."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Footer:
    """`dictionary` has no length where there is none. `stamp`: of the key; None: the table is plain. `form`: of its facts."""

    number: int
    dictionary: Part
    filter: Part
    index: Part
    facts: Part
    stamp: Stamp | None = None
    form: int = FORMAT


def encode_footer(footer: Footer) -> bytes:
    extension = b""
    if footer.stamp is not None or footer.dictionary.length:
        stamp, flags = (_NO_STAMP, 0) if footer.stamp is None else (footer.stamp.encode(), ENCRYPTED)
        extension = EXTENSION.pack(flags, footer.dictionary.length, stamp, 0)[:-4]
        extension += crc32(extension).to_bytes(4, "little")
    parts = footer.filter, footer.index, footer.facts
    offsets_lengths = *(part.offset for part in parts), *(part.length for part in parts)
    body = FOOTER_BODY.pack(footer.number, *offsets_lengths, footer.form, EXTENDED if extension else 0)
    return extension + body + crc32(body).to_bytes(4, "little") + MAGIC


def read_footer(disk: Disk, number: int) -> Footer:
    """The footer of a table. Raises StorageError where it is damaged, cut, another table's, or of a newer format."""
    name = table_name(number)
    size = disk.size(name)
    tail = disk.read_at(name, max(size - FOOTER_BYTES_MAX, 0), FOOTER_BYTES_MAX)
    start = size - FOOTER.size
    if start < 0 or len(tail) < FOOTER.size:
        raise damaged(name, 0, "it has no whole footer")
    raw = tail[-FOOTER.size :]
    stated, *offsets_lengths, form, flags, crc, magic = FOOTER.unpack(raw)
    if magic != MAGIC or crc != crc32(raw[: FOOTER_BODY.size]):
        raise damaged(name, start, "the footer's checksum does not match")
    if not 1 <= form <= FORMAT or flags & ~EXTENDED:
        raise _newer(name, f"format {form}, this one reads up to {FORMAT}{f'; flags {flags:#x}' if flags & ~EXTENDED else ''}")
    if stated != number:
        raise damaged(name, start, f"it is table {stated:016x} under another's name")
    dictionary_bytes, stamp = _read_extension(tail[: -FOOTER.size], name, start) if flags else (0, None)
    filter_part, index, facts = map(Part, offsets_lengths[:3], offsets_lengths[3:])
    dictionary = Part(filter_part.offset - dictionary_bytes, dictionary_bytes)
    end = start - (EXTENSION.size if flags else 0)
    if (filter_part.end, index.end, facts.end) != (index.offset, facts.offset, end) or dictionary.offset < 0:
        raise damaged(name, start, "its parts do not end where the next begins")
    return Footer(number, dictionary, filter_part, index, facts, stamp, form)


def _read_extension(raw: bytes, name: str, start: int) -> tuple[int, Stamp | None]:
    """(length of the dictionary, stamp)."""
    if len(raw) != EXTENSION.size or crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise damaged(name, start, "the checksum of the footer's extension does not match")
    flags, dictionary_bytes, stamp, _ = EXTENSION.unpack(raw)
    if flags & ~ENCRYPTED:
        raise _newer(name, f"flags {flags:#x}")
    try:
        return dictionary_bytes, decode_stamp(stamp) if flags else None
    except ValueError as error:
        raise damaged(name, start, f"the footer cannot be read ({error})") from error


def _newer(name: str, what: str) -> StorageError:
    return StorageError(f"{name} was written by a newer version ({what}): start the version that wrote it", path=name)


def table_label(number: int) -> bytes:
    """What the key of a table's file is derived with."""
    return b"table " + number.to_bytes(8, "little")
