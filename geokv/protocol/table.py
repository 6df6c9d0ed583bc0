"""A namespace's table on a node: synced cells in the engine, and those on their way to the disk in front of them.

    get:   waiting  ->  flying  ->  cells          (newest first; each is already merged over what stands behind it)

Merged, that is, as far as it could be without a disk: a replica takes what others numbered without reading what it has
on its disk. What may have to be merged with that is a Partial (`core.partial`).

`waiting` collects what arrived since the last frame was handed to the disk, `flying` is what that frame holds. When
it is synced, `flying` goes into `cells` in one update. So what is shown to readers (`cells`) is what is durable, and
crash safety needs no bookkeeping per operation.

Invariants: `cells` holds only what is synced (namespaces with durability "interval" excepted: see `is_interval`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from geokv.core.conflict import BOUNDED, Merge, Policy
from geokv.core.hlc import NO_HLC
from geokv.core.namespace import NamespaceDefinition
from geokv.core.partial import Partial
from geokv.core.quorum import Consistency, needed
from geokv.protocol.placement import Placement
from geokv.protocol.streams import StreamTable


class Cells(Protocol):
    """What a table needs of an engine: the synced cells of one namespace."""

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """The cell. Reads the disk where `missing` names the key; in a machine only after that was loaded."""

    def look(self, keys: list[bytes]) -> tuple[list[bytes | None], list[bytes]]:
        """(the cell of each key as far as memory has it, the keys that must be loaded first)."""

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """The keys that must be loaded before they are got."""

    def load(self, keys: Iterable[bytes]) -> None:
        """Read them into memory; on another thread. Raises StorageError."""

    def peek(self, key: bytes) -> bytes | None:
        """What memory alone holds of a key; Partial where the disk may hold more. To be merged over."""

    def may_hold(self, key: bytes) -> bool:
        """Whether the disk may hold the key."""

    @property
    def ceiling(self) -> bytes:
        """A cell above it, merged over what was peeked before, is whole."""

    def update(self, pairs: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None: ...

    def came(self, since: int) -> None:
        """What was put last comes from records with HLCs of at least `since` (0: of one it is not known)."""

    def merge_in(self, key: bytes, cell: bytes) -> None:
        """Merge a cell that recovery found in the log."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs in key order, from wherever they are."""

    def keys(self) -> Iterator[bytes]:
        """All keys in order, looked for as they are asked for: those that were there at the beginning, at least."""

    def __len__(self) -> int:
        """About how many pairs there are: one that stands in several places counts as often."""


class Table:
    """One namespace on this node."""

    __slots__ = (
        "cells",
        "collections",
        "collections_of",
        "definition",
        "flying",
        "flying_since",
        "is_interval",
        "merge",
        "placement",
        "policy",
        "since",
        "streams",
        "waiting",
    )

    def __init__(
        self,
        definition: NamespaceDefinition,
        placement: Placement,
        cells: Cells,
        partitions: int,
    ) -> None:
        self.placement = placement
        self.cells = cells
        self.waiting: dict[bytes, bytes] = {}
        self.flying: dict[bytes, bytes] = {}
        self.since = self.flying_since = NO_HLC  # the least HLC of the records in each; 0: of one it is not known
        self.streams = StreamTable(definition.id, partitions)
        self.collections = 0  # how often tombstones were about to be collected here: see `protocol.intake`
        self.collections_of: dict[str, int] = {}  # the same of co-owners, as they have stated it
        self.define(definition)

    def define(self, definition: NamespaceDefinition) -> None:
        """Take over a definition or its newer version."""
        self.definition = definition
        self.policy: Policy = definition.policy_now()
        self.merge: Merge = self.policy.merge
        self.is_interval = definition.durability == "interval"

    def write_needs(self, level: Consistency, w: int) -> int:
        """How many replicas must have a write that asks for `level` or `w`. Raises InvalidRequest for more than there are."""
        replicas = self.placement.replicas
        asked = needed(level or self.definition.write_level, w, replicas)
        if self.policy.name == BOUNDED:  # what is spent must not be forgotten: no level is too weak, it is raised
            return max(asked, needed(Consistency.QUORUM, 0, replicas))
        return asked

    def ships_to(self, dc: str) -> list[str]:
        """The other datacenters that hold this namespace and that `dc` ships it to."""
        off = self.definition.links_off
        return [other for other in self.definition.dcs if other != dc and (dc, other) not in off]

    def came(self, hlc: int) -> None:
        """A record of this HLC, or some of which it is the least, went into `waiting`."""
        if hlc < self.since:
            self.since = hlc

    def visible(self, key: bytes) -> bytes | None:
        """The newest cell, synced or not: what a coordinator builds upon."""
        found = self.waiting.get(key)
        if found is None:
            found = self.flying.get(key)
        if type(found) is bytes:
            return found
        behind = self.cells.get(key)
        if found is None or behind is None:
            return behind if found is None else bytes(found)
        return bytes(self.merge(found, behind))

    def folded(self, cells: list[bytes | None]) -> list[bytes | None]:
        """Cells that readers may see, each in its one canonical form."""
        if self.policy.kind is None:
            return cells
        fold = self.policy.fold
        return [None if cell is None else fold(cell) for cell in cells]

    def missing(self, keys: list[bytes]) -> list[bytes]:
        """The keys that must be loaded before they can be seen."""
        missing = self.cells.missing(keys)
        if not missing:
            return missing
        waiting, flying = self.waiting, self.flying
        return [key for key in missing if type(waiting.get(key) or flying.get(key)) is not bytes]

    def look(self, keys: list[bytes]) -> tuple[list[bytes | None], list[bytes]]:
        """(what a reader is shown of each key, the keys that must be loaded first)."""
        if not self.is_interval:
            cells, missing = self.cells.look(keys)
        else:
            missing = self.missing(keys)
            cells = [] if missing else [self.visible(key) for key in keys]
        return cells if missing else self.folded(cells), missing

    def blind(self, key: bytes, cell: bytes) -> bytes:
        """A cell that goes over what memory holds of its key, without a look at the disk: Partial where that may hold more.

        To be asked after `peek`, so that what is flushed in between is seen by one of the two.
        """
        cells = self.cells
        return cell if cell > cells.ceiling or not cells.may_hold(key) else Partial(cell)

    def fly(self) -> None:
        """The frame with everything in `waiting` goes to the disk."""
        self.flying, self.flying_since = self.waiting, self.since
        self.waiting, self.since = {}, NO_HLC

    def land(self) -> None:
        """That frame is synced."""
        self.cells.update(self.flying)
        self.cells.came(self.flying_since)
        self.flying = {}

    def is_settled(self, keys: list[bytes]) -> bool:
        """Whether none of these keys has a cell on its way to the disk."""
        if self.is_interval or not (self.waiting or self.flying):
            return True
        waiting, flying = self.waiting, self.flying
        return not any(key in waiting or key in flying for key in keys)
