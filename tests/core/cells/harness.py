"""The shared harness: random histories over three datacenters, held against the specification of the type.

A history is played from a tape of whole numbers, so that Hypothesis shrinks it and a seed makes a million of them. What a tape
may do: operations anywhere, with and without the context of an earlier read; deltas delivered late, twice, out of order or
never; whole cells sent; a node that restarts, loses its disk, or comes back from an old copy; and, once all is stable,
tombstones collected by some replicas and not by others.

Each replica is kept in three ways that must agree: deltas appended in bytes, folded bytes, and a decoded state that grows in
place.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.codec import decode, decode_token, encode, encode_token
from geokv.core.cells.context import Dot
from geokv.core.cells.counter_bounded import accounts, rights
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import collected, is_tombstone, sweep, update, value
from geokv.core.cells.view import View
from geokv.core.conflict import policy_of
from geokv.core.origin import Origin
from geokv.errors import NotEnoughRights, Stale
from tests.core.cells.operations import draw_operation
from tests.core.cells.specification import ABSENT, Event, specified

TAPE_MAX = 240
DCS = ("eu", "us", "ap")


class Tape:
    """Choices, one after the other; past its end there are none left to make."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._next = 0

    @property
    def is_over(self) -> bool:
        return self._next >= len(self._numbers)

    def pick(self, count: int) -> int:
        """A whole number below `count`."""
        if self.is_over:
            return 0
        self._next += 1
        return self._numbers[self._next - 1] % count


def tape_of_seed(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1 << 16) for _ in range(rng.randrange(40, TAPE_MAX))]


@dataclass
class Replica:
    """One datacenter's copy of the key, and the run of the node that writes there."""

    dc: str
    incarnation: int = 1
    number: int = 0
    appended: bytes = b""
    folded: bytes = b""
    state: CellState = field(default_factory=CellState)
    held: frozenset[int] = frozenset()

    @property
    def origin(self) -> bytes:
        return Origin(self.dc, "n", self.incarnation).packed()


class World:
    """Three replicas of one key, the deltas on their way, and the history so far."""

    def __init__(self, policy: str, kind: CellType | None = None) -> None:
        self.policy = policy_of(policy)
        self.kind = kind or type_of(policy)
        self.replicas = [Replica(dc) for dc in DCS]
        self.events: list[Event] = []
        self.dots: dict[int, Dot] = {}
        self.on_the_way: list[tuple[int, bytes]] = []
        self.deltas: list[bytes] = []
        self.tokens: list[tuple[bytes, frozenset[int]]] = []
        self.copies: list[Replica] = []
        self.refused = 0
        self.collections = 0
        self.sweeps = 0

    # --- what a tape may do -----------------------------------------------------------------------------------------

    def step(self, tape: Tape) -> None:
        choice = tape.pick(20)
        replica = self.replicas[tape.pick(3)]
        if choice < 8:
            self.operate(replica, tape)
        elif choice < 13:
            self._deliver(replica, tape)
        elif choice < 14:
            self._lose(tape)
        elif choice < 16:
            self.send_state(replica, self.replicas[tape.pick(3)])
        elif choice < 17:
            self.tokens.append((encode_token(replica.state.context), replica.held))
        elif choice < 18:
            self.copies.append(Replica(**vars(replica) | {"state": replica.state.copy()}))
        elif choice < 19:
            self._restart(replica, tape)
        else:
            self._collect(tape)

    def operate(self, replica: Replica, tape: Tape) -> None:
        others = [one.origin for one in self.replicas]
        operation = draw_operation(self.kind.name, tape, len(self.events), others)
        token: tuple[bytes, frozenset[int]] | None = None
        if self.tokens and tape.pick(2):
            token = self.tokens[tape.pick(len(self.tokens))]
        self.apply(replica, operation, token, stamp=1000 + tape.pick(4))

    def apply(
        self, replica: Replica, operation: Operation, token: tuple[bytes, frozenset[int]] | None = None, stamp: int = 0
    ) -> None:
        """An operation at its coordinator; refused ones leave nothing."""
        operation = operation._replace(context=None if token is None else decode_token(token[0]))
        dot = Dot(replica.origin, replica.number + 1)
        try:
            delta = update(self.kind, replica.state, operation, dot, stamp=stamp, covered=frontier_of(self.dots, replica.held))
        except (Stale, NotEnoughRights):
            self.refused += 1
            return
        seen = replica.held
        if heeds_context(self.kind.name, operation):
            blind = self.kind.name == "siblings" and operation.name == "put"
            seen = token[1] if token else frozenset() if blind else replica.held
        event = Event(
            id=len(self.events),
            at=replica.origin.hex(),
            name=operation.name,
            arguments=operation.arguments,
            path=operation.path,
            held=replica.held,
            seen=seen,
            stamp=stamp,
            is_whole=operation.name == "delete" and token is None,
        )
        self._publish(replica, event, dot, delta)
        if self.kind.name == "counter_bounded":
            assert specified("counter_bounded", self.events, frozenset(self.dots)) >= 0, "rights were spent twice"

    def _sweep(self, replica: Replica) -> bool:
        """Take the tombstones that hide nothing any more: everything is stable. Whether there were any."""
        dot = Dot(replica.origin, replica.number + 1)
        delta = sweep(self.kind, replica.state, dot, lambda _: True)
        if delta is not None:
            self.sweeps += 1
            event = Event(len(self.events), replica.origin.hex(), "sweep", (), (), replica.held, replica.held, 0)
            self._publish(replica, event, dot, delta)
        return delta is not None

    def _publish(self, replica: Replica, event: Event, dot: Dot, delta: CellState) -> None:
        replica.number += 1 + event.id % 3  # other keys' records stand between
        self.events.append(event)
        self.dots[event.id] = dot
        encoded = encode(self.kind.tag, delta)
        assert decode(self.kind.tag, encoded) == delta
        self.deltas.append(encoded)
        self.on_the_way.append((event.id, encoded))
        self._take(replica, encoded, {event.id})

    def _deliver(self, replica: Replica, tape: Tape) -> None:
        if not self.on_the_way:
            return
        index = tape.pick(len(self.on_the_way))
        event, encoded = self.on_the_way[index]
        if tape.pick(3) == 0:
            del self.on_the_way[index]
        self._take(replica, encoded, {event})

    def _lose(self, tape: Tape) -> None:
        if self.on_the_way:
            del self.on_the_way[tape.pick(len(self.on_the_way))]

    def send_state(self, sender: Replica, receiver: Replica) -> None:
        if sender.folded:
            self._take(receiver, sender.folded, sender.held)
        else:
            receiver.held |= sender.held

    def _take(self, replica: Replica, cell: bytes, events: set[int] | frozenset[int]) -> None:
        """Merge, in each of the three ways."""
        replica.held |= events
        replica.state.join(decode(self.kind.tag, cell))
        replica.folded = self.policy.merge(replica.folded, cell) if replica.folded else self.policy.fold(cell)
        replica.appended = self.policy.append(replica.appended, cell) if replica.appended else cell

    def _restart(self, replica: Replica, tape: Tape) -> None:
        """A new run: on its own disk, on an empty one, or on an old copy; what it had written is on another replica."""
        other = self.replicas[tape.pick(3)]
        self.send_state(replica, other)
        closed = replica.origin
        choice = tape.pick(3)
        if choice == 1 and other is not replica:
            replica.appended, replica.folded, replica.state, replica.held = b"", b"", CellState(), frozenset()
            self.send_state(other, replica)
        elif choice == 2 and self.copies and other is not replica:
            copy = self.copies[tape.pick(len(self.copies))]
            replica.appended, replica.folded, replica.held = copy.appended, copy.folded, copy.held
            replica.state = copy.state.copy()
            self.send_state(other, replica)
        replica.incarnation = max(one.incarnation for one in self.replicas) + 1
        replica.number = 0
        if self.kind.name == "counter_bounded":
            left = rights(accounts(View(replica.state)), closed)
            if left > 0:
                self.apply(replica, Operation("take_over", (closed, left)))

    def _collect(self, tape: Tape) -> None:
        """All is stable; some collect, some do not. The frontiers keep out what was on its way."""
        self.heal()
        self.on_the_way.clear()
        self.copies.clear()
        for replica in self.replicas:
            if tape.pick(3) == 0 and self._sweep(replica):
                return
        for replica in self.replicas:
            left = collected(replica.state, lambda _: True)
            if tape.pick(2) and replica.folded and left is not replica.state:
                self.collections += 1
                replica.state = CellState() if left is None else left
                replica.appended = replica.folded = b"" if left is None else encode(self.kind.tag, left)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def heal(self) -> None:
        first = self.replicas[0]
        for replica in self.replicas[1:]:
            self.send_state(replica, first)
        for replica in self.replicas[1:]:
            self.send_state(first, replica)

    def shown(self, state: CellState) -> Any:
        return ABSENT if is_tombstone(self.kind, state) else comparable(value(self.kind, state))

    def check_replica(self, replica: Replica) -> None:
        """The three ways agree, and show what the specification says of what has come here."""
        tag = self.kind.tag
        if replica.folded or replica.state.context.spans:
            assert encode(tag, replica.state) == replica.folded == self.policy.fold(replica.appended)
            assert decode(tag, replica.folded) == replica.state
        is_closed = all(event.held <= replica.held for event in self.events if event.id in replica.held)
        if is_closed or not (self.sweeps or counts(self.kind.name)):
            expected = comparable(specified(self.kind.name, self.events, replica.held))
            assert self.shown(replica.state) == expected, (self.shown(replica.state), expected)

    def check_healed(self) -> None:
        self.heal()
        for replica in self.replicas:
            self.check_replica(replica)
        first, *others = self.replicas
        assert all(first.folded == other.folded for other in others)
        shown = self.shown(first.state)
        left = collected(first.state, lambda _: True)
        assert left is not None or shown is ABSENT
        if left is not None:
            assert self.shown(left) == shown
            left.join(first.state)
            assert self.shown(left) == shown

    def check_laws(self, tape: Tape) -> None:
        """Commutative, associative, idempotent; deltas in any grouping are the state."""
        cells = [one.folded for one in self.replicas if one.folded] + self.deltas
        if not cells:
            return
        merge = self.policy.merge
        a, b, c = (cells[tape.pick(len(cells))] for _ in range(3))
        assert merge(a, b) == merge(b, a)
        assert merge(merge(a, b), c) == merge(a, merge(b, c))
        assert merge(a, a) == a and merge(merge(a, b), b) == merge(a, b)


def frontier_of(dots: Mapping[int, Dot], held: Collection[int]) -> dict[bytes, int]:
    """Per origin, the number up to which who holds these events has all records of the key."""
    frontier: dict[bytes, int] = {}
    gaps: set[bytes] = set()
    for event, dot in dots.items():
        if event not in held:
            gaps.add(dot.origin)
        elif dot.origin not in gaps:
            frontier[dot.origin] = dot.number
    return frontier


def heeds_context(kind: str, operation: Operation) -> bool:
    """What takes away, and writes; what adds replaces what its coordinator holds, whatever the client has read."""
    return kind == "siblings" or operation.name in ("delete", "remove", "reset", "disable", "write")


def counts(policy: str) -> bool:
    """Types in which a delta tells more than its own update: running totals."""
    return policy in ("counter_pn", "counter_bounded", "map_rr")


def comparable(shown: Any) -> Any:
    """Values of registers in an order of their own; all else as it is."""
    if isinstance(shown, dict):
        return {name: comparable(one) for name, one in shown.items()}
    return sorted(shown) if isinstance(shown, list) and shown and isinstance(shown[0], bytes) else shown


def play(policy: str, numbers: Sequence[int], kind: CellType | None = None) -> World:
    """Play a tape and check everything on the way and at the end. Raises AssertionError. `kind`: not the table's."""
    world, tape = World(policy, kind), Tape(numbers)
    while not tape.is_over:
        world.step(tape)
        world.check_replica(world.replicas[tape.pick(3)])
    world.check_laws(Tape(numbers))
    world.check_healed()
    return world
