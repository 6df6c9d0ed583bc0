"""The closer: brings the streams of what one node ran before to their agreed end.

It walks each (origin, partition) through the phases of `protocol.closing`, which has the picture:

    asking ──all owners promised──> filling ──owners here have all──> agreeing ──chosen──> telling ──all cover it──> done

While it is told, owners get what they lack as they get everything: from feeds. To one that does not move on, because no
feed has it (records that no log of the origin's datacenter holds), the closer brings it, from whoever covers it.

Invariants: nothing is told before it was agreed; nothing is proposed before every owner of this datacenter has, synced,
what any owner has. Several closers may run: the agreement makes them say the same, and a faster one is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from geokv.core.origin import unpack_origin
from geokv.core.record import decode_records
from geokv.errors import GeokvError
from geokv.protocol import control
from geokv.protocol.closing import FILL_NUMBERS_MAX, Closings, Pair, fitting
from geokv.protocol.context import Context
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

ASK_AGAIN_US: Final = 1_000_000
TELL_AGAIN_US: Final = 2_000_000
UNTOLD_US: Final = 10_000_000
ITEM_PREFIX: Final = b"close/"
PROPOSE_MAX: Final = 256
FILLS_TOLD_MAX: Final = 16  # closings that stand whose owners are brought something, at a time


def closing_item(origin: bytes, partition: int) -> bytes:
    """The name under which a closing is agreed."""
    return ITEM_PREFIX + partition.to_bytes(2, "big") + origin


def pair_of_item(item: bytes) -> Pair:
    """Inverse of `closing_item`."""
    start = len(ITEM_PREFIX)
    return item[start + 2 :], int.from_bytes(item[start : start + 2], "big")


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

    def is_over(self, partition: int) -> bool:
        """Whether everybody was asked, and this replica covers all that earlier runs of the node ever wrote there."""
        is_covered = self._closings.is_covered
        return len(self.answered) == len(self._owners) and all(is_covered((origin, partition)) for origin in self._origins)

    @property
    def open_pairs(self) -> int:
        return sum(1 for closing in self._pairs.values() if closing.phase != "done")

    def unclosed(self, partitions: list[int]) -> list[int]:
        """Of these partitions, those where what the node ran before may not have come to its end yet."""
        if len(self.answered) < len(self._owners):
            return partitions
        still = {pair[1] for pair, closing in self._pairs.items() if closing.phase not in ("telling", "done")}
        return [partition for partition in partitions if partition in still] if still else []

    def tick(self) -> None:
        """Ask, fill and tell again whom it may not have reached."""
        context = self._context
        if self.is_done:
            self.waiting = ""
            return
        if context.distrusted:
            return
        if context.now_us - self._asked_us >= ASK_AGAIN_US:
            self._asked_us = context.now_us
            self._ask_missing()
        self._note_ended_by_others()
        for pair, closing in list(self._pairs.items()):
            if closing.phase == "filling" and context.now_us >= closing.fill_at_us:
                closing.attempt += 1
                self._fill(pair, closing)
        self._fill_told()
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
        frontier = max((h.frontier for h in held.values() if not h.is_unclaimed), default=0)
        beyond = {n for h in held.values() for n in h.beyond if n > frontier}
        for unclaimed in (h for h in held.values() if h.is_unclaimed):  # it has what its log holds
            beyond.update(range(max(unclaimed.log_from, frontier + 1), unclaimed.frontier + 1))
        return max(beyond, default=frontier), beyond, frontier

    def _fill(self, pair: Pair, closing: _Closing) -> None:
        context = self._context
        closing.fill_at_us = context.now_us + ASK_AGAIN_US
        is_filled = True
        for namespace in closing.held:
            if namespace in context.deleted:
                continue  # nobody takes its records any more
            for owner, missing in self._lacking(pair, closing, namespace):
                chunk = list(islice(missing, FILL_NUMBERS_MAX))
                if chunk:
                    is_filled = False
                    self._bring(pair, namespace, owner, chunk, closing)
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

    def _lacking(self, pair: Pair, closing: _Closing, namespace: int) -> Iterator[tuple[str, Iterator[int]]]:
        """Owners, each with the numbers it is to take in: here all that anybody has; once it is told, all others, too."""
        held = closing.held.get(namespace, {})
        if closing.phase == "telling":
            table = self._context.tables.get(namespace)
            last, voids = control.unpack(closing.value).get(namespace, (0, ()))
            void = frozenset(voids)
            for dc, owner in self._placement.everyone(pair[1]):
                if table is not None and dc in table.definition.dcs and owner not in closing.told:
                    yield owner, (number for number in missing_of(held.get(owner), last, set()) if number not in void)
        else:
            _, beyond, frontier = self._present(held)
            for owner in self._placement.owners[pair[1]]:
                yield owner, missing_of(held.get(owner), frontier, beyond)

    def _fill_told(self) -> None:
        """Bring what stands to owners that have not moved for long, and whom no feed brings it."""
        now_us = self._context.now_us
        stuck = [(c.attempt, pair) for pair, c in self._pairs.items() if c.phase == "telling" and now_us >= c.fill_at_us]
        for _, pair in sorted(stuck)[:FILLS_TOLD_MAX]:
            closing = self._pairs[pair]
            closing.fill_at_us = now_us + TELL_AGAIN_US
            self._bring_told(pair, closing)
            closing.attempt += 1

    def _bring_told(self, pair: Pair, closing: _Closing) -> None:
        context = self._context
        for namespace in control.unpack(closing.value):
            for owner, missing in self._lacking(pair, closing, namespace):
                chunk = list(islice(missing, FILL_NUMBERS_MAX))
                if not chunk or not context.is_live(owner):
                    continue
                if closing.attempt:
                    self._bring(pair, namespace, owner, chunk, closing)
                elif owner != context.node:  # first see whether it moves
                    context.send(owner, RecordsWanted(self.close, namespace, pair[1], pair[0], []))

    def _bring(self, pair: Pair, namespace: int, owner: str, chunk: list[int], closing: _Closing) -> None:
        """Have `owner` take in the numbers it lacks: from a log that has them, or as cells. Each attempt asks another one."""
        context, attempt = self._context, closing.attempt
        ways = self._ways(pair, namespace, owner, chunk, closing.held.get(namespace, {}))
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
        """Who may give cells: owners beside it that cover the number; only where there are none, those of other datacenters."""
        context = self._context
        dc_of = {node: dc for dc, node in self._placement.everyone(pair[1])}
        covering = [n for n, has in held.items() if n != owner and has.frontier >= number and not has.is_unclaimed]
        near = [node for node in covering if dc_of.get(node) == dc_of[owner]]
        if near:
            covering = near
        else:
            table = context.tables.get(namespace)
            off = table.definition.links_off if table is not None else ()
            covering = [node for node in covering if (dc_of.get(node), dc_of[owner]) not in off]
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
            for owner, missing in self._lacking((here.origin, here.partition), closing, here.namespace):
                if owner != context.node and not numbers.isdisjoint(missing):
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
            elif closing.phase == "telling" and closing.attempt > 1:
                closing.attempt = 1
                self._bring_told(pair, closing)
            elif closing.phase == "telling":  # it moves by itself
                closing.attempt, closing.fill_at_us = 0, self._context.now_us + UNTOLD_US
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
            closing.attempt, closing.fill_at_us = 0, self._context.now_us + UNTOLD_US

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
        if self.is_done:
            self.waiting = ""

    def _forget(self, pairs: list[Pair]) -> None:
        context = self._context
        for owner, partitions in self._owners.items():
            mine = set(partitions)
            theirs = [pair for pair in pairs if pair[1] in mine]
            if owner != context.node and theirs:
                context.send(owner, CloseForget(theirs))
        self._closings.forget(pairs)


def missing_of(has: StreamHeld | None, frontier: int, beyond: set[int]) -> Iterator[int]:
    """The numbers up to a common frontier and beyond it that one replica lacks, in order."""
    own_frontier = has.frontier if has is not None else 0
    own_beyond = set(has.beyond) if has is not None else set()
    yield from (n for n in range(own_frontier + 1, frontier + 1) if n not in own_beyond)
    yield from sorted(number for number in beyond - own_beyond if number > own_frontier)
