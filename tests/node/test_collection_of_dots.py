"""Cells of dots on their way out: deleted counters, sets and maps, removals that are swept, values that expire."""

from __future__ import annotations

from typing import Any

import pytest

from geokv.core.cells import codec
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.quorum import Consistency
from geokv.core.record import CELL, NO_OPERATION, encode_record
from geokv.core.ring import partition_of
from geokv.protocol.messages import Replicate
from geokv.protocol.requests import Outcome, WriteBatch
from geokv.storage.lsm.engine import LsmOptions
from geokv.storage.lsm.table_writer import TableOptions
from tests.node.harness import QUICK, SECOND, Cluster
from tests.node.test_updates import cluster_with
from tests.node.test_upkeep import flushed


def _cluster(policy: str, **shape: Any) -> Cluster:
    return cluster_with(policy, **shape, **QUICK)


def _do(cluster: Cluster, node: str, policy: str, name: str, *arguments: Any, path: Any = ()) -> None:
    packed = encode_operation(Operation(name, arguments, path))
    call = cluster.ask(node, WriteBatch(policy, [b"k"], [packed], Consistency.ALL, has_updates=True))
    cluster.run_until(lambda: cluster.reply(node, call) is not None)
    assert cluster.reply(node, call).outcomes[0] == Outcome.APPLIED, cluster.reply(node, call)


def _shown(cluster: Cluster, node: str, policy: str, level: Consistency = Consistency.ALL) -> Any:
    packed = cluster.get(node, b"k", level, namespace=policy).values[0]
    return None if packed is None else decode_value(policy, packed)


def _is_gone(cluster: Cluster, policy: str) -> bool:
    return not any(cluster.cells(name, policy) for name in cluster.nodes)


@pytest.mark.parametrize("policy", ["counter_pn", "set_aw", "max"])
def test_what_was_deleted_is_collected_and_can_be_written_anew(policy: str) -> None:
    """Written, deleted, collected on all replicas; what is written then is all there is, on every one."""
    operation = {"counter_pn": ("increment", 5), "set_aw": ("add", b"e"), "max": ("update", 7)}[policy]
    if policy == "max":
        operation = (next(name for name in type_of("max").signature if name != "delete"), 7)
    cluster = _cluster(policy)
    _do(cluster, "dc1-1", policy, *operation)
    before = _shown(cluster, "dc1-2", policy)
    _do(cluster, "dc1-2", policy, "delete")
    cluster.run_until(lambda: _is_gone(cluster, policy), 60 * SECOND)
    assert _shown(cluster, "dc1-3", policy) is None
    _do(cluster, "dc1-1", policy, *operation)
    assert {str(_shown(cluster, name, policy)) for name in cluster.names} == {str(before)}


def test_a_counter_collected_on_one_replica_and_counted_anew_meets_one_that_still_holds_the_tombstone() -> None:
    """Deleted at 5, collected on two of three, counted up by 3 there: 3 everywhere, also where the tombstone stands."""
    cluster = _cluster("counter_pn")
    _do(cluster, "dc1-1", "counter_pn", "increment", 5)
    cluster.nodes["dc1-3"].collector.tick = lambda: None  # type: ignore[method-assign]  # it is slow to collect
    _do(cluster, "dc1-1", "counter_pn", "delete")
    gone = ("dc1-1", "dc1-2")
    cluster.run_until(lambda: not any(cluster.cells(name, "counter_pn") for name in gone), 60 * SECOND)
    assert cluster.cells("dc1-3", "counter_pn")
    _do(cluster, "dc1-1", "counter_pn", "increment", 3)
    for level in (Consistency.ONE, Consistency.ALL, Consistency.ONE):
        assert {_shown(cluster, name, "counter_pn", level) for name in cluster.names} == {3}
    _do(cluster, "dc1-3", "counter_pn", "increment", 4)
    assert {_shown(cluster, name, "counter_pn") for name in cluster.names} == {7}


@pytest.mark.parametrize("shape", [{}, {"datacenters": 2, "nodes": 2, "replicas": 2}])
def test_removals_of_a_set_where_removing_wins_are_swept_and_then_collected(shape: dict[str, int]) -> None:
    """Each removal is an item; stable, one owner takes it, in an update that reaches all; the rest of the set stays."""
    cluster = _cluster("set_rw", **shape).run(SECOND)
    _do(cluster, "dc1-1", "set_rw", "add", b"stays")
    for element in (b"a", b"b", b"c"):
        _do(cluster, "dc1-1", "set_rw", "add", element)
        _do(cluster, "dc1-2", "set_rw", "remove", element)
    kind = type_of("set_rw")

    def items(name: str) -> int:
        return codec.decode(kind.tag, cluster.cells(name, "set_rw")[b"k"]).count()

    cluster.run_until(lambda: all(items(name) == 1 for name in cluster.names), 60 * SECOND)
    assert cluster.notes["sweep.swept"] >= 1
    assert _shown(cluster, "dc1-2", "set_rw") == frozenset({b"stays"})
    _do(cluster, "dc1-1", "set_rw", "remove", b"stays")
    cluster.run_until(lambda: _is_gone(cluster, "set_rw"), 60 * SECOND)


def test_a_disabling_is_swept_and_values_that_expired_too() -> None:
    """A disabled flag and siblings whose time has passed leave no cell behind."""
    cluster = _cluster("flag_dw")
    _do(cluster, "dc1-1", "flag_dw", "enable")
    _do(cluster, "dc1-2", "flag_dw", "disable")
    cluster.run_until(lambda: _is_gone(cluster, "flag_dw"), 60 * SECOND)
    cluster.admin("dc1-1", "namespace_create", name="siblings", policy="siblings")
    cluster.run(SECOND)
    for value in (b"one", b"other"):
        cluster.put("dc1-1", b"k", value, Consistency.ALL, namespace="siblings", ttl_ms=2_000)
    assert len(_shown(cluster, "dc1-2", "siblings")) == 2
    cluster.run_until(lambda: _is_gone(cluster, "siblings"), 90 * SECOND)


def test_a_set_removed_in_one_datacenter_while_its_map_field_is_removed_in_another() -> None:
    """Both removals meet, and an addition that neither saw survives; then the rest is collected, and it still does."""
    cluster = _cluster("map_rr", datacenters=2, nodes=2, replicas=2).run(SECOND)
    path = ((b"tags", "set_aw"),)
    _do(cluster, "dc1-1", "map_rr", "add", b"red", path=path)
    cluster.run_until(lambda: bool(_shown(cluster, "dc2-1", "map_rr")))
    cluster.cut_apart()
    _do(cluster, "dc1-1", "map_rr", "remove", b"red", path=path)
    _do(cluster, "dc2-1", "map_rr", "remove", b"tags")
    _do(cluster, "dc2-2", "map_rr", "add", b"blue", path=path)
    cluster.heal()
    wanted = {(b"tags", "set_aw"): frozenset({b"blue"})}
    cluster.run_until(lambda: all(_shown(cluster, name, "map_rr") == wanted for name in cluster.names), 60 * SECOND)
    cluster.run(10 * SECOND)
    assert all(_shown(cluster, name, "map_rr", Consistency.ONE) == wanted for name in cluster.names)
    _do(cluster, "dc1-1", "map_rr", "remove", b"tags")
    cluster.run_until(lambda: _is_gone(cluster, "map_rr"), 60 * SECOND)


def test_an_old_cell_of_dots_that_is_delayed_past_a_collection_is_dropped() -> None:
    """A set as it was before the removal, sent as a repair and late, does not bring the element back."""
    cluster = _cluster("set_aw")
    _do(cluster, "dc1-1", "set_aw", "add", b"e")
    table = cluster.nodes["dc1-2"].assembly.table_named("set_aw")
    assert table is not None
    old, namespace = cluster.cells("dc1-1", "set_aw")[b"k"], table.definition.id
    record = encode_record(CELL, partition_of(b"k", 8), namespace, table.collections, 0, NO_OPERATION, b"", b"k", old)
    _do(cluster, "dc1-1", "set_aw", "remove", b"e")
    cluster.run_until(lambda: _is_gone(cluster, "set_aw"), 60 * SECOND)
    cluster.give_message("dc1-1", "dc1-2", Replicate(77, record))
    cluster.run(SECOND)
    assert _is_gone(cluster, "set_aw") and cluster.notes["repair.collected_since"] == 1


def test_a_sweep_that_waits_for_the_disk_while_the_policy_is_changed_is_given_up() -> None:
    """What it read is of another type by then: nothing is numbered, the node goes on, and so does its stream."""
    cluster = Cluster(partitions=1, **QUICK)
    for disk in cluster.disks.values():
        disk.options = LsmOptions(TableOptions(block_bytes=200), block_cache_bytes=0)
    cluster.start().serving()
    cluster.admin("dc1-1", "namespace_create", name="set_rw", policy="set_rw")
    cluster.run_until(lambda: all(node.assembly.table_named("set_rw") for node in cluster.nodes.values()))
    sweeper = cluster.nodes["dc1-1"].assembly.sweeper
    begin = sweeper.begin
    sweeper.begin = lambda *rule: None  # type: ignore[method-assign]  # not before all is flushed
    for operation, element in (("add", b"a"), ("add", b"b"), ("remove", b"a")):
        _do(cluster, "dc1-1", "set_rw", operation, element)
    flushed(cluster, "dc1-1")
    sweeper.begin = begin  # type: ignore[method-assign]
    cluster.slow_loads.add("dc1-1")
    cluster.run_until(lambda: any(walk.is_waiting for walk in sweeper._walks.values()), 60 * SECOND)
    assert cluster.admin("dc1-2", "namespace_alter", name="set_rw", policy="set_aw").outcome == Outcome.APPLIED
    cluster.run(2 * SECOND)
    cluster.slow_loads.clear()
    cluster.run(2 * SECOND)
    assert not sweeper._walks and not cluster.notes.get("sweep.swept")
    packed = encode_operation(Operation("add", (b"c",)))
    call = cluster.ask("dc1-1", WriteBatch("set_rw", [b"k"], [packed], Consistency.ALL, has_updates=True))
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]
