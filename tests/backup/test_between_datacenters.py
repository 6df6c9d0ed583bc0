"""A backup of two datacenters that cannot reach each other: what was not shipped yet is shipped after the restore."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from geokv import Client
from geokv.cli import exits
from geokv.cli.main import main
from geokv.core.topology import OUTSIDE
from geokv.lab.lab import Lab, read_topology
from geokv.lab.state import LabDirectory
from tests.lab.conftest import SMALL


@pytest.mark.timeout(120)
def test_what_was_not_shipped_when_the_backup_was_made_is_shipped_after_its_restore(tmp_path: Path) -> None:
    """Acknowledged on both sides of a cut link: in the backup, and after the restore in both. Real processes, twice."""
    topology = tmp_path / "small.toml"
    topology.write_text(SMALL, encoding="utf-8")
    target = tmp_path / "repository" / "monday"
    with Lab(read_topology(topology), LabDirectory(tmp_path / "former")) as lab:
        with (
            Client(lab.client_addresses("here"), dc="here") as here,
            Client(lab.client_addresses("there"), dc="there") as there,
        ):
            here.create_namespace("likes", policy="counter_pn")
            here.put("shipped", b"v", consistency="EACH_QUORUM")
            deadline_s = time.monotonic() + 20
            while "likes" not in {one["name"] for one in there.namespaces()}:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            lab.links.cut("here", "there")
            here.put("only here", b"1")
            there.put("only there", b"2")
            here.counters("likes").increment("post", 3)
            there.counters("likes").increment("post", 4)
        nodes = [part for address in lab.addresses(OUTSIDE).values() for part in ("--node", address)]
        assert main(["backup", "create", str(target), *nodes]) == exits.DONE
    again = LabDirectory(tmp_path / "again")
    assert main(["backup", "restore", str(target), "--all", "--directory", str(again.nodes)]) == exits.DONE
    with Lab(read_topology(topology), again) as lab:
        for dc in ("here", "there"):
            with Client(lab.client_addresses(dc), dc=dc) as kv:
                deadline_s = time.monotonic() + 30
                while (kv.get("only here").value, kv.get("only there").value, kv.counters("likes").get("post").value) != (
                    b"1",
                    b"2",
                    7,
                ):
                    assert time.monotonic() < deadline_s, "it was not shipped in time"
                    time.sleep(0.05)
                assert kv.get("shipped").value == b"v"
                kv.put("both", dc.encode(), consistency="EACH_QUORUM")
