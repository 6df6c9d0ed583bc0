"""Which updates outlive a removal: only those that had not seen it, and that it had not seen."""

import random

import pytest

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.outlived import Removal
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import is_taking, update
from geokv.core.origin import Origin

_IN_MAP = ((b"f", "set_aw"),)
_OPERATIONS: dict[str, list[Operation]] = {
    "set_aw": [Operation(name, (x,)) for name in ("add", "remove") for x in (b"a", b"b")] + [Operation("delete")],
    "flag_ew": [Operation("enable"), Operation("disable")],
    "sorted_set": [Operation("add", (b"a", 1)), Operation("add", (b"b", 2)), Operation("remove", (b"a",))],
    "counter_pn": [Operation("increment", (1,)), Operation("decrement", (1,)), Operation("reset")],
    "map_rr": [
        *[Operation(name, (b"a",), _IN_MAP) for name in ("add", "remove")],
        *[Operation(name, arguments, ((b"n", "counter_pn"),)) for name, arguments in (("increment", (1,)), ("reset", ()))],
        *[Operation("remove", (field,)) for field in (b"f", b"n")],
    ],
}


class Replica:
    """One coordinator: what it holds, which updates it has seen, and what it took away."""

    def __init__(self, at: int) -> None:
        self.origin = Origin("dc", f"n{at}", 1).packed()
        self.state = CellState()
        self.seen: set[Dot] = set()
        self.removals: list[Removal] = []
        self.waiting: list[tuple[Dot, CellState, frozenset[Dot]]] = []

    def do(self, kind: CellType, operation: Operation, number: int) -> tuple[Dot, CellState, frozenset[Dot]]:
        dot = Dot(self.origin, number)
        delta = update(kind, self.state, operation, dot, stamp=number)
        before = frozenset(self.seen)
        self.state.join(delta)
        self.seen.add(dot)
        if is_taking(operation) and not delta.items:
            self.removals.append(Removal(dot, number, operation, self.state.context.copy(), delta.marks))
        return dot, delta, before


@pytest.mark.parametrize("policy", sorted(_OPERATIONS))
def test_what_is_said_to_have_missed_a_removal_is_concurrent_with_it(policy: str) -> None:
    """In random histories of three coordinators, delivered in causal order; and some of it is found."""
    kind, found = type_of(policy), 0
    for seed in range(150):
        choose = random.Random(seed)
        replicas = [Replica(at) for at in range(3)]
        past: dict[Dot, frozenset[Dot]] = {}
        for number in range(2, 40):
            one = choose.choice(replicas)
            ready = [sent for sent in one.waiting if sent[2] <= one.seen]
            if ready and choose.random() < 0.6:
                sent = choose.choice(ready)
                one.waiting.remove(sent)
                dot, delta, _ = sent
                for removal in one.removals:
                    if removal.missed(kind, delta, dot) is not None:
                        found += 1
                        assert removal.dot not in past[dot] and dot not in past[removal.dot]
                one.state.join(delta)
                one.seen.add(dot)
            else:
                sent = one.do(kind, choose.choice(_OPERATIONS[policy]), number)
                past[sent[0]] = sent[2]
                for other in replicas:
                    if other is not one:
                        other.waiting.append(sent)
    assert found > 20


@pytest.mark.parametrize("policy", sorted(_OPERATIONS))
def test_an_update_that_replaces_what_a_removal_took_has_missed_it(policy: str) -> None:
    """Of its own element, member or field; of another one it tells nothing."""
    kind = type_of(policy)
    adds, takes = _OPERATIONS[policy][0], next(one for one in _OPERATIONS[policy] if is_taking(one))
    eu, us = Replica(0), Replica(1)
    for number in (2, 3):
        us.do(kind, adds, number)
    eu.state = us.state.copy()
    eu.do(kind, takes, 4)
    dot, delta, _ = us.do(kind, adds, 5)
    (removal,) = eu.removals
    entry = removal.missed(kind, delta, dot)
    assert entry is not None and (entry.origin, entry.number) == dot
    assert kind.written(removal.left_of(kind, entry)) == adds
    us.state.join(update(kind, us.state, takes, Dot(us.origin, 6)))
    dot, delta, _ = us.do(kind, adds, 7)
    assert removal.missed(kind, delta, dot) is None


def test_who_has_collected_a_key_begins_anew_and_has_missed_nothing() -> None:
    """Its chain then says that it has seen all of its own, from the first on."""
    kind = type_of("flag_ew")
    eu, us = Replica(0), Replica(1)
    for number in (2, 3):
        us.do(kind, Operation("enable"), number)
    eu.state = us.state.copy()
    eu.do(kind, Operation("disable"), 4)
    us.state = CellState()
    dot, delta, _ = us.do(kind, Operation("enable"), 5)
    assert eu.removals[0].missed(kind, delta, dot) is None
