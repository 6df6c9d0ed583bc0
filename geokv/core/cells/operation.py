"""An operation on one key, as a client asks for it, and the checks of its arguments.

A type lists its operations with one check per argument (`Signature`); `check_arguments` is the one place where what clients
send is measured against it, so a wrong name, count, type or size is told in the same words for every type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from geokv.core.cells.context import CausalContext
from geokv.core.limits import ELEMENT_BYTES_MAX, VALUE_BYTES_MAX_MAX
from geokv.errors import InvalidRequest

DELETE: Final = "delete"
TAKING: Final = frozenset({DELETE, "remove", "reset", "disable"})
HEEDING: Final = TAKING | {"write"}
AMOUNT_MAX: Final = (1 << 63) - 1

Number = int | float
FieldStep = tuple[bytes, str]  # (name of the field, its type)
Check = Callable[[str, object], None]
Signature = Mapping[str, tuple[Check, ...]]


class Operation(NamedTuple):
    """What is to be done. `path` leads to a field of a map; `context` is what the client had read, None if it says nothing."""

    name: str
    arguments: tuple[Any, ...] = ()
    path: tuple[FieldStep, ...] = ()
    context: CausalContext | None = None


def check_arguments(
    type_name: str, signature: Signature, operation: Operation, for_nodes: frozenset[str] = frozenset()
) -> None:
    """Raises InvalidRequest for an operation that the type does not have, or arguments that it does not take.

    `for_nodes`: operations that are not offered, since no client may ask for them.
    """
    checks = signature.get(operation.name)
    if checks is None:
        names = ", ".join(sorted(set(signature) - for_nodes))
        raise InvalidRequest(f"{type_name} has no operation {operation.name!r}: it has {names}")
    if len(operation.arguments) != len(checks):
        raise InvalidRequest(
            f"{type_name}.{operation.name} takes {len(checks)} arguments, {len(operation.arguments)} were given"
        )
    for check, argument in zip(checks, operation.arguments, strict=True):
        check(f"{type_name}.{operation.name}", argument)


# --- one check per kind of argument -----------------------------------------------------------------------------------


def is_value(what: str, argument: object) -> None:
    """Bytes of any content. The namespace's own limit is checked before."""
    _is_bytes(what, argument, VALUE_BYTES_MAX_MAX)


def is_element(what: str, argument: object) -> None:
    """An element, a member, a field: short bytes."""
    _is_bytes(what, argument, ELEMENT_BYTES_MAX)


def is_amount(what: str, argument: object) -> None:
    """A whole number above 0."""
    if not isinstance(argument, int) or isinstance(argument, bool):
        raise InvalidRequest(f"{what}: {argument!r} is not a whole number")
    if not 0 < argument <= AMOUNT_MAX:
        raise InvalidRequest(f"{what}: {argument} is not from 1 to {AMOUNT_MAX}")


def is_number(what: str, argument: object) -> None:
    """A whole number of 64 bits, or a floating one that is finite."""
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        raise InvalidRequest(f"{what}: {argument!r} is not a number")
    if isinstance(argument, float) and not math.isfinite(argument):
        raise InvalidRequest(f"{what}: {argument!r} has no place in an order")
    if isinstance(argument, int) and abs(argument) > AMOUNT_MAX:
        raise InvalidRequest(f"{what}: {argument} has more than 64 bits")


def is_deadline(what: str, argument: object) -> None:
    """Milliseconds of the HLC, as the coordinator fixed them; 0 for none."""
    if not isinstance(argument, int) or isinstance(argument, bool) or not 0 <= argument < 1 << 48:
        raise InvalidRequest(f"{what}: {argument!r} is no deadline")


def _is_bytes(what: str, argument: object, bytes_max: int) -> None:
    if not isinstance(argument, bytes):
        raise InvalidRequest(f"{what}: bytes are needed, not {type(argument).__name__}")
    if len(argument) > bytes_max:
        raise InvalidRequest(f"{what}: {len(argument)} bytes, at most {bytes_max}")
