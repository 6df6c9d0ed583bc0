"""`sorted_set`: members with a score, in the order of their scores.

    payload = member's length (varint), member, number

Adding a member again gives it a new score. Membership is that of a `set_aw`; of concurrent scores the highest stands, for which
no clock is needed.
"""

from __future__ import annotations

from typing import ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.numbers import decode_number, encode_number
from geokv.core.cells.operation import DELETE, Number, Operation, Signature, is_element, is_number
from geokv.core.cells.varint import read_varint, varint
from geokv.core.cells.view import Draft, Entry, View


class SortedSet(CellType):
    """A leaderboard."""

    name = "sorted_set"
    tag = 13
    is_contested = True
    signature: ClassVar[Signature] = {"add": (is_element, is_number), "remove": (is_element,), DELETE: ()}

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        head = _head(operation)
        draft.take(view.starting(head))
        if operation.name == "add":
            draft.put(view, head + encode_number(operation.arguments[1]))

    def place(self, payload: bytes) -> bytes | None:
        length, start = read_varint(payload, 0)
        return payload[start : start + length]

    def subject(self, view: View, operation: Operation) -> list[Entry]:
        return view.starting(_head(operation)) if operation.arguments else view.entries()

    def prefers(self, one: Entry, other: Entry) -> bool | None:
        scores = [decode_number(entry.payload, sum(read_varint(entry.payload, 0))) for entry in (one, other)]
        return bool(scores[0] > scores[1])

    def written(self, payload: bytes) -> Operation:
        length, start = read_varint(payload, 0)
        return Operation("add", (payload[start : start + length], decode_number(payload, start + length)))

    def value(self, view: View) -> list[tuple[bytes, Number]]:
        """(member, score) by rising score, equal ones by member."""
        scores: dict[bytes, Number] = {}
        for entry in view.entries():
            length, start = read_varint(entry.payload, 0)
            member = entry.payload[start : start + length]
            score = decode_number(entry.payload, start + length)
            scores[member] = max(score, scores.get(member, score))
        return sorted(scores.items(), key=lambda pair: (pair[1], pair[0]))


def _head(operation: Operation) -> bytes:
    """How the items of an operation's member begin."""
    member: bytes = operation.arguments[0]
    return varint(len(member)) + member
