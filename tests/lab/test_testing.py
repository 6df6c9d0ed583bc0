"""geokv.testing, as the tests of somebody else use it."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geokv.errors import LabError
from geokv.lab.ask import why_not_serving
from geokv.testing import Cluster

pytestmark = pytest.mark.timeout(120)  # each starts real processes: a second or two when the machine is idle

CONFTEST = 'pytest_plugins = ["geokv.testing"]\n'
TESTS = """
def test_one(geokv_cluster):
    with geokv_cluster.client() as kv:
        kv.put("a", b"1")

def test_other_has_the_same_cluster(geokv_cluster):
    with geokv_cluster.client() as kv:
        assert kv.get("a").value == b"1"
"""


def test_the_fixture_works_in_a_stranger_s_test_suite(tmp_path: Path) -> None:
    """Two lines of set-up give a session's tests a real cluster."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_theirs.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_three_nodes_survive_one_and_tell_their_addresses() -> None:
    """A killed node is gone, the other two take writes, and it comes back at its address with what it missed."""
    with Cluster(nodes=3) as cluster, cluster.client() as kv:
        assert len(set(cluster.addresses)) == 3
        assert cluster.address == cluster.addresses[0]
        cluster.kill("node-2")
        assert not cluster.node("node-2").is_alive()
        assert kv.put("missed", b"1", consistency="QUORUM").achieved.replicas >= 2
        cluster.restart("node-2")
        deadline_s = time.monotonic() + 20
        while kv.put("all", b"1", consistency="TWO") and kv.get("missed", consistency="ALL").achieved.replicas != 3:
            assert time.monotonic() < deadline_s


def test_the_logs_of_a_cluster_are_told_when_its_test_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the block brings the end of each node's log."""
    with caplog.at_level(logging.ERROR, "geokv.testing"), pytest.raises(ZeroDivisionError), Cluster() as cluster:
        raise ZeroDivisionError
    assert "serves at" in caplog.text
    assert "node-1" in caplog.text
    with pytest.raises(LabError, match=r"not started|no node"):
        cluster.node("node-1")


def test_a_node_that_cannot_start_is_told_with_its_log() -> None:
    """A setting that makes no sense comes out with the node's own words, and nothing is left running."""
    with pytest.raises(LabError, match=r"drain.seconds"):
        Cluster(settings={"drain-seconds": "-1"}).start()


def test_a_cluster_has_at_least_one_node() -> None:
    """Zero nodes are refused before anything starts."""
    with pytest.raises(LabError, match="at least one"):
        Cluster(nodes=0)


def test_a_node_is_waited_for_until_it_takes_part_in_agreements() -> None:
    """On a new disk it serves a moment earlier, and would refuse to create a namespace."""
    assert why_not_serving({"refusing": "", "takes_part_in_agreements": True}) == ""
    assert "agreements" in why_not_serving({"refusing": "", "takes_part_in_agreements": False})
    assert why_not_serving({"refusing": "its disk is full", "takes_part_in_agreements": True}) == "its disk is full"
    assert why_not_serving(LabError("it has ended")) == "it has ended"
