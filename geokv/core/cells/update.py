"""From an operation to a delta, and what may be done with a cell besides: shown, collected, told apart.

    delta = update(kind, held, operation, dot, previous, stamp)     at the coordinator
    held.join(delta)                                                everywhere

`held` is what the coordinator holds; for an operation that takes something (`is_taking`) and comes without a context it is
that, joined with what a read quorum holds: never only what the coordinator happens to hold.

Not here: numbering (who gives dots), and which tombstones are stable (the frontiers tell).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.codec import encode_token
from geokv.core.cells.context import CausalContext, Dot
from geokv.core.cells.map_rr import MapRr
from geokv.core.cells.operation import DELETE, TAKING, Operation, check_arguments
from geokv.core.cells.state import CellState
from geokv.core.cells.view import Draft, View
from geokv.core.cells.wire import encode_value
from geokv.core.limits import CELL_BYTES_MAX, CELL_ITEMS_MAX
from geokv.errors import InvalidRequest, Stale

assert 2 * CELL_ITEMS_MAX <= CELL_BYTES_MAX


def check(kind: CellType, operation: Operation) -> None:
    """Raises InvalidRequest for what this type can never do."""
    if operation.name == DELETE and not kind.is_deletable:
        raise InvalidRequest(f"a {kind.name} cannot be deleted: a concurrent decrement could spend what is gone")
    if isinstance(kind, MapRr):
        kind.check(operation)
        return
    if operation.path:
        raise InvalidRequest(f"a {kind.name} has no fields: only a map_rr has")
    check_arguments(kind.name, kind.signature, operation, kind.for_nodes)


def is_taking(operation: Operation) -> bool:
    """Whether it takes something away: without a context, what a read quorum holds at that moment."""
    return operation.name in TAKING


def update(
    kind: CellType,
    held: CellState,
    operation: Operation,
    dot: Dot,
    previous: int | None = None,
    stamp: int = 0,
    covered: Mapping[bytes, int] | None = None,
    held_bytes: int | None = None,
    is_checked: bool = False,
) -> CellState:
    """The delta of `operation`, under `dot`.

    `previous` is the origin's dot on this key before, by default as `held` knows it; `stamp` the HLC of the record; `covered`
    the replica's frontier per origin: what it covers was seen here, also where the cell has been collected since. `held_bytes`:
    how long `held` is, encoded, where that is known: then a small cell need not be measured. `is_checked`: by `check`, before.

    A context comes from a client and is not trusted. The caller has made sure that it names nothing beyond the frontiers of all
    owners (`CausalContext.beyond`): what is joined into a delta stays for ever. Own dots to come are refused here.

    Raises InvalidRequest for what cannot be, Stale where the context names what `held` must contain and does not,
    NotEnoughRights.
    """
    if not is_checked:
        check(kind, operation)
    seen = operation.context if kind.heeds_context(operation) else None
    before = held.context.last(dot.origin) if previous is None else previous
    draft = Draft(held, dot, before, seen, stamp)
    if seen is not None and seen.last(dot.origin) >= dot.number:
        raise InvalidRequest("this context was not made by this cluster: it names what has not been numbered yet")
    unseen = None if seen is None else _unseen(seen, held.context, covered or {})
    takes_unseen = kind.takes_unseen and not operation.path
    if unseen is not None and unseen.spans and not takes_unseen:
        raise Stale("what this context has seen has not all arrived here: try again, or where it was read")
    view = View(held)
    if operation.name == DELETE:
        kind.clear(view, draft)
        if seen is None:
            draft.take_all()
    else:
        kind.apply(view, operation, draft)
        if held_bytes is None or held_bytes + draft.delta.payload_bytes() > 2 * CELL_ITEMS_MAX:  # an item has two bytes or more
            _check_size(kind, held, draft.delta)
    if unseen is not None:
        draft.delta.context.join(unseen)
    return draft.delta


def _unseen(seen: CausalContext, held: CausalContext, covered: Mapping[bytes, int]) -> CausalContext:
    """What a context names and this replica has not seen."""
    here = CausalContext({origin: (0, number) for origin, number in covered.items() if number})
    return seen.minus(held).minus(here)


def _check_size(kind: CellType, held: CellState, delta: CellState) -> None:
    if not delta.items:
        return
    if held.count() < CELL_ITEMS_MAX and held.payload_bytes() + delta.payload_bytes() <= CELL_BYTES_MAX:
        return
    after = held.copy()
    after.join(delta)
    if after.count() > CELL_ITEMS_MAX or after.payload_bytes() > CELL_BYTES_MAX:
        raise InvalidRequest(
            f"this {kind.name} would have {after.count()} items of {after.payload_bytes()} bytes: at most"
            f" {CELL_ITEMS_MAX} of {CELL_BYTES_MAX}; spread it over several keys"
        )


def is_tombstone(kind: CellType, state: CellState, now_ms: int = 0) -> bool:
    """Whether a reader is shown nothing."""
    return not kind.is_present(View(state, now_ms=now_ms))


def value(kind: CellType, state: CellState, now_ms: int = 0) -> object:
    """What a reader is shown at `now_ms`."""
    return kind.value(View(state, now_ms=now_ms))


def show(kind: CellType, state: CellState, now_ms: int = 0) -> tuple[bytes | None, bytes]:
    """(value as it travels, context token) of a cell; no value where there is nothing to show. Raises RecordError."""
    view = View(state, now_ms=now_ms)
    shown = encode_value(kind.name, kind.value(view)) if kind.is_present(view) else None
    return shown, encode_token(state.context)


def sweep(kind: CellType, held: CellState, dot: Dot, is_stable: Callable[[Dot], bool], now_ms: int = 0) -> CellState | None:
    """A delta that takes the items that only hid what is gone by now (removals of a `set_rw`, what has expired); None if none.

    It is an update like any other, with a dot of its own that travels: an addition that is made where the removal is gone must
    not meet it again elsewhere and lose. Only what is stable is taken: all that it had to win over has come.
    """
    gone = [entry for entry in kind.hidden(View(held, now_ms=now_ms)) if is_stable(Dot(entry.origin, entry.number))]
    if not gone:
        return None
    draft = Draft(held, dot, held.context.last(dot.origin), None, 0)
    draft.replace(gone)
    return draft.delta


def collected(state: CellState, is_stable: Callable[[Dot], bool]) -> CellState | None:
    """The state without what nobody can need any more; None: the whole cell may go. The same object where nothing may go.

    A cell without items goes once every dot that it has seen is stable, its removals among them: no item can arrive any more
    that it would have to hide. Of a cell that lives go, then, the marks of counters without items: whoever counts on from one
    brings it along, and whoever has collected it begins anew.
    """
    if not all(is_stable(Dot(origin, spans[-1])) for origin, spans in state.context.spans.items()):
        return state
    if not state.items:
        return None
    paths = {path for marks in state.marks.values() for path in marks}
    empty = {path for path in paths if View(state, path).is_empty()}
    if not empty:
        return state
    kept = state.copy()
    for origin, marks in state.marks.items():
        left = {path: totals for path, totals in marks.items() if path not in empty}
        kept.marks[origin] = left
        if not left:
            del kept.marks[origin]
    return kept
