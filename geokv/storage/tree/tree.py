"""A tree: the cells of one namespace in a store of another's making, and what is asked of such a store.

    get      some keys                    step     some pairs in order
    change   some keys, atomically        settle   durable, and says up to which place of the log

Invariants: `change` is all or nothing; what was changed is durable once `settle` has returned, in the order in which it was
changed. A tree's folder has the name of its engine and namespace. Every failure is a StorageError that names the path.
Not here: what is put (`merging`), who reads (`reader`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from geokv.core.limits import MIB
from geokv.core.namespace import LMDB, ROCKSDB
from geokv.errors import StorageError
from geokv.storage.disk import storage_error, sync_folder
from geokv.storage.engines import KINDS
from geokv.storage.tree.values import TreeFacts

Change = Callable[[bytes, bytes | None], bytes | None]
"""(key, the value that stands) -> the value that shall stand; None: leave it; empty: remove it. May be asked twice."""
FOLDERS: Final = tuple(name for name, kind in KINDS.items() if kind.is_tree)
_NAME: Final = re.compile(r"[0-9a-f]{16}")
_GONE: Final = ".gone"
_REMOVING: Final = ".removing"


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """Sizes in bytes. `cache_bytes`: rows that are kept in memory, of all trees of a node together; `block_cache_bytes`: blocks
    of all RocksDBs together.

    `map_bytes_max`: how large one LMDB may grow; its address space begins with `map_bytes_min` and doubles.
    """

    cache_bytes: int = 32 * MIB
    block_cache_bytes: int = 32 * MIB
    write_buffer_bytes: int = 16 * MIB
    map_bytes_min: int = 256 * MIB
    map_bytes_max: int = 1024 * 1024 * MIB


class TreePlace(NamedTuple):
    """Which tree: its engine, and its namespace."""

    engine: str
    namespace: int

    @property
    def path(self) -> str:
        return f"{self.engine}/{self.namespace:016x}"


class Tree(Protocol):
    """See the module. Any thread may call anything; one at a time changes."""

    place: TreePlace
    name: str
    seed: int

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values, as they stand."""

    def peek(self, key: bytes) -> tuple[bool, bytes | None]:
        """(whether it is known without the disk, then the value)."""

    def step(self, start: bytes, stop: bytes | None, count: int) -> list[tuple[bytes, bytes]]:
        """The first pairs of key and value with start <= key < stop, at most so many."""

    def change(self, keys: Sequence[bytes], changed: Change) -> None: ...

    def facts(self) -> TreeFacts: ...

    def settle(self, facts: TreeFacts) -> None:
        """Make all changes durable, and let these facts stand."""

    def figures(self) -> tuple[int, int]:
        """(pairs, bytes on the disk), about."""

    def stated_pairs(self) -> int | None:
        """How many pairs it says that it has; None where it does not know exactly."""

    def debt_bytes(self) -> int:
        """What its own compaction is behind by."""

    def compact(self) -> None:
        """Make it as small as it can be; nobody else may have it open."""

    def copy_to(self, folder: Path) -> None:
        """A copy of this moment, durable, in a folder that is not there yet."""

    def close(self) -> None: ...


def open_tree(root: Path, place: TreePlace, options: TreeOptions | None = None, is_read_only: bool = False) -> Tree:
    """The tree, made where it is not there yet. Raises StorageError. `is_read_only`: nothing in the folder is changed."""
    chosen = options or TreeOptions()
    if place.engine == LMDB:
        from geokv.storage.tree.lmdb_tree import LmdbTree

        return LmdbTree(root, place, chosen, is_read_only)
    assert place.engine == ROCKSDB, place
    try:
        from geokv.storage.tree.rocks_tree import RocksTree
    except ImportError as error:
        install = KINDS[ROCKSDB].install
        raise StorageError(f"{place.path} cannot be opened: rocksdict is not installed ({install})", path=place.path) from error
    return RocksTree(root, place, chosen, is_read_only)


# --- folders --------------------------------------------------------------------------------------------------------


def is_there(root: Path, place: TreePlace) -> bool:
    return (root / place.path).is_dir()


def places(root: Path) -> Iterator[TreePlace]:
    """The trees that have a folder."""
    for engine in FOLDERS:
        if (root / engine).is_dir():
            for path in sorted((root / engine).iterdir()):
                if path.is_dir() and _NAME.fullmatch(path.name):
                    yield TreePlace(engine, int(path.name, 16))


def make_folder(root: Path, place: TreePlace) -> Path:
    """The folder of a tree, durable. Raises StorageError."""
    path = root / place.path
    try:
        for folder in (path.parent, path):
            if not folder.is_dir():
                folder.mkdir(mode=0o750)
                sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(error, "making", path) from error
    return path


def sync_files(folder: Path) -> None:
    """Make a folder durable with all that is in it. Raises OSError."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
    sync_folder(folder.parent)


# --- trees of deleted namespaces ------------------------------------------------------------------------------------
# Until a flush has put a state of the node beside the cells that knows of the deletion, a restart begins with a namespace
# whose tree is gone. The mark says that this is no loss. A tree is whole or gone: half of one could not be told from damage.


def remove_tree(root: Path, place: TreePlace) -> None:
    """Remove a tree's folder, leaving the mark; or go on where that was broken off. Raises StorageError."""
    path = root / place.path
    doomed = path.with_suffix(_REMOVING)
    try:
        if doomed.is_dir():
            sync_folder(path.parent)
            shutil.rmtree(doomed)
        if path.is_dir():
            path.with_suffix(_GONE).touch(mode=0o640)
            sync_folder(path.parent)
            path.rename(doomed)
            sync_folder(path.parent)
            shutil.rmtree(doomed)
    except OSError as error:
        raise storage_error(error, "removing", path) from error


def finish_removals(root: Path) -> None:
    """Remove what is left of trees whose removal was broken off. What cannot be removed stays for the next start."""
    for engine in FOLDERS:
        for path in (root / engine).glob(f"*{_REMOVING}"):
            if _NAME.fullmatch(path.stem):
                with suppress(OSError):
                    sync_folder(path.parent)
                    shutil.rmtree(path)


def marks(root: Path) -> set[TreePlace]:
    """The trees that were removed on purpose, and are still known to the node's flushed state."""
    found = set()
    for engine in FOLDERS:
        for path in (root / engine).glob(f"*{_GONE}"):
            if _NAME.fullmatch(path.stem):
                found.add(TreePlace(engine, int(path.stem, 16)))
    return found


def remove_mark(root: Path, place: TreePlace) -> None:
    (root / place.path).with_suffix(_GONE).unlink(missing_ok=True)
