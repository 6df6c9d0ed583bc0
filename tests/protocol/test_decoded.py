"""Decoded cells: what comes of them is what the bytes say, and who is not asked about a key does not keep it."""

from __future__ import annotations

from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update
from geokv.core.conflict import Policy, policy_of
from geokv.core.origin import Origin
from geokv.protocol.decoded import UNASKED_MAX, Decoded


def deltas(policy: Policy, count: int) -> list[bytes]:
    """Of one coordinator, each upon the ones before."""
    assert policy.kind is not None
    held, made = CellState(), []
    for number in range(1, count + 1):
        delta = update(policy.kind, held, Operation("increment", (number,)), Dot(Origin("dc", "node", 1).packed(), number))
        made.append(policy.encode_delta(held, delta))
        held.join(delta)
    return made


def test_an_entry_that_nobody_asks_for_goes_and_deltas_are_still_appended() -> None:
    """Of 100 deltas the first few are joined; asked again, all of them are there, and from then on they are joined again."""
    policy, decoded = policy_of("counter_pn"), Decoded()
    made = deltas(policy, 120)
    cell = made[0]
    decoded.keep(1, b"k", cell, decoded.state(policy, 1, b"k", cell))
    kept = 0
    for delta in made[1:100]:
        cell = decoded.append(policy, 1, b"k", cell, delta, policy.decode(delta))
        kept += (1, b"k") in decoded._states
    assert kept == UNASKED_MAX
    state = decoded.state(policy, 1, b"k", cell)
    assert state == policy.decode(b"".join(made[:100]))
    for delta in made[100:]:
        cell = decoded.append(policy, 1, b"k", cell, delta, policy.decode(delta))
        assert decoded.state(policy, 1, b"k", cell) == policy.decode(cell) and (1, b"k") in decoded._states
    assert decoded.state(policy, 1, b"k", cell) == policy.decode(b"".join(made))
    decoded.drop(1, b"k")
    assert decoded._nbytes == 0
