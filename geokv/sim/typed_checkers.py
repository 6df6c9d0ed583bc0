"""What must hold in namespaces whose policy is not `lww`: a model of each type, held against the replicas and the reads.

    updates_survive    an acknowledged update is in the cell of every owner: the cell has seen its dot
    updates_once       of all the records with one operation id, however often it was tried, one is in the cells at most
    values_kept        siblings, sets: what was added is there, unless something that may have seen it took it;
                       and it is gone once something that must have seen it took it
    counts_exact       counters: at least what surely counts, at most what may count, each once
    bound_kept         bounded counters: the same, and no run of a node has spent what it did not have

The models go by what clients asked and were told: who added a value, which values were read with a context that was handed
back, who asked when. They know no dots, no contexts and no cells. What two replicas need not agree about yet is a *may*, what
a quorum has acknowledged before another asked a quorum is a *must*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from geokv.core.cell import TAG, lww_version
from geokv.core.cells import changed, halves
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.codec import decode, tags
from geokv.core.cells.context import CausalContext, Dot
from geokv.core.cells.counter_bounded import Account, accounts, origins_in, rights
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import value
from geokv.core.cells.view import View
from geokv.core.conflict import BOUNDED, policy_of
from geokv.core.origin import unpack_origin
from geokv.core.quorum import needed
from geokv.protocol.requests import Outcome
from geokv.sim.held import Held
from geokv.sim.history import Operation
from geokv.sim.world import World

OK: Final = "ok"
_ADDING: Final = frozenset({"put", "add", "increment"})
_NOT_DONE: Final = frozenset(
    {
        Outcome.INVALID,
        Outcome.NOT_FOUND,
        Outcome.UNAVAILABLE,
        Outcome.OVERLOADED,
        Outcome.WRONG_NODE,
        Outcome.STALE,
        Outcome.NOT_ENOUGH_RIGHTS,
    }
)
NEVER_US: Final = 1 << 62
Cells = dict[str, Held]
IsExcused = Callable[[World, Operation, Iterable[str]], bool]


class _Key:
    """The operations of one key, and what the replicas show of it in the end."""

    def __init__(self, world: World, key: bytes, operations: list[Operation], is_excused: IsExcused) -> None:
        self.world = world
        self.key = key
        self.is_excused = is_excused
        self.operations = operations
        self.adds = [o for o in operations if o.kind in _ADDING and o.outcome not in _NOT_DONE]
        self.takers = [o for o in operations if o.is_write and self._takes(o) and o.outcome not in _NOT_DONE]
        self.reads = [o for o in operations if o.kind == "get" and o.outcome is Outcome.APPLIED]

    @staticmethod
    def _takes(operation: Operation) -> bool:
        return operation.kind in ("remove", "delete", "reset") or operation.saw is not None

    def is_aimed(self, taker: Operation, add: Operation) -> bool:
        """Whether `taker` is after that value at all."""
        if taker is add:
            return False
        if taker.saw is not None:
            return add.value in taker.saw
        return taker.kind in ("delete", "reset") or taker.value == add.value

    def may_see(self, taker: Operation, add: Operation) -> bool:
        """Whether the operation may have taken that value."""
        if not self.is_aimed(taker, add):
            return False
        # Who was told nothing may be served later than its client waited.
        return taker.saw is not None or not taker.is_acknowledged or taker.ended_us > add.started_us

    def must_see(self, taker: Operation, add: Operation) -> bool:
        """Whether the operation must have taken that value, by what was acknowledged before it began."""
        if not self.is_aimed(taker, add) or not taker.is_acknowledged or self.is_excused(self.world, taker, ()):
            return False
        if self.is_older(taker) and not self.is_older(add):
            return False
        if taker.saw is not None:
            return True
        replicas = self.world.options.replicas
        return self.is_before(add, taker) and add.replicas + replicas // 2 + 1 > replicas

    def is_before(self, one: Operation, other: Operation) -> bool:
        """Whether `one` was acknowledged, in the same datacenter, before `other` began, and was not lost."""
        is_acknowledged = one.is_acknowledged and 0 < one.ended_us <= other.started_us
        return is_acknowledged and one.coordinator_dc == other.coordinator_dc and not self.is_excused(self.world, one, ())

    def is_read_by(self, read: Operation, write: Operation) -> bool:
        """Whether the read must show the effect of the write: their replicas overlap."""
        if self.is_older(read) or self.is_older(write):
            return False
        asked = needed(read.level, read.explicit, self.world.options.replicas)
        return self.is_before(write, read) and write.replicas + asked > self.world.options.replicas

    def is_sure(self, add: Operation) -> bool:
        return add.is_acknowledged and not self.is_older(add) and not self.is_excused(self.world, add, ())

    def is_older(self, operation: Operation) -> bool:
        """Whether it was done, or may have been, while the namespace was `lww`: then one value stood for all."""
        if self.world.history.born_as != "lww" or operation.policy == "lww":
            return False
        return not operation.answered_as or self.was_logged_as_lww(operation)

    def was_logged_as_lww(self, operation: Operation) -> bool:
        """Whether the change came between the record of a write and its answer; no later write excuses itself so."""
        is_early = operation.started_us < self.world.history.last_answered_as_lww_us()
        is_lww = (operation.key, operation.version) in self.world.truth.registry.cells
        return operation.is_write and operation.is_acknowledged and is_early and is_lww

    def maybe_taken(self, add: Operation, until_us: int = NEVER_US) -> Operation | None:
        """Something that may have taken the value, of what began by then."""
        return next((t for t in self.takers if t.started_us <= until_us and self.may_see(t, add)), None)

    def surely_taken(self, add: Operation, read: Operation | None = None) -> Operation | None:
        """Something that must have taken the value, and whose effect that read must show."""
        takers = self.takers if read is None else [t for t in self.takers if self.is_read_by(read, t)]
        return next((t for t in takers if self.must_see(t, add)), None)


def _keys(world: World, policies: Iterable[str], is_excused: IsExcused) -> Iterable[_Key]:
    grouped: dict[bytes, list[Operation]] = {}
    for policy in policies:
        for operation in world.history.typed(policy):
            grouped.setdefault(operation.key, []).append(operation)
    for key, operations in grouped.items():
        yield _Key(world, key, operations, is_excused)


def _shown(world: World, cells: Cells, key: bytes) -> Iterable[tuple[str, Any]]:
    """(node, what its cell shows) of every owner that runs."""
    policy = key.split(b"/")[0].decode()
    kind = type_of(policy)
    for dc in world.topology.dc_names:
        for name in world.owners(key, dc):
            if name in cells and cells[name].answers(key):
                cell = cells[name].get(key)
                yield name, None if cell is None else value(kind, _seen_as(kind, cell))


def _seen_as(kind: CellType, cell: bytes) -> CellState:
    """What a type sees of a cell that may have halves of others."""
    is_plain = cell[:1] != TAG and tags(cell) == {kind.tag}
    return decode(kind.tag, cell) if is_plain else changed.decode(kind, cell)


def updates_survive(world: World, cells: Cells, is_excused: IsExcused) -> str:
    """At the end every owner, in every datacenter, has seen each acknowledged update."""
    has_collected = "collection.armed" in world.notes
    taken = {o.key for o in world.history.operations if o.is_write and _Key._takes(o)} if has_collected else set()
    typed = {operation.key for operation in world.history.operations if operation.policy != "lww"}
    seen = {(name, key): halves.decode(cell) for name, table in cells.items() for key, cell in table.items() if key in typed}
    for operation in world.history.operations:
        if operation.key in taken:
            continue  # the cell may have been collected, and with it what it had seen: the models tell of its values
        if operation.policy == "lww" or not operation.is_write or not operation.is_acknowledged:
            continue
        dots = world.truth.registry.dots.get((operation.key, operation.version), [])
        if is_excused(world, operation, ()):
            continue
        for dc in world.topology.dc_names:
            for name in world.owners(operation.key, dc):
                is_asked = name in cells and cells[name].answers(operation.key)
                if is_asked and not _has_seen(seen.get((name, operation.key)), dots, operation.version):
                    return f"{name} lacks {operation}"
    return OK


def _contexts(cells: Cells, key: bytes) -> list[CausalContext]:
    """What the cell of a key has seen, on each node that has one."""
    held = (table[key] for table in cells.values() if key in table)
    return [halves.decode(cell).state.context for cell in held if cell[:1] != TAG]


def updates_once(world: World, cells: Cells, _: IsExcused) -> str:
    """What was tried several times is applied once at most; what was numbered and lost with a disk is in no cell."""
    often = {named: dots for named, dots in world.truth.registry.named.items() if len(dots) > 1}
    if not often:
        return OK
    contexts = {key: _contexts(cells, key) for _name, key in often}
    for (name, key), dots in often.items():
        applied = [dot for dot in dots if any(one.contains(dot.origin, dot.number) for one in contexts[key])]
        if len(applied) > 1:
            return f"operation {name.hex()} on {key!r} was applied {len(applied)} times: {applied}"
    return OK


def _has_seen(held: halves.Halves | None, dots: list[Dot], version: int) -> bool:
    if held is None:
        return False
    if not dots:  # it was an lww write, before the policy was changed
        return held.lww is not None and lww_version(held.lww) >= version
    return any(held.state.context.contains(dot.origin, dot.number) for dot in dots)


def values_kept(world: World, cells: Cells, is_excused: IsExcused) -> str:
    """Siblings and elements of sets: nothing is lost, and nothing that was taken comes back."""
    for one in _keys(world, ("siblings", "set_aw", "set_rw"), is_excused):
        for name, shown in _shown(world, cells, one.key):
            present = set(shown or ())
            for add in one.adds:
                if add.value in present and (taker := one.surely_taken(add)):
                    return f"{name} still shows what was added by {add} and taken by {taker}"
                if add.value not in present and one.is_sure(add) and not one.maybe_taken(add):
                    return f"{name} has lost {add}: nothing has taken it"
            if strangers := present - {add.value for add in one.adds}:
                return f"{name} shows {min(strangers)!r} in {one.key!r}, which nobody added"
        if fault := _reads_of_values(one):
            return fault
    return OK


def _reads_of_values(one: _Key) -> str:
    for read in one.reads:
        shown = set(read.shown or ())
        for add in one.adds:
            if add.value not in shown:
                if one.is_read_by(read, add) and not one.maybe_taken(add, read.ended_us):
                    return f"{read} does not show {add}"
            elif taker := one.surely_taken(add, read):
                return f"{read} shows what was added by {add} and taken by {taker} before"
    return ""


def counts_exact(world: World, cells: Cells, is_excused: IsExcused) -> str:
    """Counters: what was acknowledged counts once, less what a reset saw; what nobody knows counts at most once."""
    for one in _keys(world, ("counter_pn",), is_excused):
        lowest = sum(add.amount for add in one.adds if one.is_sure(add) and not one.maybe_taken(add))
        highest = sum(add.amount for add in one.adds if not one.surely_taken(add))
        for name, shown in _shown(world, cells, one.key):
            if not lowest <= (shown or 0) <= highest:
                return f"{name} counts {shown or 0} in {one.key!r}: it is {lowest} at least and {highest} at most"
        for read in one.reads:
            counted = [add for add in one.adds if one.is_read_by(read, add) and not one.maybe_taken(add, read.ended_us)]
            begun = [add for add in one.adds if add.started_us <= read.ended_us and not one.surely_taken(add, read)]
            low, high = (sum(add.amount for add in adds) for adds in (counted, begun))
            if not low <= (read.shown or 0) <= high:
                return f"{read} shows {read.shown or 0}: it is {low} at least and {high} at most"
    return OK


def bound_kept(world: World, cells: Cells, is_excused: IsExcused) -> str:
    """Bounded counters: never more is spent than was there, by nobody; and what is left is what surely is, or may be."""
    for one in _keys(world, ("counter_bounded",), is_excused):
        spent = [o for o in one.operations if o.kind == "decrement" and o.outcome not in _NOT_DONE]
        if any(o.is_acknowledged and is_excused(world, o, ()) for o in [*one.adds, *spent]):
            continue  # more disks were lost than any write promises to survive
        added, removed = _may(one.adds), _may(spent)
        if removed[0] > added[1]:
            return f"{removed[0]} of {one.key!r} were sold, and only {added[1]} were ever there"
        for name in [name for dc in world.topology.dc_names for name in world.owners(one.key, dc)]:
            cell = cells[name].get(one.key) if name in cells and cells[name].answers(one.key) else None
            if cell is not None and (fault := _books_of(cell, added[0] - removed[1], added[1] - removed[0])):
                return f"{name}: {one.key!r}: {fault}"
        for read in one.reads:
            begun = [_may([o for o in some if o.started_us <= read.ended_us])[1] for some in (one.adds, spent)]
            seen = [sum(o.amount for o in some if one.is_read_by(read, o)) for some in (one.adds, spent)]
            if not seen[0] - begun[1] <= (read.shown or 0) <= max(begun[0] - seen[1], 0):
                return f"{read} shows {read.shown or 0}: it is from {seen[0] - begun[1]} to {max(begun[0] - seen[1], 0)}"
    return OK


def books_survive(disks: Iterable[Mapping[bytes, bytes]]) -> str:
    """What is wrong with the books of bounded counters that these disks hold together (empty: nothing)."""
    together: dict[bytes, bytes] = {}
    policy = policy_of(BOUNDED)
    for cells in disks:
        for key, cell in cells.items():
            if key.startswith(f"{BOUNDED}/".encode()):
                together[key] = policy.merge(together[key], cell) if key in together else policy.fold(cell)
    for key, cell in together.items():
        if fault := _overspent(accounts(View(decode(cell[0], cell)))):
            return f"{key!r}: {fault}"
    return ""


def _overspent(books: Mapping[bytes, Account]) -> str:
    for origin in sorted(origins_in(books)):
        if (held := rights(books, origin)) < 0:
            return f"{unpack_origin(origin)} has spent {-held} more than it had"
    return ""


def _may(operations: list[Operation]) -> tuple[int, int]:
    """(what surely counts, what may count)."""
    return sum(o.amount for o in operations if o.is_acknowledged), sum(o.amount for o in operations)


def _books_of(cell: bytes, lowest: int, highest: int) -> str:
    """What is wrong with the books of a cell that has seen everything (empty: nothing)."""
    books = accounts(View(decode(cell[0], cell)))
    if fault := _overspent(books):
        return fault
    total = sum(account.up - account.down for account in books.values())
    if not max(lowest, 0) <= total <= highest:
        return f"{total} are left: it is {max(lowest, 0)} at least and {highest} at most"
    return ""


TYPED_CHECKERS: Final[dict[str, Callable[[World, Cells, IsExcused], str]]] = {
    "updates_survive": updates_survive,
    "updates_once": updates_once,
    "values_kept": values_kept,
    "counts_exact": counts_exact,
    "bound_kept": bound_kept,
}
