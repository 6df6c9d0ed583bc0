"""Operations for the harness: few elements and fields, so that concurrent ones meet."""

from __future__ import annotations

from typing import Any, Protocol

from geokv.core.cells.operation import Operation

FIELD_TYPES = (
    "counter_pn",
    "set_aw",
    "map_rr",
    "register_mv",
    "flag_dw",
    "set_rw",
    "flag_ew",
    "register_lww",
    "max",
    "min",
    "sorted_set",
    "hll",
    "set_grow",
)


class Picker(Protocol):
    def pick(self, count: int) -> int: ...


def _element(picker: Picker) -> bytes:
    return (b"a", b"b", b"", b"ab")[picker.pick(4)]


def _number(picker: Picker) -> int | float:
    return (3, 1, 2, -5, 2.5, -0.25, 7)[picker.pick(7)]


def draw_operation(kind: str, picker: Picker, serial: int, origins: list[bytes]) -> Operation:
    """The next operation of a type. `serial` makes values of registers different."""
    if kind == "map_rr":
        return _draw_map(picker, serial, origins, depth=0)
    if picker.pick(6) == 0 and kind != "counter_bounded":
        return Operation("delete")
    name, arguments = _draw_plain(kind, picker, serial, origins)
    return Operation(name, arguments)


def _draw_plain(kind: str, picker: Picker, serial: int, origins: list[bytes]) -> tuple[str, tuple[Any, ...]]:
    if kind == "siblings":
        return "put", (b"%d" % serial, 0)
    if kind in ("register_mv", "register_lww"):
        return "write", (b"%d" % serial,)
    if kind in ("flag_ew", "flag_dw"):
        return ("enable", "disable")[picker.pick(2)], ()
    if kind in ("max", "min"):
        return "put", (_number(picker),)
    if kind in ("set_grow", "hll"):
        return "add", (_element(picker),)
    if kind in ("set_aw", "set_rw"):
        return ("add", "add", "remove")[picker.pick(3)], (_element(picker),)
    if kind == "sorted_set":
        return ("add", (_element(picker), _number(picker))) if picker.pick(3) else ("remove", (_element(picker),))
    return _draw_count(kind, picker, origins)


def _draw_count(kind: str, picker: Picker, origins: list[bytes]) -> tuple[str, tuple[Any, ...]]:
    amount = 1 + picker.pick(5)
    choice = picker.pick(5)
    if choice < 2:
        return "increment", (amount if kind == "counter_pn" else 4 * amount,)
    if choice < 4:
        return "decrement", (amount,)
    return ("reset", ()) if kind == "counter_pn" else ("give", (origins[picker.pick(3)], amount))


def _draw_map(picker: Picker, serial: int, origins: list[bytes], depth: int) -> Operation:
    choice = picker.pick(8)
    if choice == 0 and depth == 0:
        return Operation("delete")
    name = (b"f", b"f", b"g")[picker.pick(3)]
    if choice < 3:
        return Operation("remove", (name,))
    kind = FIELD_TYPES[picker.pick(len(FIELD_TYPES) if depth == 0 and picker.pick(2) else 3 - depth)]
    if kind == "map_rr":
        below = _draw_map(picker, serial, origins, depth + 1)
        return below._replace(path=((name, kind), *below.path))
    operation, arguments = _draw_plain(kind, picker, serial, origins)
    return Operation(operation, arguments, ((name, kind),))
