"""One cluster by hand, from an empty disk to equal replicas in two datacenters."""

from geokv.protocol.requests import Outcome
from tests.node.harness import SECOND, Cluster


def test_write_reaches_every_replica_of_every_datacenter() -> None:
    """A write at quorum in one datacenter is on all six replicas a moment later."""
    cluster = Cluster(datacenters=2).start().serving()
    reply = cluster.put("dc1-1", b"k", b"v")
    assert reply.outcomes == [Outcome.APPLIED]
    assert cluster.get("dc1-2", b"k").values == [b"v"]
    cluster.run_until(lambda: cluster.cells("dc2-3") == cluster.cells("dc1-1"), 2 * SECOND)
    assert cluster.are_equal()
