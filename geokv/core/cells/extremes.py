"""`max` and `min`: the greatest, or the least, of all numbers that were given.

    payload = number

An update writes the extreme of its own number and of what its coordinator holds, and replaces that: so there is one item, and
more only while updates are concurrent. What it gives up: an update that is concurrent with a delete brings back the extreme
that its coordinator held (exactness would need every number that was ever given).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.numbers import decode_number, encode_number
from geokv.core.cells.operation import DELETE, Number, Operation, Signature, is_number
from geokv.core.cells.view import Draft, View


class Max(CellType):
    """The greatest number."""

    name = "max"
    tag = 11
    signature: ClassVar[Signature] = {"put": (is_number,), DELETE: ()}
    choose: ClassVar[Callable[..., Any]] = staticmethod(max)

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        entries = view.entries()
        given: Number = operation.arguments[0]
        draft.replace(entries)
        draft.put(view, encode_number(self.choose([given, *[decode_number(entry.payload) for entry in entries]])))

    def value(self, view: View) -> Number | None:
        """None where nothing was given."""
        chosen: Number | None = self.choose([decode_number(entry.payload) for entry in view.entries()], default=None)
        return chosen

    def place(self, payload: bytes) -> bytes | None:
        return None

    def written(self, payload: bytes) -> Operation:
        return Operation("put", (decode_number(payload),))


class Min(Max):
    """The least number."""

    name = "min"
    tag = 12
    choose = staticmethod(min)
