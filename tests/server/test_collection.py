"""Deleted keys leave real nodes: the tombstones go by themselves, the space comes back, and nothing returns at a restart."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from geokv.lab.ask import ask
from geokv.testing import Cluster
from tests.waiting import until

OFTEN = {"collection-seconds": "0.5"}
KEYS = [b"key-%d" % number for number in range(2_000)]


def told(cluster: Cluster) -> list[dict[str, Any]]:
    """What each node says of the default namespace."""
    return [ask(cluster.address_of(name), "gc", {"namespace": "default"})["namespaces"][0] for name in cluster.names]


def table_pairs(cluster: Cluster) -> list[int]:
    return [ask(cluster.address_of(name), "status")["storage"]["table_pairs"] for name in cluster.names]


async def write_and_delete(cluster: Cluster) -> None:
    async with cluster.async_client() as kv:
        default = kv.namespace("default")
        await asyncio.gather(*[default.put(key, b"v" * 200) for key in KEYS])
        await asyncio.gather(*[default.put(b"stays-%d" % at, b"v") for at in range(10)])
        await asyncio.gather(*[default.delete(key) for key in KEYS])


async def present(cluster: Cluster) -> int:
    async with cluster.async_client() as kv:
        default = kv.namespace("default")
        found = await asyncio.gather(*[default.get(key) for key in KEYS])
        kept = await asyncio.gather(*[default.get(b"stays-%d" % at) for at in range(10)])
        assert all(one.found for one in kept)
        return sum(one.found for one in found)


@pytest.mark.timeout(180)
def test_two_thousand_deleted_keys_are_gone_from_every_node_and_stay_gone() -> None:
    """Put, deleted, collected on all three nodes; absent, and nothing held, after every node was killed and came back.

    Takes some ten seconds: real nodes are started twice.
    """
    with Cluster(nodes=3, settings=OFTEN) as cluster:
        asyncio.run(write_and_delete(cluster))
        until(lambda: all(one["held"] == 0 and one["collected"] >= 1_900 for one in told(cluster)), 90)
        until(lambda: all(pairs <= 100 for pairs in table_pairs(cluster)), 20)
        command = [sys.executable, "-m", "geokv", "gc", "status", "--json", "--node", cluster.address]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
        (row,) = (one for one in shown["namespaces"] if one["namespace"] == "default")
        assert (row["held"], row["waits_for"], shown["silent"]) == (0, [], []) and row["collected"] >= 5_700
        for name in cluster.names:
            cluster.kill(name)
        cluster.restart(*cluster.names)
        assert asyncio.run(present(cluster)) == 0
        assert all(one["held"] == 0 for one in told(cluster))


@pytest.mark.timeout(120)
def test_a_silent_node_is_named_and_holds_the_collection_up() -> None:
    """While one of three nodes is down nothing is collected, and the others say whom they wait for; then it goes on.

    Takes some ten seconds: it is silent after some of them.
    """
    with Cluster(nodes=3, settings=OFTEN) as cluster:
        cluster.kill("node-3")
        names, cluster.names = cluster.names, cluster.names[:2]
        asyncio.run(write_and_delete(cluster))
        until(lambda: all(any(w["node"] == "node-3" for w in one["waits_for"]) for one in told(cluster)), 40)
        assert all(one["held"] > 0 and one["collected"] == 0 for one in told(cluster))
        waits = [wait for one in told(cluster) for wait in one["waits_for"] if wait["node"] == "node-3"]
        assert {wait["reason"] for wait in waits} == {"silent"} and all(wait["dc"] == "dc1" for wait in waits)
        cluster.names = names
        cluster.restart("node-3")
        until(lambda: all(one["held"] == 0 for one in told(cluster)), 90)
