"""The record: one delta on its way, encoded once by its coordinator and carried byte for byte from then on.

    offset size field                      offset size field
    0      4    length of the whole        28     8    HLC
    4      4    CRC-32 of bytes 8..length  36     16   operation id
    8      1    format (1)                 52     1    origin's length
    9      1    kind                       53     1    reserved (0)
    10     2    partition                  54     2    key's length
    12     8    namespace id               56     4    cell's length
    20     8    number                     60          origin, key, cell

Integers are little-endian. Kind DELTA is a numbered delta; CELL is a repaired or transferred cell without a number
(it moves no frontier and is not shipped); CONTROL is the node's own note to itself in its log (its key names it, its
cell is MessagePack). Records stand one behind the other, without padding, in a log frame, a replica message and a WAN
batch.

Invariants: `decode_records` accepts exactly what `encode_record` made; anything else raises RecordError.
Format page: docs/formats/record.md.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from geokv.errors import RecordError

FORMAT: Final = 1
DELTA: Final = 1
CELL: Final = 2
CONTROL: Final = 3

_BODY = Struct("<BBHQQQ16sBBHI")
_PREFIX = Struct("<II")
_HEADER = Struct("<IIBBHQQQ16sBBHI")
_PAIR = Struct("<I4xBB2xQ8xQ16xBxHI")  # of the header what `decode_pairs` wants
HEADER_BYTES: Final = _HEADER.size
NO_OPERATION: Final = bytes(16)


class Record(NamedTuple):
    """One decoded record. `raw` is its bytes as they came, to be carried on unchanged."""

    raw: bytes
    kind: int
    partition: int
    namespace: int
    number: int
    hlc: int
    origin: bytes
    key: bytes
    cell: bytes

    @property
    def operation(self) -> bytes:
        return self.raw[36:52]


def encode_record(
    kind: int,
    partition: int,
    namespace: int,
    number: int,
    hlc: int,
    operation: bytes,
    origin: bytes,
    key: bytes,
    cell: bytes,
) -> bytes:
    """The record's bytes. `origin` is packed, `operation` has 16 bytes, `hlc` 64 bits."""
    body = (
        _BODY.pack(FORMAT, kind, partition, namespace, number, hlc, operation, len(origin), 0, len(key), len(cell))
        + origin
        + key
        + cell
    )
    return _PREFIX.pack(len(body) + 8, crc32(body)) + body


def decode_records(buffer: bytes, verify: bool = True) -> list[Record]:
    """All records of `buffer`, in order. Raises RecordError on a length, format or checksum that does not fit."""
    records: list[Record] = []
    append = records.append
    unpack: Callable[[bytes, int], tuple[int, ...]] = _HEADER.unpack_from
    view = memoryview(buffer)
    new = tuple.__new__  # a third of what Record(...) costs
    offset, end = 0, len(buffer)
    while offset < end:
        if end - offset < HEADER_BYTES:
            raise RecordError(f"record at byte {offset}: {end - offset} bytes left, a header has {HEADER_BYTES}")
        length, crc, form, kind, partition, namespace, number, hlc, _, origin_n, _, key_n, cell_n = unpack(buffer, offset)
        stop = offset + length
        start_origin = offset + HEADER_BYTES
        start_key = start_origin + origin_n
        start_cell = start_key + key_n
        if form != FORMAT:
            raise RecordError(f"record at byte {offset}: format {form}, this version reads format {FORMAT}")
        if stop > end or start_cell + cell_n != stop:
            raise RecordError(f"record at byte {offset}: its lengths do not fit together")
        if verify and crc32(view[offset + 8 : stop]) != crc:
            raise RecordError(f"record at byte {offset}: checksum does not match")
        fields = (
            buffer[offset:stop],
            kind,
            partition,
            namespace,
            number,
            hlc,
            buffer[start_origin:start_key],
            buffer[start_key:start_cell],
            buffer[start_cell:stop],
        )
        append(new(Record, fields))
        offset = stop
    return records


def decode_pairs(buffer: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """(namespace, HLC, key, cell) of all records but control records: what `decode_records` knows, at half its cost.

    For bytes whose checksum was looked at. Raises RecordError on a length or format that does not fit.
    """
    pairs: list[tuple[int, int, bytes, bytes]] = []
    append = pairs.append
    unpack: Callable[[bytes, int], tuple[int, ...]] = _PAIR.unpack_from
    offset, last = 0, len(buffer) - HEADER_BYTES
    while offset <= last:
        length, form, kind, namespace, hlc, origin_n, key_n, cell_n = unpack(buffer, offset)
        key = offset + HEADER_BYTES + origin_n
        cell = key + key_n
        stop = cell + cell_n
        if form != FORMAT or stop != offset + length or stop > len(buffer):
            raise RecordError(f"record at byte {offset}: format {form}, or its lengths do not fit together")
        if kind != CONTROL:
            append((namespace, hlc, buffer[key:cell], buffer[cell:stop]))
        offset = stop
    if offset != len(buffer):
        raise RecordError(f"record at byte {offset}: {len(buffer) - offset} bytes left, a header has {HEADER_BYTES}")
    return pairs
