"""The pages about the formats show the committed bytes."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
PAGES = Path(__file__).parents[2] / "docs" / "formats"


@pytest.mark.parametrize(("kind", "length"), [("wal", 205), ("checkpoint", 64)])
def test_the_worked_example_is_the_committed_file(kind: str, length: int) -> None:
    """The page shows the file's first bytes, up to where only zeros follow or the example stops."""
    shown = (PAGES / f"{kind}.md").read_text(encoding="utf-8").replace("\n", "")
    assert (GOLDEN / f"format-1.{kind}").read_bytes()[:length].hex() in shown


@pytest.mark.parametrize(
    "name",
    [
        "format-2-encrypted.wal",
        "lsm/golden/format-2-encrypted.sstable",
        "lsm/golden/format-3-encrypted.manifest",
        "lsm/golden/format-1-encrypted.meta",
    ],
)
def test_the_page_of_encryption_shows_the_committed_files(name: str) -> None:
    """All of them, as far as they are not zeros."""
    shown = (PAGES / "encryption.md").read_text(encoding="utf-8").replace("\n", "")
    path = GOLDEN.parent / name if "/" in name else GOLDEN / name
    assert path.read_bytes().rstrip(b"\0").hex() in shown
