"""The engine of a real node: `lsm`, and beside it a tree for each namespace that chose `lmdb` or `rocksdb`.

    begin_flush   freezes all memtables at one position; one job for tables and trees
    install       trees durable  ->  manifest of `lsm`, which moves the position  ->  new views, for all

The manifest of `lsm` is the one place that says where recovery begins. Trees are made durable before it moves: after a
crash in between they hold what is merged once more. So a tree may be ahead of the manifest and never behind it: `restored`
refuses one that is.

A namespace that is deleted loses its tree with the next job, and its space comes back. A node whose namespaces are all of
`lsm` has here nothing but a passage.

Invariants: those of `storage.engine` and of `lsm.engine`. Not here: how cells get into a tree (`tree.merging`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from geokv.core.namespace import LSM
from geokv.errors import InvalidRequest, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import RealDisk
from geokv.storage.engine import Held
from geokv.storage.engines import check_held
from geokv.storage.lsm.cells import LsmCells
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.facts import DamagedTable, TableFacts
from geokv.storage.lsm.manifest import State
from geokv.storage.node_jobs import FlushedTree, NodeFlush, Removal, TreeCollection, do, do_own
from geokv.storage.position import Position
from geokv.storage.tree.merging import load_into
from geokv.storage.tree.reader import TreeReader, run_of
from geokv.storage.tree.tree import (
    Tree,
    TreeOptions,
    TreePlace,
    finish_removals,
    is_there,
    marks,
    open_tree,
    places,
    remove_mark,
    remove_tree,
)

WALK_MS_MIN: Final = 60_000  # between two walks over a tree for dead cells, by the clock of their rules
WALK_MS_MAX: Final = 3_600_000
WALK_SHARE: Final = 20  # a walk is due sooner when one cell in so many may be dead
_NOWHERE: Final = Position()


@dataclass(slots=True)
class _Space:
    """A namespace with a tree; that is None until its first flush has made it."""

    place: TreePlace
    cells: LsmCells
    tree: Tree | None = None
    reader: TreeReader | None = None

    @property
    def flushed(self) -> FlushedTree:
        return FlushedTree(self.place, self.cells.policy)


class NodeEngine:
    """See the module. Opens what is there; raises StorageError where that is damaged. Close it before it is opened anew."""

    def __init__(
        self,
        disk: RealDisk,
        options: LsmOptions | None = None,
        trees: TreeOptions | None = None,
        is_encrypted: bool = False,
    ) -> None:
        chosen = options or LsmOptions()
        self.lsm = LsmEngine(disk, chosen)
        self._disk = disk
        self._root: Path = disk.root
        half = chosen.block_cache_bytes // 2
        self._options = trees or TreeOptions(cache_bytes=half, block_cache_bytes=half)
        self._is_encrypted = is_encrypted
        self._spaces: dict[int, _Space] = {}
        self._doomed: dict[TreePlace, Tree | None] = {}  # deleted, and still there
        finish_removals(self._root)
        self._marks = marks(self._root)
        self._has_looked = False  # for trees that belong to nobody
        self._lock = threading.Lock()  # spaces, doomed and marks, for moments

    def close(self) -> None:
        """Let go of all trees. Idempotent."""
        with self._lock:
            open_trees = [space.tree for space in self._spaces.values()] + list(self._doomed.values())
        for tree in open_trees:
            if tree is not None:
                tree.close()

    # --- what recovery needs ----------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        return self.lsm.position

    @property
    def meta(self) -> bytes:
        return self.lsm.meta

    def restored(self) -> None:
        """All namespaces of the flushed state were created. Raises StorageError where the tree of one is lost or older."""
        for space in self._spaces.values():
            path = space.place.path
            if space.tree is not None:
                behind = space.tree.facts().position
                if behind < self.position:
                    raise StorageError(
                        f"{path} holds what the log held up to byte {behind.offset} of segment {behind.segment}, and should"
                        f" up to byte {self.position.offset} of segment {self.position.segment}: it is an older copy."
                        f" {WHAT_TO_DO}",
                        path=path,
                    )
            elif space.place not in self._marks:
                raise StorageError(f"{path} is missing. {WHAT_TO_DO}", path=path)

    @property
    def wants_compaction(self) -> bool:
        return self.lsm.wants_compaction

    # --- namespaces -------------------------------------------------------------------------------------------------

    def check_holds(self, engine: str) -> None:
        check_held(engine, has_files=True, is_encrypted=self._is_encrypted)

    def create(self, namespace: int, policy: str = "lww", engine: str = LSM) -> LsmCells:
        """The cells of a namespace, with what was flushed of it. Raises InvalidRequest where it cannot be kept here."""
        if engine == LSM:
            return self.lsm.create(namespace, policy)
        space = self._spaces.get(namespace)
        if space is not None:
            return space.cells
        place = TreePlace(engine, namespace)
        try:
            self.check_holds(engine)
        except InvalidRequest as error:
            if is_there(self._root, place):  # what it holds was acknowledged: nobody goes on without it
                raise StorageError(f"{place.path} is there and cannot be used: {error}", path=place.path) from error
            raise
        space = _Space(place, LsmCells(namespace, policy, self.lsm.cache, 0))
        with self._lock:
            space.tree = self._doomed.pop(place, None)
        if space.tree is None and is_there(self._root, place):
            space.tree = open_tree(self._root, place, self._options)
        self._show(space, has_collected=False)
        with self._lock:
            self._spaces[namespace] = space
            self._share_rows()
        return space.cells

    def set_dictionary(self, namespace: int, is_on: bool) -> None:
        self.lsm.set_dictionary(namespace, is_on)

    def define(self, namespace: int, policy: str) -> None:
        space = self._spaces.get(namespace)
        if space is None:
            self.lsm.define(namespace, policy)
        else:
            space.cells.define(policy)

    def drop(self, namespace: int) -> None:
        """Forget a namespace. What it has on the disk goes with one of the next jobs."""
        with self._lock:
            space = self._spaces.pop(namespace, None)
            if space is not None:
                self._doomed[space.place] = space.tree
                self._share_rows()
        self.lsm.drop(namespace)

    def _share_rows(self) -> None:
        for space in self._spaces.values():
            space.cells.bound_rows(self._options.cache_bytes // len(self._spaces))

    def table(self, namespace: int) -> LsmCells:
        """KeyError where there is none."""
        space = self._spaces.get(namespace)
        return self.lsm.table(namespace) if space is None else space.cells

    def namespaces(self) -> Iterable[int]:
        return (*self.lsm.namespaces(), *self._spaces)

    # --- figures ----------------------------------------------------------------------------------------------------

    def debt_bytes(self) -> int:
        return self.lsm.debt_bytes() + sum(tree.debt_bytes() for tree in self._trees())

    def figures(self) -> dict[str, int]:
        found = self.lsm.figures()
        spaces = list(self._spaces.values())
        facts = [space.reader.facts for space in spaces if space.reader is not None]
        found["memtable_pairs"] += sum(space.cells.memtable_pairs for space in spaces)
        found["memtables"] = max(found["memtables"], 1 + max((space.cells.frozen for space in spaces), default=0))
        found["debt_bytes"] = self.debt_bytes()
        return found | {
            "trees": len(facts),
            "tree_pairs": sum(one.pairs for one in facts),
            "tree_bytes": sum(one.nbytes for one in facts),
        }

    def _trees(self) -> list[Tree]:
        return [space.tree for space in self._spaces.values() if space.tree is not None]

    # --- what is damaged: tables only; a damaged tree is an error for whoever reads it -------------------------------

    def damaged(self) -> tuple[DamagedTable, ...]:
        return self.lsm.damaged()

    def quarantined(self) -> tuple[DamagedTable, ...]:
        return self.lsm.quarantined()

    def noticed(self, error: Exception) -> None:
        """Something failed, on any thread: see `LsmEngine.noticed`."""
        self.lsm.noticed(error)

    def begin_quarantine(self, tables: Iterable[DamagedTable]) -> Any:
        return self.lsm.begin_quarantine(tables)

    # --- planning ---------------------------------------------------------------------------------------------------

    def begin_flush(self, end: Position, meta: bytes) -> Any:
        tables = self.lsm.begin_flush(end, meta)
        for space in self._spaces.values():
            space.cells.freeze(end)
        return self._with_trees(tables, tuple(self._marks))

    def flush_again(self, failed: Any) -> Any:
        if not isinstance(failed, NodeFlush):
            return self.lsm.flush_again(failed)
        tables = self.lsm.flush_again(failed.tables)
        named = {tree.place for tree in failed.trees}
        return self._with_trees(tables, failed.marks, named)

    def _with_trees(self, tables: Any, gone: tuple[TreePlace, ...], named: set[TreePlace] | None = None) -> Any:
        trees = tuple(space.flushed for space in self._spaces.values() if named is None or space.place in named)
        return NodeFlush(tables, trees, gone, self._options) if trees or gone else tables

    def next_compaction(self, rules: Mapping[int, CollectionRule] | None = None) -> Any | None:
        """Trees of deleted namespaces, then dead cells of trees, then tables."""
        if not self._has_looked:
            self._has_looked = True
            self._look_for_strays()
        if self._doomed:
            return Removal(self.lsm.next_job(), tuple(self._doomed))
        for namespace, rule in (rules or {}).items():
            space = self._spaces.get(namespace)
            if space is not None and self._is_walk_due(space, rule):
                return TreeCollection(self.lsm.next_job(), space.flushed, rule, self._options)
        return self.lsm.next_compaction(rules)

    def held(self, namespace: int) -> Held:
        """What waits to be collected. A tree does not tell tombstones from what will expire, nor how old they are: only of
        what is not in it yet that is known."""
        space = self._spaces.get(namespace)
        if space is None:
            return self.lsm.held(namespace)
        memory = space.cells.dead_in_memory()
        dead = 0 if space.reader is None else space.reader.own.dead
        return Held(
            tombstones=dead,
            in_memory=memory.cells,
            is_estimate=memory.is_estimate,
            oldest_in_memory=memory.oldest,
            first_deadline_in_memory_ms=memory.first_deadline_ms,
            is_dated=memory.is_dated and not dead,
        )

    def is_worth_shedding(self, namespace: int, clock_ms: int) -> bool:
        space = self._spaces.get(namespace)
        if space is None:
            return self.lsm.is_worth_shedding(namespace, clock_ms)
        return space.reader is not None and space.reader.own.dead * WALK_SHARE >= max(1, space.reader.facts.pairs)

    @property
    def collected(self) -> Mapping[int, int]:
        return self.lsm.collected

    def full_compaction(self, namespace: int, rule: CollectionRule | None = None) -> Any | None:
        """What a job can do for a whole namespace: one run of tables, or a walk over its tree; None where there is none."""
        space = self._spaces.get(namespace)
        if space is None:
            return self.lsm.full_compaction(namespace, rule)
        if rule is None or space.tree is None or rule.since > self.position:
            return None
        return TreeCollection(self.lsm.next_job(), space.flushed, rule, self._options)

    def _look_for_strays(self) -> None:
        """Trees of namespaces that there are no more: a crash came before they were removed."""
        held = {space.place for space in self._spaces.values()}
        with self._lock:
            self._doomed |= {place: None for place in places(self._root) if place not in held and place not in self._doomed}

    def _is_walk_due(self, space: _Space, rule: CollectionRule) -> bool:
        if space.tree is None or space.reader is None or rule.since > self.position:
            return False  # an older put may still be in a memtable only
        facts = space.reader.own
        pause_ms = WALK_MS_MIN if facts.dead * WALK_SHARE >= space.reader.facts.pairs else WALK_MS_MAX
        return facts.dead > 0 and rule.clock_ms >= facts.walked_ms + pause_ms

    # --- doing ------------------------------------------------------------------------------------------------------

    def do(self, job: Any) -> tuple[TableFacts, ...]:
        """Do in this process what the worker would. Raises StorageError."""
        return do(self._disk, job, opened=self._opened)

    def discard(self, job: Any) -> None:
        """Remove what a job that failed has left."""
        if isinstance(job, NodeFlush):
            self.lsm.discard(job.tables)
        elif not isinstance(job, TreeCollection | Removal):
            self.lsm.discard(job)

    def install(self, job: Any, tables: tuple[TableFacts, ...]) -> None:
        """Let what a job made stand. Writes and syncs: for a thread. Raises StorageError."""
        if isinstance(job, NodeFlush):
            self._install_flush(job, tables)
        elif isinstance(job, TreeCollection):
            namespace = job.tree.place.namespace
            space = self._spaces.get(namespace)
            before = 0 if space is None or space.reader is None else space.reader.own.dead
            do_own(self._disk, job, self._opened)
            if space is not None:
                self._show(space, has_collected=True)
                gone = before - (0 if space.reader is None else space.reader.own.dead)
                self.lsm.collected[namespace] = self.lsm.collected.get(namespace, 0) + max(0, gone)
        elif isinstance(job, Removal):
            self._remove(job)
        else:
            self.lsm.install(job, tables)

    def _install_flush(self, job: NodeFlush, tables: tuple[TableFacts, ...]) -> None:
        spaces = [space for tree in job.trees if (space := self._spaces.get(tree.place.namespace)) is not None]
        try:
            do_own(self._disk, job, self._opened)
            for space in spaces:
                space.tree = space.tree or open_tree(self._root, space.place, self._options)
        except BaseException:
            self.lsm.discard(job.tables)
            raise
        self.lsm.install(job.tables, tables)
        for space in spaces:
            if space.cells.frozen or space.reader is None:  # else nothing came, and what readers know of it stays true
                self._show(space, has_collected=False)
        for place in job.marks:
            remove_mark(self._root, place)
        with self._lock:
            self._marks -= set(job.marks)

    def _show(self, space: _Space, has_collected: bool) -> None:
        """Let the tree stand as it is now, and go what is flushed."""
        if space.tree is None:
            space.cells.show((), self.position, has_collected)
            return
        space.reader = TreeReader(space.tree, self.lsm.cache)
        space.cells.show((run_of(space.reader),), self.position, has_collected)

    def _remove(self, job: Removal) -> None:
        for place in job.places:
            with self._lock:
                if place not in self._doomed:
                    continue  # there it is again
                tree = self._doomed.pop(place)
                self._marks.add(place)
            try:
                if tree is not None:
                    tree.close()
                remove_tree(self._root, place)
            except BaseException:
                with self._lock:
                    self._doomed[place] = None
                raise

    def _opened(self, place: TreePlace) -> AbstractContextManager[Tree | None]:
        """A tree that is open here, or opened now, and stays so; None where its namespace was deleted."""
        space = self._spaces.get(place.namespace)
        if space is None:
            return nullcontext(None)
        if space.tree is None:
            space.tree = open_tree(self._root, place, self._options)
        return nullcontext(space.tree)

    # --- beginning with something -----------------------------------------------------------------------------------

    def load(self, pairs: Iterable[tuple[int, Iterable[tuple[bytes, bytes]]]], position: Position, meta: bytes) -> None:
        """As `LsmEngine.load`; namespaces with a tree get theirs."""
        self.lsm.load(self._loaded(pairs, position), position, meta)
        for space in self._spaces.values():
            self._show(space, has_collected=False)

    def _loaded(
        self, pairs: Iterable[tuple[int, Iterable[tuple[bytes, bytes]]]], position: Position
    ) -> Iterator[tuple[int, Iterable[tuple[bytes, bytes]]]]:
        """Those of `lsm`, while the others are loaded."""
        left = dict(self._spaces)
        for namespace, cells in pairs:
            space = left.pop(namespace, None)
            if space is None:
                yield namespace, cells
            else:
                self._load_tree(space, cells, position)
        for space in left.values():
            self._load_tree(space, (), position)

    def _load_tree(self, space: _Space, cells: Iterable[tuple[bytes, bytes]], position: Position) -> None:
        with self._opened(space.place) as tree:
            if tree is not None:
                load_into(tree, cells, space.cells.policy, position)

    @property
    def root(self) -> Path:
        """The node's folder."""
        return self._root

    def standing(self) -> AbstractContextManager[State]:
        """As `LsmEngine.standing`."""
        return self.lsm.standing()

    # --- copies -----------------------------------------------------------------------------------------------------

    def copy_trees(self, folder: Path) -> list[TreePlace]:
        """Copy every tree to `folder`, where its place names it: for a backup. Slow, and writes: for a thread.

        To be called between two jobs, on the thread that runs them, together with the copying of the manifest: a tree must
        not be older than the manifest beside it, and nothing must have been collected between the two.
        """
        copied = []
        for space in list(self._spaces.values()):
            if space.tree is not None:
                space.tree.copy_to(folder / space.place.path)
                copied.append(space.place)
        return copied
