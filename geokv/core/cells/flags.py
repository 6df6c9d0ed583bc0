"""`flag_ew` and `flag_dw`: a switch for which, of concurrent settings, enabling wins or disabling wins.

    payload = 1 (enabled) | 0 (disabled)

Each setting replaces those that it saw. What is left are concurrent ones, of which one kind decides. A flag that was never set
is disabled, so under `flag_ew` a disabling leaves nothing behind; under `flag_dw` it stays, to win, until it is stable. After
Almeida et al., arXiv 1603.01529.
"""

from __future__ import annotations

from typing import ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, Operation, Signature
from geokv.core.cells.view import Draft, Entry, View

_ENABLED = b"\1"
_DISABLED = b"\0"


class FlagEw(CellType):
    """Enabled while an enabling lives."""

    name = "flag_ew"
    tag = 5
    signature: ClassVar[Signature] = {"enable": (), "disable": (), DELETE: ()}
    takes_unseen = True

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        draft.take(view.entries())
        if operation.name == "enable":
            draft.put(view, _ENABLED)

    def value(self, view: View) -> bool:
        return not view.is_empty()

    def written(self, payload: bytes) -> Operation:
        return Operation("enable")


class FlagDw(CellType):
    """Enabled while an enabling lives, and no disabling."""

    name = "flag_dw"
    tag = 6
    is_contested = True
    leaves_traces = True
    signature: ClassVar[Signature] = {"enable": (), "disable": (), DELETE: ()}
    takes_unseen = True

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        draft.take(view.entries())
        draft.put(view, _ENABLED if operation.name == "enable" else _DISABLED)

    def prefers(self, one: Entry, other: Entry) -> bool | None:
        return one.payload < other.payload

    def written(self, payload: bytes) -> Operation:
        return Operation("enable" if payload == _ENABLED else "disable")

    def value(self, view: View) -> bool:
        settings = set(view.payloads())
        return _ENABLED in settings and _DISABLED not in settings

    def is_present(self, view: View) -> bool:
        return self.value(view)

    def hidden(self, view: View) -> list[Entry]:
        """A disabling that beats nothing. Where it does, both stay until the flag is set again."""
        return [] if view.equal(_ENABLED) else view.entries()
