"""A tree in LMDB: a B+tree that several processes map into their memory. The worker writes, the node reads.

    data.mdb    two trees: `cells`, and `facts` with one record
    lock.mdb    who writes and who reads; of no use once nobody has it open

A transaction that is committed has its pages synced, its root perhaps not: a power cut may undo the last one, never more,
and `settle` syncs. A process that dies in the midst of one leaves what stood before it.

The map, a range of addresses, bounds how far the file may grow. The writer doubles it as needed, up to a limit; readers of
other processes then find theirs too small and take the new size over, for which no transaction of the process may be open:
so each read is short, and under a lock.

Invariants: a key is at most LMDB_KEY_BYTES_MAX long. No transaction outlives a call. Not here: checksums (`values`).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb

from geokv.core.limits import LMDB_KEY_BYTES_MAX, MIB
from geokv.errors import DiskFull, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import storage_error, sync_folder
from geokv.storage.tree.tree import Change, TreeOptions, TreePlace, make_folder, sync_files
from geokv.storage.tree.values import TreeFacts, decode_facts, encode_facts, seed_of

FILE: Final = "data.mdb"
_FACTS: Final = b"facts"
_COMPACTED: Final = "compacted"
_DAMAGE: Final = tuple(
    getattr(lmdb, name) for name in ("CorruptedError", "PageNotFoundError", "InvalidError", "VersionMismatchError")
)
_T = TypeVar("_T")


class LmdbTree:
    """See the module and `tree.Tree`. A process opens each tree once."""

    def __init__(self, root: Path, place: TreePlace, options: TreeOptions, is_read_only: bool) -> None:
        self.place = place
        self.name = f"{place.path}/{FILE}"
        self.seed = seed_of(place.namespace)
        self._options = options
        self._is_read_only = is_read_only
        self._folder = root / place.path if is_read_only else make_folder(root, place)
        self._lock = threading.Lock()
        self._environment: Any = None
        self._open()

    def _open(self) -> None:
        is_new = not (self._folder / FILE).exists()
        if is_new and self._is_read_only:
            raise StorageError(f"{self.name} is not there. {WHAT_TO_DO}", path=self.name)

        def opened() -> None:
            self._environment = lmdb.open(
                str(self._folder),
                map_size=self._map_bytes(),
                max_dbs=2,
                readonly=self._is_read_only,
                lock=not self._is_read_only,
                metasync=False,
                readahead=False,  # keys are hashed to nodes, not to neighbours
                mode=0o640,
            )
            if not self._is_read_only:
                self._environment.reader_check()  # places of processes that died
            self._cells, self._own = [
                self._environment.open_db(name, create=not self._is_read_only) for name in (b"cells", b"facts")
            ]
            if is_new:
                self._environment.sync(True)
                sync_folder(self._folder)

        self._translated(opened)

    def _map_bytes(self) -> int:
        """Twice what the file holds, in steps that double."""
        path = self._folder / FILE
        size, wanted = self._options.map_bytes_min, 2 * path.stat().st_size if path.exists() else 0
        while size < min(wanted, self._options.map_bytes_max):
            size *= 2
        return size

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        def got(transaction: Any) -> list[bytes | None]:
            return [transaction.get(key) if 0 < len(key) <= LMDB_KEY_BYTES_MAX else None for key in keys]

        return self._read(got)

    def peek(self, key: bytes) -> tuple[bool, bytes | None]:
        """Never known: whether the system has a page in its memory cannot be asked."""
        return False, None

    def step(self, start: bytes, stop: bytes | None, count: int) -> list[tuple[bytes, bytes]]:
        def pairs(transaction: Any) -> list[tuple[bytes, bytes]]:
            cursor = transaction.cursor()
            if not (cursor.set_range(start[:LMDB_KEY_BYTES_MAX]) if start else cursor.first()):
                return []
            found: list[tuple[bytes, bytes]] = []
            for key, value in islice(cursor, count + 1):  # one more, as `start` may be longer than a key can be
                if len(found) == count or (stop is not None and key >= stop):
                    break
                if key >= start:
                    found.append((key, value))
            return found

        return self._read(pairs)

    def facts(self) -> TreeFacts:
        raw: bytes | None = self._read(lambda transaction: transaction.get(_FACTS, db=self._own))
        return decode_facts(raw, self.seed, self.name)

    def figures(self) -> tuple[int, int]:
        pairs = self.stated_pairs()
        try:
            return pairs, (self._folder / FILE).stat().st_size
        except OSError as error:
            raise storage_error(error, "looking at", self.name) from error

    def stated_pairs(self) -> int:
        return self._read(lambda transaction: int(transaction.stat(self._cells)["entries"]))

    def debt_bytes(self) -> int:
        """None: pages are used again as they come free."""
        return 0

    def _read(self, read: Callable[[Any], _T]) -> _T:
        with self._lock:
            return self._translated(lambda: self._transact(read, is_writing=False))

    # --- writing ----------------------------------------------------------------------------------------------------

    def change(self, keys: Sequence[bytes], changed: Change) -> None:
        def write(transaction: Any) -> None:
            for key in keys:
                value = changed(key, transaction.get(key))
                if value:
                    transaction.put(key, value)
                elif value is not None:
                    transaction.delete(key)

        self._write(write)

    def settle(self, facts: TreeFacts) -> None:
        packed = encode_facts(facts, self.seed)
        self._write(lambda transaction: transaction.put(_FACTS, packed, db=self._own))
        with self._lock:
            self._translated(lambda: self._environment.sync(True))

    def _write(self, write: Callable[[Any], Any]) -> None:
        with self._lock:
            while True:
                try:
                    self._translated(lambda: self._transact(write, is_writing=True))
                    return
                except _MapFull:
                    self._grow()

    def _grow(self) -> None:
        size = self._environment.info()["map_size"]
        if size * 2 > self._options.map_bytes_max:
            raise DiskFull(
                f"{self.name} may not grow beyond {size // MIB} MiB: delete what is not needed, or move its keys to a "
                'namespace with engine "lsm"',
                path=self.name,
            )
        self._translated(lambda: self._environment.set_mapsize(size * 2))

    # --- both -------------------------------------------------------------------------------------------------------

    def _transact(self, act: Callable[[Any], _T], is_writing: bool) -> _T:
        if self._environment is None:
            raise StorageError(f"{self.name} was closed", path=self.name)
        try:
            with self._environment.begin(db=self._cells, write=is_writing) as transaction:
                return act(transaction)
        except lmdb.MapResizedError:  # the worker has let it grow
            self._environment.set_mapsize(0)
        with self._environment.begin(db=self._cells, write=is_writing) as transaction:
            return act(transaction)

    def _translated(self, act: Callable[[], _T]) -> _T:
        """What `act` gives; its errors are this tree's."""
        try:
            return act()
        except lmdb.MapFullError as error:
            raise _MapFull(f"{self.name} is as large as its map", path=self.name) from error
        except lmdb.DiskError as error:
            raise storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "writing", self._folder / FILE) from error
        except _DAMAGE as error:
            raise StorageError(f"{self.name}: damaged: {error}. {WHAT_TO_DO}", path=self.name) from error
        except lmdb.Error as error:
            raise StorageError(f"{self._folder / FILE} failed: {error}", path=self.name) from error
        except OSError as error:
            raise storage_error(error, "opening", self._folder) from error

    def copy_to(self, folder: Path) -> None:
        """Without its free pages. Reads go on meanwhile; no job may run."""
        self.figures()  # takes over the size of the map, which must not change meanwhile
        environment = self._environment

        def copied() -> None:
            folder.mkdir(parents=True, mode=0o750)
            environment.copy(str(folder), compact=True)
            sync_files(folder)

        self._translated(copied)

    def compact(self) -> None:
        spare = self._folder / _COMPACTED

        def switched() -> None:
            if spare.exists():
                for path in spare.iterdir():
                    path.unlink()
                spare.rmdir()
            self.copy_to(spare)
            self.close()
            (spare / FILE).replace(self._folder / FILE)
            spare.rmdir()
            sync_folder(self._folder)

        self._translated(switched)
        self._open()

    def close(self) -> None:
        with self._lock:
            environment, self._environment = self._environment, None
            if environment is not None:
                environment.close()


class _MapFull(DiskFull):
    """The map is too small, which can be helped."""
