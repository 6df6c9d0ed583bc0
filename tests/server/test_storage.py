"""Flushes and compactions of real nodes: the worker process beside them, kills in the midst, what a stopped node leaves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from geokv.errors import ConfigurationError
from geokv.lab.ask import ask
from geokv.server.boot import engine_options
from geokv.server.config import read_config
from geokv.storage.lsm.engine import LsmOptions
from geokv.storage.lsm.strategy import SizeTiered
from geokv.storage.lsm.table_writer import TableOptions
from geokv.testing import Cluster
from tests.waiting import until

SMALL = {"memtable-bytes": str(1 << 20)}


def status(cluster: Cluster, name: str = "node-1") -> dict[str, Any]:
    found: dict[str, Any] = ask(cluster.address_of(name), "status", timeout_s=5.0)["storage"]
    return found


def value(number: int) -> bytes:
    return b"%d " % number * 120


async def put_all(cluster: Cluster, numbers: range) -> None:
    async with cluster.async_client() as kv:
        carts = kv.namespace("default")
        for start in range(numbers.start, numbers.stop, 256):
            some = range(start, min(start + 256, numbers.stop))
            await asyncio.gather(*[carts.put(b"key-%d" % (number % 6000), value(number)) for number in some])


async def get_all(cluster: Cluster, count: int) -> list[bytes | None]:
    async with cluster.async_client() as kv:
        carts = kv.namespace("default")
        found = []
        for start in range(0, count, 256):
            results = await asyncio.gather(*[carts.get(b"key-%d" % at) for at in range(start, min(start + 256, count))])
            found += [None if result.value is None else bytes(result.value) for result in results]
        return found


def workers_of(pid: int) -> list[int]:
    """Child processes of a node, whichever of its threads started them."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


@pytest.mark.timeout(120)
def test_nodes_flush_and_compact_beside_their_work_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    """A few megabytes through small memtables, kill -9 of node and worker in between: all that was acknowledged is read.

    Takes some ten seconds: real processes, restarts, and a few thousand writes.
    """
    with Cluster(nodes=1, directory=tmp_path, settings=SMALL) as cluster:
        asyncio.run(put_all(cluster, range(6000)))
        until(lambda: status(cluster)["flushes"] >= 2)
        (worker,) = workers_of(cluster.node("node-1").pid)
        os.kill(worker, 9)  # the job that runs fails and is done by another
        asyncio.run(put_all(cluster, range(6000, 12_000)))

        def is_compacted() -> bool:
            asyncio.run(put_all(cluster, range(6000, 8000)))  # the same values again: a flush or two
            return bool(status(cluster)["compactions"] >= 1)

        until(is_compacted, 60.0)
        assert status(cluster)["failure"] == ""
        (worker,) = workers_of(cluster.node("node-1").pid)
        cluster.kill("node-1")
        until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2])
        cluster.restart("node-1")
        assert status(cluster)["tables"] >= 1
        assert asyncio.run(get_all(cluster, 6000)) == [value(6000 + at) for at in range(6000)]
        assert ask(cluster.address, "metrics", timeout_s=5.0)["storage.loading_keys"] > 1000
    assert list((tmp_path / "node-1" / "lsm").glob("*.sst"))


@pytest.mark.timeout(60)
def test_a_node_that_is_stopped_leaves_nothing_to_replay(tmp_path: Path) -> None:
    """SIGTERM flushes what is in memory; the next start finds it in tables."""
    with Cluster(nodes=1, directory=tmp_path) as cluster:
        with cluster.client() as kv:
            kv.namespace("default").put("k", b"v")
        cluster.restart("node-1")
        assert status(cluster)["tables"] == 1 and status(cluster)["memtable_pairs"] == 0
        with cluster.client() as kv:
            assert kv.namespace("default").get("k").value == b"v"


@pytest.mark.timeout(120)
def test_a_flipped_bit_on_one_node_gives_no_wrong_value_and_the_others_answer(tmp_path: Path) -> None:
    """Every key is read right at ONE and at QUORUM while one of three replicas has a damaged block.

    Takes some ten seconds: three nodes are started twice.
    """
    with Cluster(nodes=3, directory=tmp_path) as cluster:
        asyncio.run(put_all(cluster, range(600)))
    (table,) = (tmp_path / "node-2" / "lsm").glob("*.sst")
    damaged = bytearray(table.read_bytes())
    damaged[100] ^= 4  # in the first block
    table.write_bytes(damaged)
    with Cluster(nodes=3, directory=tmp_path) as cluster:
        for _ in range(3):
            assert asyncio.run(get_all(cluster, 600)) == [value(at) for at in range(600)]
        with cluster.client() as kv:
            assert all(kv.namespace("default").get(b"key-%d" % at, consistency="ONE").value == value(at) for at in range(600))
        # Whoever read it first, a call of its own or another coordinator's: from then on it hands calls on.
        assert [one["file"] for one in status(cluster, "node-2")["quarantined"]] == [
            str(table.relative_to(tmp_path / "node-2"))
        ]


def test_settings_reach_the_engine(tmp_path: Path) -> None:
    """Filters, the way of compacting and the caches of a node are those that it was told; others are refused by name."""
    needed = {"topology": "topology.toml", "node": "node-1", "directory": str(tmp_path)}
    told = {"filter_bits_per_key": "16", "compaction": "size-tiered", "row_cache_bytes": "0", "block_cache_bytes": "1"}
    options = engine_options(read_config(needed, {f"GEOKV_{name.upper()}": value for name, value in told.items()}))
    assert options == LsmOptions(TableOptions(bits_per_key=16), SizeTiered(), block_cache_bytes=1, row_cache_bytes=0)
    assert engine_options(read_config(needed, {})) == LsmOptions()
    with pytest.raises(ConfigurationError, match="choose one of levelled, size-tiered"):
        read_config({**needed, "compaction": "none"}, {})
