"""Histories with a change of policy in the middle: three datacenters that hear of it at different times.

Until it hears, a datacenter goes on under the old policy, and cells of the new one wait for it (`Policy.holds`). Deltas are
lost, doubled and reordered, whole cells are sent, contexts of old reads are handed back, some of the old policy.
What each replica that has heard shows is held against the specification, a plain function of the history: its events, what each
had seen, and under which policy it was made. What others show is held against the old type's own specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from geokv.core.cell import encode_lww, live_value, lww_version
from geokv.core.cells.codec import decode_token, encode_token
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import DELETE, Operation
from geokv.core.cells.state import CellState
from geokv.core.cells.update import is_tombstone, update, value
from geokv.core.conflict import LWW, Policy, policy_after, policy_of
from geokv.core.origin import Origin
from geokv.errors import Stale
from tests.core.cells.harness import DCS, Tape, comparable, frontier_of, heeds_context
from tests.core.cells.operations import draw_operation
from tests.core.cells.specification import ABSENT, SPECIFICATIONS, Come, Event, History, Id


@dataclass(frozen=True)
class Made(Event):
    """`is_old`: under the old policy. `version`: of an lww write."""

    is_old: bool = False
    version: int = 0
    number: int = 0


@dataclass
class Replica:
    """One datacenter's copy of the key, in bytes that deltas are appended to, in folded bytes, and decoded where it can be."""

    dc: str
    policy: Policy
    number: int = 0
    appended: bytes = b""
    folded: bytes = b""
    state: CellState | None = None
    held: frozenset[int] = frozenset()

    @property
    def origin(self) -> bytes:
        return Origin(self.dc, "n", 1).packed()


@dataclass
class Play:
    """One history of a key whose policy is changed from `old` to `new`."""

    old: str
    new: str
    replicas: list[Replica] = field(default_factory=list)
    events: list[Made] = field(default_factory=list)
    dots: dict[int, Dot] = field(default_factory=dict)
    on_the_way: list[tuple[int, bytes]] = field(default_factory=list)
    cells: list[bytes] = field(default_factory=list)
    tokens: list[tuple[bytes, frozenset[int]]] = field(default_factory=list)
    waited: int = 0
    heard: int = 0

    def __post_init__(self) -> None:
        self.replicas = [Replica(dc, policy_of(self.old)) for dc in DCS]

    # --- what a tape may do -----------------------------------------------------------------------------------------

    def step(self, tape: Tape) -> None:
        choice, replica = tape.pick(18), self.replicas[tape.pick(3)]
        if choice < 8:
            self._operate(replica, tape)
        elif choice < 13 and self.on_the_way:
            index = tape.pick(len(self.on_the_way))
            event, cell = self.on_the_way[index]
            if self.take(replica, cell, {event}) and tape.pick(3) == 0:
                del self.on_the_way[index]
        elif choice < 15:
            self.send(replica, self.replicas[tape.pick(3)])
        elif choice < 16 and replica.state is not None:
            self.tokens.append((encode_token(replica.state.context), replica.held))
        elif choice < 17:
            self.hear(replica)

    def hear(self, replica: Replica) -> None:
        if not replica.policy.earlier:
            self.heard += 1
            replica.policy = policy_after(self.new, (self.old,))
            self._see(replica)

    def _see(self, replica: Replica) -> None:
        """The decoded state, made anew."""
        if replica.policy.kind is not None:
            replica.state = replica.policy.decode(replica.appended) if replica.appended else replica.policy.empty()

    def _operate(self, replica: Replica, tape: Tape) -> None:
        if replica.policy.name == LWW:
            self._put_lww(replica, tape)
            return
        kind = replica.policy.kind
        assert kind is not None
        if replica.state is None:
            self._see(replica)
        assert replica.state is not None
        operation = draw_operation(kind.name, tape, len(self.events), [])
        token = self.tokens[tape.pick(len(self.tokens))] if self.tokens and tape.pick(2) else None
        stamp = 1000 + tape.pick(4)
        if kind.name == "siblings" and operation.name == "put":
            operation = operation._replace(arguments=(operation.arguments[0], 0))
        operation = operation._replace(context=None if token is None else decode_token(token[0]))
        dot = Dot(replica.origin, replica.number + 1)
        try:
            delta = update(kind, replica.state, operation, dot, stamp=stamp, covered=frontier_of(self.dots, replica.held))
        except Stale:
            return
        seen = replica.held
        if heeds_context(kind.name, operation):
            blind = kind.name == "siblings" and operation.name == "put"
            seen = token[1] if token else frozenset() if blind else replica.held
        event = self._event(replica, operation, seen, stamp, operation.name == DELETE and token is None)
        self._publish(replica, event, dot, replica.policy.encode_delta(replica.state, delta))

    def _put_lww(self, replica: Replica, tape: Tape) -> None:
        stamp, is_delete = 1000 + tape.pick(4), tape.pick(5) == 0
        replaced = lww_version(replica.folded) if replica.folded else 0
        version = max(stamp, replaced + 1)
        text = b"v%d" % len(self.events)
        dot = Dot(replica.origin, replica.number + 1)
        operation = Operation(DELETE) if is_delete else Operation("write", (text,))
        event = self._event(replica, operation, replica.held, stamp, is_whole=False, version=version)
        self._publish(replica, event, dot, encode_lww(version, *dot, is_delete, 0, replaced, b"" if is_delete else text))

    def _event(self, replica: Replica, operation: Operation, seen: Come, stamp: int, is_whole: bool, version: int = 0) -> Made:
        return Made(
            id=len(self.events),
            at=replica.origin.hex(),
            name=operation.name,
            arguments=operation.arguments,
            path=(),
            held=replica.held,
            seen=seen,
            stamp=stamp,
            is_whole=is_whole,
            is_old=not replica.policy.earlier,
            version=version,
        )

    def _publish(self, replica: Replica, event: Made, dot: Dot, cell: bytes) -> None:
        replica.number += 1 + event.id % 3  # other keys' records stand between
        self.events.append(event)
        self.dots[event.id] = dot
        self.cells.append(cell)
        self.on_the_way.append((event.id, cell))
        assert self.take(replica, cell, {event.id})

    def send(self, sender: Replica, receiver: Replica) -> None:
        if not sender.folded or self.take(receiver, sender.folded, sender.held):
            receiver.held |= sender.held

    def take(self, replica: Replica, cell: bytes, events: set[int] | frozenset[int]) -> bool:
        """Merge, in each of the three ways; what belongs to a definition that is not known yet waits."""
        policy = replica.policy
        if not policy.holds(cell):
            self.waited += 1
            return False
        replica.held |= events
        if policy.kind is not None:
            if replica.state is None:
                self._see(replica)
            assert replica.state is not None
            replica.state.join(policy.decode(cell))
        replica.folded = policy.merge(replica.folded, cell) if replica.folded else policy.fold(cell)
        replica.appended = policy.append(replica.appended, cell) if replica.appended else cell
        return True

    # --- what must hold ---------------------------------------------------------------------------------------------

    def shown(self, replica: Replica) -> Any:
        kind = replica.policy.kind
        if kind is None:
            live = live_value(replica.folded, 0) if replica.folded else None
            return ABSENT if live is None else live
        state = replica.policy.decode(replica.folded) if replica.folded else replica.policy.empty()
        return ABSENT if is_tombstone(kind, state) else comparable(value(kind, state))

    def check(self, replica: Replica) -> None:
        policy = replica.policy
        if replica.folded:
            assert policy.fold(replica.appended) == replica.folded == policy.fold(replica.folded)
        if replica.folded and replica.state is not None:
            assert policy.encode(replica.state) == replica.folded
            again = policy.decode(replica.folded)
            assert (again.items, again.context) == (replica.state.items, replica.state.context)
        if policy.earlier:
            expected = specified(self.old, self.new, self.events, replica.held)
        elif policy.kind is None:
            expected = _lww(self.events, replica.held)
        else:
            expected = SPECIFICATIONS[self.old](list(self.events), replica.held)
        assert self.shown(replica) == comparable(expected), (self.shown(replica), expected)

    def check_healed(self) -> None:
        for replica in self.replicas:
            self.hear(replica)
        first = self.replicas[0]
        for replica in self.replicas[1:]:
            self.send(replica, first)
        for replica in self.replicas[1:]:
            self.send(first, replica)
        for replica in self.replicas:
            self.check(replica)
        assert len({replica.folded for replica in self.replicas}) == 1

    def check_laws(self, tape: Tape) -> None:
        """Commutative, associative, idempotent, whatever the halves; appended is merged; compaction commutes with merge."""
        policy = policy_after(self.new, (self.old,))
        cells = [one.folded for one in self.replicas if one.folded] + self.cells
        if not cells:
            return
        merge, append, fold = policy.merge, policy.append, policy.fold
        a, b, c = (cells[tape.pick(len(cells))] for _ in range(3))
        assert merge(a, b) == merge(b, a)
        assert merge(merge(a, b), c) == merge(a, merge(b, c))
        assert merge(a, a) == fold(a) and merge(merge(a, b), b) == merge(a, b)
        assert fold(append(append(a, b), c)) == merge(merge(a, b), c) == merge(fold(a), append(b, c))


def play(old: str, new: str, numbers: Sequence[int]) -> Play:
    """Play a tape and check everything on the way and at the end. Raises AssertionError."""
    world, tape = Play(old, new), Tape(numbers)
    while not tape.is_over:
        world.step(tape)
        world.check(world.replicas[tape.pick(3)])
    world.check_laws(Tape(numbers))
    world.check_healed()
    return world


# --- the specification ----------------------------------------------------------------------------------------------


class ChangedHistory(History):
    """Under the new policy an operation takes what it takes by itself, old or new; but of an old type in which one item
    hides others, only what is to be seen."""

    hides: str = ""

    def taken(self, taker: Event) -> frozenset[Id]:
        held = self._taken.get(taker.id)
        if held is None:
            held = super().taken(taker)
            assert isinstance(taker, Made)
            if self.hides and not taker.is_old and not taker.is_whole:
                held -= self._unseen(taker)
            self._taken[taker.id] = held
        return held

    def _unseen(self, taker: Event) -> set[Id]:
        alive = [one for one in self.alive(taker.held) if isinstance(one, Made) and one.is_old]
        hiding = [one for one in alive if one.name == self.hides]
        elements = {one.arguments[:1] for one in hiding}
        return {one.id for one in alive if one.arguments[:1] in elements}


def specified(old: str, new: str, events: list[Made], come: Come) -> Any:
    """What is shown of a key, of which `come` have come, where the policy `new` stands."""
    if old == LWW:
        return _AfterLww(events).shown(new, come)
    if new in ("set_aw", "set_rw"):
        return _elements(old, new, events, come)
    if new in ("flag_ew", "flag_dw"):
        return _flag(old, new, events, come)
    return SPECIFICATIONS[new](list(events), come)


def _lww(events: list[Made], come: Come) -> Any:
    latest = max((one for one in events if one.id in come), key=lambda one: (one.version, one.at, one.id), default=None)
    return ABSENT if latest is None or latest.name == DELETE else latest.arguments[0]


class _AfterLww:
    """Of the lww writes that have come the latest, unless an update has seen it; and the new half."""

    def __init__(self, events: list[Made]) -> None:
        self._events = events
        self._taken: dict[Id, frozenset[Id]] = {}
        self._alive: dict[Come, list[Made]] = {}

    def alive(self, among: Come) -> list[Made]:
        if among not in self._alive:
            there = [self._events[one] for one in sorted(among)]
            gone = {one for taker in there if not taker.is_old for one in self.taken(taker) | self.own_lost(taker)}
            stood = self.latest(among)
            left = [one for one in there if not one.is_old] + ([stood] if stood is not None else [])
            self._alive[among] = [one for one in left if one.keeps() and one.id not in gone]
        return self._alive[among]

    def latest(self, among: Come) -> Made | None:
        """Also what an update that has come ended: it says up to which version."""
        there = {self._events[one] for one in among if self._events[one].is_old}
        there |= {stood for one in among if (stood := self._ends(self._events[one])) is not None}
        return max(there, key=lambda one: (one.version, one.at, one.id), default=None)

    def _ends(self, taker: Made) -> Made | None:
        stood = None if taker.is_old else self.latest(taker.held)
        return stood if stood is not None and stood.id in self.taken(taker) else None

    def known(self, among: Come) -> set[Id]:
        return {*among, *(gone for one in among if not self._events[one].is_old for gone in self.taken(self._events[one]))}

    def taken(self, taker: Made) -> frozenset[Id]:
        """What of the new half, and of the old one, this update took."""
        if taker.id not in self._taken:
            there = {one.id for one in self.alive(taker.held)}
            known = self.known(taker.held)
            stood = self.latest(taker.seen)  # of lww writes a context names the latest alone
            seen = [one for one in self.known(taker.seen) if not self._events[one].is_old or self._events[one] is stood]
            self._taken[taker.id] = frozenset(one for one in seen if taker.is_whole or one in there or one not in known)
        return self._taken[taker.id]

    def own_lost(self, taker: Made) -> set[Id]:
        """The first update of an origin says with its chain that its own lww writes have been seen, but for what stands."""
        own = [one for one in self._events[: taker.id] if one.at == taker.at]
        stood = self.latest(taker.held)
        after = stood.id if stood is not None and stood.at == taker.at else -1
        return {one.id for one in own if one.id > after} if all(one.is_old for one in own) else set()

    def shown(self, new: str, come: Come) -> Any:
        left = self.alive(come)
        if not left:
            return ABSENT
        if new != "register_lww":
            return sorted({one.arguments[0] for one in left} if new == "register_mv" else [one.arguments[0] for one in left])
        versions: dict[Id, int] = {}
        for one in self._events:
            there = [versions[other.id] for other in self.alive(one.held)] if not one.is_old else []
            versions[one.id] = one.version if one.is_old else max(one.stamp, max(there, default=0) + 1)
        return max(left, key=lambda one: (versions[one.id], one.at, one.id)).arguments[0]


def _elements(old: str, new: str, events: list[Made], come: Come) -> Any:
    def keeps(event: Event) -> bool:
        assert isinstance(event, Made)
        return event.name != DELETE if (old if event.is_old else new) == "set_rw" else event.keeps()

    def concerns(taker: Event, other: Event) -> bool:
        return taker.name == DELETE or taker.arguments[0] == other.arguments[0]

    history = ChangedHistory(list(events), concerns, keeps)
    history.hides = "remove" if old == "set_rw" else ""
    alive = [one for one in history.alive(come) if isinstance(one, Made)]
    old_removed = {one.arguments[0] for one in alive if one.is_old and one.name == "remove"}
    seen_old = {one.arguments[0] for one in alive if one.is_old and one.name == "add"} - old_removed
    added = {one.arguments[0] for one in alive if not one.is_old and one.name == "add"}
    removed = {one.arguments[0] for one in alive if not one.is_old and one.name == "remove"}
    return frozenset(seen_old | added) - removed or ABSENT


def _flag(old: str, new: str, events: list[Made], come: Come) -> Any:
    def keeps(event: Event) -> bool:
        assert isinstance(event, Made)
        return event.name != DELETE if (old if event.is_old else new) == "flag_dw" else event.keeps()

    history = ChangedHistory(list(events), lambda _taker, _other: True, keeps)
    history.hides = "disable" if old == "flag_dw" else ""
    alive = [one for one in history.alive(come) if isinstance(one, Made)]
    old_names = {one.name for one in alive if one.is_old}
    new_names = {one.name for one in alive if not one.is_old}
    is_enabled = ("enable" in old_names and "disable" not in old_names) or "enable" in new_names
    return True if is_enabled and "disable" not in new_names else ABSENT
