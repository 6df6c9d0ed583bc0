"""`register_lww`: of concurrent writes the one with the latest stamp, and never one that another write had seen.

    payload = version (8 bytes, big-endian), value

The version is the record's HLC, moved above every version that the coordinator holds: so a write that saw another is later,
also if its clock is behind. Concurrent losers stay in the cell until a write that saw them takes them: nothing is discarded
unseen.

Invariants: equal versions are decided by the dot, so all replicas agree.
"""

from __future__ import annotations

from typing import ClassVar

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.operation import DELETE, Operation, Signature, is_value
from geokv.core.cells.view import Draft, Entry, View
from geokv.errors import RecordError

VERSION_MAX = (1 << 63) - 1
_VERSION_BYTES = 8


class RegisterLww(CellType):
    """One value."""

    name = "register_lww"
    tag = 4
    signature: ClassVar[Signature] = {"write": (is_value,), DELETE: ()}
    takes_unseen = True
    is_contested = True

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        entries = view.entries()
        highest = max([_version(entry) for entry in entries], default=0)
        draft.take(entries)
        version = min(max(draft.stamp, highest + 1), VERSION_MAX)
        draft.put(view, version.to_bytes(_VERSION_BYTES, "big") + operation.arguments[0])

    def value(self, view: View) -> bytes | None:
        """The latest value; None where there is none."""
        latest = max(view.entries(), key=_order, default=None)
        return None if latest is None else latest.payload[_VERSION_BYTES:]

    def prefers(self, one: Entry, other: Entry) -> bool | None:
        return _order(one) > _order(other)

    def told(self, payload: bytes) -> bytes:
        return payload[_VERSION_BYTES:]

    def written(self, payload: bytes) -> Operation:
        return Operation("write", (self.told(payload),))


def _order(entry: Entry) -> tuple[int, bytes, int]:
    return _version(entry), entry.origin, entry.number


def _version(entry: Entry) -> int:
    if len(entry.payload) < _VERSION_BYTES:
        raise RecordError(f"a register's item of {len(entry.payload)} bytes has no version")
    return int.from_bytes(entry.payload[:_VERSION_BYTES], "big")
