"""The checkers of namespaces with other policies than `lww` are trusted because each caught a planted bug in the real node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from geokv.core.cells.codec import encode
from geokv.core.cells.operation import Operation
from geokv.core.cells.siblings import Siblings
from geokv.core.cells.state import CellState
from geokv.core.cells.view import Draft, View
from geokv.core.conflict import Policy
from geokv.core.origin import Origin
from geokv.core.quorum import Consistency
from geokv.protocol.decoded import Decoded
from geokv.protocol.requests import Outcome, WriteBatch
from geokv.protocol.table import Table
from geokv.sim import history
from geokv.sim.checkers import OK, final_cells, is_excused
from geokv.sim.faults import MENU, FaultOptions
from geokv.sim.real_node import keeping_node, real_node
from geokv.sim.run import Run, RunOptions
from geokv.sim.schedule import MS, SECOND
from geokv.sim.typed_checkers import updates_survive, values_kept
from geokv.sim.workload import WorkloadOptions
from geokv.sim.world import World
from tests.conftest import Samples

Plant = Callable[[Any, Table], None]


class Planted:
    """A real node with a bug in every table of a policy that is not `lww`."""

    def __init__(self, node: Any, plant: Plant) -> None:
        self._node = node
        self._plant = plant
        self._done: set[int] = set()

    def handle(self, event: Any, now_us: int) -> Any:
        effects = self._node.handle(event, now_us)
        for number, table in self._node.context.tables.items():
            if number not in self._done and table.policy.kind is not None:
                self._done.add(number)
                self._plant(self._node, table)
        return effects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


def failed(policy: str, plant: Plant | None, seeds: Iterable[int], faults: FaultOptions) -> set[str]:
    """The checkers that complain in any of these runs."""

    def recover(topology: Any) -> Any:
        make = real_node(topology)
        return make if plant is None else lambda *what: Planted(make(*what), plant)

    workload = WorkloadOptions(policies=(policy,), typed_share=0.9, think_us=60_000, changed_share=0)
    options = RunOptions(workload=workload, faults=faults, faulty_us=4 * SECOND, calm_us_max=6 * SECOND)
    complaints: set[str] = set()
    for seed in seeds:
        run = Run(seed, options, recover)
        run.run()
        complaints |= {name for name, verdict in run.verdicts.items() if verdict != OK}
    return complaints


def changed(table: Table, **what: Any) -> None:
    table.policy = table.policy._replace(**what)


# --- bugs -----------------------------------------------------------------------------------------------------------


def forgets_every_other_delta(node: Any, _: Table) -> None:
    """What arrives is not appended behind what is stored, every second time."""
    turn = iter(range(1 << 30))

    class Forgetful(Decoded):
        def append(self, policy: Policy, namespace: int, key: bytes, stored: bytes, delta: bytes, arriving: CellState) -> bytes:
            return stored if next(turn) % 2 else super().append(policy, namespace, key, stored, delta, arriving)

    node.context.decoded = Forgetful()


class _TakesUnseen(Siblings):
    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        draft.replace(view.entries())
        super().apply(view, operation, draft)


class _TakesNothing(Siblings):
    def apply(self, view: View, operation: Operation, draft: Draft) -> None:
        super().apply(View(type(draft.held)()), operation, draft)


def a_put_takes_what_it_did_not_see(_: Any, table: Table) -> None:
    changed(table, kind=_TakesUnseen())


def a_put_takes_nothing(_: Any, table: Table) -> None:
    changed(table, kind=_TakesNothing())


def a_delta_is_made_twice(node: Any, table: Table) -> None:
    """Each increment counts for two, as a retry that is not recognised would."""
    kind = table.policy.kind
    assert kind is not None

    class Doubled(type(kind)):  # type: ignore[misc]
        def apply(self, view: View, operation: Operation, draft: Draft) -> None:
            if operation.name == "increment":
                operation = operation._replace(arguments=(2 * operation.arguments[0],))
            super().apply(view, operation, draft)

    changed(table, kind=Doubled())


def a_count_is_taken_for_the_whole(_: Any, table: Table) -> None:
    """An increment forgets what its origin had counted before."""
    kind = table.policy.kind
    assert kind is not None

    class Forgetful(type(kind)):  # type: ignore[misc]
        def apply(self, view: View, operation: Operation, draft: Draft) -> None:
            if operation.name == "increment":
                draft.replace(view.of_origin(draft.dot.origin))
                view = View(type(draft.held)())
            super().apply(view, operation, draft)

    changed(table, kind=Forgetful())


def items_come_back(node: Any, _: Table) -> None:
    """A merge that forgets what was seen and is gone: what was taken comes back with an old delta."""

    class Undead(Decoded):
        def append(self, policy: Policy, namespace: int, key: bytes, stored: bytes, delta: bytes, arriving: CellState) -> bytes:
            state = policy.decode(stored)
            for origin, items in arriving.items.items():
                state.items.setdefault(origin, {}).update(items)
            state.context.join(arriving.context)
            return policy.encode(state)

    node.context.decoded = Undead()


BUGS: list[tuple[str, Plant, str]] = [
    ("siblings", forgets_every_other_delta, "values_kept"),
    ("siblings", a_put_takes_what_it_did_not_see, "values_kept"),
    ("siblings", a_put_takes_nothing, "values_kept"),
    ("siblings", items_come_back, "values_kept"),
    ("set_aw", items_come_back, "values_kept"),
    ("counter_pn", a_delta_is_made_twice, "counts_exact"),
    ("counter_pn", a_count_is_taken_for_the_whole, "counts_exact"),
]


LARGER = pytest.mark.samples_from("check")
PLANTED = [
    pytest.param(*bug, id=f"{bug[0]}-{bug[1].__name__}", marks=[LARGER] if bug[0] in [other[0] for other in BUGS[:at]] else [])
    for at, bug in enumerate(BUGS)
]
"""Of each policy the first with every run of the tests."""


@pytest.mark.parametrize(("policy", "plant", "checker"), PLANTED)
def test_a_planted_bug_is_caught(policy: str, plant: Plant, checker: str) -> None:
    """By the checker that it is for. Runs of some seconds of virtual time: more than a second each."""
    assert any(checker in failed(policy, plant, [seed], FaultOptions()) for seed in range(1, 6))


def an_heir_does_not_wait(node: Any, _: Table) -> None:
    """What an earlier run left is taken over before its streams are closed: so both may spend it."""
    node.assembly.rights.is_heir = lambda origin, partition: True


def test_an_heir_that_does_not_wait_is_caught(samples: Samples) -> None:
    """Nodes lose power while their disks are slow: what co-owners have of the last run is news to the next; over a second."""
    none = dict.fromkeys(MENU, 0.0)
    strikes: dict[str, Any] = none | {"power_cut": 3.0, "power_cut_at_effect": 3.0, "slow_disk": 5.0}
    faults = FaultOptions(count=(30, 40), duration_us=(100_000, 800_000), **strikes)
    assert any("bound_kept" in failed("counter_bounded", an_heir_does_not_wait, [seed], faults) for seed in range(1, 13))
    assert failed("counter_bounded", None, range(1, 1 + samples.of(test=2, check=6, soak=100)), faults) == set()


class Hasty(Planted):
    """A real node that applies what is tried again without asking anybody whether it was applied before."""

    def __init__(self, node: Any) -> None:
        super().__init__(node, lambda *_: None)
        coordinate = node._coordinate

        def start(batch: WriteBatch, respond: Callable[[Any], None]) -> None:
            coordinate(replace(batch, tried=(), first_try_ms=0), respond)

        node.assembly.retries.start = start


CRASHES = FaultOptions(
    **dict.fromkeys(MENU, 0.0) | {"kill_at_effect": 5.0, "power_cut_at_effect": 5.0, "kill": 2.0, "failed_sync": 2.0},
    count=(30, 40),
    duration_us=(50 * MS, 500 * MS),
)


def run_with_crashes(seed: int, is_hasty: bool) -> Run:
    """Counting clients, and coordinators that end in the middle of what they do, all the time."""
    workload = WorkloadOptions(policies=("counter_pn",), typed_share=0.9, think_us=25 * MS)
    options = RunOptions(workload=workload, faults=CRASHES, faulty_us=4 * SECOND, calm_us_max=10 * SECOND)

    def recover(topology: Any) -> Any:
        make = real_node(topology)
        return lambda *what: Hasty(make(*what))

    run = Run(seed, options, recover if is_hasty else None)
    run.run()
    return run


def test_a_retry_that_is_applied_without_asking_is_caught() -> None:
    """By what counts too much, and by the ids; honest nodes find records of earlier tries in the same runs. Over a second."""
    complaints: set[str] = set()
    found = 0
    for seed in range(1, 7):
        complaints |= {name for name, verdict in run_with_crashes(seed, True).verdicts.items() if verdict != OK}
        honest = run_with_crashes(seed, False)
        assert {name for name, verdict in honest.verdicts.items() if verdict != OK} == set()
        found += honest.world.notes.get("retry.found", 0)
        if found and {"counts_exact", "updates_once"} <= complaints:
            return
    raise AssertionError(f"only {sorted(complaints)} complain; {found} retries found what they looked for")


@pytest.mark.parametrize("policy", sorted({bug[0] for bug in BUGS} | {"counter_bounded"}))
def test_without_a_bug_nobody_complains(policy: str, samples: Samples) -> None:
    """The same work under the same faults; more than a second, as above."""
    assert failed(policy, None, range(1, 1 + samples.of(test=1, check=4, soak=100)), FaultOptions()) == set()


def test_an_owner_that_lacks_an_acknowledged_update_is_found() -> None:
    """At the end of an honest run one cell is taken back to what it was before its last updates, or away; over a second."""
    options = RunOptions(
        workload=WorkloadOptions(policies=("siblings",), typed_share=0.9, changed_share=0), faulty_us=3 * SECOND
    )
    run = Run(3, options, keeping_node)  # what was collected says nothing of what it had seen
    run.run()
    world = run.world
    assert updates_survive(world, final_cells(world), is_excused) == OK
    done = next(o for o in reversed(world.history.typed("siblings")) if o.is_write and o.is_acknowledged)
    owner = world.owners(done.key, "dc1")[0]
    for older in (codec_of_one_put(done.key), None):
        cells = final_cells(world)
        if older is None:
            del cells[owner][done.key]
        else:
            cells[owner][done.key] = older
        assert owner in updates_survive(world, cells, is_excused)


def test_a_put_whose_answer_came_after_the_change_of_policy_lost_as_lww_does() -> None:
    """Its record is an lww one, so a later lww put may take its place; a put that began later has no such excuse."""
    world = World(1)
    world.history.born_as = "lww"
    key = b"siblings/0"

    def done(kind: str, started_us: int, ended_us: int, version: int, answered_as: str) -> history.Operation:
        """An operation that two of three replicas acknowledged; the value of a put is its version."""
        operation = world.history.begin("client1-dc1", "dc1", kind, "siblings", key, Consistency.QUORUM, started_us)
        operation.value = b"%d" % version
        operation.policy, operation.answered_as, operation.outcome = "siblings", answered_as, Outcome.APPLIED
        operation.version, operation.replicas, operation.ended_us = version, 2, ended_us
        operation.coordinator_dc = "dc1"
        if kind == "put":
            world.truth.registry.cells[key, version] = [b"in some log"]
        return operation

    done("put", 10, 90, 1, "siblings")
    done("put", 20, 30, 2, "")
    read = done("get", 100, 110, 0, "siblings")
    read.shown = [b"2"]
    assert values_kept(world, {}, is_excused) == OK
    late = done("put", 40, 90, 3, "siblings")
    assert str(late) in values_kept(world, {}, is_excused)


def codec_of_one_put(key: bytes) -> bytes:
    """A cell in which somebody else has put something."""
    state = CellState()
    state.context.add(Origin("dc9", key.decode().replace("/", "-"), 1).packed(), 0, 1)
    return encode(Siblings.tag, state)
