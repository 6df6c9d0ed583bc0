"""`set_aw`, `set_grow` and `set_rw`: sets whose elements carry the dots of their additions.

    payload = element                                   set_aw, set_grow
              1 (added) | 0 (removed), element          set_rw

An addition replaces the earlier ones of its element that it saw, so there is one item per element, and more only while
additions are concurrent. In a `set_aw` a removal leaves nothing behind: the context tells that the dot was seen and is gone
(the optimised OR-set, Bieniusa et al., arXiv 1210.3368). In a `set_rw` the removal is an item, because it has to win over
additions that it has not seen; it goes when a later addition replaces it, or when it is stable and hides nothing.

A `set_grow` is a `set_aw` without removal: the whole of it can be deleted, exactly.
"""

from __future__ import annotations

from typing import ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, Operation, Signature, is_element
from geokv.core.cells.view import Draft, Entry, View

_ADDED = b"\1"
_REMOVED = b"\0"


class SetGrow(CellType):
    """Elements come and stay."""

    name = "set_grow"
    tag = 7
    signature: ClassVar[Signature] = {"add": (is_element,), DELETE: ()}

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        element: bytes = operation.arguments[0]
        draft.take(view.equal(element))
        if operation.name == "add":
            draft.put(view, element)

    def value(self, view: View) -> frozenset[bytes]:
        return frozenset(view.payloads())

    def place(self, payload: bytes) -> bytes | None:
        """Two additions of one element agree."""
        return None

    def subject(self, view: View, operation: Operation) -> list[Entry]:
        return view.equal(operation.arguments[0]) if operation.arguments else view.entries()

    def written(self, payload: bytes) -> Operation:
        return Operation("add", (payload,))


class SetAw(SetGrow):
    """An element is in while an addition lives that no removal saw."""

    name = "set_aw"
    tag = 8
    signature: ClassVar[Signature] = {"add": (is_element,), "remove": (is_element,), DELETE: ()}


class SetRw(CellType):
    """An element is in while an addition of it lives, and no removal."""

    name = "set_rw"
    tag = 9
    is_contested = True
    leaves_traces = True
    signature: ClassVar[Signature] = {"add": (is_element,), "remove": (is_element,), DELETE: ()}

    def prefers(self, one: Entry, other: Entry) -> bool | None:
        return one.payload < other.payload

    def written(self, payload: bytes) -> Operation:
        return Operation("add" if payload[:1] == _ADDED else "remove", (payload[1:],))

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        element: bytes = operation.arguments[0]
        draft.take(view.equal(_ADDED + element))
        draft.take(view.equal(_REMOVED + element))
        draft.put(view, (_ADDED if operation.name == "add" else _REMOVED) + element)

    def value(self, view: View) -> frozenset[bytes]:
        settings = set(view.payloads())
        return frozenset([one[1:] for one in settings if one[:1] == _ADDED and _REMOVED + one[1:] not in settings])

    def is_present(self, view: View) -> bool:
        return bool(self.value(view))

    def place(self, payload: bytes) -> bytes | None:
        return payload[1:]

    def subject(self, view: View, operation: Operation) -> list[Entry]:
        return view.equal(_ADDED + operation.arguments[0]) if operation.arguments else view.entries()

    def hidden(self, view: View) -> list[Entry]:
        """Removals that beat nothing. Where one does, both stay until their element is changed again."""
        added = {payload[1:] for payload in view.payloads() if payload[:1] == _ADDED}
        return [entry for entry in view.starting(_REMOVED) if entry.payload[1:] not in added]
