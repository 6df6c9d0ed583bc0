"""Stability: up to which number every replica has a stream, with nothing older still on its way. Tombstones may go behind it.

One who wants to know asks all owners of its partitions, in every datacenter that holds the namespace, in rounds:

    StabilityAsk ──> each owner: of one moment, what it has synced of every stream, the heads of its own streams, its clock
    round 1          C = what all of them cover                 H = the heads that stood in these answers
    round 2          all of them cover H   ──>   C is stable    (and its own answers are round 1 of the next)

What any of them numbers after its first answer has seen all that is in C: it is held there, or collected, and then the owner's
clock is past it. What they numbered before lies in H, and when all cover H none of it is on its way any more.

What an earlier run of a node has numbered counts once it is closed: its last number is its head. What is closed and forgotten
here when a round begins was covered by everybody before that. Until a closing stands, its partitions wait and say so.

Asked about are only namespaces that hold something to collect, and the less often the longer nothing has changed, so a cluster
at rest is silent. An answer is at most ENTRIES_MAX numbers; of many partitions, PARTITIONS_MAX are asked about at a time.

Invariants: `stable` never sinks, and is true or older than true. Nothing but what is synced counts. Not here: what is done with
it (`node.collector`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from geokv.core.hlc import hlc_from_ms
from geokv.core.origin import unpack_origin
from geokv.protocol.closing import Closings
from geokv.protocol.context import Context
from geokv.protocol.feed_sender import heads_of
from geokv.protocol.messages import StabilityAnswer, StabilityAsk
from geokv.protocol.placement import Placement
from geokv.protocol.table import Table

PARTITIONS_MAX: Final = 256
ENTRIES_MAX: Final = 100_000
ROUND_US_MAX: Final = 4_000_000  # who has not answered by then is silent in this round
SLOWER_MAX: Final = 16  # rounds that change nothing are made rarer, up to so many times the usual pace

Pair = tuple[bytes, int]
"""(packed origin, partition)."""


class Blocker:
    """Who holds stability up, and why; `partitions`: in how many of this node's."""

    __slots__ = ("node", "partitions", "reason", "since_us")

    def __init__(self, node: str, reason: str, since_us: int) -> None:
        self.node = node
        self.reason = reason
        self.since_us = since_us
        self.partitions = 0


class _Round:
    """One question to all owners of some partitions, and what has been answered so far."""

    __slots__ = (
        "asked_us",
        "closed",
        "closing",
        "currents",
        "dcs",
        "frontiers",
        "heads",
        "heard",
        "id",
        "partitions",
        "unclaimed",
    )

    def __init__(
        self, number: int, partitions: list[int], dcs: tuple[str, ...], closed: dict[bytes, frozenset[int]], now_us: int
    ):
        self.id = number
        self.partitions = partitions
        self.dcs = dcs
        self.closed = closed  # forgotten here when the round began
        self.asked_us = now_us
        self.heard: dict[str, set[int]] = {}  # node -> the partitions that it has answered for
        self.currents: set[bytes] = set()
        self.frontiers: dict[Pair, tuple[int, str, int]] = {}  # the least one, whose it is, how many have stated one
        self.heads: dict[Pair, int] = {}
        self.unclaimed: dict[int, str] = {}
        self.closing: dict[int, str] = {}


class _Candidate:
    """What all owners of a partition covered in one round, and what they must cover in a later one. It stays until they do."""

    __slots__ = ("closed", "dcs", "heads", "upto")

    def __init__(self, round_: _Round) -> None:
        self.dcs = round_.dcs
        self.closed = round_.closed
        self.upto: dict[bytes, int] = {}
        self.heads: dict[bytes, int] = {}


class Watch:
    """What is known of one namespace."""

    __slots__ = ("blockers", "candidates", "clocks", "closed", "next_at", "next_us", "round", "slower", "stable", "version")

    def __init__(self) -> None:
        self.stable: dict[Pair, int] = {}
        self.closed: dict[bytes, set[int]] = {}
        self.clocks: dict[str, int] = {}  # owner -> milliseconds that its clock has passed for good
        self.version = 0  # moves whenever `stable` or `closed` does
        self.candidates: dict[int, _Candidate] = {}
        self.blockers: dict[tuple[str, str], Blocker] = {}
        self.round: _Round | None = None
        self.next_us = 0
        self.next_at = 0  # where in the list of own partitions the next round begins
        self.slower = 1


class Stability:
    """Asks and answers, for one node."""

    def __init__(self, context: Context, placement: Placement, closings: Closings, pace_us: int) -> None:
        self._context = context
        self._placement = placement
        self._closings = closings
        self._pace_us = pace_us
        self._watches: dict[int, Watch] = {}
        self.unclosed: Callable[[list[int]], list[int]] = lambda partitions: []
        """Of these partitions, those where an earlier run of this node is not closed yet."""
        self.on_round: Callable[[int], None] = lambda namespace: None

    # --- what is wanted ---------------------------------------------------------------------------------------------

    def want(self, namespaces: Iterable[int]) -> None:
        """The namespaces that hold something to collect; the others are not asked about any more."""
        wanted = set(namespaces)
        for namespace in [known for known in self._watches if known not in self._context.tables]:
            del self._watches[namespace]
        for namespace, watch in self._watches.items():
            if namespace not in wanted:
                watch.next_us = -1
                watch.blockers.clear()
        for namespace in wanted:
            watch = self._watches.setdefault(namespace, Watch())
            if watch.next_us < 0:
                watch.next_us, watch.slower = self._context.now_us, 1

    def hurry(self, namespace: int) -> None:
        """Something new is there to be collected: ask at the usual pace again."""
        watch = self._watches.get(namespace)
        if watch is not None and watch.slower > 1:
            watch.slower = 1
            watch.next_us = min(watch.next_us, self._context.now_us + self._pace_us)

    def watch(self, namespace: int) -> Watch | None:
        return self._watches.get(namespace)

    def clock_ms(self, namespace: int) -> int:
        """What the clocks of all owners, in every datacenter, have passed; 0 where one has never told."""
        slowest = self.slowest(namespace)
        return 0 if slowest is None else slowest[1]

    def slowest(self, namespace: int) -> tuple[str, int] | None:
        """(the owner whose clock is behind all others, what it has passed)."""
        watch, table = self._watches.get(namespace), self._context.tables.get(namespace)
        if watch is None or table is None:
            return None
        owners = {node for p in self._placement.mine for dc, node in self._placement.everyone(p) if dc in table.definition.dcs}
        return min(((node, watch.clocks.get(node, 0)) for node in owners), key=lambda one: (one[1], one[0]), default=None)

    # --- asking -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ask what is due, and end the rounds in which somebody stays silent."""
        context = self._context
        if context.distrusted:
            return
        for namespace, watch in self._watches.items():
            table = context.tables.get(namespace)
            if table is None or watch.next_us < 0:
                continue
            if watch.round is not None and context.now_us - watch.round.asked_us >= ROUND_US_MAX:
                self._end(namespace, watch, table)
            if watch.round is None and context.now_us >= watch.next_us:
                self._begin(namespace, watch, table)

    def _begin(self, namespace: int, watch: Watch, table: Table) -> None:
        context, mine = self._context, self._placement.mine
        partitions = mine[watch.next_at : watch.next_at + PARTITIONS_MAX]
        watch.next_at = 0 if watch.next_at + PARTITIONS_MAX >= len(mine) else watch.next_at + PARTITIONS_MAX
        closed = {origin: frozenset(over) for origin, over in context.closed.items()}
        watch.round = asked = _Round(context.next_id(), partitions, table.definition.dcs, closed, context.now_us)
        theirs: dict[str, list[int]] = {}
        for partition in partitions:
            for dc, node in self._placement.everyone(partition):
                if dc in asked.dcs:
                    theirs.setdefault(node, []).append(partition)
        for node, some in theirs.items():
            asked.heard[node] = set()
            if node != context.node and context.peers[node].is_connected:
                context.send(node, StabilityAsk(asked.id, namespace, some))
        context.count("stability.round")
        if context.node in theirs:
            self._heard(namespace, watch, context.node, self._answer(asked.id, table, theirs[context.node]))

    def answered(self, peer: str, message: StabilityAnswer) -> None:
        """An owner has answered."""
        watch = self._watches.get(message.namespace)
        if watch is not None and watch.round is not None and watch.round.id == message.round:
            self._heard(message.namespace, watch, peer, message)

    def _heard(self, namespace: int, watch: Watch, node: str, answer: StabilityAnswer) -> None:
        round_ = watch.round
        if round_ is None or round_.heard.get(node, {0}):  # not asked, or the same answer again
            return
        round_.heard[node] = told = set(answer.partitions)
        watch.clocks[node] = max(answer.clock_ms, watch.clocks.get(node, 0))
        round_.currents.add(answer.origin)
        round_.unclaimed.update(dict.fromkeys(answer.unclaimed, node))
        round_.closing.update(dict.fromkeys(answer.closing, node))
        frontiers = round_.frontiers
        for heads in answer.frontiers:
            origin = heads.origin
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                if partition not in told:
                    continue
                known = frontiers.get((origin, partition))
                if known is None:
                    frontiers[origin, partition] = (number, node, 1)
                else:
                    frontiers[origin, partition] = (*min(known[:2], (number, node)), known[2] + 1)
        for heads in answer.heads:
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                round_.heads[heads.origin, partition] = number
        if all(round_.heard.values()):
            table = self._context.tables.get(namespace)
            if table is not None:
                self._end(namespace, watch, table)

    # --- what follows from a round ----------------------------------------------------------------------------------

    def _end(self, namespace: int, watch: Watch, table: Table) -> None:
        """All have answered, or will not."""
        round_, watch.round = watch.round, None
        assert round_ is not None
        context = self._context
        version = watch.version
        blocked: dict[tuple[str, str], int] = {}
        is_waiting = table.definition.dcs != round_.dcs
        origins: dict[int, list[bytes]] = {}
        for origin, partition in round_.frontiers:
            origins.setdefault(partition, []).append(origin)
        confirmed: dict[int, _Candidate] = {}
        for partition in round_.partitions if not is_waiting else ():
            owners = [node for dc, node in self._placement.everyone(partition) if dc in round_.dcs]
            candidate = watch.candidates.get(partition)
            if candidate is not None and candidate.dcs != round_.dcs:
                del watch.candidates[partition]
                candidate = None
            why = self._unheard(round_, partition, owners)
            if why is None and candidate is not None:
                why = self._uncovered(round_, partition, candidate, len(owners), table)
                if why is None:
                    confirmed[partition] = watch.candidates.pop(partition)
            if why is None:
                made, why = self._candidate(round_, partition, origins.get(partition, ()), owners, table)
                if made is not None:
                    watch.candidates[partition] = made
            if why is not None:
                blocked[why] = blocked.get(why, 0) + 1
            is_waiting |= why is not None or partition not in confirmed
        self._confirm(watch, confirmed)
        self._note_blockers(watch, blocked)
        is_news = watch.version != version
        watch.slower = 1 if is_news or is_waiting else min(SLOWER_MAX, 2 * watch.slower)
        watch.next_us = context.now_us + (self._pace_us * watch.slower if watch.next_at == 0 else 0)
        self.on_round(namespace)

    def _unheard(self, round_: _Round, partition: int, owners: list[str]) -> tuple[str, str] | None:
        """Whose word on a partition is missing, and why."""
        for node in owners:
            if partition not in round_.heard.get(node, ()):
                return node, "silent"
        if partition in round_.unclaimed:
            return round_.unclaimed[partition], "claim taken back"
        if partition in round_.closing:
            return round_.closing[partition], "closing"
        return None

    def _uncovered(
        self, round_: _Round, partition: int, candidate: _Candidate, owners: int, table: Table
    ) -> tuple[str, str] | None:
        """Who does not cover the heads of an earlier round yet. Of a stream that is closed now, what it has is all."""
        for origin, told in candidate.heads.items():
            if partition in self._context.closed.get(origin, ()):
                continue
            stream = table.streams.get(partition, origin)
            head = told if stream is None or stream.last is None else min(told, stream.last)
            number, node, count = round_.frontiers.get((origin, partition), (0, "", 0))
            if head and (count < owners or number < head):
                return node or unpack_origin(origin).node, f"behind on {unpack_origin(origin)}"
        return None

    def _candidate(
        self, round_: _Round, partition: int, origins: Iterable[bytes], owners: list[str], table: Table
    ) -> tuple[_Candidate | None, tuple[str, str] | None]:
        """What all cover by this round, and the heads that they must cover; or whose closing must stand first."""
        made = _Candidate(round_)
        for origin in origins:
            if partition in round_.closed.get(origin, ()):
                continue
            number, _, count = round_.frontiers[origin, partition]
            made.upto[origin] = number if count == len(owners) else 0
            if origin in round_.currents:
                made.heads[origin] = round_.heads.get((origin, partition), 0)
                continue
            stream = table.streams.get(partition, origin)
            if partition in self._context.closed.get(origin, ()):
                continue  # forgotten since the round began: all cover it, the next round counts it
            if stream is None or stream.last is None:
                return None, (unpack_origin(origin).node, "closing")
            made.heads[origin] = stream.last
        return made, None

    def _confirm(self, watch: Watch, confirmed: dict[int, _Candidate]) -> None:
        """What these candidates stood for is stable."""
        closed: dict[int, tuple[dict[bytes, frozenset[int]], set[int]]] = {}
        for partition, candidate in confirmed.items():
            for origin, number in candidate.upto.items():
                if number > watch.stable.get((origin, partition), 0):
                    watch.stable[origin, partition] = number
                    watch.version += 1
            closed.setdefault(id(candidate.closed), (candidate.closed, set()))[1].add(partition)
        for forgotten, partitions in closed.values():
            for origin, over in forgotten.items():
                known = watch.closed.setdefault(origin, set())
                fresh = (over & partitions) - known
                if fresh:
                    known |= fresh
                    watch.version += 1
                    for partition in fresh:
                        watch.stable.pop((origin, partition), None)
        if confirmed:
            self._context.count("stability.confirmed", len(confirmed))

    def _note_blockers(self, watch: Watch, blocked: dict[tuple[str, str], int]) -> None:
        known, watch.blockers = watch.blockers, {}
        for (node, reason), partitions in sorted(blocked.items()):
            blocker = known.get((node, reason)) or Blocker(node, reason, self._context.now_us)
            blocker.partitions = partitions
            watch.blockers[node, reason] = blocker

    # --- answering --------------------------------------------------------------------------------------------------

    def asked(self, peer: str, message: StabilityAsk) -> None:
        """Another owner asks what this one has."""
        context = self._context
        table = context.tables.get(message.namespace)
        if context.distrusted or table is None or context.dc not in table.definition.dcs:
            return
        mine = [p for p in message.partitions if 0 <= p < context.partitions and self._placement.is_mine[p]]
        context.send(peer, self._answer(message.round, table, mine))

    def _answer(self, round_: int, table: Table, partitions: list[int]) -> StabilityAnswer:
        """All of one moment: nothing is between the frontiers, the heads and the clock."""
        context = self._context
        frontiers: list[Any] = []
        heads: list[Any] = []
        told: list[int] = []
        lost = context.claims.mine(table.definition.id)  # what the frontiers say of these does not count
        for partition in partitions:
            streams = table.streams.partitions[partition]
            if len(frontiers) + len(streams) > ENTRIES_MAX:
                break
            told.append(partition)
            frontiers += [(stream, stream.frontier) for stream in streams.values()]
            own = streams.get(context.packed)
            if own is not None:
                heads.append((own, own.received))
        return StabilityAnswer(
            round_,
            table.definition.id,
            context.packed,
            told,
            [partition for partition in told if partition in lost],
            self.unclosed(told),
            self._stated_clock_ms(),
            heads_of(frontiers),
            heads_of(heads),
        )

    def _stated_clock_ms(self) -> int:
        """No run of this node stamps anything at or below it: it is bounded by what is durable, and the clock moves past it.

        It is the wall clock: stamps may run ahead of it, as far as fast clocks and restarts have pushed them, and a deadline
        that only stamps have passed is not passed for everybody.
        """
        context = self._context
        clock = context.clock
        stated_ms = min(context.wall_ms, context.bound_ms)
        clock.last = max(clock.last, hlc_from_ms(stated_ms + 1) - 1)
        return stated_ms
