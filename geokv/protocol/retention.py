"""Retention: how long log segments live, and when the log is so long that writes are refused.

A segment may go when all of it is flushed into tables, every co-owner here covers its records, and, for records that
this datacenter originated, so does the frontier of every other DC that holds the namespace. Until fencing exists,
nobody stops waiting: past the budget writes are refused, naming who holds the log up.

Invariants: a segment is never removed while somebody may still ask for a record in it, or a snapshot that is being
taken is to contain it.
"""

from __future__ import annotations

from geokv.core.limits import MIB
from geokv.core.origin import unpack_origin
from geokv.protocol.context import Context
from geokv.protocol.effects import Trim
from geokv.protocol.placement import Placement
from geokv.protocol.streams import Stream


class Retention:
    """Decides which log segments go."""

    def __init__(self, context: Context, placement: Placement, segment_bytes: int) -> None:
        self._context = context
        self._segment_bytes = segment_bytes
        self._placement = placement
        self.built_segment = 0
        self.is_held = False  # a snapshot is being taken: what it is to contain stays
        self.first_segment = 1
        self.held_by: dict[str, int] = {}  # who holds the oldest segment, and from which number

    def log_bytes(self) -> int:
        """What the log takes on disk, spare segment aside."""
        return (self._context.commit.segment - self.first_segment + 1) * self._segment_bytes

    def refusal(self, bytes_max: int) -> str:
        """Why writes are refused (empty: they are not)."""
        if self.log_bytes() <= bytes_max:
            return ""
        full = f"the log holds {self.log_bytes() // MIB} MiB (limit {bytes_max // MIB} MiB)"
        if not self.held_by:
            return f"{full}, and what may go is being removed"
        return f"{full}, waiting for {', '.join(sorted(self.held_by))}; bring it back, or raise log_bytes_max"

    def trim(self) -> None:
        """Let go of the oldest segments that nobody needs."""
        if self.is_held:
            return
        commit = self._context.commit
        gone = 0
        for segment in sorted(commit.segment_last):
            if segment >= self.built_segment or segment >= commit.segment or not self._is_free(segment):
                break
            gone = segment + 1
        if not gone:
            return
        for segment in [s for s in commit.segment_last if s < gone]:
            del commit.segment_last[segment]
        for table in self._context.tables.values():
            for stream in table.streams:
                stream.drop_places(gone)
        self.first_segment = gone
        self._context.effects.append(Trim(gone))
        self._context.note("log.trimmed")

    def _is_free(self, segment: int) -> bool:
        self.held_by = {}
        for stream, last in self._context.commit.segment_last[segment].items():
            for who, covers in self._needs(stream):
                if covers < last:
                    self.held_by[who] = covers
        return not self.held_by

    def _needs(self, stream: Stream) -> list[tuple[str, int]]:
        """(who, up to which number it covers the stream) of everybody who may still ask for it."""
        context = self._context
        table = context.tables.get(stream.namespace)
        if table is None or table.streams.get(stream.partition, stream.origin) is not stream:
            return []  # deleted, or closed and covered by everybody
        needs = [(node, stream.peers.get(node, 0)) for node in self._placement.owners[stream.partition] if node != context.node]
        origin = unpack_origin(stream.origin)
        if origin.dc != context.dc:
            return needs
        if origin.node == context.node:
            others = [dc for dc in table.definition.dcs if dc != context.dc]
            return needs + [(dc, stream.dcs.get(dc, 0)) for dc in others]
        if len(table.definition.dcs) > 1:
            needs.append((f"shipping by {origin.node}", max(stream.shipped, 0)))
        return needs
