"""Namespaces of each engine on real nodes: written, flushed by the worker or the node, killed, restarted, deleted, verified."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from geokv.cli import exits
from geokv.cli.main import main
from geokv.errors import InvalidRequest
from geokv.testing import Cluster
from tests.digests import living
from tests.server.test_storage import SMALL, status, until

ENGINES = ["lsm", "lmdb", *(["rocksdb"] if find_spec("rocksdict") else [])]


def value(number: int) -> bytes:
    return b"%d " % number * 200


async def put_all(cluster: Cluster, numbers: range) -> None:
    """The same to a namespace of each engine; a number beyond 1000 overwrites."""
    async with cluster.async_client() as kv:
        spaces = [kv.namespace(engine) for engine in ENGINES]
        for start in range(numbers.start, numbers.stop, 128):
            some = range(start, min(start + 128, numbers.stop))
            await asyncio.gather(*[space.put(b"key-%d" % (at % 1000), value(at)) for at in some for space in spaces])


async def get_all(cluster: Cluster, engine: str, count: int) -> list[bytes | None]:
    async with cluster.async_client() as kv:
        space = kv.namespace(engine)
        found: list[bytes | None] = []
        for start in range(0, count, 256):
            results = await asyncio.gather(*[space.get(b"key-%d" % at) for at in range(start, min(start + 256, count))])
            found += [None if result.value is None else bytes(result.value) for result in results]
        return found


def create_all(cluster: Cluster) -> None:
    with cluster.client() as kv:
        for engine in ENGINES:
            kv.create_namespace(engine, engine=engine)
        kv.create_namespace("counts", policy="counter_pn", engine="lmdb")


@pytest.mark.timeout(180)
def test_every_engine_keeps_what_was_acknowledged_through_kills_and_restarts(tmp_path: Path) -> None:
    """Three nodes, small memtables, kill -9 in the midst of flushes: every value is read, and replicas become equal.

    Takes some twenty seconds: real processes, some megabytes, several flushes and restarts.
    """
    with Cluster(nodes=3, directory=tmp_path, settings=SMALL) as cluster:
        create_all(cluster)
        asyncio.run(put_all(cluster, range(1000)))
        until(lambda: status(cluster, "node-2")["flushes"] >= 1)
        assert status(cluster, "node-2")["trees"] == len(ENGINES)  # and the counters', and without the tables
        cluster.kill("node-2")
        asyncio.run(put_all(cluster, range(1000, 1500)))
        cluster.restart("node-2")
        cluster.kill("node-3")
        cluster.restart("node-3")
        with cluster.client() as kv:
            for _ in range(20):
                kv.counters("counts").increment("likes", 3)
            kv.namespace("lmdb").delete("key-1")
        expected = [value(at + 1000 if at < 500 else at) for at in range(1000)]
        for engine in ENGINES:
            found = asyncio.run(get_all(cluster, engine, 1000))
            assert found[2:] == expected[2:] and (found[1] is None) == (engine == "lmdb")
            until(lambda engine=engine: len({json.dumps(one) for one in living(cluster, engine)}) == 1)
        assert all(status(cluster, name)["failure"] == "" for name in cluster.names)
    assert main(["storage", "verify", str(tmp_path)]) == exits.DONE
    with Cluster(nodes=3, directory=tmp_path, settings=SMALL) as cluster, cluster.client() as kv:
        assert kv.counters("counts").get("likes").value == 60
        assert kv.namespace("lmdb").get("key-1").value is None
        for engine in ENGINES:
            assert asyncio.run(get_all(cluster, engine, 1000))[2:] == expected[2:]


@pytest.mark.timeout(120)
def test_a_deleted_namespace_gives_its_space_back(tmp_path: Path) -> None:
    """Its folder goes, also where the node was restarted in between, and the node goes on."""
    with Cluster(nodes=1, directory=tmp_path) as cluster:
        create_all(cluster)
        asyncio.run(put_all(cluster, range(300)))
        cluster.restart("node-1")  # with a flush

        def folders() -> list[Path]:
            return [path for engine in ENGINES for path in (tmp_path / "node-1" / engine).glob("*") if path.is_dir()]

        assert len(folders()) == len(ENGINES)  # the counters' is among them
        with cluster.client() as kv:
            for engine in ENGINES:
                kv.delete_namespace(engine)
        until(lambda: len(folders()) == 1)
        assert status(cluster)["trees"] == 1
        cluster.kill("node-1")
        cluster.restart("node-1")
        with cluster.client() as kv:
            kv.counters("counts").increment("likes")
            assert kv.counters("counts").get("likes").value == 1
            kv.create_namespace("lmdb", engine="lmdb")  # another one of that name
            assert kv.namespace("lmdb").get("key-1").value is None


@pytest.mark.timeout(60)
def test_what_an_engine_cannot_take_is_refused() -> None:
    """A longer key than LMDB takes, and settings of another engine; with what to do."""
    with Cluster() as cluster, cluster.client() as kv:
        made = kv.create_namespace("short-keys", engine="lmdb").settings
        assert made["engine"] == "lmdb" and made["key_bytes_max"] == 511
        space = kv.namespace("short-keys")
        space.put(b"k" * 511, b"v")
        assert space.get(b"k" * 511).value == b"v"
        with pytest.raises(InvalidRequest, match="511"):
            space.put(b"k" * 512, b"v")
        for refused in ({"key_bytes_max": 512}, {"memory_bytes_max": 1 << 20}):
            with pytest.raises(InvalidRequest, match=r"511|only for engine"):
                kv.create_namespace("no", engine="lmdb", **refused)
        with pytest.raises(InvalidRequest, match="511"):
            kv.alter_namespace("short-keys", key_bytes_max=1024)
