"""What a backup says of itself: read as it was written, and nothing in it leads out of its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from geokv.backup.form import Backup, BackupFile, RingMember, _digest, decode, encode
from geokv.errors import StorageError

WHERE = Path("backup.json")
FILE = BackupFile("lsm/MANIFEST", 10, 10, "", "ab" * 32)
BACKUP = Backup(
    name="monday",
    id="00",
    geokv="0.2",
    cluster="small",
    generation="",
    cut=str(1 << 60),
    begun_ms=1,
    done_ms=2,
    partitions=16,
    replicas={"here": 1},
    members=(RingMember("here-1", "here", "a", 1.0, "127.0.0.1:1"),),
    namespaces=[],
    files={"here-1": (FILE,)},
)


def test_what_is_written_is_read() -> None:
    """All of it, and the ring has an owner for each partition."""
    assert decode(encode(BACKUP), WHERE) == BACKUP
    assert BACKUP.missing == [] and BACKUP.places().mine("here-1") == list(range(16))


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "lsm/../../x", "log/1.wal", "lsm/a.sst", "CLUSTER", "", "lsm/MANIFEST\n", "log/00000001.wal/x"],
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    """Whoever wrote the document: its checksum fits, and it is refused all the same."""
    with pytest.raises(StorageError, match="cannot stand in it"):
        decode(encode(replace(BACKUP, files={"here-1": (replace(FILE, path=path),)})), WHERE)


@pytest.mark.parametrize("node", ["..", "../here-1", "there-1", "", "/"])
def test_a_node_that_is_none_of_the_ring_is_refused(node: str) -> None:
    """Nodes are names of folders, too."""
    with pytest.raises(StorageError, match="is no node of it"):
        decode(encode(replace(BACKUP, files={node: (FILE,)})), WHERE)


def test_a_newer_format_is_refused_by_name() -> None:
    """It asks for a newer version, and does not guess."""
    tree = json.loads(encode(BACKUP))
    del tree["sha256"]
    tree["format"] = 2
    with pytest.raises(StorageError, match="is of format 2, this version of geokv reads 1: use a newer one"):
        decode(json.dumps({**tree, "sha256": _digest(tree)}), WHERE)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", '{"sha256": 1}', "\0"])
def test_what_is_no_backup_is_refused(text: str) -> None:
    """An error with the file's name, whatever stands there."""
    with pytest.raises(StorageError, match=r"backup\.json is damaged"):
        decode(text, WHERE)
