"""A tree in RocksDB: without its log, since the node's is the log. One process has it open: the node itself.

    c + key    the value of a key
    f          the facts

What is changed stands in RocksDB's memory until `settle` flushes it, in order. RocksDB merges its files by itself, on
threads of its own which hold no interpreter lock.

After a write that failed RocksDB may take no more until it is opened anew: so it is. What it then lacks is merged again.

Invariants: nothing is durable before `settle`. Not here: checksums of values (`values`); the blocks have their own.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

from geokv.core.limits import MIB
from geokv.errors import DiskFull, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import storage_error
from geokv.storage.tree.tree import Change, TreeOptions, TreePlace, make_folder, sync_files
from geokv.storage.tree.values import TreeFacts, decode_facts, encode_facts, seed_of

rocksdict: Any = import_module("rocksdict")  # its stubs are not what it does
FILE: Final = "CURRENT"  # there once it was opened
_CELL: Final = b"c"
_FACTS: Final = b"f"
_FILTER_BITS: Final = 10
_JOBS: Final = 2
_OPEN_FILES_MAX: Final = 64
_T = TypeVar("_T")


@lru_cache(maxsize=1)
def _cache_of(nbytes: int) -> Any:
    """The one block cache of all RocksDBs of this process."""
    return rocksdict.Cache(nbytes)


class RocksTree:
    """See the module and `tree.Tree`."""

    def __init__(self, root: Path, place: TreePlace, options: TreeOptions, is_read_only: bool) -> None:
        self.place = place
        self.name = place.path
        self.seed = seed_of(place.namespace)
        self._options = options
        self._is_read_only = is_read_only
        self._folder = root / place.path if is_read_only else make_folder(root, place)
        self._lock = threading.Lock()  # of those that change
        self._unlogged = rocksdict.WriteOptions()
        self._unlogged.disable_wal = True
        self._store: Any = None
        self._open()

    def _open(self) -> None:
        if self._is_read_only and not (self._folder / FILE).exists():
            raise StorageError(f"{self.name}/{FILE} is not there. {WHAT_TO_DO}", path=f"{self.name}/{FILE}")
        access = rocksdict.AccessType.read_only() if self._is_read_only else rocksdict.AccessType.read_write()
        self._store = self._translated(
            "opening", lambda: rocksdict.Rdict(str(self._folder), self._rocks_options(), access_type=access)
        )

    def _rocks_options(self) -> Any:
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_bloom_filter(_FILTER_BITS, False)
        blocks.set_block_cache(_cache_of(self._options.block_cache_bytes))
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(not self._is_read_only)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_size(self._options.write_buffer_bytes)
        options.set_max_background_jobs(_JOBS)
        options.set_max_open_files(_OPEN_FILES_MAX)
        options.set_keep_log_file_num(2)  # what RocksDB tells of itself
        options.set_max_log_file_size(MIB)
        return options

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        wanted = [_CELL + key for key in keys]
        found: list[bytes | None] = self._translated("reading", lambda: self._opened().get(wanted))
        return found

    def peek(self, key: bytes) -> tuple[bool, bytes | None]:
        """From the filters, the block cache and the memtables of RocksDB."""
        try:
            may_exist, value = self._translated("reading", lambda: self._opened().key_may_exist(_CELL + key, fetch=True))
        except StorageError:
            return False, None  # whoever loads it hears why
        return not may_exist or value is not None, value

    def step(self, start: bytes, stop: bytes | None, count: int) -> list[tuple[bytes, bytes]]:
        def pairs() -> list[tuple[bytes, bytes]]:
            found: list[tuple[bytes, bytes]] = []
            places = self._opened().iter()
            places.seek(_CELL + start)
            while len(found) < count:
                if not places.valid():
                    places.status()  # raises where it is not the end, but damage, that it came to
                    break
                key = places.key()
                if key[:1] != _CELL or (stop is not None and key[1:] >= stop):
                    break
                found.append((key[1:], places.value()))
                places.next()
            return found

        return self._translated("reading", pairs)

    def facts(self) -> TreeFacts:
        raw: bytes | None = self._translated("reading", lambda: self._opened().get(_FACTS))
        return decode_facts(raw, self.seed, self.name)

    def figures(self) -> tuple[int, int]:
        pairs = self._property("rocksdb.estimate-num-keys")
        return max(0, pairs - 1), self._property("rocksdb.total-sst-files-size")

    def stated_pairs(self) -> None:
        return None

    def debt_bytes(self) -> int:
        return self._property("rocksdb.estimate-pending-compaction-bytes")

    def _property(self, name: str) -> int:
        try:
            return self._translated("reading", lambda: self._opened().property_int_value(name) or 0)
        except StorageError:
            return 0  # while it is opened anew

    # --- writing ----------------------------------------------------------------------------------------------------

    def change(self, keys: Sequence[bytes], changed: Change) -> None:
        with self._lock:
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key, held in zip(keys, self.get(keys), strict=True):
                value = changed(key, held)
                if value:
                    batch.put(_CELL + key, value)
                elif value is not None:
                    batch.delete(_CELL + key)
            if len(batch):
                self._write(lambda: self._opened().write(batch, self._unlogged))

    def settle(self, facts: TreeFacts) -> None:
        packed = encode_facts(facts, self.seed)

        def flushed() -> None:
            store = self._opened()
            store.put(_FACTS, packed, self._unlogged)
            store.flush(True)

        with self._lock:
            self._write(flushed)

    def _write(self, act: Callable[[], None]) -> None:
        try:
            self._translated("writing", act)
        except StorageError:
            self.close()
            self._open()
            raise

    def copy_to(self, folder: Path) -> None:
        """With hard links, where it is on the same file system."""

        def copied() -> None:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            rocksdict.Checkpoint(self._opened()).create_checkpoint(str(folder))
            shutil.copyfile(self._folder / "rocksdict-config.json", folder / "rocksdict-config.json")
            sync_files(folder)

        self._translated("copying", copied)

    def compact(self) -> None:
        self._translated("compacting", lambda: self._opened().compact_range(None, None))

    # --- both -------------------------------------------------------------------------------------------------------

    def _opened(self) -> Any:
        store = self._store
        if store is None:
            raise StorageError(f"{self.name} was closed", path=self.name)
        return store

    def _translated(self, doing: str, act: Callable[[], _T]) -> _T:
        """What `act` gives; its errors are this tree's."""
        try:
            return act()
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(error, doing, self._folder) from error
        except Exception as error:  # rocksdict has no class of its own for what RocksDB says
            text = str(error)
            if "No space left" in text:
                raise DiskFull(f"no room left while {doing} {self._folder}: {text}; free some space", path=self.name) from error
            if text.startswith("Corruption"):
                raise StorageError(f"{self.name}: damaged: {text}. {WHAT_TO_DO}", path=self.name) from error
            raise StorageError(f"{doing} {self._folder} failed: {text}", path=self.name) from error

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with suppress(StorageError):  # what it cannot flush is merged again: nothing of it was settled
                self._translated("closing", store.close)
