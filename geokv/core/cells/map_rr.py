"""`map_rr`: a map whose fields are of any type, also maps again; removing a field resets what is in it.

    payload of an item in a field = field's length (varint), field, tag of its type, payload of that type

A field is named by (name, type): two datacenters that give one name different types at the same time get both. A removal takes
what it saw in the field, and of counters the totals that it saw; what it did not see survives, and nothing else
does (Antidote's map_rr; the reset anomaly of Riak's maps cannot arise, because the counters' marks are exact).

Invariants: a field shows while something in it shows. An empty field is not in the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, FieldStep, Operation, Signature, check_arguments, is_element
from geokv.core.cells.state import Totals
from geokv.core.cells.varint import read_varint, varint
from geokv.core.cells.view import Draft, Entry, View, step_end
from geokv.core.limits import MAP_DEPTH_MAX
from geokv.errors import InvalidRequest, RecordError


class MapRr(CellType):
    """Fields of other types. `fields`: the types that a field may have, by name; this one is among them."""

    name = "map_rr"
    tag = 15
    is_contested = True
    leaves_traces = True
    has_totals = True
    signature: ClassVar[Signature] = {"remove": (is_element,), DELETE: ()}

    def __init__(self, fields: Mapping[str, CellType]) -> None:
        self._fields = fields
        self._by_tag = {one.tag: one for one in fields.values()} | {self.tag: self}

    def check(self, operation: Operation) -> None:
        """Raises InvalidRequest for a path that cannot be, or an operation that its end does not have."""
        if len(operation.path) > MAP_DEPTH_MAX:
            raise InvalidRequest(f"a path of {len(operation.path)} fields: at most {MAP_DEPTH_MAX}")
        kind: CellType = self
        for name, type_name in operation.path:
            if kind is not self:
                raise InvalidRequest(f"a {kind.name} has no fields: only a map_rr has")
            is_element("map_rr field", name)
            kind = self._type(type_name)
        if kind is not self and operation.name == DELETE:
            raise InvalidRequest("a field is taken away with remove(name) on its map")
        check_arguments(kind.name, kind.signature, operation)

    def _type(self, name: str) -> CellType:
        if name == self.name:
            return self
        kind = self._fields.get(name)
        if kind is None:
            raise InvalidRequest(f"a field cannot be of type {name!r}: choose one of {', '.join(sorted(self._fields))}, map_rr")
        return kind

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        if operation.path:
            (name, type_name), *deeper = operation.path
            kind = self._type(type_name)
            kind.apply(view.at(encode_step((name, kind.tag))), operation._replace(path=tuple(deeper)), draft)
            return
        for step, below in view.by_step().items():
            name, kind = self._decode_step(step)
            if name == operation.arguments[0]:
                kind.clear(below, draft)

    def value(self, view: View) -> dict[FieldStep, Any]:
        """(name, type) -> value, of what is present."""
        fields = {}
        for step, below in view.by_step().items():
            name, kind = self._decode_step(step)
            if kind.is_present(below):
                fields[name, kind.name] = kind.value(below)
        return fields

    def is_present(self, view: View) -> bool:
        return any(self._decode_step(step)[1].is_present(below) for step, below in view.by_step().items())

    def clear(self, view: View, draft: Draft) -> None:
        for step, below in view.by_step().items():
            self._decode_step(step)[1].clear(below, draft)

    def place(self, payload: bytes) -> bytes | None:
        cut = step_end(payload)
        below = self._decode_step(payload[:cut])[1].place(payload[cut:])
        return None if below is None else payload[:cut] + below

    def prefers(self, one: Entry, other: Entry) -> bool | None:
        cut = step_end(one.payload)
        below = self._decode_step(one.payload[:cut])[1]
        return below.prefers(one._replace(payload=one.payload[cut:]), other._replace(payload=other.payload[cut:]))

    def subject(self, view: View, operation: Operation) -> list[Entry]:
        """Whole, with the path."""
        if operation.path:
            (name, type_name), *deeper = operation.path
            kind = self._type(type_name)
            step = encode_step((name, kind.tag))
            below = kind.subject(view.at(step), operation._replace(path=tuple(deeper)))
            return [entry._replace(payload=step + entry.payload) for entry in below]
        if not operation.arguments:
            return view.entries()
        name = operation.arguments[0]
        return view.starting(varint(len(name)) + name)

    def beyond(self, payload: bytes, marks: Mapping[bytes, Totals], path: bytes = b"") -> bytes:
        cut = step_end(payload)
        step = payload[:cut]
        return step + self._decode_step(step)[1].beyond(payload[cut:], marks, path + step)

    def written(self, payload: bytes) -> Operation:
        cut = step_end(payload)
        name, kind = self._decode_step(payload[:cut])
        below = kind.written(payload[cut:])
        return below._replace(path=((name, kind.name), *below.path))

    def hidden(self, view: View) -> list[Entry]:
        """What is hidden in any field, with the path to it."""
        found = []
        for step, below in view.by_step().items():
            for origin, number, payload in self._decode_step(step)[1].hidden(below):
                found.append(Entry(origin, number, step + payload))
        return found

    def _decode_step(self, step: bytes) -> tuple[bytes, CellType]:
        length, start = read_varint(step, 0)
        kind = self._by_tag.get(step[start + length])
        if kind is None:
            raise RecordError(f"field of type {step[start + length]}, which this version does not know")
        return step[start : start + length], kind


def encode_step(step: tuple[bytes, int]) -> bytes:
    """(name, tag) as the head of a payload."""
    name, tag = step
    return varint(len(name)) + name + bytes((tag,))
