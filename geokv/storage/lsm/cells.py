"""The cells of one namespace: what a table of the protocol holds.

    get      memtable -> frozen memtables -> row cache -> tables, newest first, those whose filter lets the key pass
    look     the same for many keys, as far as memory answers; the others are named, to be loaded on another thread
    peek     memtable -> frozen memtables: what a replica merges an arriving cell over, without any disk
    update   memtable

What stands there is seen through one view, a value that a flush or a compaction replaces at once. A get that finds
a file gone, because its table was compacted away meanwhile, looks again in the newer view.

Invariants: `get` gives plain bytes, merged over all that is here. `update` and `cells[key] =` take whole cells, already
merged over what `get` gave; `merge_in` takes any, and reads nothing. Threads: one puts, freezes and scans; any may get
and load; the view is replaced by the one that installs.
Not here: durability. What the memtable holds must be in the log, synced.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from typing import Final, NamedTuple, Protocol

from geokv.core.conflict import Merge
from geokv.core.hlc import NO_HLC
from geokv.core.limits import KIB
from geokv.core.partial import Partial, fold
from geokv.errors import StorageError
from geokv.storage.lsm.bloom import SEED, digest
from geokv.storage.lsm.cache import BlockCache, RowCache
from geokv.storage.lsm.memtable import Memtable, empty
from geokv.storage.lsm.merging import Stretch, in_stretches, merged, prefix_end
from geokv.storage.lsm.traits import traits_of
from geokv.storage.position import Position

_SCAN_STEP: Final = 256
# Of cells whose blocks were cached one in so many enters the row cache: hot keys soon do, a wide spread costs little.
_ADMIT_EVERY: Final = 4
_SAMPLED_CELLS: Final = 2_000
_SAMPLED_BYTES: Final = 64 * KIB  # of cells that must be decoded to be measured


class Facts(Protocol):
    """What is asked of the facts of a table."""

    @property
    def version_max(self) -> int: ...

    @property
    def pairs(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class Reader(Protocol):
    """What is asked of a table (`table_reader`), or of a tree in the place of one (`tree.reader`)."""

    @property
    def facts(self) -> Facts: ...

    @property
    def words(self) -> Sequence[int]: ...

    def get(self, key: bytes) -> bytes | None: ...

    def is_cached(self, key: bytes) -> bool: ...

    def stretches(self, start: bytes, stop: bytes | None) -> Iterator[Stretch]: ...


class DeadInMemory(NamedTuple):
    """Tombstones and expiring cells in memtables; `is_estimate`: of the newest ones there.

    `oldest`: an HLC that none of the tombstones is older than, 0 where there are none; `is_dated`: whether it is known.
    """

    cells: int = 0
    is_estimate: bool = False
    oldest: int = 0
    first_deadline_ms: int = 0
    is_dated: bool = True


class ReaderRun(NamedTuple):
    """One run: its tables in key order, and their last keys to find the one of a key."""

    last_keys: list[bytes]
    tables: Sequence[Reader]


class View(NamedTuple):
    """All that stands behind the memtable, newest first. A cell above `ceiling` needs no merging with the tables."""

    frozen: tuple[Memtable, ...] = ()
    runs: tuple[ReaderRun, ...] = ()
    ceiling: bytes = b""


class LsmCells:
    """See the module. Made by `LsmEngine.create`."""

    __slots__ = (
        "_admitted",
        "_blocks",
        "_denied",
        "_hot",
        "_lock",
        "_memtable",
        "_merge",
        "_noticed",
        "_rows",
        "_traits",
        "_view",
        "first_job",
        "has_dictionary",
        "namespace",
        "policy",
    )

    def __init__(
        self,
        namespace: int,
        policy: str,
        blocks: BlockCache,
        first_job: int,
        noticed: Callable[[StorageError], None] = lambda error: None,
    ) -> None:
        """`first_job`: outputs of earlier jobs are of an earlier namespace with this id, and not its own.

        `noticed`: is told, on any thread, of a table that could not be read.
        """
        self._noticed = noticed
        self.namespace = namespace
        self.policy = policy
        self.first_job = first_job
        self.has_dictionary = False  # its tables are to be written with one, from the next job on
        self._traits = traits_of(policy)
        self._merge: Merge = self._traits.merge
        self._blocks = blocks
        self._rows = RowCache()
        self._admitted = 0
        self._memtable = Memtable()
        self._hot = self._memtable.cells
        self._view = View()
        self._denied: tuple[Sequence[ReaderRun], set[bytes]] = ((), set())  # of these runs no table holds these keys
        self._lock = threading.Lock()  # two threads replace the view

    def define(self, policy: str) -> None:
        """From now on cells merge as another policy says. A flush or a compaction that runs has only cells of the old one."""
        traits = traits_of(policy)
        with self._lock:
            self.policy, self._traits, self._merge = policy, traits, traits.merge
            self._view = self._view._replace(ceiling=self._ceiling(self._view.runs))

    def _ceiling(self, runs: tuple[ReaderRun, ...]) -> bytes:
        tables = [table.facts for run in runs for table in run.tables]
        return self._traits.ceiling(max(facts.version_max for facts in tables)) if tables else b""

    # --- the hot path -----------------------------------------------------------------------------------------------

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """The cell. May read one block per run of tables; raises StorageError where that fails."""
        cell = self._hot.get(key)
        if type(cell) is bytes:
            return cell
        found = self._behind(key, cell)
        return default if found is None else found

    def update(self, pairs: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
        """Put cells that are merged over what `get` gave (whole), or over what `peek` gave (Partial where it may lack more)."""
        self._hot.update(pairs)

    def peek(self, key: bytes) -> bytes | None:
        """What the memtables hold of a key, merged; Partial where there may be more. Reads nothing."""
        cell = self._hot.get(key)
        frozen = self._view.frozen
        if type(cell) is bytes or not frozen:
            return cell
        for memtable in frozen:
            older = memtable.cells.get(key)
            if older is not None:
                cell = older if cell is None else fold(self._merge, cell, older)
                if type(cell) is bytes:
                    break
        return cell

    @property
    def ceiling(self) -> bytes:
        """A cell above it is whole, once it is merged over what `peek` gives: no table holds anything to be merged in."""
        return self._view.ceiling

    def may_hold(self, key: bytes) -> bool:
        """Whether some table may hold the key. Reads nothing."""
        return bool(_candidates(self._view.runs, key))

    def __setitem__(self, key: bytes, cell: bytes) -> None:
        self._hot[key] = cell

    def came(self, since: int) -> None:
        """What was put last comes from records with HLCs of at least `since` (0: of one it is not known)."""
        if since < self._memtable.since:
            self._memtable.since = since

    def merge_in(self, key: bytes, cell: bytes) -> None:
        """Merge a cell, whatever older places hold of its key; they are not read."""
        stored = self._hot.get(key)
        if stored is not None:
            merged_cell = bytes(self._merge(stored, cell))
            self._hot[key] = Partial(merged_cell) if type(stored) is Partial else merged_cell
        else:
            self._hot[key] = Partial(cell) if self._view.frozen or self._view.runs else cell

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: bytes) -> bytes:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def keys(self) -> Iterator[bytes]:
        return (key for key, _ in self.scan())

    __iter__ = keys

    def __len__(self) -> int:
        """Pairs in all places: a key that stands in several counts as often. For status."""
        view = self._view
        frozen = sum(len(memtable.cells) for memtable in view.frozen)
        return len(self._hot) + frozen + sum(table.facts.pairs for run in view.runs for table in run.tables)

    # --- behind the memtable ----------------------------------------------------------------------------------------

    def _behind(self, key: bytes, cell: bytes | None) -> bytes | None:
        """The cell, given what the memtable holds of it: nothing or a Partial."""
        view = self._view
        for memtable in view.frozen:
            older = memtable.cells.get(key)
            if older is not None:
                cell = older if cell is None else fold(self._merge, cell, older)
                if type(cell) is bytes:
                    return cell
        if view.runs and (cell is None or cell <= view.ceiling):
            # What is asked for has often just been looked at by `missing`: then no filter is asked again.
            runs, denied = self._denied
            if key in denied and runs is view.runs:
                return None if cell is None else bytes(cell)
            older = self._rows.get(key)
            if older is None:
                older = self._from_tables(key)
            if older is not None:
                return older if cell is None else bytes(self._merge(cell, older))
        return None if cell is None else bytes(cell)

    def _from_tables(self, key: bytes) -> bytes | None:
        """What all tables together hold of a key."""
        while True:
            generation, misses = self._rows.generation, self._blocks.misses
            view = self._view
            try:
                cell = self._search(view.runs, key)
            except StorageError as error:
                if view.runs is self._view.runs:
                    self._noticed(error)
                    raise
                continue  # its tables were replaced, and their files removed
            if cell is None:
                return None
            whole = bytes(cell)
            self._admitted += 1
            if self._blocks.misses != misses or not self._admitted % _ADMIT_EVERY:
                self._rows.put(key, whole, generation)
            return whole

    def _search(self, runs: Iterable[ReaderRun], key: bytes) -> bytes | None:
        # The filter is looked at in place: most gets of absent keys end there, once per run.
        a, b = digest(key, SEED)
        first = 1 << (b & 63) | 1 << (b >> 6 & 63) | 1 << (b >> 12 & 63)
        found: bytes | None = None
        for last_keys, tables in runs:
            if len(tables) == 1:
                table = tables[0]
            else:
                index = bisect_left(last_keys, key)
                if index == len(tables):
                    continue
                table = tables[index]
            words = table.words
            if words[a % len(words)] & first != first:
                continue
            second = 1 << (a >> 46 & 63) | 1 << (a >> 52 & 63) | 1 << (a >> 58)
            if words[(b >> 32) % len(words)] & second != second:
                continue
            cell = table.get(key)
            if cell is not None:
                found = cell if found is None else fold(self._merge, found, cell)
                if type(found) is bytes:
                    return found
        return found

    # --- without waiting for the disk -------------------------------------------------------------------------------

    def look(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], list[bytes]]:
        """(what `get` gives for each key, the keys for which it would read the disk, None among the first)."""
        hot = self._hot
        found = [hot.get(key) for key in keys]
        view = self._view
        if not view.runs and not view.frozen:
            return found, []
        missing: list[bytes] = []
        for index, key in enumerate(keys):
            if type(found[index]) is bytes:
                continue
            if self._is_in_memory(key):
                found[index] = self._behind(key, found[index])
            else:
                missing.append(key)
        return found, missing

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """The keys whose `get` would read the disk now."""
        runs = self._view.runs
        if not runs:
            return []
        denied: set[bytes] = set()
        missing = [key for key in keys if not self._is_in_memory(key, denied)]
        self._denied = (runs, denied)
        return missing

    def load(self, keys: Iterable[bytes]) -> None:
        """Read what `get` of these keys needs into the caches; for another thread. Raises StorageError."""
        for key in keys:
            # Somebody else may have wanted it, and put or loaded it meanwhile. The filters are not asked for that.
            if key not in self._rows and type(self.peek(key)) is not bytes:
                self._from_tables(key)

    def _is_in_memory(self, key: bytes, denied: set[bytes] | None = None) -> bool:
        """`denied`: takes the key where all filters deny it."""
        cell = self.peek(key)
        view = self._view
        if type(cell) is bytes or (cell is not None and cell > view.ceiling) or key in self._rows:
            return True
        tables = _candidates(view.runs, key)
        if not tables and denied is not None:
            denied.add(key)
        return all(table.is_cached(key) for table in tables)

    # --- scans ------------------------------------------------------------------------------------------------------

    def scan(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop, in key order; what is put meanwhile may be seen or not."""
        # In steps, each looked up anew, so that puts, flushes and compactions may go on in between.
        while True:
            view = self._view
            try:
                keys, cells = self._step(view, start, stop)
            except StorageError as error:
                if view.runs is self._view.runs:
                    self._noticed(error)
                    raise
                continue  # its tables were replaced, and their files removed
            yield from zip(keys, map(bytes, cells), strict=True)
            if len(keys) < _SCAN_STEP:
                return
            start = keys[-1] + b"\0"

    def scan_prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key begins with `prefix`, in key order."""
        return self.scan(prefix, prefix_end(prefix))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return self.scan()

    def _step(self, view: View, start: bytes, stop: bytes | None) -> Stretch:
        """The first pairs of that range, some more than _SCAN_STEP; fewer where it ends."""
        memtables = [in_stretches(memtable.pairs(start, stop)) for memtable in (self._memtable, *view.frozen)]
        runs = [chain.from_iterable(table.stretches(start, stop) for table in _tables_from(run, start)) for run in view.runs]
        keys: list[bytes] = []
        cells: list[bytes] = []
        for more_keys, more_cells in merged([*memtables, *runs], self._merge):
            keys += more_keys
            cells += more_cells
            if len(keys) >= _SCAN_STEP:
                break
        return keys, cells

    # --- flush and compaction ---------------------------------------------------------------------------------------

    def freeze(self, until: Position) -> None:
        """Begin a new memtable; the old one is read until what it holds is in tables."""
        self._memtable.until = until
        with self._lock:
            if self._hot:
                self._view = self._view._replace(frozen=(self._memtable, *self._view.frozen))
        # Behind the change of the view, so that a get of another thread finds what was put in one of the two.
        self._memtable = Memtable()
        self._hot = self._memtable.cells

    def show(self, runs: tuple[ReaderRun, ...], flushed: Position, has_collected: bool) -> None:
        """Let these tables stand, in which everything up to `flushed` is."""
        done = [memtable for memtable in self._view.frozen if memtable.until <= flushed]
        self._rows.close(None if has_collected else [memtable.cells for memtable in done])
        with self._lock:  # the policy may be changed on the other thread
            self._view = View(tuple(one for one in self._view.frozen if one.until > flushed), runs, self._ceiling(runs))
        self._rows.open()
        empty(done)

    def bound_rows(self, bytes_max: int) -> None:
        """Give the row cache another size."""
        self._rows.resize(bytes_max)

    @property
    def memtable_pairs(self) -> int:
        return len(self._hot) + sum(len(memtable.cells) for memtable in self._view.frozen)

    def dead_in_memory(self) -> DeadInMemory:
        """What waits in memtables. Looks at some of the newest cells. For the thread that puts."""
        looks = [self._look_at(memtable) for memtable in (self._memtable, *self._view.frozen)]
        return DeadInMemory(
            sum(one.cells for one in looks),
            any(one.is_estimate for one in looks),
            min((one.oldest for one in looks if one.oldest), default=0),
            min((one.first_deadline_ms for one in looks if one.first_deadline_ms), default=0),
            all(one.is_dated for one in looks),
        )

    def _look_at(self, memtable: Memtable) -> DeadInMemory:
        cells, traits = memtable.cells, self._traits
        newest = self._sample(cells)
        if not newest:
            return DeadInMemory()
        found = traits.measure(newest)
        count = found.tombstones + found.deadlines
        is_sample = len(cells) > len(newest)
        if not (count or is_sample) and memtable is self._memtable:
            memtable.since = NO_HLC  # what will wait here is yet to come
        if is_sample:
            count = count * len(cells) // len(newest)
        elif not found.tombstones or traits.waits is None:
            return DeadInMemory(count, False, found.oldest, found.first_deadline_ms)
        oldest = memtable.since if memtable.since < NO_HLC else 0
        return DeadInMemory(count, is_sample, oldest, found.first_deadline_ms, oldest > 0)

    def _sample(self, cells: dict[bytes, bytes]) -> list[bytes]:
        """Some of the newest cells of a memtable, one at least: no more than are measured in a moment."""
        newest = [cells[key] for key in islice(reversed(cells), _SAMPLED_CELLS)]
        if self._traits.is_quick:
            return newest
        ends = accumulate(map(len, newest))
        return newest[: max(1, sum(end <= _SAMPLED_BYTES for end in ends))]

    @property
    def frozen(self) -> int:
        """Memtables that wait for their flush."""
        return len(self._view.frozen)

    @property
    def has_tables(self) -> bool:
        return bool(self._view.runs)

    def total_bytes(self) -> int:
        """Bytes of keys and cells in memory and of the blocks of all tables. Walks the memtable: for status."""
        view = self._view
        memory = [self._hot, *(memtable.cells for memtable in view.frozen)]
        held = sum(sum(map(len, cells)) + sum(map(len, cells.values())) for cells in memory)
        return held + sum(table.facts.nbytes for run in view.runs for table in run.tables)


def _candidates(runs: Iterable[ReaderRun], key: bytes) -> list[Reader]:
    """The tables whose filter lets a key pass; at most one of each run."""
    a, b = digest(key, SEED)
    first = 1 << (b & 63) | 1 << (b >> 6 & 63) | 1 << (b >> 12 & 63)
    second = 1 << (a >> 46 & 63) | 1 << (a >> 52 & 63) | 1 << (a >> 58)
    found: list[Reader] = []
    for last_keys, tables in runs:
        index = bisect_left(last_keys, key)
        if index == len(tables):
            continue
        words = tables[index].words
        count = len(words)
        if words[a % count] & first == first and words[(b >> 32) % count] & second == second:
            found.append(tables[index])
    return found


def _tables_from(run: ReaderRun, start: bytes) -> Sequence[Reader]:
    return run.tables[bisect_left(run.last_keys, start) :]
