"""What each type must be: a plain function of its history, which knows no cells, contexts or merging.

A history is a list of events. An event knows its operation, what its coordinator held (`held`), and what the operation may take
away (`seen`: what the client had read, or all that was held). Everything follows from one rule:

    an operation takes, of what it saw and what concerns it, what was alive at its coordinator or not known there yet

Alive are then the events that no other one took. The rest is one line or a few per type, which says what somebody is shown to
whom the events `come` have come. Where with every event its past has come too, this is the usual specification ("alive: seen by
no later one"); so it also tells what a replica must show to which only a part has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from geokv.core.cells.hll import estimate, register_and_rank

Id = int
Come = frozenset[int]


@dataclass(frozen=True)
class Event:
    """One operation that was accepted. `stamp` is the coordinator's HLC, `at` its origin; ids rise along an origin."""

    id: Id
    at: str
    name: str
    arguments: tuple[Any, ...]
    path: tuple[tuple[bytes, str], ...]
    held: frozenset[Id]
    seen: frozenset[Id]
    stamp: int
    is_whole: bool = False
    """A delete of the key without a context: it takes all that is known, also what is dead already."""

    def keeps(self) -> bool:
        """Whether it leaves something that another can take."""
        return self.name not in ("delete", "remove", "reset", "disable")


Concerns = Callable[[Event, Event], bool]
Absent = type("Absent", (), {"__repr__": lambda _: "ABSENT"})
ABSENT = Absent()


class History:
    """Events by id, with who takes whom."""

    def __init__(self, events: list[Event], concerns: Concerns, keeps: Callable[[Event], bool] = Event.keeps) -> None:
        self.events = {event.id: event for event in events}
        self._concerns = concerns
        self._keeps = keeps
        self._taken: dict[Id, frozenset[Id]] = {}

    def taken(self, taker: Event) -> frozenset[Id]:
        """What this event takes away, wherever both have come."""
        held = self._taken.get(taker.id)
        if held is None:
            alive = {event.id for event in self.alive(taker.held)}
            known = self.known(taker.held)
            held = self._taken[taker.id] = frozenset(
                one
                for one in self.known(taker.seen)
                if (taker.is_whole or one in alive or one not in known)
                and self._keeps(self.events[one])
                and self._concerns(taker, self.events[one])
            )
        return held

    def known(self, among: Iterable[Id]) -> set[Id]:
        """What somebody knows of to whom these have come: they themselves, and what they took."""
        there = [one for one in among if one in self.events]
        return {*there, *(one for taker in there for one in self.taken(self.events[taker]))}

    def alive(self, among: Iterable[Id]) -> list[Event]:
        """The events among these that keep something and that none of them took."""
        ids = sorted(one for one in among if one in self.events)
        gone = {one for taker in ids for one in self.taken(self.events[taker])}
        return [self.events[one] for one in ids if one not in gone and self._keeps(self.events[one])]


def _all(_taker: Event, _other: Event) -> bool:
    return True


def _same_element(taker: Event, other: Event) -> bool:
    return taker.name == "delete" or taker.arguments[0] == other.arguments[0]


# --- one function per type ------------------------------------------------------------------------------------------


def siblings(events: list[Event], come: Come) -> Any:
    left = [event.arguments[0] for event in History(events, _all).alive(come)]
    return sorted(left) if left else ABSENT


def register_mv(events: list[Event], come: Come) -> Any:
    left = {event.arguments[0] for event in History(events, _all).alive(come)}
    return sorted(left) if left else ABSENT


def register_lww(events: list[Event], come: Come) -> Any:
    """The latest version; a write's version is its stamp, moved above all that was alive at its coordinator."""
    history = History(events, _all)
    versions: dict[Id, int] = {}
    for event in events:
        there = [versions[one.id] for one in history.alive(event.held)]
        versions[event.id] = max(event.stamp, max(there, default=0) + 1)
    left = max(history.alive(come), key=lambda one: (versions[one.id], one.at, one.id), default=None)
    return ABSENT if left is None else left.arguments[0]


def flag_ew(events: list[Event], come: Come) -> Any:
    return True if History(events, _all).alive(come) else ABSENT


def flag_dw(events: list[Event], come: Come) -> Any:
    alive = History(events, _all, lambda event: event.name != "delete").alive(come)
    return True if {event.name for event in alive} == {"enable"} else ABSENT


def set_aw(events: list[Event], come: Come) -> Any:
    return frozenset(event.arguments[0] for event in History(events, _same_element).alive(come)) or ABSENT


def set_rw(events: list[Event], come: Come) -> Any:
    alive = History(events, _same_element, lambda event: event.name != "delete").alive(come)
    removed = {event.arguments[0] for event in alive if event.name == "remove"}
    return frozenset(event.arguments[0] for event in alive if event.name == "add") - removed or ABSENT


def sorted_set(events: list[Event], come: Come) -> Any:
    scores: dict[bytes, Any] = {}
    for event in History(events, _same_element).alive(come):
        member, score = event.arguments
        scores[member] = max(score, scores.get(member, score))
    return sorted(scores.items(), key=lambda pair: (pair[1], pair[0])) or ABSENT


def counter_pn(events: list[Event], come: Come) -> Any:
    """The sum of what no reset saw. Totals run on, so who has seen one count of an origin has seen the earlier ones."""
    counts = [event for event in events if event.name in ("increment", "decrement")]
    gone: set[Id] = set()
    for event in events:
        if event.name in ("reset", "delete") and event.id in come:
            gone |= _reached(counts, event.held)
    left = [one for one in counts if one.id in _reached(counts, come) - gone]
    return _sum(left) if left else ABSENT


def _reached(counts: list[Event], held: Come) -> set[Id]:
    """These counts, and the earlier ones of the same origins."""
    last: dict[str, Id] = {}
    for one in counts:
        if one.id in held:
            last[one.at] = one.id
    return {one.id for one in counts if one.id <= last.get(one.at, -1)}


def _sum(counts: list[Event]) -> int:
    return sum(one.arguments[0] * (1 if one.name == "increment" else -1) for one in counts)


def _extreme(choose: Callable[..., Any], events: list[Event], come: Come, given: Callable[[Event], Any]) -> Any:
    history = History(events, _all)
    reached: dict[Id, Any] = {}
    for event in events:
        if event.keeps():
            reached[event.id] = choose([given(event), *[reached[one.id] for one in history.alive(event.held)]])
    left = [reached[one.id] for one in history.alive(come)]
    return choose(left) if left else ABSENT


def greatest(events: list[Event], come: Come) -> Any:
    return _extreme(max, events, come, lambda event: event.arguments[0])


def least(events: list[Event], come: Come) -> Any:
    return _extreme(min, events, come, lambda event: event.arguments[0])


def hll(events: list[Event], come: Come) -> Any:
    """A `max` per register."""
    by_register: dict[int, list[Event]] = {}
    for event in events:
        if event.name == "add":
            by_register.setdefault(register_and_rank(event.arguments[0])[0], [])
    for register, own in by_register.items():
        own += [one for one in events if one.name == "delete" or register_and_rank(one.arguments[0])[0] == register]
    ranks = [_extreme(max, own, come, lambda one: register_and_rank(one.arguments[0])[1]) for own in by_register.values()]
    shown = [rank for rank in ranks if rank is not ABSENT]
    return round(estimate(shown)) if shown else ABSENT


def counter_bounded(events: list[Event], come: Come) -> Any:
    return _sum([one for one in events if one.name in ("increment", "decrement") and one.id in come]) if come else ABSENT


def map_rr(events: list[Event], come: Come) -> Any:
    """Field by field: the specification of its type, for which a removal of the field, or of the map, is a delete."""
    shown = {}
    for name, kind in {event.path[0] for event in events if event.path}:
        below = []
        for event in events:
            if event.path and event.path[0] == (name, kind):
                below.append(replace(event, path=event.path[1:]))
            elif not event.path and (event.name == "delete" or event.arguments[0] == name):
                below.append(replace(event, name="delete", arguments=()))
        value = SPECIFICATIONS[kind](below, come)
        if value is not ABSENT:
            shown[name, kind] = value
    return shown or ABSENT


SPECIFICATIONS: dict[str, Callable[[list[Event], Come], Any]] = {
    "siblings": siblings,
    "register_mv": register_mv,
    "register_lww": register_lww,
    "flag_ew": flag_ew,
    "flag_dw": flag_dw,
    "set_grow": set_aw,
    "set_aw": set_aw,
    "set_rw": set_rw,
    "sorted_set": sorted_set,
    "counter_pn": counter_pn,
    "counter_bounded": counter_bounded,
    "max": greatest,
    "min": least,
    "hll": hll,
    "map_rr": map_rr,
}


def specified(policy: str, events: list[Event], come: Come) -> Any:
    """What a key of this policy shows once `come` have come. Sweeping is no operation: nothing may change by it."""
    return SPECIFICATIONS[policy]([event for event in events if event.name != "sweep"], come)
