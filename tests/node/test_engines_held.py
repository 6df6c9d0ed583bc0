"""Nodes that cannot keep a namespace of some engine: refused where it is created, and never a loss where others have it."""

from __future__ import annotations

import pytest

from geokv.core.quorum import Consistency
from geokv.errors import StorageError
from geokv.protocol.requests import Outcome
from geokv.storage.lsm.engine import LsmEngine
from tests.node.harness import SECOND, Cluster, Disk


class AbleEngine(LsmEngine):
    """Stands for a node that has what an engine needs; where it keeps the cells is no matter here."""

    def check_holds(self, engine: str) -> None:
        pass


class AbleDisk(Disk):
    is_able = True

    def engine(self) -> LsmEngine:
        return (AbleEngine if self.is_able else LsmEngine)(self.folder, self.options)


@pytest.mark.parametrize("engine", ["lmdb", "rocksdb"])
def test_engines_that_need_files_are_refused_where_there_are_none(engine: str) -> None:
    """By the node that is asked to create one, with what to choose: so by every node of the simulator."""
    cluster = Cluster(partitions=1).start().serving()
    reply = cluster.admin("dc1-1", "namespace_create", name="trees", engine=engine)
    assert reply.outcome is Outcome.INVALID and "needs real files" in reply.message and 'choose "lsm"' in reply.message
    assert cluster.admin("dc1-1", "namespace_show", name="trees").outcome is Outcome.NOT_FOUND


def cluster_with_one_unable() -> Cluster:
    cluster = Cluster(partitions=2)
    cluster.disks = {name: AbleDisk() for name in cluster.names}
    cluster.disks["dc1-3"].is_able = False  # type: ignore[attr-defined]
    cluster.start().serving()
    assert cluster.admin("dc1-1", "namespace_create", name="trees", engine="rocksdb").outcome is Outcome.APPLIED
    return cluster.run(2 * SECOND)


def test_a_node_that_cannot_keep_a_namespace_goes_on_with_the_others_and_catches_up_once_it_can() -> None:
    """It says so, counts as a replica that does not answer, and takes what it has missed from its co-owners."""
    cluster = cluster_with_one_unable()
    (why,) = cluster.nodes["dc1-3"].admin.status()["storage"]["unheld"]
    assert "namespace 'trees' is not kept on this node" in why
    assert [text for name, text in cluster.logs if name == "dc1-3" and "is not kept" in text.text]
    for at in range(20):
        assert cluster.put("dc1-1", b"k%d" % at, b"v", namespace="trees").outcomes == [Outcome.APPLIED]
    assert cluster.put("dc1-1", b"default", b"v", Consistency.ALL).outcomes == [Outcome.APPLIED]
    assert cluster.get("dc1-2", b"k3", namespace="trees").values == [b"v"]
    cluster.run(10 * SECOND)
    cluster.restart("dc1-3")
    cluster.serving()
    assert cluster.put("dc1-3", b"default", b"w", Consistency.ALL).outcomes == [Outcome.APPLIED]
    cluster.disks["dc1-3"].is_able = True  # type: ignore[attr-defined]
    cluster.restart("dc1-3")
    cluster.serving().run(20 * SECOND)
    assert cluster.cells("dc1-3", "trees") == cluster.cells("dc1-1", "trees")
    assert len(cluster.cells("dc1-3", "trees")) == 20
    assert cluster.nodes["dc1-3"].admin.status()["storage"]["unheld"] == []


@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_node_that_kept_a_namespace_and_no_longer_can_does_not_start(is_flushed: bool) -> None:
    """Else it would forget what it has acknowledged. The error says what is missing."""
    cluster = cluster_with_one_unable()
    cluster.put("dc1-1", b"k", b"v", namespace="trees")
    if is_flushed:
        cluster.nodes["dc1-1"].upkeep.flush()
        cluster.put("dc1-1", b"other", b"v")
        cluster.run(5 * SECOND)
    cluster.crash("dc1-1")
    cluster.disks["dc1-1"].is_able = False  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="namespace 'trees' is not kept on this node"):
        cluster.start("dc1-1")
    cluster.disks["dc1-1"].is_able = True  # type: ignore[attr-defined]
    cluster.start("dc1-1").serving()
    assert cluster.get("dc1-1", b"k", namespace="trees").values == [b"v"]
