"""The LWW cell: a total order in its bytes, and a merge that is a lattice."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.cell import (
    VERSION_MAX,
    LwwCell,
    decode_lww,
    encode_lww,
    is_concurrent,
    live_value,
    lww_tail,
    lww_version,
)
from geokv.core.conflict import POLICIES, policy_of
from geokv.core.origin import Origin
from geokv.errors import InvalidRequest, RecordError

# The example of docs/formats/record.md: cells of format 1 read like this for ever.
ORIGIN = Origin("eu-west", "eu-1", 0x0123456789ABCDEF).packed()
GOLDEN = bytes.fromhex(
    "01010203040506070865752d776573740065752d31000123456789abcdef000000000000002a020000018bcfe56800000000000000000776616c7565"
)

# Few and close values, with names that are prefixes of each other, so that every tie occurs.
_NAMES = st.sampled_from(["a", "ab", "b", "eu-west", "eu"])
_ORIGINS = st.builds(Origin, _NAMES, _NAMES, st.sampled_from([0, 1, 255, 256, 2**64 - 1]))
_U64 = st.sampled_from([0, 1, 255, 256, 65_535, 2**40, 2**63 - 1])


@st.composite
def _cells(draw: st.DrawFn) -> bytes:
    """A cell as coordinators make them: what it holds follows from its version, origin and number."""
    version, origin, number = draw(_U64), draw(_ORIGINS), draw(_U64)
    identity = hash((version, origin.incarnation, len(origin.dc), len(origin.node), number))
    is_tombstone = identity % 3 == 0
    value = b"" if is_tombstone else bytes([identity % 251]) * (identity % 5)
    return encode_lww(version, origin.packed(), number, is_tombstone, identity % 2 * 1000, identity % 7, value)


@given(cells=st.lists(_cells(), min_size=3, max_size=3))
def test_merging_is_commutative_associative_and_idempotent(cells: list[bytes]) -> None:
    """The three laws on which every replica's convergence rests."""
    a, b, c = cells
    merge = policy_of("lww").merge
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a and merge(merge(a, b), b) == merge(a, b)
    assert merge(a, b) in (a, b)


@given(first=_cells(), second=_cells())
def test_the_later_one_wins_by_version_then_dc_then_node_then_dot(first: bytes, second: bytes) -> None:
    """The merge of the bytes is the greater one in the order that the guarantees state."""

    def order(cell: bytes) -> tuple[int, bytes, bytes, bytes, int]:
        decoded = decode_lww(cell)
        dc, node, incarnation = decoded.origin.split(b"\0", 2)
        return decoded.version, dc, node, incarnation, decoded.number

    expected = max((first, second), key=order)
    assert policy_of("lww").merge(first, second) == expected


@given(
    version=st.integers(0, VERSION_MAX),
    origin=st.builds(Origin, st.text("abc-9", min_size=1), st.text("abc-9", min_size=1), st.integers(0, 2**64 - 1)),
    number=st.integers(0, 2**64 - 1),
    is_tombstone=st.booleans(),
    deadline_ms=st.integers(0, 2**48),
    replaced=st.integers(0, VERSION_MAX),
    value=st.binary(),
)
def test_what_is_encoded_is_decoded(
    version: int,
    origin: Origin,
    number: int,
    is_tombstone: bool,
    deadline_ms: int,
    replaced: int,
    value: bytes,
) -> None:
    """Every field comes back, whatever bytes stand in incarnation, number and value."""
    cell = encode_lww(version, origin.packed(), number, is_tombstone, deadline_ms, replaced, value)
    expected = LwwCell(version, origin.packed(), number, is_tombstone, deadline_ms, replaced, value)
    assert decode_lww(cell) == expected
    assert lww_version(cell) == version and cell[lww_tail(cell) + 17 :] == value


def test_the_bytes_of_format_1_stand_for_ever() -> None:
    """Encoding gives the committed bytes, and decoding them the same fields again."""
    fields = (0x0102030405060708, ORIGIN, 42, False, 1_700_000_000_000, 7, b"value")
    assert encode_lww(*fields) == GOLDEN
    assert decode_lww(GOLDEN) == LwwCell(*fields)


@pytest.mark.parametrize(
    ("is_tombstone", "deadline_ms", "now_ms", "seen"),
    [
        (False, 0, 10**15, b"v"),
        (False, 1000, 999, b"v"),
        (False, 1000, 1000, None),
        (False, 1000, 2000, None),
        (True, 0, 0, None),
        (True, 1000, 0, None),
    ],
)
def test_a_reader_sees_neither_tombstones_nor_what_has_expired(
    is_tombstone: bool, deadline_ms: int, now_ms: int, seen: bytes | None
) -> None:
    """A value is seen until its deadline, from that millisecond on no more; a tombstone never."""
    value = b"" if is_tombstone else b"v"
    assert live_value(encode_lww(5, ORIGIN, 1, is_tombstone, deadline_ms, 0, value), now_ms) == seen


def test_an_empty_value_is_not_an_absent_one() -> None:
    """The empty value is a value."""
    assert live_value(encode_lww(5, ORIGIN, 1, False, 0, 0, b""), 0) == b""


@given(noise=st.binary(max_size=60))
def test_what_is_no_cell_is_a_record_error(noise: bytes) -> None:
    """Bytes from anywhere either decode or end in RecordError, in nothing else."""
    for candidate in (noise, b"\x01" + noise):
        with suppress(RecordError):
            assert isinstance(decode_lww(candidate), LwwCell)


@pytest.mark.parametrize("length", range(len(GOLDEN) - len(b"value")))
def test_a_cut_cell_is_refused(length: int) -> None:
    """A cell that ends before its value begins is not a cell."""
    with pytest.raises(RecordError, match="not an lww cell"):
        decode_lww(GOLDEN[:length])


def test_a_concurrent_overwrite_is_told_from_a_newer_one() -> None:
    """By the version that the winner says it replaced, whichever way round the two are given, and by no clock."""
    eu, us = Origin("eu", "n", 1).packed(), Origin("us", "n", 1).packed()
    base = encode_lww(10, eu, 1, False, 0, 0, b"base")
    saw_it = encode_lww(30, us, 1, False, 0, 10, b"after")
    ours, theirs = encode_lww(20, eu, 2, False, 0, 10, b"ours"), encode_lww(25, us, 2, True, 0, 10, b"")
    same_tick = encode_lww(20, us, 3, False, 0, 10, b"at the same time")
    for one, other, expected in (
        (base, saw_it, False),
        (base, ours, False),
        (ours, theirs, True),
        (ours, same_tick, True),
        (ours, ours, False),
    ):
        assert is_concurrent(one, other) is is_concurrent(other, one) is expected


def test_an_unknown_policy_is_named_with_the_known_ones() -> None:
    """policy_of says what to choose from."""
    with pytest.raises(InvalidRequest, match=f"unknown policy 'lwww': choose one of {', '.join(POLICIES)}"):
        policy_of("lwww")
