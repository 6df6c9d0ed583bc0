"""Types that keep concurrent values side by side: `siblings` and `register_mv`.

Both are dotted version vector sets (Preguiça et al., arXiv 1011.5808). They differ in what a write without a context has seen:
under `siblings` nothing, so it adds a sibling; in a `register_mv` what its coordinator holds, so it replaces that.
A stale context never removes what it did not see: the item's dot is not in it.

    payload = deadline in HLC milliseconds (varint, 0: none), value          siblings
              value                                                          register_mv

Invariants: after a write with a context, the values are those that the context did not name, and the new one.
"""

from __future__ import annotations

from typing import ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, Operation, Signature, is_deadline, is_value
from geokv.core.cells.varint import read_varint, varint
from geokv.core.cells.view import Draft, Entry, View
from geokv.core.limits import SIBLINGS_MAX
from geokv.errors import InvalidRequest


class Siblings(CellType):
    """All concurrent values, and a context that the next put hands back."""

    name = "siblings"
    tag = 2
    leaves_traces = True
    signature: ClassVar[Signature] = {"put": (is_value, is_deadline), DELETE: ()}
    takes_unseen = True
    is_contested = True

    def told(self, payload: bytes) -> bytes:
        return payload[read_varint(payload, 0)[1] :]

    def heeds_context(self, operation: Operation) -> bool:
        return True

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        value, deadline_ms = operation.arguments
        left = len(view.entries()) if draft.seen is None else draft.take(view.entries())
        _check_count(left + 1)
        draft.put(view, varint(deadline_ms) + value)

    def value(self, view: View) -> list[bytes]:
        """The values that have not expired, in the order of their dots."""
        shown: list[bytes] = []
        for entry in sorted(view.entries()):
            deadline_ms, start = read_varint(entry.payload, 0)
            if not 0 < deadline_ms <= view.now_ms:
                shown.append(entry.payload[start:])
        return shown

    def is_present(self, view: View) -> bool:
        return bool(self.value(view))

    def ends_ms(self, view: View) -> int:
        deadlines = [read_varint(payload, 0)[0] for payload in view.payloads()]
        return max(deadlines) if deadlines and min(deadlines) > 0 else 0


class RegisterMv(CellType):
    """The last value, or the concurrent last values."""

    name = "register_mv"
    tag = 3
    signature: ClassVar[Signature] = {"write": (is_value,), DELETE: ()}
    takes_unseen = True
    is_contested = True

    def told(self, payload: bytes) -> bytes:
        return payload

    def written(self, payload: bytes) -> Operation:
        return Operation("write", (payload,))

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        left = draft.take(view.entries())
        _check_count(left + 1)
        draft.put(view, operation.arguments[0])

    def value(self, view: View) -> list[bytes]:
        """The values in the order of their dots; two that are equal are shown once."""
        return list(dict.fromkeys(entry.payload for entry in _by_dot(view)))


def _by_dot(view: View) -> list[Entry]:
    return sorted(view.entries())


def _check_count(count: int) -> None:
    if count > SIBLINGS_MAX:
        raise InvalidRequest(
            f"{count} siblings, at most {SIBLINGS_MAX}: read them and write one value with the context of that read"
        )
