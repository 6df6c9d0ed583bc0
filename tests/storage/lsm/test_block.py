"""The block gives back its pairs, all at once or one by one."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.partial import Partial
from geokv.storage.lsm.block import RESTART, decode_block, encode_block, find, shared_length

_CELLS = st.binary(max_size=20) | st.binary(max_size=20).map(Partial)
_KEYS = st.binary(max_size=4) | st.binary(max_size=6).map(lambda tail: b"a common prefix/" + tail)


@given(st.dictionaries(_KEYS, _CELLS, min_size=1, max_size=5 * RESTART), st.binary(max_size=6))
def test_a_block_gives_back_its_pairs(pairs: dict[bytes, bytes], other: bytes) -> None:
    """Decoded or searched: the same cells, Partial where they were, in order, and nothing for any other key."""
    keys = sorted(pairs)
    raw = encode_block(keys, [pairs[key] for key in keys])
    decoded = decode_block(raw)
    assert list(decoded.items()) == [(key, pairs[key]) for key in keys]
    for key in [*keys, other, b"", b"\xff" * 9, *(key + b"\0" for key in keys)]:
        assert find(raw, key) == decoded.get(key) == pairs.get(key)
        assert type(find(raw, key)) is type(decoded.get(key)) is type(pairs.get(key))


@given(st.sets(_KEYS, min_size=1, max_size=3 * RESTART))
def test_keys_that_each_share_what_they_can_are_read_as_well(keys: set[bytes]) -> None:
    """The format leaves it to the writer how much of the key before it a key shares."""
    in_order = sorted(keys)
    raw = encode_block(in_order, [b"c"] * len(in_order))
    shared = [0 if i % RESTART == 0 else shared_length(in_order[i - 1], key) for i, key in enumerate(in_order)]
    suffixes = [key[skip:] for skip, key in zip(shared, in_order, strict=True)]
    count = len(in_order)
    other = b"".join([pack(f"<II{count}H{count}H", count, 0, *shared, *map(len, suffixes)), pack("<I", 1) * count, *suffixes])
    other += b"c" * count
    assert decode_block(other) == decode_block(raw) and all(find(other, key) == b"c" for key in in_order)


@given(st.binary(max_size=9), st.binary(max_size=9))
def test_the_shared_length_is_that_of_the_common_prefix(one: bytes, other: bytes) -> None:
    """As long as the longest prefix that both have."""
    length = shared_length(one, other)
    assert one[:length] == other[:length] and (length == min(len(one), len(other)) or one[length] != other[length])


@given(st.binary(max_size=60))
def test_what_is_no_block_is_a_value_error(raw: bytes) -> None:
    """Bytes with a right checksum but no sense are refused, never an error of another kind."""
    for read in (decode_block, lambda raw: find(raw, b"k")):
        try:
            read(raw)
        except ValueError:
            pass


def test_a_cut_block_is_refused() -> None:
    """Each shortened form of a block is refused by its lengths."""
    raw = encode_block([b"a", b"ab", b"b"], [b"1", Partial(b"2"), b"3"])
    for length in range(len(raw)):
        with pytest.raises(ValueError, match=r"bytes|lengths|requires"):
            decode_block(raw[:length])
    with pytest.raises(ValueError, match="lengths do not fit"):
        decode_block(raw + b"\0")
