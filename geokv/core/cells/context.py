"""The causal context: which updates of one key have been seen, as a vector per origin plus what is known beyond it.

A dot is (origin, number of its record). The numbers of one origin on one key rise, but not one by one: what lies between
belongs to other keys. So an update names the previous dot of its origin on that key, and with it makes a claim that needs
no counting: *of this key, all dots of this origin in (previous, number] are seen*. A context is a set of such spans:

    origin A   (0, 57]            the vector: everything up to 57
    origin B   (0, 12] (40, 41]   12, and beyond it exactly 41; some (12, x] is still on its way
               (0, 41]            … once the update (12, 40] has come: spans that touch grow together

So deltas may be lost, doubled and reordered: the vector advances only along the chain of previous dots.

Invariants: per origin the spans rise and neither overlap nor touch, so equal contexts are equal values; an origin without spans
is not named. Joining is the union of what is seen: commutative, associative, idempotent. Nothing is ever pruned.

After dotted version vectors (Preguiça et al., arXiv 1011.5808) and interval version vectors (Mukund et al. 2014); the chain
stands where a count per key would stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

NUMBER_MAX: Final = (1 << 63) - 1

Spans = tuple[int, ...]  # after, upto, after, upto … : what lies in (after, upto] is seen
_NOTHING: Final[Spans] = ()


class Dot(NamedTuple):
    """The name of one update: unique for ever."""

    origin: bytes
    number: int


class CausalContext:
    """What has been seen of one key. Grows in place."""

    __slots__ = ("spans",)

    def __init__(self, spans: dict[bytes, Spans] | None = None) -> None:
        self.spans: dict[bytes, Spans] = {} if spans is None else spans

    def contains(self, origin: bytes, number: int) -> bool:
        return is_within(self.spans.get(origin, _NOTHING), number)

    def last(self, origin: bytes) -> int:
        """The highest dot of `origin` that is seen, 0 for none: what its next update names as the previous one."""
        spans = self.spans.get(origin)
        return spans[-1] if spans else 0

    def add(self, origin: bytes, after: int, upto: int) -> None:
        """All dots of `origin` in (after, upto] are seen."""
        held = self.spans.get(origin)
        self.spans[origin] = (after, upto) if held is None else join_spans(held, (after, upto))

    def join(self, other: CausalContext) -> None:
        mine = self.spans
        for origin, spans in other.spans.items():
            held = mine.get(origin)
            if held is None:
                mine[origin] = spans
            elif held != spans:
                mine[origin] = join_spans(held, spans)

    def minus(self, other: CausalContext) -> CausalContext:
        """What is seen here and not there."""
        left = {}
        for origin, spans in self.spans.items():
            rest = subtract_spans(spans, other.spans.get(origin, _NOTHING))
            if rest:
                left[origin] = rest
        return CausalContext(left)

    def covers(self, other: CausalContext) -> bool:
        """Whether everything that `other` has seen is seen here."""
        return not other.minus(self).spans

    def beyond(self, known: Mapping[bytes, int]) -> list[Dot]:
        """The highest entries that lie beyond `known` (origin -> number): what nobody here can have read yet, or a forgery."""
        return [Dot(origin, spans[-1]) for origin, spans in sorted(self.spans.items()) if spans[-1] > known.get(origin, 0)]

    def copy(self) -> CausalContext:
        return CausalContext(dict(self.spans))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausalContext) and self.spans == other.spans

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"CausalContext({self.spans!r})"


def is_within(spans: Spans, number: int) -> bool:
    """Whether `number` lies in one of the spans."""
    if len(spans) == 2:
        return spans[0] < number <= spans[1]
    return any(spans[index] < number <= spans[index + 1] for index in range(0, len(spans), 2))


def join_spans(mine: Spans, theirs: Spans) -> Spans:
    """The union; spans that touch become one."""
    if len(mine) == len(theirs) == 2:
        if mine[0] <= theirs[1] and theirs[0] <= mine[1]:
            return (min(mine[0], theirs[0]), max(mine[1], theirs[1]))
        return mine + theirs if mine < theirs else theirs + mine
    if len(mine) == 2 and theirs[0] >= mine[0] and theirs[-3] <= mine[1] >= theirs[-2]:
        return (mine[0], max(mine[1], theirs[-1]))  # the usual update: its last span alone tells anything new
    merged: list[int] = []
    for after, upto in sorted([*_pairs(mine), *_pairs(theirs)]):
        if not merged or after > merged[-1]:
            merged += (after, upto)
        elif upto > merged[-1]:
            merged[-1] = upto
    return tuple(merged)


def subtract_spans(mine: Spans, theirs: Spans) -> Spans:
    """What lies in `mine` and not in `theirs`."""
    left: list[int] = []
    for after, upto in _pairs(mine):
        start = after
        for other_after, other_upto in _pairs(theirs):
            if other_upto <= start or other_after >= upto:
                continue
            if other_after > start:
                left += (start, other_after)
            start = other_upto
        if start < upto:
            left += (start, upto)
    return tuple(left)


def _pairs(spans: Spans) -> list[tuple[int, int]]:
    return list(zip(spans[::2], spans[1::2], strict=True))
