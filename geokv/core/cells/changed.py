"""What a change of policy means: which may be changed into which, and how a type sees what was written under another.

    old half                      as the new type sees it
    an lww value                  one sibling; one value of a register, with its version
    a sibling, a register's value the same under another of these; without a version it is the oldest
    an element that is in a set   an element, until it is removed
    an enabling that counts       an enabling, until the flag is set again

The items keep their dots: the new type's operations take them as they take their own, and where an old and a new one are
concurrent the new type's rule decides. What the old type's rule hides (an element of a `set_rw` under its removal) stays
hidden: no change shows what was not to be seen, and none hides what was.

Compatible are two policies of one family, where the new one can show, at any time, all that the old one showed, whatever still
arrives from a datacenter that has not heard of the change. `why_not` says why the others are not.

Not here: how the halves merge (`halves`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from geokv.core import cell as lww
from geokv.core.cells import codec, halves
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.halves import Halves
from geokv.core.cells.policies import CELL_TYPES
from geokv.core.cells.state import CellState
from geokv.core.cells.varint import read_varint, varint
from geokv.errors import RecordError

LWW: Final = "lww"
_VALUES: Final = ("register_lww", "register_mv", "siblings")
COMPATIBLE: Final[Mapping[str, tuple[str, ...]]] = {
    LWW: _VALUES,
    "register_lww": ("register_mv", "siblings"),
    "register_mv": ("siblings",),
    "siblings": ("register_mv",),
    "set_grow": ("set_aw", "set_rw"),
    "set_aw": ("set_rw",),
    "set_rw": ("set_aw",),
    "flag_ew": ("flag_dw",),
    "flag_dw": ("flag_ew",),
}
"""Old policy -> the policies that it can be changed to."""


def why_not(old: str, new: str) -> str:
    """Why the policy `old` cannot be changed to `new`; empty where it can."""
    if new in COMPATIBLE.get(old, ()):
        return ""
    if old == new:
        return f"it is {new} already"
    if new == LWW:
        return "lww keeps one value and nothing of what its writer had seen: values that are concurrent would be discarded"
    if new == "register_lww" and old in _VALUES:
        return f"the values of a {old} have no stamp by which register_lww could choose among them"
    if new == "set_grow" and old in ("set_aw", "set_rw"):
        return "a set_grow never shrinks, and removals may still be on their way"
    if {old, new} == {"max", "min"}:
        return f"of all numbers that were given only the {'greatest' if old == 'max' else 'least'} is still there"
    if {old, new} == {"counter_pn", "counter_bounded"}:
        return "counts without rights can take a counter below its bound"
    return f"what a {old} holds cannot be shown as a {new}"


FROM_NOW_ON: Final[Mapping[str, str]] = {
    "siblings": "a get may show several values, and a put without the context of a get adds one instead of replacing",
    "register_mv": "a get may show several values: all concurrent ones",
    "register_lww": "of concurrent writes the later is shown, and the others stay until a write has seen them",
    "set_aw": "adding an element wins over removing it at the same time",
    "set_rw": "removing an element wins over adding it at the same time",
    "flag_ew": "enabling wins over disabling at the same time",
    "flag_dw": "disabling wins over enabling at the same time",
}
"""What a change to these policies means to who reads and writes, in words."""


# --- how a type sees the items of another ---------------------------------------------------------------------------


class _Value(NamedTuple):
    """What the types that hold values say of one. `deadline_ms` is 0 where there is none."""

    version: int
    deadline_ms: int
    value: bytes


def _of_siblings(payload: bytes) -> _Value:
    deadline_ms, start = read_varint(payload, 0)
    return _Value(0, deadline_ms, payload[start:])


_VALUE_OF: Final[Mapping[int, Callable[[bytes], _Value]]] = {
    CELL_TYPES["siblings"].tag: _of_siblings,
    CELL_TYPES["register_mv"].tag: lambda payload: _Value(0, 0, payload),
    CELL_TYPES["register_lww"].tag: lambda payload: _Value(int.from_bytes(payload[:8], "big"), 0, payload[8:]),
}
_VALUE_AS: Final[Mapping[str, Callable[[_Value], bytes]]] = {
    "siblings": lambda one: varint(one.deadline_ms) + one.value,
    "register_mv": lambda one: one.value,
    "register_lww": lambda one: one.version.to_bytes(8, "big") + one.value,
}
_ADDED, _REMOVED = b"\1", b"\0"
_SETS: Final = frozenset(CELL_TYPES[name].tag for name in ("set_grow", "set_aw"))
_SET_RW: Final = CELL_TYPES["set_rw"].tag
_FLAG_EW, _FLAG_DW = CELL_TYPES["flag_ew"].tag, CELL_TYPES["flag_dw"].tag

_Item = tuple[bytes, int, bytes]  # origin, number, payload
_See = Callable[[CellType, int, list[_Item], int], Iterator[_Item]]
"""(new type, tag of the old one, its live items, now): the items as the new type has them."""


def _see_values(kind: CellType, tag: int, items: list[_Item], now_ms: int) -> Iterator[_Item]:
    shape, parse = _VALUE_AS[kind.name], _VALUE_OF[tag]
    for origin, number, payload in items:
        one = parse(payload)
        if kind.name == "siblings" or not 0 < one.deadline_ms <= now_ms:
            yield origin, number, shape(one)


def _see_elements(kind: CellType, tag: int, items: list[_Item], now_ms: int) -> Iterator[_Item]:
    head = _ADDED if kind.tag == _SET_RW else b""
    if tag in _SETS:
        yield from [(origin, number, head + element) for origin, number, element in items]
        return
    removed = {payload[1:] for _, _, payload in items if payload[:1] == _REMOVED}
    for origin, number, payload in items:
        if payload[:1] == _ADDED and payload[1:] not in removed:
            yield origin, number, head + payload[1:]


def _see_enablings(kind: CellType, tag: int, items: list[_Item], now_ms: int) -> Iterator[_Item]:
    if all(payload == _ADDED for _, _, payload in items):
        yield from items


_FAMILIES: Final[tuple[tuple[frozenset[int], _See], ...]] = (
    (frozenset(_VALUE_OF), _see_values),
    (_SETS | {_SET_RW}, _see_elements),
    (frozenset((_FLAG_EW, _FLAG_DW)), _see_enablings),
)


def _see(kind: CellType, tag: int, items: list[_Item], now_ms: int) -> Iterator[_Item]:
    if tag == kind.tag:
        return iter(items)
    for family, see in _FAMILIES:
        if tag in family and kind.tag in family:
            return see(kind, tag, items, now_ms)
    raise RecordError(f"items of type {tag} in a {kind.name}: that policy was never changed to this one")


def _by_tag(state: CellState) -> dict[int, list[_Item]]:
    found: dict[int, list[_Item]] = {}
    for origin, dots in state.items.items():
        for number, payload in dots.items():
            found.setdefault(payload[0], []).append((origin, number, payload[1:]))
    return found


def _seen_lww(kind: CellType, held: Halves, now_ms: int) -> Iterator[_Item]:
    if held.lww is None or held.is_lww_ended():
        return
    one = lww.decode_lww(held.lww)
    if one.is_tombstone or (kind.name != "siblings" and 0 < one.deadline_ms <= now_ms):
        return
    shape = _VALUE_AS.get(kind.name)
    if shape is None:
        raise RecordError(f"an lww cell in a {kind.name}: that policy was never changed to this one")
    yield one.origin, one.number, shape(_Value(one.version, one.deadline_ms, one.value))


class ChangedState(CellState):
    """A cell of a namespace whose policy was changed, as its type now sees it: context and items of both halves, in its terms.

    Joined with the deltas of that type at what they cost, as any other state is; with anything else it is seen anew. `marks`
    are none: types with marks are compatible with no other.
    """

    __slots__ = ("_has_hiding", "_now_ms", "halves", "kind")

    def __init__(self, kind: CellType, held: Halves | None = None, now_ms: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.halves = held or Halves()
        self._now_ms = now_ms
        self._has_hiding = False
        self._look()

    def _look(self) -> None:
        held = self.halves
        self.context = held.state.context.copy()
        dot = held.lww_dot()
        if dot is not None:
            self.context.add(dot.origin, dot.number - 1, dot.number)
        self.items, self._dots = {}, None
        self._has_hiding = False
        for tag, items in _by_tag(held.state).items():
            self._show(_see(self.kind, tag, items, self._now_ms))
            if tag in _HIDING and tag != self.kind.tag:
                self._has_hiding |= any(payload[:1] == _REMOVED for _, _, payload in items)
        self._show(_seen_lww(self.kind, held, self._now_ms))

    def _show(self, items: Iterator[_Item]) -> None:
        for origin, number, payload in items:
            self.items.setdefault(origin, {})[number] = payload

    def join(self, other: CellState) -> None:
        plain = not isinstance(other, ChangedState)
        if isinstance(other, ChangedState):
            self.halves.join(other.halves)
            plain = other.is_plain()
        else:
            self.halves.join(Halves(None, self.kind.tag, halves.tagged(self.kind.tag, other)))
        if plain and not self._has_hiding:
            super().join(other)
        else:
            self._look()

    def is_plain(self) -> bool:
        """Whether all of it was written under the policy that the namespace has."""
        return self.halves.lww is None and self.halves.tag in (0, self.kind.tag)

    def copy(self) -> ChangedState:
        return ChangedState(self.kind, self.halves.copy(), self._now_ms)

    def encoded_delta(self, delta: CellState) -> bytes:
        """The cell of a delta that was made upon this one. Where it ends the lww cell, it says which version that was: else
        an older one, which had lost to it, would be shown wherever only that had come."""
        held, dot = self.halves.lww, self.halves.lww_dot()
        if held is None or dot is None or not delta.context.contains(*dot):
            return codec.encode(self.kind.tag, delta)
        return halves.encode(Halves(held, self.kind.tag, halves.tagged(self.kind.tag, delta)))

    def encoded(self) -> bytes:
        """The canonical cell."""
        return halves.encode(self.halves)


_HIDING: Final = frozenset((_SET_RW, _FLAG_DW))  # of these an item can hide others: what is seen of the rest hangs on it


def decode(kind: CellType, cell: bytes, now_ms: int = 0) -> ChangedState:
    """What a type sees of a cell, at `now_ms` (0: before every deadline). Raises RecordError."""
    return ChangedState(kind, halves.decode(cell), now_ms)
