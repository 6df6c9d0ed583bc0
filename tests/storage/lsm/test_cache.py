"""Caches are bounded, and what is used stays longest."""

import random

from hypothesis import given
from hypothesis import strategies as st

from geokv.storage.lsm.cache import BlockCache, RowCache

_STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000)), max_size=60)


@given(_STEPS, st.integers(0, 5000))
def test_caches_never_hold_more_than_their_bytes(steps: list[tuple[int, int]], bytes_max: int) -> None:
    """Whatever is put, replaced by its decoded form, looked at and resized: within the bound, and what was put."""
    blocks, rows = BlockCache(bytes_max), RowCache()
    rows.resize(bytes_max)
    for number, size in steps:
        cell = bytes(100 * number)
        blocks.put(number, cell if size % 2 else {b"k": cell})
        rows.put(b"%d" % number, cell, rows.generation)
        assert blocks.bytes <= bytes_max and rows.bytes <= rows.bytes_max
        assert blocks.get(number) in (None, cell, {b"k": cell}) and rows.get(b"%d" % number) in (None, cell)
        if size % 5 == 0:
            rows.resize(bytes_max // (1 + size % 3))
    rows.resize(0)
    assert (len(rows), rows.bytes) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    """A block and a row that are asked for again and again outlive a stream of others."""
    blocks, rows = BlockCache(10_000), RowCache()
    rows.resize(10_000)
    blocks.put(0, bytes(100))
    rows.put(b"hot", bytes(100), 0)
    for number in range(1, 500):
        blocks.put(number, random.Random(number).randbytes(300))
        rows.put(b"%d" % number, bytes(300), 0)
        assert blocks.get(0) is not None and rows.get(b"hot") is not None
    assert 1 not in blocks and b"1" not in rows and 499 in blocks and b"499" in rows


def test_rows_from_before_a_switch_stay_out() -> None:
    """Between close and open nothing comes in; what was read before comes in never; flushed keys are forgotten."""
    rows = RowCache()
    rows.resize(10_000)
    for key in (b"flushed", b"kept"):
        rows.put(key, b"old", rows.generation)
    before = rows.generation
    rows.close([{b"flushed": b"new", b"another": b""}])
    rows.put(b"flushed", b"stale", before)
    rows.put(b"flushed", b"stale", rows.generation)
    rows.open()
    rows.put(b"flushed", b"stale", before)
    assert rows.get(b"flushed") is None and rows.get(b"kept") == b"old"
    rows.put(b"flushed", b"new", rows.generation)
    assert rows.get(b"flushed") == b"new"
