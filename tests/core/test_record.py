"""The record: what is encoded is decoded, and nothing else is taken for one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.origin import Origin
from geokv.core.record import (
    CELL,
    CONTROL,
    DELTA,
    FORMAT,
    HEADER_BYTES,
    NO_OPERATION,
    Record,
    decode_pairs,
    decode_records,
    encode_record,
)
from geokv.errors import RecordError

ORIGIN = Origin("eu-west", "eu-1", 0x0123456789ABCDEF).packed()
# The example of docs/formats/record.md: records of format 1 read like this for ever.
GOLDEN = bytes.fromhex(
    "5d0000008dfb80e20101c80008070605040302012a00000000000000efcdab8967452301000102030405060708090a0b0c0d0e0f"
    "150006000600000065752d776573740065752d31000123456789abcdef757365723a31612063656c6c"
)

_U64 = st.integers(0, 2**64 - 1)
_RECORDS = st.builds(
    encode_record,
    st.sampled_from([DELTA, CELL, CONTROL]),
    st.integers(0, 2**16 - 1),
    _U64,
    _U64,
    _U64,
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=255),
    st.binary(max_size=1024),
    st.binary(max_size=3000),
)


def test_the_bytes_of_format_1_stand_for_ever() -> None:
    """Encoding gives the committed bytes, and decoding them the same fields again."""
    operation = bytes(range(16))
    fields = (200, 0x0102030405060708, 42, 0x0123456789ABCDEF)
    assert encode_record(DELTA, *fields, operation, ORIGIN, b"user:1", b"a cell") == GOLDEN
    (record,) = decode_records(GOLDEN)
    assert record == Record(GOLDEN, DELTA, *fields, ORIGIN, b"user:1", b"a cell")
    assert record.operation == operation


@given(records=st.lists(_RECORDS, max_size=6))
def test_records_stand_back_to_back_and_come_back_byte_for_byte(records: list[bytes]) -> None:
    """Decoding a buffer gives its records in order; each one's fields encode to the very same bytes."""
    decoded = decode_records(b"".join(records))
    assert [record.raw for record in decoded] == records
    for record in decoded:
        again = encode_record(
            record.kind,
            record.partition,
            record.namespace,
            record.number,
            record.hlc,
            record.operation,
            record.origin,
            record.key,
            record.cell,
        )
        assert again == record.raw


@given(records=st.lists(_RECORDS, max_size=6), cut=st.integers(1, 100))
def test_the_short_way_to_keys_and_cells_finds_the_same(records: list[bytes], cut: int) -> None:
    """All records but control records, in order; a buffer that ends inside a record is refused."""
    buffer = b"".join(records)
    assert decode_pairs(buffer) == [(r.namespace, r.hlc, r.key, r.cell) for r in decode_records(buffer) if r.kind != CONTROL]
    if records:
        with pytest.raises(RecordError):
            decode_pairs(buffer[: -min(cut, len(records[-1]) - 1)])


@given(record=_RECORDS, other=_RECORDS, bit=st.integers(0))
def test_every_flipped_bit_is_refused(record: bytes, other: bytes, bit: int) -> None:
    """One bit wrong anywhere in a buffer is a RecordError, never another record."""
    buffer = bytearray(record + other)
    bit %= len(buffer) * 8
    buffer[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RecordError, match="record at byte"):
        decode_records(bytes(buffer))


@given(records=st.lists(_RECORDS, min_size=1, max_size=3), cut=st.integers(1))
def test_every_truncation_is_refused(records: list[bytes], cut: int) -> None:
    """A buffer that ends inside a record is a RecordError that says where."""
    buffer = b"".join(records)
    ends = {sum(map(len, records[:count])) for count in range(len(records) + 1)}
    length = len(buffer) - 1 - cut % len(buffer)
    if length in ends:
        assert len(decode_records(buffer[:length])) < len(records)
    else:
        with pytest.raises(RecordError, match="record at byte"):
            decode_records(buffer[:length])


@given(noise=st.binary(min_size=1, max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    """Bytes from anywhere end in a RecordError, in no other exception, and without a check of the sum too."""
    with pytest.raises(RecordError):
        decode_records(noise)
    try:
        decode_records(noise, verify=False)
    except RecordError:
        pass


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1])
def test_a_length_that_leads_nowhere_is_refused(length: int) -> None:
    """A record that states to be shorter than its own header must not stop or loop the decoding."""
    forged = length.to_bytes(4, "little") + GOLDEN[4:]
    for verify in (True, False):
        with pytest.raises(RecordError, match="lengths do not fit"):
            decode_records(forged, verify)


def test_a_newer_format_is_refused_by_number() -> None:
    """Format 2 is named in the error, whatever else stands in the record."""
    newer = GOLDEN[:8] + bytes([FORMAT + 1]) + GOLDEN[9:]
    with pytest.raises(RecordError, match="format 2, this version reads format 1"):
        decode_records(newer)


def test_the_second_record_is_named_by_its_place() -> None:
    """The error states the byte at which the bad record begins."""
    broken = GOLDEN + GOLDEN[:-1] + b"!"
    with pytest.raises(RecordError, match=f"record at byte {len(GOLDEN)}: checksum"):
        decode_records(broken)


def test_no_records_are_an_empty_list() -> None:
    """An empty buffer holds no record; an operation id that nobody gave is sixteen zeros."""
    assert decode_records(b"") == [] and bytes(16) == NO_OPERATION


def test_the_format_page_shows_these_bytes() -> None:
    """The worked example of the page is the one that is tested here."""
    page = Path(__file__).parents[2] / "docs" / "formats" / "record.md"
    assert GOLDEN.hex() in page.read_text(encoding="utf-8").replace("\n", "")
