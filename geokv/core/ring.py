"""The ring: Q partitions of the 64-bit hash space, and the owners that weighted virtual nodes give each of them.

    key --mmh3--> 64-bit hash --top bits--> partition --walk the tokens--> owners (distinct nodes, distinct racks first)

Every node puts `TOKENS_PER_WEIGHT * weight` tokens on the circle of 2^64. A partition's owners are found by walking
clockwise from its middle: the first N nodes of different racks; where there are fewer racks than replicas, the walk
is completed with the next nodes of racks already used. Owners for fewer replicas are a prefix of those for more.

Invariants: the partition of a key depends on the key and Q alone, so it is the same in every datacenter. The owners
depend on names, weights and racks alone, so every node and client computes the same ring. Adding one node to n moves
at most 1/(n+1) + 5 points of the copies (tests/core/test_ring.py).

After Dynamo (2007), strategy 3: equal partitions, owners by tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import mmh3

_hash: Final = mmh3.mmh3_x64_128_utupledigest
TOKENS_PER_WEIGHT: Final = 128
PARTITIONS_DEFAULT: Final = 256
PARTITIONS_MAX: Final = 1 << 14


class Member(NamedTuple):
    """A node as the ring sees it. `weight` 1.0 is the usual share; 0 owns nothing and only forwards."""

    node: str
    rack: str = ""
    weight: float = 1.0


def key_hash(key: bytes) -> int:
    """64 unsigned bits of MurmurHash3 x64 128, seed 0."""
    return _hash(key)[0]


def partition_shift(partitions: int) -> int:
    """How far a 64-bit hash is shifted right to give its partition. `partitions` is a power of two."""
    if partitions < 1 or partitions > PARTITIONS_MAX or partitions & (partitions - 1):
        raise ValueError(f"partitions = {partitions}: must be a power of two up to {PARTITIONS_MAX}")
    return 64 - (partitions.bit_length() - 1)


def partition_of(key: bytes, partitions: int) -> int:
    return key_hash(key) >> partition_shift(partitions)


class Ring:
    """One datacenter's ring."""

    def __init__(self, partitions: int, members: Iterable[Member]) -> None:
        self.partitions = partitions
        self.shift = partition_shift(partitions)
        self.members = tuple(sorted(members))
        self._tokens = sorted(
            (key_hash(f"{member.node}#{index}".encode()), member.node, member.rack)
            for member in self.members
            for index in range(round(member.weight * TOKENS_PER_WEIGHT))
        )
        self._walks = [self._walk(partition) for partition in range(partitions)]

    def _walk(self, partition: int) -> tuple[str, ...]:
        """All nodes in walking order from the partition's middle, those of new racks before those of used ones."""
        if not self._tokens:
            return ()
        middle = (partition << self.shift) | (1 << (self.shift - 1))
        start = bisect_left(self._tokens, (middle,))
        first_of_rack: dict[str, str] = {}
        order: dict[str, None] = {}
        for _, node, rack in self._tokens[start:] + self._tokens[:start]:
            order.setdefault(node)
            first_of_rack.setdefault(rack, node)
        chosen = list(first_of_rack.values())
        return (*chosen, *(node for node in order if node not in set(chosen)))

    def owners(self, partition: int, replicas: int) -> tuple[str, ...]:
        """The nodes that hold `partition`, the first one first. Shorter than `replicas` where there are fewer nodes."""
        return self._walks[partition][:replicas]

    def owners_of_key(self, key: bytes, replicas: int) -> tuple[str, ...]:
        return self.owners(key_hash(key) >> self.shift, replicas)


def moved_copies(before: Ring, after: Ring, replicas: int) -> float:
    """The share of partition copies that a change of ring moves (0..1)."""
    copies = moved = 0
    for partition in range(before.partitions):
        old: Sequence[str] = before.owners(partition, replicas)
        new: Sequence[str] = after.owners(partition, replicas)
        copies += len(new)
        moved += len(set(new) - set(old))
    return moved / copies if copies else 0.0
