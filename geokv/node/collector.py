"""The collector: from what is stable to tombstones that are gone, namespace by namespace.

    something waits to be collected ──> stability is asked about it (protocol.stability)
    stable has moved ──> the count of collections moves, logged and synced ──> from there on no older repair is taken
                     ──> the rule, good from this position of the log on   ──> flush: no memtable holds what came before
                     ──> compactions leave out what the rule covers        ──> one for this alone, where it is worth it

A repair names the count that its receiver had before any cell was read for it. So one that began before the count moved is
dropped (protocol.intake), and one that began after it read cells of replicas all of which had the tombstones. What was taken in
before the count moved stands before the rule's position in the log, hence in tables when the rule begins to count.

Invariants: a rule is made only once the moved count is synced and everything that was taken in before it. What an earlier rule
covers, a later one covers too. None is begun while a backup is being taken (`node.snapshots`). Namespaces of the engine
`memory` are left alone: what they evict is gone anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from geokv.core.hlc import hlc_ms
from geokv.node.upkeep import Upkeep
from geokv.protocol import control
from geokv.protocol.context import Context
from geokv.protocol.stability import Stability
from geokv.protocol.sweeper import Sweeper
from geokv.storage.engine import Engine, Held
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.memory import MemoryCells
from geokv.storage.position import Position

LOOK_US: Final = 1_000_000
LAZY_FACTOR: Final = 8  # where no compaction is worth it for the sake of this alone, a new rule waits so much longer
CLOCK_MS: Final = 10_000  # where something is left, a rule is renewed once all clocks are so much further


@dataclass(slots=True)
class Armed:
    """How far a namespace is. `rule`: None until the first one is made."""

    rule: CollectionRule | None = None
    version: int = 0  # of what was stable
    armed_us: int = 0
    is_arming: bool = False
    held: int = 0


class Collector:
    """Decides, for one node, from when on what may be collected. See the module."""

    def __init__(
        self,
        context: Context,
        engine: Engine,
        stability: Stability,
        sweeper: Sweeper,
        upkeep: Upkeep,
        log_control: Callable[[bytes, object, Callable[[], None] | None], None],
        pace_us: int,
    ) -> None:
        self._context = context
        self._engine = engine
        self._stability = stability
        self._sweeper = sweeper
        self._upkeep = upkeep
        self._log_control = log_control
        self._pace_us = pace_us
        self._armed: dict[int, Armed] = {}
        self._looked_us = 0
        self._held: dict[int, Held] = {}
        self._waiting: dict[int, bool] = {}  # rules that do not count yet, and whether a flush is worth it
        stability.on_round = self._round_ended

    # --- what waits -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """At heartbeats: look what there is to collect, ask about it, go on with what is stable."""
        context = self._context
        if context.now_us - self._looked_us >= min(LOOK_US, self._pace_us):
            self._looked_us = context.now_us
            self._look()
        self._stability.tick()
        self._sweeper.tick()
        self._settle()

    def _look(self) -> None:
        tables = self._context.tables
        for gone in [namespace for namespace in self._armed if namespace not in tables]:
            del self._armed[gone]
        self._held = {}
        wanted = []
        for namespace in self._kept():
            held = self._held[namespace] = self._engine.held(namespace)
            count = held.count(self._context.wall_ms)
            if not count:
                continue
            wanted.append(namespace)
            armed = self._armed.setdefault(namespace, Armed())
            if count > armed.held:
                self._stability.hurry(namespace)
            armed.held = count
        self._stability.want(wanted)

    def _kept(self) -> Iterable[int]:
        """The namespaces whose cells are kept, and that this datacenter holds."""
        dc = self._context.dc
        for namespace, table in self._context.tables.items():
            if not isinstance(table.cells, MemoryCells) and dc in table.definition.dcs:
                yield namespace

    # --- from stable to a rule --------------------------------------------------------------------------------------

    def _round_ended(self, namespace: int) -> None:
        watch, armed = self._stability.watch(namespace), self._armed.get(namespace)
        held = self._held.get(namespace)
        if watch is None or armed is None or held is None or armed.is_arming or self._context.is_keeping:
            return
        clock_ms = self._stability.clock_ms(namespace)
        rule = armed.rule
        # What is left may wait for a clock: a deadline passes, or a stamp that ran ahead.
        is_later = rule is not None and clock_ms >= rule.clock_ms + CLOCK_MS
        if watch.version == armed.version and not is_later:
            return
        is_worth = self._is_worth(namespace, held, clock_ms)
        wait_us = self._pace_us * (1 if is_worth else LAZY_FACTOR)
        if rule is not None and self._context.now_us - armed.armed_us < wait_us:
            return
        self._arm(namespace, armed, is_worth)

    def _is_worth(self, namespace: int, held: Held, clock_ms: int) -> bool:
        return bool(held.in_memory) or self._engine.is_worth_shedding(namespace, clock_ms)

    def _arm(self, namespace: int, armed: Armed, is_worth: bool) -> None:
        """Move the count of collections, and once that is durable let the rule stand."""
        context = self._context
        table = context.tables[namespace]
        body = [namespace, table.collections + 1]
        if context.commit.reserve(len(control.pack(body)) + 256, is_control=True):
            return
        armed.is_arming = True

        def is_gone() -> bool:
            return context.tables.get(namespace) is not table or self._armed.get(namespace) is not armed

        def moved() -> None:
            if not is_gone():
                table.collections += 1
                # A repair that named the old count may be on its way to the disk: it must stand before the rule.
                context.commit.after_pending(stands)

        def stands() -> None:
            armed.is_arming = False
            watch = self._stability.watch(namespace)
            if is_gone() or watch is None:
                return
            context.note("collection.armed")
            armed.armed_us, armed.version = context.now_us, version
            armed.rule = CollectionRule(context.partitions, stable, clock_ms, Position(*context.commit.position), closed)
            self._upkeep.rules = {number: one.rule for number, one in self._armed.items() if one.rule is not None}
            self._waiting[namespace] = is_worth
            self._sweeper.begin(namespace, armed.rule.stable_in, clock_ms)
            self._settle()

        watch = self._stability.watch(namespace)
        assert watch is not None
        # As it is now: what becomes stable while the count is on its way to the disk is for the next one.
        stable, version, clock_ms = dict(watch.stable), watch.version, self._stability.clock_ms(namespace)
        closed = {origin: frozenset(over) for origin, over in watch.closed.items()}
        self._log_control(control.COLLECTED, body, moved)

    def _settle(self) -> None:
        """Have rules count: a flush where a memtable may still hold what was taken in before, then the compactions."""
        for namespace, is_worth in list(self._waiting.items()):
            armed = self._armed.get(namespace)
            if armed is None or armed.rule is None:
                del self._waiting[namespace]
            elif armed.rule.since <= self._engine.position:
                del self._waiting[namespace]
                self._upkeep.look_again()
            elif is_worth:
                self._upkeep.flush()

    # --- status -----------------------------------------------------------------------------------------------------

    def status(self, namespace: int | None = None) -> list[dict[str, Any]]:
        """Per namespace: what is held, how far it may be collected, and who holds that up. Figures of this node alone."""
        return [self._told(number) for number in self._kept() if namespace in (None, number)]

    def _told(self, namespace: int) -> dict[str, Any]:
        context, table = self._context, self._context.tables[namespace]
        held, armed = self._engine.held(namespace), self._armed.get(namespace)
        rule = armed.rule if armed is not None else None
        oldest_ms = held.oldest_ms(context.wall_ms)
        return {
            "namespace": table.definition.name,
            "policy": table.policy.name,
            "held": held.count(context.wall_ms),
            "tombstones": held.tombstones,
            "with_deadline": held.deadlines,
            "in_memory": held.in_memory,
            "in_memory_is_estimate": held.is_estimate,
            "oldest_ms": oldest_ms,
            "oldest_is_known": held.is_dated or not held.count(context.wall_ms),
            "oldest_age_ms": None if oldest_ms is None else max(0, context.wall_ms - oldest_ms),
            "collected": self._engine.collected.get(namespace, 0),
            "collections": table.collections,
            "stable_ms_ago": None if rule is None or armed is None else (context.now_us - armed.armed_us) // 1000,
            "waits_for": self._waits_for(namespace, held.oldest),
        }

    def _waits_for(self, namespace: int, oldest: int) -> list[dict[str, Any]]:
        """Who holds the stability of this node's partitions up, since when, and why. `oldest`: of tombstones in tables."""
        watch = self._stability.watch(namespace)
        if watch is None:
            return []
        context = self._context
        waits = [
            self._wait(one.node, one.reason, one.partitions, (context.now_us - one.since_us) // 1000)
            for one in watch.blockers.values()
        ]
        slowest = self._stability.slowest(namespace)
        has_stamps = context.tables[namespace].policy.kind is None  # cells of dots wait for no clock
        if has_stamps and oldest and slowest is not None and slowest[1] and hlc_ms(oldest) >= slowest[1]:
            waits.append(self._wait(slowest[0], "clock behind", len(watch.candidates), max(0, context.wall_ms - slowest[1])))
        return waits

    def _wait(self, node: str, reason: str, partitions: int, since_ms: int) -> dict[str, Any]:
        dc = self._context.dc if node not in self._context.peers else self._context.peers[node].dc
        return {"node": node, "dc": dc, "reason": reason, "partitions": partitions, "since_ms": since_ms}

    def metrics(self) -> dict[str, int]:
        """Sums over all namespaces, from the last look."""
        watches = [self._stability.watch(namespace) for namespace in self._held]
        return {
            "collection.held": sum(held.count(self._context.wall_ms) for held in self._held.values()),
            "collection.tombstones": sum(held.tombstones for held in self._held.values()),
            "collection.collected": sum(self._engine.collected.values()),
            "collection.blockers": sum(len(watch.blockers) for watch in watches if watch is not None),
        }
