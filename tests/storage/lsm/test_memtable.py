"""A memtable keeps an order when asked, and is freed only when nobody reads it."""

from hypothesis import given
from hypothesis import strategies as st

from geokv.storage.lsm.memtable import Memtable, empty

_KEYS = st.binary(max_size=2)


@given(st.lists(st.tuples(st.lists(_KEYS), _KEYS, st.none() | _KEYS)))
def test_pairs_come_in_order_however_they_were_put(steps: list[tuple[list[bytes], bytes, bytes | None]]) -> None:
    """Puts and ranges in any order give what sorted() gives."""
    memtable = Memtable()
    for keys, start, stop in steps:
        for key in keys:
            memtable.cells[key] = key * 2
        expected = [(k, c) for k, c in sorted(memtable.cells.items()) if start <= k and (stop is None or k < stop)]
        assert list(memtable.pairs(start, stop)) == expected


def test_what_nobody_else_holds_is_emptied() -> None:
    """The list alone holds it: its dictionary is empty afterwards."""
    memtables = [Memtable(), Memtable()]
    for memtable in memtables:
        memtable.cells[b"k"] = b"cell"
    del memtable
    empty(memtables)
    assert [memtable.cells for memtable in memtables] == [{}, {}]


def test_what_somebody_still_reads_stays_whole() -> None:
    """Held by a view, by a scan, or its dictionary by a get: nothing of it goes."""
    held = Memtable()
    held.cells[b"k"] = b"cell"
    empty([held])
    assert held.cells == {b"k": b"cell"}
    for reader in (lambda one: one.cells, lambda one: one.pairs(b"", None)):
        memtables = [Memtable()]
        memtables[0].cells[b"k"] = b"cell"
        reading = reader(memtables[0])
        next(iter(reading))
        empty(memtables)
        assert memtables[0].cells == {b"k": b"cell"}
        del reading
