"""Backups of encrypted nodes: they show nothing, are made with keys or without, and come back only with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geokv.cli import exits
from geokv.cli.main import main
from geokv.storage.encryption.keys import key_line
from geokv.testing import Cluster

pytestmark = pytest.mark.timeout(180)  # real processes, started twice
SECRET = b"the-secret-of-"
COUNT = 200


def _key_file(path: Path, *keys: tuple[str, int]) -> Path:
    """Keys by id, each of 32 times one byte; the last is for new files."""
    path.write_text("".join(key_line(key_id, bytes([byte]) * 32) for key_id, byte in keys))
    path.chmod(0o600)
    return path


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_backup_of_encrypted_nodes_shows_nothing_and_comes_back_with_its_key_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No value, no key in any byte of it. Made without keys, which is said; checked whole, and restored, with them."""
    keys = _key_file(tmp_path / "keys", ("first", 1))
    repository = tmp_path / "repository"
    with_keys = ["--encryption-key-file", str(keys)]
    with (
        Cluster(nodes=2, directory=tmp_path / "former", encryption_key_file=keys) as cluster,
        cluster.client() as kv,
    ):
        kv.create_namespace("hidden-name", policy="counter_pn")
        kv.counters("hidden-name").increment("user-counted", 7)
        for at in range(COUNT):
            kv.put(f"user-{at}", SECRET + b"%d " % at * 20)
        to_nodes = [part for address in cluster.addresses for part in ("--node", address)]
        capsys.readouterr()
        assert main(["backup", "create", str(repository / "monday"), *to_nodes]) == exits.DONE
        said = capsys.readouterr().err
        assert all(f"{node}: encrypted with key first, which is not given" in said for node in cluster.names)
        kv.put("user-late", SECRET)  # in the log only, at the end
        assert main(["backup", "create", str(repository / "tuesday"), *to_nodes, *with_keys]) == exits.DONE
        assert "encrypted" not in capsys.readouterr().err

    for name in ("monday", "tuesday"):
        found = _content(repository / name)
        assert {Path(path).name.split("-")[0] for path in found} >= {"MANIFEST", "META", "backup.json"}
        for path, content in found.items():
            assert SECRET not in content and b"user-" not in content, path
            assert b"hidden-name" not in content or path == "backup.json", path  # which lists namespaces

    monday, tuesday = str(repository / "monday"), str(repository / "tuesday")
    assert main(["backup", "verify", monday, "--json"]) == exits.DONE
    said_of = json.loads(capsys.readouterr().out)
    assert said_of["is_whole"] and said_of["contents_unchecked"] == {"node-1": ["first"], "node-2": ["first"]}
    assert main(["backup", "verify", monday]) == exits.DONE
    assert "node-1: encrypted with key first, which is not given: every byte was compared" in capsys.readouterr().out
    assert main(["backup", "verify", monday, "--json", *with_keys]) == exits.DONE
    said_of = json.loads(capsys.readouterr().out)
    assert said_of["is_whole"] and said_of["contents_unchecked"] == {}

    target = tmp_path / "new"
    restore = ["backup", "restore", tuesday, "--all", "--directory", str(target)]
    other = _key_file(tmp_path / "other", ("second", 2))
    same_id = _key_file(tmp_path / "same", ("first", 3))
    for wrong, why in (
        ([], "node-1/lsm/MANIFEST is encrypted with key 'first', and no key is given"),
        (["--encryption-key-file", str(other)], "is encrypted with key 'first', and the keys given are second"),
        (["--encryption-key-file", str(same_id)], "is encrypted with a key 'first' that is another than the one given"),
    ):
        assert main([*restore, *wrong]) == exits.USAGE
        assert why in capsys.readouterr().err
        assert not target.exists() or not any(target.iterdir())
        if wrong:
            assert main(["backup", "verify", tuesday, *wrong]) == exits.USAGE
            assert why in capsys.readouterr().err

    newer = _key_file(tmp_path / "newer", ("first", 1), ("second", 2))  # a node's own key is written with, not the last
    assert main([*restore, "--encryption-key-file", str(newer)]) == exits.DONE
    for path, content in _content(target).items():
        assert SECRET not in content and b"user-" not in content, path
    with Cluster(nodes=2, directory=target, encryption_key_file=keys) as cluster, cluster.client() as kv:
        for at in range(COUNT):
            assert kv.get(f"user-{at}", consistency="ALL").value == SECRET + b"%d " % at * 20
        assert kv.get("user-late", consistency="ALL").value == SECRET
        assert kv.counters("hidden-name").get("user-counted").value == 7
        kv.put("user-new", b"written after it")
        assert kv.get("user-new", consistency="ALL").value == b"written after it"
