"""What a type sees of a cell, and what it may write: the items at one path, and the draft of one delta.

A map keeps the items of all its fields in one cell. The payload of an item begins with the path to its field, so the type of
the field sees, through a `View`, only what stands there, and finds it as it would in a cell of its own:

    cell of a map:   A 55 [likes counter_pn] 3 17 2     B 41 [tags set_aw] red     B 40 [tags set_aw] blue
    View of tags:                                       B 41 red                   B 40 blue

A `Draft` becomes the delta: its context is the new dot with its chain, and the dots that it takes.

Invariants: a delta has one dot of its own, always, also when it only takes: or nobody could tell when a removal has come
everywhere. It takes only what it saw, and with a client's context only what that names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from geokv.core.cells.context import CausalContext, Dot
from geokv.core.cells.state import CellState, Totals, join_totals
from geokv.core.cells.varint import read_varint
from geokv.errors import InvalidRequest, RecordError


class Entry(NamedTuple):
    """A live item, its payload without the path."""

    origin: bytes
    number: int
    payload: bytes


class View:
    """The live items at one path of a cell. `now_ms` is the HLC's, for what has a deadline."""

    __slots__ = ("_entries", "_state", "now_ms", "path")

    def __init__(self, state: CellState, path: bytes = b"", entries: list[Entry] | None = None, now_ms: int = 0) -> None:
        self._state = state
        self._entries = entries
        self.path = path
        self.now_ms = now_ms

    def entries(self) -> list[Entry]:
        """All items, without an order."""
        if self._entries is None:
            self._entries = list(self._starting(b""))
        return self._entries

    def of_origin(self, origin: bytes) -> list[Entry]:
        """The items of one origin."""
        if self._entries is not None:
            return [entry for entry in self._entries if entry.origin == origin]
        cut = len(self.path)
        return [
            Entry(origin, number, carried[cut:])
            for number, carried in self._state.items.get(origin, {}).items()
            if carried.startswith(self.path)
        ]

    def mark_of(self, origin: bytes) -> Totals | None:
        """What resets have seen here of one origin."""
        return self._state.marks.get(origin, {}).get(self.path)

    def payloads(self) -> Iterable[bytes]:
        """What all items carry."""
        if self._entries is None and not self.path:
            for dots in self._state.items.values():
                yield from dots.values()
        else:
            yield from [entry.payload for entry in self.entries()]

    def is_empty(self) -> bool:
        return not self.entries() if self.path else not self._state.items

    def equal(self, payload: bytes) -> list[Entry]:
        """The items that carry exactly this."""
        if self._entries is not None:
            return [entry for entry in self._entries if entry.payload == payload]
        return [Entry(origin, number, payload) for origin, number in self._state.dots_of(self.path + payload)]

    def starting(self, head: bytes) -> list[Entry]:
        """The items whose payload begins so."""
        if self._entries is not None:
            return [entry for entry in self._entries if entry.payload.startswith(head)]
        return list(self._starting(head))

    def _starting(self, head: bytes) -> Iterator[Entry]:
        sought, cut = self.path + head, len(self.path)
        for origin, dots in self._state.items.items():
            for number, carried in dots.items():
                if carried.startswith(sought):
                    yield Entry(origin, number, carried[cut:])

    def marks(self) -> dict[bytes, Totals]:
        """What resets have seen here, per origin."""
        return {origin: marks[self.path] for origin, marks in self._state.marks.items() if self.path in marks}

    def at(self, step: bytes) -> View:
        """The items below one more step of the path."""
        entries = None
        if self._entries is not None:
            cut = len(step)
            entries = [Entry(o, n, payload[cut:]) for o, n, payload in self._entries if payload.startswith(step)]
        return View(self._state, self.path + step, entries, self.now_ms)

    def by_step(self) -> dict[bytes, View]:
        """One view per step that items or marks stand below: the fields of a map, with their types."""
        below: dict[bytes, list[Entry]] = {}
        for origin, number, payload in self.entries():
            cut = step_end(payload)
            below.setdefault(payload[:cut], []).append(Entry(origin, number, payload[cut:]))
        for marks in self._state.marks.values():
            for path in marks:
                if len(path) > len(self.path) and path.startswith(self.path):
                    below.setdefault(path[len(self.path) :][: step_end(path[len(self.path) :])], [])
        return {step: View(self._state, self.path + step, below[step], self.now_ms) for step in sorted(below)}


def step_end(payload: bytes) -> int:
    """Where the first step of a path ends: length, name of the field, tag of its type. Raises RecordError."""
    length, offset = read_varint(payload, 0)
    end = offset + length + 1
    if end > len(payload):
        raise RecordError(f"the path of a field is cut off: {payload[:24]!r}")
    return end


class Draft:
    """The delta of one operation, in the making.

    `held`: what the coordinator holds (merged with what a read quorum holds, where the operation takes something).
    `seen`: the client's context, where it gave one. `stamp`: the HLC of the record, which no client sets.
    """

    __slots__ = ("delta", "dot", "held", "seen", "stamp")

    def __init__(self, held: CellState, dot: Dot, previous: int, seen: CausalContext | None, stamp: int) -> None:
        if not 0 <= previous < dot.number:
            raise InvalidRequest(f"dot {dot.number} cannot follow dot {previous} of the same origin")
        self.held: Final = held
        self.dot: Final = dot
        self.seen: Final = seen
        self.stamp: Final = stamp
        self.delta: Final = CellState()
        self.delta.context.add(dot.origin, previous, dot.number)

    def put(self, view: View, payload: bytes) -> None:
        """The one item of this delta."""
        self.delta.items[self.dot.origin] = {self.dot.number: view.path + payload}

    def sees(self, entry: Entry) -> bool:
        """Whether the operation may take this item: its context names it, or it came without one."""
        return self.seen is None or self.seen.contains(entry.origin, entry.number)

    def take(self, entries: Iterable[Entry]) -> int:
        """Take those of the items that the operation sees; returns how many it must leave."""
        entries = list(entries)
        seen = [entry for entry in entries if self.sees(entry)]
        self.replace(seen)
        return len(entries) - len(seen)

    def replace(self, entries: Iterable[Entry]) -> None:
        """Take items whose content the new one carries on, whatever the client has read."""
        for entry in entries:
            self.delta.context.add(entry.origin, entry.number - 1, entry.number)

    def take_all(self) -> None:
        """Take all that is held, in as few bytes as name it.

        The context then covers dots of counters, so their marks go with it: a replica whose marks are older would lose items
        without learning what they had counted.
        """
        self.delta.context.join(self.held.context)
        for origin, marks in self.held.marks.items():
            mine = self.delta.marks.setdefault(origin, {})
            for path, totals in marks.items():
                mine[path] = join_totals(mine[path], totals) if path in mine else totals

    def mark(self, view: View, origin: bytes, totals: Totals) -> None:
        """A reset has seen these totals of `origin`, whose dots this delta names."""
        marks = self.delta.marks.setdefault(origin, {})
        held = marks.get(view.path)
        marks[view.path] = totals if held is None else join_totals(held, totals)
