"""Encrypted nodes: nothing of users stands in their files, wrong keys touch nothing, keys rotate without a stop."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from geokv.errors import GeokvError
from geokv.lab.ask import ask
from geokv.storage.encryption.keys import key_line
from geokv.testing import Cluster
from tests.waiting import until

SMALL = {"memtable-bytes": str(1 << 20)}
SECRET = b"the-secret-of-"


def key_file(path: Path, *ids: str, is_plain: bool = False) -> Path:
    """A file of these keys, each of them made from its id."""
    lines = [key_line(one, hashlib.sha256(one.encode()).digest()) for one in ids]
    path.write_text("".join(lines) + ("plain\n" if is_plain else ""))
    path.chmod(0o600)
    return path


def put(cluster: Cluster, numbers: range) -> None:
    with cluster.client() as kv:
        carts = kv.namespace("default")
        for at in numbers:
            carts.put(b"user-%d" % at, SECRET + b"%d " % at * 40)


def missing(cluster: Cluster, numbers: range) -> list[int]:
    with cluster.client() as kv:
        carts = kv.namespace("default")
        return [at for at in numbers if carts.get(b"user-%d" % at).value != SECRET + b"%d " % at * 40]


def fill(cluster: Cluster) -> None:
    """More than a memtable, so that something is flushed."""
    with cluster.client() as kv:
        carts = kv.namespace("default")
        for at in range(160):
            carts.put(b"bulk-%d" % at, os.urandom(9000))


def files(directory: Path) -> dict[str, bytes]:
    """What a node keeps, but for the lock's text."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def keys(cluster: Cluster, rotate: bool = False) -> dict[str, dict[str, int]]:
    """Key to its files, as the node tells it."""
    said: dict[str, Any] = ask(cluster.address, "keys", {"rotate": rotate}, timeout_s=10.0)
    return {one["id"]: one["files"] for one in said["keys"]}


@pytest.mark.timeout(180)
def test_keys_and_values_stand_nowhere_and_wrong_keys_touch_nothing(tmp_path: Path) -> None:
    """Log, tables, manifest: none of them shows a key, a value or a name; without the right key nothing starts or changes.

    Some seconds: five starts of a process.
    """
    directory = tmp_path / "data"
    path = key_file(tmp_path / "keys", "first")
    with Cluster(directory=directory, settings=SMALL, encryption_key_file=path) as cluster:
        put(cluster, range(50))
        fill(cluster)
        until(lambda: keys(cluster)["first"].get("table", 0) > 0)
        assert keys(cluster).keys() == {"first"}
    before = files(directory / "node-1")
    assert {name.split("/")[0] for name in before} >= {"log", "lsm"}
    for name, content in before.items():
        assert SECRET not in content and b"user-" not in content and b"default" not in content, name
    for wrong, why in (
        (None, "is encrypted with key 'first', and no key is given"),
        (key_file(tmp_path / "other", "second"), "is encrypted with key 'first', and the keys given are second"),
        (_same_id(tmp_path / "same"), "is encrypted with a key 'first' that is another than the one given under that id"),
    ):
        with pytest.raises(GeokvError, match=why):
            Cluster(directory=directory, settings=SMALL, encryption_key_file=wrong).start()
        assert files(directory / "node-1") == before
    with Cluster(directory=directory, settings=SMALL, encryption_key_file=path) as cluster:
        assert not missing(cluster, range(50))


def _same_id(path: Path) -> Path:
    path.write_text(key_line("first", bytes(32)))
    path.chmod(0o600)
    return path


@pytest.mark.timeout(180)
def test_keys_rotate_without_a_stop_on_and_off_and_a_kill_loses_nothing(tmp_path: Path) -> None:
    """Plain, then encrypted, then another key, then plain again: a running node rewrites what it has, and serves all the while.

    Some seconds: several flushes, and rewriting after each rotation.
    """
    path = key_file(tmp_path / "keys", "first", is_plain=True)
    with Cluster(directory=tmp_path / "data", settings=SMALL, encryption_key_file=path) as cluster:
        put(cluster, range(20))
        fill(cluster)
        until(lambda: keys(cluster)[""].get("table", 0) > 0)
        key_file(path, "first")
        keys(cluster, rotate=True)
        put(cluster, range(20, 40))
        fill(cluster)
        until(lambda: keys(cluster).get("", {}).keys() <= {"log"})  # until it is flushed and nobody needs it
        key_file(path, "second")
        with pytest.raises(GeokvError, match=r"is encrypted with key 'first', and the keys given are second"):
            keys(cluster, rotate=True)
        assert keys(cluster)["first"]
        key_file(path, "first", "second")
        cluster.node("node-1").signal(signal.SIGHUP)
        until(lambda: keys(cluster).get("second", {}).get("table", 0) > 0)
        put(cluster, range(40, 60))
        cluster.kill("node-1")
        cluster.restart("node-1")
        assert not missing(cluster, range(60))
        fill(cluster)
        fill(cluster)
        until(lambda: not keys(cluster)["first"])
        key_file(path, "second")
        cluster.restart("node-1")
        key_file(path, "second", is_plain=True)
        keys(cluster, rotate=True)
        fill(cluster)
        fill(cluster)
        until(lambda: not keys(cluster)["second"])
        cluster.restart("node-1")
        assert not missing(cluster, range(60))
