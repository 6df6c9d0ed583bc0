"""What a node remembers of what it took away."""

from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.outlived import Removal
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update
from geokv.core.limits import REMOVALS_MAX, REMOVALS_PER_KEY_MAX
from geokv.core.origin import Origin
from geokv.protocol.removals import Removals

EU, US = (Origin(dc, "n", 1).packed() for dc in ("eu", "us"))
KIND = type_of("set_aw")


def removal(number: int, element: bytes = b"x") -> Removal:
    state = CellState()
    for at in (2, 3):
        state.join(update(KIND, state, Operation("add", (element,)), Dot(US, at)))
    operation = Operation("remove", (element,), context=state.context)
    state.join(update(KIND, state, operation, Dot(EU, number)))
    return Removal(Dot(EU, number), number, operation, state.context.copy(), {})


def readded(element: bytes = b"x") -> CellState:
    state = CellState()
    for at in (2, 3):
        state.join(update(KIND, state, Operation("add", (element,)), Dot(US, at)))
    return update(KIND, state, Operation("add", (element,)), Dot(US, 4))


def test_of_what_was_done_again_the_newest_is_remembered() -> None:
    """By what was done, whatever its client had read; of another element nothing is told."""
    removals = Removals()
    for number in (5, 6):
        removals.keep(1, b"k", removal(number))
    removals.keep(1, b"k", removal(7, b"y"))
    assert len(removals.held[1, b"k"]) == 2
    missed = removals.missed_by(1, b"k", KIND, readded(), Dot(US, 4))
    assert missed is not None and missed[0].dot == Dot(EU, 6) and missed[1].payload == b"x"
    assert removals.missed_by(1, b"k", KIND, readded(b"z"), Dot(US, 4)) is None
    assert removals.missed_by(1, b"other", KIND, readded(), Dot(US, 4)) is None


def test_what_is_remembered_is_bounded_and_goes_with_its_namespace() -> None:
    """Of one key, and of all: the oldest go first."""
    removals = Removals()
    for at in range(REMOVALS_PER_KEY_MAX + 1):
        removals.keep(1, b"k", removal(5, b"%d" % at))
    assert len(removals.held[1, b"k"]) == REMOVALS_PER_KEY_MAX
    assert removals.missed_by(1, b"k", KIND, readded(b"0"), Dot(US, 4)) is None
    assert removals.missed_by(1, b"k", KIND, readded(b"1"), Dot(US, 4)) is not None
    one = removal(5)
    for at in range(REMOVALS_MAX):
        removals.keep(2, b"%d" % at, one)
    assert (1, b"k") not in removals.held and len(removals.held) == REMOVALS_MAX
    removals.forget(2)
    assert not removals.held
    removals.keep(1, b"k", one)
    assert len(removals.held) == 1
