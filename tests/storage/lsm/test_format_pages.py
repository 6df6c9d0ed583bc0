"""The pages about the formats show the committed bytes."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
PAGES = Path(__file__).parents[3] / "docs" / "formats"


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("sstable", "format-2.sstable"),
        ("manifest", "format-1.manifest"),
        ("manifest", "format-2.manifest"),
        ("manifest", "format-3.manifest"),
        ("manifest", "format-1.meta"),
    ],
)
def test_the_worked_example_is_the_committed_file(page: str, file: str) -> None:
    """The page shows the whole file."""
    shown = (PAGES / f"{page}.md").read_text(encoding="utf-8").replace("\n", "")
    assert (GOLDEN / file).read_bytes().hex() in shown
