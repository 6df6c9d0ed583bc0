"""The harness finds what is wrong: each of these types has one planted error."""

from collections.abc import Callable

import pytest

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.counter_bounded import CounterBounded
from geokv.core.cells.counter_pn import CounterPn
from geokv.core.cells.extremes import Max
from geokv.core.cells.flags import FlagDw
from geokv.core.cells.map_rr import MapRr
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import CELL_TYPES
from geokv.core.cells.register_lww import RegisterLww
from geokv.core.cells.sets import SetAw, SetRw
from geokv.core.cells.siblings import RegisterMv, Siblings
from geokv.core.cells.view import Draft, View
from geokv.errors import NotEnoughRights
from tests.core.cells.harness import play, tape_of_seed


class ResetWithoutMarks(CounterPn):
    """Takes the items and forgets what they had counted."""

    def clear(self, view: View, draft: Draft) -> None:
        super().clear(view, draft)
        draft.delta.marks.clear()


class ResetThatForgetsTheOwnMark(CounterPn):
    """Counts on from a mark, and does not bring it along to those who have collected it."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(view, operation, draft)
        if operation.name != "reset":
            draft.delta.marks.clear()


class CounterThatAddsTheDelta(CounterPn):
    """Writes its amount beside the totals, not above them."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(View(type(draft.held)()), operation, draft)


class SetThatClaimsTooMuch(SetAw):
    """Says with each addition that all earlier dots of its origin have been seen."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(view, operation, draft)
        draft.delta.context.add(draft.dot.origin, 0, draft.dot.number)


class SetThatTakesAll(SetAw):
    """A removal that takes more than its element."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(view, operation, draft)
        if operation.name == "remove":
            draft.take(view.entries())


class SetThatTakesNothing(SetAw):
    """An addition that leaves the earlier ones of its element: a removal that saw only those would miss."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        if operation.name == "add":
            draft.put(view, operation.arguments[0])


class RemovalThatLoses(SetRw):
    """A removal that leaves nothing behind."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(view, operation, draft)
        if operation.name == "remove":
            draft.delta.items.clear()


class DisableThatLoses(FlagDw):
    """Enabled, whoever disabled it meanwhile."""

    def value(self, view: View) -> bool:
        return b"\1" in set(view.payloads())


class SiblingsThatSeeAll(Siblings):
    """A blind put that replaces what its coordinator holds."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(view, operation, draft)
        draft.replace(view.entries())


class RegisterThatKeepsAll(RegisterMv):
    """A write that replaces nothing."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        draft.put(view, operation.arguments[0])


class RegisterThatTrustsTheClock(RegisterLww):
    """A stamp that is not moved above what was seen, and a write that leaves what it saw."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        draft.put(view, draft.stamp.to_bytes(8, "big") + operation.arguments[0])


class MaxOfItsOwn(Max):
    """Replaces what is greater by what was given."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(View(type(draft.held)()), operation, draft)
        draft.replace(view.entries())


class RightsOfAll(CounterBounded):
    """Spends what others hold."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        try:
            super().apply(view, operation, draft)
        except NotEnoughRights:
            if operation.name != "decrement" or self.value(view) < operation.arguments[0]:
                raise
            super().apply(view, Operation("increment", operation.arguments), draft)
            payload = draft.delta.items[draft.dot.origin][draft.dot.number]
            draft.put(view, payload[:1] + payload[:1] + payload[2:])


class MapThatForgetsMarks(MapRr):
    """Removes a field with its items, and not with what its counters had counted."""

    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(view, operation, draft)
        if operation.name == "remove" and not operation.path:
            draft.delta.marks.clear()


def _map() -> CellType:
    return MapThatForgetsMarks({name: kind for name, kind in CELL_TYPES.items() if name != "map_rr"})


@pytest.mark.parametrize(
    "planted",
    [
        ResetWithoutMarks,
        ResetThatForgetsTheOwnMark,
        CounterThatAddsTheDelta,
        SetThatClaimsTooMuch,
        SetThatTakesAll,
        SetThatTakesNothing,
        RemovalThatLoses,
        DisableThatLoses,
        SiblingsThatSeeAll,
        RegisterThatKeepsAll,
        RegisterThatTrustsTheClock,
        MaxOfItsOwn,
        RightsOfAll,
        _map,
    ],
)
def test_a_planted_error_is_found(planted: Callable[[], CellType]) -> None:
    """Within some thousands of short histories one of them disagrees."""
    kind = planted()
    for seed in range(4000):
        try:
            play(kind.name, tape_of_seed(seed), kind)
        except AssertionError:
            return
    raise AssertionError(f"{type(kind).__name__} went unnoticed")
