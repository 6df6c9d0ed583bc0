"""What is known of a table without reading its blocks: the table says it of itself, the manifest repeats it.

Strategies choose by these facts alone, and the manifest adds where the table stands:

    level 0        runs, the newer the greater `run`; tables of one run do not overlap, runs may
    level 1, 2 …   one run each (`run` 0), the deeper the older

So tables sorted by `recency` stand newest first, and a key's cells in that order too.

Invariants: numbers are never used twice. A table never changes; only its level in the manifest may.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from geokv.core.conflict import CHANGED

_FIXED = Struct("<QQQQQQQQQQQHHB")
_FIXED_1 = Struct("<QQQQQQQQHHB")  # of format 1: no deadlines by themselves, no oldest
_PLACE = Struct("<HQ")
FOLDER: Final = "lsm"
JOB_SHIFT: Final = 16  # a table's number: its job's, and which of the job's outputs it is
OUTPUTS_MAX: Final = (1 << JOB_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One table. `nbytes`: up to its facts. `version_*`: of its cells.

    `tombstones`: cells that wait to be collected (or for a sweep), `deadlines`: cells that will be (of a table of format 1 they
    count as tombstones). `oldest`: an HLC that no tombstone is older than, and of `lww` the least version of one;
    `first_deadline_ms` likewise of deadlines. 0: none, or not known.
    """

    number: int
    namespace: int
    policy: str
    nbytes: int
    pairs: int
    partials: int
    tombstones: int
    version_min: int
    version_max: int
    first_key: bytes
    last_key: bytes
    level: int = 0
    run: int = 0
    deadlines: int = 0
    oldest: int = 0
    first_deadline_ms: int = 0

    @property
    def recency(self) -> tuple[int, int, bytes]:
        """Sorts the tables of a namespace: newest first, those of one run by key."""
        return self.level, -self.run, self.first_key

    @property
    def name(self) -> str:
        return table_name(self.number)

    def at(self, level: int, run: int) -> TableFacts:
        return replace(self, level=level, run=run)

    def collectable(self, clock_ms: int) -> int:
        """How many of its cells may be collected once they are stable: about, where deadlines have passed for some."""
        return self.tombstones + (self.deadlines if 0 < self.first_deadline_ms < clock_ms else 0)

    def overlaps(self, first: bytes, last: bytes) -> bool:
        return self.first_key <= last and first <= self.last_key

    def encode(self) -> bytes:
        """What the table itself states: everything but its place."""
        policy = self.policy.encode()
        return (
            _FIXED.pack(
                self.number,
                self.namespace,
                self.nbytes,
                self.pairs,
                self.partials,
                self.tombstones,
                self.version_min,
                self.version_max,
                self.deadlines,
                self.oldest,
                self.first_deadline_ms,
                len(self.first_key),
                len(self.last_key),
                len(policy),
            )
            + policy
            + self.first_key
            + self.last_key
        )

    def encode_placed(self) -> bytes:
        return _PLACE.pack(self.level, self.run) + self.encode()


@dataclass(frozen=True, slots=True)
class DamagedTable:
    """A table that cannot be read any more: which, from which byte on as far as that is known, and why."""

    facts: TableFacts
    offset: int
    what: str


def table_name(number: int) -> str:
    return f"{FOLDER}/{number:016x}.sst"


def decode_facts(raw: bytes, offset: int = 0, form: int = 2) -> tuple[TableFacts, int]:
    """(the facts, where they end). Raises ValueError."""
    fixed = _FIXED if form > 1 else _FIXED_1
    try:
        *numbers, first_length, last_length, policy_length = fixed.unpack_from(raw, offset)
    except struct.error as error:
        raise ValueError("the facts of a table are cut off") from error
    if form == 1:
        numbers += (0, 0, 0)
    first = offset + fixed.size + policy_length
    last = first + first_length
    end = last + last_length
    if end > len(raw):
        raise ValueError("the facts of a table are cut off")
    policy = raw[first - policy_length : first].decode()
    keys = raw[first:last], raw[last:end]
    number, namespace, *counts, deadlines, oldest, first_deadline_ms = numbers
    size, pairs, partials, tombstones, version_min, version_max = counts
    facts = TableFacts(number, namespace, policy, size, pairs, partials, tombstones, version_min, version_max, *keys)
    return replace(facts, deadlines=deadlines, oldest=oldest, first_deadline_ms=first_deadline_ms), end


def decode_placed(raw: bytes, offset: int, form: int = 2) -> tuple[TableFacts, int]:
    """Inverse of `encode_placed`. Raises ValueError."""
    try:
        level, run = _PLACE.unpack_from(raw, offset)
    except struct.error as error:
        raise ValueError("the place of a table is cut off") from error
    facts, end = decode_facts(raw, offset + _PLACE.size, form)
    return facts.at(level, run), end


def policy_of_tables(tables: Iterable[TableFacts]) -> str:
    """As which policy the cells of a namespace merge, told by its tables alone: several where it was changed."""
    named = {facts.policy for facts in tables}
    return named.pop() if len(named) == 1 else CHANGED
