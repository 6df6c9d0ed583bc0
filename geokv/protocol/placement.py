"""Placement: which nodes own a partition, here and in the other datacenters, precomputed for one replica count.

Batches are cut by *owner set*: partitions with the same owners travel together, so in a ring of three nodes with
three replicas a batch stays whole. Owner sets are numbered per datacenter.

Not here: how the ring decides (core.ring), and who is alive (protocol.peers).
"""

from __future__ import annotations

from collections.abc import Mapping

from geokv.core.ring import Ring


class Placement:
    """Owners of every partition for given replica counts per datacenter, seen from one node."""

    def __init__(self, rings: Mapping[str, Ring], replicas: Mapping[str, int], dc: str, node: str) -> None:
        ring = rings[dc]
        count = replicas[dc]
        self.dc = dc
        self.node = node
        self.shift = ring.shift
        self.replicas = min(count, sum(1 for member in ring.members if member.weight > 0))
        self.owners: list[tuple[str, ...]] = [ring.owners(p, count) for p in range(ring.partitions)]
        self.owner_sets: list[tuple[str, ...]] = []
        ids: dict[tuple[str, ...], int] = {}
        self.set_of: list[int] = []
        for owners in self.owners:
            canonical = tuple(sorted(owners))
            if canonical not in ids:
                ids[canonical] = len(self.owner_sets)
                self.owner_sets.append(canonical)
            self.set_of.append(ids[canonical])
        self.is_mine = [node in owners for owners in self.owners]
        self.owns_all = all(self.is_mine)
        self.peers_of_set = [tuple(n for n in owners if n != node) for owners in self.owner_sets]
        self.mine = [p for p, is_mine in enumerate(self.is_mine) if is_mine]
        self.by_dc: dict[str, list[tuple[str, ...]]] = {
            name: [other.owners(p, replicas[name]) for p in range(other.partitions)] for name, other in rings.items()
        }

    def everyone(self, partition: int) -> list[tuple[str, str]]:
        """(dc, node) of every owner of `partition`, in every datacenter."""
        return [(dc, node) for dc, owners in self.by_dc.items() for node in owners[partition]]
