"""A node whose own clock is the wrong one takes no lww writes; one among wrong ones is not blamed for theirs."""

from __future__ import annotations

import pytest

from geokv.protocol.requests import Outcome
from tests.node.harness import SECOND, Cluster


@pytest.mark.parametrize(("offset_s", "words"), [(90, "90.0 s ahead of"), (-90, "90.0 s behind")])
def test_a_clock_beyond_the_limit_takes_no_lww_writes_until_it_is_set_right(offset_s: int, words: str) -> None:
    """It says by how much; the other owners write on, and so does it in namespaces without stamps that decide."""
    cluster = Cluster().start().serving()
    cluster.admin("dc1-1", "namespace_create", name="docs", policy="siblings")
    cluster.run(SECOND)
    cluster.wall_offset_us["dc1-2"] = offset_s * SECOND
    cluster.run(3 * SECOND)
    refused = cluster.put("dc1-2", b"k", b"v")
    assert refused.outcomes == [Outcome.UNAVAILABLE] and words in refused.details[0].message
    assert cluster.put("dc1-2", b"k", b"v", namespace="docs").outcomes == [Outcome.APPLIED]
    assert cluster.put("dc1-1", b"k", b"v").outcomes == [Outcome.APPLIED]
    status = cluster.admin("dc1-2", "status").body
    assert words in str(status["refuses_lww"])
    assert status["clock_off_median_ms"] == pytest.approx(offset_s * 1000, abs=1000)
    assert cluster.admin("dc1-1", "status").body["refuses_lww"] is None
    assert [log.level for name, log in cluster.logs if name == "dc1-2" and words in log.text] == ["error"]
    cluster.wall_offset_us["dc1-2"] = 0
    cluster.run(3 * SECOND)
    assert cluster.put("dc1-2", b"k", b"v").outcomes == [Outcome.APPLIED]


def test_a_clock_that_is_off_by_less_is_warned_about() -> None:
    """Between the two limits writes are taken."""
    cluster = Cluster().start().serving()
    cluster.wall_offset_us["dc1-2"] = 20 * SECOND
    cluster.run(3 * SECOND)
    assert cluster.put("dc1-2", b"k", b"v").outcomes == [Outcome.APPLIED]
    warned = [log.text for name, log in cluster.logs if name == "dc1-2" and "off the median" in log.text]
    assert len(warned) == 1 and cluster.notes["clock.off"] == 1


def test_two_clocks_decide_nothing() -> None:
    """Of two that differ nobody can tell which one is wrong."""
    cluster = Cluster(nodes=2, replicas=2).start().serving()
    cluster.wall_offset_us["dc1-2"] = 600 * SECOND
    cluster.run(3 * SECOND)
    assert cluster.admin("dc1-2", "status").body["clock_off_median_ms"] is None
    assert cluster.put("dc1-1", b"k", b"v").outcomes == [Outcome.APPLIED]


def test_a_datacenter_whose_clock_is_off_drags_nobody_along() -> None:
    """Its nodes find themselves in the minority; the other datacenters' clocks stay where they are."""
    cluster = Cluster(datacenters=3).start().serving()
    for node in (1, 2, 3):
        cluster.wall_offset_us[f"dc2-{node}"] = 300 * SECOND
    cluster.run(5 * SECOND)
    assert cluster.put("dc2-1", b"k", b"v").outcomes == [Outcome.UNAVAILABLE]
    told = cluster.put("dc1-1", b"k", b"v")
    assert told.outcomes == [Outcome.APPLIED]
    assert abs((told.versions[0] >> 16) - cluster.wall_us("dc1-1") // 1000) < 5_000
