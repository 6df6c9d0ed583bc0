"""Closing the streams of what ran before: the answering side. The closer is `protocol.closer`.

Every start is a new incarnation; what earlier ones numbered must come to one end on which all replicas agree, or a
frontier could wait for ever for a number that exists nowhere.

    closer                                owners of the partition, in every datacenter
      │ 1 CloseAsk ─────────────────────────> promise (synced) to take no more of the origin
      │ <──────────────────── CloseAnswer       … and what is held of it
      │   all have answered: what is held is now fixed
      │ 2 RecordsWanted / CloseFill ────────> every owner of this DC takes in, synced, what any owner has
      │   (what is in no log comes as whole cells: protocol.cells_fetch)
      │ 3 agreement: (last number, void numbers), one item per origin and partition
      │ 4 CloseTell ────────────────────────> log it; the rest comes by catching up
      │ 5 all cover it: CloseForget ────────> only that it is closed is remembered

The value of a closing is MessagePack {namespace id: [last number, [void numbers]]}. An empty value in an answer means:
forgotten already.

Invariants: an answer leaves only after the promise, and everything taken before it, is synced. A closing is told only
after it was agreed. A number is void only if no owner holds it: so nothing that any replica acknowledged can be void.
Numbers that some owner covers but no log holds come as whole cells; where nobody who covers them is live, the closing
waits and says so (see `CloseRun.waiting`). An owner that took its claim back has what its log holds, and is brought what its
log lacks; that it covers an end means that nothing more of it is to come to it: the rest comes with its re-entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from geokv.core.limits import LOG_READ_BYTES_MAX
from geokv.core.origin import unpack_origin
from geokv.core.record import decode_records
from geokv.errors import RecordError
from geokv.protocol import control
from geokv.protocol.cells_fetch import CellsFetches, held_of
from geokv.protocol.context import Context
from geokv.protocol.intake import Intake
from geokv.protocol.messages import (
    CloseAnswer,
    CloseAsk,
    CloseFill,
    CloseFilled,
    CloseTell,
    CloseTold,
    RecordsWanted,
    StreamHeld,
)
from geokv.protocol.placement import Placement
from geokv.protocol.streams import Stream

FILL_NUMBERS_MAX: Final = 512
RUNS_TOLD_MAX: Final = 256  # of its runs, the newest that a closer tells

Pair = tuple[bytes, int]
"""(packed origin, partition): what one closing is about."""


class Closings:
    """The answering side: promises, closings that stand, and what is only remembered."""

    def __init__(self, context: Context, placement: Placement, intake: Intake) -> None:
        self._context = context
        self._placement = placement
        self._intake = intake
        self.cells = CellsFetches(context, intake)
        self.known: dict[Pair, bytes] = {}
        self._kept: set[Pair] = set()  # to be forgotten once no backup is being taken any more
        self.seen: dict[str, tuple[int, int]] = {}  # node -> (newest incarnation, log sequence) it has stated
        self._checked: dict[str, int] = {}  # node -> the run of it whose disk was found to hold what was seen of it
        self.on_closed: Callable[[], None] = lambda: None
        self._all_mine = set(placement.mine)
        self.on_over: Callable[[Iterable[Pair]], None] = lambda pairs: None
        self.on_forgotten: Callable[[Stream], None] = lambda stream: None
        self.read_log: Callable[[list[tuple[int, int, int]], Callable[[bytes | None], None]], None] = lambda p, t: t(None)

    # --- promises ---------------------------------------------------------------------------------------------------

    def asked(self, peer: str, message: CloseAsk, answer: Callable[[object], None]) -> None:
        """Promise, and answer once that is synced."""
        context = self._context
        if context.distrusted or context.commit.reserve(64 * len(message.partitions) + 4096, is_control=True):
            return
        partitions = [p for p in message.partitions if 0 <= p < context.partitions and self._placement.is_mine[p]]
        origins = self._origins(message, partitions)
        fresh: list[bytes] = []
        ends_own = False
        for origin in origins:
            promised = context.promised.setdefault(origin, set())
            new = [p for p in partitions if p not in promised and (origin, p) not in self.known]
            new = [p for p in new if p not in context.closed.get(origin, ())]
            if new:
                promised.update(new)
                self._refuse(origin, new)
                fresh.append(control.control_record(control.PROMISE, [origin, new]))
                ends_own |= origin == context.packed
        if ends_own:
            context.is_refusing = "its streams are being closed; it goes on as a new incarnation"
        context.note("close.promised", len(fresh))
        seen_more = self._seen_more(message) if message.current else ""
        if message.current and not seen_more:
            self._checked[message.node] = unpack_origin(message.current).incarnation

        def answered() -> None:
            answer(
                CloseAnswer(
                    message.close,
                    origins,
                    partitions,
                    self._held(origins, partitions),
                    self._closings(origins, partitions),
                    seen_more,
                )
            )
            if ends_own:
                context.on_refused(f"{peer} closes the streams of this incarnation")

        if fresh:
            entries = [(raw, None, 0) for raw in fresh]
            context.commit.add(list(entries), sum(map(len, fresh)), (), answered, None)
        else:
            context.commit.after_pending(answered)

    def _origins(self, message: CloseAsk, partitions: list[int]) -> list[bytes]:
        """What is asked about, and what else is known here as open of that node."""
        origins = dict.fromkeys(message.origins)
        for table in self._context.tables.values():
            for partition in partitions:
                for origin, stream in table.streams.partitions[partition].items():
                    if origin not in origins and stream.last is None and unpack_origin(origin).node == message.node:
                        origins[origin] = None
        for origin in self._context.promised:
            if unpack_origin(origin).node == message.node:
                origins[origin] = None
        if message.current:
            origins.pop(message.current, None)
        # What was asked is answered, over or not: the closer has to learn it.
        return [o for o in origins if o in message.origins or not self._is_over(o, partitions)]

    def _is_over(self, origin: bytes, partitions: list[int]) -> bool:
        over = self._context.closed.get(origin)
        return over is not None and all(p in over for p in partitions)

    def _refuse(self, origin: bytes, partitions: Iterable[int]) -> None:
        for table in self._context.tables.values():
            for partition in partitions:
                stream = table.streams.get(partition, origin)
                if stream is not None and stream.last is None:
                    stream.is_refused = True

    def _held(self, origins: list[bytes], partitions: list[int]) -> list[StreamHeld]:
        held: list[StreamHeld] = []
        for table in self._context.tables.values():
            for partition in partitions:
                for origin in origins:
                    stream = table.streams.get(partition, origin)
                    if stream is not None and (stream.frontier or stream.synced_beyond):
                        held.append(held_of(stream, self._context.claims))
        return held

    def _closings(self, origins: list[bytes], partitions: list[int]) -> list[tuple[bytes, int, bytes]]:
        found: list[tuple[bytes, int, bytes]] = []
        for origin in origins:
            over = self._context.closed.get(origin, ())
            for partition in partitions:
                value = self.known.get((origin, partition))
                if value is not None:
                    found.append((origin, partition, value))
                elif partition in over:
                    found.append((origin, partition, b""))
        return found

    def stated(self, node: str, incarnation: int, log_sequence: int) -> None:
        """A node has stated how much of its log is synced. A new run's word counts once its disk was looked at (`asked`):
        until then it may be an old copy, and what an earlier run stated is the evidence against it."""
        known = self.seen.get(node)
        if known is None or known[0] == incarnation or self._checked.get(node) == incarnation:
            self.seen[node] = (incarnation, log_sequence)

    def _seen_more(self, message: CloseAsk) -> str:
        """Why the asking node's disk holds less than this node has seen of it (empty: it does not)."""
        incarnation, sequence = self.seen.get(message.node, (0, 0))
        current = unpack_origin(message.current).incarnation
        is_told = len(message.runs) < RUNS_TOLD_MAX or incarnation > min(message.runs)
        if incarnation and incarnation != current and is_told and incarnation not in message.runs:
            return f"{self._context.node} has seen a run of {message.node} that its disk does not know of"
        if incarnation != current and sequence > message.log_sequence:
            return (
                f"{self._context.node} has seen {message.node} state {sequence} log frames,"
                f" but its disk held {message.log_sequence} when it started"
            )
        return ""

    # --- records for the closer -------------------------------------------------------------------------------------

    def wanted(self, peer: str, message: RecordsWanted) -> None:
        """A closer asks for records from this node's log."""
        context = self._context
        table = context.tables.get(message.namespace)
        stream = table.streams.get(message.partition, message.origin) if table and self._is_partition(message) else None
        if stream is None:
            return
        places = fitting(place for n in message.numbers[:FILL_NUMBERS_MAX] if stream.has(n) and (place := stream.place(n)))

        def read(raw: bytes | None) -> None:
            """What the log does not hold (any more) is told, too: the closer goes to somebody else."""
            held = [held_of(stream, context.claims)]
            context.send(peer, CloseFill(message.close, raw) if raw else CloseFilled(message.close, held))

        if places:
            self.read_log(places, read)
        else:
            read(None)

    def _is_partition(self, message: RecordsWanted) -> bool:
        return 0 <= message.partition < self._context.partitions

    def filled(self, message: CloseFill, then: Callable[[CloseFilled], None]) -> None:
        """Take in what a closer brings although it was promised not to; `then` once it is synced."""
        try:
            brought = dict.fromkeys((r.namespace, r.partition, r.origin) for r in decode_records(message.records))

            def synced() -> None:
                streams = [self._context.find_stream(*key) for key in brought]
                claims = self._context.claims
                then(CloseFilled(message.close, [held_of(stream, claims) for stream in streams if stream is not None]))

            self._intake.take(message.records, synced, is_closing=True)
        except RecordError as error:
            self._context.note("close.malformed")
            self._context.log("warning", f"a filling of a closing is refused: {error}")

    # --- closings that stand ----------------------------------------------------------------------------------------

    def told(self, message: CloseTell, then: Callable[[CloseTold], None]) -> None:
        """Log the closings, apply them, and say which of them this replica covers."""
        context = self._context
        fresh = [
            control.control_record(control.CLOSING, [origin, partition, value])
            for origin, partition, value in message.closings
            if (origin, partition) not in self.known and partition not in context.closed.get(origin, ())
        ]
        nbytes = sum(map(len, fresh))
        if fresh and context.commit.reserve(nbytes, is_control=True):
            return
        for origin, partition, value in message.closings:
            self.apply(origin, partition, value)

        def synced() -> None:
            pairs = [(origin, partition) for origin, partition, _ in message.closings]
            then(CloseTold(message.close, [pair for pair in pairs if self.is_covered(pair)]))
            if fresh:
                self.on_closed()

        if fresh:
            context.commit.add([(raw, None, 0) for raw in fresh], nbytes, (), synced, None)
        else:
            context.commit.after_pending(synced)

    def apply(self, origin: bytes, partition: int, value: bytes) -> None:
        """Let a closing stand for the streams that are known here."""
        if partition in self._context.closed.get(origin, ()) or (origin, partition) in self.known:
            return
        self.known[origin, partition] = value
        for namespace, (last, voids) in control.unpack(value).items():
            table = self._context.tables.get(namespace)
            if table is not None:
                table.streams.make(partition, origin).close(last, voids)
        for table in self._context.tables.values():
            stream = table.streams.get(partition, origin)
            if stream is not None and stream.last is None:
                stream.close(0, ())
        self._context.note("close.applied")

    def define(self, namespace: int) -> None:
        """A namespace was defined here after closings that name it had come."""
        table = self._context.tables[namespace]
        for (origin, partition), value in self.known.items():
            end = control.unpack(value).get(namespace)
            if end is not None:
                table.streams.make(partition, origin).close(end[0], end[1])

    def is_covered(self, pair: Pair) -> bool:
        """Whether this replica covers every stream of that origin and partition to its last number."""
        origin, partition = pair
        if partition in self._context.closed.get(origin, ()):
            return True
        value = self.known.get(pair)
        if value is None:
            return False
        for namespace, (last, _) in control.unpack(value).items():
            table = self._context.tables.get(namespace)
            if table is None and namespace in self._context.deleted:
                continue
            if table is None:
                return False  # its definition is still on its way
            if last == 0 or self._context.dc not in table.definition.dcs:
                continue
            stream = table.streams.get(partition, origin)
            if stream is None or not stream.is_complete:
                return False
        return True

    def forget(self, pairs: Iterable[Pair]) -> None:
        """Every replica covers these: drop their streams, remember only that they are closed."""
        context = self._context
        if context.is_keeping:
            self._kept.update(pair for pair in pairs if pair in self.known)
            return
        by_origin: dict[bytes, list[int]] = {}
        for pair in pairs:
            if self.is_covered(pair) and pair[1] not in context.closed.get(pair[0], ()):
                by_origin.setdefault(pair[0], []).append(pair[1])
        if not by_origin or context.commit.reserve(4096, is_control=True):
            return
        records = [control.control_record(control.FORGOTTEN, [o, ps]) for o, ps in by_origin.items()]
        context.commit.add([(raw, None, 0) for raw in records], sum(map(len, records)), (), None, None)
        for origin, partitions in by_origin.items():
            self.apply_forgotten(origin, partitions)
            self.on_over([(origin, partition) for partition in partitions])
        context.note("close.forgotten")

    def tick(self) -> None:
        """Forget what was kept for a backup."""
        if self._kept and not self._context.is_keeping:
            pairs, self._kept = self._kept, set()
            self.forget(pairs)

    def apply_forgotten(self, origin: bytes, partitions: Iterable[int]) -> None:
        context = self._context
        over = context.closed.setdefault(origin, set())
        if over is self._all_mine:
            context.promised.pop(origin, None)  # an old note of the promise may have been read again
            return
        promised = context.promised.get(origin, set())
        for partition in partitions:
            over.add(partition)
            promised.discard(partition)
            self.known.pop((origin, partition), None)
            for table in context.tables.values():
                stream = table.streams.get(partition, origin)
                if stream is not None:
                    table.streams.drop(partition, origin)
                    self.on_forgotten(stream)
        if not promised:
            context.promised.pop(origin, None)
        if len(over) == len(self._all_mine):
            context.closed[origin] = self._all_mine  # one set for all origins that are closed throughout


def fitting(places: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """As many of these places in a log as one message may bring; at least one."""
    taken: list[tuple[int, int, int]] = []
    nbytes = 0
    for place in places:
        nbytes += place[2]
        if taken and nbytes > LOG_READ_BYTES_MAX:
            break
        taken.append(place)
    return taken
