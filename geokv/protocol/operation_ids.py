"""Operation ids at an owner: which operations this node has numbered, and which it never will.

    numbered ──> the ids of this run's newest records, joined per batch: asked only when somebody retries
    asked about an id ─┬─ this run has numbered it ──────────────> FOUND, with the record (EVERYWHERE: no log needs it any more)
                       ├─ a log has it, of a node that is looked for > FOUND
                       ├─ neither, and it cannot be an older one ─> held for NOBODY, synced ──> NEVER
                       │    ... and this owner may have handed it on to a co-owner ───────────> HANDED_ON
                       └─ else ──────────────────────────────────> UNSURE, and why

What is *held* may be numbered here by one retry alone, or by nobody: a first try that arrives late is refused before it is
numbered. It is noted in the log, so that a later run of this node refuses it too.

An earlier run of this node has left its records in the log, or its closing brings them: before the streams of the partition
are closed nothing is said for it. Its records are looked for there, newest first, until they are older than the first try.

Who was promised NEVER may apply the operation: so a retry here of the same operation, that does not know of it (another process
took the operation over), asks there too.

Invariants: NEVER is said only when no run of this node has numbered the operation or can do so, provided that the first try
is as old as is said, that no message is on its way for longer than LATE_US, and that clocks did not jump by as much between
two runs. It is said after what holds the id is synced.

Not here: who asks whom and what follows from the answers (`retries`).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from geokv.core.hlc import hlc_ms
from geokv.core.limits import (
    FOUND_BYTES_MAX,
    LOG_READ_BYTES_MAX,
    OPERATIONS_HELD_MAX,
    OPERATIONS_REMEMBERED_MAX,
    RETRY_SCAN_BYTES_MAX,
    RETRY_WINDOW_MS,
)
from geokv.core.origin import unpack_origin
from geokv.core.record import Record, decode_records
from geokv.errors import RecordError
from geokv.protocol import control
from geokv.protocol.messages import OperationsAsk, OperationsTold
from geokv.protocol.requests import ANYBODY
from geokv.protocol.streams import Stream

if TYPE_CHECKING:
    from geokv.core.cells.cell_type import CellType
    from geokv.protocol.context import Context

LATE_US: Final = 30_000_000  # longer than any message is on its way
HELD_US: Final = 2 * RETRY_WINDOW_MS * 1000
REMEMBERED_US: Final = RETRY_WINDOW_MS * 1000 + 2 * LATE_US
ID_BYTES: Final = 16
CHUNK_OPERATIONS: Final = 8_192
CHUNK_US: Final = 30_000_000
SEARCHED_ALONE_MAX: Final = 24  # so many ids are searched one by one; more in one pass over all that is remembered
PAGE_NUMBERS: Final = 512  # of one stream, in one read of the log
NOBODY: Final = -1

NEVER: Final = 0
FOUND: Final = 1
EVERYWHERE: Final = 2
UNSURE: Final = 3
OTHER: Final = 4
HANDED_ON: Final = 5

UNTOLD: Final[frozenset[str]] = frozenset()
_ID: Final = Struct(f"{ID_BYTES}s")
ReadLog = Callable[[list[tuple[int, int, int]], Callable[[bytes | None], None]], None]


class Finding(NamedTuple):
    """What an owner says of one operation: FOUND with its record, EVERYWHERE with the version that it wrote.

    OTHER: its id was given to an operation on another key. HANDED_ON: as NEVER, but without its claim this owner gives
    what it is asked to its co-owners, so they must say it too.
    """

    state: int
    raw: bytes = b""
    version: int = 0
    reason: str = ""


class _Chunk:
    """Some thousand operations that this run has numbered, one after the other."""

    __slots__ = ("ids", "last_us", "numbers", "since_us", "versions")

    def __init__(self, now_us: int) -> None:
        self.ids = bytearray()
        self.numbers: array[int] = array("Q")
        self.versions: array[int] = array("Q")
        self.since_us = now_us
        self.last_us = now_us

    def find_all(self, names: set[bytes]) -> dict[bytes, tuple[int, int]]:
        """(number, version) of those that are here; of the later record, where one was stamped again."""
        if len(names) > SEARCHED_ALONE_MAX:
            names = {name for (name,) in {(name,) for name in names}.intersection(_ID.iter_unpack(self.ids))}
        return {name: found for name in names if (found := self._find(name)) is not None}

    def _find(self, name: bytes) -> tuple[int, int] | None:
        at = self.ids.rfind(name)
        while at >= 0 and at % ID_BYTES:
            at = self.ids.rfind(name, 0, at + ID_BYTES - 1)
        return (self.numbers[at // ID_BYTES], self.versions[at // ID_BYTES]) if at >= 0 else None


class OperationIds:
    """What this node knows of operation ids."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # id -> (the retry that may number it here, until when, to whom it was said that nobody will), oldest first
        self.held: dict[bytes, tuple[int, int, frozenset[str]]] = {}
        self._chunks: deque[_Chunk] = deque([_Chunk(context.now_us)])
        self._remembered = 0
        self._complete_since_us: int | None = None  # None: all that this run has numbered is remembered
        self._started_us = context.now_us
        self.log_since_ms = 0  # what this node numbered before that may stand in no log any more
        self._gone: dict[tuple[int, int], list[tuple[int, Stream]]] = {}  # forgotten streams, whose records the log may hold
        self.read_log: ReadLog = lambda places, then: then(None)
        self.is_settled: Callable[[int], bool] = lambda partition: False  # earlier runs of this node, in a partition

    @property
    def remembered(self) -> int:
        return self._remembered

    # --- what was numbered ------------------------------------------------------------------------------------------

    def numbered(self, names: list[bytes], numbers: list[int], versions: list[int]) -> None:
        """This run has numbered these operations."""
        chunk = self._chunks[-1]
        now_us = self._context.now_us
        if len(chunk.numbers) >= CHUNK_OPERATIONS or now_us - chunk.since_us > CHUNK_US:
            self._drop_old()
            chunk = _Chunk(now_us)
            self._chunks.append(chunk)
        chunk.ids += b"".join(names)
        chunk.numbers.extend(numbers)
        chunk.versions.extend(versions)
        chunk.last_us = now_us
        self._remembered += len(names)

    def _drop_old(self) -> None:
        """Forget what is older than any retry that is answered, and the oldest of what is too much."""
        before_us = self._context.now_us - REMEMBERED_US
        chunks = self._chunks
        while chunks and (chunks[0].last_us < before_us or self._remembered > OPERATIONS_REMEMBERED_MAX):
            gone = chunks.popleft()
            self._remembered -= len(gone.numbers)
            self._complete_since_us = gone.last_us

    def find_all(self, names: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
        """(number, version) under which this run has numbered operations last; of those that it has."""
        found: dict[bytes, tuple[int, int]] = {}
        wanted = set(names)
        for chunk in reversed(self._chunks):
            newest = chunk.find_all(wanted)
            found |= newest
            wanted -= newest.keys()
            if not wanted:
                break
        return found

    # --- what may not be numbered -----------------------------------------------------------------------------------

    def hold(
        self, names: Iterable[bytes], right: int, then: Callable[[], None] | None = None, told: frozenset[str] = UNTOLD
    ) -> bool:
        """From now on only the retry with that right numbers these here (NOBODY: none does). False: there is no room.

        `then` runs once that is synced; `told`: who is promised it.
        """
        context = self._context
        names = list(names)
        self._expire_held()
        note = control.control_record(control.HELD, b"".join(names))
        if len(self.held) + len(names) > OPERATIONS_HELD_MAX or context.commit.reserve(len(note), is_control=True):
            context.note("retry.no_room")
            return False
        until_us = context.now_us + HELD_US
        for name in names:
            before = self.held.pop(name, None)
            self.held[name] = right, until_us, told if before is None else before[2] | told
        context.commit.add([(note, None, 0)], len(note), (), then, None)
        return True

    def promised_to(self, name: bytes) -> frozenset[str]:
        """Who may number an operation because it was told that nobody will here (ANYBODY: an earlier run has told somebody)."""
        held = self.held.get(name)
        return UNTOLD if held is None else held[2]

    def may_number(self, name: bytes, right: int) -> bool:
        """Whether an operation may be numbered here by whoever has that right (0: a first try)."""
        held = self.held.get(name)
        return held is None or held[0] == right

    def _expire_held(self) -> None:
        now_us = self._context.now_us
        while self.held:
            name, (_, until_us, _) = next(iter(self.held.items()))
            if until_us > now_us:
                return
            del self.held[name]

    def restore_held(self, packed: bytes) -> None:
        """An earlier run has held these."""
        until_us = self._context.now_us + HELD_US
        for at in range(0, len(packed), ID_BYTES):
            self.held[packed[at : at + ID_BYTES]] = NOBODY, until_us, frozenset((ANYBODY,))

    def packed_held(self) -> bytes:
        """What is held, as it stands beside flushed cells."""
        self._expire_held()
        return b"".join(self.held)

    def forgotten(self, stream: Stream) -> None:
        """A closed stream leaves the tables; its records are still looked for in the log."""
        until_us = self._context.now_us + HELD_US
        self._gone.setdefault((stream.namespace, stream.partition), []).append((until_us, stream))

    def found_closed(self, record: Record, segment: int, offset: int) -> None:
        """Recovery met a record of a stream that was forgotten."""
        known = self._gone.setdefault((record.namespace, record.partition), [])
        stream = next((stream for _, stream in known if stream.origin == record.origin), None)
        if stream is None:
            stream = Stream(record.namespace, record.partition, record.origin)
            known.append((self._context.now_us + HELD_US, stream))
        stream.synced(record.number, segment, offset, len(record.raw))
        stream.frontier = max(stream.frontier, record.number)  # it was covered to its end

    def tick(self) -> None:
        """Let go of what is too old to be asked for."""
        now_us = self._context.now_us
        for key, streams in list(self._gone.items()):
            left = [(until_us, stream) for until_us, stream in streams if until_us > now_us]
            if left:
                self._gone[key] = left
            else:
                del self._gone[key]

    # --- answering --------------------------------------------------------------------------------------------------

    def asked(self, peer: str, message: OperationsAsk) -> None:
        """A coordinator asks about operations that were tried before."""
        context = self._context
        if context.distrusted:
            return
        items = [
            (partition, message.ids[at * ID_BYTES : (at + 1) * ID_BYTES]) for at, partition in enumerate(message.partitions)
        ]

        def answer(findings: list[Finding]) -> None:
            reason = next((finding.reason for finding in findings if finding.reason), "")
            context.send(
                peer,
                OperationsTold(
                    message.ask,
                    bytes([finding.state for finding in findings]),
                    b"".join([finding.raw for finding in findings]),
                    [finding.version for finding in findings if finding.state == EVERYWHERE],
                    reason,
                ),
            )

        self.look(message.namespace, items, message.age_ms, message.nodes, peer, answer)

    def look(
        self,
        namespace: int,
        items: list[tuple[int, bytes]],
        age_ms: int,
        nodes: Iterable[str],
        asker: str,
        then: Callable[[list[Finding]], None],
    ) -> None:
        """Say of each (partition, id) what became of it; `then` runs once.

        `nodes`: whose records are looked for in the log, beside this node's own. `asker`: what is not found is held for
        nobody, and promised to that node; empty: the one who asks has seen to it.
        """
        context = self._context
        table = context.tables.get(namespace)
        if table is None:
            then([Finding(UNSURE, reason=f"{context.node} does not know this namespace")] * len(items))
            return
        is_older_possible = context.now_us - self._started_us < age_ms * 1000 + LATE_US
        known = self.find_all([name for _, name in items])
        own = {at: known[name] for at, (_, name) in enumerate(items) if name in known}
        absent = [at for at in range(len(items)) if at not in own]
        unsure = self._too_old(age_ms)
        cut_ms = context.wall_ms - age_ms - LATE_US // 1000
        if is_older_possible and not unsure and cut_ms <= self.log_since_ms:
            unsure = self._cut_off()
        lost = context.claims.mine(namespace)
        settled = {partition for partition, _ in items if not is_older_possible or self.is_settled(partition)}
        names = set(nodes) | ({context.node} if is_older_possible else set())
        kind = table.policy.kind

        def decide(scan: _Scan, at: int) -> Finding:
            partition, name = items[at]
            if name in scan.found:
                return Finding(FOUND, scan.found[name])
            why = unsure
            if not why and partition not in settled:
                why = f"what ran before on {context.node} is not closed yet"
            if not why and is_older_possible:
                why = self._not_looked_through(scan, partition, kind)
            if why:
                return Finding(UNSURE, reason=why)
            return Finding(HANDED_ON if partition in lost else NEVER)

        def synced() -> None:
            streams = self._streams_of(namespace, {items[at][0] for at in absent}, names)
            scan = _Scan(self.read_log, {items[at][1] for at in absent}, streams, cut_ms)

            def scanned(mine: dict[int, Finding]) -> None:
                then(_bounded([mine.get(at) or decide(scan, at) for at in range(len(items))]))

            numbered = {at: (items[at][0], *own[at]) for at in own}
            self._read_own(namespace, numbered, lambda mine: scan.run(lambda: scanned(mine)))

        fresh = self._promise([items[at][1] for at in absent], asker) if asker else []
        if fresh and self.hold(fresh, NOBODY, synced, frozenset((asker,))):
            return
        if fresh:
            unsure = unsure or f"{context.node} has no room to remember what it shall refuse"
        context.commit.after_pending(synced)

    def _not_looked_through(self, scan: _Scan, partition: int, kind: CellType | None) -> str:
        """Why an earlier run may have applied what was not found of it (empty: it cannot have)."""
        where = (self._context.node, partition)
        if where in scan.incomplete:
            return self._cut_off()
        if where in scan.void and kind is not None and kind.has_totals:
            return f"a record of {self._context.node} was lost, and later ones contain what it counted"
        return ""

    def _cut_off(self) -> str:
        return f"the log of {self._context.node} does not reach back to the first try"

    def _too_old(self, age_ms: int) -> str:
        """Why this run may have forgotten an operation whose first try is so old (empty: it cannot have)."""
        if age_ms > RETRY_WINDOW_MS:
            return f"the first try is {age_ms} ms ago: beyond {RETRY_WINDOW_MS} ms nobody remembers"
        since_us = self._complete_since_us
        if since_us is not None and self._context.now_us - age_ms * 1000 - LATE_US < since_us:
            return f"{self._context.node} has numbered too much since the first try to remember all of it"
        return ""

    def _promise(self, names: list[bytes], asker: str) -> list[bytes]:
        """Note who is promised what is held for nobody already; those of `names` that are not."""
        fresh = []
        for name in names:
            held = self.held.get(name)
            if held is None or held[0] != NOBODY:
                fresh.append(name)
            else:
                self.held[name] = NOBODY, held[1], held[2] | {asker}
        return fresh

    def _streams_of(self, namespace: int, partitions: Iterable[int], nodes: set[str]) -> list[Stream]:
        """The streams of those nodes, but not of this very run."""
        found: list[Stream] = []
        streams = self._context.tables[namespace].streams.partitions
        for partition in partitions:
            known = [*streams[partition].values(), *(stream for _, stream in self._gone.get((namespace, partition), ()))]
            found += [s for s in known if s.origin != self._context.packed and unpack_origin(s.origin).node in nodes]
        return found

    def _read_own(
        self, namespace: int, own: dict[int, tuple[int, int, int]], then: Callable[[dict[int, Finding]], None]
    ) -> None:
        """Read the records that this run has numbered, as (partition, number, version)."""
        context = self._context
        findings: dict[int, Finding] = {}
        places: list[tuple[int, int, int]] = []
        order: list[int] = []

        def own_stream(partition: int) -> Stream | None:
            return context.find_stream(namespace, partition, context.packed)

        nbytes = 0
        for at, (partition, number, version) in own.items():
            stream = own_stream(partition)
            if stream is None or number > stream.received:
                findings[at] = Finding(OTHER)
            elif (place := stream.place(number)) is None:
                findings[at] = Finding(EVERYWHERE, version=version)
            elif order and nbytes + place[2] > LOG_READ_BYTES_MAX:
                findings[at] = Finding(UNSURE, reason="the answer has no room for more records: they come with the next one")
            else:
                nbytes += place[2]
                places.append(place)
                order.append(at)

        def read(raw: bytes | None) -> None:
            records = _decoded(raw)
            for index, at in enumerate(order):
                partition, number, version = own[at]
                if len(records) == len(order):
                    findings[at] = Finding(FOUND, records[index].raw)
                elif (stream := own_stream(partition)) is None or stream.place(number) is None:
                    findings[at] = Finding(EVERYWHERE, version=version)  # trimmed meanwhile: all who should have it do
                else:
                    findings[at] = Finding(UNSURE, reason=f"{context.node} cannot read its record of it")
            then(findings)

        if places:
            self.read_log(places, read)
        else:
            then(findings)


class _Scan:
    """Looks for operations in streams of this node's log, newest records first, until they are older than `cut_ms`."""

    def __init__(self, read_log: ReadLog, wanted: set[bytes], streams: list[Stream], cut_ms: int) -> None:
        self._read_log = read_log
        self._wanted = wanted
        self._cut_ms = cut_ms
        self._next = {stream: max([stream.frontier, *stream.synced_beyond]) for stream in streams}
        self._nbytes = 0
        self.found: dict[bytes, bytes] = {}
        self.incomplete: set[tuple[str, int]] = set()  # (node, partition) of streams that the log does not hold far enough
        self.void: set[tuple[str, int]] = set()  # (node, partition) of streams with numbers that exist nowhere

    def run(self, then: Callable[[], None]) -> None:
        """Read on until all is seen; `then` runs once."""
        places: list[tuple[int, int, int]] = []
        nbytes = 0
        for stream in list(self._next):
            taken = self._page(stream, LOG_READ_BYTES_MAX - nbytes)
            places += taken
            nbytes += sum([place[2] for place in taken])
            if nbytes >= LOG_READ_BYTES_MAX // 2:
                break
        self._nbytes += nbytes
        if not places:
            then()
        elif self._nbytes > RETRY_SCAN_BYTES_MAX:
            self._give_up()
            then()
        else:
            self._read_log(places, lambda raw: self._seen(raw, then))

    def _page(self, stream: Stream, nbytes_max: int) -> list[tuple[int, int, int]]:
        """The places of the next numbers of a stream, downwards."""
        places: list[tuple[int, int, int]] = []
        number = self._next[stream]
        while number > 0 and len(places) < PAGE_NUMBERS:
            place = stream.place(number)
            if place is not None:
                nbytes_max -= place[2]
                if nbytes_max < 0 and places:
                    break
                places.append(place)
            elif number in stream.voids:
                self.void.add((unpack_origin(stream.origin).node, stream.partition))
            elif stream.has(number):
                self._leave_out(stream)  # it is in cells only; what is below stands in no log either, or is older still
                return places
            number -= 1
        self._next[stream] = number
        if number <= 0:
            del self._next[stream]
        return places

    def _leave_out(self, stream: Stream) -> None:
        self.incomplete.add((unpack_origin(stream.origin).node, stream.partition))
        self._next.pop(stream, None)

    def _give_up(self) -> None:
        for stream in list(self._next):
            self._leave_out(stream)

    def _seen(self, raw: bytes | None, then: Callable[[], None]) -> None:
        records = _decoded(raw)
        if not records:
            self._give_up()
            then()
            return
        old: set[tuple[int, int, bytes]] = set()
        for record in records:
            name = record.operation
            if name in self._wanted and (
                name not in self.found or record.cell > decode_records(self.found[name], False)[0].cell
            ):
                self.found[name] = record.raw
            if hlc_ms(record.hlc) < self._cut_ms:
                old.add((record.namespace, record.partition, record.origin))
        for stream in [stream for stream in self._next if stream.key in old]:
            del self._next[stream]
        self.run(then)


def _decoded(raw: bytes | None) -> list[Record]:
    """What the log has given; nothing where it cannot be read."""
    try:
        return decode_records(raw or b"", verify=False)
    except RecordError:
        return []


def _bounded(findings: list[Finding]) -> list[Finding]:
    """As many records as one message may bring, at least one; the rest comes when it is asked for again."""
    nbytes = 0
    for at, finding in enumerate(findings):
        if nbytes and nbytes + len(finding.raw) > FOUND_BYTES_MAX:
            findings[at] = Finding(UNSURE, reason="the answer has no room for more records: they come with the next one")
        else:
            nbytes += len(finding.raw)
    return findings
