"""Cells of a namespace whose policy was changed: what was written under the old one, and what under the new one.

    cell         (the lww cell, dots of the first type, dots of the second …): one half for each policy that it had
    merging      each half by its own rule: the greater lww cell; dots as always
    a delta      the plain cell of the policy under which it was made; with the lww cell's tombstone where it ended that

The halves of dots share one context, and their items carry the tag of their type. So an update that saw the old half needs no
second form: that its context names a dot of the old half has ended it there. The lww cell has a dot too, and is ended in the
same way; then its value goes, and what is left, a tombstone of its version, still wins over all that the value had won over. An
old write that the update had not seen is named by no context, or has the later version: it survives.

    append(stored, delta) = stored + delta, where an lww cell stands in a frame of its own
    fold(cell)            = the plain cell, where all of it is of one type; else one frame of `TAG`, with the halves in it

Which policy the namespace has, and in which order it had them, makes no difference here: replicas that have not heard of a
change yet, and datacenters that changed it in two ways, merge alike. What a reader is shown of it: `changed`.

Invariants: merging is commutative, associative and idempotent, byte for byte on folded cells; nothing is lost by folding but
the value of an lww cell that has been ended.
Format page: docs/formats/cells.md.
"""

from __future__ import annotations

from typing import Final

from geokv.core import cell as lww
from geokv.core.cells import codec
from geokv.core.cells.context import Dot
from geokv.core.cells.state import CellState
from geokv.core.cells.varint import read_varint, varint
from geokv.errors import RecordError

TAG: Final = 17
LWW_TAG: Final = lww.TAG[0]
_NO_TAG: Final = 0


class Halves:
    """A decoded cell. `state`: all dots, the payload of each item behind the tag of its type."""

    __slots__ = ("lww", "state", "tag")

    def __init__(self, lww_cell: bytes | None = None, tag: int = _NO_TAG, state: CellState | None = None) -> None:
        self.lww = lww_cell
        self.tag = tag  # of all dots; TAG where they are of several types, or an lww cell was beside them
        self.state = state or CellState()

    def join(self, other: Halves) -> None:
        if other.lww is not None:
            self.lww = other.lww if self.lww is None else max(self.lww, other.lww)
        self.state.join(other.state)
        if other.tag not in (_NO_TAG, self.tag):
            self.tag = other.tag if self.tag == _NO_TAG else TAG

    def lww_dot(self) -> Dot | None:
        """The dot of the lww cell."""
        return None if self.lww is None else dot_of(self.lww)

    def is_lww_ended(self) -> bool:
        """Whether an update under a later policy has seen the lww cell."""
        dot = self.lww_dot()
        return dot is not None and self.state.context.contains(*dot)

    def living_lww(self, now_ms: int) -> bytes | None:
        """The lww cell, where a reader is shown it at `now_ms`."""
        if self.lww is None or self.is_lww_ended() or lww.live_value(self.lww, now_ms) is None:
            return None
        return self.lww

    def copy(self) -> Halves:
        return Halves(self.lww, self.tag, self.state.copy())


def dot_of(lww_cell: bytes) -> Dot:
    """The dot of the write that an lww cell is. Raises RecordError."""
    held = lww.decode_lww(lww_cell)
    return Dot(held.origin, held.number)


def tagged(tag: int, state: CellState) -> CellState:
    """The dots of a plain cell, as they stand in `Halves.state`. Shares nothing that grows with `state`."""
    head = bytes((tag,))
    marked = CellState()
    marked.context = state.context.copy()
    marked.items = {origin: {n: head + payload for n, payload in dots.items()} for origin, dots in state.items.items()}
    marked.marks = {origin: {head + path: totals for path, totals in marks.items()} for origin, marks in state.marks.items()}
    return marked


def decode(cell: bytes) -> Halves:
    """Raises RecordError."""
    if cell[:1] == lww.TAG:
        dot_of(cell)
        return Halves(cell)
    halves = Halves()
    for tag, body in codec.bodies(cell):
        if tag == TAG:
            halves.join(_decode_halves(body))
        else:
            halves.join(Halves(None, tag, tagged(tag, codec.decode_body(body))))
    return halves


def _decode_halves(body: bytes) -> Halves:
    length, start = read_varint(body, 0)
    held = body[start : start + length] or None
    if len(body) < start + length or (held is not None and held[:1] != lww.TAG):
        raise RecordError(f"a cell of several policies whose lww half of {length} bytes is none")
    if held is not None:
        dot_of(held)
    state = codec.decode_body(body[start + length :])
    if any(not payload for dots in state.items.values() for payload in dots.values()):
        raise RecordError("an item of a cell of several policies has no type")
    return Halves(held, TAG if state.context.spans else _NO_TAG, state)


def encode(halves: Halves) -> bytes:
    """The canonical bytes."""
    held, state = halves.lww, halves.state
    if held is not None and not state.context.spans:
        return held
    if held is None and halves.tag != TAG:
        plain = CellState()
        plain.context = state.context
        plain.items = {origin: {n: payload[1:] for n, payload in dots.items()} for origin, dots in state.items.items()}
        plain.marks = {origin: {path[1:]: totals for path, totals in marks.items()} for origin, marks in state.marks.items()}
        return codec.encode(halves.tag, plain)
    if held is not None and halves.is_lww_ended():
        held = lww.ended(held)
    return _framed(held or b"", state)


def _framed(held: bytes, state: CellState) -> bytes:
    return codec.framed(TAG, varint(len(held)) + held + codec.encode_body(state))


def behind(stored: bytes, delta: bytes) -> bytes:
    """Both as one cell, nothing decoded."""
    return _in_frames(stored) + _in_frames(delta)


def _in_frames(cell: bytes) -> bytes:
    return _framed(cell, CellState()) if cell[:1] == lww.TAG else cell


def has_outgrown(cell: bytes) -> bool:
    """Whether what was appended to a cell is so much that it should be folded. Raises RecordError."""
    return cell[:1] != lww.TAG and codec.has_outgrown(cell[0], cell)


def fold(cell: bytes) -> bytes:
    """The canonical cell. Raises RecordError."""
    if cell[:1] == lww.TAG or (cell[0] != TAG and codec.is_one_frame(cell)):
        return cell
    return encode(decode(cell))


def merge(mine: bytes, theirs: bytes) -> bytes:
    """The join of two cells, canonical. Raises RecordError."""
    if mine[:1] == theirs[:1] == lww.TAG:
        return max(mine, theirs)
    halves = decode(mine)
    halves.join(decode(theirs))
    return encode(halves)


def append(stored: bytes, delta: bytes) -> bytes:
    """The same cell as their merge, not folded until what is appended outgrows what it is appended to. Raises RecordError."""
    if stored[:1] == delta[:1] == lww.TAG:
        return max(stored, delta)
    both = behind(stored, delta)
    return fold(both) if has_outgrown(both) else both
