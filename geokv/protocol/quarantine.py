"""Quarantine: what becomes of a table that is damaged, in the order that makes every crash harmless.

    found (a read, a job, opening) ──> claim taken back in memory ──> noted in the log, synced ──> the table set aside
                                            │                               │                        (Build, manifest)
                                            └── co-owners are told          └── and in the node's state at every flush

Before the note is synced a restart finds the table live, and damaged where it is read. Between the note and the manifest it
finds the claim taken back, and the table to be set aside. Setting aside comes last, since from then on a key that only this
table held looks absent.

Which partitions: keys go to partitions by their hash, so the range of keys of a table says nothing, except where the facts name
all of them (one or two keys). Else it is every partition of the namespace that this node owns.

Invariants: no table is set aside before the claims are taken back durably; each is noted once. Not here: what lacks without its
claim (`protocol.claims`), how damage is found and told from a read that failed (the engine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from geokv.core.ring import key_hash
from geokv.protocol import control
from geokv.protocol.claims import Withdrawal, shown
from geokv.protocol.context import Context
from geokv.protocol.feed_sender import heads_of
from geokv.protocol.messages import TakenBack
from geokv.protocol.placement import Placement
from geokv.protocol.streams import Stream

TELL_US: Final = 1_000_000  # what came through the log without a claim; all of it now and then, since words are lost
TELL_ALL_EVERY: Final = 5


class Facts(Protocol):
    """What is known of a table without reading it."""

    @property
    def number(self) -> int: ...
    @property
    def namespace(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def pairs(self) -> int: ...
    @property
    def first_key(self) -> bytes: ...
    @property
    def last_key(self) -> bytes: ...


class Damaged(Protocol):
    """A table that is damaged."""

    @property
    def facts(self) -> Facts: ...
    @property
    def offset(self) -> int: ...
    @property
    def what(self) -> str: ...


class Tables(Protocol):
    """The engine, as far as it matters here."""

    def damaged(self) -> tuple[Any, ...]:
        """Live tables that were found damaged (`Damaged`)."""

    def quarantined(self) -> tuple[Any, ...]:
        """Those that were set aside."""


class Quarantine:
    """See the module."""

    def __init__(self, context: Context, placement: Placement, tables: Tables, neighbours: Iterable[str]) -> None:
        self._context = context
        self._placement = placement
        self._tables = tables
        self._neighbours = frozenset(neighbours)
        self._noted: set[int] = set()  # tables whose claims were taken back durably
        self._noting: set[int] = set()
        self._changes = 0
        self._told_us = 0
        self._turn = 0
        self._told: dict[str, tuple[int, int]] = {}  # peer -> the run and the changes that it was told last
        self.on_due: Callable[[], None] = lambda: None

    def recovered(self) -> None:
        """What was taken back before; and what was found on opening is taken back before anybody is answered."""
        self._noted.update(self._context.claims.withdrawals)
        for one in (*self._tables.damaged(), *self._tables.quarantined()):
            self._withdraw(one)

    def look(self) -> None:
        """Take the claims back of what was found damaged meanwhile, and note what is not noted yet."""
        damaged = self._tables.damaged()
        if not damaged and len(self._noted) == len(self._context.claims.withdrawals):
            return
        for one in damaged:
            self._withdraw(one)
        self._note()

    def due(self) -> tuple[Any, ...]:
        """The tables that may be set aside now."""
        return tuple(one for one in self._tables.damaged() if one.facts.number in self._noted)

    def _withdraw(self, one: Damaged) -> None:
        context, facts = self._context, one.facts
        partitions = tuple(self._partitions(facts))
        withdrawal = Withdrawal(facts.namespace, facts.number, facts.name, one.offset, one.what, partitions, context.wall_ms)
        if not context.claims.withdraw(withdrawal):
            return
        context.note("quarantine.claims_taken_back", len(partitions))
        name = self._name(facts.namespace)
        context.log(
            "error",
            f"table {facts.name} of namespace {name} is damaged at byte {one.offset}: {one.what}. It is set aside and kept;"
            f" this node does not answer for {shown(partitions)} of {name} any more, the other replicas do",
        )

    def _name(self, namespace: int) -> str:
        table = self._context.tables.get(namespace)
        return table.definition.name if table is not None else f"{namespace:016x}"

    def _partitions(self, facts: Facts) -> list[int]:
        if facts.pairs > 2:
            return list(self._placement.mine)
        found = {key_hash(key) >> self._placement.shift for key in (facts.first_key, facts.last_key)}
        return sorted(partition for partition in found if self._placement.is_mine[partition])

    def _note(self) -> None:
        """Note in the log what is not noted; where it has no room, it is tried again at the next heartbeat."""
        context = self._context
        left = [w for table, w in context.claims.withdrawals.items() if table not in self._noted | self._noting]
        if not left:
            return
        raws = [control.control_record(control.QUARANTINE, one.packed()) for one in left]
        nbytes = sum(map(len, raws))
        if context.commit.reserve(nbytes, is_control=True):
            context.note("quarantine.no_room")
            return
        tables = {one.table for one in left}
        self._noting |= tables

        def synced() -> None:
            self._noting -= tables
            self._noted |= tables
            self.on_due()

        context.commit.add([(raw, None, 0) for raw in raws], nbytes, (), synced, None)
        self._changes += 1
        self._told_us = 0

    # --- telling the others -----------------------------------------------------------------------------------------

    def connected(self, peer: str) -> None:
        """Tell who is connected that nothing is taken back: an earlier run may have told otherwise, and ended before its note
        was synced."""
        context = self._context
        if not context.claims.all_mine():
            context.send(peer, TakenBack(self._changes, {}, []))

    def tick(self) -> None:
        """Tell who is connected what was taken back, and how far these streams' numbers have come through the log."""
        context = self._context
        if context.claims.is_whole and not self._told:
            return
        is_due = context.now_us - self._told_us >= TELL_US
        mine = context.claims.all_mine()
        if not mine and not is_due:
            return
        if is_due:
            self._told_us = context.now_us
            self._turn += 1
        partitions = {namespace: sorted(numbers) for namespace, numbers in sorted(mine.items())}
        logged = heads_of((stream, stream.frontier) for stream in self._streams() if stream.frontier) if mine and is_due else []
        for name, peer in context.peers.by_name.items():
            known = self._told.get(name)
            is_news = known != (peer.incarnation, self._changes)
            if not peer.is_connected or not mine or not (is_news or (is_due and self._is_turn(name))):
                continue
            self._told[name] = (peer.incarnation, self._changes)
            context.send(name, TakenBack(self._changes, partitions, logged if name in self._neighbours else []))

    def _is_turn(self, name: str) -> bool:
        """Neighbours hear it each time, since numbers move; the others now and then, in case a word was lost."""
        return name in self._neighbours or self._turn % TELL_ALL_EVERY == 0

    def _streams(self) -> Iterable[Stream]:
        for namespace, partitions in self._context.claims.all_mine().items():
            table = self._context.tables.get(namespace)
            if table is not None:
                for partition in sorted(partitions):
                    yield from table.streams.partitions[partition].values()
