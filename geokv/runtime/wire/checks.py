"""What every decoder demands: columns of equal length, indexes in range, names that unpack. All raise WireError.

Protobuf itself promises only the types of fields. The machines index columns with each other, use packed origins as
dictionary keys and partitions as list indexes, so a stranger's bytes must not reach them unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from functools import lru_cache
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from geokv.core.origin import PACKED_BYTES_MAX, unpack_origin
from geokv.errors import WireError

_ORIGINS_KEPT: Final = 8192  # distinct packed origins that are kept interned; more are checked again each time
_MessageT = TypeVar("_MessageT", bound=Message)


def parse(kind: type[_MessageT], payload: bytes) -> _MessageT:
    """`payload` as a message of `kind`. Raises WireError where it is none."""
    try:
        return kind.FromString(payload)
    except (DecodeError, ValueError) as error:
        raise WireError(f"{kind.__name__}: {len(payload)} bytes that are not such a message: {error}") from None


@lru_cache(maxsize=_ORIGINS_KEPT)
def origin(packed: bytes) -> bytes:
    """`packed`, once it is known to be a packed origin; the same object for equal bytes."""
    try:
        unpacked = unpack_origin(packed)
    except ValueError:
        raise WireError(f"not a packed origin: {packed[:80]!r}") from None
    if len(packed) > PACKED_BYTES_MAX or unpacked.packed() != packed:
        raise WireError(f"not a packed origin: {packed[:80]!r}")
    return packed


def origins(column: Iterable[bytes]) -> list[bytes]:
    return [origin(packed) for packed in column]


def partition(number: int, count: int) -> int:
    """`number`, once it is known to be below `count`, the cluster's partitions."""
    if number >= count:
        raise WireError(f"partition {number}: this cluster has {count}")
    return number


def partitions(column: Iterable[int], count: int) -> list[int]:
    numbers = list(column)
    if numbers and max(numbers) >= count:
        raise WireError(f"partition {max(numbers)}: this cluster has {count}")
    return numbers


def same_length(what: str, length: int, **columns: Sized) -> None:
    """Every column has `length` entries."""
    for name, column in columns.items():
        if len(column) != length:
            raise WireError(f"{what}: {len(column)} {name} for {length} entries")


def flags(column: bytes, what: str) -> list[bool]:
    """One byte per entry, each 0 or 1."""
    if column.strip(b"\0\1"):
        raise WireError(f"{what}: a flag that is neither 0 nor 1")
    return [byte == 1 for byte in column]


def indexes(column: Iterable[int], length: int, what: str) -> list[int]:
    numbers = list(column)
    if numbers and max(numbers) >= length:
        raise WireError(f"{what}: index {max(numbers)} of {length} entries")
    return numbers


def pairs_to_dict(keys: Sequence[Any], values: Sequence[Any], what: str) -> dict[Any, Any]:
    """Two columns as a dictionary; the same key twice is refused."""
    if len(keys) != len(values):
        raise WireError(f"{what}: {len(values)} values for {len(keys)} keys")
    found = dict(zip(keys, values, strict=True))
    if len(found) != len(keys):
        raise WireError(f"{what}: the same key twice")
    return found


def at_most(limit: int, number: int, what: str) -> int:
    if number > limit:
        raise WireError(f"{what} = {number}: at most {limit}")
    return number


Decoder = Callable[[Any, int], object]
"""(protobuf message, partitions of the cluster) -> value of geokv.protocol.messages."""
