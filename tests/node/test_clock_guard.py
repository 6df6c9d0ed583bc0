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


def test_what_was_stamped_before_the_clock_was_found_wrong_is_counted() -> None:
    """In `status` and in a metric, and said once in the log; what was stamped while it was right is not."""
    cluster = Cluster().start().serving()
    cluster.run(3 * SECOND)
    cluster.put("dc1-2", b"right", b"v")
    cluster.run(3 * SECOND)
    cluster.wall_offset_us["dc1-2"] = 90 * SECOND
    for number in range(3):
        assert cluster.put("dc1-2", b"wrong-%d" % number, b"v").outcomes == [Outcome.APPLIED]
    cluster.run(3 * SECOND)
    assert cluster.put("dc1-2", b"k", b"v").outcomes == [Outcome.UNAVAILABLE]
    assert cluster.admin("dc1-2", "status").body["lww_stamped_while_off"] == 3
    assert cluster.admin("dc1-1", "status").body["lww_stamped_while_off"] == 0
    assert cluster.notes["clock.lww_stamped_while_off"] == 3
    cluster.wall_offset_us["dc1-2"] = 0
    cluster.run(3 * SECOND)
    cluster.put("dc1-2", b"right", b"again")
    cluster.run(3 * SECOND)
    assert cluster.admin("dc1-2", "status").body["lww_stamped_while_off"] == 3


def test_what_a_wrong_clock_stamped_loses_to_any_later_write_that_saw_it() -> None:
    """Without a context, at another coordinator that holds it, and with the context of a read: no clock is asked."""
    cluster = Cluster().start().serving()
    cluster.wall_offset_us["dc1-2"] = 90 * SECOND
    stamped = cluster.put("dc1-2", b"k", b"from the future")
    cluster.run(3 * SECOND)
    assert cluster.get("dc1-1", b"k").values == [b"from the future"]
    later = cluster.put("dc1-1", b"k", b"later")
    assert later.outcomes == [Outcome.APPLIED] and later.versions[0] > stamped.versions[0]
    read = cluster.get("dc1-3", b"k")
    assert read.values == [b"later"]
    last = cluster.put("dc1-3", b"k", None, contexts=[read.versions[0].to_bytes(8, "big")])
    assert last.outcomes == [Outcome.APPLIED]
    cluster.run(SECOND)
    assert [cluster.get(node, b"k").values for node in cluster.names] == [[None]] * 3


def test_status_shows_the_skew_to_every_peer() -> None:
    """Per peer, in this datacenter and in others, in ms; what is not known is not told as 0."""
    cluster = Cluster(datacenters=2).start().serving()
    for node in (1, 2, 3):
        cluster.wall_offset_us[f"dc2-{node}"] = 7 * SECOND
    cluster.run(5 * SECOND)
    peers = {one["node"]: one for one in cluster.admin("dc1-1", "status").body["peers"]}
    assert peers["dc2-1"]["clock_skew_ms"] == pytest.approx(7000, abs=500)
    assert peers["dc1-2"]["clock_skew_ms"] == pytest.approx(0, abs=500)
    cluster.crash("dc2-3")
    cluster.restart("dc1-1")
    cluster.run_until(lambda: cluster.is_serving("dc1-1"))
    peers = {one["node"]: one for one in cluster.admin("dc1-1", "status").body["peers"]}
    assert peers["dc2-3"]["clock_skew_ms"] is None
