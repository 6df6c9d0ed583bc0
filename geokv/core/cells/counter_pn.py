"""`counter_pn`: a counter that goes up and down, and can be reset exactly.

    payload = birth, up, down (varints): running totals of one origin since the dot with which it began
    mark    = birth, up, down of one origin, as resets have seen them
    value   = sum over origins of (item - mark), where both have the same birth

Every update replaces its origin's item with higher totals, so losing or doubling a delta changes nothing. A reset takes the
items it saw and marks their totals. An increment that it did not see arrives with totals that contain the seen part; less the
mark, exactly the unseen part survives. An origin goes on from its mark, and its later deltas carry that mark along, so they
also read right at a replica that has collected it. Once the origin itself has collected it, it begins anew, with a new birth:
and of two beginnings the later stands, so an older mark takes nothing from it.

Invariants: an origin's totals of one birth never sink. An item that a mark exceeds (a late one) counts as nothing, never
as less than nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, Operation, Signature, is_amount
from geokv.core.cells.state import Totals, join_totals
from geokv.core.cells.varint import append_varint, read_varint
from geokv.core.cells.view import Draft, Entry, View
from geokv.errors import InvalidRequest, RecordError, Stale

TOTAL_MAX = (1 << 127) - 1


class CounterPn(CellType):
    """A whole number."""

    name = "counter_pn"
    tag = 10
    has_totals = True
    signature: ClassVar[Signature] = {"increment": (is_amount,), "decrement": (is_amount,), "reset": (), DELETE: ()}

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        if operation.name == "reset":
            self.clear(view, draft)
            return
        origin = draft.dot.origin
        amount: int = operation.arguments[0]
        own = view.of_origin(origin)
        mark = view.mark_of(origin)
        birth, up, down = _reached(own, mark, draft.dot.number)
        up, down = (up + amount, down) if operation.name == "increment" else (up, down + amount)
        if max(up, down) > TOTAL_MAX:
            raise InvalidRequest(f"this counter has counted {max(up, down)}: at most {TOTAL_MAX}")
        draft.replace(own)
        draft.put(view, encode_totals(Totals(birth, up, down)))
        if mark is not None:
            draft.mark(view, origin, mark)

    def value(self, view: View) -> int:
        return sum(left.up - left.down for left in self._unseen(view))

    def is_present(self, view: View) -> bool:
        """Whether anything was counted that no reset saw: also where it adds up to 0."""
        return any(left.up or left.down for left in self._unseen(view))

    def place(self, payload: bytes) -> bytes | None:
        return None

    def beyond(self, payload: bytes, marks: Mapping[bytes, Totals], path: bytes = b"") -> bytes:
        return encode_totals(_less(decode_totals(payload), marks.get(path)))

    def written(self, payload: bytes) -> Operation:
        """All that the item counts, as one operation."""
        _, up, down = decode_totals(payload)
        return Operation("increment", (up - down,)) if up >= down else Operation("decrement", (down - up,))

    def clear(self, view: View, draft: Draft) -> None:
        """Raises Stale where the context is older than an item: what the reader saw then can no longer be told."""
        marks = view.marks()
        entries = view.entries()
        if draft.take(entries):
            raise Stale("this counter has counted on since the context was read: read it again, or reset it without a context")
        for origin, newest in newest_by_origin(entries).items():
            totals = decode_totals(newest.payload)
            mark = marks.get(origin)
            draft.mark(view, origin, totals if mark is None else join_totals(totals, mark))

    def _unseen(self, view: View) -> list[Totals]:
        """Per origin, what no reset has seen."""
        marks = view.marks()
        newest = newest_by_origin(view.entries())
        return [_less(decode_totals(one.payload), marks.get(origin)) for origin, one in newest.items()]


def _less(totals: Totals, mark: Totals | None) -> Totals:
    """What a mark leaves of totals."""
    if mark is None or mark.birth < totals.birth:
        return totals
    if mark.birth > totals.birth:
        return Totals(totals.birth, 0, 0)
    return Totals(totals.birth, max(totals.up - mark.up, 0), max(totals.down - mark.down, 0))


def _reached(own: list[Entry], mark: Totals | None, number: int) -> Totals:
    """From where an origin counts on: its item, its mark, or a new beginning at dot `number`."""
    reached = [decode_totals(entry.payload) for entry in own]
    if mark is not None:
        reached.append(mark)
    totals = max(reached, default=Totals(number, 0, 0))
    for other in reached:
        totals = join_totals(totals, other)
    return totals


def newest_by_origin(entries: list[Entry]) -> dict[bytes, Entry]:
    """The item that counts: totals run on, so a later one contains the earlier."""
    newest: dict[bytes, Entry] = {}
    for entry in entries:
        held = newest.get(entry.origin)
        if held is None or held.number < entry.number:
            newest[entry.origin] = entry
    return newest


def encode_totals(totals: Totals) -> bytes:
    out = bytearray()
    for number in totals:
        append_varint(out, number)
    return bytes(out)


def decode_totals(payload: bytes) -> Totals:
    """Raises RecordError."""
    birth, offset = read_varint(payload, 0)
    up, offset = read_varint(payload, offset)
    down, offset = read_varint(payload, offset)
    if offset != len(payload):
        raise RecordError(f"a counter's item of {len(payload)} bytes, {offset} of which are understood")
    return Totals(birth, up, down)
