"""Jobs of a node's engine, and doing them: those of `lsm`, and what trees add to them.

    NodeFlush        a flush of `lsm`, and the same frames merged into trees
    TreeCollection   a walk that removes what is dead
    Removal          the trees of deleted namespaces

The worker process does what it can: tables, and trees that several processes may open (LMDB). What only the node may open
(RocksDB) is done by the node when it installs the job, on the thread that waits for the worker.

Invariants: a job is a value that crosses to another process. Doing a part of one, or doing it twice, does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geokv.storage.disk import Disk
from geokv.storage.engines import KINDS
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.flush import collect, policies_of, write
from geokv.storage.lsm.jobs import Flush
from geokv.storage.lsm.table_writer import Pace, unpaced
from geokv.storage.lsm.work import run_job
from geokv.storage.tree.merging import merge_into, remove_dead
from geokv.storage.tree.tree import Tree, TreeOptions, TreePlace, open_tree


@dataclass(frozen=True, slots=True)
class FlushedTree:
    """A namespace with a tree in a flush."""

    place: TreePlace
    policy: str

    @property
    def is_shared(self) -> bool:
        """Whether the worker process does it."""
        return KINDS[self.place.engine].is_shared


@dataclass(frozen=True, slots=True)
class NodeFlush:
    """`marks`: of trees that were removed before it began; the state beside the cells knows of that."""

    tables: Flush
    trees: tuple[FlushedTree, ...]
    marks: tuple[TreePlace, ...]
    options: TreeOptions

    @property
    def number(self) -> int:
        return self.tables.number


@dataclass(frozen=True, slots=True)
class TreeCollection:
    number: int
    tree: FlushedTree
    rule: CollectionRule
    options: TreeOptions


@dataclass(frozen=True, slots=True)
class Removal:
    number: int
    places: tuple[TreePlace, ...]


OpenTree = Callable[[TreePlace], AbstractContextManager[Tree | None]]
"""None: its namespace was deleted meanwhile."""


def do(disk: Disk, job: Any, pace: Pace = unpaced, opened: OpenTree | None = None) -> tuple[TableFacts, ...]:
    """Do what a worker does of a job; the tables that it wrote. Raises StorageError, DiskFull; then no table is left.

    `opened`: gives trees that this very process has open; None: it has none.
    """
    if isinstance(job, NodeFlush):
        return _flush(disk, job, pace, opened or _opener(disk, job.options))
    if isinstance(job, TreeCollection):
        if job.tree.is_shared:
            _collect_dead(job, pace, opened or _opener(disk, job.options))
        return ()
    return () if isinstance(job, Removal) else run_job(disk, job, pace)


def do_own(disk: Disk, job: Any, opened: OpenTree) -> None:
    """Do what only the node itself can do of a job."""
    if isinstance(job, NodeFlush):
        own = [tree for tree in job.trees if not tree.is_shared]
        if own:
            policies = {tree.place.namespace: tree.policy for tree in own}
            collected = collect(disk, job.tables.begin, job.tables.end, policies, dated=())
            _merge(job, own, collected.cells, unpaced, opened)
    elif isinstance(job, TreeCollection) and not job.tree.is_shared:
        _collect_dead(job, unpaced, opened)


def _flush(disk: Disk, job: NodeFlush, pace: Pace, opened: OpenTree) -> tuple[TableFacts, ...]:
    shared = [tree for tree in job.trees if tree.is_shared]
    of_tables = policies_of(job.tables)
    policies = of_tables | {tree.place.namespace: tree.policy for tree in shared}
    collected = collect(disk, job.tables.begin, job.tables.end, policies, dated=of_tables)
    _merge(job, shared, collected.cells, pace, opened)  # before any table: where it fails none is left
    return write(disk, job.tables, collected, pace)


def _merge(
    job: NodeFlush, trees: list[FlushedTree], cells: dict[int, dict[bytes, bytes]], pace: Pace, opened: OpenTree
) -> None:
    for tree in trees:
        with opened(tree.place) as there:
            came = cells.pop(tree.place.namespace)
            if there is not None:
                merge_into(there, came, tree.policy, job.tables.end, pace)


def _collect_dead(job: TreeCollection, pace: Pace, opened: OpenTree) -> None:
    with opened(job.tree.place) as tree:
        if tree is not None:
            remove_dead(tree, job.rule, job.tree.policy, pace)


def _opener(disk: Disk, options: TreeOptions) -> OpenTree:
    root: Path = disk.root  # type: ignore[attr-defined]  # a real one: where there are trees there are files
    return lambda place: closing(open_tree(root, place, options))
