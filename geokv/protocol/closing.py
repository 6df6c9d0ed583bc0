"""Closing the streams of what ran before: the answering side, and the closer.

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
waits and says so (see `waiting`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from geokv.core.limits import LOG_READ_BYTES_MAX
from geokv.core.origin import unpack_origin
from geokv.core.record import decode_records
from geokv.errors import GeokvError, RecordError
from geokv.protocol import control
from geokv.protocol.cells_fetch import CellsFetches, held_of
from geokv.protocol.context import Context
from geokv.protocol.intake import Intake
from geokv.protocol.messages import (
    CellsFetch,
    CloseAnswer,
    CloseAsk,
    CloseFill,
    CloseFilled,
    CloseForget,
    CloseTell,
    CloseTold,
    RecordsWanted,
    StreamHeld,
)
from geokv.protocol.placement import Placement
from geokv.protocol.streams import Stream

ASK_AGAIN_US: Final = 1_000_000
TELL_AGAIN_US: Final = 2_000_000
UNTOLD_US: Final = 10_000_000
FILL_NUMBERS_MAX: Final = 512
RUNS_TOLD_MAX: Final = 256  # of its runs, the newest that a closer tells
ITEM_PREFIX: Final = b"close/"
PROPOSE_MAX: Final = 256

Pair = tuple[bytes, int]
"""(packed origin, partition): what one closing is about."""


def closing_item(origin: bytes, partition: int) -> bytes:
    """The name under which a closing is agreed."""
    return ITEM_PREFIX + partition.to_bytes(2, "big") + origin


def pair_of_item(item: bytes) -> Pair:
    """Inverse of `closing_item`."""
    start = len(ITEM_PREFIX)
    return item[start + 2 :], int.from_bytes(item[start : start + 2], "big")


class Closings:
    """The answering side: promises, closings that stand, and what is only remembered."""

    def __init__(self, context: Context, placement: Placement, intake: Intake) -> None:
        self._context = context
        self._placement = placement
        self._intake = intake
        self.cells = CellsFetches(context, intake)
        self.known: dict[Pair, bytes] = {}
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
                        held.append(held_of(stream))
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
            context.send(peer, CloseFill(message.close, raw) if raw else CloseFilled(message.close, [held_of(stream)]))

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
                then(CloseFilled(message.close, [held_of(stream) for stream in streams if stream is not None]))

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


class _Closing:
    """One (origin, partition) on its way to being closed."""

    __slots__ = ("attempt", "fill_at_us", "held", "phase", "promised", "stands_us", "told", "value")

    def __init__(self) -> None:
        self.promised: set[str] = set()
        self.held: dict[int, dict[str, StreamHeld]] = {}  # namespace -> node -> what it has
        self.phase = "asking"  # asking, filling, agreeing, telling, done
        self.value = b""
        self.told: set[str] = set()
        self.stands_us = 0  # since when it is being told
        self.fill_at_us = 0
        self.attempt = 0  # to bring what is missing, since somebody last had news


class CloseRun:
    """The closer: brings the streams of all but the present run of one node to their end."""

    def __init__(
        self,
        context: Context,
        closings: Closings,
        placement: Placement,
        propose: Callable[[dict[bytes, bytes]], int],
        node: str,
        runs: list[int],
        log_sequence: int,
        is_self: bool,
    ) -> None:
        self._context = context
        self._closings = closings
        self._placement = placement
        self._propose = propose
        self.close = context.next_id()
        self.node = node
        self._runs = runs
        self._log_sequence = log_sequence
        self._current = context.packed if is_self else b""
        self._pairs: dict[Pair, _Closing] = {}
        self._partitions = [p for p in placement.mine if node in placement.owners[p]]
        self._owners: dict[str, list[int]] = {}
        for partition in self._partitions:
            for _, owner in placement.everyone(partition):
                self._owners.setdefault(owner, []).append(partition)
        self.answered: set[str] = set()
        self._asked_us = -ASK_AGAIN_US
        self._told_us = -TELL_AGAIN_US
        self._tickets: dict[int, list[Pair]] = {}
        self._origins: dict[bytes, None] = {}
        self.waiting = ""
        self.seen_more = ""

    # --- 1: asking --------------------------------------------------------------------------------------------------

    def begin(self, origins: Iterable[bytes]) -> None:
        """Start with the origins that this node's disk knows of."""
        for origin in origins:
            self._discover(origin)
        self.tick()

    def _discover(self, origin: bytes) -> bool:
        if origin in self._origins:
            return False
        self._origins[origin] = None
        over = self._context.closed.get(origin, ())
        for partition in self._partitions:
            if partition not in over:
                self._pairs[origin, partition] = _Closing()
        return True

    @property
    def is_done(self) -> bool:
        """Everybody was asked, and everything found is closed and covered everywhere."""
        return len(self.answered) == len(self._owners) and all(c.phase == "done" for c in self._pairs.values())

    @property
    def open_pairs(self) -> int:
        return sum(1 for closing in self._pairs.values() if closing.phase != "done")

    def tick(self) -> None:
        """Ask, fill and tell again whom it may not have reached."""
        context = self._context
        if self.is_done or context.distrusted:
            return
        if context.now_us - self._asked_us >= ASK_AGAIN_US:
            self._asked_us = context.now_us
            self._ask_missing()
        self._note_ended_by_others()
        for pair, closing in list(self._pairs.items()):
            if closing.phase == "filling" and context.now_us >= closing.fill_at_us:
                closing.attempt += 1
                self._fill(pair, closing)
        self._agree()
        if context.now_us - self._told_us >= TELL_AGAIN_US:
            self._told_us = context.now_us
            telling = [pair for pair, closing in self._pairs.items() if closing.phase == "telling"]
            self._tell(telling)
            self._note_untold(telling)

    def _note_untold(self, telling: list[Pair]) -> None:
        """Say who has not covered a closing that stands for long: it has to come up, and to catch up."""
        for pair in telling:
            closing = self._pairs[pair]
            if self._context.now_us - closing.stands_us >= UNTOLD_US:
                lacking = sorted({node for _, node in self._placement.everyone(pair[1])} - closing.told)
                self.waiting = (
                    f"{', '.join(lacking)} to cover what {unpack_origin(pair[0])} wrote in partition {pair[1]}"
                    f" ({len(telling)} streams to go)"
                )
                return
        if not any(closing.phase == "filling" for closing in self._pairs.values()):
            self.waiting = ""

    def _note_ended_by_others(self) -> None:
        """Another closer may have been faster: what stands here stands, and what is over is done."""
        for pair, closing in self._pairs.items():
            if closing.phase == "done":
                continue
            if pair[1] in self._context.closed.get(pair[0], ()):
                closing.phase = "done"
            elif closing.phase != "telling" and (value := self._closings.known.get(pair)) is not None:
                self._stands(pair, value)

    def wake_at_us(self) -> int | None:
        if self.is_done:
            return None
        return min(self._asked_us + ASK_AGAIN_US, self._told_us + TELL_AGAIN_US)

    def _ask_missing(self) -> None:
        for owner, partitions in self._owners.items():
            missing = owner not in self.answered or any(
                closing.phase == "asking" and owner not in closing.promised and pair[1] in set(partitions)
                for pair, closing in self._pairs.items()
            )
            if missing:
                self._ask(owner, partitions)

    def heard(self, owner: str) -> None:
        """An owner speaks: ask it at once if it has not answered yet."""
        if owner in self._owners and owner not in self.answered and not self._context.distrusted:
            self._ask(owner, self._owners[owner])

    def _ask(self, owner: str, partitions: list[int]) -> None:
        context = self._context
        message = CloseAsk(
            self.close, self.node, self._current, list(self._origins), partitions, self._runs, self._log_sequence
        )
        if owner == context.node:
            self._closings.asked(owner, message, lambda answer: self.answer(owner, answer))
        elif context.peers[owner].is_connected:
            context.send(owner, message)

    def answer(self, peer: str, message: object) -> None:
        """An owner has promised."""
        if not isinstance(message, CloseAnswer) or message.close != self.close or peer not in self._owners:
            return
        if message.seen_more:
            self.seen_more = message.seen_more
            return  # an old copy of a disk closes nothing
        self.answered.add(peer)
        discovered = [self._discover(origin) for origin in message.origins]
        for origin, partition, value in message.closings:
            self._found(origin, partition, value)
        # Forgotten elsewhere: so every replica covers it, this one too.
        self._closings.forget([(origin, partition) for origin, partition, value in message.closings if not value])
        partitions = set(message.partitions)
        for origin in message.origins:
            for partition in partitions:
                closing = self._pairs.get((origin, partition))
                if closing is not None and closing.phase == "asking":
                    closing.promised.add(peer)
        self._note_held(peer, message.held)
        if any(discovered):
            self._asked_us = self._context.now_us
            self._ask_missing()
        self._advance()

    def _note_held(self, peer: str, held: list[StreamHeld]) -> list[Pair]:
        """Note what a node has; returns where that is news."""
        news: list[Pair] = []
        for stream in held:
            pair = (stream.origin, stream.partition)
            closing = self._pairs.get(pair)
            if closing is not None:
                known = closing.held.setdefault(stream.namespace, {})
                if known.get(peer) != stream:
                    news.append(pair)
                known[peer] = stream
        return news

    def _found(self, origin: bytes, partition: int, value: bytes) -> None:
        """Somebody knows the closing already: it stands, finish it."""
        closing = self._pairs.get((origin, partition))
        if closing is None or closing.phase in ("telling", "done"):
            return
        if value:
            self._stands((origin, partition), value)
        else:
            closing.phase = "done"

    def _advance(self) -> None:
        """Go on with every pair all of whose owners have promised."""
        for pair, closing in list(self._pairs.items()):
            if closing.phase == "asking":
                owners = {node for _, node in self._placement.everyone(pair[1])}
                if owners <= closing.promised:
                    closing.phase = "filling"
                    self._fill(pair, closing)
        self._agree()

    # --- 2: every owner of this DC takes in what any owner has ------------------------------------------------------

    def _present(self, held: dict[str, StreamHeld]) -> tuple[int, set[int], int]:
        """(last number, present numbers above the highest frontier, highest frontier) over all owners."""
        frontier = max((h.frontier for h in held.values()), default=0)
        beyond = {n for h in held.values() for n in h.beyond if n > frontier}
        return max(beyond, default=frontier), beyond, frontier

    def _fill(self, pair: Pair, closing: _Closing) -> None:
        context = self._context
        closing.fill_at_us = context.now_us + ASK_AGAIN_US
        is_filled = True
        for namespace, held in closing.held.items():
            if namespace in context.deleted:
                continue  # nobody takes its records any more
            _, beyond, frontier = self._present(held)
            for owner in self._placement.owners[pair[1]]:
                has = held.get(owner)
                missing = missing_of(has, frontier, beyond)
                if missing:
                    is_filled = False
                    self._bring(pair, namespace, owner, missing, closing)
        if is_filled:
            self.waiting = ""
            closing.value = control.pack(
                {
                    namespace: [last, [n for n in range(frontier + 1, last) if n not in beyond]]
                    for namespace, held in sorted(closing.held.items())
                    for last, beyond, frontier in [self._present(held)]
                }
            )
            closing.phase = "agreeing"

    def _bring(self, pair: Pair, namespace: int, owner: str, missing: list[int], closing: _Closing) -> None:
        """Have `owner` take in the numbers it lacks: from a log that has them, or as cells. Each attempt asks another one."""
        context, attempt = self._context, closing.attempt
        chunk = missing[:FILL_NUMBERS_MAX]
        ways = self._ways(pair, namespace, owner, chunk, closing.held[namespace])
        if attempt or not ways:
            self.waiting = (
                f"numbers {chunk[0]}… of {unpack_origin(pair[0])} in partition {pair[1]} for {owner}:"
                f" {len(ways)} who may have them can be reached, attempt {attempt + 1}"
            )
        if attempt and owner != context.node:
            context.send(owner, RecordsWanted(self.close, namespace, pair[1], pair[0], []))  # perhaps it has them by now
        if ways:
            ways[attempt % len(ways)]()
        else:
            context.note("close.not_in_any_log")

    def _ways(
        self, pair: Pair, namespace: int, owner: str, chunk: list[int], held: dict[str, StreamHeld]
    ) -> list[Callable[[], None]]:
        """All ways to have these numbers brought, the best first: our log, others' logs, cells."""
        context = self._context
        origin, partition = pair
        stream = context.find_stream(namespace, partition, origin)
        places = fitting(place for n in chunk if stream is not None and stream.has(n) and (place := stream.place(n)))
        ways: list[Callable[[], None]] = []
        if owner != context.node and places:
            ways.append(lambda: self._closings.read_log(places, lambda raw: self._read(owner, raw)))
        for holder, has in held.items():
            numbers = [n for n in chunk if (has.log_from <= n <= has.frontier) or n in has.beyond]
            if holder not in (context.node, owner) and numbers and context.is_live(holder):
                wanted = RecordsWanted(self.close, namespace, partition, origin, numbers)
                ways.append(partial(context.send, holder, wanted))
        for holder in self._givers(pair, namespace, owner, chunk[0], held):
            fetch = CellsFetch(self.close, namespace, partition, origin, holder)
            if owner == context.node:
                ways.append(partial(self._closings.cells.fetch, fetch, self._took_cells))
            else:
                ways.append(partial(context.send, owner, fetch))
        return ways

    def _read(self, owner: str, raw: bytes | None) -> None:
        if raw:
            self._context.send(owner, CloseFill(self.close, raw))

    def _givers(self, pair: Pair, namespace: int, owner: str, number: int, held: dict[str, StreamHeld]) -> list[str]:
        """Who may give cells: owners here that cover the number; only where there are none, those of other datacenters."""
        context = self._context
        covering = [node for node, has in held.items() if node != owner and has.frontier >= number]
        near = set(self._placement.owners[pair[1]])
        if near.intersection(covering):
            covering = [node for node in covering if node in near]
        else:
            table = context.tables.get(namespace)
            off = table.definition.links_off if table is not None else ()
            covering = [node for node in covering if (context.peers[node].dc, context.dc) not in off]
        return [node for node in covering if context.is_live(node)]

    def _took_cells(self, held: StreamHeld) -> None:
        self.filled(self._context.node, CloseFilled(self.close, [held]))

    def fill(self, message: CloseFill) -> None:
        """Records that we asked for came; once they are synced here, go on."""

        def taken_in(filled: CloseFilled) -> None:
            self._pass_on(message, filled.held)
            self.filled(self._context.node, filled)

        self._closings.filled(message, taken_in)

    def _pass_on(self, message: CloseFill, held: list[StreamHeld]) -> None:
        """What our own log holds no more (it was trimmed) goes from the one who has it to those who lack it."""
        context = self._context
        brought: dict[tuple[int, int, bytes], set[int]] = {}
        for record in decode_records(message.records):
            brought.setdefault((record.namespace, record.partition, record.origin), set()).add(record.number)
        lack: dict[str, None] = {}
        for here in held:
            numbers = brought.get((here.namespace, here.partition, here.origin), set())
            stream = context.find_stream(here.namespace, here.partition, here.origin)
            closing = self._pairs.get((here.origin, here.partition))
            if closing is None or stream is None or all(stream.place(number) for number in numbers):
                continue
            theirs = closing.held.get(here.namespace, {})
            _, beyond, frontier = self._present(theirs)
            for owner in self._placement.owners[here.partition]:
                if owner != context.node and numbers.intersection(missing_of(theirs.get(owner), frontier, beyond)):
                    lack[owner] = None
        for owner in lack:
            context.send(owner, CloseFill(self.close, message.records))

    def filled(self, peer: str, message: CloseFilled) -> None:
        """An owner took in what we brought."""
        if message.close != self.close:
            return
        for pair in self._note_held(peer, message.held):
            closing = self._pairs[pair]
            if closing.phase == "filling":
                closing.attempt = 0
                self._fill(pair, closing)
        self._agree()

    # --- 3: agreement -----------------------------------------------------------------------------------------------

    def _agree(self) -> None:
        ready = [pair for pair, closing in self._pairs.items() if closing.phase == "agreeing"]
        for start in range(0, len(ready), PROPOSE_MAX):
            chunk = ready[start : start + PROPOSE_MAX]
            try:
                ticket = self._propose({closing_item(*pair): self._pairs[pair].value for pair in chunk})
            except GeokvError:
                return  # too much is being agreed: the next tick tries again
            self._tickets[ticket] = chunk
            for pair in chunk:
                self._pairs[pair].phase = "agreed?"

    def decided(self, ticket: int, values: dict[bytes, bytes]) -> bool:
        """The agreement has chosen. Returns whether the ticket was ours."""
        if self._tickets.pop(ticket, None) is None:
            return False
        pairs: list[Pair] = []
        for item, value in values.items():
            pair = pair_of_item(item)
            pairs.append(pair)
            self._stands(pair, value)
        self._tell(pairs)
        return True

    def _stands(self, pair: Pair, value: bytes) -> None:
        closing = self._pairs[pair]
        if closing.phase != "done":
            closing.value = value
            closing.phase = "telling"
            closing.stands_us = self._context.now_us

    # --- 4 and 5: telling, and forgetting ---------------------------------------------------------------------------

    def _tell(self, pairs: list[Pair]) -> None:
        context = self._context
        for owner, partitions in self._owners.items():
            mine = set(partitions)
            closings = [
                (origin, partition, self._pairs[origin, partition].value)
                for origin, partition in pairs
                if partition in mine and owner not in self._pairs[origin, partition].told
            ]
            for start in range(0, len(closings), PROPOSE_MAX):
                message = CloseTell(self.close, closings[start : start + PROPOSE_MAX])
                if owner == context.node:
                    self._closings.told(message, lambda told: self.told(context.node, told))
                elif context.peers[owner].is_connected:
                    context.send(owner, message)

    def told(self, peer: str, message: CloseTold) -> None:
        """An owner has logged closings, and covers some of them."""
        if message.close != self.close:
            return
        done: list[Pair] = []
        for pair in message.covered:
            closing = self._pairs.get(pair)
            if closing is None or closing.phase != "telling":
                continue
            closing.told.add(peer)
            if {node for _, node in self._placement.everyone(pair[1])} <= closing.told:
                closing.phase = "done"
                done.append(pair)
        if done:
            self._forget(done)

    def _forget(self, pairs: list[Pair]) -> None:
        context = self._context
        for owner, partitions in self._owners.items():
            mine = set(partitions)
            theirs = [pair for pair in pairs if pair[1] in mine]
            if owner != context.node and theirs:
                context.send(owner, CloseForget(theirs))
        self._closings.forget(pairs)


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


def missing_of(has: StreamHeld | None, frontier: int, beyond: set[int]) -> list[int]:
    """The numbers up to a common frontier and beyond it that one replica lacks."""
    own_frontier = has.frontier if has is not None else 0
    own_beyond = set(has.beyond) if has is not None else set()
    missing = [n for n in range(own_frontier + 1, frontier + 1) if n not in own_beyond]
    return missing + sorted(beyond - own_beyond)
