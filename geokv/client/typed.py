"""Handles for namespaces whose policy is a type of its own: counters, sets, flags, sorted sets, extremes, sketches and maps.

A handle is a namespace of many: `kv.counters("likes").increment("post:1", 5)`. Each method makes one operation of the type and
gives it to the namespace's handle; so the same classes serve `Client`, whose methods return results, and `AsyncClient`, whose
methods return what is awaited. What an operation means is in docs/conflicts.md, what it does to a cell in geokv/core/cells.

Options of every update, all as those of `put`: `consistency`, `w`, `replicated_to`, `context`, `timeout`; of every read, as
those of `get`: `consistency`, `r`, `repair`, `timeout`. Names, elements and members are str (UTF-8) or bytes, and come back as
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any, ClassVar, Final, Protocol

from geokv.client.arguments import Key
from geokv.core.cells.counter_bounded import BoundedValue
from geokv.core.cells.operation import Number, Operation
from geokv.core.cells.wire import encode_operation
from geokv.errors import InvalidRequest

_HANDLES: Final = {
    "counter_pn": 'kv.counters("{}")',
    "counter_bounded": 'kv.bounded_counters("{}")',
    "set_aw": 'kv.sets("{}")',
    "set_rw": 'kv.sets("{}")',
    "set_grow": 'kv.sets("{}")',
    "flag_ew": 'kv.flags("{}")',
    "flag_dw": 'kv.flags("{}")',
    "sorted_set": 'kv.sorted_sets("{}")',
    "max": 'kv.extremes("{}")',
    "min": 'kv.extremes("{}")',
    "hll": 'kv.sketches("{}")',
    "map_rr": 'kv.maps("{}")',
}


class Keyed(Protocol):
    """What a handle needs of its namespace, of either client."""

    @property
    def name(self) -> str: ...
    def apply(self, key: Key, operations: list[bytes], options: dict[str, Any]) -> Any: ...
    def read_as(self, policies: frozenset[str], key: Key, empty: Any, options: dict[str, Any]) -> Any: ...
    def get(self, key: Key, **options: Any) -> Any: ...
    def delete(self, key: Key, **options: Any) -> Any: ...


def shown_as(namespace: str, policies: frozenset[str], got: Any, empty: Any) -> Any:
    """The value of a get by a handle that serves these policies. Raises InvalidRequest where the namespace has another one."""
    if got.policy not in policies:
        handle = _HANDLES.get(got.policy, 'kv.namespace("{}")').format(namespace)
        raise InvalidRequest(f"namespace {namespace!r} holds {got.policy}, not {' or '.join(sorted(policies))}: use {handle}")
    return got.value if got.found else copy(empty)


def _number(number: Number, what: str) -> Number:
    """Which numbers a type takes, the node says."""
    if not isinstance(number, int | float):
        raise TypeError(f"{what} is a number, not {type(number).__name__}")
    return number


def _bytes(text: Key, what: str) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"{what} is str or bytes, not {type(text).__name__}")
    return text


class _Cells:
    """What the handles have in common. `path` leads to a field of a map."""

    policies: ClassVar[frozenset[str]]
    empty: ClassVar[Any] = None

    def __init__(self, namespace: Keyed) -> None:
        self._namespace = namespace

    @property
    def name(self) -> str:
        return self._namespace.name

    def _apply(self, key: Key, options: dict[str, Any], name: str, *arguments: Any) -> Any:
        return self._namespace.apply(key, [encode_operation(Operation(name, arguments))], options)

    def value(self, key: Key, **options: Any) -> Any:
        """What the key shows; of one that is not there what an empty one would."""
        return self._namespace.read_as(self.policies, key, self.empty, options)

    def get(self, key: Key, **options: Any) -> Any:
        """The whole result: `.value`, `.found`, `.context`, `.achieved`."""
        return self._namespace.get(key, **options)

    def delete(self, key: Key, **options: Any) -> Any:
        """Take all that the context names; without one, all that a read quorum holds. What is concurrent survives."""
        return self._namespace.delete(key, **options)


class Counters(_Cells):
    """Policy `counter_pn`. The value is a whole number, 0 where nothing was counted."""

    policies = frozenset({"counter_pn"})
    empty = 0

    def increment(self, key: Key, amount: int = 1, **options: Any) -> Any:
        return self._apply(key, options, "increment", _number(amount, "an amount"))

    def decrement(self, key: Key, amount: int = 1, **options: Any) -> Any:
        return self._apply(key, options, "decrement", _number(amount, "an amount"))

    def reset(self, key: Key, **options: Any) -> Any:
        """Back to 0: takes exactly the counts that it saw; those that are concurrent survive."""
        return self._apply(key, options, "reset")


class BoundedCounters(_Cells):
    """Policy `counter_bounded`. The value is a whole number, never below 0 anywhere.

    An increment makes *rights* where it is made, a decrement spends rights that its node holds; they move by themselves to
    where they are wanted. A decrement that finds too few raises NotEnoughRights, with `.here` and `.elsewhere`; nothing was
    written then. Every update is written to a quorum at least: a weaker level is raised to that.
    """

    policies = frozenset({"counter_bounded"})
    empty = BoundedValue(0)

    def increment(self, key: Key, amount: int = 1, **options: Any) -> Any:
        return self._apply(key, options, "increment", _number(amount, "an amount"))

    def decrement(self, key: Key, amount: int = 1, **options: Any) -> Any:
        return self._apply(key, options, "decrement", _number(amount, "an amount"))

    def rights(self, key: Key, **options: Any) -> Any:
        """How many of the value each datacenter may spend, as far as is known where it is read."""
        shape = options | {"shape": lambda shown: dict(shown.rights)}
        return self._namespace.read_as(self.policies, key, self.empty, shape)

    def delete(self, key: Key, **options: Any) -> Any:
        """There is none: a decrement elsewhere could spend what is gone. Raises InvalidRequest."""
        raise InvalidRequest("a counter_bounded cannot be deleted or reset: decrement it by what is left")


class Sets(_Cells):
    """Policies `set_aw` (adding wins), `set_rw` (removing wins) and `set_grow`. The value is a frozenset of bytes."""

    policies = frozenset({"set_aw", "set_rw", "set_grow"})
    empty = frozenset()

    def add(self, key: Key, element: Key, **options: Any) -> Any:
        return self._apply(key, options, "add", _bytes(element, "an element"))

    def remove(self, key: Key, element: Key, **options: Any) -> Any:
        return self._apply(key, options, "remove", _bytes(element, "an element"))

    def add_many(self, key: Key, elements: Iterable[Key], **options: Any) -> Any:
        """Add each of them, in as few calls as they fit in; one result per element. It is not atomic."""
        return self._many(key, "add", elements, options)

    def remove_many(self, key: Key, elements: Iterable[Key], **options: Any) -> Any:
        return self._many(key, "remove", elements, options)

    def _many(self, key: Key, name: str, elements: Iterable[Key], options: dict[str, Any]) -> Any:
        if isinstance(elements, str | bytes):
            raise TypeError(f"several elements are wanted, not one {type(elements).__name__}: put it into a list")
        operations = [encode_operation(Operation(name, (_bytes(one, "an element"),))) for one in elements]
        return self._namespace.apply(key, operations, options | {"are_many": True})


class Flags(_Cells):
    """Policies `flag_ew` (enabling wins) and `flag_dw` (disabling wins). The value is a bool, False where it was never set."""

    policies = frozenset({"flag_ew", "flag_dw"})
    empty = False

    def enable(self, key: Key, **options: Any) -> Any:
        return self._apply(key, options, "enable")

    def disable(self, key: Key, **options: Any) -> Any:
        return self._apply(key, options, "disable")


class SortedSets(_Cells):
    """Policy `sorted_set`. The value is a list of (member, score) by rising score."""

    policies = frozenset({"sorted_set"})
    empty: ClassVar[Any] = []

    def add(self, key: Key, member: Key, score: Number, **options: Any) -> Any:
        return self._apply(key, options, "add", _bytes(member, "a member"), _number(score, "a score"))

    def remove(self, key: Key, member: Key, **options: Any) -> Any:
        return self._apply(key, options, "remove", _bytes(member, "a member"))


class Extremes(_Cells):
    """Policies `max` and `min`. The value is the extreme of all numbers that were put, None where there is none."""

    policies = frozenset({"max", "min"})

    def put(self, key: Key, number: Number, **options: Any) -> Any:
        return self._apply(key, options, "put", _number(number, "what is put"))


class Sketches(_Cells):
    """Policy `hll`. The value is about how many different elements were added."""

    policies = frozenset({"hll"})
    empty = 0

    def add(self, key: Key, element: Key, **options: Any) -> Any:
        return self._apply(key, options, "add", _bytes(element, "an element"))


# --- maps -----------------------------------------------------------------------------------------------------------


class Maps(_Cells):
    """Policy `map_rr`. The value is a dictionary of field (bytes) to value, nested where a field is a map.

    Where two datacenters gave one name two types at the same time, both are there, named (field, type).
    """

    policies = frozenset({"map_rr"})
    empty: ClassVar[Any] = {}

    def at(self, key: Key) -> Map:
        """The map under `key`."""
        return Map(self._namespace, key, ())

    def value(self, key: Key, **options: Any) -> Any:
        return self._namespace.read_as(self.policies, key, {}, options | {"shape": fields_of})


def fields_of(shown: dict[tuple[bytes, str], Any]) -> dict[Any, Any]:
    """A map's fields by their names, and by (name, type) where one name has several types."""
    names = [name for name, _ in shown]
    fields: dict[Any, Any] = {}
    for (name, kind), value in shown.items():
        plain = fields_of(value) if kind == "map_rr" else value
        fields[name if names.count(name) == 1 else (name, kind)] = plain
    return fields


class Map:
    """One map, or one that is a field of another: makes handles of its fields."""

    def __init__(self, namespace: Keyed, key: Key, path: tuple[tuple[bytes, str], ...]) -> None:
        self._namespace = namespace
        self._key = key
        self._path = path

    def _field(self, name: Key, kind: str) -> Field:
        return Field(self._namespace, self._key, (*self._path, (_bytes(name, "a field's name"), kind)))

    def counter(self, name: Key) -> Field:
        return self._field(name, "counter_pn")

    def set(self, name: Key, kind: str = "set_aw") -> Field:
        return self._field(name, kind)

    def flag(self, name: Key, kind: str = "flag_ew") -> Field:
        return self._field(name, kind)

    def register(self, name: Key, kind: str = "register_lww") -> Field:
        return self._field(name, kind)

    def field(self, name: Key, kind: str) -> Field:
        """A field of any type: also `sorted_set`, `max`, `min`, `hll`."""
        return self._field(name, kind)

    def map(self, name: Key) -> Map:
        """A map in this map."""
        return Map(self._namespace, self._key, (*self._path, (_bytes(name, "a field's name"), "map_rr")))

    def remove(self, name: Key, **options: Any) -> Any:
        """Take away what is in the field; what is concurrent survives."""
        operation = Operation("remove", (_bytes(name, "a field's name"),), self._path)
        return self._namespace.apply(self._key, [encode_operation(operation)], options)

    def value(self, **options: Any) -> Any:
        """The fields of the whole map under the key, or of this one in it."""
        path = self._path

        def inner(shown: dict[tuple[bytes, str], Any]) -> dict[Any, Any]:
            for step in path:
                shown = shown.get(step, {})
            return fields_of(shown)

        return self._namespace.read_as(Maps.policies, self._key, {}, options | {"shape": inner})


class Field:
    """One field of a map: the operations of its type; which of them it has, the node says."""

    def value(self, **options: Any) -> Any:
        """What the field shows; where it is not in its map, what an empty one of its type would."""
        *outer, (name, kind) = self._path

        def inner(shown: dict[tuple[bytes, str], Any]) -> Any:
            for step in outer:
                shown = shown.get(step, {})
            found = {step: shown for step, shown in shown.items() if step == (name, kind)}
            return fields_of(found)[name] if found else copy(_EMPTY.get(kind))

        return self._namespace.read_as(Maps.policies, self._key, {}, options | {"shape": inner})

    def __init__(self, namespace: Keyed, key: Key, path: tuple[tuple[bytes, str], ...]) -> None:
        self._namespace = namespace
        self._key = key
        self._path = path

    def _apply(self, options: dict[str, Any], name: str, *arguments: Any) -> Any:
        return self._namespace.apply(self._key, [encode_operation(Operation(name, arguments, self._path))], options)

    def increment(self, amount: int = 1, **options: Any) -> Any:
        return self._apply(options, "increment", _number(amount, "an amount"))

    def decrement(self, amount: int = 1, **options: Any) -> Any:
        return self._apply(options, "decrement", _number(amount, "an amount"))

    def reset(self, **options: Any) -> Any:
        return self._apply(options, "reset")

    def add(self, element: Key, *score: Number, **options: Any) -> Any:
        """An element; to a sorted set a member and its score."""
        return self._apply(options, "add", _bytes(element, "an element"), *[_number(one, "a score") for one in score])

    def remove(self, element: Key, **options: Any) -> Any:
        return self._apply(options, "remove", _bytes(element, "an element"))

    def enable(self, **options: Any) -> Any:
        return self._apply(options, "enable")

    def disable(self, **options: Any) -> Any:
        return self._apply(options, "disable")

    def write(self, value: Key, **options: Any) -> Any:
        return self._apply(options, "write", _bytes(value, "a value"))

    def put(self, number: Number, **options: Any) -> Any:
        return self._apply(options, "put", _number(number, "what is put"))


_EMPTY: Final = {one: kind.empty for kind in (Counters, Sets, Flags, SortedSets, Sketches, Maps) for one in kind.policies}


class Typed:
    """What both clients have: a handle for each kind of namespace."""

    def _keyed(self, name: str) -> Any:
        return self.namespace(name)  # type: ignore[attr-defined]

    def counters(self, name: str) -> Counters:
        """Counters, in a namespace with policy `counter_pn`."""
        return Counters(self._keyed(name))

    def bounded_counters(self, name: str) -> BoundedCounters:
        """Counters that are never below 0 anywhere, in a namespace with policy `counter_bounded`."""
        return BoundedCounters(self._keyed(name))

    def sets(self, name: str) -> Sets:
        """Sets, in a namespace with policy `set_aw`, `set_rw` or `set_grow`."""
        return Sets(self._keyed(name))

    def flags(self, name: str) -> Flags:
        """Flags, in a namespace with policy `flag_ew` or `flag_dw`."""
        return Flags(self._keyed(name))

    def sorted_sets(self, name: str) -> SortedSets:
        """Members in the order of their scores, in a namespace with policy `sorted_set`."""
        return SortedSets(self._keyed(name))

    def extremes(self, name: str) -> Extremes:
        """The greatest or the least number, in a namespace with policy `max` or `min`."""
        return Extremes(self._keyed(name))

    def sketches(self, name: str) -> Sketches:
        """How many different elements, in a namespace with policy `hll`."""
        return Sketches(self._keyed(name))

    def maps(self, name: str) -> Maps:
        """Maps of fields of any type, in a namespace with policy `map_rr`."""
        return Maps(self._keyed(name))

    def set(self, *_: Any, **__: Any) -> Any:
        """There is none: it is called put."""
        raise TypeError(
            'a client has no set(): write a value with put(), as in kv.namespace("...").put(key, value);'
            ' sets of elements are kv.sets("...")'
        )
