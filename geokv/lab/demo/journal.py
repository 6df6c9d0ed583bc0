"""What clients were told, write by write, and the verdict: is each acknowledged write, or one ordered after it, there?

The order of writes on a key is that of their versions. So an acknowledged write is *lost* if a replica ends with an
older version of its key, or with its very version and a value that nobody wrote. Every value is written once, so a
value names its write.

A *conflict*, as far as clients can know: an acknowledged write was replaced by one of another datacenter that was
stamped before the first can have come there (the link takes half a round trip), so neither saw the other. Versions
carry the time of their stamp, and all nodes of a lab share one clock. What cannot be proved this way is not
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from geokv.core.hlc import hlc_ms

Key = tuple[str, bytes]
"""(namespace, key)"""


@dataclass(frozen=True, slots=True)
class Write:
    """One acknowledged write; `dc` is the datacenter that took it, times are the client's, monotonic."""

    key: Key
    version: int
    value: bytes
    dc: str
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """What one replica holds under a key; `value` is None where nothing is."""

    version: int
    value: bytes | None


NOTHING = Found(0, None)


@dataclass(slots=True)
class Verdict:
    """What reading every replica showed. `examples` names a few of the writes that were lost."""

    lost: int = 0
    foreign: int = 0
    unequal: int = 0
    unread: int = 0
    examples: list[str] = field(default_factory=list)


class Journal:
    """All writes of a run, by key."""

    def __init__(self) -> None:
        self.acknowledged: dict[Key, list[Write]] = {}
        self.unknown: dict[Key, list[bytes]] = {}
        self.count = 0
        self.unknown_count = 0
        self.refused_count = 0

    def note_acknowledged(self, write: Write) -> None:
        self.acknowledged.setdefault(write.key, []).append(write)
        self.count += 1

    def note_unknown(self, key: Key, value: bytes) -> None:
        """Nobody knows whether it was done: it may be there, or not."""
        self.unknown.setdefault(key, []).append(value)
        self.unknown_count += 1

    def note_refused(self) -> None:
        """Surely not written."""
        self.refused_count += 1

    def keys(self) -> list[Key]:
        """Every key that may exist."""
        return list(dict.fromkeys([*self.acknowledged, *self.unknown]))

    def judge(self, replicas: Mapping[str, Mapping[Key, Found]]) -> Verdict:
        """Hold what every replica has (node to key to what was found; a key it does not own is missing) against the journal."""
        verdict = Verdict()
        for key in self.keys():
            held = {node: cells[key] for node, cells in replicas.items() if key in cells}
            if not held:
                verdict.unread += 1
                continue
            if len({(found.version, found.value) for found in held.values()}) > 1:
                verdict.unequal += 1
            self._judge_key(key, held, verdict)
        return verdict

    def _judge_key(self, key: Key, held: Mapping[str, Found], verdict: Verdict) -> None:
        writes = self.acknowledged.get(key, [])
        unknown = set(self.unknown.get(key, ()))
        values = {write.value for write in writes} | unknown
        by_version: dict[int, set[bytes]] = {}
        for write in writes:
            by_version.setdefault(write.version, set(unknown)).add(write.value)
        lost: set[int] = set()
        for found in held.values():
            if found.value is not None and found.value not in values:
                verdict.foreign += 1
            lost |= {index for index, write in enumerate(writes) if _is_lost(write, found, by_version)}
        verdict.lost += len(lost)
        for index in sorted(lost)[: max(0, 5 - len(verdict.examples))]:
            write = writes[index]
            verdict.examples.append(f"{key[0]}/{key[1].decode()} version {write.version}, taken by {write.dc}")

    def missing(self, dc: str, survivors: Iterable[Mapping[Key, Found]]) -> list[Write]:
        """Acknowledged writes that `dc` took and that none of these replicas holds, nor anything ordered after them."""
        cells = list(survivors)
        return [
            write
            for writes in self.acknowledged.values()
            for write in writes
            if write.dc == dc and all(one.get(write.key, NOTHING).version < write.version for one in cells)
        ]

    def taken_by(self, dc: str) -> list[Key]:
        """The keys of acknowledged writes that `dc` took."""
        return [key for key, writes in self.acknowledged.items() if any(write.dc == dc for write in writes)]

    def last_taken_s(self, dc: str) -> float:
        """When `dc` acknowledged for the last time so far; 0 where it never did."""
        times = (write.ended_s for writes in self.acknowledged.values() for write in writes if write.dc == dc)
        return max(times, default=0.0)

    def conflicts(self, one_way_ms: Callable[[str, str], float]) -> int:
        """Acknowledged writes that were replaced by a provably concurrent one of another datacenter."""
        count = 0
        for writes in self.acknowledged.values():
            ordered = sorted(writes, key=lambda write: write.version)
            for older, newer in pairwise(ordered):
                apart_ms = hlc_ms(newer.version) - hlc_ms(older.version)
                if older.dc != newer.dc and apart_ms < one_way_ms(older.dc, newer.dc):
                    count += 1
        return count


def _is_lost(write: Write, found: Found, by_version: Mapping[int, set[bytes]]) -> bool:
    if found.version != write.version:
        return found.version < write.version
    return found.value not in by_version[write.version]
