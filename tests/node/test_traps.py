"""Traps of replicated types through whole nodes: dots that could be used twice, repair that could make new ones.

The same traps at the level of cells are in tests/core/cells/test_traps.py.
"""

from __future__ import annotations

from geokv.core.cells.halves import fold
from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.quorum import Consistency
from geokv.core.record import CELL, DELTA, decode_records
from geokv.protocol.messages import Replicate
from geokv.protocol.requests import Outcome
from tests.node.harness import SECOND, Cluster, Disk
from tests.node.test_updates import cluster_with


def add(cluster: Cluster, node: str, element: bytes, level: Consistency = Consistency.QUORUM) -> None:
    packed = encode_operation(Operation("add", (element,)))
    reply = cluster.put(node, b"k", packed, namespace="set_aw", has_updates=True, level=level)
    assert reply.outcomes == [Outcome.APPLIED], reply.details


def elements(cluster: Cluster, node: str) -> set[bytes]:
    reply = cluster.get(node, b"k", namespace="set_aw")
    return set() if reply.values[0] is None else set(decode_value("set_aw", reply.values[0]))


def assert_no_dot_names_two_updates(cluster: Cluster) -> None:
    """Of everything that was ever sent under a number, two records of one dot are one."""
    known: dict[tuple[int, int, bytes, int], bytes] = {}
    for message in cluster.messages(Replicate):
        for record in decode_records(message.records):
            if record.kind == DELTA:
                dot = (record.namespace, record.partition, record.origin, record.number)
                assert known.setdefault(dot, record.raw) == record.raw
    assert known


def test_a_node_that_lost_its_disk_makes_no_dot_twice() -> None:
    """It is another origin, and refuses to serve on an empty disk: the others go on, and keep what it had added."""
    cluster = cluster_with("set_aw")
    add(cluster, "dc1-1", b"before")
    cluster.crash("dc1-1")
    cluster.disks["dc1-1"] = Disk()
    cluster.start("dc1-1")
    cluster.run(5 * SECOND)
    packed = encode_operation(Operation("add", (b"after",)))
    refused = cluster.put("dc1-1", b"k", packed, namespace="set_aw", has_updates=True)
    assert refused.outcomes == [Outcome.UNAVAILABLE] and "put the newest disk back" in refused.details[0].message
    add(cluster, "dc1-2", b"after")
    cluster.run(SECOND)
    assert all(elements(cluster, node) == {b"before", b"after"} for node in ("dc1-2", "dc1-3"))
    assert_no_dot_names_two_updates(cluster)


def test_a_node_that_was_restored_from_an_old_disk_makes_no_dot_twice() -> None:
    """The disk ends at number 1, others have number 3 of that run: what the node adds now is taken by all of them."""
    cluster = cluster_with("set_aw")
    add(cluster, "dc1-1", b"first")
    old = cluster.disks["dc1-1"].copy()
    add(cluster, "dc1-1", b"second")
    add(cluster, "dc1-1", b"third")
    cluster.crash("dc1-1")
    cluster.disks["dc1-1"] = old
    cluster.start("dc1-1")
    cluster.run_until(lambda: cluster.is_serving("dc1-1"))
    add(cluster, "dc1-1", b"restored")
    cluster.run(2 * SECOND)
    assert all(elements(cluster, node) == {b"first", b"second", b"third", b"restored"} for node in cluster.names)
    assert_no_dot_names_two_updates(cluster)


def test_a_coordinator_that_sees_the_key_as_absent_makes_no_dot_twice() -> None:
    """It adds where it has nothing of what the others hold of the key; afterwards all of it is there."""
    cluster = cluster_with("set_aw")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-3"
    add(cluster, "dc1-1", b"elsewhere")
    assert b"k" not in cluster.cells("dc1-3", "set_aw")
    cluster.is_dropped = lambda sender, receiver, message: False
    add(cluster, "dc1-3", b"blind")
    cluster.run(2 * SECOND)
    assert all(elements(cluster, node) == {b"elsewhere", b"blind"} for node in cluster.names)
    assert_no_dot_names_two_updates(cluster)


def test_repair_carries_dots_as_they_are() -> None:
    """A read that repairs a stale replica sends the cell without a number, and the cell is the one that was written."""
    cluster = cluster_with("set_aw")
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and receiver == "dc1-3"
    add(cluster, "dc1-1", b"e")
    numbered = {name: cluster.cells(name, "set_aw").get(b"k") for name in cluster.names}
    assert numbered["dc1-3"] is None
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.get("dc1-3", b"k", Consistency.ALL, namespace="set_aw", repair_before=True)
    cluster.run(SECOND)
    assert fold(cluster.cells("dc1-3", "set_aw")[b"k"]) == numbered["dc1-1"]
    records = [record for message in cluster.messages(Replicate) for record in decode_records(message.records)]
    assert all(record.number == 0 for record in records if record.kind == CELL)
    assert_no_dot_names_two_updates(cluster)
