"""`hll`: about how many different elements were added, in at most some ten kilobytes.

    payload = register (2 bytes, big-endian), rank (1 byte)

HyperLogLog with 2048 registers: the first 11 bits of an element's hash choose a register, the number of leading zeros of the
rest is its rank; a register keeps the highest. Each register is a `max` of its own, with the dot of what raised or confirmed it
last, so sketches merge exactly and a delta is one register. The standard error is 2.3 %.

The estimate is Ertl's improved one (arXiv 1702.01284, section 4): no tables, no thresholds, also right for a few elements.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import mmh3

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, Operation, Signature, is_element
from geokv.core.cells.view import Draft, View
from geokv.errors import RecordError

PRECISION: Final = 11
REGISTERS: Final = 1 << PRECISION
_HASH_BITS: Final = 64
RANK_MAX: Final = _HASH_BITS - PRECISION + 1
_hash: Final = mmh3.mmh3_x64_128_utupledigest


class Hll(CellType):
    """A number of different elements, estimated."""

    name = "hll"
    tag = 14
    signature: ClassVar[Signature] = {"add": (is_element,), DELETE: ()}

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        register, rank = register_and_rank(operation.arguments[0])
        head = register.to_bytes(2, "big")
        entries = view.starting(head)
        draft.replace(entries)
        draft.put(view, head + bytes((max([rank, *[entry.payload[2] for entry in entries]]),)))

    def value(self, view: View) -> int:
        """The estimate, rounded."""
        ranks: dict[int, int] = {}
        for payload in view.payloads():
            if len(payload) != 3 or not 0 < payload[2] <= RANK_MAX:
                raise RecordError(f"not a register of a sketch: {payload!r}")
            register = int.from_bytes(payload[:2], "big")
            ranks[register] = max(ranks.get(register, 0), payload[2])
        return round(estimate(list(ranks.values())))

    def place(self, payload: bytes) -> bytes | None:
        return None

    def written(self, payload: bytes) -> Operation:
        return Operation("add")


def register_and_rank(element: bytes) -> tuple[int, int]:
    """Which register an element falls into, and how rare it is there (MurmurHash3 x64 128, seed 0, its first half)."""
    hashed = _hash(element)[0]
    rest = hashed & ((1 << (_HASH_BITS - PRECISION)) - 1)
    return hashed >> (_HASH_BITS - PRECISION), RANK_MAX - rest.bit_length()


def estimate(ranks: list[int]) -> float:
    """How many elements leave these ranks; registers that are not named are at 0."""
    counts = [0] * (RANK_MAX + 1)
    counts[0] = REGISTERS - len(ranks)
    for rank in ranks:
        counts[rank] += 1
    if counts[0] == REGISTERS:
        return 0.0
    z = REGISTERS * _tau(1 - counts[RANK_MAX] / REGISTERS)
    for rank in range(RANK_MAX - 1, 0, -1):
        z = 0.5 * (z + counts[rank])
    z += REGISTERS * _sigma(counts[0] / REGISTERS)
    return REGISTERS * REGISTERS / (2 * math.log(2)) / z


def _sigma(x: float) -> float:
    """Ertl's correction for registers at 0; x < 1."""
    total, y, power = x, 1.0, x
    while True:
        power *= power
        before = total
        total += power * y
        y += y
        if total == before:
            return total


def _tau(x: float) -> float:
    """Ertl's correction for registers that are full."""
    if x in (0.0, 1.0):
        return 0.0
    total, y = 1 - x, 1.0
    while True:
        x = math.sqrt(x)
        before = total
        y *= 0.5
        total -= (1 - x) ** 2 * y
        if total == before:
            return total / 3
