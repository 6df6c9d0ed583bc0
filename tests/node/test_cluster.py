"""One cluster by hand, from an empty disk to equal replicas in two datacenters."""

from geokv.protocol.messages import Chosen, Statement
from geokv.protocol.requests import AdminRequest, Outcome
from tests.node.harness import MS, SECOND, Cluster


def test_write_reaches_every_replica_of_every_datacenter() -> None:
    """A write at quorum in one datacenter is on all six replicas a moment later."""
    cluster = Cluster(datacenters=2).start().serving()
    reply = cluster.put("dc1-1", b"k", b"v")
    assert reply.outcomes == [Outcome.APPLIED]
    assert cluster.get("dc1-2", b"k").values == [b"v"]
    cluster.run_until(lambda: cluster.cells("dc2-3") == cluster.cells("dc1-1"), 2 * SECOND)
    assert cluster.are_equal()


def test_a_change_of_a_namespace_is_answered_when_every_live_member_knows_it() -> None:
    """The next call may go to any of them; one that is silent is waited for a second and no longer."""
    cluster = Cluster().start().serving()
    late = (Chosen, Statement)
    cluster.is_held = lambda s, r, m: isinstance(m, late) and r == "dc1-3"
    call = cluster.ask("dc1-1", AdminRequest("namespace_create", {"name": "carts"}))
    cluster.run(200 * MS)
    assert cluster.reply("dc1-1", call) is None, "dc1-3 is live and has not said that it knows"
    cluster.release()
    cluster.run(10 * MS)  # at once, not with the next heartbeat
    assert cluster.reply("dc1-1", call).outcome is Outcome.APPLIED
    assert all(node.assembly.table_named("carts") is not None for node in cluster.nodes.values())
    cluster.is_dropped = lambda s, r, m: isinstance(m, Chosen) and r == "dc1-3"
    began_us = cluster.now_us
    assert cluster.admin("dc1-1", "namespace_alter", name="carts", ttl_ms=5).outcome is Outcome.APPLIED
    assert cluster.now_us - began_us <= 1_100 * MS
