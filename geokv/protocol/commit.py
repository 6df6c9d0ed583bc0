"""Group commit: what arrives while the disk is busy goes down together in the next frame.

    waiting  --Persist-->  flying  --Persisted-->  frontiers move, tables land, then the callbacks run

At most one frame is under way. Room in the log is reserved before anything is numbered (`reserve`), so a full disk
refuses and leaves no hole in a stream.

Invariants: callbacks of a group run only after all of its records are synced, in the order in which they were added.
A frame holds at most FRAME_BYTES_MAX, unless one batch alone is larger (which limits make impossible).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from geokv.core.limits import FRAME_BYTES_MAX, WAITING_BYTES_MAX
from geokv.protocol.effects import Effect, Persist
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table

Entry = tuple[bytes, Stream | None, int]
"""(the record's bytes, its stream, its number); control records and repaired cells have no stream."""

Callback = Callable[[], None]
FRAME_HEADER_BYTES: Final = 64


class Group:
    """What one frame holds, or will hold."""

    __slots__ = ("entries", "first_hlc", "nbytes", "sync_by_us", "tables", "then")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.nbytes = 0
        self.tables: dict[int, Table] = {}
        self.then: list[Callback] = []
        self.sync_by_us: int | None = None  # None: at once
        self.first_hlc: int | None = None  # the lowest HLC of the records that this node originated


class Commit:
    """The node's way to its log."""

    def __init__(
        self, effects: list[Effect], room_bytes: int, log_sequence: int, control_room_bytes: int = FRAME_HEADER_BYTES
    ) -> None:
        """`control_room_bytes`: kept free of data, so that a full log can still take the node's own notes."""
        self._control_room_bytes = control_room_bytes
        self._effects = effects
        self.room_bytes = room_bytes
        self.room_reason = ""
        self.waiting = Group()
        self.flying: Group | None = None
        self._token = 0
        self._is_split = False
        self._is_telling = False  # the callbacks of a frame that is synced are running
        self.log_sequence = log_sequence  # frames synced
        self.appended_bytes = 0
        self.frames = 0
        self.records = 0
        self.segment = 0
        self.position = (0, 0)  # segment and offset where the payload of the last synced frame ends
        self.on_landed: Callable[[list[Entry]], None] = lambda entries: None
        self.segment_last: dict[int, dict[Stream, int]] = {}

    # --- before -----------------------------------------------------------------------------------------------------

    def reserve(self, nbytes: int, is_control: bool = False) -> str:
        """Why `nbytes` more cannot be taken; empty where they can. Nothing is numbered before this said yes.

        `is_control`: a note of the node to itself, for which some room is kept free of data.
        """
        pending = self.waiting.nbytes + (self.flying.nbytes if self.flying else 0)
        kept_bytes = FRAME_HEADER_BYTES if is_control else self._control_room_bytes
        if pending + nbytes + kept_bytes > self.room_bytes:
            return f"no room in the log ({self.room_reason or 'the next segment is being prepared'})"
        if pending + nbytes > WAITING_BYTES_MAX:
            return f"{pending} bytes wait for the disk already (limit {WAITING_BYTES_MAX})"
        return ""

    def add(
        self, entries: list[Entry], nbytes: int, tables: Iterable[Table], then: Callback | None, sync_by_us: int | None
    ) -> None:
        """Put entries into the next frame. `sync_by_us` None: sync at once; otherwise by that time (interval durability)."""
        group = self.waiting
        if not group.entries and not group.then:
            group.sync_by_us = sync_by_us
        elif sync_by_us is None or group.sync_by_us is None:
            group.sync_by_us = None
        else:
            group.sync_by_us = min(group.sync_by_us, sync_by_us)
        group.entries += entries
        group.nbytes += nbytes
        for table in tables:
            group.tables[table.definition.id] = table
        if then is not None:
            group.then.append(then)

    def originated(self, hlc: int) -> None:
        """The waiting group holds a record that this node originated, stamped `hlc`."""
        if self.waiting.first_hlc is None:
            self.waiting.first_hlc = hlc

    def first_unsynced_hlc(self) -> int | None:
        """The lowest HLC of own records that are not synced yet; None where all are."""
        if self.flying is not None and self.flying.first_hlc is not None:
            return self.flying.first_hlc
        return self.waiting.first_hlc

    def after_pending(self, then: Callback) -> None:
        """Run `then` once everything that was taken in so far is synced (at once if nothing is on its way)."""
        if self.waiting.entries:
            self.waiting.then.append(then)
            self.waiting.sync_by_us = None
        elif self.flying is not None:
            self.flying.then.append(then)
        else:
            then()

    # --- the disk ---------------------------------------------------------------------------------------------------

    def flush(self, now_us: int) -> None:
        """Hand the waiting group to the disk if it is free and the group is due."""
        group = self.waiting
        if self.flying is not None or not group.entries:
            return
        if group.sync_by_us is not None and now_us < group.sync_by_us and group.nbytes < FRAME_BYTES_MAX // 2:
            return
        self._launch(group)

    def _launch(self, group: Group) -> None:
        self.waiting = Group()
        self._is_split = False
        if group.nbytes > FRAME_BYTES_MAX:
            self._split(group)
        self.flying = group
        for table in group.tables.values():
            table.fly()
        self._token += 1
        self._effects.append(Persist(self._token, b"".join([entry[0] for entry in group.entries]), True))

    def _split(self, group: Group) -> None:
        """Keep one frame's worth in `group`; the rest waits on, with the callbacks, which need all of it.

        The tables fly whole: their cells land with the first frame only if nothing of them is in the rest, so they
        wait too.
        """
        rest = Group()
        size = 0
        for index, entry in enumerate(group.entries):
            size += len(entry[0])
            if size > FRAME_BYTES_MAX and index:
                size -= len(entry[0])
                rest.entries = group.entries[index:]
                del group.entries[index:]
                break
        rest.nbytes = group.nbytes - size
        group.nbytes = size
        self._is_split = True
        rest.tables, group.tables = group.tables, {}
        rest.then, group.then = group.then, []
        rest.first_hlc = group.first_hlc
        self.waiting = rest

    def landed(self, token: int, segment: int, offset: int, room_bytes: int) -> None:
        """The frame is synced: frontiers first, then the tables, then whoever waits."""
        group = self.flying
        assert group is not None and token == self._token, f"Persisted({token}), expected {self._token}"
        self.flying = None
        self.room_bytes = room_bytes
        self.room_reason = ""
        self.segment = segment
        self.position = (segment, offset + group.nbytes)
        self.log_sequence += 1
        self.frames += 1
        self.records += len(group.entries)
        self.appended_bytes += group.nbytes
        last = self.segment_last.setdefault(segment, {})
        place = segment << 32 | offset
        for raw, stream, number in group.entries:
            size = len(raw)
            if stream is None:
                pass
            elif (
                number == stream.frontier + 1 == stream.first + len(stream.places)
                and not stream.synced_beyond
                and not stream.voids
            ):
                # As `synced` does it, without the call: it is most of what a synced record costs.
                stream.places.append(place)
                stream.sizes.append(size)
                stream.frontier = last[stream] = number
            else:
                stream.synced(number, segment, place & 0xFFFFFFFF, size)
                if last.get(stream, 0) < number:
                    last[stream] = number
            place += size
        for table in group.tables.values():
            table.land()
        self.on_landed(group.entries)
        self._is_telling = True
        for then in group.then:
            then()
        self._is_telling = False

    @property
    def is_whole(self) -> bool:
        """Whether every record that is synced has its cell in its table (a frame that was split has not yet), and every note
        had its effect: what some of them do is done by the callbacks."""
        return not (self._is_split or self._is_telling)

    @property
    def pending_bytes(self) -> int:
        return self.waiting.nbytes + (self.flying.nbytes if self.flying else 0)

    def wake_at_us(self) -> int | None:
        group = self.waiting
        return group.sync_by_us if group.entries and self.flying is None else None
