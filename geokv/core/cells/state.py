"""The one form that every policy's cell has: live dots with what they carry, under a causal context.

    context   what has been seen                     A (0, 57]   B (0, 12] (40, 41]
    items     dot -> payload, the updates that live   A 55 "milk"   B 41 "eggs"
    marks     what resets have seen of counters       A at path "" : began with 3, 17 up, 2 down

An item is alive until an update that saw it takes it; that is written nowhere but in the context: a dot that is seen and not
among the items is gone. So joining two states needs no knowledge of the policy:

    items = those of both  +  mine that the other has not seen  +  the other's that I have not seen

What the payloads mean, and which items an update takes, is the policy's (`view`, and one module per type). A delta is a state.

Marks are for counters only: whose items are running totals of one origin since the dot with which it began. A reset keeps the
totals that it saw. Of two marks of one origin the later beginning stands; of the same beginning, the higher totals.

Invariants: every item's dot, and every origin with a mark, is in the context; no empty dictionaries; one dot has one payload
(should damage make two, the greater stands, so that replicas still converge). Joining is commutative, associative, idempotent.

After Almeida et al., arXiv 1603.01529 (causal δ-CRDTs) and Bieniusa et al., arXiv 1210.3368.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from geokv.core.cells.context import CausalContext, Spans, is_within, join_spans

_WALK_MAX: Final = 16  # a span of at most so many numbers is walked; a longer one is held against the items
_DELTA_ITEMS_MAX: Final = 64  # what has more is no delta: who asks after it makes the index anew
_NO_ITEMS: Final[dict[int, bytes]] = {}


class Totals(NamedTuple):
    """What one origin has counted since the dot with which it began. Both rise, so a reset has seen a prefix."""

    birth: int
    up: int
    down: int


def join_totals(mine: Totals, theirs: Totals) -> Totals:
    """Of two beginnings the later stands; of one, the higher totals."""
    if mine.birth != theirs.birth:
        return max(mine, theirs)
    return Totals(mine.birth, max(mine.up, theirs.up), max(mine.down, theirs.down))


class CellState:
    """A decoded cell or delta. Grows in place by `join`.

    `_dots`: payload -> (origin, number) of the items that carry it. Made when it is first asked for, and kept up by `join`: so
    an element of a large set is found at what an element of a small one costs, as long as its state is kept.
    """

    __slots__ = ("_dots", "context", "items", "marks")

    def __init__(self) -> None:
        self.context = CausalContext()
        self.items: dict[bytes, dict[int, bytes]] = {}
        self.marks: dict[bytes, dict[bytes, Totals]] = {}
        self._dots: dict[bytes, tuple[tuple[bytes, int], ...]] | None = None

    def dots_of(self, payload: bytes) -> tuple[tuple[bytes, int], ...]:
        """(origin, number) of the items that carry exactly this."""
        found = self._dots
        if found is None:
            found = self._dots = {}
            for origin, dots in self.items.items():
                for number, carried in dots.items():
                    found[carried] = (*found.get(carried, ()), (origin, number))
        return found.get(payload, ())

    def join(self, other: CellState) -> None:
        """Take in another state or delta. Costs what `other` holds, and not what is held here, where `other` is a delta."""
        if self._dots is not None and other.count() > _DELTA_ITEMS_MAX:
            self._dots = None
        seen_here, held = self.context.spans, self.items
        # Origin by origin: what the other side has seen and no longer holds goes, what was never seen here comes.
        for origin, spans in other.context.spans.items():
            seen, mine, theirs = seen_here.get(origin), held.get(origin), other.items.get(origin)
            if seen is None:
                seen_here[origin] = spans
                if theirs:
                    held[origin] = theirs.copy()
                    self._remember(origin, theirs)
                continue
            if mine and spans[0] < seen[-1]:  # else it is the usual delta: the next link of a chain
                for number in _taken(mine, theirs or _NO_ITEMS, spans, seen[-1]):
                    self._forget(mine.pop(number), (origin, number))
                if not mine:
                    del held[origin]
                    mine = None
            if theirs:
                if mine and len(theirs) == 1 and spans[-1] in theirs and spans[-1] > seen[-1]:  # the usual delta: one new dot
                    mine.update(theirs)
                    self._remember(origin, theirs)
                else:
                    self._take_new(origin, seen, mine, theirs)
            if seen != spans:
                seen_here[origin] = join_spans(seen, spans)
        if other.marks:
            self._join_marks(other)

    def _join_marks(self, other: CellState) -> None:
        for origin, marks in other.marks.items():
            mine = self.marks.setdefault(origin, {})
            for path, totals in marks.items():
                known = mine.get(path)
                mine[path] = totals if known is None else join_totals(known, totals)

    def _take_new(self, origin: bytes, seen: Spans, mine: dict[int, bytes] | None, theirs: dict[int, bytes]) -> None:
        """Take the other side's items of an origin that were never seen here."""
        if mine is None:
            mine = _NO_ITEMS
        fresh = {n: payload for n, payload in theirs.items() if not is_within(seen, n) or mine.get(n, payload) < payload}
        if fresh:
            if mine is _NO_ITEMS:
                self.items[origin] = fresh
            else:
                if not mine.keys().isdisjoint(fresh):
                    self._dots = None  # one dot with two payloads: only a damaged cell has it
                mine.update(fresh)
            self._remember(origin, fresh)

    def _remember(self, origin: bytes, dots: dict[int, bytes]) -> None:
        found = self._dots
        if found is not None:
            for number, payload in dots.items():
                known = found.get(payload)
                found[payload] = (*known, (origin, number)) if known else ((origin, number),)

    def _forget(self, payload: bytes, dot: tuple[bytes, int]) -> None:
        if self._dots is not None:
            left = tuple([one for one in self._dots[payload] if one != dot])
            if left:
                self._dots[payload] = left
            else:
                del self._dots[payload]

    def count(self) -> int:
        """How many items live."""
        return sum(map(len, self.items.values()))

    def payload_bytes(self) -> int:
        """What all items carry, in bytes."""
        return sum([sum(map(len, dots.values())) for dots in self.items.values()])

    def copy(self) -> CellState:
        other = CellState()
        other.context = self.context.copy()
        other.items = {origin: dots.copy() for origin, dots in self.items.items()}
        other.marks = {origin: marks.copy() for origin, marks in self.marks.items()}
        return other

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CellState)
            and self.context == other.context
            and self.items == other.items
            and self.marks == other.marks
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"CellState({self.context!r}, items={self.items!r}, marks={self.marks!r})"


def _taken(mine: dict[int, bytes], theirs: dict[int, bytes], spans: Spans, seen_upto: int) -> list[int]:
    """The numbers of `mine` that lie in `spans` and are not in `theirs`. No item of mine is above `seen_upto`."""
    taken: list[int] = []
    for index in range(0, len(spans), 2):
        after, upto = spans[index], spans[index + 1]
        if after >= seen_upto:
            break  # the usual delta: the next link of a chain
        if upto - after <= _WALK_MAX:
            taken += [n for n in range(after + 1, upto + 1) if n in mine and n not in theirs]
        else:
            taken += [n for n in mine if after < n <= upto and n not in theirs]
    return taken
