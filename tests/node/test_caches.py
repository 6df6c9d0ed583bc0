"""Namespaces of the engine `memory`: caches that are replicated and shipped, evicted, and empty after a restart."""

from __future__ import annotations

import pytest

from geokv.core.limits import CACHE_BYTES_MIN
from geokv.core.quorum import Consistency
from geokv.protocol.requests import Outcome
from tests.node.harness import SECOND, Cluster


def with_cache(**config: object) -> Cluster:
    cluster = Cluster(partitions=1, **config).start().serving()  # type: ignore[arg-type]
    reply = cluster.admin("dc1-1", "namespace_create", name="cache", engine="memory", memory_bytes_max=CACHE_BYTES_MIN)
    assert reply.outcome is Outcome.APPLIED and reply.body["namespace"]["engine"] == "memory"
    return cluster.run(SECOND)


def test_a_cache_is_read_and_written_as_any_namespace_and_is_empty_after_a_restart() -> None:
    """All replicas have it; who restarts has nothing of it, others still do, and it is filled anew by reads."""
    cluster = with_cache()
    cluster.put("dc1-1", b"k", b"v", Consistency.ALL, namespace="cache")
    cluster.put("dc1-1", b"kept", b"v", Consistency.ALL)
    assert all(cluster.get(name, b"k", Consistency.ONE, namespace="cache").values == [b"v"] for name in cluster.names)
    cluster.restart("dc1-2")
    cluster.serving()
    assert cluster.cells("dc1-2", "cache") == {}
    assert b"kept" in cluster.cells("dc1-2")
    assert cluster.get("dc1-2", b"k", Consistency.ONE, namespace="cache").values == [None]
    assert cluster.get("dc1-2", b"k", Consistency.ALL, namespace="cache").values == [b"v"]
    cluster.run(SECOND)
    assert cluster.get("dc1-2", b"k", Consistency.ONE, namespace="cache").values == [b"v"]


def test_a_full_cache_evicts_and_says_so() -> None:
    """It stays within its bound on every node; `namespace show` has how many went; altering the bound counts at once."""
    cluster = with_cache()
    for at in range(200):
        cluster.put("dc1-1", b"k%d" % at, bytes(9_000), Consistency.ALL, namespace="cache")
    for name in cluster.names:
        figures = cluster.admin(name, "namespace_show", name="cache").body["namespace"]["cache_here"]
        assert figures["bytes"] <= CACHE_BYTES_MIN and figures["evicted"] > 50
        assert figures["evicted_last"]
        assert cluster.nodes[name].metrics()["cache.evicted"] == figures["evicted"]
    assert cluster.get("dc1-1", b"k199", namespace="cache").values == [bytes(9_000)]
    assert cluster.get("dc1-1", b"k0", namespace="cache").values == [None]
    cluster.admin("dc1-1", "namespace_alter", name="cache", memory_bytes_max=4 * CACHE_BYTES_MIN)
    cluster.run(SECOND)
    for at in range(200):
        cluster.put("dc1-1", b"k%d" % at, bytes(9_000), Consistency.ALL, namespace="cache")
    assert cluster.get("dc1-1", b"k0", namespace="cache").values == [bytes(9_000)]


def test_a_cache_holds_up_no_log_and_stands_in_no_table() -> None:
    """Its records go with the log, flushed or not there is nothing of it in the tables."""
    cluster = with_cache(memtable_bytes=20_000)
    for disk in cluster.disks.values():
        disk.segment_bytes = 20_000
    for at in range(60):
        cluster.put("dc1-1", b"k%d" % at, bytes(2_000), Consistency.ALL, namespace="cache")
    cluster.run(12 * SECOND)
    assert cluster.trimmed.get("dc1-1", 0) > 1
    assert cluster.engines["dc1-1"].figures()["table_pairs"] == 0
    cluster.admin("dc1-1", "namespace_delete", name="cache")
    cluster.run(SECOND)
    assert cluster.cells("dc1-1", "cache") == {}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"engine": "shelf"}, "unknown engine 'shelf'"),
        ({"memory_bytes_max": CACHE_BYTES_MIN}, 'only for engine "memory"'),
        ({"engine": "memory", "memory_bytes_max": 5}, "give a whole number from"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, object], why: str) -> None:
    """Before anything is agreed."""
    cluster = Cluster(partitions=1).start().serving()
    reply = cluster.admin("dc1-1", "namespace_create", name="cache", **settings)
    assert reply.outcome is Outcome.INVALID and why in reply.message


def test_the_bound_of_another_engine_cannot_be_altered() -> None:
    """It has none."""
    cluster = Cluster(partitions=1).start().serving()
    reply = cluster.admin("dc1-1", "namespace_alter", name="default", memory_bytes_max=CACHE_BYTES_MIN)
    assert reply.outcome is Outcome.INVALID and 'only for engine "memory"' in reply.message
