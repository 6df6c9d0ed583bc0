"""`geokv storage` on what a stopped node leaves: clean as it stands, and every flipped bit is named with file and offset."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from geokv.cli import exits
from geokv.cli.main import main
from geokv.storage.encryption.source import KeySource
from geokv.testing import Cluster


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a cluster of one node that has flushed tables and was stopped; plain, and encrypted.

    The tools are given its keys by the environment.
    """
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "encrypted":
            path = tmp_path_factory.mktemp("keys") / "keys"
            assert main(["storage", "new-key", "--append", str(path)]) == exits.DONE
            patch.setenv("GEOKV_ENCRYPTION_KEY_FILE", str(path))
        yield _written(directory)


def _key_file() -> str | None:
    return os.environ.get("GEOKV_ENCRYPTION_KEY_FILE")


def _written(directory: Path) -> Path:
    for begun in range(2):
        with Cluster(nodes=1, directory=directory, encryption_key_file=_key_file()) as cluster, cluster.client() as kv:
            carts = kv.namespace("default")
            for at in range(60):
                carts.put(b"key-%d" % (at + 30 * begun), b"value %d" % at * 20)
            carts.delete(b"key-7")
    return directory


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it to do things to."""
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = main(["storage", "verify", str(folder), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_folder_of_a_stopped_node_is_clean(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; tables and segments are counted; the same for the node's own folder."""
    for directory in (folder, folder / "node-1"):
        code, tree = verified(directory, capsys)
        assert (code, tree["is_clean"]) == (exits.DONE, True)
        (node,) = tree["nodes"]
        assert node["tables"] >= 1 and node["segments"] >= 1 and node["damage"] == []
    assert main(["storage", "verify", str(folder)]) == exits.DONE
    assert "clean" in capsys.readouterr().out


def test_any_flipped_bit_of_a_table_or_segment_is_named(folder: Path, capsys: pytest.CaptureFixture[str], samples) -> None:
    """Exit code 1, with the file and an offset at or before the bit; in tables, in frames, and in the zeros behind them."""
    rng = random.Random(5)
    files = sorted((folder / "node-1").glob("lsm/*.sst")) + sorted((folder / "node-1").glob("log/*.wal"))
    assert len(files) >= 3
    for file in files:
        sound = file.read_bytes()
        written = len(sound.rstrip(b"\0"))
        offsets = {0, 1, 13, written // 2, written - 1 if written else 0, len(sound) - 1}
        offsets |= {rng.randrange(max(written, 1)) for _ in range(samples.of(test=2, check=6, soak=2000))}
        for offset in sorted(offsets):
            with file.open("r+b") as opened:
                opened.seek(offset)
                opened.write(bytes([sound[offset] ^ 1 << rng.randrange(8)]))
            code, tree = verified(folder, capsys)
            (damage,) = tree["nodes"][0]["damage"]
            assert (code, tree["is_clean"]) == (exits.EXPECTATION_FAILED, False)
            assert damage["file"] == str(file)
            assert damage["offset"] <= offset or damage["offset"] >= len(sound) - 128, "a table's footer stands at its end"
            with file.open("r+b") as opened:
                opened.seek(offset)
                opened.write(sound[offset : offset + 1])
    assert verified(folder, capsys)[0] == exits.DONE


def test_a_missing_or_cut_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table that the manifest names, and the segment where recovery begins."""
    node = folder / "node-1"
    table = next(node.glob("lsm/*.sst"))
    segment = json.loads(_out(capsys, "storage", "inspect", str(folder), "--json"))["nodes"][0]["position"]["segment"]
    table.unlink()
    (node / "log" / f"{segment:08}.wal").unlink()
    code, tree = verified(folder, capsys)
    assert code == exits.EXPECTATION_FAILED
    named = {damage["path"] for damage in tree["nodes"][0]["damage"]}
    assert f"lsm/{table.name}" in named and f"log/{segment:08}.wal" in named


def test_files_are_named_from_wherever_the_command_is_given(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder named relatively, and a table, the manifest or a spare that is gone or empty: each by its own path."""
    monkeypatch.chdir(folder.parent)
    relative, node = Path(folder.name), Path(folder.name) / "node-1"
    table, spare = next(node.glob("lsm/*.sst")), max(node.glob("log/*.wal"))
    for file, content in ((table, None), (node / "lsm" / "MANIFEST", None), (spare, b"")):
        kept = file.rename(folder.parent / "kept")
        if content is not None:
            file.write_bytes(content)
        code, tree = verified(relative, capsys)
        kept.rename(file)
        (damage,) = [one for one in tree["nodes"][0]["damage"] if not one["path"].startswith("log/") or file == spare]
        assert (code, damage["file"]) == (exits.EXPECTATION_FAILED, str(file))
        assert "failed: No such file" not in damage["what"]
    assert verified(relative, capsys)[0] == exits.DONE


def test_a_cell_of_any_policy_is_shown_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dump` tells what a counter, a set and concurrent values show, and that a set is deleted.

    Takes seconds: a node is started.
    """
    with Cluster(nodes=1, directory=tmp_path) as cluster, cluster.client() as kv:
        for name, policy in (("likes", "counter_pn"), ("tags", "set_aw"), ("docs", "siblings"), ("seats", "counter_bounded")):
            kv.create_namespace(name, policy=policy)
        kv.counters("likes").increment("a", 7)
        kv.bounded_counters("seats").increment("b", 3)
        kv.sets("tags").add("c", "red")
        kv.sets("tags").add("d", "red")
        kv.namespace("tags").delete("d")
        for value in (b"one", b"two"):
            kv.namespace("docs").put("e", value)
    lines = {one["key"]: one for one in map(json.loads, _out(capsys, "storage", "dump", str(tmp_path)).splitlines())}
    shown = {key: (line["type"], line["is_tombstone"], line["value"]) for key, line in lines.items()}
    assert shown.pop("e")[0] == "siblings" and sorted(lines["e"]["value"]) == ["one", "two"]
    assert shown == {
        "a": ("counter_pn", False, 7),
        "b": ("counter_bounded", False, 3),
        "c": ("set_aw", False, ["red"]),
        "d": ("set_aw", True, None),
    }


def test_looking_changes_no_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify`, `inspect` and `dump` leave every file as it was; and `compact` keeps off a folder that stands in a backup."""

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    for command in ("verify", "inspect", "dump"):
        assert main(["storage", command, str(folder)]) == exits.DONE
    (folder / "backup.json").write_text("{}")
    assert main(["storage", "compact", str(folder)]) == exits.USAGE
    assert "stands in a backup" in capsys.readouterr().err
    (folder / "backup.json").unlink()
    assert content() == before


def test_whose_folder_it_is_is_verified_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit in the file CLUSTER, or none there: exit code 1, and the file is named."""
    file = folder / "node-1" / "CLUSTER"
    sound = file.read_bytes()
    for hurt in (sound.replace(b"dc1", b"dc3"), None):
        file.unlink()
        if hurt is not None:
            file.write_bytes(hurt)
        code, tree = verified(folder, capsys)
        (damage,) = tree["nodes"][0]["damage"]
        assert (code, damage["file"]) == (exits.EXPECTATION_FAILED, str(file))
        file.write_bytes(sound)
    assert verified(folder, capsys)[0] == exits.DONE


def test_a_file_that_is_none_of_the_node_is_not_dumped_as_empty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dump --file` of a name that is not there is a mistake of the caller, and says who knows the names."""
    assert main(["storage", "dump", str(folder), "--file", "lsm/none.sst"]) == exits.USAGE
    assert "`geokv storage inspect" in capsys.readouterr().err


def _out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == exits.DONE
    return capsys.readouterr().out


def test_what_is_in_the_files_can_be_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` names tables and segments, `dump` prints cells with tombstones, of all files or of one."""
    tree = json.loads(_out(capsys, "storage", "inspect", str(folder), "--json"))["nodes"][0]
    tables = [table for space in tree["namespaces"] for table in space["tables"]]
    assert tables and tree["segments"] and all(table["pairs"] for table in tables)
    assert "recovery begins at byte" in _out(capsys, "storage", "inspect", str(folder))
    cells = [json.loads(line) for line in _out(capsys, "storage", "dump", str(folder)).splitlines()]
    assert {cell["key"] for cell in cells} == {f"key-{at}" for at in range(90)}
    assert any(cell["key"] == "key-7" and cell["is_tombstone"] and cell["value"] is None for cell in cells)
    one = [json.loads(line) for line in _out(capsys, "storage", "dump", str(folder), "--file", tables[0]["path"]).splitlines()]
    assert len(one) == tables[0]["pairs"]
    assert len(_out(capsys, "storage", "dump", str(folder), "--limit", "3").splitlines()) == 3


@pytest.mark.timeout(60)
def test_flush_and_compact_change_no_cell(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A killed node's log is flushed, its tables become one; the node then serves all of it.

    Takes seconds: a node is started twice.
    """
    folder = Path(shutil.copytree(stopped, tmp_path / "copy"))
    with Cluster(nodes=1, directory=folder, encryption_key_file=_key_file()) as cluster:
        assert main(["storage", "verify", str(folder)]) == exits.UNAVAILABLE, "it runs"
        with cluster.client() as kv:
            kv.namespace("default").put(b"last", b"of all")
        cluster.kill("node-1")
    assert "node-1: flushed" in _out(capsys, "storage", "flush", str(folder))
    tree = json.loads(_out(capsys, "storage", "inspect", str(folder), "--json"))["nodes"][0]
    assert sum(table["pairs"] for space in tree["namespaces"] for table in space["tables"]) > 90
    assert verified(folder, capsys)[0] == exits.DONE
    assert "compacted" in _out(capsys, "storage", "compact", str(folder))
    tree = json.loads(_out(capsys, "storage", "inspect", str(folder), "--json"))["nodes"][0]
    assert [len(space["tables"]) for space in tree["namespaces"]] == [1]
    assert verified(folder, capsys)[0] == exits.DONE
    with Cluster(nodes=1, directory=folder, encryption_key_file=_key_file()) as cluster, cluster.client() as kv:
        carts = kv.namespace("default")
        assert carts.get(b"last").value == b"of all"
        assert carts.get(b"key-7").value is None and carts.get(b"key-89").value == b"value 59" * 20


def test_what_cannot_be_looked_at_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, and no node's folder: one line on stderr, and no exit code that means damage."""
    assert main(["storage", "verify", str(tmp_path / "nowhere")]) == exits.USAGE
    assert main(["storage", "verify", str(tmp_path)]) == exits.USAGE
    assert "no directory of a node" in capsys.readouterr().err


def test_new_keys_are_printed_or_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of a key file each time, the newest last; the file is its owner's only, and `plain` at its end goes."""
    path = tmp_path / "keys"
    for options in (("--id", "first"), ("--bits", "128")):
        assert main(["storage", "new-key", *options, "--append", str(path)]) == exits.DONE
    assert "nodes that run take it with `geokv storage rotate-keys`" in capsys.readouterr().out
    path.write_text(path.read_text() + "plain\n")
    line = _out(capsys, "storage", "new-key", "--id", "third")
    assert len(line.split()[1]) == 44
    assert main(["storage", "new-key", "--id", "third", "--append", str(path)]) == exits.DONE
    ring = KeySource(path).read()
    assert (ring.ids[0], ring.ids[2], ring.active, len(ring.key(ring.ids[1]))) == ("first", "third", "third", 16)
    assert path.stat().st_mode & 0o777 == 0o600
    for wrong in ("plain", "first", "no blanks"):
        assert main(["storage", "new-key", "--id", wrong, "--append", str(path)]) == exits.USAGE
    assert KeySource(path).read().ids == ring.ids


def test_inspect_tells_of_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which key every file is written with, and which are not needed."""
    tree = json.loads(_out(capsys, "storage", "inspect", str(folder), "--json"))["nodes"][0]
    (key,) = tree["keys"]
    assert key["is_active"] and key["files"]["table"] >= 1 and key["files"]["log"] >= 1 and key["files"]["state"] >= 1
    assert bool(key["id"]) is bool(_key_file())
    assert {table["key_id"] for space in tree["namespaces"] for table in space["tables"]} == {key["id"]}
    assert (key["id"] or "plain") in _out(capsys, "storage", "inspect", str(folder))
