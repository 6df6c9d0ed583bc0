"""A real node whose table was damaged while it was stopped: it starts, serves through the others, and says what it cannot."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from geokv import Consistency
from geokv.client import Client
from geokv.lab.ask import ask
from geokv.testing import Cluster
from tests.server.test_storage import until

KEYS = [b"key-%d" % number for number in range(300)]


def storage_of(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(cluster.address_of(name), "status", timeout_s=5.0)["storage"]
    return found


def flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def command(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run([sys.executable, "-m", "geokv", *arguments, "--json"], capture_output=True, timeout=30, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.timeout(120)
def test_a_flipped_bit_in_a_table_is_named_and_every_read_and_write_works(tmp_path: Path) -> None:
    """All keys at ONE and QUORUM through the damaged node, new values too, before and after another restart.

    Takes some ten seconds: three real processes, several restarts.
    """
    with Cluster(nodes=3, directory=tmp_path) as cluster:
        with cluster.client() as kv:
            for key in KEYS:
                kv.put(key, b"old " + key)
        cluster.node("node-1").stop()
        (table,) = (tmp_path / "node-1" / "lsm").glob("*.sst")
        flip_a_bit(table, random.Random(7))
        cluster.restart("node-1")
        through = [cluster.address_of("node-1")]
        with Client(through) as kv:
            for level in (Consistency.ONE, Consistency.QUORUM):
                assert [kv.get(key, consistency=level).value for key in KEYS] == [b"old " + key for key in KEYS]
            until(lambda: [one["is_set_aside"] for one in storage_of(cluster, "node-1")["quarantined"]] == [True])
            (told,) = storage_of(cluster, "node-1")["quarantined"]
            assert told["file"] == f"lsm/{table.name}" and told["namespace"] == "default"
            assert told["partitions"] == list(range(256)) and table.exists()
            assert storage_of(cluster, "node-2")["quarantined"] == []
            for level in (Consistency.ONE, Consistency.QUORUM):
                for key in KEYS[::3]:
                    kv.put(key, b"new " + level.name.encode(), consistency=level)
                    # At ONE another replica may answer the read than took the write: it has it soon.
                    until(lambda key=key, level=level: kv.get(key, consistency=level).value == b"new " + level.name.encode())
        code, tree = command("status", "--node", cluster.addresses[1])
        (hurt,) = [node for node in tree["nodes"] if node["node"] == "node-1"]
        assert hurt["state"] == "partly serving" and table.name in hurt["reason"] and "partitions 0-255" in hurt["reason"]
        cluster.restart("node-1")
        with Client(through) as kv:
            assert kv.get(KEYS[0], consistency=Consistency.QUORUM).value == b"new QUORUM"
            assert kv.get(KEYS[1], consistency=Consistency.ONE).value == b"old " + KEYS[1]
        assert storage_of(cluster, "node-1")["partitions_unserved"] == 256
    code, tree = command("storage", "verify", str(tmp_path / "node-1"))
    assert code == 1 and not tree["is_clean"]
    (damage,) = tree["nodes"][0]["damage"]
    assert damage["path"] == f"lsm/{table.name}" and "in quarantine" in damage["what"]
    code, tree = command("storage", "inspect", str(tmp_path / "node-1"))
    (aside,) = tree["nodes"][0]["quarantined"]
    assert code == 0 and aside["path"] == f"lsm/{table.name}" and aside["offset"] == told["offset"]
