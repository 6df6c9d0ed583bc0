"""A tree in the place of a table: what `lsm.cells` asks of one, answered from a tree.

To the cells of a namespace a tree is one run of one table whose filter lets every key pass. Unlike a table it changes, by a
flush or a collection, and then gets a new reader: what was learned of absent keys does not outlive that.

    is_cached   the key is known to be absent, or the tree knows without the disk (RocksDB: filters, block cache)
    get         the cell; where reading it may have cost the disk, it goes to the row cache of the namespace

Invariants: any thread may use it. What it remembers is bounded. Losing that costs a read, never an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from geokv.core.limits import KEY_BYTES_MAX, MIB
from geokv.errors import StorageError
from geokv.storage.lsm.cache import BlockCache, RowCache
from geokv.storage.lsm.cells import ReaderRun
from geokv.storage.lsm.merging import Stretch
from geokv.storage.tree.tree import Tree
from geokv.storage.tree.values import unseal

ABSENT_BYTES_MAX: Final = MIB
STEP_PAIRS: Final = 256
_EVERY_KEY: Final = ((1 << 64) - 1,)
_ABOVE_ALL: Final = b"\xff" * (KEY_BYTES_MAX + 1)
_ABSENT: Final = b"\0"


@dataclass(frozen=True, slots=True)
class ReaderFacts:
    """What `lsm.cells` asks of a table's facts."""

    version_max: int
    pairs: int
    nbytes: int


class TreeReader:
    """See the module."""

    __slots__ = ("_absent", "_cache", "_tree", "facts", "own", "words")

    def __init__(self, tree: Tree, cache: BlockCache) -> None:
        self._tree = tree
        self._cache = cache
        self._absent = RowCache()
        self._absent.resize(ABSENT_BYTES_MAX)
        self.words: Sequence[int] = _EVERY_KEY
        self.own = tree.facts()
        self.facts = ReaderFacts(self.own.version_max, *tree.figures())

    def get(self, key: bytes) -> bytes | None:
        if key in self._absent:
            return None
        is_known, value = self._tree.peek(key)
        if not is_known:
            self._cache.misses += 1  # which is what lets the cell into the row cache
            (value,) = self._tree.get([key])
        if value is None:
            self._absent.put(key, _ABSENT, 0)
            return None
        return unseal(value, key, self._tree.seed, self._tree.name)

    def is_cached(self, key: bytes) -> bool:
        return key in self._absent or self._tree.peek(key)[0]

    def stretches(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Stretch]:
        """The pairs with start <= key < stop, in order."""
        tree = self._tree
        while some := tree.step(start, stop, STEP_PAIRS):
            keys = [key for key, _ in some]
            cells: list[bytes] = []
            try:
                for key, value in some:
                    cells.append(unseal(value, key, tree.seed, tree.name))
            except StorageError:
                if cells:
                    yield keys[: len(cells)], cells
                raise
            yield keys, cells
            start = keys[-1] + b"\0"


def run_of(reader: TreeReader) -> ReaderRun:
    """What a view of cells shows of a tree."""
    return ReaderRun([_ABOVE_ALL], [reader])
