"""How old what waits to be collected is: told under every policy, never younger than true, in memory and in tables."""

from __future__ import annotations

from typing import Any

import pytest

from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import encode_operation
from geokv.core.quorum import Consistency
from geokv.core.record import CELL, NO_OPERATION, encode_record
from geokv.core.ring import partition_of
from geokv.protocol.messages import FeedBatch, Replicate, StabilityAnswer
from geokv.protocol.requests import Outcome, WriteBatch
from tests.node.harness import SECOND, Cluster
from tests.node.test_upkeep import flushed

LOOK_MS = 1_500  # a node looks at its memtables each second
FIRST: dict[str, tuple[Any, ...]] = {
    "counter_pn": ("increment", 5),
    "set_aw": ("add", b"e"),
    "set_rw": ("add", b"e"),
    "flag_dw": ("enable",),
}
LAST: dict[str, tuple[Any, ...]] = {"set_rw": ("remove", b"e"), "flag_dw": ("disable",)}


def _cluster(policy: str, **shape: Any) -> Cluster:
    """Nothing in it becomes stable."""
    cluster = Cluster(**shape, stability_us=200_000, collect_us=500_000).start().serving()
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, StabilityAnswer)
    cluster.admin("dc1-1", "namespace_create", name=policy + "-1", policy=policy)
    return cluster.run_until(lambda: all(node.assembly.table_named(policy + "-1") for node in cluster.nodes.values()))


def _write(cluster: Cluster, node: str, policy: str, operation: tuple[Any, ...], key: bytes = b"k") -> int:
    """When it was written, in milliseconds of the wall clock."""
    if policy == "lww":
        batch = WriteBatch("lww-1", [key], [b"v" if operation[0] != "delete" else None], Consistency.QUORUM)
    else:
        packed = encode_operation(Operation(operation[0], operation[1:]))
        batch = WriteBatch(policy + "-1", [key], [packed], Consistency.QUORUM, has_updates=True)
    now_ms = cluster.wall_us(node) // 1000
    call = cluster.ask(node, batch)
    cluster.run_until(lambda: cluster.reply(node, call) is not None)
    assert cluster.reply(node, call).outcomes[0] == Outcome.APPLIED, cluster.reply(node, call)
    return now_ms


def _delete(cluster: Cluster, node: str, policy: str, key: bytes = b"k") -> int:
    return _write(cluster, node, policy, LAST.get(policy, ("delete",)), key)


def _told(cluster: Cluster, node: str, policy: str) -> dict[str, Any]:
    (told,) = (one for one in cluster.nodes[node].collector.status() if one["namespace"] == policy + "-1")
    return told


@pytest.mark.parametrize("policy", ["lww", *FIRST])
def test_the_oldest_is_told_from_the_memtable_on(policy: str) -> None:
    """Written, and deleted ten seconds later: so old on all nodes, in memory, in tables, compacted, and after a restart."""
    cluster = _cluster(policy)
    _write(cluster, "dc1-1", policy, FIRST.get(policy, ("put",)))
    assert _told(cluster, "dc1-1", policy)["oldest_ms"] is None and _told(cluster, "dc1-1", policy)["oldest_is_known"]
    for name in cluster.names:
        flushed(cluster, name)
    cluster.run(10 * SECOND)
    deleted_ms = _delete(cluster, "dc1-1", policy)
    cluster.run(20 * SECOND)
    _delete(cluster, "dc1-1", policy, b"later")

    def check() -> None:
        for name in cluster.names:
            told = _told(cluster, name, policy)
            assert told["held"] and told["oldest_is_known"]
            assert deleted_ms - LOOK_MS <= told["oldest_ms"] <= deleted_ms + 10
            assert told["oldest_age_ms"] >= 20_000

    check()
    for name in cluster.names:
        flushed(cluster, name)
    check()
    for name in cluster.names:
        engine = cluster.engines[name]
        for namespace in engine.namespaces():
            job = engine.full_compaction(namespace)
            if job is not None:
                cluster.disks[name].build(engine, job)
    check()
    for name in cluster.names:
        cluster.restart(name)
    cluster.serving()
    check()


@pytest.mark.parametrize("policy", ["lww", "counter_pn"])
def test_a_restart_finds_how_old_a_memtable_is_in_the_log(policy: str) -> None:
    """Deleted, not flushed, killed: what recovery puts into memory is not younger than it was."""
    cluster = _cluster(policy)
    _write(cluster, "dc1-1", policy, FIRST.get(policy, ("put",)))
    cluster.run(5 * SECOND)
    deleted_ms = _delete(cluster, "dc1-1", policy)
    for name in cluster.names:
        cluster.restart(name)
    cluster.serving().run(5 * SECOND)
    for name in cluster.names:
        told = _told(cluster, name, policy)
        assert told["oldest_is_known"] and told["oldest_ms"] <= deleted_ms + 10


@pytest.mark.parametrize("policy", ["lww", "set_aw"])
def test_a_delete_that_arrives_late_is_as_old_as_where_it_was_made(policy: str) -> None:
    """The datacenter that gets it half a minute later, with newer records before it, tells when it was made."""
    cluster = _cluster(policy, datacenters=2, nodes=2, replicas=2).run(SECOND)
    is_late = [True]
    cluster.is_dropped = lambda sender, receiver, message: (
        isinstance(message, StabilityAnswer) or (is_late[0] and isinstance(message, FeedBatch) and receiver.startswith("dc2"))
    )
    deleted_ms = _delete(cluster, "dc1-1", policy)
    cluster.run(30 * SECOND)
    _write(cluster, "dc2-1", policy, FIRST.get(policy, ("put",)), b"new")
    cluster.run(2 * SECOND)
    assert _told(cluster, "dc2-1", policy)["oldest_ms"] is None
    is_late[0] = False
    cluster.run_until(lambda: bool(_told(cluster, "dc2-1", policy)["held"]), 60 * SECOND)
    assert deleted_ms - LOOK_MS <= _told(cluster, "dc2-1", policy)["oldest_ms"] <= deleted_ms + 10
    flushed(cluster, "dc2-1")
    assert deleted_ms - LOOK_MS <= _told(cluster, "dc2-1", policy)["oldest_ms"] <= deleted_ms + 10


@pytest.mark.parametrize("policy", ["lww", "counter_pn"])
def test_what_a_large_memtable_hides_is_not_older_than_told(policy: str) -> None:
    """A delete below thousands of newer keys, on who coordinated them and on the others: told by their records."""
    cluster = _cluster(policy)
    deleted_ms = _delete(cluster, "dc1-1", policy)
    value = b"v" if policy == "lww" else encode_operation(Operation("increment", (1,)))
    for first in range(0, 2_100, 300):
        keys = [b"k%d" % number for number in range(first, first + 300)]
        batch = WriteBatch(policy + "-1", keys, [value] * 300, Consistency.QUORUM, has_updates=policy != "lww")
        call = cluster.ask("dc1-1", batch)
        cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)  # noqa: B023  # run at once
    _delete(cluster, "dc1-1", policy, b"last")
    cluster.run(10 * SECOND)
    for name in cluster.names:
        told = _told(cluster, name, policy)
        assert told["in_memory_is_estimate"] and told["oldest_is_known"]
        assert told["oldest_ms"] <= deleted_ms + 10


def test_what_nobody_can_date_is_said_to_be_unknown() -> None:
    """A tombstone of dots that came as a repaired cell has no time: no figure is given, in memory or in a table."""
    cluster = _cluster("set_aw")
    _delete(cluster, "dc1-1", "set_aw")
    table = cluster.nodes["dc1-2"].assembly.table_named("set_aw-1")
    assert table is not None
    cell = cluster.cells("dc1-1", "set_aw-1")[b"k"]
    partition = partition_of(b"other", 8)
    repair = encode_record(CELL, partition, table.definition.id, table.collections, 0, NO_OPERATION, b"", b"other", cell)
    cluster.give_message("dc1-1", "dc1-2", Replicate(77, repair))
    cluster.run(SECOND)
    for _ in range(2):
        told = _told(cluster, "dc1-2", "set_aw")
        assert (told["oldest_ms"], told["oldest_is_known"]) == (None, False) and told["held"] == 2
        flushed(cluster, "dc1-2")
    assert _told(cluster, "dc1-1", "set_aw")["oldest_is_known"]


def test_an_expired_value_is_as_old_as_its_deadline() -> None:
    """Put with a time to live, expired, flushed: it waits since its deadline; before that nothing does."""
    cluster = _cluster("siblings")
    call = cluster.ask("dc1-1", WriteBatch("siblings-1", [b"k"], [b"v"], Consistency.ALL, ttl_ms=5_000))
    put_ms = cluster.wall_us("dc1-1") // 1000
    cluster.run_until(lambda: cluster.reply("dc1-1", call) is not None)
    assert _told(cluster, "dc1-1", "siblings")["oldest_ms"] is None
    cluster.run(20 * SECOND)
    assert abs(_told(cluster, "dc1-1", "siblings")["oldest_ms"] - put_ms - 5_000) < 100
    flushed(cluster, "dc1-1")
    assert abs(_told(cluster, "dc1-1", "siblings")["oldest_ms"] - put_ms - 5_000) < 100
