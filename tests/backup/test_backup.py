"""Backups of real clusters: made under writes, verified, refused where a bit is wrong, restored and written to."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from geokv import Client
from geokv.backup.form import Backup
from geokv.backup.repository import begin, read
from geokv.cli import exits
from geokv.cli.main import main
from geokv.lab.ask import NodeConnection, ask
from geokv.runtime.wire.kv import Fetch
from geokv.testing import Cluster
from tests.digests import living
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)  # each starts real processes, some twice
POLICIES = {"docs": "siblings", "likes": "counter_pn", "tags": "set_aw"}


def nodes_of(cluster: Cluster) -> list[str]:
    return [part for address in cluster.addresses for part in ("--node", address)]


def create(cluster: Cluster, target: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main(["backup", "create", str(target), "--json", *nodes_of(cluster)]) == exits.DONE
    return json.loads(capsys.readouterr().out)


class Writer:
    """Puts, one after the other, until it is told to stop; knows the last that was acknowledged of each key."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_stopped = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._is_stopped.is_set():
            number += 1
            key = f"w{number % 50}"
            self._client.put(key, b"%d" % number)
            self.acknowledged[key] = number


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, int], dict[str, int]]]:
    """A repository with two backups of a cluster that was written to all the while.

    With it: of each key what was acknowledged before the first began, and the newest that was ever written.
    """
    folder = tmp_path_factory.mktemp("backups")
    with Cluster(nodes=3, directory=folder / "former") as cluster, cluster.client() as kv, cluster.client() as other:
        for name, policy in POLICIES.items():
            kv.create_namespace(name, policy=policy)
        kv.create_namespace("tree", engine="lmdb")
        kv.namespace("tree").put("leaf", b"kept in a tree")
        docs, likes, tags = kv.namespace("docs"), kv.counters("likes"), kv.sets("tags")
        for at in range(300):
            kv.put(f"k{at}", b"value %d" % at)
        for at in range(0, 300, 3):
            kv.delete(f"k{at}")
        first = docs.put("page", b"A")
        docs.put("page", b"B", context=first.context)
        docs.put("page", b"C", context=first.context)
        for at in range(1, 11):
            likes.increment("post", at)
        tags.add("page", "red")
        tags.add("page", "blue")
        tags.remove("page", "blue")
        with Writer(other) as writer:
            until(lambda: len(writer.acknowledged) == 50)
            before = dict(writer.acknowledged)
            arguments = ["backup", "create", str(folder / "repository" / "monday"), *nodes_of(cluster)]
            assert main(arguments) == exits.DONE
        kv.put("k1", b"changed later")
        likes.increment("post", 1000)
        assert main(["backup", "create", str(folder / "repository" / "tuesday"), *nodes_of(cluster)]) == exits.DONE
        assert ask(cluster.address_of("node-1"), "snapshot_list")["snapshots"] == []
        yield folder, before, dict(writer.acknowledged)


@pytest.fixture
def repository(made: tuple[Path, dict, dict]) -> Path:
    return made[0] / "repository"


def test_all_that_was_acknowledged_comes_back_and_lives_on(
    made: tuple[Path, dict[str, int], dict[str, int]], tmp_path: Path
) -> None:
    """Every policy, after a restore into an empty cluster: values, deletes, siblings, counters; and it is written to again."""
    folder, before, newest = made
    restored = ["backup", "restore", str(folder / "repository" / "monday"), "--all", "--directory", str(tmp_path / "new")]
    assert main(restored) == exits.DONE
    for one in (folder / "repository" / "monday", tmp_path / "new" / "node-1"):
        assert one.stat().st_mode & 0o7 == 0, "values in the clear are not for others"
    with Cluster(nodes=3, directory=tmp_path / "new") as cluster, cluster.client() as kv:
        for at in range(300):
            assert kv.get(f"k{at}").value == (None if at % 3 == 0 else b"value %d" % at)
        for key, number in before.items():
            value = kv.get(key).value
            assert value is not None and number <= int(value) <= newest[key]
        assert sorted(kv.namespace("docs").get("page").siblings) == [b"B", b"C"]
        likes, tags = kv.counters("likes"), kv.sets("tags")
        assert likes.get("post").value == 55 and set(tags.get("page").value) == {b"red"}
        assert kv.namespace("tree").get("leaf", consistency="ALL").value == b"kept in a tree"
        likes.increment("post", 5)
        tags.add("page", "green")
        kv.put("k0", b"anew")
        assert likes.get("post").value == 60 and set(tags.get("page").value) == {b"red", b"green"}
        kv.create_namespace("another")

        def is_settled() -> bool:
            statuses = [ask(cluster.address_of(name), "status") for name in cluster.names]
            return all(status["closing"][0]["is_done"] for status in statuses)

        until(is_settled)
        cluster.kill("node-2")
        cluster.restart("node-2")
        assert kv.get("k0", consistency="ALL").value == b"anew" and kv.counters("likes").get("post").value == 60
        first, *others = living(cluster)
        assert first and all(first == other for other in others)


def test_a_second_backup_fetches_what_is_new_only(repository: Path, tmp_path: Path) -> None:
    """Tables of the first are the second's too, as one file; each of them alone is whole, also after the other is removed."""
    copied = tmp_path / "repository"
    for name in ("monday", "tuesday"):
        assert main(["backup", "verify", str(repository / name)]) == exits.DONE
        shutil.copytree(repository / name, copied / name)
    monday, tuesday = read(repository / "monday"), read(repository / "tuesday")
    for node, files in tuesday.files.items():
        tables = {file.path for file in files if file.path.endswith(".sst")}
        common = tables & {file.path for file in monday.files[node]}
        assert common and tables - common, "some are new, some are not"
        for path in common:
            assert (repository / "monday" / node / path).samefile(repository / "tuesday" / node / path)
    assert main(["backup", "remove", str(copied / "monday")]) == exits.DONE
    assert sorted(path.name for path in copied.iterdir()) == ["tuesday"]
    assert main(["backup", "verify", str(copied / "tuesday")]) == exits.DONE


def test_a_flipped_bit_anywhere_is_found_and_refused(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], samples
) -> None:
    """In every file of it, also in backup.json: verify names it and exits with 1, restore writes nothing.

    One file of each node at a time, and one alone: none hides another.
    """
    rng = random.Random(3)
    copied = tmp_path / "monday"
    shutil.copytree(repository / "monday", copied)
    files = {node: _files(copied / node) for node in ("node-1", "node-2", "node-3")}
    assert sum(map(len, files.values())) >= 12
    together = [[file for file in some if file] for some in itertools.zip_longest(*files.values())]
    for damaged in [[copied / "backup.json"], *together, together[0][1:2]]:
        for _ in range(samples.of(test=1, check=5, soak=50)):
            flips = [(file, rng.randrange(file.stat().st_size), rng.randrange(8)) for file in damaged]
            _flip(flips)
            capsys.readouterr()
            assert main(["backup", "verify", str(copied)]) == exits.EXPECTATION_FAILED
            said = capsys.readouterr()
            assert all(str(file.relative_to(copied)) in said.out + said.err for file in damaged)
            # The states of all nodes are read also where one is restored, and each has a number of its own.
            states = {file.name for file in damaged if file.name == "MANIFEST" or file.name.startswith("META-")}
            asked = {("--all", "--directory", str(tmp_path / "new")): {file.name for file in damaged}}
            for node, file in [(file.relative_to(copied).parts[0], file) for file in damaged if file.parent != copied]:
                asked["--node", node, "--generation", "g", "--directory", str(tmp_path / "new" / node)] = {file.name} | states
            for arguments, names in asked.items():
                assert main(["backup", "restore", str(copied), *arguments]) == exits.EXPECTATION_FAILED
                said = capsys.readouterr()
                assert any(name in said.err for name in names), said.err
                assert not any((tmp_path / "new").glob("*/*")) and not any((tmp_path / "new").glob(".*"))
            _flip(flips)
    damaged[-1].unlink()
    assert main(["backup", "verify", str(copied)]) == exits.EXPECTATION_FAILED


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(flips: list[tuple[Path, int, int]]) -> None:
    for file, offset, bit in flips:
        with file.open("r+b") as opened:
            opened.seek(offset)
            byte = opened.read(1)[0]
            opened.seek(offset)
            opened.write(bytes([byte ^ 1 << bit]))


def test_nodes_of_the_former_cluster_and_of_the_restored_one_do_not_talk(repository: Path, tmp_path: Path) -> None:
    """One node with the former generation among two restored ones: it is refused by name, and takes part in nothing."""
    for generation, names in (("new", ("node-1", "node-2")), ("older", ("node-3",))):
        for name in names:
            arguments = ["--directory", str(tmp_path / "mixed" / name), "--node", name, "--generation", generation]
            assert main(["backup", "restore", str(repository / "monday"), *arguments]) == exits.DONE
    with Cluster(nodes=3, directory=tmp_path / "mixed") as cluster:
        live = {}
        for name in cluster.names:
            peers = ask(cluster.address_of(name), "status")["peers"]
            live[name] = [peer["node"] for peer in peers if peer["live"]]
        assert live == {"node-1": ["node-2"], "node-2": ["node-1"], "node-3": []}
        assert "restored: older" in cluster.log("node-1") + cluster.log("node-2") + cluster.log("node-3")


def test_nodes_restored_one_by_one_are_one_cluster(repository: Path, tmp_path: Path) -> None:
    """The same backup and the same generation, each node in a call of its own: they find each other and serve."""
    for name in ("node-1", "node-2", "node-3"):
        arguments = ["--directory", str(tmp_path / "new" / name), "--node", name, "--generation", "g"]
        assert main(["backup", "restore", str(repository / "tuesday"), *arguments]) == exits.DONE
    with Cluster(nodes=3, directory=tmp_path / "new") as cluster, cluster.client() as kv:
        assert kv.get("k1", consistency="ALL").value == b"changed later"
        assert kv.counters("likes").get("post").value == 1055


def test_what_cannot_be_restored_is_refused_before_anything_is_written(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory with something in it, a node that is not in it, a word that is missing, another ring."""
    monday = str(repository / "monday")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    topology = (repository.parent / "former" / "topology.toml").read_text()
    (tmp_path / "other.toml").write_text(topology.replace("partitions = 256", "partitions = 64"))
    new = ["--directory", str(tmp_path / "new")]
    for arguments, said in (
        (["--directory", str(tmp_path / "full"), "--node", "node-1", "--generation", "g"], "is not empty"),
        ([*new, "--node", "node-9", "--generation", "g"], "no node node-9 in it; there are: node-1, node-2, node-3"),
        ([*new, "--node", "node-1"], "--node needs --generation WORD"),
        (new, "give --all, or --node NODE"),
        ([*new, "--all", "--topology", str(tmp_path / "other.toml")], "partitions: 64 here, 256 in the backup"),
        ([*new, "--all", "--generation", "a\nb"], "1 to 40 printable characters"),
    ):
        assert main(["backup", "restore", monday, *arguments]) == exits.USAGE
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert main(["backup", "verify", str(tmp_path)]) == exits.USAGE
    assert "is no backup: it has no backup.json" in capsys.readouterr().err


def test_a_node_gives_away_its_snapshots_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths out of a snapshot, names that are none, sizes beyond the limit: refused by the node. A backup of one node too few
    is refused while that one is down, and one that was broken off goes on.
    """
    with Cluster(nodes=2, directory=tmp_path / "nodes") as cluster, cluster.client() as kv:
        for at in range(100):
            kv.put(f"k{at}", b"v" * 100)
        address = cluster.address_of("node-1")
        cut = ask(address, "status")["hlc"]
        listed = ask(address, "snapshot_create", {"name": "one", "cut": cut}, 30)
        with NodeConnection(address) as connection:
            first = listed["files"][0]
            assert len(connection.fetch(Fetch("one", first["path"], 0, 1 << 20))) == first["used"]
            for fetch in (
                Fetch("one", "../../CLUSTER", 0, 10),
                Fetch("one", "SNAPSHOT", 0, 10),
                Fetch("../..", "CLUSTER", 0, 10),
                Fetch("one", first["path"], 0, 1 << 30),
                Fetch("none", first["path"], 0, 10),
            ):
                with pytest.raises(Exception, match=r"holds no file|is no name|bytes at|no snapshot"):
                    connection.fetch(fetch)
        ask(address, "snapshot_remove", {"name": "one"})
        (tmp_path / "repository").mkdir()
        target = tmp_path / "repository" / "b"
        cluster.kill("node-2")
        assert main(["backup", "create", str(target), *nodes_of(cluster)]) == exits.UNAVAILABLE
        assert "node-2" in capsys.readouterr().err and not target.exists()
        assert main(["backup", "create", str(target), "--only", "node-1", *nodes_of(cluster)]) == exits.DONE
        assert read(target).missing == ["node-2"]
        arguments = ["--all", "--directory", str(tmp_path / "new")]
        assert main(["backup", "restore", str(target), *arguments]) == exits.USAGE
        assert "this backup is without node-2" in capsys.readouterr().err
        cluster.restart("node-2")
        with begin(tmp_path / "repository" / "c"):
            assert main(["backup", "create", str(tmp_path / "repository" / "c"), *nodes_of(cluster)]) == exits.UNAVAILABLE
            assert "is being made by another process" in capsys.readouterr().err
        tree = create(cluster, tmp_path / "repository" / "c", capsys)
        assert tree["shared_files"] >= 1 and isinstance(read(tmp_path / "repository" / "c"), Backup)
        assert main(["backup", "create", str(tmp_path / "repository" / "c"), *nodes_of(cluster)]) == exits.USAGE


def test_the_worker_is_paused_slowed_and_goes_on_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown in status while it is so; a flush waits for the end of the pause; a snapshot says that it cannot be taken."""
    with Cluster(nodes=1, directory=tmp_path / "nodes") as cluster, cluster.client() as kv:
        kv.put("k", b"v")
        address = cluster.address_of("node-1")
        at = ["--address", address]
        assert main(["storage", "pause", "--seconds", "60", *at]) == exits.DONE
        assert 0 < ask(address, "status")["storage"]["paused_ms_left"] <= 60_000
        assert main(["storage", "flush", *at]) == exits.UNAVAILABLE
        assert "paused for" in capsys.readouterr().err
        assert main(["storage", "resume", *at]) == exits.DONE
        assert main(["storage", "flush", *at]) == exits.DONE
        assert main(["storage", "throttle", "1000000", *at]) == exits.DONE
        capsys.readouterr()
        assert main(["status", "--node", address]) == exits.DONE
        assert "slowed down to 1000000 bytes/s" in capsys.readouterr().out
        assert main(["storage", "compact", *at]) == exits.DONE
        assert main(["storage", "throttle", "5", *at]) == exits.USAGE
        assert main(["storage", "throttle", "0", *at]) == exits.DONE
        assert main(["storage", "pause", "--seconds", "0.3", *at]) == exits.DONE
        until(lambda: ask(address, "status")["storage"]["paused_ms_left"] == 0)
        assert main(["storage", "pause", "--seconds", "99999", *at]) == exits.USAGE
        assert main(["storage", "pause"]) == exits.USAGE
