"""A namespace's table on a node: synced cells in the engine, and those on their way to the disk in front of them.

    get:   waiting  ->  flying  ->  cells          (newest first; each is already merged over what stands behind it)

`waiting` collects what arrived since the last frame was handed to the disk, `flying` is what that frame holds. When
it is synced, `flying` goes into `cells` in one update. So what is shown to readers (`cells`) is what is durable, and
crash safety needs no bookkeeping per operation.

Invariants: `cells` holds only what is synced (namespaces with durability "interval" excepted: see `is_interval`).
"""

from __future__ import annotations

from geokv.core.conflict import Merge, merge_of
from geokv.core.namespace import NamespaceDefinition
from geokv.protocol.placement import Placement
from geokv.protocol.streams import StreamTable


class Table:
    """One namespace on this node."""

    __slots__ = (
        "cells",
        "definition",
        "flying",
        "is_interval",
        "merge",
        "placement",
        "streams",
        "waiting",
    )

    def __init__(
        self,
        definition: NamespaceDefinition,
        placement: Placement,
        cells: dict[bytes, bytes],
        partitions: int,
    ) -> None:
        self.placement = placement
        self.cells = cells
        self.waiting: dict[bytes, bytes] = {}
        self.flying: dict[bytes, bytes] = {}
        self.streams = StreamTable(definition.id, partitions)
        self.define(definition)

    def define(self, definition: NamespaceDefinition) -> None:
        """Take over a definition or its newer version."""
        self.definition = definition
        self.merge: Merge = merge_of(definition.policy)
        self.is_interval = definition.durability == "interval"

    def ships_to(self, dc: str) -> list[str]:
        """The other datacenters that hold this namespace and that `dc` ships it to."""
        off = self.definition.links_off
        return [other for other in self.definition.dcs if other != dc and (dc, other) not in off]

    def visible(self, key: bytes) -> bytes | None:
        """The newest cell, synced or not: what a coordinator builds upon."""
        found = self.waiting.get(key)
        if found is None:
            found = self.flying.get(key)
            if found is None:
                found = self.cells.get(key)
        return found

    def take(self, key: bytes, cell: bytes) -> bytes | None:
        """Merge an arriving cell; returns what this replica held before (None: nothing)."""
        stored = self.visible(key)
        self.waiting[key] = cell if stored is None else self.merge(stored, cell)
        return stored

    def fly(self) -> None:
        """The frame with everything in `waiting` goes to the disk."""
        self.flying = self.waiting
        self.waiting = {}

    def land(self) -> None:
        """That frame is synced."""
        self.cells.update(self.flying)
        self.flying = {}

    def is_settled(self, keys: list[bytes]) -> bool:
        """Whether none of these keys has a cell on its way to the disk."""
        if self.is_interval or not (self.waiting or self.flying):
            return True
        waiting, flying = self.waiting, self.flying
        return not any(key in waiting or key in flying for key in keys)
