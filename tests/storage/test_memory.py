"""The engine for caches: bounded, the least recently used go first, and it says what went."""

from __future__ import annotations

import random

from geokv.storage.memory import PAIR_OVERHEAD_BYTES, MemoryCells


def test_it_never_takes_more_than_its_bound() -> None:
    """Whatever is put, overwritten and made smaller: the counted bytes are those of what is there, and within the bound."""
    rng = random.Random(3)
    cells = MemoryCells(20_000)
    for _ in range(3_000):
        cells.update({b"%d" % rng.randrange(200): bytes(rng.randrange(500)) for _ in range(3)})
        assert cells.nbytes <= cells.bytes_max
        assert cells.nbytes == sum(len(key) + len(cell) + PAIR_OVERHEAD_BYTES for key, cell in cells.items())
    cells.resize(5_000)
    assert cells.nbytes <= 5_000
    assert cells.figures()["evicted"] > 1_000


def test_what_was_used_last_stays() -> None:
    """A key that is read or written is the last to go; what went is counted and named."""
    size = 1 + 10 + PAIR_OVERHEAD_BYTES
    cells = MemoryCells(3 * size)
    for key in (b"a", b"b", b"c"):
        cells.update([(key, bytes(10))])
    assert cells.get(b"a") == bytes(10)
    cells.update({b"d": bytes(10)})
    cells.update({b"c": bytes(10)})
    cells.update({b"e": bytes(10)})
    assert sorted(cells.keys()) == [b"c", b"d", b"e"]
    assert cells.figures() == {"bytes": 3 * size, "evicted": 2, "evicted_bytes": 2 * size, "evicted_last": ["b", "a"]}
    assert (cells.get(b"a"), cells.look([b"a", b"c"]), cells.missing([b"a"])) == (None, ([None, bytes(10)], []), [])


def test_a_cell_larger_than_the_bound_is_evicted_itself() -> None:
    """It is not kept at the others' cost for good, and nothing breaks."""
    cells = MemoryCells(1_000)
    cells.update({b"large": bytes(5_000)})
    assert (len(cells), cells.nbytes, cells.figures()["evicted"]) == (0, 0, 1)
    cells.update({b"small": b"v"})
    assert cells.get(b"small") == b"v"
