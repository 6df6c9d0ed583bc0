"""A change of policy through whole nodes: what is shown after it, who waits for it, and that nothing is lost by it."""

from __future__ import annotations

import pytest

from geokv.core.cells.halves import fold
from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.quorum import Consistency
from geokv.protocol.messages import Definitions
from geokv.protocol.requests import Outcome, WriteReply
from tests.node.harness import SECOND, Cluster
from tests.node.test_upkeep import flushed


def cluster_of(policy: str, name: str = "docs", **shape: int) -> Cluster:
    return Cluster(**shape).start().serving().create(name, policy)


def policies(cluster: Cluster, name: str = "docs") -> set[str]:
    found = set()
    for node in cluster.nodes.values():
        table = node.assembly.table_named(name)
        assert table is not None
        found.add(table.policy.name)
    return found


def change(cluster: Cluster, node: str, policy: str, name: str = "docs") -> None:
    reply = cluster.admin(node, "namespace_alter", name=name, policy=policy)
    assert reply.outcome is Outcome.APPLIED, reply.message


def shown(cluster: Cluster, node: str, key: bytes = b"k", level: Consistency = Consistency.QUORUM) -> object:
    reply = cluster.get(node, key, level, namespace="docs")
    assert reply.outcomes == [Outcome.APPLIED], reply.details
    return decode_value(reply.policy, reply.values[0]) if reply.policy and reply.values[0] is not None else reply.values[0]


def update(cluster: Cluster, node: str, name: str, *arguments: bytes) -> WriteReply:
    packed = encode_operation(Operation(name, arguments))
    return cluster.put(node, b"k", packed, namespace="docs", has_updates=True)


def are_equal(cluster: Cluster) -> bool:
    """Whether all nodes hold the same, once it is folded."""
    held = [{key: fold(cell) for key, cell in cluster.cells(name, "docs").items()} for name in cluster.names]
    return all(one == held[0] for one in held)


def test_an_lww_value_is_a_sibling_after_the_change_until_a_put_has_seen_it() -> None:
    """A put without a context adds to it, one with the context of the read replaces both; a context of before counts too."""
    cluster = cluster_of("lww")
    cluster.put("dc1-1", b"k", b"old", namespace="docs")
    before = cluster.put("dc1-1", b"other", b"old", namespace="docs")
    change(cluster, "dc1-2", "siblings")
    cluster.run_until(lambda: policies(cluster) == {"siblings"})
    assert shown(cluster, "dc1-3") == [b"old"]
    cluster.put("dc1-2", b"k", b"added", namespace="docs")
    assert sorted(shown(cluster, "dc1-1")) == [b"added", b"old"]  # type: ignore[call-overload]
    read = cluster.get("dc1-3", b"k", namespace="docs")
    cluster.put("dc1-3", b"k", b"merged", namespace="docs", contexts=read.contexts)
    assert shown(cluster, "dc1-1") == [b"merged"]
    token = before.versions[0].to_bytes(8, "big")
    told = cluster.put("dc1-2", b"other", b"new", namespace="docs", contexts=[token])
    assert told.outcomes == [Outcome.APPLIED] and shown(cluster, "dc1-1", b"other") == [b"new"]


@pytest.mark.parametrize("policy", ["siblings", "register_mv", "register_lww"])
def test_a_datacenter_that_has_not_heard_goes_on_and_nothing_of_it_is_lost(policy: str) -> None:
    """Its puts are lww until the link is back; records of the new policy wait there meanwhile; then both are the same."""
    cluster = cluster_of("lww", datacenters=2)
    cluster.put("dc1-1", b"k", b"old", namespace="docs")
    cluster.run_until(lambda: are_equal(cluster))
    cluster.cut_apart()
    change(cluster, "dc1-1", policy)
    read = cluster.get("dc1-2", b"k", namespace="docs")
    cluster.put("dc1-2", b"k", b"new", namespace="docs", contexts=read.contexts)
    assert shown(cluster, "dc1-1") in (b"new", [b"new"])
    assert cluster.put("dc2-1", b"k", b"there", namespace="docs").outcomes == [Outcome.APPLIED]
    assert shown(cluster, "dc2-2") == b"there"
    cluster.heal()
    cluster.run_until(lambda: policies(cluster) == {policy} and are_equal(cluster))
    values = shown(cluster, "dc1-1")
    assert values == shown(cluster, "dc2-3")
    assert values == b"there" if policy == "register_lww" else sorted(values) == [b"new", b"there"]  # type: ignore[call-overload]
    noted = [one for node in cluster.nodes.values() for one in node.context.journal.of(_id(cluster))]
    assert any({one.winner.value, one.loser.value} == {b"new", b"there"} for one in noted)


def test_two_datacenters_that_change_to_different_policies_end_with_the_later_and_all_values() -> None:
    """What was written under the one that lost is a half of its own, and is shown by the one that stands."""
    cluster = cluster_of("lww", datacenters=2)
    cluster.put("dc1-1", b"k", b"old", namespace="docs")
    cluster.run_until(lambda: are_equal(cluster))
    cluster.cut_apart()
    change(cluster, "dc1-1", "register_mv")
    cluster.run(SECOND)
    change(cluster, "dc2-1", "siblings")
    cluster.put("dc1-1", b"k", b"here", namespace="docs")
    cluster.put("dc2-1", b"k", b"there", namespace="docs")
    cluster.heal()
    cluster.run_until(lambda: policies(cluster) == {"siblings"} and are_equal(cluster))
    assert sorted(shown(cluster, "dc1-2")) == [b"here", b"there"]  # type: ignore[call-overload]
    read = cluster.get("dc1-3", b"k", namespace="docs")
    cluster.put("dc1-3", b"k", b"one", namespace="docs", contexts=read.contexts)
    cluster.run_until(lambda: are_equal(cluster))
    assert shown(cluster, "dc2-2") == [b"one"]


def test_a_node_that_has_not_heard_takes_no_record_of_the_new_policy_until_it_has() -> None:
    """The write is acknowledged by those who have; the record comes again, and nothing is held up for good."""
    cluster = cluster_of("lww")
    cluster.put("dc1-1", b"k", b"old", namespace="docs")
    cluster.run(SECOND)
    cluster.cut("dc1-1", "dc1-3")
    cluster.cut("dc1-2", "dc1-3")
    change(cluster, "dc1-1", "siblings")
    cluster.is_held = lambda sender, receiver, message: receiver == "dc1-3" and isinstance(message, Definitions)
    cluster.heal()
    cluster.run(SECOND)
    told = cluster.put("dc1-1", b"k", b"new", namespace="docs")
    assert told.outcomes == [Outcome.APPLIED]
    cluster.run(SECOND)
    assert cluster.cells("dc1-3", "docs")[b"k"][:1] == b"\x01"
    assert cluster.notes["intake.policy_unknown"] > 0
    assert shown(cluster, "dc1-3", level=Consistency.ONE) == b"old"
    cluster.release()
    cluster.run_until(lambda: policies(cluster) == {"siblings"} and are_equal(cluster))
    assert sorted(shown(cluster, "dc1-3")) == [b"new", b"old"]  # type: ignore[call-overload]


def test_cells_of_both_policies_survive_restarts_flushes_and_compactions() -> None:
    """From the log alone, and from tables of which some were written before the change."""
    cluster = cluster_of("set_grow")
    for element in (b"a", b"b", b"c"):
        update(cluster, "dc1-1", "add", element)
    for name in cluster.names:
        flushed(cluster, name)
    change(cluster, "dc1-2", "set_aw")
    cluster.run_until(lambda: policies(cluster) == {"set_aw"})
    assert update(cluster, "dc1-2", "remove", b"b").outcomes == [Outcome.APPLIED]
    update(cluster, "dc1-2", "add", b"d")
    for restart in range(2):
        for name in cluster.names:
            cluster.restart(name)
            cluster.run_until(lambda name=name: cluster.is_serving(name))  # type: ignore[misc]
        assert shown(cluster, "dc1-3") == {b"a", b"c", b"d"}, restart
        for name in cluster.names:
            flushed(cluster, name)
    assert shown(cluster, "dc1-1") == {b"a", b"c", b"d"}


def test_an_incompatible_change_is_refused_with_the_reason() -> None:
    """The answer says why, and to what the policy could be changed; nothing is altered."""
    cluster = cluster_of("siblings")
    for policy, reason in (("lww", "would be discarded"), ("counter_pn", "cannot be shown"), ("nonsense", "unknown policy")):
        reply = cluster.admin("dc1-1", "namespace_alter", name="docs", policy=policy)
        assert reply.outcome is Outcome.INVALID and reason in reply.message
    cluster.admin("dc1-1", "namespace_create", name="cache", policy="lww", engine="memory")
    reply = cluster.admin("dc1-1", "namespace_alter", name="cache", policy="siblings")
    assert reply.outcome is Outcome.INVALID and "it forgets what it merged" in reply.message
    cluster.admin("dc1-1", "namespace_create", name="short", policy="lww", ttl_ms=1000)
    reply = cluster.admin("dc1-1", "namespace_alter", name="short", policy="register_mv")
    assert reply.outcome is Outcome.INVALID and "alter ttl_ms to 0 as well" in reply.message
    assert policies(cluster) == {"siblings"}


def _id(cluster: Cluster) -> int:
    table = cluster.nodes["dc1-1"].assembly.table_named("docs")
    assert table is not None
    return table.definition.id
