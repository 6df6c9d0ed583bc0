"""What a type of cell is: its operations, what each of them writes, and what a reader is shown.

Merging is the same for all (`state`), so a type is three plain functions of the items at one path. The specification that each
must meet is a function of the history, in tests/core/cells/specification.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from geokv.core.cells.operation import HEEDING, Operation, Signature
from geokv.core.cells.state import Totals
from geokv.core.cells.view import Draft, Entry, View


class CellType(ABC):
    """One type. Has no state of its own."""

    name: ClassVar[str]
    tag: ClassVar[int]
    signature: ClassVar[Signature]
    for_nodes: ClassVar[frozenset[str]] = frozenset()
    """Operations that nodes do by themselves: no client may ask for one."""
    is_deletable: ClassVar[bool] = True
    is_contested: ClassVar[bool] = False
    """Whether concurrent updates can meet so that a rule hides one of them, or several are shown: what the journal notes."""
    leaves_traces: ClassVar[bool] = False
    """Whether an item may outlive all that it hid, or shows for a time only: what a sweep takes."""
    has_totals: ClassVar[bool] = False
    """Whether an update carries what its origin did before it, too: then what was in a record that was lost may count."""
    takes_unseen: ClassVar[bool] = False
    """Whether an operation takes what its context names and the coordinator has not got yet: only where what is taken need not
    be known, because the operation replaces all that was seen."""

    @abstractmethod
    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        """Write what `operation` does. Raises InvalidRequest where the state does not allow it."""

    @abstractmethod
    def value(self, view: View) -> Any:
        """What a reader is shown, in plain Python values."""

    def heeds_context(self, operation: Operation) -> bool:
        """Whether a client's context limits what is taken. What adds (an element, a count) replaces what its coordinator holds:
        its context could be older than a removal that was swept as stable, and then nobody could tell that it must lose to
        it."""
        return operation.name in HEEDING

    def subject(self, view: View, operation: Operation) -> list[Entry]:
        """The items that an operation which takes away is about."""
        return view.entries()

    def beyond(self, payload: bytes, marks: Mapping[bytes, Totals], path: bytes = b"") -> bytes:
        """What of an item a reset left that had seen these totals of its origin, by path."""
        return payload

    def is_present(self, view: View) -> bool:
        """Whether there is anything to show: what is not present is a tombstone."""
        return not view.is_empty()

    def place(self, payload: bytes) -> bytes | None:
        """What an item is about: of two live items about the same, a rule decides. None where both count."""
        return b""

    def prefers(self, one: Entry, other: Entry) -> bool | None:
        """Of two live items about the same: whether a reader is shown `one` and not `other`. None where both are shown."""
        return None

    def told(self, payload: bytes) -> bytes | None:
        """The value that was put, where an item is one; None where only an operation tells it."""
        return None

    def written(self, payload: bytes) -> Operation:
        """The operation that would write an item again; without arguments where it does not tell them."""
        raise NotImplementedError(self.name)

    def clear(self, view: View, draft: Draft) -> None:
        """Take everything here: a delete of the key or of the field."""
        draft.take(view.entries())

    def ends_ms(self, view: View) -> int:
        """From when on nothing is shown any more, because all of it has expired; 0 where that is not so."""
        return 0

    def hidden(self, view: View) -> list[Entry]:
        """Items that only hide others that are not there any more: they may go once all is stable."""
        return [] if self.is_present(view) else view.entries()
