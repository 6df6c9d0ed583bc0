"""What is known of a table without reading its blocks: the table says it of itself, the manifest repeats it.

Strategies choose by these facts alone, and the manifest adds where the table stands:

    level 0        runs, the newer the greater `run`; tables of one run do not overlap, runs may
    level 1, 2 …   one run each (`run` 0), the deeper the older

So tables sorted by `recency` stand newest first, and a key's cells in that order too.

Invariants: numbers are never used twice. A table never changes; only its level in the manifest may.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

_FIXED = Struct("<QQQQQQQQHHB")
_PLACE = Struct("<HQ")
FOLDER: Final = "lsm"
JOB_SHIFT: Final = 16  # a table's number: its job's, and which of the job's outputs it is
OUTPUTS_MAX: Final = (1 << JOB_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One table. `nbytes`: up to its facts. `version_*`: of its cells. `tombstones`: deletes, and cells with a deadline."""

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

    @property
    def recency(self) -> tuple[int, int, bytes]:
        """Sorts the tables of a namespace: newest first, those of one run by key."""
        return self.level, -self.run, self.first_key

    @property
    def name(self) -> str:
        return table_name(self.number)

    def at(self, level: int, run: int) -> TableFacts:
        return replace(self, level=level, run=run)

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


def decode_facts(raw: bytes, offset: int = 0) -> tuple[TableFacts, int]:
    """(the facts, where they end). Raises ValueError."""
    try:
        *numbers, first_length, last_length, policy_length = _FIXED.unpack_from(raw, offset)
    except struct.error as error:
        raise ValueError("the facts of a table are cut off") from error
    number, namespace, size, pairs, partials, tombstones, version_min, version_max = numbers
    first = offset + _FIXED.size + policy_length
    last = first + first_length
    end = last + last_length
    if end > len(raw):
        raise ValueError("the facts of a table are cut off")
    policy = raw[first - policy_length : first].decode()
    keys = raw[first:last], raw[last:end]
    return (
        TableFacts(number, namespace, policy, size, pairs, partials, tombstones, version_min, version_max, *keys),
        end,
    )


def decode_placed(raw: bytes, offset: int) -> tuple[TableFacts, int]:
    """Inverse of `encode_placed`. Raises ValueError."""
    try:
        level, run = _PLACE.unpack_from(raw, offset)
    except struct.error as error:
        raise ValueError("the place of a table is cut off") from error
    facts, end = decode_facts(raw, offset + _PLACE.size)
    return facts.at(level, run), end
