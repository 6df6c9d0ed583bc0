"""A backup that was broken off: what had been fetched, and noted, is not fetched again."""

from __future__ import annotations

from pathlib import Path

from geokv.backup.form import BackupFile
from geokv.backup.repository import begin, key_of


def test_a_note_that_was_torn_hides_no_other_one(tmp_path: Path) -> None:
    """Broken off in the midst of a line, gone on with, broken off again: the third try knows what the first two noted."""
    names = [f"lsm/{number:08}.sst" for number in range(3)]
    keys = [key_of("small", "", "node-1", BackupFile(name, 10, 10, "1234abcd", "")) for name in names]
    notes = tmp_path / ".monday.partial" / "received.jsonl"
    with begin(tmp_path / "monday") as first:
        first.note(keys[0], "digest")
        first.note(keys[1], "digest")
    notes.write_bytes(notes.read_bytes().rstrip()[:-5])
    with begin(tmp_path / "monday") as second:
        assert [second.have(key) is not None for key in keys] == [True, False, False]
        second.note(keys[1], "digest")
        second.note(keys[2], "digest")
    with begin(tmp_path / "monday") as third:
        assert [third.have(key) is not None for key in keys] == [True, True, True]
