"""What changes a tree: a flush merges cells in, a collection takes dead ones out. Both in bounded steps.

    flush        cells of the log between two positions   --merge over what stands-->  the tree, and its new position
    collection   a walk over all pairs                     --rule covers the cell----->  removed

Each step is a transaction of its own. A crash between two leaves some cells merged and the position as it was, so they are
merged again from the log, to the same result.

Invariants: a tree holds whole cells, merged over all that came before. Collection removes only the very cell that the rule
covers, looked at in the transaction that removes it; the engine gives a rule only once all that was there when it was found
to be stable has been flushed (`lsm.collection`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from geokv.core.conflict import stored_policy
from geokv.core.limits import MIB
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.table_writer import Pace, unpaced
from geokv.storage.lsm.traits import traits_of
from geokv.storage.position import Position
from geokv.storage.tree.tree import Tree
from geokv.storage.tree.values import CHECKSUM_BYTES, damaged, is_sound, seal, unseal

STEP_PAIRS: Final = 8192  # each step of LMDB is a sync; it keeps the pages that it changes in memory
STEP_BYTES: Final = 4 * MIB
REMOVED: Final = b""


def merge_into(tree: Tree, cells: Mapping[bytes, bytes], policy: str, end: Position, pace: Pace = unpaced) -> None:
    """Merge these cells in; from then on all frames before `end` are there, durably. Raises StorageError, DiskFull."""
    traits = traits_of(policy)
    facts = tree.facts()
    ceiling = traits.ceiling(facts.version_max)
    version_max, dead = facts.version_max, facts.dead
    seed, name = tree.seed, tree.name

    put: list[bytes] = []  # in one step, and once more where that is done again

    def merged(key: bytes, held: bytes | None) -> bytes | None:
        cell = cells[key]
        if held is not None:
            if is_sound(held, key, seed):
                older = held[CHECKSUM_BYTES:]
                cell = bytes(traits.merge(cell, older))
                if cell == older:
                    return None
            elif cell <= ceiling:
                raise damaged(name, key)
            # else it stands above whatever the damaged one was
        put.append(cell)
        return seal(cell, key, seed)

    for keys, nbytes in steps(cells):
        pace(nbytes)
        tree.change(keys, merged)
        if put:
            measured = traits.measure(put)
            version_max = max(version_max, measured.version_max)
            dead += measured.tombstones + measured.deadlines
            put.clear()
    tree.settle(replace(facts, position=max(end, facts.position), version_max=version_max, dead=dead))


def load_into(tree: Tree, pairs: Iterable[tuple[bytes, bytes]], policy: str, end: Position) -> None:
    """Merge in what comes in key order, more than memory may hold. Raises StorageError, DiskFull."""
    some: dict[bytes, bytes] = {}
    size = 0
    for key, cell in pairs:
        some[key] = cell
        size += len(key) + len(cell)
        if size >= STEP_BYTES:
            merge_into(tree, some, policy, Position())
            some, size = {}, 0
    merge_into(tree, some, policy, end)


def steps(cells: Mapping[bytes, bytes]) -> Iterator[tuple[list[bytes], int]]:
    """(keys, bytes) in key order, no more of both than one transaction shall change."""
    some: list[bytes] = []
    size = 0
    for key in sorted(cells):
        some.append(key)
        size += len(key) + len(cells[key])
        if len(some) >= STEP_PAIRS or size >= STEP_BYTES:
            yield some, size
            some, size = [], 0
    if some:
        yield some, size


def remove_dead(tree: Tree, rule: CollectionRule, policy: str, pace: Pace = unpaced) -> int:
    """Walk over a tree and remove what the rule covers; how many. Raises StorageError."""
    measure, known = traits_of(policy).measure, stored_policy(policy)
    seed, name = tree.seed, tree.name
    removed = left = 0

    def without(key: bytes, held: bytes | None) -> bytes | None:
        return REMOVED if held is not None and rule.covers(known, key, unseal(held, key, seed, name)) else None

    start = b""
    while some := tree.step(start, None, STEP_PAIRS):
        start = some[-1][0] + b"\0"
        cells = {key: unseal(value, key, seed, name) for key, value in some}
        measured = measure(list(cells.values()))
        count = measured.tombstones + measured.deadlines
        dead = [key for key, cell in cells.items() if rule.covers(known, key, cell)] if count else []
        left += count
        pace(len(dead) * STEP_BYTES // STEP_PAIRS)
        if dead:
            tree.change(dead, without)
            removed += len(dead)
    tree.settle(replace(tree.facts(), dead=left - removed, walked_ms=rule.clock_ms))
    return removed
