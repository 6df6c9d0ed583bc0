"""A namespace with a trained dictionary on a real node: the setting reaches the worker, and can be altered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from geokv.errors import InvalidRequest
from geokv.storage.disk import RealDisk
from geokv.storage.lsm.footer import read_footer
from geokv.storage.lsm.manifest import table_numbers
from geokv.testing import Cluster

COUNT = 6000


def document(number: int) -> bytes:
    fields = b", ".join(b'"shipping_address_line_%d": "%x"' % (at, number * 7919**2 * (at + 1) % 2**20) for at in range(12))
    return b'{"identifier": %d, %b}' % (number, fields)


async def fill(cluster: Cluster) -> None:
    async with cluster.async_client() as kv:
        await kv.create_namespace("docs")
        assert (await kv.alter_namespace("docs", dictionary=True))["dictionary"] is True
        docs = kv.namespace("docs")
        for start in range(0, COUNT, 300):
            await asyncio.gather(*[docs.put(b"user:%06d" % at, document(at)) for at in range(start, start + 300)])


def test_the_setting_reaches_the_tables(tmp_path: Path) -> None:
    """Altered on a running node, the last flush writes the namespace's table with one; the next start reads it.

    A few seconds: a node is started twice.
    """
    with Cluster(directory=tmp_path) as cluster:
        asyncio.run(fill(cluster))
        with cluster.client() as kv, pytest.raises(InvalidRequest, match='dictionary is only for engine "lsm"'):
            kv.create_namespace("cache", engine="memory", dictionary=True)
    disk = RealDisk(tmp_path / "node-1")
    assert any(read_footer(disk, number).dictionary.length for number in table_numbers(disk))
    disk.close()
    with Cluster(directory=tmp_path) as cluster, cluster.client() as kv:
        assert all(kv.namespace("docs").get(b"user:%06d" % at).value == document(at) for at in range(0, COUNT, 500))
