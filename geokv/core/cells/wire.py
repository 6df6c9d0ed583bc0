"""Operations and values as MessagePack: what a client sends about a key, and what it is sent.

    operation   [name, arguments, [[field, type] …]]
    value       counter_pn: decimal text (it may pass 64 bits); counter_bounded: [decimal text, {datacenter: its rights, as
                text}]; sets: a rising list; sorted_set: [[member, score] …];
                map_rr: [[field, type, value] …]; all others as they are

Not here: the context of an operation, which travels beside it as that of a put does.

Invariants: decoding gives back what was encoded; anything else that comes from a client ends in InvalidRequest, before its
arguments are measured against a type (`update.check`).
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from geokv.core.cells.counter_bounded import BoundedValue
from geokv.core.cells.operation import Operation
from geokv.core.limits import ELEMENT_BYTES_MAX, MAP_DEPTH_MAX, VALUE_BYTES_MAX_MAX
from geokv.errors import InvalidRequest, WireError

OPERATION_BYTES_MAX: Final = VALUE_BYTES_MAX_MAX + (MAP_DEPTH_MAX + 2) * ELEMENT_BYTES_MAX
_SETS: Final = frozenset({"set_aw", "set_grow", "set_rw"})


def encode_operation(operation: Operation) -> bytes:
    """Without its context. Raises InvalidRequest for a whole number that is too long to travel."""
    try:
        packed: bytes = msgpack.packb([operation.name, operation.arguments, operation.path])
    except OverflowError as error:
        raise InvalidRequest(f"{operation.name}: a whole number has 64 bits at most") from error
    return packed


def decode_operation(packed: bytes) -> Operation:
    """Raises InvalidRequest."""
    if len(packed) > OPERATION_BYTES_MAX:
        raise InvalidRequest(f"an operation of {len(packed)} bytes: at most {OPERATION_BYTES_MAX}")
    try:
        name, arguments, path = msgpack.unpackb(packed)
        steps = tuple((field, kind) for field, kind in path)
        is_formed = isinstance(name, str) and isinstance(arguments, list)
        is_formed &= all(isinstance(field, bytes) and isinstance(kind, str) for field, kind in steps)
        is_formed &= all(isinstance(argument, bytes | int | float) for argument in arguments)
    except Exception as error:
        raise InvalidRequest(f"not an operation: {packed[:24]!r} ({error})") from error
    if not is_formed:
        raise InvalidRequest(f"not an operation: {packed[:24]!r}: its parts have other types")
    return Operation(name, tuple(arguments), steps)


def encode_value(kind: str, value: Any) -> bytes:
    """The value that a cell of this type shows."""
    packed: bytes = msgpack.packb(_plain(kind, value))
    return packed


def decode_value(kind: str, packed: bytes) -> Any:
    """What `update.value` returned at the node. Raises WireError."""
    try:
        return _shaped(kind, msgpack.unpackb(packed))
    except Exception as error:
        raise WireError(f"not a value of a {kind}: {packed[:24]!r} ({error})") from error


def _plain(kind: str, value: Any) -> Any:
    if kind == "counter_pn":
        return str(value)
    if kind == "counter_bounded":
        return [str(int(value)), {dc: str(held) for dc, held in getattr(value, "rights", {}).items()}]
    if kind in _SETS:
        return sorted(value)
    if kind == "map_rr":
        return [[field, below, _plain(below, one)] for (field, below), one in sorted(value.items())]
    return value


def _shaped(kind: str, plain: Any) -> Any:
    if kind == "counter_pn":
        return int(plain)
    if kind == "counter_bounded":
        return BoundedValue(int(plain[0]), {dc: int(held) for dc, held in plain[1].items()})
    if kind in _SETS:
        return frozenset(plain)
    if kind == "sorted_set":
        return [(member, score) for member, score in plain]
    if kind == "map_rr":
        return {(field, below): _shaped(below, one) for field, below, one in plain}
    return plain
